"""Callbacks, folds of one's own, and what is printed where it cannot all be printed."""
import io
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastprogress.core
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from folders import TINY

from celp_nb.app.cli import main
from celp_nb.bundled.scenes import samples
from celp_nb.engine.checkpoints import load_checkpoint
from celp_nb.engine.devices import is_on_cpu
from celp_nb.engine.training import accelerator_for
from celp_nb.repro import report, runs
from celp_nb.repro.callbacks import logging_callback
from celp_nb.repro.comparison import changed_from_preset, read_runs
from celp_nb.repro.config import change_config, make_config, read_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.own_folds import read_class_split, split_numbers
from celp_nb.repro.report import curve_styles, loss_figure, predictions_figure, save_figure
from celp_nb.repro.setup import prepare

ROOT = Path(__file__).resolve().parent.parent

# --- callbacks


def test_callbacks_are_told_every_loss_and_score(tmp_path):
    told, other = [], []
    def keep(fold, step, values): told.append((fold, step, values))
    def spoil(fold, step, values): values.clear()
    config = change_config(TINY, select="test", checks=2, folds=(0, 1), shots=(1, 2))
    also = lambda fold, step, values: other.append((fold, step, values))
    results = runs.run(config, tmp_path / "run", callbacks=[spoil, keep, also])
    assert told == other
    for fold in (0, 1):
        losses = pd.read_csv(tmp_path / f"run/fold{fold}/losses.csv")
        steps = [(s, v) for f, s, v in told if f == fold and "loss/main/PFENet+CE" in v]
        assert [s for s, _ in steps] == [1, 2, 3, 4]
        for name in ("main", "auxiliary", "contrast", "latent"):
            values = [v[f"loss/{name}/PFENet+CE"] for _, v in steps]
            assert values == pytest.approx(losses[name].tolist())
        checks = pd.read_csv(tmp_path / f"run/fold{fold}/checks.csv")
        said = {s: v["score/check/PFENet+CE"] for f, s, v in told if f == fold and len(v) == 1}
        assert said == pytest.approx(dict(zip(checks.step, checks["PFENet+CE"])))
        *_, (_, step, scores) = (t for t in told if t[0] == fold)
        assert step == 4
        for r in results[results.fold == fold].itertuples():
            assert scores[f"score/miou/PFENet+CE/{r.shots}-shot"] == pytest.approx(r.miou)


def test_a_callback_that_fails_is_named_and_the_last_checkpoint_goes_on(tmp_path):
    def stop(fold, step, values):
        if step == 3: raise KeyError("gone")
    config = change_config(TINY, iterations=4)
    with pytest.raises(RuntimeError, match="the callback .*stop failed in fold 0 after step 3"):
        runs.train_run(config, tmp_path / "run", callbacks=[stop])
    assert not (tmp_path / "run/lock.json").exists()
    runs.train_run(config, tmp_path / "run", resume=True)
    runs.train_run(config, tmp_path / "alone")
    a, b = (load_checkpoint(tmp_path / f / "fold0/PFENet+CE.pt")["model"] for f in ("run", "alone"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_no_callback_is_refused_before_any_work(tmp_path):
    for wrong in ("print", lambda values: None, partial(print, sep="", bad=lambda: 0), None):
        if isinstance(wrong, partial): continue
        for start in (runs.run, runs.train_run):
            with pytest.raises(ValueError, match=r"a callback is a function of \(fold, step"):
                start(TINY, tmp_path / "run", callbacks=[wrong])
    assert not (tmp_path / "run").exists()


def test_the_logger_says_every_nth_loss_and_all_scores(caplog):
    log = logging_callback(2, logging.getLogger("of a test"))
    with caplog.at_level(logging.INFO):
        for step in range(1, 5): log(1, step, {"loss/main/PFENet": 0.5})
        log(1, 3, {"score/check/PFENet": 12.0})
    assert [r.getMessage() for r in caplog.records] == [
        "fold 1, step 2: loss/main/PFENet 0.5",
        "fold 1, step 4: loss/main/PFENet 0.5",
        "fold 1, step 3: score/check/PFENet 12",
    ]


# --- folds of one's own


def test_a_run_on_folds_of_ones_own(tmp_path):
    names = samples("val").class_names
    path = tmp_path / "split.json"
    path.write_text(json.dumps([[names[4], names[0]], [names[9]]]), encoding="utf-8-sig")
    config = change_config(TINY, folds=None, split=str(path))
    runs.run(config, tmp_path / "run")
    for fold, test in ((0, [1, 5]), (1, [10])):
        episodes = pd.read_csv(tmp_path / f"run/fold{fold}/episodes.csv")
        assert sorted(set(episodes.class_id)) == test
        saved = load_checkpoint(tmp_path / f"run/fold{fold}/PFENet+CE.pt")
        assert saved["train_classes"] == [n for c, n in enumerate(names) if c + 1 not in test]
    text = path.read_text(encoding="utf-8-sig")
    path.unlink()  # the run holds the lists themselves
    assert read_class_split(read_config(tmp_path / "run").data.split) == json.loads(text)
    before = pd.read_csv(tmp_path / "run/results.csv").miou.tolist()
    runs.evaluate_run(tmp_path / "run")
    assert pd.read_csv(tmp_path / "run/results.csv").miou.tolist() == pytest.approx(before)
    assert set(read_runs([tmp_path / "run"]).fold) == {0, 1}
    path.write_text(text)
    runs.run(config, tmp_path / "run", resume=True)
    path.write_text(json.dumps([[names[4]], [names[9]]]))
    with pytest.raises(ValueError, match="split = .* then and .* now"):
        runs.run(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "text, said",
    [
        ("star, moon", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ('{"star": 0}', "holds no list of folds"),
        ("[]", "holds no list of folds"),
        ('["star", "moon"]', "fold 0 is no list of class names"),
        ("[[1, 2]]", "fold 0 is no list of class names"),
        ('[["star"], []]', "fold 1 is empty"),
        ('[["star"], ["moon", "star"]]', "'star' is in fold 0 and in fold 1"),
        ('[["star", "star"]]', "'star' is twice in fold 0"),
        ('[["Staar"]]', "names 'Staar', which is no class of the data; the nearest is 'star'"),
    ],
)
def test_a_mistake_in_a_split_is_one_sentence(capsys, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    Path("split.json").write_text(text)
    assert main(["run", "--split", "split.json", "--iterations", "1"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("celp: ") and err.count("\n") == 1 and said in err and len(err) < 400
    assert not Path("runs").exists()


def test_a_split_and_a_number_of_folds_exclude_each_other(tmp_path):
    path = tmp_path / "split.json"
    path.write_text('[["star"], ["moon"]]')
    for n_folds in (2, 3, 4):
        with pytest.raises(ValueError, match=rf"n_folds says {n_folds}; give one"):
            resolve(make_config(split=str(path), n_folds=n_folds))
    config = resolve(make_config(split=str(path)))
    assert config.data.n_folds == 2 and resolve(config) == config
    with pytest.raises(FileNotFoundError, match="no file .*gone.json"):
        resolve(make_config(split="gone.json"))
    with pytest.raises(ValueError, match="fold 2"):
        resolve(make_config(split=str(path), folds=(2,)))
    assert set(changed_from_preset(config)) == {"n_folds", "split"}


def test_a_model_of_all_classes_is_trained_and_never_tested(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = change_config(TINY, folds=None, split="none")
    chosen = change_config(config, select="test")
    for work in (lambda: runs.run(config, "a"), lambda: resolve(chosen)):
        with pytest.raises(ValueError, match="every class is trained on and none is left to test"):
            work()
    assert not Path("a").exists()
    runs.train_run(config, "a")
    assert read_config("a").data.split == "none" and resolve(read_config("a")).data.folds == (0,)
    runs.train_run(config, "a", resume=True)
    saved, data = load_checkpoint("a/fold0/PFENet+CE.pt"), samples("train")
    assert saved["train_classes"] == list(data.class_names) and saved["held_classes"] == []
    assert (saved["steps"], saved["batch"], saved["contrast"]) == (4, 4, 0.1)
    assert saved["delta"] == 0.65 and saved["commit"]
    assert 4 <= len(saved["train_images"]) <= 32 and {*saved["train_images"]} <= {*data.ids}
    for work in (lambda: runs.evaluate_run("a"), lambda: runs.replay("a", 0, "list.csv")):
        with pytest.raises(ValueError, match="celp evaluate RUN --data DIR"): work()
    assert main(["evaluate", "a", "--data", "samples"]) == 1
    assert "samples has no class to test that fold 0 was not trained" in capsys.readouterr().err
    assert sorted(p.name for p in Path("a").iterdir()) == ["config.json", "data.json", "fold0"]


@pytest.mark.parametrize("skip_rare", [False, True])
def test_training_on_all_classes_asks_nothing_of_test_images(skip_rare, recwarn):
    config = change_config(TINY, folds=None, split="none", shots=(200,), skip_rare=skip_rare)
    (fold,) = prepare(resolve(config)).folds  # no class has 200 supports
    assert fold.train_classes == list(range(1, 21)) and not fold.test_classes
    assert {*fold.training.cls.tolist()} <= {*fold.train_classes} and not len(fold.evaluation.cls)
    assert not recwarn.list


def test_a_split_is_read_in_any_unicode_encoding(tmp_path):
    for code in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / code).write_text('[["Straße"]]', encoding=code)
        assert split_numbers(read_class_split(str(tmp_path / code)), ["x", "Straße"]) == [[2]]


# --- devices


def test_auto_is_never_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerator_for("auto").device.type == "cpu"
    AcceleratorState._reset_state(reset_partial_state=True)
    assert resolve(make_config()).runtime.device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not is_on_cpu("auto") and not is_on_cpu("cuda") and is_on_cpu("cpu")
    assert resolve(make_config(precision="float32")).runtime.device == "cuda"


# --- output


def celp(*words, stdout=subprocess.PIPE, **environment):
    "The command in a process of its own."
    return subprocess.run(
        [sys.executable, "-m", "celp_nb", *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **environment},
        timeout=200,
    )


@pytest.mark.parametrize("code", ["ascii", "cp1252"])
def test_a_code_page_does_not_stop_the_output(code):
    done = celp("presets", PYTHONIOENCODING=code)
    assert not done.returncode and not done.stderr
    text = done.stdout.decode(code)
    assert "pascal-pfenet-resnet50" in text and "?" in text
    done = celp("rün ≥", PYTHONIOENCODING=code)
    assert done.returncode == 1 and done.stderr.startswith(b"celp: there is no command")
    done = celp("run", "--help", PYTHONIOENCODING=code)
    assert not done.returncode and b"--iterations" in done.stdout


def test_a_run_in_the_c_locale_ends_well_and_writes_utf_8(tmp_path):
    names = samples("train").class_names
    root = tmp_path / "Straße ≥ 5 $x_{"
    for part in ("ImageSets/Segmentation",): (root / part).mkdir(parents=True)
    source = Path(samples("train").image_paths[0]).parents[1]
    for part in ("JPEGImages", "SegmentationClass"): (root / part).symlink_to(source / part)
    for split in ("train", "val"):
        ids = samples(split).ids[:120]
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(ids))
    odd = ["Größe ≥ $5_{", *names[1:]]
    (root / "classes.txt").write_text("\n".join(odd), encoding="utf-8")
    line = (
        "--backbone tiny --side 65 --crop 65 --reference 161 --width 8 --iterations 1 --pairs 1 "
        "--shots 1 --methods PFENet --device cpu --fold 0"
    )
    where = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "celp_nb", "run", "--data", str(root), *line.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "0", **where},
        capture_output=True,
        timeout=200,
    )
    assert not done.returncode, done.stderr
    run = next((tmp_path / "runs").iterdir())
    assert run.name == root.name
    for file in ("table.md", "results.csv"):
        assert root.name in (run / file).read_text(encoding="utf-8")
    assert odd[0] in (run / "fold0/episodes.csv").read_text(encoding="utf-8")
    assert (run / "predictions.png").is_file() and (run / "fold0/losses.png").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk: Linux")
def test_a_full_disk_under_stdout_is_said_and_stops_no_run(tmp_path, monkeypatch):
    with open("/dev/full", "wb") as full:
        done = celp("presets", stdout=full)
        assert done.returncode == 1
        assert done.stderr.startswith(b"celp: not all of the output could be written (No space")
        monkeypatch.chdir(tmp_path)
        line = (
            "run --iterations 1 --pairs 1 --shots 1 --fold 0 --methods PFENet --device cpu "
            "--crop 57 --side 97 --width 16"
        )
        done = celp(*line.split(), stdout=full)
    assert not done.returncode and b"Traceback" not in done.stderr
    assert (tmp_path / "runs/samples/results.csv").is_file()


def test_a_pipe_that_is_closed_is_no_mistake():
    reader, writer = os.pipe()
    os.close(reader)
    done = celp("presets", stdout=writer)
    os.close(writer)
    assert not done.returncode and not done.stderr


def test_dollars_in_names_are_dollars_in_figures(tmp_path):
    title = "5$ note $x_{, ≥"
    history = {"PFENet": [{"main": 1.0, "contrast": 0.0, "latent": 0.0}] * 3}
    save_figure(tmp_path / "a.png", loss_figure(history, title))
    rows = [{title: np.zeros((9, 9, 3), np.uint8)}]
    save_figure(tmp_path / "b.png", predictions_figure(rows, title))


def test_each_loss_curve_looks_different_and_a_method_keeps_its_colour():
    methods = [f"method {k}: small" for k in range(6)]
    names = [f"{m}: {term}" for term in ("query mask", "pseudo-mask") for m in methods]
    styles = [(style["color"], style["ls"]) for style in curve_styles(names)]
    assert len(set(styles)) == 12 and {line for _, line in styles[6:]} == {":"}
    assert [colour for colour, _ in styles[:6]] == [colour for colour, _ in styles[6:]]


def test_a_notebook_shows_the_last_picture_of_quick_steps(monkeypatch):
    shown = []
    monkeypatch.setattr(fastprogress.core, "IN_NOTEBOOK", True)
    monkeypatch.setattr(report, "live_figure", lambda: shown.append)
    tick, history = report.progress_display(1)("live", 40), {f"method {k}": [] for k in range(4)}
    for done in range(1, 41):
        for losses in history.values():
            losses.append({"main": done, "contrast": 0.5, "latent": 1.0})
        tick(done, "", history)
    (live,), file = shown, loss_figure(history, "file")
    looks = [[(x.get_label(), x.get_color(), x.get_linestyle(), len(x.get_xdata()))
              for x in figure.axes[0].lines] for figure in (live, file)]
    plt.close("all")
    assert looks[0] == looks[1] and len(looks[0]) == 8 and {look[3] for look in looks[0]} == {40}


@pytest.mark.parametrize("columns", [2, 6, 10, 14])
def test_titles_above_many_pictures_are_readable_and_keep_to_their_columns(columns):
    names = ["support: butterfly", "ground truth", "PFENet+CE\ncontrast=1"]
    names += [f"method {k}" for k in range(11)]
    fig = predictions_figure([dict.fromkeys(names[:columns], np.zeros((9, 9, 3), np.uint8))], "run")
    fig.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in fig.axes]
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
    for text in (*(ax.title for ax in fig.axes), fig._suptitle):
        at_700_pixels = text.get_fontsize() / 72 * min(100, 700 / fig.get_figwidth())
        assert at_700_pixels > 9
    plt.close(fig)


# --- the nearest


@pytest.mark.parametrize(
    "line, near",
    [
        ("rnu", "'run'"),
        ("run --iteration 3", "--iterations"),
        ("run --n_fold 3", "--n-folds"),
        ("evaluate runs/x --epsiodes=y", "--episodes"),
        ("predict --suport a", "--support"),
    ],
)
def test_an_unknown_command_or_option_suggests_the_nearest(capsys, line, near):
    try: status = main(line.split())
    except SystemExit as stop: status = stop.code
    err = capsys.readouterr().err
    assert status and err.startswith("celp: there is no") and err.count("\n") == 1
    assert f"the nearest is {near}" in err


def test_options_that_cannot_be_read_are_one_line(capsys):
    for line in ("run --iterations x", "run --optimiser sdg", "run --iterations"):
        with pytest.raises(SystemExit) as stop: main(line.split())
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("celp: ") and err.count("\n") == 1
        assert "--iterations" in err or "sdg" in err
        assert err.rstrip().endswith("see celp run --help.")


def test_output_that_is_redirected_in_the_process_is_left_alone():
    out = io.StringIO()
    before, sys.stdout = sys.stdout, out
    try: assert main(["--version"]) == 0 and sys.stdout is out
    finally: sys.stdout = before
    assert out.getvalue().strip()
