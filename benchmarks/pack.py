"""Packs what `gpu.py` needs on a machine without a network, in parts of at most 60 MB.

    python benchmarks/pack.py OUT --data /work/shared/data/pascal-part --weights FILE [FILE …]
                              [--parts 2] [--megabytes 60] [--beside CHECKOUT]

OUT/part1.tar.gz holds the code, the weights and the pure Python packages that such a machine may
lack, and is enough for everything but the folds; further parts hold photographs, as many of
`train` and `val` as fit, evenly chosen, and lists of those. The calls to make there are printed.

Where the machine gets a checkout of this project with every call, and all that travels in a call
must stay below 64 MiB, `--beside CHECKOUT` takes its size off the limit and leaves the code out of
the parts. On such a machine (its tool's `run` has `carry`), with `/.gpu/` in .git/info/exclude:

    python benchmarks/pack.py .gpu --data DIR --weights FILE --parts 2 --beside .
    1. run(carry=[".gpu/part1.tar.gz"], timeout_s=60, command=
       "mkdir -p /tmp/celp && tar -xzf .gpu/part1.tar.gz -C /tmp/celp")
    2. at once, or the machine is given back: run(carry=[".gpu/part2.tar.gz"], timeout_s=560,
       command="tar -xzf .gpu/part2.tar.gz -C /tmp/celp && PYTHONPATH=$PWD:/tmp/celp/site python3
       benchmarks/gpu.py --out $OUT --data /tmp/celp/data/DIR --fold-weights
       /tmp/celp/weights/FILE")
    3. give_back; copy rows.csv and README.md from where the call's files lie to results/gpu.

Where the checkout leaves no room, let it travel without what the card does not need: write /nbs/,
/docs/ and /results/ into .git/info/exclude too, `git rm -rq --cached` them, and `git reset -q` when
all is done. `--parts 4` then holds all 3,743 photographs of `pascal-part`, `--parts 3` 2,806, and
`benchmarks/many_trainings.py RUN OUT --score` can follow the last part instead of `gpu.py`.

Photographs and weights are not for the repository: OUT must be a folder that git ignores.
"""
import argparse
import gzip
import importlib.metadata
import io
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

from celp_nb.repro.setup import code_version

ROOT = Path(__file__).resolve().parent.parent
CODE = ("celp_nb", "benchmarks", "tests/test_cuda.py", "data_samples", "pytest.ini", "LICENSE")
PACKAGES = ("cachetools", "docstring_parser", "fastprogress", "typeguard", "tyro")
TRAVELS = 64 * 2**20  # bytes in a call, beside a checkout
SPARE = 2**20  # of them for what surrounds the files
HEADER = 1536  # bytes of a tar's entry, at most


class Entry(NamedTuple):
    "A file of a part."
    name: str  # where it is unpacked to
    source: Path | bytes
    size: int  # what it takes up in a part, at most


def entry(name, source):
    "Photographs do not get smaller; large other files are compressed once to see what they take."
    data = source if isinstance(source, bytes) else None
    size = len(data) if data is not None else source.stat().st_size
    if size > 2**20 and not name.lower().endswith((".jpg", ".jpeg", ".png")):
        size = len(gzip.compress(data if data is not None else source.read_bytes(), 6))
    return Entry(name, source, size + HEADER)


def tracked(folder, *paths):
    "Files of a checkout that are neither ignored nor gone."
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard", "--", *paths]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [name for name in sorted(set(listed.split("\0"))) if (Path(folder) / name).is_file()]


def code_entries():
    "The package, the benchmarks, the tests that need a card, and the bundled scenes."
    return [entry(name, ROOT / name) for name in tracked(ROOT, *CODE)]


def package_entries(names):
    "Installed packages of pure Python. Raises ValueError for one that is not."
    entries = []
    for name in names:
        installed = importlib.metadata.distribution(name)
        for file in installed.files or ():
            path = Path(installed.locate_file(file))
            if ".." in file.parts or "__pycache__" in file.parts or not path.is_file(): continue
            if path.suffix in (".so", ".pyd", ".dll"):
                raise ValueError(
                    f"{name} is not of Python alone ({file}); carry a wheel of it instead."
                )
            entries.append(entry(f"site/{file}", path))
    return entries


def weight_entries(paths):
    "Files of weights, and licences that lie beside them."
    licences = {licence for path in paths for licence in path.parent.glob("LICENSE*")}
    return [entry(f"weights/{path.name}", path) for path in [*paths, *sorted(licences)]]


def listed(folder, split):
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list; give --data a folder in VOC layout.")
    return path.read_text().split()


def pair(folder, name):
    "A photograph and its mask."
    photo = f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png"
    return [entry(f"data/{folder.name}/{file}", folder / file) for file in photo]


def evenly(items, share):
    "So many of a list's items, at even distances."
    n = int(share * len(items))
    return [items[i * len(items) // n] for i in range(n)]


def photograph_entries(folder, room):
    "As many photographs of both splits as a room of bytes holds, and the lists of them."
    pairs = {split: [pair(folder, name) for name in listed(folder, split)]
             for split in ("train", "val")}  # fmt: skip
    size = lambda chosen: sum(e.size for of in chosen for both in of for e in both)
    whole = size(pairs.values())
    share = min(1.0, room / max(whole, 1))
    while size([evenly(of, share) for of in pairs.values()]) > room: share *= 0.98
    entries = []
    for split, of in pairs.items():
        chosen = evenly(of, share)
        names = "".join(Path(photo.name).stem + "\n" for photo, _ in chosen)
        path = f"data/{folder.name}/ImageSets/Segmentation/{split}.txt"
        entries += [entry(path, names.encode()), *(e for both in chosen for e in both)]
    if (folder / "classes.txt").is_file():
        entries.append(entry(f"data/{folder.name}/classes.txt", folder / "classes.txt"))
    return entries


def in_parts(entries, limit):
    "Files in parts, in their order. Raises ValueError naming one that fits into none."
    parts, room = [[]], limit
    for e in entries:
        if e.size > limit:
            raise ValueError(
                f"{e.name} takes {e.size / 1e6:.1f} MB, and a part holds {limit / 1e6:.1f}; "
                "raise --megabytes, or leave it out."
            )
        if e.size > room: parts, room = [*parts, []], limit
        parts[-1].append(e)
        room -= e.size
    return parts


def write_part(path, entries):
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for e in entries:
            info = tarfile.TarInfo(e.name)
            data = e.source if isinstance(e.source, bytes) else e.source.read_bytes()
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def part_limit(megabytes, beside):
    "Bytes of a part. Raises ValueError where nothing is left beside the checkout."
    limit = int(megabytes * 1e6)
    if not beside: return limit
    taken = sum((beside / name).stat().st_size for name in tracked(beside))
    limit = min(limit, TRAVELS - SPARE - taken)
    if limit < SPARE:
        raise ValueError(
            f"{beside} has {taken / 1e6:.1f} MB that travel with every call, which leaves no room "
            "for a part; ignore some of its files, or pack without --beside and carry the code."
        )
    return limit


def calls(paths, entries, beside):
    "What to run on the other machine, a line for each call."
    home = "$PWD" if beside else "/tmp/celp"
    command = ["cd /tmp/celp &&"] * (not beside)
    command += [f"PYTHONPATH={home}:/tmp/celp/site python3 benchmarks/gpu.py --out $OUT"]
    command.append(f"--commit {code_version()}")
    names = [e.name for e in entries]
    data = [n for n in names if n.startswith("data/") and n.endswith("/train.txt")]
    weights = [n for n in names if n.startswith("weights/") and n.endswith((".pth", ".pt"))]
    if data: command.append(f"--data /tmp/celp/{'/'.join(Path(data[0]).parts[:2])}")
    if weights:
        file = next((n for n in weights if "mobilenet" in n), weights[0])
        command.append(f"--fold-weights /tmp/celp/{file}")
        if "mobilenet" not in file: command.append("--fold-backbone resnet50")
    lines = []
    for path in paths:
        last = path == paths[-1]
        unpack = f"mkdir -p /tmp/celp && tar -xzf {path} -C /tmp/celp"
        words = " && ".join([unpack, " ".join(command)] if last else [unpack])
        lines.append(f"carry {path}, at most {560 if last else 60} s: {words}")
    return lines


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", help="a folder that git ignores")
    parser.add_argument("--data", help="photographs in VOC layout; without: none, and no folds")
    parser.add_argument("--weights", nargs="*", default=[], help="files; MobileNetV2's for folds")
    parser.add_argument("--parts", type=int, default=2, help="how many there may be")
    parser.add_argument("--megabytes", type=float, default=60.0, help="of a part, at most")
    parser.add_argument("--beside", help="a checkout of this project that travels too")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), help="of pure Python")
    return parser.parse_args()


def is_ignored(folder):
    "Whether git ignores a folder; one outside of a checkout is no danger either."
    command = ["git", "-C", str(folder), "check-ignore", "-q", "."]
    return subprocess.run(command, capture_output=True).returncode != 1


def pack(args):
    "Write the parts; their paths, and their entries."
    out, beside = Path(args.out), Path(args.beside) if args.beside else None
    out.mkdir(parents=True, exist_ok=True)
    if not is_ignored(out):
        raise ValueError(
            f"git does not ignore {out}, and photographs must not be committed; "
            f"add /{out.name}/ to .git/info/exclude, or give another folder."
        )
    limit = part_limit(args.megabytes, beside)
    entries = [] if beside else code_entries()
    entries += package_entries(args.packages)
    entries += weight_entries([Path(path) for path in args.weights])
    if args.data:
        left = args.parts * limit - sum(e.size for e in entries)
        # a part is left when the next file does not fit: a photograph's size at most is lost
        entries += photograph_entries(Path(args.data), max(0, left - args.parts * 2**18))
    parts = in_parts(entries, limit)
    for old in out.glob("part*.tar.gz"): old.unlink()
    paths = []
    for number, part in enumerate(parts, 1):
        paths.append(out / f"part{number}.tar.gz")
        write_part(paths[-1], part)
    return paths, entries


def main():
    args = parsed()
    try: paths, entries = pack(args)
    except (ValueError, OSError, importlib.metadata.PackageNotFoundError) as error:
        raise SystemExit(f"pack: {error}") from None
    photographs = sum("/JPEGImages/" in e.name for e in entries)
    print(f"{len(entries)} files, {photographs} of them photographs:")
    for path in paths: print(f"  {path}  {path.stat().st_size / 1e6:.1f} MB")
    print("On the other machine, one call after the other:")
    for number, line in enumerate(calls(paths, entries, args.beside), 1): print(f"{number}. {line}")


if __name__ == "__main__": main()
