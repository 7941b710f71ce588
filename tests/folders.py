"Small folders in the layouts that the tests open; fixtures that all of them use."

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from celp_nb.repro.config import make_config

SHARED = Path(os.environ.get("CELP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "data" / "coco-mini").is_dir(),
    reason=f"real photographs are not in {SHARED}/data",
)
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 56, 3), np.uint8)
#: settings of a run on the samples that takes seconds
TINY = make_config(
    folds=(0,),
    crop=57,
    side=97,
    width=16,
    iterations=4,
    optimiser="sgd",
    lr=0.2,
    pairs=2,
    shots=(1,),
    methods=("PFENet+CE",),
    trivial=False,
    device="cpu",
    cache_views=0,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Images this small are slower on several threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # no weights fetched earlier


def blocks(*values, height=40, width=56):
    "A mask of vertical stripes."
    return np.repeat(np.array(values, np.uint8), -(-width // len(values)))[:width][None].repeat(
        height, 0
    )


def make_voc(root, masks, split="train", names=("cat", "dog", "cow"), suffix=".jpg"):
    "A VOC-layout folder with one image for each name -> mask."
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(masks) + "\n")
    if names:
        (root / "classes.txt").write_text("\n".join(names) + "\n")
    for name, mask in masks.items():
        Image.fromarray(PICTURE[: mask.shape[0], : mask.shape[1]]).save(
            root / f"JPEGImages/{name}{suffix}"
        )
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    return root


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def runs_of(mask):
    "Uncompressed run lengths, the slow way."
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return {"size": list(mask.shape), "counts": runs}


def inside(polygon, x, y):
    points, odd = list(zip(polygon[::2], polygon[1::2])), False
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}]


def make_coco(root, annotations, images=None, categories=CATEGORIES, split="train2014"):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / split).mkdir(exist_ok=True)
    images = images or [
        {"id": 5, "file_name": "five.jpg", "height": 40, "width": 56},
        {"id": 9, "file_name": "nine.jpg", "height": 40, "width": 56},
    ]
    for image in images:
        Image.fromarray(PICTURE).save(root / split / image["file_name"])
    entries = [
        {"id": k, "iscrowd": 0, "image_id": 5, "category_id": 1, **annotation}
        for k, annotation in enumerate(annotations)
    ]
    (root / f"annotations/instances_{split}.json").write_text(
        json.dumps({"images": images, "annotations": entries, "categories": categories})
    )
    return root


SQUARE = [5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]


def make_pascal(root):
    "A small folder as torchvision leaves it: VOC train a, b; val c; SBD b, d, e."
    sio = pytest.importorskip("scipy.io")
    make_voc(
        root / "VOCdevkit/VOC2012", {"2007_a": blocks(0, 1), "2007_b": blocks(255, 2)}, names=()
    )
    make_voc(root / "VOCdevkit/VOC2012", {"2007_c": blocks(0, 20)}, split="val", names=())
    for folder in ("img", "cls"):
        (root / "sbd" / folder).mkdir(parents=True)
    for name, mask in {
        "2007_b": blocks(0, 3),
        "2008_d": blocks(0, 4),
        "2008_e": blocks(5, 0),
    }.items():
        Image.fromarray(PICTURE).save(root / f"sbd/img/{name}.jpg")
        entry = np.zeros(
            (1,),
            dtype=[("Boundaries", object), ("Segmentation", object), ("CategoriesPresent", object)],
        )
        entry[0]["Segmentation"] = mask
        sio.savemat(root / f"sbd/cls/{name}.mat", {"GTcls": entry})
    (root / "sbd/train_noval.txt").write_text("2007_b\n2008_d\n2008_e\n")
    return root
