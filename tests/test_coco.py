"The COCO layout: masks, cache, refusals."

import math
import os
import pickle

import numpy as np
import pytest
from folders import PICTURE, SQUARE, cut, inside, make_coco, one_thread, own_cache, runs_of  # noqa: F401  autouse fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.data import coco as data_coco
from celp_nb.data import images as data_images


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31))
def test_coco_masks_against_brute_force(tmp_path_factory, seed):
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("coco")
    os.environ["CELP_CACHE"] = str(root / "cache")  # the fixture's folder is shared by all examples
    annotations, slow = [], np.zeros((40, 56), np.uint8)
    near = np.zeros((40, 56), bool)
    ys, xs = np.mgrid[:40, :56]
    for _ in range(5):
        category, crowd = rng.choice([1, 18, 44]).item(), bool(rng.random() < 0.2)
        value = 255 if crowd else {1: 1, 18: 2, 44: 3}[category]
        kind = rng.integers(3)
        if kind == 0:  # two polygons: star-shaped about a centre, not convex
            polygons = []
            area = np.zeros((40, 56), bool)
            for _ in range(2):
                angles, radii = np.sort(rng.uniform(0, 2 * math.pi, 7)), rng.uniform(5, 16, 7)
                centre = rng.uniform(15, 25, 2) + [8 * rng.random(), 0]
                polygon = np.clip(
                    np.stack(
                        [centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], 1
                    ),
                    0,
                    [56, 40],
                )
                polygons.append(polygon.ravel().round(2).tolist())
                one = np.array(
                    [[inside(polygons[-1], x + 0.5, y + 0.5) for x in range(56)] for y in range(40)]
                )
                area |= one
                for (x0, y0), (x1, y1) in zip(
                    polygon, np.roll(polygon, -1, 0)
                ):  # pixels near an edge may be rounded either way
                    t = np.clip(
                        ((xs + 0.5 - x0) * (x1 - x0) + (ys + 0.5 - y0) * (y1 - y0))
                        / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9),
                        0,
                        1,
                    )
                    near |= (
                        np.hypot(xs + 0.5 - x0 - t * (x1 - x0), ys + 0.5 - y0 - t * (y1 - y0)) < 1.0
                    )
            segmentation = polygons
        else:
            area = np.zeros((40, 56), bool)
            top, left = rng.integers(0, 30, 2)
            area[top : top + 9, left : left + 14] = (
                rng.random((min(9, 40 - top), min(14, 56 - left))) < 0.7
            )
            segmentation = runs_of(area)
            if kind == 2:  # compressed, as COCO's tools write it
                from pycocotools import mask as tools

                segmentation = {
                    "size": [40, 56],
                    "counts": tools.encode(np.asfortranarray(area.astype(np.uint8)))[
                        "counts"
                    ].decode(),
                }
        annotations.append(
            {"category_id": category, "segmentation": segmentation, "iscrowd": int(crowd)}
        )
        slow[area] = value
    image_set = data_coco.coco_layout(make_coco(root, annotations), "train2014")
    assert image_set.class_names == ["person", "dog", "bottle"] and image_set.ids == ["five"], (
        "id order; images without annotation left out"
    )
    fast = image_set.read_mask(0)
    assert (fast == slow)[~near].all(), "later annotations over earlier ones, crowds 255"
    assert image_set.pixels[0].tolist() == [int((fast == c).sum()) for c in (1, 2, 3)]


def test_coco_second_opening_needs_no_json(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    root = make_coco(
        tmp_path / "coco",
        [{"segmentation": [SQUARE]}, {"image_id": 9, "category_id": 44, "segmentation": [SQUARE]}],
    )
    first = data_coco.coco_layout(root, "train2014")
    assert (
        first.ids == ["five", "nine"]
        and first.name == "coco"
        and (first.read_mask(1)[6:24, 6:24] == 3).all()
    )
    with monkeypatch.context() as patch:
        patch.setattr(data_coco, "parse_coco", lambda path: pytest.fail("parsed again"))
        again = data_coco.coco_layout(root, "train2014")
    assert (again.pixels == first.pixels).all() and (again.read_mask(1) == first.read_mask(1)).all()
    make_coco(root, [{"segmentation": [SQUARE]}])
    assert data_coco.coco_layout(root, "train2014").ids == ["five"]


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (
            lambda r: (r / "annotations").rename(r / "x"),
            FileNotFoundError,
            r"annotations: no such folder",
        ),
        (
            lambda r: (r / "annotations/instances_train2014.json").rename(
                r / "annotations/instances_z.json"
            ),
            FileNotFoundError,
            r"no such split; there are: z",
        ),
        (
            lambda r: (r / "train2014/five.jpg").unlink(),
            FileNotFoundError,
            r"five.jpg: no such image \(1 of 1 are missing\)",
        ),
        (
            lambda r: cut(r / "annotations/instances_train2014.json"),
            ValueError,
            r"instances_train2014.json: not a JSON file",
        ),
        (
            lambda r: (r / "annotations/instances_train2014.json").write_text('{"images": []}'),
            ValueError,
            r"'annotations' is missing",
        ),
        (lambda r: make_coco(r, []), ValueError, r"the split is empty: none of its 2 images"),
        (
            lambda r: make_coco(r, [{"image_id": 77, "segmentation": [SQUARE]}]),
            ValueError,
            r"annotation 0 is of an unknown image \(77\)",
        ),
        (
            lambda r: make_coco(r, [{"category_id": 2, "segmentation": [SQUARE]}]),
            ValueError,
            r"unknown .*category \(2\)",
        ),
        (
            lambda r: make_coco(r, [{"segmentation": []}]),
            ValueError,
            r"annotation 0 of five.jpg has no polygon",
        ),
        (
            lambda r: make_coco(r, [{"segmentation": [[1, 2, 30, 30]]}]),
            ValueError,
            r"annotation 0 of five.jpg has no polygon",
        ),
        (
            lambda r: make_coco(r, [{"segmentation": None}]),
            ValueError,
            r"annotation 0 of five.jpg has neither polygons",
        ),
        (
            lambda r: make_coco(r, [{"segmentation": [SQUARE]}], categories=[{"id": 1}]),
            ValueError,
            r"an entry lacks 'name'",
        ),
        (
            lambda r: Image.fromarray(PICTURE[:20]).save(r / "train2014/five.jpg"),
            ValueError,
            r"five.jpg: the image is 20x56 .*mask is 40x56",
        ),
        (
            lambda r: cut(r / "train2014/five.jpg"),
            data_images.UnreadableImage,
            r"five.jpg: unreadable or truncated",
        ),
    ],
)
def test_bad_coco_folders_are_refused(tmp_path, damage, error, message):
    pytest.importorskip("pycocotools")
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}])
    data_coco.coco_layout(root, "train2014")  # a good index in the cache must not hide the damage
    damage(root)
    with pytest.raises(error, match=message) as raised:
        data_coco.coco_layout(root, "train2014")
    assert "\n" not in str(raised.value)


def test_a_damaged_rendered_mask_is_named(tmp_path):
    pytest.importorskip("pycocotools")
    root = make_coco(
        tmp_path / "coco", [{"segmentation": [SQUARE]}, {"image_id": 9, "segmentation": [SQUARE]}]
    )
    first = data_coco.coco_layout(root, "train2014")
    rendered = sorted((tmp_path / "cache").rglob("*.png"))
    assert [path.name for path in rendered] == ["000000-five.png", "000001-nine.png"]
    cut(rendered[0])
    with pytest.raises(data_images.UnreadableImage, match="000000-five.png: unreadable.*Delete"):
        data_coco.coco_layout(root, "train2014")
    with pytest.warns(UserWarning, match="1 of 2 images are unreadable and were skipped"):
        assert data_coco.coco_layout(root, "train2014", skip_unreadable=True).ids == ["nine"]
    rendered[0].unlink()
    again = data_coco.coco_layout(root, "train2014")
    assert (again.read_mask(0) == first.read_mask(0)).all()


def test_coco_without_a_cache_and_through_pickle(tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "file"))
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}])
    with pytest.warns(UserWarning, match="set CELP_CACHE"):
        image_set = data_coco.coco_layout(root, "train2014")
    again = pickle.loads(pickle.dumps(image_set))
    assert (again.read_mask(0)[6:24, 6:24] == 1).all()
