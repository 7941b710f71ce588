"""What is refused before a run begins, and what a run knows of its data and its folder."""
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from celp_nb.app.cli import main
from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import Episodes
from celp_nb.data.images import ImageSet, merge
from celp_nb.data.mask_facts import (
    class_thickness,
    data_identity,
    identity_differences,
    mask_facts,
    read_facts,
)
from celp_nb.data.rules import LITERATURE, STRICT
from celp_nb.data.transforms import Recipe, fit_square
from celp_nb.engine.backbones import BACKBONES
from celp_nb.engine.checkpoints import load_checkpoint, save_checkpoint
from celp_nb.repro import folds as repro_folds
from celp_nb.repro import run_checks, runs
from celp_nb.repro import setup as repro_setup
from celp_nb.repro.config import change_config, make_config, read_config, read_digests
from celp_nb.repro.defaults import resolve
from celp_nb.repro.folds import add_folders, open_splits
from celp_nb.repro.other_data import evaluate_on

NAMES = ("apple", "brick", "chair", "drum")
SMALL = dict(
    backbone="tiny",
    side=65,
    crop=65,
    reference=161,
    width=8,
    iterations=2,
    pairs=2,
    n_folds=2,
    folds=(0,),
    shots=(1,),
    methods=("PFENet",),
    device="cpu",
    precision="float32",
    trivial=False,
)
LINE = (
    "--backbone tiny --side 65 --crop 65 --reference 161 --width 8 --iterations 2 --pairs 2 "
    "--shots 1 --methods PFENet --device cpu --precision float32"
)


def rectangles(classes, height=120, width=160):
    "A mask with a rectangle for each class, side by side."
    mask, slot = np.zeros((height, width), np.uint8), width // len(classes)
    for k, c in enumerate(classes): mask[20:90, k * slot + 4 : k * slot + 60] = c
    return mask


def write_voc(root, masks, names=NAMES):
    "A folder in VOC layout; `masks`: split → image name → mask."
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for split, of_split in masks.items():
        for name, mask in of_split.items():
            noise = np.random.default_rng(len(name)).integers(0, 40, (*mask.shape, 3), np.uint8)
            photo = noise + 50 * np.minimum(mask, 4)[..., None].astype(np.uint8)
            Image.fromarray(photo).save(root / f"JPEGImages/{name}.jpg")
            Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        listed = root / f"ImageSets/Segmentation/{split}.txt"
        listed.write_text("\n".join(of_split), encoding="utf-8")
    (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    return root


def pairs_of_classes(n=8, classes=4, draw=rectangles):
    "Masks of both splits, two classes in each image."
    shown = lambda i: sorted({i % classes + 1, (i + 1) % classes + 1})
    splits = ("train", "val")
    return {s: {f"{s[0]}{i:02d}": draw(shown(i)) for i in range(n)} for s in splits}


@pytest.fixture(autouse=True, scope="module")
def one_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("CELP_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture
def scenes(tmp_path):
    return write_voc(tmp_path / "scenes", pairs_of_classes())


def small(folder, **settings):
    return make_config(**{**SMALL, "data": str(folder), **settings})


def stays_out(config, folder, match):
    "The run is refused with these words, and nothing is written."
    with pytest.raises((ValueError, OSError), match=match):
        runs.run(config, folder)
    assert not Path(folder).exists()


# --- objects that vanish


def cracks(classes, height=450, width=650):
    "Stripes of two pixels: many pixels, of which a small image keeps none."
    mask = np.zeros((height, width), np.uint8)
    for k, c in enumerate(classes):
        for row in (21, 23): mask[row + 101 * k, 20:630] = c
        mask[22 + 101 * k, 20:630] = c
        mask[43 + 101 * k, 20:630] = c
    return mask


def test_thickness_is_the_largest_square_by_a_slow_search():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 4, (6, 7)), np.ones((9, 9), int)).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.02] = 255
    for c in (1, 2, 3):
        for side in (1, 2, 4, 8, 16, 32):
            windows = [
                mask[y : y + side, x : x + side]
                for y in range(mask.shape[0] - side + 1)
                for x in range(mask.shape[1] - side + 1)
            ]
            if any((w == c).all() for w in windows): largest = side
        assert class_thickness(mask, 3)[c - 1] == largest


def test_supports_that_vanish_are_refused_and_the_advised_side_works(tmp_path):
    root = write_voc(tmp_path / "thin", pairs_of_classes(6, 3, cracks), NAMES[:3])
    config = small(root, n_folds=3, pairs=4)
    with pytest.raises(ValueError, match="no pixel is left in image 'v0. at side 65|at side") as e:
        runs.run(config, tmp_path / "run")
    assert "evaluation split" in str(e.value) and "apple" in str(e.value)
    assert not (tmp_path / "run").exists()
    side = int(str(e.value).split("--side ")[1].split(",")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setup = repro_setup.prepare(resolve(change_config(config, side=side)))
    facts, fold = mask_facts(setup.val), setup.folds[0]
    run_checks.check_supports(setup.val, facts, fold.evaluation, side, "evaluation")


def test_the_side_that_helps_is_one_of_the_backbones(tmp_path, monkeypatch):
    tiny = BACKBONES["tiny"]._replace(stride=14, remainder=9)
    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    root = write_voc(tmp_path / "thin", pairs_of_classes(6, 3, cracks), NAMES[:3])
    config = small(root, n_folds=3, pairs=4)
    with pytest.raises(ValueError, match="at side 65.* use --side") as e:
        runs.run(config, tmp_path / "run")
    assert int(str(e.value).split("--side ")[1].split(",")[0]) % 14 == 9


def test_what_vanishes_depends_on_the_rules():
    "Lines of one pixel, on rows that our rules sample at 241 pixels and the literature's do not."
    rows = np.repeat(np.arange(375, dtype=np.uint16)[:, None], 500, 1)
    photo = np.zeros((375, 500, 3), np.uint8)
    seen = [np.unique(fit_square(photo, rows, 241, r)[1]) for r in (STRICT, LITERATURE)]
    mask = np.isin(rows, np.setdiff1d(*seen)[:5]).astype(np.uint8)
    pixels, paths = np.array([[mask.sum()]] * 2), [Path("a"), Path("b")]
    data = ImageSet("lines", ["a", "b"], paths, lambda i: mask, ["line"], pixels)
    episodes = Episodes(np.array([1]), np.array([1]), np.array([[0]]))
    asked = data, read_facts(data), episodes, 241, "evaluation"
    run_checks.check_supports(*asked, STRICT)
    with pytest.raises(ValueError, match="no pixel is left in image 'a' at side 241") as error:
        run_checks.check_supports(*asked, LITERATURE)
    side = int(str(error.value).split("--side ")[1].split(",")[0])
    assert (fit_square(photo, mask, side, LITERATURE)[1] == 1).any()


def test_training_images_that_vanish_are_a_warning_with_a_side_that_helps(tmp_path):
    masks = pairs_of_classes(6, 3, cracks)
    masks["val"] = pairs_of_classes(6, 3)["val"]
    root = write_voc(tmp_path / "thin", masks, NAMES[:3])
    config = resolve(small(root, n_folds=3, reference=650))
    with pytest.warns(UserWarning, match=r"vanish in .*\(brick.*t0.*with --side") as said:
        repro_setup.prepare(config)
    text = next(str(w.message) for w in said if "vanish" in str(w.message))
    side = int(text.split("--side ")[1].split()[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*vanish")
        repro_setup.prepare(resolve(change_config(config, side=side)))


def test_a_training_with_small_queries_alone_is_no_error(scenes, recwarn):
    data = repro_folds.open_data(str(scenes), "val")
    small_objects = replace(data, pixels=np.minimum(data.pixels, 5))
    episodes, facts = Episodes(np.array([1]), np.array([0]), np.array([[4]])), mask_facts(data)
    run_checks.warn_of_vanishing(small_objects, facts, episodes, Recipe(side=65), 65)
    assert not recwarn.list


def test_held_out_classes_that_vanish_are_refused_too(tmp_path):
    masks = pairs_of_classes(8, 4, cracks)
    masks["val"] = pairs_of_classes(8, 4)["val"]
    root = write_voc(tmp_path / "thin", masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stays_out(small(root, select="train"), tmp_path / "run", "training split: of the class")


def test_facts_come_from_the_cache_until_a_mask_changes(scenes, monkeypatch):
    data = repro_folds.open_data(str(scenes), "val")
    before = mask_facts(data)
    blind = replace(data, read_mask=lambda i: 1 / 0)
    assert (mask_facts(blind).checksums == before.checksums).all()
    path = scenes / "SegmentationClass/v00.png"
    Image.fromarray(np.array(Image.open(path))[:, ::-1]).save(path)  # as many pixels of each class
    os.utime(path, (1, 1))
    after = mask_facts(repro_folds.open_data(str(scenes), "val"))
    assert (after.checksums != before.checksums).tolist() == [True] + 7 * [False]


# --- lists, names, masks


def test_facts_of_a_union_follow_its_numbers(tmp_path):
    "The second folder's classes.txt is mended: the same files, other classes."
    masks = {"train": {"x": rectangles([1, 2])}}
    masks["train"]["x"][100:, :30] = 1
    parts = [write_voc(tmp_path / name, masks) for name in "ab"]
    def union(): return merge(*(repro_folds.open_data(str(part), "train") for part in parts))
    mask_facts(union())
    names = "\n".join([NAMES[1], NAMES[0], *NAMES[2:]])
    (parts[1] / "classes.txt").write_text(names, encoding="utf-8")
    mended = union()
    kept, fresh = mask_facts(mended), read_facts(mended)
    assert all((a == b).all() for a, b in zip(kept, fresh))


def test_ids_and_class_names_must_differ_before_training(monkeypatch, tmp_path):
    data = samples("val")
    for twice in (
        replace(data, ids=[data.ids[1], *data.ids[1:]]),
        replace(data, class_names=["moon", *data.class_names[1:-1], "moon"]),
    ):
        monkeypatch.setattr(repro_setup, "open_splits", lambda d, twice=twice: (twice, twice))
        stays_out(make_config(folds=(0,), iterations=1), tmp_path / "run", "two .* are called")


def test_a_list_that_is_not_read_back_is_refused_before_training(scenes, monkeypatch, tmp_path):
    def read(path, ids, names): return repro_folds.read_episodes(path, ids, names).shots(1)
    monkeypatch.setattr(run_checks, "read_episodes", read)
    stays_out(small(scenes, shots=(1, 2)), tmp_path / "run", "not read back as it was written")


def test_images_that_are_trained_on_and_tested_are_a_warning(scenes):
    listed = scenes / "ImageSets/Segmentation"
    names = (listed / "train.txt").read_text(encoding="utf-8")
    (listed / "val.txt").write_text(names, encoding="utf-8")
    with pytest.warns(UserWarning, match=r"8 images are in the training and .*t00\.jpg\), so the"):
        repro_setup.prepare(resolve(small(scenes)))


def test_a_fold_that_counts_as_done_has_its_table(scenes, tmp_path, monkeypatch):
    "Killed between the two files, a resumed run scores the fold again."
    def killed(path, table): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(runs, "write_table", killed)
        with pytest.raises(KeyboardInterrupt): runs.run(small(scenes), tmp_path / "run")
    assert not (tmp_path / "run/results.csv").exists()
    results = runs.run(small(scenes), tmp_path / "run", resume=True)
    assert len(results) and (tmp_path / "run/table.md").is_file()


def test_a_damaged_table_is_refused_before_anything_is_scored(copy, monkeypatch):
    (copy / "run/results.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    monkeypatch.setattr(runs, "score_models", lambda *given: 1 / 0)
    with pytest.raises(ValueError, match="results.csv holds no results"):
        runs.evaluate_run(copy / "run")


def test_masks_of_void_alone_are_refused(tmp_path):
    white = {s: {k: m * 0 + 255 for k, m in v.items()} for s, v in pairs_of_classes().items()}
    root = write_voc(tmp_path / "white", white)
    stays_out(small(root), tmp_path / "run", r"0 \(background\) and 255 \(void\)")


def test_an_edited_list_is_checked_before_training_goes_on(scenes, tmp_path):
    config, place = small(scenes), tmp_path / "run"
    runs.train_run(config, place)
    (place / "fold0/PFENet.pt").unlink()
    (place / "fold0/episodes.csv").write_text("class,class_id,query,support_1\ncat,1,v00,v01\n")
    with pytest.raises(ValueError, match="unknown class 'cat'"):
        runs.run(config, place, resume=True)
    assert not (place / "fold0/PFENet.pt").exists()


# --- room


def test_a_full_disk_is_refused_with_numbers(scenes, monkeypatch, tmp_path):
    config, needs = small(scenes, cache_views=2), {}
    setup = repro_setup.prepare(resolve(config))
    with monkeypatch.context() as m:
        m.setattr(repro_setup, "check_space", needs.update)
        repro_setup.check_room(setup, tmp_path / "run")
    run, views = (size for _, size in needs.values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(run_checks.shutil, "disk_usage", lambda path: usage._replace(free=free))
    free = run // 2
    stays_out(small(scenes), tmp_path / "run", r"0.0\d+ GB free, but the run will write 0.0\d+ GB")
    free = run + views // 2
    stays_out(config, tmp_path / "run", "GB of kept views; make room, or use fewer --cache-views")
    runs.train_run(change_config(config, cache_views=0), tmp_path / "run")  # without them, it fits


def test_views_of_other_runs_make_no_room(scenes, monkeypatch, tmp_path):
    config = small(scenes, cache_views=2, cache=str(tmp_path / "cache"))
    setup, needs = repro_setup.prepare(resolve(config)), {}
    monkeypatch.setattr(repro_setup, "check_space", needs.update)
    repro_setup.check_room(setup, tmp_path / "run")
    monkeypatch.undo()
    place, (_, views) = [*needs.items()][1]
    other = repro_setup.views_place(setup.config.runtime) / "another-backbone"
    other.mkdir(parents=True)
    with open(other / "views", "wb") as f: f.truncate(4 * views)
    usage = shutil.disk_usage(tmp_path)._replace(free=views // 2)
    monkeypatch.setattr(run_checks.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="GB of kept views; make room"):
        run_checks.check_space({place: needs[place]})


def test_what_a_run_takes_is_estimated(scenes, tmp_path):
    "Neither less than what it writes, nor more than four times that."
    for select in ("last", "test"):
        config = resolve(small(scenes, select=select, cache_views=2, cache=str(tmp_path / "views")))
        needs = {}
        patch = pytest.MonkeyPatch()
        patch.setattr(repro_setup, "check_space", needs.update)
        runs.train_run(config, tmp_path / select)
        patch.undo()
        run, views = (size for _, size in needs.values())
        taken = run_checks.folder_bytes(tmp_path / select)
        assert 0.9 * taken < run < 4 * taken
    taken = run_checks.folder_bytes(tmp_path / "views")
    assert taken < views < 4 * taken


def test_the_room_for_views_follows_the_stride_of_the_backbone(scenes, monkeypatch, tmp_path):
    setup, needs = repro_setup.prepare(resolve(small(scenes, cache_views=2))), []
    monkeypatch.setattr(repro_setup, "feature_channels", lambda backbone: (1000, 1000))
    monkeypatch.setattr(repro_setup, "check_space", lambda n: needs.append([*n.values()][1][1]))
    for stride in (8, 4):
        monkeypatch.setattr(setup.backbone, "stride", stride)
        repro_setup.check_room(setup, tmp_path / "run")
    assert 3.4 < needs[1] / needs[0] < (17 / 9) ** 2


# --- a run knows its data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder of photographs, and a run on it that is trained."
    home = tmp_path_factory.mktemp("trained")
    root = write_voc(home / "scenes", pairs_of_classes())
    runs.run(small(root), home / "run")
    return home


@pytest.fixture
def copy(trained, tmp_path):
    "A copy of both; the run points to the copied folder."
    shutil.copytree(trained, tmp_path / "copy")
    path = tmp_path / "copy/run/config.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(str(trained), str(tmp_path / "copy")), encoding="utf-8")
    return tmp_path / "copy"


def mirror_a_mask(root):
    path = root / "SegmentationClass/t00.png"
    Image.fromarray(np.array(Image.open(path))[:, ::-1]).save(path)


def drop_images(root):
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_text("\n".join(path.read_text().split()[:6]), encoding="utf-8")


def rename_a_class(root):
    (root / "classes.txt").write_text("apple\nbrick\nstool\ndrum", encoding="utf-8")


def add_images(root):
    masks = pairs_of_classes(9)
    write_voc(root, {"val": masks["val"]})


def swap_classes(root):
    (root / "classes.txt").write_text("chair\ndrum\napple\nbrick", encoding="utf-8")


CHANGES = [
    (mirror_a_mask, r"train split: 1 mask has changed \(t00\)"),
    (drop_images, r"train split: 2 images are gone \(t06, t07\)"),
    (rename_a_class, r"1 class is gone \(chair\); 1 class is new \(stool\)"),
    (add_images, r"val split: 1 image is new \(v08\)"),
    (swap_classes, "the classes are in another order"),
]


@pytest.mark.parametrize("change, said", CHANGES)
def test_other_data_are_refused_with_what_differs(copy, change, said):
    change(copy / "scenes")
    before = (copy / "run/results.csv").read_bytes()
    for ask in (
        lambda: runs.evaluate_run(copy / "run"),
        lambda: runs.replay(copy / "run", 0, copy / "run/fold0/episodes.csv"),
        lambda: runs.run(small(copy / "scenes"), copy / "run", resume=True),
    ):
        with pytest.raises(ValueError, match=said): ask()
    assert (copy / "run/results.csv").read_bytes() == before


def test_the_same_masks_written_anew_are_the_same_data(copy):
    for path in (copy / "scenes/SegmentationClass").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(mask).save(path, compress_level=1)
        os.utime(path, (1, 1))
    runs.evaluate_run(copy / "run")


def test_config_and_models_carry_the_digests(trained):
    digests = read_digests(trained / "run")
    assert set(digests) == {"train", "val"} and digests["train"] != digests["val"]
    for name in ("PFENet.pt",):
        assert load_checkpoint(trained / "run/fold0" / name)["data"] == digests
    assert read_config(trained / "run").data.folder == str(trained / "scenes")


def test_a_class_that_was_trained_on_is_never_tested(copy):
    "Not even where the run's own record of its data is gone, as in runs of earlier versions."
    swap_classes(copy / "scenes")
    (copy / "run/data.json").unlink()
    config = json.loads((copy / "run/config.json").read_text())
    del config["data_digests"]
    (copy / "run/config.json").write_text(json.dumps(config))
    path = copy / "run/fold0/PFENet.pt"
    saved = load_checkpoint(path)
    save_checkpoint(path, **{k: v for k, v in saved.items() if k != "data"})
    (copy / "run/fold0/episodes.csv").unlink()
    with pytest.raises(ValueError, match="was trained on chair, drum, which fold 0 would test"):
        runs.evaluate_run(copy / "run")


def test_a_model_of_other_data_is_refused(copy):
    path = copy / "run/fold0/PFENet.pt"
    saved = load_checkpoint(path)
    save_checkpoint(path, **{**saved, "data": {"train": "0", "val": "0"}})
    with pytest.raises(ValueError, match="PFENet.pt was trained on other data"):
        runs.evaluate_run(copy / "run")


def test_differences_name_the_first_and_count_all():
    data = samples("val")
    now = data_identity(data, mask_facts(data))
    before = now._replace(masks=dict(list(now.masks.items())[5:]))
    assert "5 images are new (" in identity_differences(before, now)
    assert ", …)" in identity_differences(before, now)
    turned = now._replace(masks=dict(reversed(now.masks.items())))
    assert identity_differences(now, turned) == "the images are listed in another order"
    assert identity_differences(now, now) == ""


# --- other data


def test_a_run_is_scored_on_the_novel_classes_of_other_data(copy, capsys, monkeypatch):
    other = write_voc(
        copy / "other", pairs_of_classes(10, 4), ("Drum", "apple", "fox", "gate")
    )  # fold 0 of the run was trained on chair and drum
    before = (copy / "run/results.csv").read_bytes()
    shutil.rmtree(copy / "scenes")  # its own data are not needed
    with pytest.warns(UserWarning, match="trained on 1 of its 4 classes, .* not tested: Drum"):
        place = evaluate_on(copy / "run", str(other))
    episodes = pd.read_csv(place / "fold0/episodes.csv")
    assert set(episodes["class"]) == {"apple", "fox", "gate"} and len(episodes) == 6
    results = pd.read_csv(place / "results.csv")
    assert set(results.data) == {"other"} and set(results.method) == {"PFENet"}
    assert results.trained_on.isna().all(), "the run's training images are not opened"
    assert set(results.iterations) == {SMALL["iterations"]}
    assert (copy / "run/results.csv").read_bytes() == before
    assert main(["evaluate", str(copy / "run"), "--data", str(other)]) == 0
    said = capsys.readouterr()
    assert "`other`" in said.out and "apple, fox, gate" in said.out and "Drum" in said.err


def test_a_run_of_a_machine_with_a_gpu_is_scored_without_one(copy, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = copy / "run/config.json"
    text = path.read_text(encoding="utf-8")
    assert '"device": "cpu"' in text
    before = pd.read_csv(copy / "run/results.csv")
    path.write_text(text.replace('"device": "cpu"', '"device": "cuda"'), encoding="utf-8")
    assert runs.evaluate_run(copy / "run").miou.tolist() == pytest.approx(before.miou.tolist())
    listed = copy / "run/fold0/episodes.csv"
    again = runs.replay(copy / "run", 0, listed)
    assert again.miou.tolist() == pytest.approx(before[before.fold == 0].miou.tolist())


def test_other_data_without_a_novel_class_are_refused(copy):
    other = write_voc(copy / "other", pairs_of_classes(8, 2), ("drum", "chair"))
    with pytest.raises(ValueError, match="no class to test that fold 0 was not trained on"):
        evaluate_on(copy / "run", str(other))


def test_options_that_do_not_go_with_other_data(capsys, copy):
    line = ["evaluate", str(copy / "run"), "--data", "x", "--fold", "0", "--episodes", "y"]
    assert main(line) == 1 and "leave --episodes and --fold out" in capsys.readouterr().err
    assert main(["evaluate", str(copy / "run"), "--pairs", "3"]) == 1
    assert "are for --published" in capsys.readouterr().err
    for option in ("--data", "--episodes"):
        line = ["evaluate", str(copy / "run"), "--episode-seed", "3", option, "x"]
        assert main(line) == 1 and "leave --episodes and --data out" in capsys.readouterr().err


def test_another_list_is_scored_from_the_command_line(capsys, copy):
    assert main(["evaluate", str(copy / "run"), "--episode-seed", "3"]) == 0
    assert "PFENet" in capsys.readouterr().out
    assert set(pd.read_csv(copy / "run/list-3/results.csv").episode_seed) == {3}
    assert set(pd.read_csv(copy / "run/results.csv").episode_seed) == {0}


# --- the folder


HOLD = (
    "import sys, time; from celp_nb.repro.run_checks import run_lock\n"
    "with run_lock(sys.argv[1]): print('mine', flush=True); time.sleep(100)"
)


def test_a_folder_that_another_process_writes_is_refused_until_it_has_gone(scenes, tmp_path):
    place = tmp_path / "run"
    code = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(code, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == b"mine"
        for resume in (False, True):
            with pytest.raises(FileExistsError, match=f"in use by process {other.pid} of this"):
                runs.run(small(scenes), place, resume=resume)
        other.kill()
        other.wait()
    runs.run(small(scenes), place)
    assert (place / "results.csv").is_file() and not (place / "lock.json").exists()


def claim(**changes):
    facts = run_checks.process_facts(os.getpid())
    own = {"host": socket.gethostname(), "pid": os.getpid(), "since": "2024-01-01 00:00:00"}
    return {**own, "start": facts[1] if facts else "", **changes}


def test_a_lock_of_another_host_says_how_to_remove_it(tmp_path):
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(claim(host="elsewhere")))
    with pytest.raises(FileExistsError, match="on elsewhere since .* or delete .*lock.json if"):
        run_checks.check_lock(tmp_path)
    lock.unlink()
    run_checks.check_lock(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_a_damaged_lock_is_in_use_for_some_seconds_only(tmp_path, text):
    lock = tmp_path / "lock.json"
    lock.write_text(text)
    with pytest.raises(FileExistsError, match="just claiming"):
        run_checks.check_lock(tmp_path)
    os.utime(lock, (1, 1))
    with run_checks.run_lock(tmp_path): assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the start of a process: Linux")
def test_a_number_that_another_process_has_now_is_stale(tmp_path):
    (tmp_path / "lock.json").write_text(json.dumps(claim(start="1")))
    run_checks.check_lock(tmp_path)
    (tmp_path / "lock.json").write_text(json.dumps(claim()))
    with pytest.raises(FileExistsError): run_checks.check_lock(tmp_path)


def test_of_processes_that_claim_together_one_gets_the_folder(tmp_path):
    code = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    all_of_them = [subprocess.Popen(code, stdout=pipe, stderr=subprocess.DEVNULL) for _ in "abc"]
    outcomes = []
    for process in all_of_them:
        line = process.stdout.readline().strip()
        outcomes.append(line)
    assert sorted(outcomes) == [b"", b"", b"mine"]
    for process in all_of_them:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_stale_lock_that_another_process_clears_first_is_no_error(tmp_path, monkeypatch):
    (tmp_path / run_checks.LOCK).write_text(json.dumps(claim(pid=2**22 + 1)), encoding="utf-8")
    replace_file = os.replace

    def too_late(source, target):
        os.unlink(source)
        monkeypatch.setattr(os, "replace", replace_file)
        return replace_file(source, target)

    monkeypatch.setattr(os, "replace", too_late)
    run_checks.take_lock(tmp_path)
    held = json.loads((tmp_path / run_checks.LOCK).read_text(encoding="utf-8"))
    assert held["pid"] == os.getpid()


def test_the_lock_goes_after_an_error_and_an_unused_folder_with_it(scenes, tmp_path, monkeypatch):
    def fail(*_): raise RuntimeError("no")
    monkeypatch.setattr(runs, "train_fold", fail)
    with pytest.raises(RuntimeError): runs.run(small(scenes), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "data.json"]
    monkeypatch.setattr(runs, "claim_folder", fail)
    with pytest.raises(RuntimeError): runs.run(small(scenes), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_begun_while_this_run_prepared_is_not_written_over(scenes, tmp_path, monkeypatch):
    begun = runs.begin
    def begin(config, folder, resume):
        setup = begun(config, folder, resume)
        runs.run(config, folder)
        return setup
    with monkeypatch.context() as m:
        m.setattr(runs, "begin", lambda *a: (m.setattr(runs, "begin", begun), begin(*a))[1])
        with pytest.raises(FileExistsError, match="was begun meanwhile"):
            runs.run(small(scenes), tmp_path / "run")
    assert (tmp_path / "run/results.csv").is_file()


def test_a_folder_that_is_no_run_is_not_taken(scenes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="no folder of a run; choose another name"):
            runs.run(small(scenes), tmp_path / "run", resume)


def test_a_folder_whose_claim_was_killed_is_taken(scenes, tmp_path):
    "Killed before its settings were written; and after them, before the facts of its data."
    folder = tmp_path / "run"
    folder.mkdir()
    claim = {"host": socket.gethostname(), "pid": 2**22 + 1, "start": "", "since": "2026"}
    (folder / "lock.json").write_text(json.dumps(claim))
    (folder / ".config.json.7.part").write_text("{}")
    runs.train_run(small(scenes), folder)
    (folder / "data.json").unlink()
    (folder / "lock.json").write_text(json.dumps(claim))
    runs.train_run(small(scenes), folder, resume=True)
    assert set(repro_setup.read_identity(folder)) == {"train", "val"}


@pytest.mark.parametrize("writes", ["write_config", "write_identity"])
def test_a_claim_that_failed_can_be_made_again(scenes, tmp_path, monkeypatch, writes):
    def fail(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(runs, writes, fail)
        with pytest.raises(OSError, match="No space"):
            runs.train_run(small(scenes), tmp_path / "run")
    runs.train_run(small(scenes), tmp_path / "run", resume=True)
    assert set(repro_setup.read_identity(tmp_path / "run")) == {"train", "val"}


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", "", " ", "nul", "c:x", ".x", "x" * 300]
)
def test_names_that_lead_out_of_runs_are_refused(capsys, scenes, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    line = ["run", "--data", str(scenes), *LINE.split(), "--n-folds", "2", f"--name={name}"]
    assert main(line) == 1
    err = capsys.readouterr().err
    assert err.startswith("celp: the name of the run") and err.count("\n") == 1 and "--name" in err
    assert sorted(tmp_path.rglob("*")) == before


# --- advice


def celp(capsys, *words):
    status = main(["train", *map(str, words), *LINE.split(), "--iterations", "1"])
    return status, capsys.readouterr().err


def test_one_class_is_told_about_extra_and_that_works(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = write_voc(tmp_path / "one", pairs_of_classes(8, 1), ["apple"])
    more = write_voc(tmp_path / "more", pairs_of_classes(8, 2), ["fox", "gate"])
    for n_folds in ([], ["--n-folds", "1"], ["--n-folds", "3"]):
        status, err = celp(capsys, "--data", one, *n_folds)
        assert status == 1 and "a single class ('apple')" in err and "--extra DIR" in err
        assert "more folds" not in err
        follow = n_folds if n_folds == ["--n-folds", "1"] else ["--n-folds", "1"]
        assert ("--n-folds 1" in err) == (n_folds != ["--n-folds", "1"])
        name = f"n{len(n_folds) and n_folds[1]}"
        assert celp(capsys, "--data", one, "--extra", more, *follow, "--name", name)[0] == 0
    status, err = celp(capsys, "--data", one, "--extra", one)
    assert status == 1 and "the extra folders add no class" in err
    status, err = celp(capsys, "--data", one, "--extra", more)
    assert status == 1 and "--n-folds 1" in err


def test_extra_samples_are_the_bundled_scenes_as_data_samples_are(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    one = write_voc(tmp_path / "one", pairs_of_classes(8, 1), ["apple"])
    data = resolve(make_config(data=str(one), extra=("samples",), n_folds=1, weights="random")).data
    assert data.extra == ("samples",)
    train, _ = open_splits(data)
    more = add_folders(train, data)
    assert set(samples("train").class_names) < set(more.class_names)
    (tmp_path / "samples").mkdir()
    with pytest.warns(UserWarning, match="--extra samples are the bundled.*write ./samples"):
        open_splits(data)
    other = resolve(make_config(data=str(one), extra=("./samples",), weights="random")).data
    assert other.extra == (str(tmp_path / "samples"),)


@pytest.mark.parametrize("classes, n_folds", [(2, 4), (3, 4), (4, 3), (4, 1), (2, 1)])
def test_the_number_of_folds_that_is_advised_works(capsys, tmp_path, monkeypatch, classes, n_folds):
    monkeypatch.chdir(tmp_path)
    root = write_voc(tmp_path / "few", pairs_of_classes(8, classes), NAMES[:classes])
    status, err = celp(capsys, "--data", root, "--n-folds", n_folds)
    assert status == 1 and "--n-folds" in err
    follow = err.split("--n-folds ")[1].split(")")[0]
    assert celp(capsys, "--data", root, "--n-folds", follow)[0] == 0


def test_skip_rare_is_advised_where_it_helps_and_fewer_shots_where_they_do(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    masks = pairs_of_classes()
    for k in ("v03", "v07", "v02"): masks["val"][k][masks["val"][k] == 4] = 0
    for k in ("v02",): masks["val"][k][masks["val"][k] == 3] = 0
    root = write_voc(tmp_path / "rare", masks)  # chair: 3 evaluation images, drum: 1
    status, err = celp(capsys, "--data", root, "--n-folds", 2)
    assert status == 1 and "drum" in err and "--skip-rare" in err
    assert celp(capsys, "--data", root, "--n-folds", 2, "--skip-rare")[0] == 0
    for more in ([], ["--skip-rare"]):
        line = ["--data", root, "--n-folds", 2, *more, "--fold", 1, "--name", f"s{len(more)}"]
        assert main(["train", *map(str, line), *LINE.split(), "--shots", "5"]) == 1
        err = capsys.readouterr().err
        shots = err.split("--shots ")[1].split(",")[0]
        status = main(["train", *map(str, line), *LINE.split(), "--shots", shots, "--skip-rare"])
        assert status == 0, capsys.readouterr().err


def test_photographs_that_are_too_few_are_not_answered_with_more_where_there_are_none(tmp_path):
    masks = {"train": pairs_of_classes(4)["train"], "val": pairs_of_classes()["val"]}
    train, val = (
        repro_folds.open_data(str(write_voc(tmp_path / "few", masks)), s) for s in ("train", "val")
    )
    lonely = replace(train, pixels=np.eye(4, dtype=np.int64) * 9999)
    for photographs, said in ((2, "use more photographs"), (4, "add images")):
        data = make_config(photographs=photographs).data
        with pytest.raises(ValueError, match=said):
            repro_folds.shown_in_training(data, lonely, [1, 2, 3, 4], 0)


def test_epochs_of_less_than_a_step_are_refused(scenes, tmp_path):
    config = small(scenes, iterations=None, epochs=1, batch=100, accumulate=1)
    stays_out(config, tmp_path / "run", "less than one step of 100 episodes; use more --epochs")
