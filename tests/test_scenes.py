"The bundled samples: drawn the same from the same seed, and as promised on disk."
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.bundled import catalogue as bundled_catalogue
from celp_nb.bundled import scenes as bundled_scenes

ROOT = Path(__file__).resolve().parent.parent / "data_samples" / "scenes"


def committed(name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(Image.open(ROOT / "JPEGImages" / f"{name}.jpg")), np.asarray(
        Image.open(ROOT / "SegmentationClass" / f"{name}.png")
    )


@pytest.fixture(scope="module", params=["train", "val"])
def split(request):
    ids = (ROOT / "ImageSets/Segmentation" / f"{request.param}.txt").read_text().split()
    masks = [committed(i)[1] for i in ids]
    return (
        request.param,
        ids,
        masks,
        np.stack([np.bincount(m.ravel(), minlength=256) for m in masks]),
    )


def test_files_are_complete(split):
    name, ids, masks, counts = split
    assert len(ids) == len(set(ids)) == {"train": 600, "val": 300}[name]
    assert all(m.shape == (161, 161) and m.dtype == np.uint8 for m in masks)
    assert committed(ids[0])[0].shape == (161, 161, 3)
    assert counts[:, 21:255].sum() == 0, "masks hold 0, 1..20 and 255 only"


def test_every_annotated_object_counts_as_present(split):
    objects = split[3][:, 1:21]
    assert objects[objects > 0].min() >= 2048


def test_a_known_object_beside_every_novel_one(split):
    present = split[3][:, 1:21] >= 2048
    for fold in range(4):
        inside = np.zeros(20, bool)
        inside[5 * fold:5 * fold + 5] = True
        novel = present[:, inside].any(1)
        assert novel.sum() >= 50 and present[novel][:, ~inside].any(1).all()


def test_every_class_is_common_enough(split):
    present = split[3][:, 1:21] >= 2048
    assert (present.sum(0) >= 20).all() and set(present.sum(1)) == {2, 3, 4}


def test_void_is_a_thin_border(split):
    for mask in split[2][:40]:
        void = mask == 255
        block = np.lib.stride_tricks.sliding_window_view(void, (4, 4)).all((2, 3))
        assert 0 < void.mean() < .06 and not block.any()


def test_names_and_size():
    names = (ROOT / "classes.txt").read_text().split()
    assert len(set(names)) == 20 and names == [c.name for c in bundled_catalogue.bundled_classes()]
    assert sum(f.stat().st_size for f in ROOT.rglob("*") if f.is_file()) <= 10_000_000


@pytest.mark.parametrize("split_name, index", [("train", 7), ("val", 41)])
def test_committed_masks_follow_from_the_seed(split_name, index):
    scene = bundled_scenes.bundled_scene(split_name, index)
    image, mask = committed(f"{split_name}_{index:04d}")
    assert np.array_equal(scene.mask, mask)
    assert np.abs(scene.image.astype(int) - image).mean() < 10      # JPEG
    assert not np.array_equal(bundled_scenes.bundled_scene(split_name, index, seed=1).mask, mask)


def test_writing_gives_the_committed_masks(tmp_path):
    bundled_scenes.write_samples(tmp_path, {"train": 2, "val": 1}, workers=1)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert (
        len(files) == 3 + 3 + 2 + 1
        and (tmp_path / "ImageSets/Segmentation/train.txt").read_text()
        == "train_0000\ntrain_0001\n"
    )
    for name in ("train_0000", "train_0001", "val_0000"):
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "SegmentationClass" / f"{name}.png")),
            committed(name)[1],
        )


def test_other_classes_are_others():
    others = bundled_catalogue.other_classes()
    assert len(others) == len({c.name for c in others}) == 96
    assert not {c.name for c in others} & {c.name for c in bundled_catalogue.bundled_classes()}
    mine = [
        s
        for c in bundled_catalogue.bundled_classes()
        for s in (bundled_catalogue.silhouette(c, 0, 1), bundled_catalogue.silhouette(c, 0, -1))
    ]
    for c in others:
        theirs = bundled_catalogue.silhouette(c, 0, 1)
        assert max((theirs & s).sum() / (theirs | s).sum() for s in mine) < .85


@settings(max_examples=15, deadline=None)
@given(k=st.integers(0, 19), area=st.floats(1500, 5000), seed=st.integers(0, 10 ** 6))
def test_an_instance_has_the_wanted_size(k, area, seed):
    patch = bundled_scenes.render_object(
        bundled_catalogue.bundled_classes()[k], area, np.random.default_rng(seed), supersample=2
    )
    assert abs(patch.area / area - 1) < .06
    assert (
        patch.coverage[0].max()
        == patch.coverage[-1].max()
        == patch.coverage[:, 0].max()
        == patch.coverage[:, -1].max()
        == 0
    )


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10 ** 6))
def test_objects_stay_visible(seed):
    scene = bundled_scenes.render_scene(
        bundled_catalogue.bundled_classes(),
        [0, 9, 16],
        np.random.default_rng(seed),
        least=1800,
        supersample=1,
    )
    assert set(np.unique(scene.mask)) <= {0, 1, 10, 17, 255}
    assert all((scene.mask == c).sum() >= 1800 for c in (1, 10, 17))
    assert scene.ground.max() < len(bundled_scenes.GROUNDS)


def test_what_does_not_fit_is_said():
    with pytest.raises(
        ValueError,
        match="4 objects of at least 9000 pixels do not fit an image of side 60; use fewer",
    ):
        bundled_scenes.render_scene(
            bundled_catalogue.bundled_classes(),
            [0, 1, 2, 3],
            np.random.default_rng(0),
            side=60,
            least=9000,
            supersample=1,
        )
