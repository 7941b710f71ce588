"""Runs: how long, which checkpoint, what is watched, what a step may be cut into."""
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from folders import TINY

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import MIN_PIXELS, pairs_per_class
from celp_nb.engine import training as engine_training
from celp_nb.engine.checkpoints import changed_settings, load_checkpoint
from celp_nb.repro import folds as repro_folds
from celp_nb.repro import report as repro_report
from celp_nb.repro import runs as repro_runs
from celp_nb.repro import setup as repro_setup
from celp_nb.repro.config import change_config, make_config, read_config, write_config
from celp_nb.repro.defaults import resolve, settings_of_run
from celp_nb.repro.fold_training import selection_words


def prepared(**settings):
    "A small run with other settings, prepared."
    return repro_setup.prepare(resolve(change_config(TINY, **settings)))


def test_epochs_are_passes_over_the_training_images_of_the_fold():
    fold = prepared(iterations=None, epochs=3).folds[0]
    pixels = samples("train").pixels[:, 5:]  # fold 0 tests classes 1 to 5
    images = int((pixels >= MIN_PIXELS).any(1).sum())
    assert fold.iterations == 3 * images // 4 and len(fold.training.cls) == 4 * fold.iterations
    assert set(np.bincount(fold.training.query)) <= {0, 2, 3}  # the last incomplete step is dropped


def test_epochs_and_iterations_exclude_each_other():
    with pytest.raises(ValueError, match="iterations 4 and epochs 3 both say how long to train"):
        prepared(epochs=3)


def test_held_out_classes_are_in_no_training_episode_and_not_known():
    setup = prepared(select="train")
    fold = setup.folds[0]
    assert len(fold.held) == 3 and not set(fold.held) & {
        *fold.train_classes,
        *fold.test_classes,
        *fold.training.cls.tolist(),
    }
    assert sorted([*fold.held, *fold.train_classes]) == list(range(6, 21))
    assert prepared(select="train").folds[0].held == fold.held
    assert prepared().folds[0].held == []


def test_fewer_classes_and_photographs_are_among_more():
    train = samples("train")

    def shown(seed=0, **settings):
        data = make_config(**settings).data
        return repro_folds.shown_in_training(data, train, list(range(6, 21)), seed)

    few, more = (shown(classes=n) for n in (3, 8))
    assert (
        len(few[0]) == 3
        and len(more[0]) == 8
        and set(few[0]) < set(more[0])
        and few[1] is train.pixels
    )
    few, more = (shown(photographs=n) for n in (30, 90))
    in_use = lambda pixels: set(np.flatnonzero((pixels[:, 5:] >= MIN_PIXELS).any(1)))
    assert (
        len(in_use(few[1])) == 30
        and len(in_use(more[1])) == 90
        and in_use(few[1]) < in_use(more[1])
    )
    assert few[0] == [c for c in range(6, 21) if (few[1][:, c - 1] >= MIN_PIXELS).sum() >= 2]
    assert shown(photographs=30, seed=1)[0] != [] != in_use(few[1])
    with pytest.raises(
        ValueError, match="of 1 training images no class is in two; use more photographs"
    ):
        repro_folds.shown_in_training(make_config(photographs=1).data, train, [6, 7], 0)


@pytest.mark.parametrize("option, there", [("classes", 15), ("photographs", 600)])
def test_more_than_there_is_cannot_be_drawn(option, there):
    train = samples("train")
    for asked in (there, there + 1):
        data = make_config(**{option: asked}).data
        said = f"{option} is {asked}, and a fold has {there} to train on; give {there} or fewer"
        with pytest.raises(ValueError, match=said) if asked > there else nullcontext():
            repro_folds.shown_in_training(data, train, list(range(6, 21)), 0)


def test_rare_classes_are_left_out_where_that_is_asked_for():
    """One class of the fold is in too few evaluation images for five shots.

    Another is in a single training image."""
    sets = {split: samples(split) for split in ("train", "val")}
    for split, cls, n in (("val", 2, 5), ("train", 7, 1)):
        pixels = sets[split].pixels.copy()
        pixels[np.flatnonzero(pixels[:, cls - 1] >= MIN_PIXELS)[n:], cls - 1] = 0
        sets[split] = replace(sets[split], pixels=pixels)
    config = resolve(make_config(folds=(0,), skip_rare=True))
    fold = repro_folds.draw_fold(config, sets["train"], sets["val"], 0)
    assert (
        fold.test_classes == [1, 3, 4, 5]
        and fold.train_classes == [6, *range(8, 21)]
        and set(fold.training.cls) == set(fold.train_classes)
        and set(fold.evaluation.cls) == {1, 3, 4, 5}
    )
    assert repro_folds.draw_fold(
        change_config(config, shots=(1, 4)), sets["train"], sets["val"], 0
    ).test_classes == [1, 2, 3, 4, 5]
    with pytest.raises(
        ValueError, match="training split: class 7 .* With skip_rare all such classes are left out"
    ):
        repro_folds.draw_fold(change_config(config, skip_rare=False), *sets.values(), 0)
    with pytest.raises(ValueError, match="evaluation split: class 2 .* With skip_rare"):
        stops = change_config(config, skip_rare=False)
        repro_folds.draw_fold(stops, samples("train"), sets["val"], 0)
    with pytest.warns(
        UserWarning, match="1 classes are present in fewer than 6 images and are not tested"
    ):
        repro_folds.warn_of_rare(sets["val"], range(1, 21), 6, "tested")
    with pytest.raises(ValueError, match="there is none to test"):
        repro_folds.draw_fold(change_config(config, shots=(500,)), *sets.values(), 0)


def test_a_run_on_fewer_trains_on_nothing_else():
    fold = repro_setup.prepare(
        resolve(make_config(folds=(0,), classes=4, photographs=60, iterations=50, pairs=2))
    ).folds[0]
    assert (
        set(fold.train_classes) == set(fold.training.cls.tolist())
        and len(fold.train_classes) <= 4
        and len(np.unique(np.c_[fold.training.query, fold.training.support])) <= 60
    )
    assert fold.test_classes == [1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    "Runs that choose a checkpoint, by how."
    place = tmp_path_factory.mktemp("chosen")
    for select in ("train", "test"):
        repro_runs.run(change_config(TINY, select=select, checks=4, lr=2.0), place / select)
    return place


@pytest.mark.parametrize("select", ["train", "test"])
def test_the_best_checkpoint_is_kept_beside_the_last(select, chosen):
    place = chosen / select / "fold0"
    table = pd.read_csv(place / "checks.csv")
    checks = table["PFENet+CE"]
    saved = load_checkpoint(place / "last.pt")
    score, step, state = saved["best"]["PFENet+CE"]
    assert (
        table.step.tolist() == [1, 2, 3, 4]
        and score == pytest.approx(checks.max())
        and step == checks.idxmax() + 1
    )
    model, last = (load_checkpoint(place / name) for name in ("PFENet+CE.pt", "PFENet+CE.last.pt"))
    assert all(torch.equal(model["model"][k], state[k]) for k in state)
    assert all(torch.equal(last["model"][k], saved["models"]["PFENet+CE"][k]) for k in state)
    assert last["selected"] == "last checkpoint"


def test_choosing_is_written_into_the_results(chosen):
    setup = prepared(select="train")
    held = [setup.train.class_names[k - 1] for k in setup.folds[0].held]
    said = load_checkpoint(chosen / "train/fold0/PFENet+CE.pt")["selected"]
    assert said == f"best of 4 checkpoints on held-out training classes {', '.join(held)}"
    assert (
        load_checkpoint(chosen / "test/fold0/PFENet+CE.pt")["selected"]
        == "best of 4 checkpoints on the test fold"
    )
    for select in ("train", "test"):
        assert set(pd.read_csv(chosen / select / "results.csv").selection) == {select}
    assert (
        "on the test fold itself" in (chosen / "test/table.md").read_text()
        and "flattered" in (chosen / "test/table.md").read_text()
    )
    assert "on held-out training classes" in (chosen / "train/table.md").read_text()


def test_the_best_on_the_test_fold_is_the_score_that_was_chosen(chosen):
    best = pd.read_csv(chosen / "test/fold0/checks.csv")["PFENet+CE"].max()
    assert pd.read_csv(chosen / "test/results.csv").miou.tolist() == pytest.approx([best])


def test_a_resumed_run_has_each_check_once_and_the_same_best(chosen, tmp_path, monkeypatch):
    "Stopped between a check and the checkpoint, it asks again."
    config = change_config(TINY, select="test", checks=4, lr=2.0)
    class Stop(Exception): pass
    def stop(*_): raise Stop
    with monkeypatch.context() as m:
        m.setattr(engine_training, "save_state", stop)
        with pytest.raises(Stop): repro_runs.train_run(config, tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run/fold0/checks.csv")) == 4
    repro_runs.train_run(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/fold0/checks.csv").read_text() == (
        chosen / "test/fold0/checks.csv"
    ).read_text()
    a, b = (
        load_checkpoint(p / "fold0/PFENet+CE.pt")["model"]
        for p in (tmp_path / "run", chosen / "test")
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_checking_changes_no_training(chosen, tmp_path):
    "The last weights of a run that looked at the test fold are those of a run that did not."
    repro_runs.train_run(change_config(TINY, lr=2.0), tmp_path / "plain")
    a, b = (
        load_checkpoint(tmp_path / "plain/fold0/PFENet+CE.pt")["model"],
        load_checkpoint(chosen / "test/fold0/PFENet+CE.last.pt")["model"],
    )
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_parts_of_a_step_add_up(tmp_path):
    """Without dropout a step in parts is the mean of its parts.

    It is near the whole step, which weighs pixels and not parts."""
    losses = {}
    for parts in (1, 2):
        config = change_config(TINY, accumulate=parts, methods=("PFENet",), dropout=0.0)
        repro_runs.train_run(config, tmp_path / str(parts))
        losses[parts] = pd.read_csv(tmp_path / str(parts) / "fold0/losses.csv")
    assert losses[1].main.tolist() != losses[2].main.tolist()
    np.testing.assert_allclose(losses[1].main, losses[2].main, rtol=0.03)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="a batch of 4 episodes cannot be worked through in 3 equal parts"
    ):
        prepared(accumulate=3)


def test_losses_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    repro_runs.train_run(change_config(TINY, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/fold0/tensorboard")).Reload()
    table = pd.read_csv(tmp_path / "run/fold0/losses.csv")
    for name in ("main", "auxiliary", "contrast"):
        assert [e.value for e in events.Scalars(f"{name}/PFENet+CE")] == pytest.approx(
            table[name].tolist(), rel=1e-5
        )


def test_tensorboard_that_is_missing_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(repro_setup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'celp_nb\[tensorboard\]'"):
        repro_runs.train_run(change_config(TINY, tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_settings_are_all_listed(tmp_path):
    repro_runs.train_run(TINY, tmp_path / "run")
    with pytest.raises(ValueError, match="was begun with other settings") as said:
        repro_runs.train_run(
            change_config(TINY, seed=3, lr=0.5, workers=1), tmp_path / "run", resume=True
        )
    assert "lr = 0.2 then and 0.5 now, seed = 0 then and 3 now" in str(
        said.value
    ) and "workers" not in str(said.value)


def test_differences_names_what_is_new_and_what_is_gone():
    assert (
        changed_settings({"a": 1, "b": 2}, {"b": 3, "c": 4})
        == "a = 1 then and None now, b = 2 then and 3 now, c = None then and 4 now"
    )
    assert changed_settings({"a": 1}, {"a": 1}) == ""


def test_views_are_kept_in_the_cache_folder_and_a_damaged_one_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "cache"))
    config = change_config(TINY, cache_views=1)
    repro_runs.train_run(config, tmp_path / "a")
    views = list((tmp_path / "cache/views").rglob("views.bin"))
    assert len(views) == 1
    whole = views[0].read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[: len(whole) // 2]
        + bytes([whole[len(whole) // 2] ^ 255])
        + whole[len(whole) // 2 + 1 :],
    ):
        views[0].write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"in .*{views[0].name} is damaged and is made anew"):
            repro_runs.train_run(config, tmp_path / f"b{len(damaged)}{damaged[-1]}")
        assert (tmp_path / f"b{len(damaged)}{damaged[-1]}/fold0/losses.csv").read_text() == (
            tmp_path / "a/fold0/losses.csv"
        ).read_text()


def test_settings_beside_the_results_are_those_that_ran(tmp_path):
    repro_runs.train_run(TINY, tmp_path / "run")
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["runtime"]["precision"] == "float32"
    assert kept["optimisation"]["iterations"] == 4 and kept["optimisation"]["select"] == "last"


def test_what_folds_have_in_common_is_said_once():
    assert (
        repro_report.value_range(pd.Series([240, 320, 160])) == "160 to 320"
        and repro_report.value_range(pd.Series([200, 200])) == "200"
    )


# --- one list of test episodes


def same_episodes(a, b): return all(np.array_equal(x, y) for x, y in zip(a, b))


def test_all_training_seeds_are_asked_one_list():
    folds = {seed: prepared(seed=seed).folds[0] for seed in (0, 3)}
    assert same_episodes(folds[0].evaluation, folds[3].evaluation)
    assert not same_episodes(folds[0].training, folds[3].training)
    val, n = samples("val"), resolve(TINY).evaluation.pairs
    for episode_seed in (0, 5):
        fold = prepared(seed=3, episode_seed=episode_seed).folds[0]
        drawn = pairs_per_class(
            val.pixels, fold.test_classes, n, max(TINY.evaluation.shots), episode_seed
        )
        assert same_episodes(fold.evaluation, drawn) and same_episodes(
            fold.training, folds[3].training
        )


def test_a_run_that_names_no_list_drew_it_by_its_seed(tmp_path):
    config = change_config(TINY, seed=3)
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config and config.evaluation.episode_seed == 0
    values = json.loads((tmp_path / "config.json").read_text())
    del values["evaluation"]["episode_seed"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path) == change_config(config, episode_seed=3)
    row = "x,tiny,0,PFENet,1,1,2,3,9,4,{}"
    header = "data,backbone,fold,method,shots,miou,fb_iou,confusion,episodes,iterations,seed"
    (tmp_path / "results.csv").write_text("\n".join([header, row.format(3), row.format(4)]))
    assert repro_runs.read_results(tmp_path).episode_seed.tolist() == [3, 4]


def test_a_negative_list_is_refused():
    with pytest.raises(ValueError, match="episode_seed is -1; it must be 0 or more"):
        resolve(change_config(TINY, episode_seed=-1))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"n_folds": 0}, "n_folds is 0; it must be more than 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be 0 or more"),
        ({"sigma": -5}, "'PFENet.CE': sigma is -5; give a whole number from 0 on"),
        ({"contrast": float("nan")}, "'PFENet.CE': contrast is nan; give the weight of a loss"),
        ({"contrast": -1.0}, "'PFENet.CE': contrast is -1.0; give the weight of a loss"),
        ({"bins": (0.0, 0.5)}, r"bins are \(0.0, 0.5\); give numbers of positions"),
        ({"bins": (float("inf"),)}, r"bins are \(inf,\); give numbers of positions"),
        ({"bins": ()}, r"bins are \(\); give numbers of positions"),
        ({"lr": float("inf")}, "lr is inf; it must be more than 0 and finite"),
        ({"weight_decay": float("inf")}, "weight_decay is inf; it must be 0 or more and finite"),
        ({"scale": (1, float("inf"))}, r"scale is \(1, inf\); give two numbers above 0"),
        ({"cache": str(Path(__file__) / "x")}, r"cache is .*, but .*py is a file; give a folder"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(tmp_path, settings, said):
    with pytest.raises((ValueError, OSError), match=said):
        repro_runs.run(change_config(TINY, methods=("PFENet+CE",), **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_value_of_a_setting_of_several_is_refused():
    for name, value in (("methods", "PFENet"), ("folds", 0), ("shots", 5)):
        with pytest.raises(ValueError, match=f"{name} is {value!r}; give a tuple, such as"):
            make_config(**{name: value})
    assert make_config(methods=["PFENet"]) == make_config(methods=("PFENet",))


def test_a_run_in_tf32_is_scored_in_float32_on_a_cpu(tmp_path):
    write_config(tmp_path, change_config(TINY, precision="tf32", device="cuda"))
    assert settings_of_run(tmp_path).runtime.precision == "float32"


def test_more_checks_than_steps_are_counted_as_steps():
    optimisation = change_config(TINY, select="test", checks=100).optimisation
    assert selection_words(optimisation, 50, []) == "best of 50 checkpoints on the test fold"
    assert selection_words(optimisation, 500, []) == "best of 100 checkpoints on the test fold"


def test_a_trained_run_is_scored_on_another_list_beside_its_own(tmp_path):
    config = change_config(TINY, seed=1, methods=("PFENet",), trivial=False)
    repro_runs.run(config, tmp_path / "a")
    before = (tmp_path / "a/results.csv").read_bytes()
    scored = repro_runs.evaluate_run(tmp_path / "a", 5).drop(columns="seconds")
    assert (tmp_path / "a/results.csv").read_bytes() == before
    repro_runs.run(change_config(config, episode_seed=5), tmp_path / "b")
    expected = repro_runs.read_results(tmp_path / "b").drop(columns="seconds")
    pd.testing.assert_frame_equal(scored, expected)
    assert set(scored.episode_seed) == {5} and set(scored.seed) == {1}
    for file in ("episodes.csv", "rows.csv"):
        own = (tmp_path / "a/list-5/fold0" / file).read_bytes()
        assert own == (tmp_path / "b/fold0" / file).read_bytes()
    assert read_config(tmp_path / "a/list-5").evaluation.episode_seed == 5
    repro_runs.evaluate_run(tmp_path / "a", 0)
    assert sorted(p.name for p in (tmp_path / "a").glob("list-*")) == ["list-5"]
