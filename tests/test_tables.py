"""The paper's tables as runs, and scores as their rows."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.config import make_config, method_of
from celp_nb.repro.defaults import resolve
from celp_nb.repro.folds import draw_fold, open_splits
from celp_nb.repro.presets import PAPER_METHODS, PRESETS
from celp_nb.repro.table_texts import (
    ablation,
    labelled,
    run_table,
    scored_run,
    table_episodes,
    table_text,
)
from celp_nb.repro.tables import TABLES, table_runs

DATA = Path(os.environ.get("CELP_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SMALL = dict(
    crop=57,
    side=97,
    width=16,
    iterations=2,
    pairs=2,
    folds=(0,),
    trivial=False,
    cache_views=0,
)


def methods_of(config):
    return [method_of(config, m) for m in config.model.methods]


def test_rows_that_differ_in_the_method_are_one_run():
    (name, config), = table_runs("5", "samples", iterations=7).items()
    assert name == "samples-table-5-seed-0" and config == make_config(
        methods=(
            *(f"PFENet+CE delta={delta}" for delta in (0.25, 0.3, 0.4, 0.5)),
            "PFENet+CE",
            "PFENet+CE delta=0.8",
        ),
        iterations=7,
    )
    assert [m.delta for m in methods_of(config)] == [0.25, 0.3, 0.4, 0.5, 0.65, 0.8]
    (config,) = table_runs("6", "samples").values()
    assert [m.contrast for m in methods_of(config)] == [0, 0.1, 0.25, 1, 2]
    assert [c.evaluation.voting for c in table_runs("7", "samples").values()] == [True]


def test_rows_that_differ_in_the_run_are_runs():
    runs = table_runs("regime", "pascal-part", data="DIR")
    assert len(runs) == 6
    for config in runs.values():
        at_both = "PFENet+CE", "PFENet+CE contrast=1 delta=0.25"
        assert config.model.methods == ("PFENet", *at_both)
        assert config.data.folder == "DIR"
    assert runs["pascal-part-table-regime-classes-5-seed-0"].data.classes == 5
    assert [c.data.photographs for c in runs.values()].count(None) == 4


def test_each_difference_that_is_a_setting_is_a_run():
    runs = table_runs("differences", "pascal-part", data="DIR").values()
    settings = {
        (c.optimisation.select, c.evaluation.protocol, c.evaluation.void, c.data.rules)
        for c in runs
    }
    assert settings == {
        ("last", "pairs", "ignore", None),
        ("test", "pairs", "ignore", None),
        ("last", "per_image", "ignore", None),
        ("last", "pairs", "padding", None),
        ("last", "pairs", "ignore", "strict"),
    }
    full = table_runs("differences", "full", data="DIR").values()
    widths = {(c.model.methods[0].startswith("CyCTR"), c.model.width) for c in full}
    assert widths == {(False, 256), (True, 384)}  # each row varies its own decoder's preset


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_table_can_be_asked_for(name):
    for config in table_runs(name, "samples").values():
        assert config.model.methods and resolve(config) and all(methods_of(config))


def test_systems_have_three_seeds_and_tables_of_the_same_runs_are_alike():
    one, three = table_runs("1", "samples"), table_runs("3", "samples")
    assert list(one.values()) == list(three.values())
    assert [c.runtime.seed for c in one.values()] == [0, 1, 2]
    for config in one.values():
        settings = "contrast=1", "delta=0.25", "contrast=1 delta=0.25"
        of_both = {f"{decoder}+CE {s}" for decoder in ("PFENet", "CyCTR") for s in settings}
        assert set(config.model.methods) == {*PAPER_METHODS, *of_both}
    runs = table_runs("1", "samples", seeds=(5,)).values()
    assert [c.runtime.seed for c in runs] == [5]


def test_full_scale_is_the_presets_and_a_run_for_every_row():
    full = table_runs("2", "full", seeds=(0,), data="DIR").values()
    assert {c.preset for c in full} == {name for name in PRESETS if name.startswith("coco-")}
    assert all(c.optimisation.epochs == 50 and c.data.folder == "DIR" for c in full)
    ablated = table_runs("6", "full", data="DIR").values()
    assert all(c.optimisation.epochs == 200 for c in ablated)
    assert all(c.evaluation.pairs == 1000 and c.data.side == 473 for c in ablated)
    assert [c.model.methods for c in ablated] == [
        ("PFENet",),
        ("PFENet+CE",),
        ("PFENet+CE contrast=0.25",),
        ("PFENet+CE contrast=1",),
        ("PFENet+CE contrast=2",),
    ]


@pytest.mark.parametrize(
    "name, scale, tested, pairs",
    [("1", "pascal-part", [5, 5, 5, 5], 1000), ("2", "coco-mini", [6, 8, 4, 6], 40)],
)
def test_a_development_set_has_what_its_scale_asks_for(name, scale, tested, pairs):
    if not (DATA / scale).is_dir(): pytest.skip(f"real photographs are not in {DATA}")
    runs = table_runs(name, scale, data=str(DATA / scale))
    config = resolve(runs[f"{scale}-table-{name}-seed-0"])
    train, val = open_splits(config.data)
    folds = [draw_fold(config, train, val, f) for f in config.data.folds]
    assert [len(f.test_classes) for f in folds] == tested
    for fold, n in zip(folds, tested):
        assert len(fold.evaluation.cls) == pairs * n
        assert not set(fold.training.cls) & set(fold.test_classes)


@pytest.mark.parametrize(
    "name, scale, settings, message",
    [
        ("8", "samples", {}, "there is no table '8'"),
        ("5", "tiny", {}, "there is no scale 'tiny'"),
        ("5", "pascal-part", {}, "scale pascal-part needs a folder with its images"),
        ("5", "coco-mini", {"data": "x"}, "Table 5 is of PASCAL-5i, which coco-mini does not"),
        ("2", "pascal-part", {"data": "x"}, "Table 2 is of COCO-20i, which pascal-part does not"),
    ],
)
def test_tables_that_cannot_be_run_are_refused(name, scale, settings, message):
    with pytest.raises(ValueError, match=message): table_runs(name, scale, **settings)


def test_an_ablation_is_the_mean_over_folds_and_seeds_beside_the_papers_figure():
    scores = [("0.10", fold, seed, 10.0 + fold + 4 * seed) for fold in (0, 1) for seed in (0, 1)]
    results = pd.DataFrame(scores, columns=["row", "fold", "seed", "miou"])
    results = results.assign(shots=1, fb_iou=50 + results.miou)
    t = ablation("6", results).set_index(["value", "shot", "metric"])
    assert t.ours["0.10", 1, "mIoU"] == pytest.approx(12.5)
    assert t.ours["0.10", 1, "FB-IoU"] == pytest.approx(62.5)
    assert t.score["0.10", 1, "mIoU"] == 64.1
    assert np.isnan(t.ours["1.00", 1, "mIoU"]) and t.score["1.00", 5, "FB-IoU"] == 72.9


def written(folder, config, scores):
    "A folder as of a run: what `labelled` reads."
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    results = pd.DataFrame({"method": list(scores), "miou": list(scores.values())})
    results = results.assign(shots=5, fold=0, seed=0, fb_iou=results.miou, confusion=1.0)
    results = results.assign(data="samples", backbone="tiny", episodes=1, iterations=1)
    results.to_csv(folder / "results.csv", index=False)
    return folder


def test_scores_belong_to_the_row_of_their_method_and_settings(tmp_path):
    methods = ("PFENet+CE", "PFENet+CE known=class", "CyCTR")
    scores = {"PFENet+CE": 1, "PFENet+CE known=class": 2, "CyCTR": 3, "all foreground": 4}
    a = written(tmp_path / "a", make_config(methods=methods), scores)
    rows = labelled("differences", scored_run(a))
    assert dict(zip(rows.row, rows.miou)) == {
        "as published": 1,
        "the episode's class alone is known": 2,
    }
    in_turn = make_config(methods=("PFENet+CE",), protocol="per_image")
    b = written(tmp_path / "b", in_turn, {"PFENet+CE": 5})
    assert labelled("differences", scored_run(b)).row.tolist() == ["images in turn"]


def test_rows_of_unequal_seeds_are_said_not_to_be_compared(tmp_path):
    both, config = {"PFENet": 10.0, "PFENet+CE": 20.0}, make_config(methods=("PFENet", "PFENet+CE"))
    first = written(tmp_path / "a", config, both)
    second = written(tmp_path / "b", config, {"PFENet": 11.0})
    said = "Not all rows have the same folds and seeds"
    assert said not in table_text("6", [first])
    table = pd.read_csv(second / "results.csv")
    table.assign(seed=1).to_csv(second / "results.csv", index=False)
    assert said in table_text("6", [first, second])


def test_a_row_differs_in_one_thing_only(tmp_path):
    scores = {"CyCTR+CE": 6, "CyCTR+CE attention=published": 7}
    config = make_config(methods=tuple(scores), void="padding")
    rows = labelled("differences", scored_run(written(tmp_path / "c", config, scores)))
    assert rows.row.tolist() == ["CyCTR+CE, void as padding at test time"]


def test_episodes_of_a_table_are_those_of_its_rows(tmp_path):
    scores = {"PFENet": 1, "PFENet+CE delta=0.8": 2, "CyCTR": 3}
    folder = written(tmp_path / "a", make_config(methods=tuple(scores)), scores)
    keys = [
        (run, m, e) for run in "ab" for m in ("PFENet", "PFENet+CE delta=0.8") for e in (0, 1)
    ]
    episodes = pd.DataFrame(keys, columns=["run", "method", "episode"])
    got = table_episodes("5", scored_run(folder), episodes)
    assert got.method.tolist() == ["0.80", "0.80"]
    assert got.run.tolist() == ["a", "a"] and got.episode.tolist() == [0, 1]
    assert set(table_episodes("6", scored_run(folder), episodes).method) == {"0.00"}


def test_votes_and_their_average_are_rows_of_table_7(tmp_path):
    scores = {
        "PFENet+CE": 30.0,
        "PFENet": 10.0,
        "PFENet+CE v-1": 20.0,
        "PFENet+CE v-3": 31.0,
        "PFENet v-3": 9.0,
    }
    config = make_config(methods=("PFENet+CE", "PFENet"), voting=True)
    folder = written(tmp_path / "a", config, scores)
    t = ablation("7", labelled("7", scored_run(folder))).set_index(["value", "metric"])
    assert [t.ours[label, "mIoU"] for label in ("avg", "v-1", "v-3")] == [30, 20, 31]
    assert t.score["v-3", "mIoU"] == 66.9 and len(t) == 12


def test_a_table_of_pascals_test_says_what_was_trained_on(tmp_path):
    facts = {"benchmark": "pascal-5i", "trained_on": "9 images"}
    folder = written(tmp_path / "a", make_config(methods=("PFENet+CE",)), {"PFENet+CE": 30.0})
    for name in ("5", "beyond"):
        text = table_text(name, [folder])
        assert "test, trained on" not in text and ("development set" in text) == (name == "5")
    results = pd.read_csv(folder / "results.csv").assign(**facts)
    results.to_csv(folder / "results.csv", index=False)
    for name in ("5", "beyond"):
        text = table_text(name, [folder])
        assert "PASCAL-5i test, trained on 9 images." in text and "development set" not in text


def test_a_table_is_run_once_and_goes_on(tmp_path):
    text = run_table("6", "samples", tmp_path, **SMALL)
    assert re.search(r"\| 0\.25 +\| mIoU +\|", text) and "development set" in text
    for weight in ("0.10", "0.25", "1.00"):
        assert re.search(rf"\| {weight} − 0\.00 +\| 5 +\|", text)
    assert "16 comparisons; p is corrected" in text and "four times in five" in text
    assert "With one seed" in text and "Not all rows" not in text
    written_at = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/results.csv")}
    assert len(written_at) == 1
    assert run_table("6", "samples", tmp_path, **SMALL) == text
    assert written_at == {p: p.stat().st_mtime_ns for p in written_at}
    shutil.rmtree(tmp_path / "samples-table-6-seed-0")
    assert run_table("6", "samples", tmp_path, **SMALL) == text  # a lost run comes back the same


def test_a_table_that_is_not_of_the_paper_says_mIoU_and_confusion_of_its_rows(tmp_path):
    text = run_table("beyond", "samples", tmp_path, seeds=(0,), shots=(1,), **SMALL)
    for label in ("δ = 0.65", "one δ per image"):
        assert re.search(rf"\| {label} +\| 1 +\|", text)
    assert "confusion" in text and "Paper:" not in text
