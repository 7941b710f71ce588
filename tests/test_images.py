"Reading and writing single files; parts and unions of sets; overlays."

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import PICTURE, SHARED, blocks, make_voc, needs_shared, one_thread, own_cache  # noqa: F401  autouse fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb import viz
from celp_nb.bundled import scenes as bundled_scenes
from celp_nb.data import benchmarks as data_benchmarks
from celp_nb.data import coco as data_coco
from celp_nb.data import images as data_images
from celp_nb.data import voc as data_voc


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


def test_a_union_of_more_than_254_classes_has_masks_of_16_bits():
    a, b = (fake_set(x, ["1", "2"], [f"{x}{k}" for k in range(130)], 0) for x in "ab")
    both = data_images.merge(a, b)
    assert len(both.class_names) == 260
    for i in range(4):
        old, new = (a if i < 2 else b).read_mask(i % 2), both.read_mask(i)
        shift = np.where((old > 0) & (old < 255), 130 * (i > 1), 0)
        assert new.dtype == np.uint16
        assert (new == np.where(old == 255, 65535, old.astype(int) + shift)).all()


def test_masks_of_every_value_go_through_a_file(tmp_path):
    every = np.arange(256, dtype=np.uint8).reshape(8, 32)
    data_images.write_png_mask(tmp_path / "deeper" / "mask.png", every)
    assert (data_images.read_png_mask([tmp_path / "deeper" / "mask.png"], 0) == every).all()
    with Image.open(tmp_path / "deeper" / "mask.png") as picture:
        assert picture.mode == "P" and picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    with Image.open(bundled_root() / "SegmentationClass/val_0000.png") as committed:
        assert tuple(committed.getpalette()) == data_images.palette()


def bundled_root():
    return bundled_scenes.samples("val").image_paths[0].parent.parent


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


@pytest.mark.parametrize("split", ["train", "val"])
def test_bundled_samples(split):
    image_set = bundled_scenes.samples(split)
    assert image_set.name == "samples" and len(image_set.class_names) == 20
    assert ((image_set.pixels >= 2048).sum(axis=0) >= 6).all(), "enough for 5 shots of every class"
    assert data_images.read_image(image_set, 0).shape == (161, 161, 3)


@needs_shared
def test_pascal_part():
    part = data_voc.voc_layout(SHARED / "data/pascal-part", "train_pascal5i")
    assert len(part.ids) == 1363 and part.class_names == data_voc.PASCAL_CLASSES
    assert ((part.pixels > 0).sum(axis=0) >= 8).all()


@needs_shared
def test_coco_mini(tmp_path):
    pytest.importorskip("pycocotools")
    with pytest.warns(UserWarning, match="225 annotated"):
        train = data_benchmarks.coco20i(SHARED / "data/coco-mini", "train")
    assert len(train.ids) == 225 and train.class_names == data_coco.COCO_CLASSES
    pascal = make_voc(tmp_path / "voc", {"2007_000032": blocks(0, 15)}, names=())
    both = data_images.merge(data_voc.voc_layout(pascal, "train"), train)
    assert len(both.class_names) == 80 and both.class_names[:20] == data_voc.PASCAL_CLASSES
