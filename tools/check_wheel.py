"""Build the wheel, install it in an empty environment outside of the clone, and use it there.

    python tools/check_wheel.py             # the environment is made of packages that are here
    python tools/check_wheel.py --download  # pip gets them, as for a stranger: gigabytes

The environment gets what the wheel says that it needs, with the extra `explore`, and what those
packages say that they need: nothing else of the environment that runs this script. A requirement
that is used but not stated is therefore missing. Without --download the files are linked from here,
in seconds; which versions a stranger would get is then not asked again.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".pth", ".pt", ".csv", ".txt", ".js", ".css", ".jpg", ".png", ".typed"}
RUN = "run --fold 0 --iterations 4 --methods PFENet+CE --pairs 2 --shots 1"


@contextmanager
def step(title: str) -> Iterator[None]:
    "Say what is done, and how long it took."
    print(f"-- {title}", flush=True)
    start = time.time()
    yield
    print(f"   {time.time() - start:.1f} s", flush=True)


def build(folder: Path) -> Path:  # the wheel
    "Make sdist and wheel, as an upload would be made, and check what an index will show."
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    files = sorted(folder.iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    for file in files: print(f"   {file.name}: {file.stat().st_size / 1e6:.2f} MB")
    return next(file for file in files if file.suffix == ".whl")


def package_files() -> set[str]:
    "Every file of the package."
    paths = (path.relative_to(ROOT) for path in (ROOT / "celp_nb").rglob("*") if path.is_file())
    hidden = lambda path: any(part.startswith(("__pycache__", ".")) for part in path.parts)
    return {path.as_posix() for path in paths if not hidden(path)}


def check_contents(wheel: Path) -> None:
    "Refuse a wheel that lacks a file of the package, or has anything beside it."
    packed = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in packed if ".dist-info/" in name}
    missing, more = package_files() - packed, packed - info - package_files()
    odd = {name for name in packed - info if Path(name).suffix not in SUFFIXES}
    if missing or more or odd:
        sys.exit(f"{wheel.name}: missing {missing}, more than wanted {more}, odd {odd}")


def needed_packages(requirements: list[str], extra: str) -> set[str]:
    "Names of all packages that some requirements lead to, as they are installed here."
    found: set[str] = set()
    todo = [(Requirement(text), extra) for text in requirements]
    while todo:
        requirement, of = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of}): continue
        for own in ("", *requirement.extras):
            key = f"{canonicalize_name(requirement.name)}[{own}]"
            if key in found: continue
            found.add(key)
            with suppress(PackageNotFoundError):  # pip check will name it
                texts = distribution(requirement.name).requires or []
                todo += [(Requirement(text), own) for text in texts]
    return {key.partition("[")[0] for key in found}


def link_package(name: str, prefix: Path, site: Path) -> None:
    "Put an installed package into another environment; not its scripts, which start this one."
    try:
        installed = distribution(name)
    except PackageNotFoundError:
        return
    for file in installed.files or []:
        source, target = Path(file.locate()), Path(os.path.normpath(site / file))
        is_inside = target.is_relative_to(prefix) and not target.is_relative_to(prefix / "bin")
        if not is_inside or target.exists() or not source.is_file(): continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another disk
            target.symlink_to(source.resolve())


def metadata_requirements(wheel: Path) -> list[str]:
    "What a wheel says that it needs."
    archive = zipfile.ZipFile(wheel)
    path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    header = archive.read(path).decode().partition("\n\n")[0]
    return re.findall(r"^Requires-Dist: (.*)$", header, re.M)


def install(wheel: Path, prefix: Path, download: bool) -> Path:  # the environment's python
    "An environment with the wheel, its extra `explore` and nothing else."
    venv.create(prefix, with_pip=True)
    python = prefix / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    if download:
        subprocess.run([*pip, "install", "--quiet", f"{wheel}[explore]"], check=True)
    else:
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run([python, "-c", code], check=True, text=True, capture_output=True)
        packages = needed_packages(metadata_requirements(wheel), "explore")
        for name in sorted(packages): link_package(name, prefix, Path(site.stdout.strip()))
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
        print(f"   {len(packages)} packages linked")
    subprocess.run([*pip, "check"], check=True)
    return python


def free_port() -> int:
    "A port that nothing listens to."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def page_of(url: str, server: subprocess.Popen, seconds: float) -> str:
    "What a server answers, once it does. Ends the program if it does not."
    end = time.time() + seconds
    while time.time() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=end - time.time()).read().decode()
        except urllib.error.HTTPError as error:
            sys.exit(f"{url} answers {error}")
        except OSError:  # not yet
            time.sleep(0.3)
    sys.exit(f"{url} does not answer; the server's exit status is {server.poll()}")


def explore(celp: Path, folder: Path, env: dict[str, str]) -> None:
    "Start the explorer, fetch its page once, stop it with control-C."
    port = free_port()
    command = [celp, "explore", "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, cwd=folder, env=env)
    try:
        page = page_of(f"http://127.0.0.1:{port}/", server, 180)
        if "application/vnd.jupyter.widget-view+json" not in page or "Traceback" in page:
            sys.exit(f"celp explore shows no panel:\n{page[-3000:]}")
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            sys.exit("celp explore does not stop with control-C")


def first_block() -> str:
    "The first Python code of the README."
    return re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1]


#: The scenes as drawn against those of the clone. JPEGs may differ by rounding, masks may not.
COMPARE = """
import sys, numpy as np
from celp_nb.bundled.scenes import samples
from celp_nb.data.images import read_image
from celp_nb.data.voc import voc_layout
differing, worst = 0, 0.0
for split in ("train", "val"):
    drawn, clone = samples(split), voc_layout(sys.argv[1], split)
    assert drawn.ids == clone.ids and drawn.class_names == clone.class_names
    assert (drawn.pixels == clone.pixels).all() and drawn.image_paths != clone.image_paths
    for i in range(len(drawn.ids)):
        assert (drawn.read_mask(i) == clone.read_mask(i)).all(), drawn.ids[i]
        gap = np.abs(read_image(drawn, i).astype(float) - read_image(clone, i)).mean()
        differing, worst = differing + (gap > 0), max(worst, gap)
print(f"   900 masks equal; {differing} images differ, by {worst:.3f} grey levels or less")
assert worst < 1
"""


def use(python: Path, folder: Path) -> None:
    "What a user does first, in an empty folder."
    own = {"HOME": str(folder), "CELP_CACHE": str(folder / "cache"), "MPLBACKEND": "agg"}
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))} | own
    celp = python.parent / "celp"
    run = lambda *command: subprocess.run(command, cwd=folder, env=env, check=True)
    with step("README's first Python code"): run(python, "-c", first_block())
    with step(f"celp {RUN}"): run(celp, *RUN.split())
    with step("the drawn scenes are the clone's"):
        run(python, "-c", COMPARE, ROOT / "data_samples" / "scenes")
    code = "from celp_nb.bundled.scenes import example_episode as e; print(*e(), sep='\\n')"
    files = subprocess.run([python, "-c", code], cwd=folder, env=env, check=True, text=True,
                           capture_output=True).stdout.splitlines()  # fmt: skip
    given = [x for pair in zip(("--support", "--mask", "--query"), files) for x in pair]
    with step("celp predict"): run(celp, "predict", "runs/samples/fold0/PFENet+CE.pt", *given)
    if not (folder / "prediction.png").is_file(): sys.exit("celp predict wrote no mask")
    with step("celp explore"): explore(celp, folder, env)


def main() -> None:
    "All of it, in a temporary folder."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--download", action="store_true", help="let pip get the packages")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="celp-wheel-") as name:
        folder = Path(name)
        with step("python -m build, twine check --strict"): wheel = build(folder / "dist")
        check_contents(wheel)
        with step("an environment of its own"):
            python = install(wheel, folder / "venv", args.download)
        (folder / "empty").mkdir()
        use(python, folder / "empty")


if __name__ == "__main__":
    main()
