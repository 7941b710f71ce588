"""Try odd folders, files and settings for some minutes; say what is not answered in a sentence.

    python tools/fuzz.py MINUTES [--seed N] [--property NAME] [--examples N] [--gib 6]

The properties are those of tests/fuzz/properties.py. Each runs in a process of its own, one seed
after the other, with a limit on its memory; a call that takes over a minute is a failure too. What
is found is printed and added to fuzz-failures.jsonl (property, seed, examples, what); a seed is
tried again by `--seed N --property NAME` with the same examples. Exit status 1 where something was
found.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path("fuzz-failures.jsonl")
MINUTES_EACH = 10  # after which a process with its examples counts as hanging


def arguments() -> argparse.Namespace:
    "What was asked for."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--property", help="one of them; by default all in turn")
    parser.add_argument("--examples", type=int, default=50, help="folders for each seed")
    parser.add_argument("--gib", type=float, default=6, help="memory that a process may use")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def properties():
    "The module of the properties."
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "fuzz")]
    import properties

    return properties


def child(args: argparse.Namespace) -> None:
    "One property with one seed. Raises what it finds."
    limit = int(args.gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    import torch

    torch.set_num_threads(1)
    properties().run_property(args.property, args.examples, args.seed)


def what_happened(stderr: str) -> list[str]:
    "The errors of a child's traceback, each once: lines such as `TypeError: …`."
    lines = [line.lstrip(" |") for line in stderr.splitlines()]
    kinds = ("Error:", "Hang:", "Exception:", "MemoryError")
    errors = [line[:300] for line in lines if any(kind in line.split(" ")[0] for kind in kinds)]
    return list(dict.fromkeys(errors)) or lines[-1:]


def tried(args: argparse.Namespace, name: str, seed: int) -> dict | None:
    "A child's failure, or None."
    command = [sys.executable, __file__, "0", "--child", "--property", name, "--seed", str(seed)]
    command += ["--examples", str(args.examples), "--gib", str(args.gib)]
    known = {"property": name, "seed": seed, "examples": args.examples}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES_EACH)
    except subprocess.TimeoutExpired:
        return {**known, "what": [f"no end after {MINUTES_EACH} minutes"]}
    if result.returncode == 0: return None
    if result.returncode < 0: return {**known, "what": [f"killed by signal {-result.returncode}"]}
    return {**known, "what": what_happened(result.stderr)}


def main() -> int:
    args = arguments()
    if args.child: return child(args) or 0
    names = [args.property] if args.property else list(properties().PROPERTIES)
    end, seed, failures = time.time() + 60 * args.minutes, args.seed, 0
    while True:
        for name in names:
            failure = tried(args, name, seed)
            print(f"{name}, seed {seed}: {'; '.join(failure['what']) if failure else 'right'}")
            if failure:
                failures += 1
                with KEPT.open("a", encoding="utf-8") as kept: print(json.dumps(failure), file=kept)
            if time.time() > end: break
        if time.time() > end: break
        seed += 1
    print(f"{failures} failures" + f", kept in {KEPT}" * bool(failures))
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
