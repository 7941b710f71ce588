"The bundled samples: drawn the same from the same seed, and as promised on disk."
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.bundled import catalogue as bundled_catalogue
from celp_nb.bundled import objects as bundled_objects
from celp_nb.bundled import scenes as bundled_scenes
from celp_nb.bundled.catalogue import other_classes
from celp_nb.bundled.tiny import N_OTHER
from celp_nb.data.images import read_image
from celp_nb.data.voc import voc_layout

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from another_world import world_classes, write_world  # noqa: E402

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


def test_another_world_has_twenty_unseen_classes_and_is_drawn_the_same_again(tmp_path):
    seen = {c.name for c in (*bundled_catalogue.bundled_classes(), *other_classes(N_OTHER))}
    worlds = [{c.name for c in world_classes(world)} for world in (1, 2)]
    assert [len(names) for names in worlds] == [20, 20]
    assert not worlds[0] & worlds[1] and not (worlds[0] | worlds[1]) & seen
    for name in "ab": write_world(tmp_path / name, 1, splits={"train": 1, "val": 1}, workers=1)
    world = voc_layout(tmp_path / "a", "val")
    assert world.class_names == [c.name for c in world_classes(1)]
    assert not np.array_equal(world.read_mask(0), committed("val_0000")[1])
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        again = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == again.read_bytes()
    with pytest.raises(FileExistsError, match="is there already"):
        write_world(tmp_path / "a", 1)


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
    patch = bundled_objects.render_object(
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
    assert scene.ground.max() < len(bundled_objects.GROUNDS)


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


# --- an episode to begin with


def test_the_example_is_the_first_two_validation_scenes_with_a_star(tmp_path):
    scenes = bundled_scenes.samples("val")
    first = np.flatnonzero(scenes.pixels[:, bundled_scenes.EXAMPLE_CLASS - 1])[:2]
    assert [scenes.ids[i] for i in first] == list(bundled_scenes.EXAMPLE_SCENES.values())
    assert scenes.class_names[bundled_scenes.EXAMPLE_CLASS - 1] == "star"
    bundled_scenes.write_example(ROOT, tmp_path)
    for path in bundled_scenes.example_episode():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_the_example_marks_the_star_alone():
    support, mask, query = (np.asarray(Image.open(p)) for p in bundled_scenes.example_episode())
    whole = committed("val_0001")[1]
    assert set(np.unique(mask)) == {0, 1, 255}
    assert np.array_equal(mask == 1, whole == 1) and np.array_equal(mask == 255, whole == 255)
    assert support.shape == query.shape == (*mask.shape, 3)


# --- outside of a clone


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    "No clone, an empty cache, and a data set of six scenes. Gives the cache folder."
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled_scenes, "_scenes_of_clone", lambda: tmp_path / "no clone")
    monkeypatch.setattr(bundled_scenes, "SPLITS", {"train": 2, "val": 4})
    few = partial(bundled_scenes.write_samples, splits={"train": 2, "val": 4}, workers=1)
    monkeypatch.setattr(bundled_scenes, "write_samples", few)
    promised = {split: bundled_scenes.masks_digest(ROOT, split) for split in ("train", "val")}
    monkeypatch.setattr(bundled_scenes, "MASK_DIGESTS", promised)
    return tmp_path / "cache"


def folders(cache):
    return [path.name for path in cache.iterdir() if path.is_dir()]


def never(*args):
    raise AssertionError("drawn again")


def test_promised_masks_are_those_of_the_clone():
    for split, promised in bundled_scenes.MASK_DIGESTS.items():
        assert bundled_scenes.masks_digest(ROOT, split) == promised


def test_outside_of_a_clone_the_scenes_are_drawn_once(few_scenes, monkeypatch, capsys):
    scenes = bundled_scenes.samples("val")
    assert "drawing the 6 bundled scenes; this is done once" in capsys.readouterr().err
    monkeypatch.setattr(bundled_scenes, "write_samples", never)
    train = bundled_scenes.samples("train")
    assert capsys.readouterr().err == ""
    assert scenes.name == train.name == "samples"
    assert len(folders(few_scenes)) == 1 and few_scenes in train.image_paths[0].parents
    clone = voc_layout(ROOT, "val")
    assert scenes.ids == clone.ids[:4] and scenes.class_names == clone.class_names
    assert np.array_equal(scenes.pixels, clone.pixels[:4])
    for i in range(4):
        assert np.array_equal(scenes.read_mask(i), clone.read_mask(i))
        gap = np.abs(read_image(scenes, i).astype(float) - read_image(clone, i))
        assert gap.mean() < 0.1  # rounding


def test_in_a_clone_nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(bundled_scenes, "drawn_samples", never)
    assert bundled_scenes.samples("val").image_paths[0].parent.parent == ROOT


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_masks_are_refused(few_scenes, monkeypatch, split):
    promised = bundled_scenes.MASK_DIGESTS | {split: "0" * 64}
    monkeypatch.setattr(bundled_scenes, "MASK_DIGESTS", promised)
    with pytest.raises(ValueError, match=rf"other masks in {split}\), .* work in a clone"):
        bundled_scenes.samples(split)
    assert not folders(few_scenes)


def test_other_images_are_refused(few_scenes, monkeypatch, tmp_path):
    other = tmp_path / "other"
    bundled_scenes.write_example(ROOT, other)
    (other / "query.jpg").write_bytes((ROOT / "JPEGImages/val_0003.jpg").read_bytes())
    monkeypatch.setattr(bundled_scenes, "EXAMPLE", other)
    with pytest.raises(ValueError, match=r"\(other images\)"): bundled_scenes.samples("val")
    assert not folders(few_scenes)


def test_an_interrupted_drawing_is_not_taken_for_a_whole_one(few_scenes, monkeypatch):
    def interrupted(root):
        bundled_scenes.bundled_scene("val", 0)
        (root / "JPEGImages").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundled_scenes, "write_samples", interrupted)
        with pytest.raises(KeyboardInterrupt): bundled_scenes.samples("val")
    assert not folders(few_scenes)
    name = bundled_scenes.drawn_samples().name
    shutil.rmtree(few_scenes / name)
    (few_scenes / f".{name}.killed.part").mkdir()  # what a killed process leaves behind
    assert len(bundled_scenes.samples("val").ids) == 4


def test_two_processes_that_draw_at_once_agree(few_scenes, monkeypatch):
    check, marks = bundled_scenes.check_drawn, []

    def finished_by_another(part):
        check(part)
        (name,) = folders(few_scenes)
        whole = few_scenes / name[1:].partition(".")[0]
        shutil.copytree(part, whole)
        (whole / "mark").touch()
        marks.append(whole / "mark")

    monkeypatch.setattr(bundled_scenes, "check_drawn", finished_by_another)
    root = bundled_scenes.drawn_samples()
    assert marks[0].parent == root and marks[0].exists() and folders(few_scenes) == [root.name]


def test_a_cache_folder_that_cannot_be_written_is_named(few_scenes, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"file/samples-\w+: .* set CELP_CACHE to a folder that can"):
        bundled_scenes.samples("val")


def full_disk(root, split, index, seed, catalogue):
    raise OSError("No space left on device")


def test_an_error_while_drawing_ends_the_drawing(few_scenes, monkeypatch):
    monkeypatch.setattr(bundled_scenes, "_write_scene", full_disk)
    with pytest.raises(OSError, match=r"No space left on device\); set CELP_CACHE"):
        bundled_scenes.samples("val")
    assert not folders(few_scenes)


def killed(root, split, index, seed, catalogue):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_the_drawing(few_scenes, monkeypatch):
    monkeypatch.setattr(bundled_scenes, "_write_scene", killed)
    with pytest.raises(OSError, match="cannot be drawn there .*terminated abruptly"):
        bundled_scenes.samples("val")
    assert not folders(few_scenes)


def test_a_terminal_shows_a_bar_and_a_file_does_not(monkeypatch, capsys):
    assert list(bundled_scenes._with_bar(iter("abc"), 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert list(bundled_scenes._with_bar(iter("abc"), 3)) == ["a", "b", "c"]
    assert "3/3" in capsys.readouterr().out
