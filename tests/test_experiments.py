"""The paper's tables as runs; statistics of differences: what resampling must and must not do."""
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from celp_nb.experiments import ablation, interval, resampled_miou, run_table, table_runs
from celp_nb.presets import PRESETS, RunConfig


def rows_of(method, inter, union, classes):
    return pd.DataFrame({"method": method, "cls": classes, "episode": range(len(classes)), "inter_fg": inter, "union_fg": union})


CLASSES = [1] * 6 + [4] * 5
RNG = np.random.default_rng(1)
UNION = RNG.integers(50, 100, 11)
A, B = (rows_of(m, RNG.integers(0, 50, 11), UNION, CLASSES) for m in "ab")


def test_one_draw_by_hand():
    "Class by class in ascending order, with the same episodes for both methods."
    draws, rng = resampled_miou(pd.concat([A, B]), draws=1, seed=3), np.random.default_rng(3)
    first, second = rng.integers(0, 6, (1, 6))[0], rng.integers(0, 5, (1, 5))[0] + 6
    for name, table in (("a", A), ("b", B)):
        iou = [table.inter_fg[list(e)].sum() / table.union_fg[list(e)].sum() for e in (first, second)]
        assert draws[name][0] == pytest.approx(100 * (iou[0] + iou[1]) / 2)


def test_the_order_of_the_rows_does_not_matter():
    both = pd.concat([A, B])
    pd.testing.assert_frame_equal(resampled_miou(both, 20), resampled_miou(both.sample(frac=1, random_state=0), 20))


def test_a_method_that_is_always_a_little_better_is_so_in_every_draw():
    "The spread of the difference is that of pairs: here none, though the scores spread."
    better = A.assign(method="better", inter_fg=A.inter_fg + UNION // 10, union_fg=UNION)
    even = pd.concat([A.assign(union_fg=UNION - UNION % 10, inter_fg=A.inter_fg), better.assign(union_fg=UNION - UNION % 10)])
    draws = resampled_miou(even, 200)
    assert draws.a.std() > 1 and (draws.better - draws.a).to_numpy() == pytest.approx(10.0)


def test_every_episode_is_as_likely_as_every_other():
    "Of many draws the mean is near the score of the list, and the spread near that of the bootstrap by formula."
    inter = np.arange(40)
    table = rows_of("m", inter, np.full(40, 100), [1] * 40)
    draws = resampled_miou(table, 4000).m
    assert draws.mean() == pytest.approx(inter.mean(), abs=0.2) and draws.std() == pytest.approx(inter.std() / np.sqrt(40), rel=0.06)


def test_methods_that_answered_different_episodes_are_refused():
    with pytest.raises(ValueError, match="not every method answered every episode"): resampled_miou(pd.concat([A, B[:-1]]))


def test_interval_is_the_middle():
    assert interval(np.arange(101), 0.9) == pytest.approx((5, 95)) and interval(pd.Series([3.0] * 5)) == (3, 3)


def test_runs_of_a_table_are_the_scale_with_one_thing_changed():
    runs = table_runs(5, "samples", iterations=7)
    assert [c.delta for c in runs.values()] == [0.40, 0.50, 0.65, 0.80] and {c.iterations for c in runs.values()} == {7}
    assert {replace(c, delta=0.65) for c in runs.values()} == {RunConfig(methods=("PFENet+CE",), iterations=7)}
    assert [c.contrast for c in table_runs(6, "samples").values()] == [0, 0.1, 0.25, 1]
    assert [c.voting for c in table_runs(7, "samples").values()] == [True]


def test_systems_have_three_seeds_and_tables_of_the_same_runs_share_them():
    one, three = table_runs(1, "samples"), table_runs(3, "samples")
    assert one == three and [c.seed for c in one.values()] == [0, 1, 2] and all(set(c.methods) == {"PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE"} for c in one.values())
    assert [c.seed for c in table_runs(1, "samples", seeds=(5,)).values()] == [5]


def test_full_scale_is_the_presets():
    full = table_runs(2, "full", seeds=(0,), data="DIR")
    assert {c.preset for c in full.values()} == {name for name in PRESETS if name.startswith("coco-")} and all(c.epochs == 50 and c.data == "DIR" for c in full.values())
    ablated = table_runs(6, "full", data="DIR")
    assert all(c.epochs == 200 and c.pairs == 1000 and c.side == 473 for c in ablated.values()) and len(ablated) == 4


@pytest.mark.parametrize("number, scale, settings, said", [
    (8, "samples", {}, "there is no table 8"), (5, "tiny", {}, "there is no scale 'tiny'"), (5, "voc-mini", {}, "scale voc-mini needs a folder with its images; give --data DIR"),
    (5, "coco-mini", {"data": "x"}, "Table 5 is of PASCAL-5i, which coco-mini does not stand for"), (2, "voc-mini", {"data": "x"}, "Table 2 is of COCO-20i, which voc-mini does not")])
def test_tables_that_cannot_be_run_are_refused(number, scale, settings, said):
    with pytest.raises(ValueError, match=said): table_runs(number, scale, **settings)


def test_an_ablation_is_the_mean_over_folds_and_seeds_beside_the_papers_figure():
    made = [("weight 0.10", fold, seed, 10.0 + fold + 4 * seed) for fold in (0, 1) for seed in (0, 1)]
    results = pd.DataFrame([{"row": r, "method": "PFENet+CE", "shots": 1, "fold": f, "seed": s, "miou": m, "fb_iou": 50 + m} for r, f, s, m in made] +
                           [{"row": "weight 0.10", "method": "all foreground", "shots": 1, "fold": 0, "seed": 0, "miou": 99.0, "fb_iou": 99.0}])
    t = ablation(6, results).set_index(["value", "shot", "metric"])
    assert t.ours["0.10", 1, "mIoU"] == pytest.approx(12.5) and t.ours["0.10", 1, "FB-IoU"] == pytest.approx(62.5) and t.score["0.10", 1, "mIoU"] == 64.1
    assert np.isnan(t.ours["1.00", 1, "mIoU"]) and t.score["1.00", 5, "FB-IoU"] == 72.9


def test_votes_and_their_average_are_rows_of_table_7():
    results = pd.DataFrame([{"row": "votes", "method": m, "shots": 5, "fold": 0, "seed": 0, "miou": v, "fb_iou": v} for m, v in [("PFENet+CE", 30.0), ("PFENet+CE v-1", 20.0), ("PFENet+CE v-3", 31.0)]])
    t = ablation(7, results).set_index(["value", "metric"])
    assert (t.ours["avg", "mIoU"], t.ours["v-1", "mIoU"], t.ours["v-3", "mIoU"]) == (30, 20, 31) and t.score["v-3", "mIoU"] == 66.9 and len(t) == 12


def test_a_table_is_run_once_and_goes_on(tmp_path):
    settings = dict(crop=57, side=97, width=16, iterations=2, pairs=2, folds=(0,), trivial=False)
    text = run_table(6, "samples", tmp_path, **settings)
    assert "| 0.25            | mIoU   |" in text and "development set" in text
    results = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/results.csv")}
    assert len(results) == 4 and run_table(6, "samples", tmp_path, **settings) == text and results == {p: p.stat().st_mtime_ns for p in results}
    shutil.rmtree(tmp_path / "samples-weight-0.25-seed-0")
    assert run_table(6, "samples", tmp_path, **settings) == text  # the lost row comes back the same
