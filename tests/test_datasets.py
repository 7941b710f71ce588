"The readers, their cache and their refusals; merging; the transforms; training episodes."
import json
import math
import os
import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from celp_nb import viz
from celp_nb.bundled import scenes as bundled_scenes
from celp_nb.data import benchmarks as data_benchmarks
from celp_nb.data import coco as data_coco
from celp_nb.data import images as data_images
from celp_nb.data import index as data_index
from celp_nb.data import training_set as data_training_set
from celp_nb.data import transforms as data_transforms
from celp_nb.data import voc as data_voc
from celp_nb.data.episodes import Episodes, images_in_turn

SHARED = Path(os.environ.get("CELP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "data" / "voc-mini").is_dir(), reason=f"real photographs are not in {SHARED}/data"
)
RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 56, 3), np.uint8)


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


# --- VOC layout ---------------------------------------------------------------------------------------------------------


def test_voc_layout_reads_what_is_there(tmp_path):
    masks = {"b": blocks(0, 1, 255), "a": blocks(3, 3, 2)}
    image_set = data_voc.voc_layout(make_voc(tmp_path / "mine", masks), "train")
    assert (image_set.name, image_set.ids, image_set.class_names, image_set.interleaved) == (
        "mine",
        ["b", "a"],
        ["cat", "dog", "cow"],
        False,
    )
    for i, mask in enumerate(masks.values()):
        assert (image_set.read_mask(i) == mask).all() and image_set.read_mask(i).dtype == np.uint8
        assert image_set.pixels[i].tolist() == [int((mask == c).sum()) for c in (1, 2, 3)]
    image = data_images.read_image(image_set, 0)
    assert image.shape == (40, 56, 3) and image.dtype == np.uint8
    assert image_set.pixels.dtype == np.int64 and all(
        path.is_file() for path in image_set.image_paths
    )


def test_palette_masks_grey_photographs_and_png(tmp_path):
    root = make_voc(tmp_path, {"a": blocks(0, 1, 255)}, suffix=".PNG")
    palette = Image.fromarray(blocks(2, 0, 3)).convert("P")
    palette.putdata(blocks(2, 0, 3).ravel().tolist())
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(root / "SegmentationClass/a.png")
    Image.fromarray(PICTURE[..., 0]).save(root / "JPEGImages/a.PNG")
    image_set = data_voc.voc_layout(root, "train")
    assert (image_set.read_mask(0) == blocks(2, 0, 3)).all(), "indices, not colours"
    assert (data_images.read_image(image_set, 0) == PICTURE[..., :1]).all()


def test_class_names(tmp_path):
    root = make_voc(tmp_path, {"a": blocks(0, 1, 2)}, names=())
    assert data_voc.voc_layout(root, "train", class_names=["x", "y", "z"]).class_names == [
        "x",
        "y",
        "z",
    ]
    with pytest.warns(UserWarning, match="no classes.txt, so 2 classes"):
        assert data_voc.voc_layout(root, "train").class_names == ["class_1", "class_2"]
    with pytest.raises(ValueError, match="mask value 2 is outside 0 to 1"):
        data_voc.voc_layout(root, "train", class_names=["x"])
    (root / "classes.txt").write_text("p\nq\n")
    assert data_voc.voc_layout(root, "train").class_names == ["p", "q"]
    with pytest.raises(ValueError, match="classes.txt: names 2 classes other than the 3 given"):
        data_voc.voc_layout(root, "train", class_names=["x", "y", "z"])
    (root / "classes.txt").write_text("p\np\n")
    with pytest.raises(ValueError, match="classes.txt: 2 class names, 1 of them different"):
        data_voc.voc_layout(root, "train")


def test_pascal_names_only_for_pascal(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_set = data_voc.voc_layout(
            make_voc(tmp_path / "voc", {"2007_000032": blocks(0, 15, 255)}, names=()), "train"
        )
    assert (
        image_set.class_names == data_voc.PASCAL_CLASSES
        and image_set.pixels.shape == (1, 20)
        and image_set.pixels[0, 14] > 0
    )
    with pytest.warns(UserWarning):
        image_set = data_voc.voc_layout(
            make_voc(tmp_path / "other", {"2007_000032": blocks(0, 21, 255)}, names=()), "train"
        )
    assert image_set.class_names[20] == "class_21"


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").unlink(),
            FileNotFoundError,
            r"train.txt: no such split; there are: other",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").write_text("\n \n"),
            ValueError,
            r"train.txt: the split is empty",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n"),
            ValueError,
            r"train.txt: 'a' is listed twice",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").unlink(),
            FileNotFoundError,
            r"JPEGImages/b.jpg: no such image",
        ),
        (
            lambda r: (r / "SegmentationClass/b.png").unlink(),
            FileNotFoundError,
            r"SegmentationClass/b.png: no such mask",
        ),
        (
            lambda r: (r / "SegmentationClass").rename(r / "masks"),
            FileNotFoundError,
            r"SegmentationClass: no such folder",
        ),
        (
            lambda r: cut(r / "JPEGImages/b.jpg"),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable or truncated image .*skip_unreadable",
        ),
        (
            lambda r: cut(r / "SegmentationClass/b.png"),
            data_images.UnreadableImage,
            r"SegmentationClass/b.png: unreadable or truncated",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").write_bytes(b""),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").write_text("no photograph"),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 1).T.copy()).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.jpg: the image is 40x56 .*mask is 56x40",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 4)).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: mask value 4 is outside 0 to 3 and 255",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 254)).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: mask value 254",
        ),
        (
            lambda r: Image.fromarray(PICTURE).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: a mask must hold class numbers.*RGB",
        ),
        (
            lambda r: make_voc(r, {"a": blocks(1), "b": blocks(1, height=7)}),
            ValueError,
            r"b.jpg: 7x56 pixels is smaller than one feature stride \(8\)",
        ),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(tmp_path, damage, error, message):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1), "b": blocks(2, 3)})
    (root / "ImageSets/Segmentation/other.txt").write_text("a\n")
    damage(root)
    with pytest.raises(error, match=message) as raised:
        data_voc.voc_layout(root, "train")
    assert "\n" not in str(raised.value)
    assert (
        data_voc.voc_layout(root, "other").ids == ["a"]
        if (root / "SegmentationClass").is_dir()
        else True
    )


def test_missing_root_and_empty_masks(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        data_voc.voc_layout(tmp_path / "nowhere", "train")
    root = make_voc(tmp_path / "set", {"a": blocks(0, 255)}, names=())
    with pytest.raises(ValueError, match="every mask of split 'train' is background or void"):
        data_voc.voc_layout(root, "train")


def test_unreadable_files_are_skipped_with_a_count(tmp_path):
    root = make_voc(
        tmp_path / "set", {name: blocks(0, k % 3 + 1) for k, name in enumerate("abcde")}
    )
    cut(root / "JPEGImages/b.jpg")
    cut(root / "SegmentationClass/d.png")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(
            UserWarning, match="2 of 5 images are unreadable and were skipped, the first: .*b.jpg"
        ):
            image_set = data_voc.voc_layout(root, "train", skip_unreadable=True)
        assert image_set.ids == ["a", "c", "e"] and [
            path.stem for path in image_set.image_paths
        ] == ["a", "c", "e"]
        assert [int(image_set.read_mask(i).max()) for i in range(3)] == [1, 3, 2]
        assert (image_set.pixels > 0).argmax(axis=1).tolist() == [0, 2, 1]
        with pytest.raises(data_images.UnreadableImage, match="b.jpg.*and 1 more"):
            data_voc.voc_layout(root, "train")
    for name in "ace":
        cut(root / f"JPEGImages/{name}.jpg")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="none of its 5 images can be read"),
    ):
        data_voc.voc_layout(root, "train", skip_unreadable=True)


def test_a_photograph_that_goes_bad_later_is_named(tmp_path):
    image_set = data_voc.voc_layout(make_voc(tmp_path / "set", {"a": blocks(0, 1)}), "train")
    cut(image_set.image_paths[0])
    with pytest.raises(data_images.UnreadableImage, match="a.jpg"):
        data_images.read_image(image_set, 0)


# --- cache --------------------------------------------------------------------------------------------------------------


def test_cache_is_used_and_made_again_when_a_file_changes(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1), "b": blocks(2, 3)})
    counted = []
    real = data_index.count_pixels
    monkeypatch.setattr(
        data_index,
        "count_pixels",
        lambda path, mask: counted.append(path.stem) or real(path, mask),
    )
    first = data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"]
    again = data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"] and (again.pixels == first.pixels).all()
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".npz", "one file, no leftovers"

    mask = (
        root / "SegmentationClass/b.png"
    )  # other content, the time of change put back: the size tells
    stat = mask.stat()
    Image.fromarray(blocks(1, 2, 3, 0, 1, 2, 3)).save(mask)
    assert mask.stat().st_size != stat.st_size
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (data_voc.voc_layout(root, "train").pixels[1] > 0).all()

    os.utime(root / "JPEGImages/a.jpg", ns=(1, 1))  # same size, another time
    counted.clear()
    data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"]

    make_voc(root, {"a": blocks(0, 1), "b": blocks(2, 3), "c": blocks(0, 2)})
    assert data_voc.voc_layout(root, "train").ids == ["a", "b", "c"]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "replaced, not heaped up"

    next((tmp_path / "cache").iterdir()).write_bytes(b"damaged")
    assert len(data_voc.voc_layout(root, "train").ids) == 3


def test_cache_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})

    def dies(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", dies)
        with pytest.raises(KeyboardInterrupt):
            data_voc.voc_layout(root, "train")
    assert list((tmp_path / "cache").iterdir()) == []
    assert data_voc.voc_layout(root, "train").ids == ["a"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set CELP_CACHE"):
        assert data_voc.voc_layout(
            make_voc(tmp_path / "set", {"a": blocks(0, 1)}), "train"
        ).ids == ["a"]


# --- COCO layout --------------------------------------------------------------------------------------------------------


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


SQUARE = [5.0, 5.0, 25.0, 5.0, 25.0, 25.0, 5.0, 25.0]


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


def test_coco20i_needs_the_80_classes_and_says_when_it_is_a_part(tmp_path):
    pytest.importorskip("pycocotools")
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}])
    with pytest.raises(ValueError, match="3 categories are not COCO's 80"):
        data_benchmarks.coco20i(root, "train")
    with pytest.raises(ValueError, match="no split 'test'"):
        data_benchmarks.coco20i(root, "test")
    make_coco(
        root,
        [{"segmentation": [SQUARE]}],
        categories=[{"id": k + 1, "name": name} for k, name in enumerate(data_coco.COCO_CLASSES)],
    )
    with pytest.warns(
        UserWarning,
        match="train: 1 annotated images instead of 82081: scores from it are not COCO-20i",
    ):
        image_set = data_benchmarks.coco20i(root, "train")
    assert image_set.interleaved and image_set.name == "coco" and image_set.pixels.shape == (1, 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = data_benchmarks.coco20i(root, "train", {"train": 1})
    assert whole.interleaved and whole.name == "coco20i"


def test_missing_extras_are_named(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **kw):
        if name.split(".")[0] in ("pycocotools", "scipy"):
            raise ImportError(name)
        return real(name, *rest, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'celp_nb\[coco\]'"):
        data_coco.coco_layout(tmp_path, "train2014")
    with pytest.raises(ImportError, match=r"pip install 'celp_nb\[sbd\]'"):
        data_benchmarks.pascal5i(tmp_path, "train")


# --- PASCAL-5i ----------------------------------------------------------------------------------------------------------


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


def test_pascal5i_joins_voc_and_sbd(tmp_path):
    root = make_pascal(tmp_path / "data")
    counts = {"train": 4, "val": 1}
    train = data_benchmarks.pascal5i(root, "train", counts=counts)
    assert (
        train.ids == ["2007_a", "2007_b", "2008_d", "2008_e"]
        and train.class_names == data_voc.PASCAL_CLASSES
        and train.name == "pascal5i"
    )
    for i, mask in enumerate([blocks(0, 1), blocks(255, 2), blocks(0, 4), blocks(5, 0)]):
        assert (train.read_mask(i) == mask).all(), "an image in both keeps VOC's mask"
        assert data_images.read_image(train, i).shape == (40, 56, 3)
        assert train.pixels[i].sum() == ((mask > 0) & (mask < 255)).sum()
    assert data_benchmarks.pascal5i(root, "val", counts=counts).ids == ["2007_c"]


def test_pascal5i_refuses_what_is_not_whole(tmp_path):
    root = make_pascal(tmp_path / "data")
    counts = {"train": 4, "val": 1}
    with pytest.raises(
        ValueError, match="PASCAL-5i train in .* has 4 images, not the published 5953"
    ):
        data_benchmarks.pascal5i(root, "train")
    with pytest.raises(ValueError, match="has 1 images, not the published 1449"):
        data_benchmarks.pascal5i(root, "val")
    with pytest.raises(ValueError, match="no split 'test'"):
        data_benchmarks.pascal5i(root, "test")
    with pytest.raises(FileNotFoundError, match="VOC2012: no such folder; pass download=True"):
        data_benchmarks.pascal5i(tmp_path / "none", "val")
    (root / "sbd/cls/2008_d.mat").write_bytes(b"nothing")
    with pytest.raises(
        data_images.UnreadableImage, match="2008_d.mat: unreadable or truncated mask"
    ):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd/cls/2008_d.mat").unlink()
    with pytest.raises(FileNotFoundError, match="2008_d.mat: listed but not there"):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd/train_noval.txt").unlink()
    with pytest.raises(FileNotFoundError, match="train_noval.txt: no such list; fetch https"):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd").rename(root / "other")
    with pytest.raises(FileNotFoundError, match="sbd: no such folder"):
        data_benchmarks.pascal5i(root, "train", counts=counts)


def test_pascal5i_downloads_only_what_is_missing(tmp_path, monkeypatch):
    import torchvision.datasets as tvd

    root = make_pascal(tmp_path / "data")
    asked = []
    for name in ("VOCSegmentation", "SBDataset"):
        real = getattr(tvd, name)

        def spy(*args, real=real, name=name, **kw):
            asked.append((name, bool(kw.get("download"))))
            return real(*args, **{**kw, "download": False})

        spy.url = spy.voc_train_url = "https://example.org"
        monkeypatch.setattr(tvd, name, spy)
    data_benchmarks.pascal5i(root, "train", download=True, counts={"train": 4, "val": 1})
    assert not any(download for _, download in asked), "both are there"
    asked.clear()
    (root / "sbd").rename(tmp_path / "away")
    with pytest.raises((RuntimeError, FileNotFoundError)):
        data_benchmarks.pascal5i(root, "train", download=True, counts={"train": 4, "val": 1})
    assert ("SBDataset", True) in asked and ("VOCSegmentation", False) in asked


def test_a_failing_download_is_one_sentence_and_may_be_tried_again(tmp_path, monkeypatch):
    import torchvision.datasets.sbd as sbd
    import torchvision.datasets.voc as voc

    def offline(*args, **kw):
        raise URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(voc, "download_and_extract_archive", offline)
        with pytest.raises(
            RuntimeError,
            match=r"VOC 2012 could not be downloaded .*no route to host.*fetch https\S+VOCtrainval_11-May-2012.tar elsewhere",
        ) as raised:
            data_benchmarks.prepare_pascal(tmp_path / "none")
        assert "\n" not in str(raised.value) and str(tmp_path / "none") in str(raised.value)
    root = make_pascal(tmp_path / "data")
    (root / "sbd").rename(tmp_path / "away")
    tries = []
    with monkeypatch.context() as patch:
        patch.setattr(
            sbd,
            "download_and_extract_archive",
            lambda url, folder, **kw: (
                Path(folder).mkdir(exist_ok=True),
                tries.append(url),
                offline(),
            ),
        )
        for attempt in (1, 2):  # the first leaves an empty folder behind
            with pytest.raises(
                RuntimeError,
                match=r"SBD could not be downloaded .*benchmark.tgz and https\S+train_noval.txt elsewhere.*sbd unopened",
            ):
                data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})
            assert len(tries) == attempt
    (root / "sbd").rmdir()
    (tmp_path / "away").rename(root / "sbd")
    assert [len(s.ids) for s in data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})] == [
        4,
        1,
    ]


def test_preparing_pascal_counts_what_is_there_and_indexes_it(tmp_path, monkeypatch):
    root = make_pascal(tmp_path / "data")
    with pytest.raises(ValueError, match="4 images, not the published 5953"):
        data_benchmarks.prepare_pascal(root)
    train, val = data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})
    lines = data_benchmarks.inventory(root, train, val).splitlines()
    assert lines[0] == f"pascal5i in {root.resolve()}:"
    assert lines[1].split() == "train 4 images, 0 of 20 classes in them".split(), (
        "no object has 2048 pixels but stripes of 40 x 56"
    )
    size = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*.*") if f.is_file())
    assert size and data_benchmarks.index_size(root) == (size, tmp_path / "cache")
    monkeypatch.setattr(data_index, "count_pixels", lambda *a: pytest.fail("counted again"))
    assert data_benchmarks.pascal5i(root, "val", counts={"train": 4, "val": 1}).ids == val.ids


def test_preparing_coco_names_what_is_missing_and_where_it_comes_from(tmp_path):
    pytest.importorskip("pycocotools")
    zips = [
        "http://images.cocodataset.org/zips/train2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    ]
    with pytest.raises(FileNotFoundError) as raised:
        data_benchmarks.prepare_coco(tmp_path / "coco")
    assert all(url in str(raised.value) for url in zips) and "\n" not in str(raised.value)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(data_coco.COCO_CLASSES)]
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}], categories=categories)
    with pytest.raises(FileNotFoundError) as raised:
        data_benchmarks.prepare_coco(root)
    said = str(raised.value)
    assert (
        "lacks val2014, annotations/instances_val2014.json" in said
        and zips[0] not in said
        and zips[1] in said
        and zips[2] in said
    )
    make_coco(
        root,
        [{"segmentation": [SQUARE]}, {"image_id": 9, "segmentation": [SQUARE]}],
        categories=categories,
        split="val2014",
    )
    with (
        pytest.raises(
            ValueError, match="COCO-20i train in .* has 1 images, not the published 82081"
        ),
        pytest.warns(UserWarning, match="instead of 82081"),
    ):
        data_benchmarks.prepare_coco(root)
    with (
        pytest.raises(ValueError, match="COCO-20i val in .* has 2 images, not the published 40137"),
        pytest.warns(UserWarning, match="instead of 40137"),
    ):
        data_benchmarks.prepare_coco(root, {"train": 1, "val": 40137})
    train, val = data_benchmarks.prepare_coco(root, {"train": 1, "val": 2})
    assert (len(train.ids), len(val.ids)) == (1, 2) and train.interleaved and val.interleaved
    assert data_benchmarks.index_size(root)[0] == sum(
        f.stat().st_size for f in (tmp_path / "cache").rglob("*.*") if f.is_file()
    )


# --- subset and merge ---------------------------------------------------------------------------------------------------


def fake_set(name, ids, class_names, seed):
    rng = np.random.default_rng(seed)
    masks = [
        rng.choice([0, 255, *range(1, len(class_names) + 1)], (20, 20)).astype(np.uint8)
        for _ in ids
    ]
    pixels = np.array(
        [[(mask == c).sum() for c in range(1, len(class_names) + 1)] for mask in masks]
    )
    return data_images.ImageSet(
        name,
        list(ids),
        [Path(f"{name}/{i}.jpg") for i in ids],
        masks.__getitem__,
        list(class_names),
        pixels,
    )


@settings(max_examples=50)
@given(
    st.permutations(data_coco.COCO_CLASSES).map(lambda p: p[:9]),
    st.permutations(data_voc.PASCAL_CLASSES).map(lambda p: p[:9]),
    st.integers(0, 999),
)
def test_merge_keeps_every_pixels_class(names_a, names_b, seed):
    a, b = (
        fake_set("a", ["1", "2"], names_a, seed),
        fake_set("b", ["2", "3", "4"], names_b, seed + 1),
    )
    both = data_images.merge(a, b)
    same = {
        "aeroplane": "airplane",
        "motorbike": "motorcycle",
        "sofa": "couch",
        "tvmonitor": "tv",
        "pottedplant": "potted plant",
        "diningtable": "dining table",
    }
    assert both.class_names[:9] == names_a and len(set(both.class_names)) == len(both.class_names)
    assert both.class_names[9:] == [name for name in names_b if same.get(name, name) not in names_a]
    assert both.ids == ["1", "2", "b/2", "3", "4"] and both.name == "a+b"
    for i in range(5):
        old, new = (
            (a.read_mask(i), a.class_names) if i < 2 else (b.read_mask(i - 2), b.class_names),
            both.read_mask(i),
        )
        for value in range(256):
            area = old[0] == value
            if area.any():
                assert len(np.unique(new[area])) == 1
                target = int(new[area][0])
                if value in (0, 255):
                    assert target == value
                else:
                    assert both.class_names[target - 1] in (
                        old[1][value - 1],
                        same.get(old[1][value - 1]),
                    )
        assert both.pixels[i].tolist() == [
            int((new == c).sum()) for c in range(1, len(both.class_names) + 1)
        ]


def test_merge_refuses_more_classes_than_a_mask_holds():
    a, b = (fake_set(x, ["1"], [f"{x}{k}" for k in range(130)], 0) for x in "ab")
    with pytest.raises(ValueError, match="a and b have 260 classes together; at most 254"):
        data_images.merge(a, b)


def test_subset_and_pickling(tmp_path):
    image_set = data_voc.voc_layout(
        make_voc(tmp_path / "set", {name: blocks(0, k % 3 + 1) for k, name in enumerate("abcd")}),
        "train",
    )
    few = pickle.loads(
        pickle.dumps(data_images.merge(data_images.subset(image_set, [3, 1]), image_set))
    )
    assert few.ids == ["d", "b", "a", "set/b", "c", "set/d"]
    assert [int(few.read_mask(i).max()) for i in range(6)] == [1, 2, 1, 2, 3, 1]


# --- masks and transforms -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True))
def test_known_and_binary_masks(seed, classes):
    class_map = np.random.default_rng(seed).choice([*range(21), 255], (9, 13)).astype(np.uint8)
    slow = np.array(
        [[255 if v == 255 else int(v in classes) for v in row] for row in class_map.tolist()]
    )
    for array in (class_map, torch.from_numpy(class_map)):
        known = data_transforms.known_mask(array, classes)
        assert (
            type(known) is type(array)
            and known.dtype == array.dtype
            and (np.asarray(known) == slow).all()
        )
        one = np.asarray(data_transforms.binary_mask(array, classes[0]))
        assert (
            ((one == 1) == (class_map == classes[0])).all()
            and ((one == 255) == (class_map == 255)).all()
            and set(one.ravel()) <= {0, 1, 255}
        )


def test_normalise_and_back():
    expected = (PICTURE / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = data_transforms.normalise(PICTURE)
    assert x.dtype == torch.float32 and x.shape == (3, 40, 56)
    assert np.allclose(x.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert torch.equal(
        data_transforms.normalise(torch.from_numpy(PICTURE).permute(2, 0, 1)[None])[0], x
    )
    assert (data_transforms.denormalise(x) == PICTURE).all()


@pytest.mark.parametrize(
    "side, rounded",
    [(473, 473), (161, 161), (240, 241), (237, 241), (236, 233), (8, 9), (480, 481)],
)
def test_round_side(side, rounded):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert data_transforms.round_side(side) == rounded
    assert len(caught) == (side != rounded) and all(
        f"side {side} is not of the form 8n+1; {rounded} is used" in str(w.message) for w in caught
    )


def test_round_side_refuses_less_than_a_stride():
    with pytest.raises(ValueError, match="side 7 is smaller than one feature stride"):
        data_transforms.round_side(7)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([33, 65, 97]), st.integers(0, 999))
def test_fit_square(height, width, side, seed):
    rng = np.random.default_rng(seed)
    image, mask = (
        rng.integers(0, 256, (height, width, 3), np.uint8),
        rng.choice([0, 3, 7], (height, width)).astype(np.uint8),
    )
    x, m = data_transforms.fit_square(image, mask, side)
    assert (
        x.shape == (3, side, side)
        and x.dtype == torch.float32
        and m.shape == (side, side)
        and m.dtype == torch.uint8
    )
    long = max(height, width)
    new_h, new_w = (max(1, round(n * side / long)) for n in (height, width))
    assert max(new_h, new_w) == side
    slow = np.full((side, side), 255)
    for y in range(new_h):
        for z in range(new_w):
            slow[y, z] = mask[
                (2 * y + 1) * height // (2 * new_h), (2 * z + 1) * width // (2 * new_w)
            ]
    assert (m.numpy() == slow).mean() > 0.9 and set(np.unique(m)) <= {0, 3, 7, 255}, (
        "float rounding may pick a neighbour"
    )
    assert ((m.numpy() == 255) == (slow == 255)).all()
    black = data_transforms.normalise(np.zeros((1, 1, 3), np.uint8))
    assert torch.equal(x * torch.from_numpy(slow == 255), black * torch.from_numpy(slow == 255))
    if long == side:
        assert (data_transforms.denormalise(x)[:height, :width] == image).all() and (
            m.numpy()[:height, :width] == mask
        ).all()


RECIPES = {
    "published": data_transforms.Recipe(65, 65),
    "wide": data_transforms.Recipe(65, 65, (0.6, 2.0), 30.0),
    "still": data_transforms.Recipe(65, 65, (1, 1), 0, flip_probability=0, blur_probability=0),
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 100), st.integers(8, 100), st.sampled_from(list(RECIPES)), st.integers(0, 2**31)
)
def test_augment_gives_original_values_and_keeps_the_class(height, width, recipe, seed):
    rng = np.random.default_rng(seed)
    image, mask = (
        rng.integers(0, 256, (height, width, 3), np.uint8),
        rng.choice([0, 3, 9], (height, width)).astype(np.uint8),
    )
    top, left = rng.integers(height - 4), rng.integers(width - 4)
    mask[top: top + 5, left: left + 5] = 7
    x, m = data_transforms.augment(image, mask, 7, RECIPES[recipe], np.random.default_rng(seed))
    assert (
        x.shape == (3, 65, 65)
        and x.dtype == torch.float32
        and m.shape == (65, 65)
        and m.dtype == torch.uint8
    )
    assert type(x) is torch.Tensor and type(m) is torch.Tensor and m.is_contiguous()
    assert set(np.unique(m)) <= {0, 3, 7, 9, 255} and (m == 7).any()
    again = data_transforms.augment(image, mask, 7, RECIPES[recipe], np.random.default_rng(seed))
    assert torch.equal(x, again[0]) and torch.equal(m, again[1])


def test_augment_without_chance_is_a_padded_copy():
    x, m = data_transforms.augment(
        PICTURE, blocks(1, 2), 1, RECIPES["still"], np.random.default_rng(0)
    )
    top, left = (65 - 40) // 2, (65 - 56) // 2
    assert (data_transforms.denormalise(x)[top : top + 40, left : left + 56] == PICTURE).all() and (
        m[top : top + 40, left : left + 56].numpy() == blocks(1, 2)
    ).all()
    outside = m == 255
    assert outside.sum() == 65 * 65 - 40 * 56 and x[:, outside].abs().max() < 0.01, (
        "padded with the mean"
    )


def test_augment_moves_image_and_mask_together():
    "The image carries the mask in its colours, so both must still agree, but for outlines that interpolation and blur soften."
    mask = np.kron(np.random.default_rng(1).integers(0, 2, (6, 8)), np.ones((20, 20))).astype(
        np.uint8
    )
    image = np.repeat(mask[..., None] * 255, 3, 2)
    for seed in range(30):
        x, m = data_transforms.augment(
            image, mask, 1, data_transforms.Recipe(97, 97, (0.8, 1.3)), np.random.default_rng(seed)
        )
        bright = data_transforms.denormalise(x)[..., 0].astype(int)
        valid = (m != 255).numpy()
        wrong = (np.abs(bright - 255 * (m.numpy() == 1)) > 128) & valid
        assert wrong.sum() < 0.025 * valid.sum(), seed


def test_scale_follows_side_over_reference():
    "At half the side an image is shrunk by half more, so that a crop shows the same part of the scene."
    image, mask = np.zeros((200, 200, 3), np.uint8), np.ones((200, 200), np.uint8)
    still = dict(scale=(0.5, 0.5), rotation_probability=0)
    for side, reference in [(201, 201), (201, 402), (201, 101)]:
        _, m = data_transforms.augment(
            image,
            mask,
            1,
            data_transforms.Recipe(side, reference, **still),
            np.random.default_rng(0),
        )
        size = round(200 * 0.5 * side / reference)
        assert (m == 1).sum() == min(size, 201) ** 2


def test_each_step_is_drawn_half_of_the_time(monkeypatch):
    counts = dict(rotate=0, gaussian_blur=0, horizontal_flip=0)
    for name in counts:
        real = getattr(data_transforms.F, name)

        def counting(x, *args, name=name, real=real, **kw):
            counts[name] += isinstance(x, tv_tensors.Image)
            return real(x, *args, **kw)

        monkeypatch.setattr(data_transforms.F, name, counting)
    n, picture, mask = 300, PICTURE[:17, :17], blocks(1, height=17, width=17)
    for seed in range(n):
        data_transforms.augment(
            picture, mask, 1, data_transforms.Recipe(17, 17), np.random.default_rng(seed)
        )
    for name, count in counts.items():
        assert abs(count - n / 2) < 4.5 * math.sqrt(n / 4), name
    for name, step in [
        ("rotate", "rotation"),
        ("gaussian_blur", "blur"),
        ("horizontal_flip", "flip"),
    ]:
        counts.update(dict.fromkeys(counts, 0))
        chances = {
            f"{other}_probability": float(other == step) for other in ("rotation", "blur", "flip")
        }
        data_transforms.augment(
            picture, mask, 1, data_transforms.Recipe(17, 17, **chances), np.random.default_rng(0)
        )
        assert counts == {**dict.fromkeys(counts, 0), name: 1}


def test_rotation_brings_in_void_and_the_mean_colour():
    image, mask = np.full((65, 65, 3), 255, np.uint8), np.ones((65, 65), np.uint8)
    turning = data_transforms.Recipe(
        65, 65, (1, 1), 30.0, rotation_probability=1, blur_probability=0
    )
    seen = 0
    for seed in range(6):
        x, m = data_transforms.augment(image, mask, 1, turning, np.random.default_rng(seed))
        assert set(np.unique(m)) <= {1, 255}
        clear = (
            torch.nn.functional.max_pool2d((m == 1).float()[None], 5, 1, 2)[0] == 0
        )  # void, away from the softened edge
        assert (x[:, clear].abs() < 0.01).all()
        seen += clear.sum().item()
    assert seen > 500


def test_crop_is_drawn_again_until_it_keeps_enough():
    one = np.zeros((200, 200), bool)
    one[90:110, 20:40] = True
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(200):
        top, left = data_transforms.place_crop(one, 100, 0.85, 30, rng)
        assert 0 <= top <= 100 and 0 <= left <= 100
        kept.append(one[top: top + 100, left: left + 100].mean() * 100 * 100 / 400)
    assert min(kept) > 0 and np.mean(np.array(kept) >= 0.85) > 0.97
    drawn_once = [
        data_transforms.place_crop(np.ones((200, 200), bool), 100, 0.0, 30, rng) for _ in range(400)
    ]
    assert len(set(drawn_once)) > 380 and np.ptp(drawn_once, axis=0).min() > 90, (
        "with nothing to keep, anywhere"
    )
    assert abs(np.mean(drawn_once, axis=0) - 50).max() < 8


def test_crop_without_the_class_is_centred_on_it():
    ring = np.zeros((300, 300), bool)
    ring[200:207, 250:257] = True
    ring[202:205, 252:255] = False  # its centre is not of the class
    top, left = data_transforms.place_crop(ring, 9, 0.85, 0, np.random.default_rng(0))
    assert ring[top: top + 9, left: left + 9].any()
    corner = np.zeros((300, 300), bool)
    corner[299, 0] = True
    assert data_transforms.place_crop(corner, 33, 0.85, 0, np.random.default_rng(0)) == (267, 0)
    nothing = data_transforms.place_crop(
        np.zeros((40, 40), bool), 33, 0.85, 3, np.random.default_rng(0)
    )
    assert all(0 <= p <= 7 for p in nothing)


# --- episodes as tensors ------------------------------------------------------------------------------------------------


@pytest.fixture
def episodes_of_stripes(tmp_path):
    masks = {f"i{k}": blocks(0, k % 3 + 1, 255, (k + 1) % 3 + 1) for k in range(9)}
    image_set = data_voc.voc_layout(make_voc(tmp_path / "set", masks), "train")
    return image_set, images_in_turn(image_set.pixels, [1, 3], 20, 2, 0, min_pixels=50)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


def test_training_item_depends_on_seed_and_number_alone(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    recipe = data_transforms.Recipe(33, 33)
    data, other = (
        data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], recipe, seed)
        for seed in (0, 1)
    )
    in_order = [data[i] for i in range(20)]
    assert all(same(data[i], in_order[i]) for i in reversed(range(20))), (
        "order and repetition do not matter"
    )
    assert not same(data[0], other[0])
    twice = Episodes(*(np.repeat(x[:1], 2, axis=0) for x in episodes))
    data = data_training_set.TrainingEpisodes(image_set, twice, [1, 3], recipe, 0)
    assert not same(data[0], data[1]), "the same episode at another number is augmented anew"
    assert same(data[0], in_order[0])
    with pytest.raises(IndexError):
        data[2]
    loaded = torch.utils.data.DataLoader(
        data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], recipe, 0),
        batch_size=5,
        num_workers=2,
    )
    for k, batch in enumerate(loaded):
        assert isinstance(batch, data_training_set.Batch)
        for j in range(5):
            assert same([field[j] for field in batch], in_order[5 * k + j]), (
                "nor do loader processes"
            )


def test_training_item_fields(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    still = data_transforms.Recipe(
        57, 57, (1, 1), rotation_probability=0, blur_probability=0, flip_probability=0
    )
    i = next(
        i for i in range(20) if (image_set.pixels[episodes.query[i]][[0, 2]] > 0).all()
    )  # both training classes in the query
    item = data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], still, 0)[i]
    cls, query, support = (
        int(episodes.cls[i]),
        int(episodes.query[i]),
        episodes.support[i].tolist(),
    )
    assert (
        item.query.shape == (3, 57, 57)
        and item.support.shape == (2, 3, 57, 57)
        and item.support_mask.shape == (2, 57, 57)
    )
    assert item.cls.dtype == torch.int64 and item.cls.item() == cls
    rows = slice((57 - 40) // 2, (57 - 40) // 2 + 40)
    for mask, i in [
        (item.target, query),
        (item.support_mask[0], support[0]),
        (item.support_mask[1], support[1]),
    ]:
        old = image_set.read_mask(i)
        assert (
            mask.dtype == torch.uint8
            and (mask[rows, :56].numpy() == np.where(old == 255, 255, old == cls)).all()
        )
    old = image_set.read_mask(query)
    assert (item.known[rows, :56].numpy() == np.where(old == 255, 255, np.isin(old, [1, 3]))).all()
    partly = next(i for i in range(20) if image_set.pixels[episodes.query[i], 1] > 0)
    item = data_training_set.TrainingEpisodes(image_set, episodes, [1, 3], still, 0)[partly]
    old = image_set.read_mask(int(episodes.query[partly]))
    assert (item.known[rows, :56].numpy()[old == 2] == 0).all(), "class 2 is latent: background"


def test_episodes_of_hidden_classes_are_refused(episodes_of_stripes):
    image_set, episodes = episodes_of_stripes
    with pytest.raises(
        ValueError, match="class 3 has training episodes but is not a training class"
    ):
        data_training_set.TrainingEpisodes(
            image_set, episodes, [1, 2], data_transforms.Recipe(33, 33), 0
        )


def test_overlay_tints_only_the_mask():
    mask = np.zeros((40, 56), np.uint8)
    mask[10:20, 10:20], mask[30:, :] = 1, 255
    tinted = viz.overlay(PICTURE, mask, "#FF0000", 0.5)
    assert (tinted[mask != 1] == PICTURE[mask != 1]).all(), "void and background are left alone"
    assert (tinted[10, 10] == [255, 0, 0]).all(), "outline in the full colour"
    assert (
        np.abs(tinted[15, 15].astype(float) - (PICTURE[15, 15] * 0.5 + [127.5, 0, 0])).max() <= 0.5
    )
    assert (viz.overlay(PICTURE, torch.from_numpy(mask), "#FF0000", 0.5) == tinted).all()


def test_show_images_has_titles():
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig = viz.show_images(
        [PICTURE, PICTURE[..., 0], PICTURE], ["a", "b", "c"], columns=2, suptitle="all"
    )
    assert [ax.get_title() for ax in fig.axes] == [
        "a",
        "b",
        "c",
        "",
    ] and fig.get_suptitle() == "all"
    plt.close(fig)


# --- real folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_bundled_samples(split):
    image_set = bundled_scenes.samples(split)
    assert image_set.name == "samples" and len(image_set.class_names) == 20
    assert ((image_set.pixels >= 2048).sum(axis=0) >= 6).all(), "enough for 5 shots of every class"
    assert data_images.read_image(image_set, 0).shape == (161, 161, 3)


@needs_shared
def test_voc_mini():
    both = [data_voc.voc_layout(SHARED / "data/voc-mini", split) for split in ("train", "val")]
    assert [len(s.ids) for s in both] == [447, 446] and all(
        s.class_names == data_voc.PASCAL_CLASSES for s in both
    )
    assert all(((s.pixels > 0).sum(axis=0) >= 8).all() for s in both)


@needs_shared
def test_coco_mini():
    pytest.importorskip("pycocotools")
    with pytest.warns(UserWarning, match="225 annotated"):
        train = data_benchmarks.coco20i(SHARED / "data/coco-mini", "train")
    assert len(train.ids) == 225 and train.class_names == data_coco.COCO_CLASSES
    both = data_images.merge(data_voc.voc_layout(SHARED / "data/voc-mini", "train"), train)
    assert len(both.class_names) == 80 and both.class_names[:20] == data_voc.PASCAL_CLASSES
