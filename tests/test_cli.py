"""The command `celp` as a user meets it.

Mistakes cost a sentence, a small job leaves everything, predictions are files."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from celp_nb.app.cli import COMMANDS, main
from celp_nb.bundled.scenes import samples
from celp_nb.contrast import FewShotModel
from celp_nb.data import id_lists
from celp_nb.data.episodes import MIN_PIXELS, images_in_turn, pairs_per_class
from celp_nb.data.voc import PASCAL_CLASSES, voc_layout
from celp_nb.engine.backbones import (
    BACKBONES,
    backbone_fingerprint,
    load_backbone,
    read_weights,
)
from celp_nb.engine.evaluation import scores
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.pfenet import PASCAL_BINS, PFENet
from celp_nb.repro.config import flat_config, read_config
from celp_nb.repro.published import (
    PFENET_NAMES,
    RESNET_NAMES,
    load_published,
    published_name,
    turned,
)

SMALL = (
    "--backbone tiny --side 65 --crop 65 --reference 161 --width 8 --iterations 2 --pairs 2 "
    "--n-folds 2 --shots 1 2"
)


def write_folder(root, classes=6, each=4):
    """Samples in VOC layout: `each` images of every class and split.

    Other classes are painted over with background."""
    for split in ("train", "val"):
        data = samples(split)
        chosen = sorted(
            {
                int(i)
                for c in range(classes)
                for i in np.flatnonzero(data.pixels[:, c] >= MIN_PIXELS)[:each]
            }
        )
        for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for i in chosen:
            shutil.copy(data.image_paths[i], root / "JPEGImages")
            mask = data.read_mask(i)
            mask[(mask > classes) & (mask < 255)] = 0
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{data.ids[i]}.png")
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(
            "\n".join(data.ids[i] for i in chosen)
        )
    (root / "classes.txt").write_text("\n".join(samples("train").class_names[:classes]))
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with photographs in `scenes`, and a finished run in `runs/scenes`."
    home = tmp_path_factory.mktemp("home")
    write_folder(home / "scenes")
    patch = pytest.MonkeyPatch()
    patch.chdir(home)
    patch.setenv("CELP_CACHE", str(home / "cache"))
    torch.set_num_threads(1)
    assert main(f"run --data scenes {SMALL}".split()) == 0
    yield home
    patch.undo()


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    "An empty working folder beside it."
    monkeypatch.chdir(tmp_path)
    return tmp_path


def squeezed(table):
    "A markdown table with single blanks in its cells."
    return re.sub(" +", " ", table)


def refused(capsys, line, *said):
    "The command ends with status 1 and one line on stderr that says all of this."
    status = main(line if isinstance(line, list) else line.split())
    err = capsys.readouterr().err
    assert status == 1, err
    assert err.startswith("celp: ") and err.count("\n") == 1 and err.rstrip().endswith("."), err
    for word in said:
        assert str(word) in err, (word, err)


# --- help


def test_help_is_there_without_loading_pytorch():
    code = (
        "import sys; from celp_nb.app.cli import main; s = main(['--help']); "
        "sys.exit(s or 'torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    "name, option",
    [
        ("run", "--weights"),
        ("run", "--preset"),
        ("run", "--all-folds"),
        ("train", "--resume"),
        ("evaluate", "--episodes"),
        ("predict", "--support"),
        ("data", "--root"),
        ("table", "[RUN ...]"),
        ("presets", "--help"),
    ],
)
def test_each_command_lists_its_options(capsys, name, option):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0 and option in capsys.readouterr().out


# --- mistakes


@pytest.mark.parametrize(
    "options, said",
    [
        ("--backbone resnet5", ["'resnet5'", "resnet50"]),
        ("--weights nowhere.pth", ["nowhere.pth"]),
        ("--methods PFNet", ["'PFNet'", "PFENet+CE"]),
        ("--folds 2", ["fold 2", "0, 1"]),
        ("--delta 1", ["delta is 1.0"]),
        ("--delta -1", ["delta is -1.0"]),
        ("--iterations 0", ["iterations is 0"]),
        ("--shots 0", ["shots"]),
        ("--shots 9", ["9-shot", "evaluation split", "star"]),
        ("--side 4", ["side: 4 pixels"]),
        ("--extra nowhere", ["nowhere", "no such folder"]),
        ("--n-folds 1", ["more folds"]),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(capsys, home, here, options, said):
    refused(capsys, f"run --data {home}/scenes {SMALL} {options}", *said)
    assert not list(here.iterdir())


def test_an_unknown_command_is_named(capsys, here):
    refused(capsys, "fly", "'fly'", "predict")


def test_a_missing_data_folder_is_named(capsys, here):
    refused(capsys, "run --data nowhere --backbone tiny", here / "nowhere")
    assert not list(here.iterdir())


def test_a_missing_split_is_named(capsys, home, here):
    (shutil.copytree(home / "scenes", here / "scenes") / "ImageSets/Segmentation/val.txt").unlink()
    refused(capsys, f"run --data scenes {SMALL}", "val.txt")
    assert not (here / "runs").exists()


def test_weights_of_another_network_are_named(capsys, home, here):
    torch.save({"conv.weight": torch.zeros(3)}, here / "other.pth")
    refused(capsys, f"run --data {home}/scenes {SMALL} --weights other.pth", "other.pth", "missing")
    (here / "text.pth").write_text("no weights")
    refused(capsys, f"run --data {home}/scenes {SMALL} --weights text.pth", "text.pth")
    assert not (here / "runs").exists()


def damage_size(root, name):
    Image.new("L", (20, 20), 1).save(root / "SegmentationClass" / f"{name}.png")


def damage_value(root, name):
    path = root / "SegmentationClass" / f"{name}.png"
    mask = np.array(Image.open(path))
    mask[:3] = 77
    Image.fromarray(mask).save(path)


def damage_image(root, name):
    path = root / "JPEGImages" / f"{name}.jpg"
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
    "damage, said", [(damage_size, "20x20"), (damage_value, "77"), (damage_image, "truncated")]
)
def test_a_damaged_file_is_named(capsys, home, here, damage, said):
    root = shutil.copytree(home / "scenes", here / "scenes")
    name = (root / "ImageSets/Segmentation/train.txt").read_text().split()[0]
    damage(root, name)
    refused(capsys, f"run --data scenes {SMALL}", name, said)
    assert not (here / "runs").exists()


def test_a_class_with_too_few_images_is_named(capsys, here):
    root = write_folder(here / "scenes", classes=4)
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    for name in names:  # class 2 stays in the first image that has it
        path = root / "SegmentationClass" / f"{name}.png"
        mask = np.array(Image.open(path))
        if (mask == 2).any() and not damage_done(names, name, root):
            mask[mask == 2] = 0
            Image.fromarray(mask).save(path)
    refused(
        capsys,
        f"run --data scenes {SMALL} --shots 1 --folds 1",
        "training split",
        samples("train").class_names[1],
        "1 image ",
    )
    assert not (here / "runs").exists()


def damage_done(names, name, root):
    "Whether `name` is the first image with enough of class 2."
    return name == next(
        n
        for n in names
        if (np.array(Image.open(root / "SegmentationClass" / f"{n}.png")) == 2).sum() >= MIN_PIXELS
    )


def test_a_side_that_does_not_fit_is_rounded_and_said(capsys, home, here):
    assert (
        main(f"train --data {home}/scenes {SMALL} --side 60 --folds 0 --iterations 1".split()) == 0
    )
    assert "side 60 is not of the form 8n+1; 57 is used" in capsys.readouterr().err
    assert json.loads((here / "runs/scenes/config.json").read_text())["data"]["side"] == 57


def test_a_loss_that_is_not_finite_stops_the_run(capsys, home, here):
    refused(
        capsys,
        f"run --data {home}/scenes {SMALL} --lr 1e30 --iterations 60",
        "step ",
        "learning rate",
    )
    assert not list((here / "runs").rglob("results.csv")) and not list(
        (here / "runs").rglob("PFENet*.pt")
    )


def test_debug_shows_the_traceback(monkeypatch, here):
    monkeypatch.setenv("CELP_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["run", "--data", "nowhere", "--backbone", "tiny"])


# --- the job


def test_a_run_leaves_everything(home):
    run = home / "runs/scenes"
    results = pd.read_csv(run / "results.csv", dtype={"weights": str})
    assert set(zip(results.fold, results.method, results.shots)) >= {
        (f, m, k) for f in (0, 1) for m in ("PFENet", "PFENet+CE", "all foreground") for k in (1, 2)
    }
    assert list(results.columns) == [
        "data",
        "backbone",
        "fold",
        "method",
        "shots",
        "miou",
        "fb_iou",
        "confusion",
        "episodes",
        "iterations",
        "seed",
        "episode_seed",
        "selection",
        "commit",
        "benchmark",
        "trained_on",
        "weights",
        "precision",
        "rules",
        "seconds",
    ]
    assert results.benchmark.isna().all(), "a folder of one's own is none"
    assert (
        (results.data == "scenes").all()
        and (results.iterations == 2).all()
        and results.miou.between(0, 100).all()
        and (results.weights == backbone_fingerprint(load_backbone("tiny"))).all()
        and (results.precision == read_config(run).runtime.precision).all()
    )
    table = squeezed((run / "table.md").read_text())
    assert "`scenes`" in table and "not PASCAL-5i" in table and "| PFENet+CE | 2 |" in table
    mean = results[(results.method == "all foreground") & (results.shots == 1)].miou.mean()
    assert re.search(rf"\| all foreground \| 1 \|.*\| {mean:.1f} \|", table)
    assert Image.open(run / "predictions.png").size[0] > 500
    for fold in (0, 1):
        files = {p.name for p in (run / f"fold{fold}").iterdir()}
        assert files == {
            "PFENet.pt",
            "PFENet+CE.pt",
            "CyCTR.pt",
            "CyCTR+CE.pt",
            "last.pt",
            "episodes.csv",
            "rows.csv",
            "losses.csv",
            "losses.png",
        }
        assert len(pd.read_csv(run / f"fold{fold}/losses.csv")) == 4 * 2
        lists = pd.read_csv(run / f"fold{fold}/episodes.csv")
        assert len(lists) == 2 * 3 and set(lists.class_id) == (
            {1, 2, 3} if fold == 0 else {4, 5, 6}
        )
    assert json.loads((run / "config.json").read_text())["data"]["folder"] == str(home / "scenes")


def test_a_run_folder_that_exists_is_refused(capsys, home, monkeypatch):
    monkeypatch.chdir(home)
    before = (home / "runs/scenes/results.csv").read_bytes()
    refused(capsys, f"run --data scenes {SMALL}", "runs/scenes", "--resume")
    refused(capsys, f"run --data scenes {SMALL} --seed 7 --resume", "seed", "0", "7")
    assert (home / "runs/scenes/results.csv").read_bytes() == before


def test_resuming_a_finished_run_does_nothing_and_a_lost_fold_comes_back_the_same(
    home, monkeypatch
):
    monkeypatch.chdir(home)
    run, again = home / "runs/scenes", f"run --data scenes {SMALL} --resume".split()
    stamp = lambda: {p: p.stat().st_mtime_ns for p in run.rglob("*.*") if p.name != "config.json"}
    before, results = stamp(), pd.read_csv(run / "results.csv")
    assert main(again) == 0
    assert stamp() == before
    shutil.copytree(run, home / "runs/half")
    shutil.rmtree(home / "runs/half/fold1")
    results[results.fold == 0].to_csv(home / "runs/half/results.csv", index=False)
    assert main([*again, "--name", "half"]) == 0
    scores = ["fold", "method", "shots", "miou", "fb_iou", "confusion"]
    pd.testing.assert_frame_equal(
        pd.read_csv(home / "runs/half/results.csv")[scores], results[scores], rtol=1e-6
    )


def test_training_and_evaluating_apart_gives_the_same_scores(home, here, capsys):
    options = f"--data {home}/scenes {SMALL}"
    assert main(f"train {options}".split()) == 0
    assert not (here / "runs/scenes/results.csv").exists()
    assert main(["evaluate", "runs/scenes"]) == 0
    scores = ["fold", "method", "shots", "miou", "fb_iou", "confusion"]
    one, other = (pd.read_csv(f / "runs/scenes/results.csv")[scores] for f in (home, here))
    pd.testing.assert_frame_equal(one, other, rtol=1e-6)


def test_an_episode_list_is_replayed_and_one_of_another_fold_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    results = pd.read_csv("runs/scenes/results.csv")
    line = "evaluate runs/scenes --fold 1 --episodes runs/scenes/fold1/episodes.csv"
    assert main(line.split()) == 0
    out = squeezed(capsys.readouterr().out)
    for r in results[
        (results.fold == 1) & results.method.isin(["PFENet", "PFENet+CE"])
    ].itertuples():
        assert f"| {r.method} | {r.shots} | {r.miou:.1f} |" in out
    refused(
        capsys,
        "evaluate runs/scenes --fold 0 --episodes runs/scenes/fold1/episodes.csv",
        "fold1/episodes.csv",
        "trains on",
    )
    refused(capsys, "evaluate runs/scenes --episodes gone.csv", "gone.csv")
    refused(capsys, "evaluate runs/gone", "runs/gone")


@pytest.fixture(scope="module")
def official(home):
    "A file with the names of the authors' PFENet on a deep-stem ResNet-50, and random numbers."
    torch.manual_seed(0)
    state = {
        published_name(name, turned(PFENET_NAMES)): value
        for name, value in FewShotModel(1536, PFENet(8, PASCAL_BINS), 8).state_dict().items()
    }
    state |= {
        published_name(name, turned(RESNET_NAMES)): value
        for name, value in BACKBONES["resnet50_deep"][0]().state_dict().items()
        if not name.startswith("fc.")
    }
    torch.save({"state_dict": state}, home / "official.pth")
    return home / "official.pth"


def test_a_published_checkpoint_is_scored(home, official, monkeypatch, capsys):
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    assert (
        main(
            f"evaluate --published {official} --data scenes --fold 1 --shots 1 2 --pairs 1 "
            "--side 65".split()
        )
        == 0
    )
    table = squeezed(capsys.readouterr().out)
    assert "| method | shots | fold 1 |" in table
    backbone, model = load_published(read_weights(official))
    val, test = voc_layout(home / "scenes", "val"), [3, 4]  # of six classes and four folds
    episodes = pairs_per_class(val.pixels, test, 1, 2, 0)
    expected = scores(
        evaluate(
            {"official": model},
            feature_bank(backbone, val, 65),
            val,
            episodes,
            [1, 2, 5, 6],
            (1, 2),
        )
    )
    assert expected.miou.between(1, 99).all()
    cell = lambda x: "–" if np.isnan(x) else f"{x:.1f}"
    assert [row for row in table.splitlines() if "official" in row] == [
        f"| official | {r.shots} | {r.miou:.1f} | {r.miou:.1f} | {r.fb_iou:.1f} "
        f"| {cell(r.confusion)} |"
        for r in expected.itertuples()
    ]
    assert sorted(home.rglob("*")) == before  # nothing is written


def test_a_published_checkpoint_is_asked_what_the_options_say(home, official, monkeypatch):
    monkeypatch.chdir(home)
    asked = {}
    def spied(models, memory, val, episodes, *rest):
        asked.update(void_seen=memory.void_seen, queries=episodes.query.tolist())
        return evaluate(models, memory, val, episodes, *rest)
    monkeypatch.setattr("celp_nb.repro.published.evaluate", spied)
    assert (
        main(
            f"evaluate --published {official} --data scenes --fold 1 --shots 1 --pairs 2 "
            "--side 65 --protocol per_image --void padding".split()
        )
        == 0
    )
    turns = images_in_turn(voc_layout(home / "scenes", "val").pixels, [3, 4], 4, 1, 0)
    assert asked == {"void_seen": True, "queries": turns.query.tolist()}


def test_unreadable_images_may_be_left_out_of_a_published_test(
    home, here, official, monkeypatch, capsys
):
    shutil.copytree(home / "scenes", here / "torn")
    val = voc_layout(here / "torn", "val")
    broken = next(p for p, pixels in zip(val.image_paths, val.pixels) if pixels.any())
    broken.write_bytes(broken.read_bytes()[:200])
    monkeypatch.chdir(here)
    line = f"evaluate --published {official} --data torn --fold 1 --shots 1 --pairs 1 --side 65"
    refused(capsys, line, broken.name, "--skip-unreadable")
    assert main([*line.split(), "--skip-unreadable"]) == 0
    out, err = capsys.readouterr()
    assert "fold 1" in out and "unreadable" in err
    monkeypatch.chdir(home)
    refused(capsys, "evaluate runs/scenes --skip-unreadable", "--skip-unreadable", "--published")


def test_what_is_scored_must_be_said_and_be_there(home, official, monkeypatch, capsys):
    monkeypatch.chdir(home)
    refused(capsys, "evaluate", "--published FILE")
    refused(capsys, f"evaluate runs/scenes --published {official}", "not both")
    refused(capsys, "evaluate runs/scenes --shots 5", "--shots", "--published")
    refused(
        capsys,
        "evaluate runs/scenes --fold 1",
        "fold 1",
        "--episodes runs/scenes/fold1/episodes.csv",
    )
    refused(
        capsys,
        f"evaluate --published {official} --episodes runs/scenes/fold0/episodes.csv",
        "--pairs",
    )
    refused(capsys, "evaluate --published gone.pth", "there is no checkpoint gone.pth")
    refused(capsys, f"evaluate --published {official} --data gone", "gone")
    refused(capsys, f"evaluate --published {official} --data scenes --shots 500", "500-shot")
    refused(capsys, "evaluate --published runs/scenes/fold0/PFENet.pt", "no published")


def test_extra_folders_add_training_classes_and_leave_out_rare_ones(home, here, capsys):
    root = write_folder(here / "more", classes=8, each=2)
    names = root / "classes.txt"
    names.write_text("\n".join([*names.read_text().split()[:6], "extra", "lonely"]))
    for split in ("train", "val"):
        for name in (
            (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        ):  # nothing of "lonely" is left
            path = root / "SegmentationClass" / f"{name}.png"
            mask = np.array(Image.open(path))
            mask[mask == 8] = 0
            Image.fromarray(mask).save(path)
    assert main(f"train --data {home}/scenes --extra more {SMALL} --folds 0".split()) == 0
    assert "lonely" in capsys.readouterr().err
    saved = torch.load("runs/scenes/fold0/PFENet.pt", weights_only=True)
    assert saved["train_classes"] == [*samples("train").class_names[3:6], "extra"]


# --- presets, data and the paper's tables


def test_presets_are_listed_with_the_papers_scores(capsys):
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if "| pascal-cyctr-ce-resnet101 " in x)
    assert [x.strip() for x in line.split("|")[1:-1]] == [
        "pascal-cyctr-ce-resnet101",
        "PASCAL-5i",
        "CyCTR",
        "yes",
        "ResNet-101",
        "200",
        "297,650",
        "4",
        "0.025",
        "473",
        "literature",
        "65.8",
        "67.3",
    ]
    assert "ten times the paper's" in out and "resnet50_deep" in out and "last" in out


@pytest.mark.parametrize(
    "form", ["--preset pascal-pfnet-resnet50", "--preset=pascal-pfnet-resnet50"]
)
def test_an_unknown_preset_is_named_with_the_nearest(capsys, here, form):
    refused(
        capsys, f"run {form} --data nowhere", "'pascal-pfnet-resnet50'", "pascal-pfenet-resnet50"
    )
    assert not list(here.iterdir())


def given(monkeypatch, line):
    "The settings, by flat names, and the folder with which a command line starts a run."
    from celp_nb.repro import runs as repro_runs

    started = []
    monkeypatch.setattr(
        repro_runs,
        "train_run",
        lambda config, folder, resume, at_a_time: started.append(
            (flat_config(config), str(folder))
        ),
    )
    assert main(line.split()) == 0
    return started[0]


def values(config, *names):
    return tuple(config[name] for name in names)


def test_options_replace_what_a_preset_says(monkeypatch, capsys, here):
    config, folder = given(monkeypatch, "train --preset pascal-cyctr-ce-resnet50 --data D")
    assert values(config, "epochs", "iterations", "batch", "lr") == (200, None, 4, 0.025)
    assert values(config, "methods", "folds") == (("CyCTR+CE",), None)
    assert folder == "runs/pascal-cyctr-ce-resnet50"
    config, folder = given(
        monkeypatch,
        "train --data D --iterations 300 --preset=coco-pfenet-ce-resnet50 --lr 0.1 --name mine",
    )
    assert values(config, "epochs", "iterations", "batch", "lr") == (None, 300, 8, 0.1)
    assert (config["side"], folder) == (641, "runs/mine")
    config, _ = given(
        monkeypatch, "train --data D --iterations=300 --preset coco-pfenet-ce-resnet50"
    )
    assert config["epochs"] is None
    config, folder = given(monkeypatch, "train --data D --epochs 3")
    assert values(config, "epochs", "iterations", "preset") == (3, None, None)
    assert folder == "runs/D"
    config, _ = given(monkeypatch, "train --preset pascal-pfenet-vgg16 --data D --epochs 3")
    assert config["epochs"] == 3


def test_folds_are_asked_for_one_by_one_or_all(monkeypatch, capsys, here):
    for options, folds in [
        ("--fold 2", (2,)),
        ("--folds 0 3", (0, 3)),
        ("--fold 0 3", (0, 3)),
        ("--all-folds", None),
        ("", None),
    ]:
        assert given(monkeypatch, f"train --data D {options}")[0]["folds"] == folds
    refused(capsys, "run --data nowhere --fold 1 --all-folds", "--all-folds", "--fold 1")
    refused(capsys, "run --data nowhere --side-by-side 0", "--side-by-side is 0", "1 or more")


def test_missing_coco_files_are_named_with_their_address(capsys, here):
    pytest.importorskip("pycocotools")
    refused(
        capsys,
        "data coco --root coco",
        here / "coco",
        "train2014",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    )
    assert not list(here.iterdir())


def test_data_that_is_whole_says_what_to_run_next(monkeypatch, capsys, here):
    from celp_nb.data import benchmarks as data_benchmarks

    asked = []
    monkeypatch.setattr(
        data_benchmarks,
        "prepare_pascal",
        lambda root: (asked.append(str(root)), (samples("train"), samples("val")))[1],
    )
    assert main(["data", "pascal", "--root", "D"]) == 0
    out = capsys.readouterr().out
    assert (
        asked == ["D"]
        and "600 images, 20 of 20 classes" in out
        and "Next: celp run --preset pascal-pfenet-ce-resnet50 --data D --fold 0" in out
    )


def test_pascals_test_says_what_was_trained_on(home, here, capsys, monkeypatch):
    root = write_folder(here / "mini", classes=20, each=2)
    (root / "classes.txt").write_text("\n".join(PASCAL_CLASSES))
    ids = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    (here / "most.txt").write_text("\n".join(ids[1:]))
    names, pixels = id_lists.set_digests(voc_layout(root, "val"))
    monkeypatch.setattr(id_lists, "PASCAL_TEST_NAMES", names)
    monkeypatch.setattr(id_lists, "PASCAL_TEST_PIXELS", pixels)
    small = "--backbone tiny --side 65 --crop 65 --reference 161 --width 8 --iterations 2 --pairs 2"
    line = f"run --data mini --train-list most.txt --fold 1 --shots 1 --methods PFENet {small}"
    assert main(line.split()) == 0
    said = f"PASCAL-5i test, trained on {len(ids) - 1} images."
    results = pd.read_csv(here / "runs/mini/results.csv")
    assert set(results.benchmark) == {"pascal-5i"}
    assert set(results.trained_on) == {f"{len(ids) - 1} images"}
    assert said in (here / "runs/mini/table.md").read_text()
    capsys.readouterr()
    assert main(["table"]) == 0
    out = capsys.readouterr().out
    assert said in out and "not comparable" not in out
    refused(capsys, "run --data mini --train-list none.txt", "none.txt: no such", "pascal-part")


def test_a_run_from_a_preset_is_set_beside_its_row(home, here, capsys):
    root = write_folder(here / "mini", classes=20, each=2)
    (root / "classes.txt").write_text("\n".join(PASCAL_CLASSES))
    small = (
        "--backbone tiny --side 65 --crop 65 --reference 161 --width 8 --iterations 2 --pairs 2 "
        "--shots 1"
    )
    assert main(f"run --preset pascal-pfenet-ce-resnet50 --data mini --fold 1 {small}".split()) == 0
    run = here / "runs/pascal-pfenet-ce-resnet50"
    results = pd.read_csv(run / "results.csv")
    assert (
        set(results.fold) == {1}
        and set(results.method) == {"PFENet+CE"}
        and set(results.data) == {"mini"}
    )
    assert json.loads((run / "config.json").read_text())["preset"] == "pascal-pfenet-ce-resnet50"
    capsys.readouterr()
    for line in ("table", f"table {run}"):
        assert main(line.split()) == 0
        out = capsys.readouterr().out
        assert (
            "Warning: `mini` is not PASCAL-5i" in out
            and "fold 1 alone" in out
            and "no row for PFENet+CE on tiny" in out
        )
        assert (
            "backbone tiny" in out
            and "iterations 2" in out
            and "2 steps" in out
            and f"{results.miou[0]:.1f}" in out
        )
    results.assign(backbone="resnet50").to_csv(here / "results.csv", index=False)
    assert main(["table", "results.csv"]) == 0
    assert "70.6" in capsys.readouterr().out, "fold 1 of Ours+PFENet in Table 1"


def test_a_run_that_is_given_twice_is_shown_once(home, here, capsys):
    run = (home / "runs/scenes").as_posix()
    assert main(["table", run]) == 0
    once = capsys.readouterr().out
    assert main(["table", run, run]) == 0
    assert capsys.readouterr().out == once


@pytest.mark.parametrize("option", ["--data x", "--seeds 1", "--fold 0", "--episode-seed 0"])
def test_options_of_a_table_that_is_run_are_refused_without_its_scale(home, capsys, option):
    refused(capsys, f"table {home / 'runs/scenes'} {option}", "goes with --scale, which runs")


def test_a_table_of_nothing_is_refused(home, here, capsys):
    refused(capsys, "table", "runs/*/results.csv")
    refused(capsys, "table runs/gone", "runs/gone")


# --- predict


@pytest.fixture
def photo(home, here):
    "A support, its mask (0 and 1) and a query, cut so that it is no square, in the working folder."
    data = samples("val")
    i, j = np.flatnonzero(data.pixels[:, 0] >= MIN_PIXELS)[:2]
    shutil.copy(data.image_paths[i], here / "support.jpg")
    Image.fromarray((data.read_mask(i) == 1).astype(np.uint8)).save(here / "mask.png")
    Image.open(data.image_paths[j]).crop((0, 0, 161, 97)).save(here / "query.png")
    return here


def line(
    home, mask="mask.png", support="support.jpg", query="query.png", more="", method="PFENet+CE"
):
    return (
        f"predict {home}/runs/scenes/fold0/{method}.pt --support {support} --mask {mask} "
        f"--query {query} --out out/answer.png {more}"
    )


def test_predict_writes_a_mask_and_an_overlay(home, photo, capsys):
    assert main(line(home).split()) == 0
    mask, drawn = (
        np.array(Image.open("out/answer.png")),
        np.array(Image.open("out/answer_overlay.png")),
    )
    assert mask.shape == (97, 161) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    assert drawn.shape == (97, 161, 3)
    unchanged = (drawn == np.array(Image.open("query.png"))).all(2)
    assert unchanged[mask == 0].all()
    first = mask.copy()
    black_white = np.array(Image.open("mask.png")) * 255  # the same, as a drawing program saves it
    Image.fromarray(black_white).save("mask.png")
    assert main(line(home).split()) == 0
    assert np.array_equal(np.array(Image.open("out/answer.png")), first)


def test_predict_knows_the_decoder_of_its_file(home, photo):
    assert main(line(home, method="CyCTR+CE").split()) == 0
    assert np.array(Image.open("out/answer.png")).shape == (97, 161) and Image.open(
        "out/answer_overlay.png"
    ).size == (161, 97)


def test_void_and_other_objects_in_a_support_mask_are_told_apart(photo):
    from celp_nb.engine.segmenter import object_mask

    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save("m.png")
    assert object_mask("m.png").tolist() == [[0, 1, 255]]
    Image.fromarray(np.array([[0, 0, 255]], np.uint8)).save("m.png")
    assert object_mask("m.png").tolist() == [[0, 0, 1]]
    Image.fromarray(np.array([[4, 9, 255]], np.uint8)).save("m.png")
    assert object_mask("m.png", 9).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match="4, 9"):
        object_mask("m.png")


def test_predict_names_what_is_wrong(home, photo, capsys):
    Image.new("L", (161, 161)).save("empty.png")
    Image.new("L", (50, 40), 1).save("small.png")
    Image.new("RGB", (161, 161)).save("colour.png")
    Image.new("RGB", (5, 5)).save("dot.png")
    (photo / "broken.jpg").write_bytes((photo / "support.jpg").read_bytes()[:700])
    torch.save({"model": 1}, "strange.pt")
    refused(capsys, line(home, mask="empty.png"), "empty.png", "empty")
    refused(capsys, line(home, mask="small.png"), "small.png", "40x50", "161x161")
    refused(capsys, line(home, mask="colour.png"), "colour.png")
    refused(capsys, line(home, mask="gone.png"), "gone.png")
    refused(capsys, line(home, more="--value 3"), "mask.png", "3")
    refused(capsys, line(home, support="broken.jpg"), "broken.jpg")
    refused(capsys, line(home, query="dot.png"), "dot.png", "5x5")
    refused(capsys, line(home, query="gone.png"), "gone.png")
    refused(capsys, line(home).replace("answer.png", "answer.jpg"), "answer.jpg", ".png")
    refused(
        capsys,
        line(home).replace(f"{home}/runs/scenes/fold0/PFENet+CE.pt", "strange.pt"),
        "strange.pt",
    )
    refused(capsys, line(home).replace("PFENet+CE.pt", "last.pt"), "last.pt", "PFENet+CE.pt")
    refused(capsys, line(home).replace("PFENet+CE.pt", "gone.pt"), "gone.pt")
    assert not (photo / "out").exists()


@pytest.mark.parametrize(
    "line, said",
    [
        (
            "table 9 --scale samples",
            "give one of 1, 2, 3, 4, 5, 6, 7, regime, differences, beyond, not 9",
        ),
        ("table --scale samples", "beyond, not nothing"),
        ("table runs/x --scale samples", "beyond, not runs/x"),
        ("table 1 --scale full", "scale full needs a folder with its images; give --data DIR"),
    ],
)
def test_a_table_that_cannot_be_run_is_refused_in_a_sentence(capsys, here, line, said):
    assert main(line.split()) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (here / "runs").exists()


def test_a_table_is_run_from_the_command_line(capsys, here, monkeypatch):
    from celp_nb.repro import table_texts as repro_tables
    from celp_nb.repro.tables import TABLES

    asked = []
    monkeypatch.setattr(
        repro_tables,
        "run",
        lambda config, folder, resume: asked.append(
            (flat_config(config), folder.as_posix(), resume)
        ),
    )
    monkeypatch.setattr(repro_tables, "table_text", lambda name, folders: f"table {name}")
    line = "table 5 --scale samples --seeds 3 --fold 1 2 --iterations 9 --episode-seed 2"
    assert main(line.split()) == 0
    ((config, folder, resume),) = asked
    names = "methods", "seed", "episode_seed", "folds", "iterations", "epochs"
    assert values(config, *names) == (
        tuple(row.method for row in TABLES["5"].rows.values()),
        3,
        2,
        (1, 2),
        9,
        None,
    )
    assert (folder, resume) == ("runs/samples-table-5-seed-3", True)
    assert capsys.readouterr().out == "table 5\n"
