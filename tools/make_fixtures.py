"""Cut the published parity fixtures down to what tests/fixtures bundles.

    python tools/make_fixtures.py ../shared/golden
    pytest tests/test_parity.py          # the bundled ones, and the whole ones where they are

Inputs that are a function of the seed are left out, after a check that they are that to the bit;
all numbers of the published implementation stay as they are.
"""

import json
import lzma
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from parity_inputs import read_fixture, seeded_inputs  # noqa: E402

TARGET = ROOT / "tests" / "fixtures"


def without_seeded_inputs(path: Path) -> dict[str, np.ndarray]:
    "What has to be stored of a fixture."
    arrays = read_fixture(path)
    for name, drawn in seeded_inputs(arrays).items():
        whole = arrays.pop(name)
        if whole.dtype != drawn.dtype or not np.array_equal(whole, drawn):
            sys.exit(f"{path}: {name} is not what its seed gives; nothing more was written.")
    return arrays


def main(source: Path) -> None:
    "Write every fixture of a folder, and the names of the published models."
    TARGET.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        np.savez_compressed(TARGET / path.name, **without_seeded_inputs(path))
    keys = json.loads((source / "official_keys.json").read_text())
    (TARGET / "official_keys.json.xz").write_bytes(lzma.compress(json.dumps(keys).encode()))
    sizes = {path.name: path.stat().st_size for path in sorted(TARGET.iterdir())}
    for name, size in sizes.items(): print(f"{size / 1e3:7.1f} kB  {name}")
    print(f"{sum(sizes.values()) / 1e3:7.1f} kB in all")


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(Path(sys.argv[1]))
