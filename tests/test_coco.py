"The COCO layout: masks, cache, refusals."

import json
import math
import os
import pickle
import re

import numpy as np
import pytest
from folders import PICTURE, SQUARE, cut, inside, make_coco, one_thread, own_cache, runs_of  # noqa: F401  autouse fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.data import coco as data_coco
from celp_nb.data import images as data_images
from celp_nb.data.coco_outlines import decode_runs, run_lengths
from celp_nb.data.episodes import fold_classes
from celp_nb.repro.config import make_config
from celp_nb.repro.folds import evaluation_episodes, training_episodes


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
            r"instances_train2014.json, line 1, column \d+: not a JSON file",
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
            r"annotation 0 has image_id 77, but no image has that id",
        ),
        (
            lambda r: make_coco(r, [{"category_id": 2, "segmentation": [SQUARE]}]),
            ValueError,
            r"annotation 0 of five.jpg has category_id 2, but no category",
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


def spoilt(tmp_path, annotation=None, image=None, categories=None, images=None):
    "The JSON file of a COCO folder whose first annotation or image has these fields."
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE], **(annotation or {})}])
    path = root / "annotations/instances_train2014.json"
    data = json.loads(path.read_text())
    data["images"][0].update(image or {})
    data["images"] += images or []
    data["categories"] += categories or []
    path.write_text(json.dumps(data))
    return path


FULL = 40 * 56
ANOTHER = {"id": 7, "file_name": "seven.jpg", "height": 40, "width": 56}


def runs(*counts, size=(40, 56)):
    return {"segmentation": {"size": list(size), "counts": list(counts)}}


def text(counts, size=(40, 56)):
    return {"segmentation": {"size": list(size), "counts": counts}}


@pytest.mark.parametrize(
    "change, message",
    [
        # outlines
        (dict(annotation=runs(500, 300)), r"annotation 0 of five.jpg has run lengths of 800 pix"),
        (dict(annotation=runs(500, FULL)), "has run lengths of 2740 pixels instead"),
        (dict(annotation=runs(500, -3, FULL - 497)), r"run length below 0 \(-3\)"),
        (dict(annotation=runs(500, 1.5, FULL)), "no whole numbers"),
        (dict(annotation=runs(10**30)), "no whole numbers of its pixels"),
        (dict(annotation=runs(FULL, size=(56, 40))), r"run lengths of size \[56, 40\] instead"),
        (dict(annotation=text("Q`")), "no compressed run lengths"),
        (dict(annotation=text("")), "no compressed run lengths"),
        (dict(annotation=text("ü")), "no compressed run lengths"),
        (dict(annotation=text("ooooooooooooooo1")), "beyond any image"),
        (dict(annotation=text("0f3")), "run lengths of"),
        (dict(annotation=text(None)), "None where run lengths"),
        (dict(annotation=text("1", size=[])), "size"),
        (dict(annotation={"segmentation": {}}), "run lengths of size None"),
        (dict(annotation={"segmentation": "x"}), "neither polygons nor run lengths"),
        (dict(annotation={"segmentation": [[*SQUARE, 4]]}), "9 numbers, which are no pairs"),
        (dict(annotation={"segmentation": [["1", "2", "3", "4", "5", "6"]]}), "than numbers"),
        (dict(annotation={"segmentation": [SQUARE, "x"]}), "'x' where a polygon should be"),
        (dict(annotation={"segmentation": [[None] * 6]}), "other things than numbers"),
        (dict(annotation={"segmentation": [[5, 5, math.nan, 5, 9, 9]]}), "not finite"),
        (dict(annotation={"segmentation": [[5, 5, math.inf, 5, 9, 9]]}), "not finite"),
        (dict(annotation={"segmentation": [[5, 5, 10**400, 5, 9, 9]]}), "not finite"),
        (dict(annotation={"segmentation": [[5, 5, 2e8, 5, 9, 9]]}), r"\(2e\+08\) farther than"),
        (dict(annotation={"segmentation": [[5, 5, 9, -41, 9, 9]]}), r"\(-41\) farther than one"),
        # annotations
        (dict(annotation={"iscrowd": "no"}), "iscrowd 'no', which is neither"),
        (dict(annotation={"iscrowd": None}), "iscrowd None, which is neither"),
        (dict(annotation={"image_id": None}), "annotation 0 has no image_id"),
        (dict(annotation={"image_id": [1]}), r"image_id \[1\]"),
        (dict(annotation={"category_id": True}), "category_id True"),
        (dict(annotation={"id": "a\nb", "image_id": 0}), r"annotation 'a\\nb' has image_id 0"),
        # images
        (dict(images=[{**ANOTHER, "id": 5}]), "five.jpg and seven.jpg have one id, 5"),
        (dict(images=[{**ANOTHER, "id": "5"}]), "five.jpg and seven.jpg have one id, 5"),
        (dict(images=[{**ANOTHER, "file_name": "five.jpg"}]), "list the file once"),
        (dict(images=[{**ANOTHER, "file_name": "./five.jpg"}]), "list the file once"),
        (dict(images=[{**ANOTHER, "file_name": "five.png"}]), "of one name, five.*rename"),
        (dict(image={"file_name": None}), "image 5 .* has no file_name"),
        (dict(image={"file_name": " "}), "image 5 .* has file_name ' '"),
        (dict(image={"file_name": "a\nb.jpg"}), "control character"),
        (dict(image={"file_name": "\ud800.jpg"}), "control character"),
        (dict(image={"file_name": 5}), "image 5 .* has file_name 5"),
        (dict(image={"file_name": "/etc/five.jpg"}), "leads out of the split's folder"),
        (dict(image={"file_name": "C:\\five.jpg"}), "leads out of the split's folder"),
        (dict(image={"file_name": "a/../../five.jpg"}), "leads out of the split's folder"),
        (dict(image={"file_name": "http://a.b/five.jpg"}), "an address as file_name"),
        (dict(image={"file_name": "x" * 300 + ".jpg"}), "no file can have"),
        (dict(image={"height": None}), "height None and width 56"),
        (dict(image={"height": 0}), "height 0 and width 56"),
        (dict(image={"height": 10**6, "width": 10**6}), "height 1000000 and width"),
        (dict(image={"id": None}), "image None .* has no id"),
        # categories
        (dict(categories=[{"id": 1, "name": "cup"}]), "'person' and 'cup' have one id, 1"),
        (dict(categories=[{"id": 2, "name": "dog"}]), "ids 18 and 2 have one name, 'dog'"),
        (dict(categories=[{"id": 2, "name": "dog "}]), "one name, 'dog'"),
        (dict(categories=[{"id": 2, "name": None}]), "category 2: its name is None"),
        (dict(categories=[{"id": 2, "name": ""}]), "category 2: its name is ''"),
        (dict(categories=[{"id": 2, "name": "a\nb"}]), r"category 2: its name is 'a\\nb'"),
        (dict(categories=[{"name": "cup"}]), r"\('cup'\) has no id"),
        (
            dict(categories=[{"id": 0, "name": "_background_"}], annotation={"category_id": 0}),
            "category 0 is called '_background_' and has annotations",
        ),
    ],
)
def test_a_wrong_entry_is_named_with_its_file(tmp_path, change, message):
    pytest.importorskip("pycocotools")
    path = spoilt(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as raised:
        data_coco.coco_layout(tmp_path / "coco", "train2014")
    assert str(path) in str(raised.value) and len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "contents, message",
    [
        (b"[]", "holds a list, not a dictionary"),
        (b"", "line 1, column 1: not a JSON file"),
        (b'{\n"images": [],\n"annotations" []}', "line 3, column 15: not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b'{"images": {}, "annotations": [], "categories": []}', "'images' is not a list of dict"),
        (b'{"images": [1], "annotations": [], "categories": []}', "'images' is not a list of"),
        (b'{"a": "\xe4"}', "line 1: a byte 0xe4 is no UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-le"), "NUL character"),
        (b"\x89PNG", "no UTF-8 text"),
    ],
)
def test_a_file_that_is_no_coco_file_is_named(tmp_path, contents, message):
    pytest.importorskip("pycocotools")
    path = spoilt(tmp_path)
    path.write_bytes(contents)
    with pytest.raises(ValueError, match=message) as raised:
        data_coco.coco_layout(tmp_path / "coco", "train2014")
    assert str(path) in str(raised.value) and len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        dict(annotation={"segmentation": SQUARE}),  # one flat list
        dict(annotation={"segmentation": [SQUARE, [5, 5, 9, 9], []]}),  # a line has no area
        dict(image={"height": "40", "width": 56.0}),
        dict(image={"id": "5"}),
        dict(annotation={"image_id": "5", "category_id": "1", "area": 0, "bbox": None}),
        dict(annotation={"id": None}),
        dict(annotation={"iscrowd": "0"}),
        dict(annotation={"iscrowd": False}),
        dict(images=[ANOTHER]),  # no annotation, no photograph
        dict(image={"file_name": ".\\five.jpg"}),
        dict(image={"file_name": "train2014/five.jpg"}),
    ],
)
def test_what_other_tools_write_is_read_as_it_was_meant(tmp_path, change):
    pytest.importorskip("pycocotools")
    first = data_coco.coco_layout(spoilt(tmp_path / "plain").parent.parent, "train2014")
    image_set = data_coco.coco_layout(spoilt(tmp_path, **change).parent.parent, "train2014")
    assert (image_set.read_mask(0) == first.read_mask(0)).all() and len(image_set.ids) == 1


def test_a_json_file_in_utf16_is_read(tmp_path):
    pytest.importorskip("pycocotools")
    path = spoilt(tmp_path)
    path.write_bytes(path.read_text().encode("utf-16"))
    assert data_coco.coco_layout(tmp_path / "coco", "train2014").ids == ["five"]


def test_photographs_are_found_in_folders_and_under_decomposed_letters(tmp_path):
    pytest.importorskip("pycocotools")
    path = spoilt(tmp_path, image={"file_name": "a\\b\u00e4r.jpg"})
    folder = path.parent.parent / "train2014"
    (folder / "a").mkdir()
    (folder / "five.jpg").rename(folder / "a" / "ba\u0308r.jpg")
    image_set = data_coco.coco_layout(path.parent.parent, "train2014")
    assert image_set.ids == ["a/b\u00e4r"] and image_set.image_paths[0].is_file()


def test_a_background_category_without_annotations_is_left_out(tmp_path):
    pytest.importorskip("pycocotools")
    path = spoilt(tmp_path, categories=[{"id": 0, "name": "background"}])
    with pytest.warns(UserWarning, match="category 0, 'background', has no annotation"):
        image_set = data_coco.coco_layout(path.parent.parent, "train2014")
    assert image_set.class_names == ["person", "dog", "bottle"]


def test_outlines_near_the_image_are_clipped_at_its_border():
    pytest.importorskip("pycocotools")
    inner, outer = [[0, 0, 30, 0, 30, 20, 0, 20]], [[-56, -40, 30, -40, 30, 20, -56, 20]]
    assert run_lengths(inner, 40, 56) == run_lengths(outer, 40, 56)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 1))
def test_compressed_run_lengths_are_decoded(height, width, seed, share):
    tools = pytest.importorskip("pycocotools.mask")
    drawn = np.random.default_rng(seed).random((height, width)) < share
    text = tools.encode(np.asfortranarray(drawn.astype(np.uint8)))["counts"].decode()
    expected = runs_of(drawn)["counts"]
    assert decode_runs(text).tolist() == expected


def test_crowds_are_counted_and_said(tmp_path):
    pytest.importorskip("pycocotools")
    crowd = {"segmentation": [SQUARE], "iscrowd": 1}
    root = make_coco(
        tmp_path / "coco",
        [crowd, {**crowd, "category_id": 44}, {"segmentation": [SQUARE], "category_id": 44}],
    )
    said = "2 of 3 annotations are crowds .* void, among them 1 of 1 of 'person'"
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=f"instances_train2014.json: {said}"):
            image_set = data_coco.coco_layout(root, "train2014")
        assert re.search(said, image_set.note)
    fold = fold_classes(3, 0, 3)
    with pytest.raises(ValueError, match=f"person.* is present in 0 images.*{said}") as raised:
        evaluation_episodes(make_config(pairs=2, shots=(1,)).evaluation, image_set, fold)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=f"is present in 0 images.*{said}"):
        config = make_config(iterations=1)
        training_episodes(config, image_set, fold, image_set.pixels)


def test_300_categories_get_masks_of_16_bits(tmp_path):
    pytest.importorskip("pycocotools")
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 301)]
    crowd = [30.0, 5.0, 50.0, 5.0, 50.0, 25.0, 30.0, 25.0]
    root = make_coco(
        tmp_path / "coco",
        [
            {"segmentation": [SQUARE], "category_id": 300},
            {"segmentation": [crowd], "category_id": 255, "iscrowd": 1},
            {"segmentation": [crowd], "category_id": 255, "image_id": 9},
        ],
        categories=categories,
    )
    with pytest.warns(UserWarning, match="1 of 1 of 'class 300'|1 of 2 of 'class 255'"):
        image_set = data_coco.coco_layout(root, "train2014")
    five, nine = image_set.read_mask(0), image_set.read_mask(1)
    assert five.dtype == nine.dtype == np.uint16 and len(image_set.class_names) == 300
    assert np.unique(five).tolist() == [0, 300, 65535] and np.unique(nine).tolist() == [0, 255]
    assert image_set.pixels[:, [299, 254]].tolist() == [
        [(five == 300).sum(), 0],
        [0, (nine == 255).sum()],
    ]


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
