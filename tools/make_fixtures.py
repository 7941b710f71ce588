"""Cut the published parity fixtures down to what tests/fixtures bundles.

    python tools/make_fixtures.py ../shared/golden
    pytest tests/test_parity.py          # the bundled ones, and the whole ones where they are

Inputs that are a function of the seed are left out, after a check that they are that to the bit;
all numbers of the published implementation stay as they are. One more fixture is computed by our
own code, after a check that this code gives all the published numbers: its masks cover positions
in part, and its cosines lie on both sides of δ.
"""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from parity_inputs import episode_features, read_fixture, seeded_inputs  # noqa: E402
from test_parity import gradient_norms, published, tensors  # noqa: E402

from celp_nb.contrast import two_path_losses  # noqa: E402
from celp_nb.latent import DELTA, sample_latent  # noqa: E402
from celp_nb.repro.published import PFENET_NAMES, published_name, turned  # noqa: E402
from celp_nb.similarity import known_positions, self_similarity, similar_count  # noqa: E402

TARGET = ROOT / "tests" / "fixtures"


def without_seeded_inputs(path: Path) -> dict[str, np.ndarray]:
    "What has to be stored of a fixture."
    arrays = read_fixture(path)
    for name, drawn in seeded_inputs(arrays).items():
        whole = arrays.pop(name)
        if whole.dtype != drawn.dtype or not np.array_equal(whole, drawn):
            sys.exit(f"{path}: {name} is not what its seed gives; nothing more was written.")
    return arrays


OURS = {"case": "pfenet-train-ours", "seed": 7, "side": 7, "batch": 2, "shot": 2, "salt": 0}
OURS |= {"ppm": [1.0, 0.5, 0.25, 0.125], "noise": 0.64}


def own_masks() -> dict[str, np.ndarray]:
    "Rectangles and a disc, 53 pixels wide: a position of seven in a row reads several pixels."
    y, x = np.mgrid[:53, :53]
    box = lambda top, left, bottom, right: (y >= top) & (y < bottom) & (x >= left) & (x < right)
    disc = (y - 34) ** 2 + (x - 14) ** 2 < 100
    void = np.where((y == 0) | (x == 52), 255, 0)
    query = np.stack([np.where(shape, 1, void) for shape in (box(6, 4, 25, 17), disc)])
    known = np.where(np.stack([box(39, 31, 53, 50), box(3, 23, 12, 46)]), 1, query)
    support = np.stack([query, np.where(box(12, 9, 37, 34), 1, void)[None].repeat(2, 0)], 1)
    return {"y": query, "c": known, "sy": support}


def own_sampling(high: Tensor, c: Tensor) -> dict[str, Tensor]:
    "What latent prototype sampling computes; the centre has the most similar positions."
    known, D = known_positions(c, high.shape[-2:]), self_similarity(high)
    if (D - DELTA).abs().min() < 1e-5: sys.exit("a cosine is nearly δ; take another seed.")
    N = similar_count(D, known, DELTA).masked_fill(known, 0)
    centre = N.argmax(1)
    pseudo = sample_latent(high, c, centre=centre)[0]
    counted = {"centre": centre, "support_count": N.float(), "known": known}
    return counted | {"pseudo_mask": pseudo}


def own_fixture() -> dict[str, np.ndarray]:
    "A training step of PFENet with two shots, with the keys of the published fixtures."
    arrays = own_masks()
    t, query, support = tensors(arrays | episode_features(OURS))
    arrays |= own_sampling(query.high, t["c"])
    model, masks = published("pfenet", OURS).train(), (t["sy"], t["y"], arrays["pseudo_mask"])
    losses = two_path_losses(model, query, support, *masks)
    whole = {"logits": losses.logits, "contrast_logits": losses.contrast_logits}
    for name, logits in whole.items():
        arrays[name] = interpolate(logits, (53, 53), mode="bilinear", align_corners=True)
    arrays |= {"main_loss": losses.main, "aux_loss": losses.auxiliary}
    arrays |= {"contrast_loss": losses.contrast, "settings": json.dumps(OURS)}
    names, norms = zip(*gradient_norms(model, losses).items())
    theirs = turned(PFENET_NAMES)
    arrays["grad_names"] = [published_name(name, theirs) for name in names]
    arrays["grad_norms"] = np.array(norms, "float32")
    plain = lambda a: a.detach().numpy() if isinstance(a, Tensor) else np.asarray(a)
    return {name: plain(a) for name, a in arrays.items()}


def main(source: Path) -> None:
    "Write every fixture of a folder, the names of the published models, and ours."
    torch.set_num_threads(1)
    env = os.environ | {"CELP_GOLDEN": str(source.resolve())}
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/test_parity.py"]
    subprocess.run(tests, cwd=ROOT, env=env, check=True)
    TARGET.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.npz")):
        np.savez_compressed(TARGET / path.name, **without_seeded_inputs(path))
    keys = json.loads((source / "official_keys.json").read_text())
    (TARGET / "official_keys.json.xz").write_bytes(lzma.compress(json.dumps(keys).encode()))
    np.savez_compressed(TARGET / "pfenet_train_ours.npz", **own_fixture())
    sizes = {path.name: path.stat().st_size for path in sorted(TARGET.iterdir())}
    for name, size in sizes.items(): print(f"{size / 1e3:7.1f} kB  {name}")
    print(f"{sum(sizes.values()) / 1e3:7.1f} kB in all")


if __name__ == "__main__":
    if len(sys.argv) != 2: sys.exit(__doc__)
    main(Path(sys.argv[1]))
