"""The paper's tables as runs; statistics of differences: what resampling must and must not do."""
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.config import RunConfig, resolve
from celp_nb.repro.presets import PRESETS
from celp_nb.repro.runs import draw_fold, method_of, open_data
from celp_nb.repro.statistics import (
    interval,
    paired_differences,
    resampled_confusion,
    resampled_miou,
)
from celp_nb.repro.tables import (
    TABLES,
    ablation,
    labelled,
    run_table,
    scored_run,
    table_episodes,
    table_runs,
)

DATA = Path(os.environ.get("CELP_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


def rows_of(method, inter, union, classes):
    return pd.DataFrame(
        {
            "method": method,
            "cls": classes,
            "episode": range(len(classes)),
            "inter_fg": inter,
            "union_fg": union,
            "on_known": 1,
            "predicted": 2,
            "fold": 0,
            "seed": 0,
        }
    )


CLASSES = [1] * 6 + [4] * 5
RNG = np.random.default_rng(1)
UNION = RNG.integers(50, 100, 11)
A, B = (rows_of(m, RNG.integers(0, 50, 11), UNION, CLASSES) for m in "ab")


def test_one_draw_by_hand():
    "Class by class in ascending order, with the same episodes for both methods."
    draws, rng = resampled_miou(pd.concat([A, B]), draws=1, seed=3), np.random.default_rng(3)
    rng.integers(0, 1, (1, 1))  # of one seed
    first, second = rng.integers(0, 6, (1, 6))[0], rng.integers(0, 5, (1, 5))[0] + 6
    for name, table in (("a", A), ("b", B)):
        iou = [
            table.inter_fg[list(e)].sum() / table.union_fg[list(e)].sum() for e in (first, second)
        ]
        assert draws[name][0] == pytest.approx(100 * (iou[0] + iou[1]) / 2)


def test_the_order_of_the_rows_does_not_matter():
    both = pd.concat([A, B])
    pd.testing.assert_frame_equal(
        resampled_miou(both, 20), resampled_miou(both.sample(frac=1, random_state=0), 20)
    )


def test_a_method_that_is_always_a_little_better_is_so_in_every_draw():
    "The spread of the difference is that of pairs: here none, though the scores spread."
    better = A.assign(method="better", inter_fg=A.inter_fg + UNION // 10, union_fg=UNION)
    even = pd.concat(
        [
            A.assign(union_fg=UNION - UNION % 10, inter_fg=A.inter_fg),
            better.assign(union_fg=UNION - UNION % 10),
        ]
    )
    draws = resampled_miou(even, 200)
    assert draws.a.std() > 1 and (draws.better - draws.a).to_numpy() == pytest.approx(10.0)


def test_every_episode_is_as_likely_as_every_other():
    "Of many draws the mean is near the score of the list, and the spread near that of the bootstrap by formula."
    inter = np.arange(40)
    table = rows_of("m", inter, np.full(40, 100), [1] * 40)
    draws = resampled_miou(table, 4000).m
    assert draws.mean() == pytest.approx(inter.mean(), abs=0.2) and draws.std() == pytest.approx(
        inter.std() / np.sqrt(40), rel=0.06
    )


def test_methods_that_answered_different_episodes_are_refused():
    with pytest.raises(ValueError, match="not every method answered every episode"):
        resampled_miou(pd.concat([A, B[:-1]]))


def several_seeds(gain, seeds=(0, 1, 2)):
    "Two methods on two folds; `gain` of a seed is what b has more of the union, percent."
    rng, made = np.random.default_rng(2), []
    for seed in seeds:
        for fold, classes in ((0, (1, 2)), (1, (6, 7))):
            for cls in classes:
                inter, union = rng.integers(20, 40, 12), np.full(12, 100)
                made += [
                    pd.DataFrame(
                        {
                            "method": m,
                            "cls": cls,
                            "episode": range(12),
                            "inter_fg": inter + more,
                            "union_fg": union,
                            "on_known": 3,
                            "predicted": 10 + 5 * more,
                            "fold": fold,
                            "seed": seed,
                        }
                    )
                    for m, more in (("a", 0), ("b", gain(seed)))
                ]
    return pd.concat(made, ignore_index=True)


def test_a_difference_is_the_mean_over_seeds_and_classes_and_its_interval_is_of_the_seeds():
    steady, luck = (
        paired_differences(several_seeds(gain), "b", "a")
        for gain in (lambda seed: 4, lambda seed: 12 * (seed == 1))
    )
    assert (
        steady.difference["mIoU"] == pytest.approx(4)
        and steady.low["mIoU"] == pytest.approx(4) == steady.high["mIoU"]
    )
    assert (
        luck.difference["mIoU"] == pytest.approx(4)
        and luck.low["mIoU"] <= 2
        and luck.high["mIoU"] >= 6
    )
    assert steady.episodes["mIoU"] == 144 and steady.episodes[6] == 36 and steady.seeds[6] == 3
    assert steady.difference["confusion"] == pytest.approx(10 - 30) and steady.high[
        "confusion"
    ] == pytest.approx(-20)


def test_confusion_is_a_ratio_of_sums_in_each_fold():
    rows = several_seeds(lambda seed: 0, (0,))
    rows.loc[rows.fold == 1, ["on_known", "predicted"]] = [0, 10]
    assert resampled_confusion(rows, 5).to_numpy() == pytest.approx(15)


def test_a_seed_without_a_class_does_not_count_for_it():
    "Parts of the episodes, such as those with small objects, may lack a class under one seed."
    rows = several_seeds(lambda seed: 4)
    rows = rows[~((rows.seed == 0) & (rows.cls == 7))]
    assert paired_differences(rows, "b", "a").difference.drop(
        "confusion"
    ).to_numpy() == pytest.approx(4)


def test_interval_is_the_middle():
    assert interval(np.arange(101), 0.9) == pytest.approx((5, 95)) and interval(
        pd.Series([3.0] * 5)
    ) == (3, 3)


def test_rows_that_differ_in_the_method_are_one_run():
    (name, config), = table_runs("5", "samples", iterations=7).items()
    assert name == "samples-table-5-seed-0" and config == RunConfig(
        methods=("PFENet+CE delta=0.4", "PFENet+CE delta=0.5", "PFENet+CE", "PFENet+CE delta=0.8"),
        iterations=7,
    )
    assert [method_of(config, m).delta for m in config.methods] == [0.4, 0.5, 0.65, 0.8]
    (config,) = table_runs("6", "samples").values()
    assert [method_of(config, m).contrast for m in config.methods] == [0, 0.1, 0.25, 1]
    assert [c.voting for c in table_runs("7", "samples").values()] == [True]


def test_rows_that_differ_in_the_run_are_runs():
    runs = table_runs("regime", "voc-mini", data="DIR")
    assert len(runs) == 7 and all(
        c.methods == ("PFENet", "PFENet+CE") and c.data == "DIR" for c in runs.values()
    )
    assert (
        runs["voc-mini-table-regime-classes-5-seed-0"].classes == 5
        and [c.photographs for c in runs.values()].count(None) == 4
    )
    assert {
        (c.select, c.protocol, c.void)
        for c in table_runs("differences", "voc-mini", data="DIR").values()
    } == {
        ("last", "pairs", "hidden"),
        ("test", "pairs", "hidden"),
        ("last", "turns", "hidden"),
        ("last", "pairs", "seen"),
    }
    assert {
        (c.methods[0].startswith("CyCTR"), c.width)
        for c in table_runs("differences", "full", data="DIR").values()
    } == {(False, 256), (True, 384)}  # each row varies its own decoder's preset


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_table_can_be_asked_for(name):
    for config in table_runs(name, "samples").values():
        assert (
            config.methods and resolve(config) and all(method_of(config, m) for m in config.methods)
        )


def test_systems_have_three_seeds_and_tables_of_the_same_runs_are_alike():
    one, three = table_runs("1", "samples"), table_runs("3", "samples")
    assert (
        list(one.values()) == list(three.values())
        and [c.seed for c in one.values()] == [0, 1, 2]
        and all(
            set(c.methods) == {"PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE"} for c in one.values()
        )
    )
    assert [c.seed for c in table_runs("1", "samples", seeds=(5,)).values()] == [5]


def test_full_scale_is_the_presets_and_a_run_for_every_row():
    full = table_runs("2", "full", seeds=(0,), data="DIR")
    assert {c.preset for c in full.values()} == {
        name for name in PRESETS if name.startswith("coco-")
    } and all(c.epochs == 50 and c.data == "DIR" for c in full.values())
    ablated = table_runs("6", "full", data="DIR")
    assert all(
        c.epochs == 200 and c.pairs == 1000 and c.side == 473 for c in ablated.values()
    ) and [c.methods for c in ablated.values()] == [
        ("PFENet",),
        ("PFENet+CE",),
        ("PFENet+CE contrast=0.25",),
        ("PFENet+CE contrast=1",),
    ]


@pytest.mark.parametrize(
    "name, scale, tested", [("1", "voc-mini", [5, 5, 5, 5]), ("2", "coco-mini", [6, 8, 4, 6])]
)
def test_a_development_set_has_what_its_scale_asks_for(name, scale, tested):
    if not (DATA / scale).is_dir(): pytest.skip(f"real photographs are not in {DATA}")
    config = resolve(
        table_runs(name, scale, data=str(DATA / scale))[f"{scale}-table-{name}-seed-0"]
    )
    train, val = (open_data(config.data, split) for split in ("train", "val"))
    folds = [draw_fold(config, train, val, f) for f in config.folds]
    assert [len(f.test_classes) for f in folds] == tested and all(
        len(f.evaluation.cls) == 40 * n and not set(f.training.cls) & set(f.test_classes)
        for f, n in zip(folds, tested)
    )


@pytest.mark.parametrize(
    "name, scale, settings, said",
    [
        ("8", "samples", {}, "there is no table '8'"),
        ("5", "tiny", {}, "there is no scale 'tiny'"),
        ("5", "voc-mini", {}, "scale voc-mini needs a folder with its images; give --data DIR"),
        (
            "5",
            "coco-mini",
            {"data": "x"},
            "Table 5 is of PASCAL-5i, which coco-mini does not stand for",
        ),
        ("2", "voc-mini", {"data": "x"}, "Table 2 is of COCO-20i, which voc-mini does not"),
    ],
)
def test_tables_that_cannot_be_run_are_refused(name, scale, settings, said):
    with pytest.raises(ValueError, match=said): table_runs(name, scale, **settings)


def test_an_ablation_is_the_mean_over_folds_and_seeds_beside_the_papers_figure():
    made = [("0.10", fold, seed, 10.0 + fold + 4 * seed) for fold in (0, 1) for seed in (0, 1)]
    t = ablation(
        "6",
        pd.DataFrame(
            [
                {"row": r, "shots": 1, "fold": f, "seed": s, "miou": m, "fb_iou": 50 + m}
                for r, f, s, m in made
            ]
        ),
    ).set_index(["value", "shot", "metric"])
    assert (
        t.ours["0.10", 1, "mIoU"] == pytest.approx(12.5)
        and t.ours["0.10", 1, "FB-IoU"] == pytest.approx(62.5)
        and t.score["0.10", 1, "mIoU"] == 64.1
    )
    assert np.isnan(t.ours["1.00", 1, "mIoU"]) and t.score["1.00", 5, "FB-IoU"] == 72.9


def written(folder, config, scored):
    "A folder as of a run: what `labelled` reads."
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    pd.DataFrame(
        [
            {
                "method": m,
                "shots": 5,
                "fold": 0,
                "seed": 0,
                "miou": v,
                "fb_iou": v,
                "confusion": 1.0,
            }
            for m, v in scored.items()
        ]
    ).to_csv(folder / "results.csv", index=False)
    return folder


def test_scores_belong_to_the_row_of_their_method_and_settings(tmp_path):
    a = written(
        tmp_path / "a",
        RunConfig(methods=("PFENet+CE", "PFENet+CE known=class", "CyCTR")),
        {"PFENet+CE": 1, "PFENet+CE known=class": 2, "CyCTR": 3, "all foreground": 4},
    )
    b = written(
        tmp_path / "b", RunConfig(methods=("PFENet+CE",), protocol="turns"), {"PFENet+CE": 5}
    )
    assert dict(
        zip(labelled("differences", scored_run(a)).row, labelled("differences", scored_run(a)).miou)
    ) == {"as published": 1, "the episode's class alone is known": 2}
    assert labelled("differences", scored_run(b)).row.tolist() == ["images in turn"]
    c = written(
        tmp_path / "c",
        RunConfig(methods=("CyCTR+CE", "CyCTR+CE attention=published"), void="seen"),
        {"CyCTR+CE": 6, "CyCTR+CE attention=published": 7},
    )
    assert labelled("differences", scored_run(c)).row.tolist() == [
        "CyCTR+CE, void seen at test time"
    ]  # one thing is otherwise in a row


def test_episodes_of_a_table_are_those_of_its_rows(tmp_path):
    folder = written(
        tmp_path / "a",
        RunConfig(methods=("PFENet", "PFENet+CE delta=0.8", "CyCTR")),
        {"PFENet": 1, "PFENet+CE delta=0.8": 2, "CyCTR": 3},
    )
    episodes = pd.DataFrame(
        [
            {"run": run, "method": m, "episode": e}
            for run in "ab"
            for m in ("PFENet", "PFENet+CE delta=0.8")
            for e in (0, 1)
        ]
    )
    got = table_episodes("5", scored_run(folder), episodes)
    assert (
        got.method.tolist() == ["0.80", "0.80"]
        and got.run.tolist() == ["a", "a"]
        and got.episode.tolist() == [0, 1]
    )
    assert set(table_episodes("6", scored_run(folder), episodes).method) == {"0.00"}


def test_votes_and_their_average_are_rows_of_table_7(tmp_path):
    folder = written(
        tmp_path / "a",
        RunConfig(methods=("PFENet+CE", "PFENet"), voting=True),
        {
            "PFENet+CE": 30.0,
            "PFENet": 10.0,
            "PFENet+CE v-1": 20.0,
            "PFENet+CE v-3": 31.0,
            "PFENet v-3": 9.0,
        },
    )
    t = ablation("7", labelled("7", scored_run(folder))).set_index(["value", "metric"])
    assert (
        (t.ours["avg", "mIoU"], t.ours["v-1", "mIoU"], t.ours["v-3", "mIoU"]) == (30, 20, 31)
        and t.score["v-3", "mIoU"] == 66.9
        and len(t) == 12
    )


def test_a_table_is_run_once_and_goes_on(tmp_path):
    settings = dict(crop=57, side=97, width=16, iterations=2, pairs=2, folds=(0,), trivial=False)
    text = run_table("6", "samples", tmp_path, **settings)
    assert "| 0.25            | mIoU   |" in text and "development set" in text
    results = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/results.csv")}
    assert (
        len(results) == 1
        and run_table("6", "samples", tmp_path, **settings) == text
        and results == {p: p.stat().st_mtime_ns for p in results}
    )
    shutil.rmtree(tmp_path / "samples-table-6-seed-0")
    assert (
        run_table("6", "samples", tmp_path, **settings) == text
    )  # the lost run comes back the same


def test_a_table_that_is_not_of_the_paper_says_mIoU_and_confusion_of_its_rows(tmp_path):
    settings = dict(
        crop=57, side=97, width=16, iterations=2, pairs=2, folds=(0,), shots=(1,), trivial=False
    )
    text = run_table("beyond", "samples", tmp_path, seeds=(0,), **settings)
    assert (
        "| δ = 0.65        | 1     |" in text
        and "| δ of each image | 1     |" in text
        and "confusion" in text
        and "Paper:" not in text
    )
