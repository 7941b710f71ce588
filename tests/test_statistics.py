"""Statistics of differences: what resampling must and must not do."""

import warnings

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.statistics import (
    contrast_intervals,
    interval,
    named_queries,
    paired_differences,
    resampled_confusion,
    resampled_miou,
    t_beyond,
    t_interval,
    t_quantile,
)


def rows_of(method, inter, union, classes):
    return pd.DataFrame(
        {
            "method": method,
            "cls": classes,
            "episode": range(len(classes)),
            "query": [f"image {i:02}" for i in range(len(classes))],
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
    "Class by class in ascending order, with the same query images for both methods."
    draws, rng = resampled_miou(pd.concat([A, B]), draws=1, seed=3), np.random.default_rng(3)
    times = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), 1)[0] for n in (6, 5)])
    for name, table in (("a", A), ("b", B)):
        inter, union = table.inter_fg * times, table.union_fg * times
        iou = [inter[part].sum() / union[part].sum() for part in (slice(6), slice(6, 11))]
        assert draws[name][0] == pytest.approx(100 * (iou[0] + iou[1]) / 2)


def test_the_order_of_the_rows_does_not_matter():
    both = pd.concat([A, B])
    shuffled = both.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(resampled_miou(both, 20), resampled_miou(shuffled, 20))


def test_a_method_that_is_always_a_little_better_is_so_in_every_draw():
    "The spread of the difference is that of pairs: here none, though the scores spread."
    union = UNION - UNION % 10
    worse = A.assign(union_fg=union)
    better = worse.assign(method="better", inter_fg=A.inter_fg + UNION // 10)
    draws = resampled_miou(pd.concat([worse, better]), 200)
    assert draws.a.std() > 1
    assert (draws.better - draws.a).to_numpy() == pytest.approx(10.0)


ONE_CLASS = rows_of("m", np.arange(40), np.full(40, 100), [1] * 40)


def test_every_image_is_as_likely_as_every_other():
    "The mean of many draws is near the score of the list, the spread near the bootstrap's formula."
    inter, draws = np.arange(40), resampled_miou(ONE_CLASS, 4000).m
    assert draws.mean() == pytest.approx(inter.mean(), abs=0.2)
    assert draws.std() == pytest.approx(inter.std() / np.sqrt(40), rel=0.06)


def repeated(rows, times):
    "Every query asked several times, with the same answer."
    episodes = [rows.assign(episode=rows.episode + 1000 * k) for k in range(times)]
    return pd.concat(episodes, ignore_index=True)


def test_asking_about_an_image_again_teaches_nothing():
    once, often = resampled_miou(ONE_CLASS, 500).m, resampled_miou(repeated(ONE_CLASS, 16), 500).m
    assert often.to_numpy() == pytest.approx(once.to_numpy())


def test_another_seed_that_answers_alike_teaches_nothing_about_the_images():
    both = pd.concat([ONE_CLASS, ONE_CLASS.assign(seed=1, episode=ONE_CLASS.episode + 500)])
    assert resampled_miou(both, 500).m.to_numpy() == pytest.approx(
        resampled_miou(ONE_CLASS, 500).m.to_numpy()
    )


def test_rows_of_earlier_versions_are_read_with_a_warning():
    "Their episodes are taken as images: sixteen an image look like a quarter of the spread."
    rows = repeated(ONE_CLASS, 16)
    with pytest.warns(UserWarning, match="episodes are taken as independent"):
        old = resampled_miou(rows.drop(columns="query"), 500).m
    assert old.std() == pytest.approx(resampled_miou(rows, 500).m.std() / 4, rel=0.15)
    half = rows.assign(query=rows["query"].where(rows.episode < 1000))
    with pytest.warns(UserWarning, match="do not name their query images"):
        assert named_queries(half)["query"].nunique() == 40 + 15 * 40


def test_rows_that_name_their_queries_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resampled_miou(ONE_CLASS, 5)


def test_methods_that_answered_different_episodes_are_refused():
    with pytest.raises(ValueError, match="not every method answered every episode"):
        resampled_miou(pd.concat([A, B[:-1]]))
    with pytest.raises(ValueError, match="not every method answered every episode"):
        resampled_miou(pd.concat([A, B[:-1], A[-1:]]))  # as many, but one twice for another


def several_seeds(gain, seeds=(0, 1, 2)):
    "Two methods on two folds; `gain` of a seed is what b has more of the union, percent."
    rng, tables = np.random.default_rng(2), []
    classes_of = {0: (1, 2), 1: (6, 7)}
    for seed in seeds:
        for fold, cls in [(fold, cls) for fold, classes in classes_of.items() for cls in classes]:
            inter = rng.integers(20, 40, 12)
            for method, more in (("a", 0), ("b", gain(seed))):
                table = rows_of(method, inter + more, np.full(12, 100), [cls] * 12)
                table = table.assign(on_known=3, predicted=10 + 5 * more, fold=fold, seed=seed)
                tables.append(table)
    return pd.concat(tables, ignore_index=True)


def test_a_difference_is_the_mean_over_seeds_and_classes_and_its_interval_is_of_the_seeds():
    steady = paired_differences(several_seeds(lambda seed: 4), "b", "a")
    luck = paired_differences(several_seeds(lambda seed: 12 * (seed == 1)), "b", "a")
    assert steady.difference["mIoU"] == pytest.approx(4)
    assert steady.low["mIoU"] == pytest.approx(4) == steady.high["mIoU"]
    assert luck.difference["mIoU"] == pytest.approx(4)
    # per fold: variance 48 / 3 seeds, weight ½; both folds: 8, with 2 + 2 degrees of freedom
    half = t_quantile(4) * np.sqrt(8)
    assert luck.low["mIoU"] == pytest.approx(4 - half, abs=0.01)
    assert luck.high["mIoU"] == pytest.approx(4 + half, abs=0.01)
    half = t_quantile(2) * np.sqrt(48 / 3)  # of a class, in one fold
    assert luck.high[6] == pytest.approx(4 + half, abs=0.01) and luck.queries[6] == 12
    assert steady.episodes["mIoU"] == 144 and steady.episodes[6] == 36 and steady.seeds[6] == 3
    assert steady.difference["confusion"] == pytest.approx(10 - 30)
    assert steady.high["confusion"] == pytest.approx(-20)


def test_confusion_is_a_ratio_of_sums_in_each_fold():
    rows = several_seeds(lambda seed: 0, (0,))
    rows.loc[rows.fold == 1, ["on_known", "predicted"]] = [0, 10]
    assert resampled_confusion(rows, 5).to_numpy() == pytest.approx(15)


def test_a_seed_without_a_class_does_not_count_for_it():
    "Parts of the episodes, such as those with small objects, may lack a class under one seed."
    rows = several_seeds(lambda seed: 4)
    rows = rows[~((rows.seed == 0) & (rows.cls == 7))]
    differences = paired_differences(rows, "b", "a").difference.drop("confusion")
    assert differences.to_numpy() == pytest.approx(4)


def test_a_class_of_two_folds_is_averaged_over_them():
    lines = []
    for fold, gain in ((0, 80), (1, 0)):
        for method, found in (("a", 10), ("b", 10 + gain)):
            asked = dict(method=method, fold=fold, seed=0, episode=0, cls=7, query=f"q{fold}")
            counts = dict(inter_fg=found, union_fg=100, on_known=0, predicted=found)
            lines.append({**asked, **counts})
    table = paired_differences(pd.DataFrame(lines), "b", "a", draws=5)
    assert table.difference.round(6).to_dict() == {"mIoU": 40.0, "confusion": 0.0, 7: 40.0}


def test_chosen_lines_are_those_of_the_whole_table():
    rows = several_seeds(lambda seed: 4 * seed)
    chosen = ["confusion", 7]
    whole = paired_differences(rows, "b", "a", 50)
    part = paired_differences(rows, "b", "a", 50, lines=chosen)
    pd.testing.assert_frame_equal(part, whole.loc[chosen])
    over = paired_differences(rows, "b", "a", over="classes")
    assert [*over.index] == ["mIoU", "confusion"]
    only = paired_differences(rows, "b", "a", over="classes", lines=["mIoU"])
    pd.testing.assert_frame_equal(only, over.loc[["mIoU"]])
    for line, how in (("miou", "queries"), (7, "classes")):
        with pytest.raises(ValueError, match=f"{line!r} is no line over {how}; choose of mIoU, "):
            paired_differences(rows, "b", "a", over=how, lines=[line])


def test_interval_is_the_middle():
    assert interval(np.arange(101), 0.9) == pytest.approx((5, 95))
    assert interval(pd.Series([3.0] * 5)) == (3, 3)


TABLE = {1: 12.706, 2: 4.303, 2.5: 3.575, 30: 2.042, 1e7: 1.96}


@pytest.mark.parametrize("freedom, t", TABLE.items())
def test_quantiles_of_t(freedom, t): assert t_quantile(freedom) == pytest.approx(t, rel=1e-3)


def test_variances_add_up_and_the_larger_decides_how_many_seeds_there_seem_to_be():
    low, high = t_interval(1.0, [(4.0, 2), (1e-9, 500)])
    assert (low, high) == pytest.approx((1 - 2 * t_quantile(2), 1 + 2 * t_quantile(2)), rel=1e-4)
    low, high = t_interval(1.0, [(1e-9, 2), (4.0, 500)])
    assert high == pytest.approx(1 + 2 * t_quantile(500), rel=1e-4)


def strata(gains):
    "Two methods on two folds with one seed; `gains` of each class in points of IoU."
    tables = []
    for cls, gain in enumerate(gains):
        for method, more in (("a", 0), ("b", gain)):
            table = rows_of(method, np.full(6, 30 + more), np.full(6, 100), [cls] * 6)
            tables.append(table.assign(fold=cls * 2 // len(gains), on_known=3 * (cls + 1) + more))
    return pd.concat(tables, ignore_index=True)


def test_classes_as_a_sample_spread_within_their_folds():
    "Textbook: the variance of a stratified mean; that of the images of a class is part of it."
    gains = np.array([0, 4, 8, 20, 26, 20])
    rows = strata(gains)
    line = paired_differences(rows, "b", "a", over="classes").loc["mIoU"]
    assert line.difference == pytest.approx(gains.mean())
    variance = (gains[:3].var(ddof=1) / 3 + gains[3:].var(ddof=1) / 3) / 4
    assert line.error == pytest.approx(np.sqrt(variance))
    assert line.high - line.difference == pytest.approx(t_quantile(line.freedom) * line.error)
    assert 2 < line.freedom < 4
    fixed = paired_differences(rows, "b", "a").loc["mIoU"]
    assert fixed.error == pytest.approx(0, abs=1e-9)  # all images of a class are alike


def test_a_fold_of_one_class_is_no_sample_of_classes():
    with pytest.raises(ValueError, match="fold 0 has one class, which is no sample"):
        paired_differences(strata([1, 2]), "b", "a", over="classes")


def test_confusion_over_classes_is_a_ratio_of_sums_with_a_class_left_out():
    rows = strata([1, 5, 2, 9])
    line = paired_differences(rows, "b", "a", over="classes").loc["confusion"]
    sums = rows.groupby(["fold", "method", "cls"])[["on_known", "predicted"]].sum()

    def difference(left_out=None):
        "Mean over folds; the one class that stays in a fold counts twice, as part and whole."
        kept = sums.drop(left_out, level="cls") if left_out is not None else sums
        by_fold = kept.groupby(["fold", "method"]).sum()
        ratios = (100 * by_fold.on_known / by_fold.predicted).unstack()
        return (ratios.b - ratios.a).mean()
    assert line.difference == pytest.approx(difference())
    variance = sum(
        (difference(c) - difference(c + 1)) ** 2 / 4 for c in (0, 2)  # two classes: (n − 1)² / n …
    )
    assert line.error == pytest.approx(np.sqrt(variance))


def test_a_contrast_may_be_a_share_of_one_score_in_another():
    "As by hand from the jackknife over seeds; images are all alike."
    rows = several_seeds(lambda seed: 3 * seed)
    shares = lambda scores: 100 * (1 - scores["a"] / scores["b"])
    line = contrast_intervals(rows, shares).loc["mIoU"]
    iou = rows.groupby(["fold", "seed", "method", "cls"])[["inter_fg", "union_fg"]].sum()
    iou = (iou.inter_fg / iou.union_fg).unstack("method")

    def share(left_out=None):
        kept = iou.drop(index=left_out, level=None) if left_out is not None else iou
        means = kept.groupby(["fold", "cls"]).mean().mean()
        return 100 * (1 - means.a / means.b)
    assert line.value == pytest.approx(share())
    variance = 0
    for fold in (0, 1):
        left = [share([k for k in iou.index if k[:2] == (fold, seed)]) for seed in (0, 1, 2)]
        variance += (3 - 1) ** 2 / 3 * np.var(left, ddof=1)
    images = contrast_intervals(rows[rows.seed == 1], shares).error["mIoU"]
    assert np.sqrt(variance) < line.error < np.hypot(np.sqrt(variance), images)


def test_the_share_beyond_a_quantile_is_what_the_quantile_leaves():
    for freedom in (1, 3.5, 200):
        assert t_beyond(t_quantile(freedom, 0.9), freedom) == pytest.approx(0.1, abs=1e-6)
    assert t_beyond(0, 5) == 1 and t_beyond(-2.571, 5) == pytest.approx(0.05, abs=1e-3)


def test_counts_summed_over_the_episodes_of_a_query_say_the_same():
    "As `results/collect.py --queries` keeps them: a row tells how many episodes it sums up."
    rows = several_seeds(lambda seed: 3 * seed)
    rows = rows.assign(query=[f"image {episode // 3}" for episode in rows.episode])
    keys = ["method", "fold", "seed", "cls", "query"]
    sums = rows.assign(episodes=1).groupby(keys).sum(numeric_only=True).reset_index()
    summed = sums.assign(episode=rows.groupby(keys).episode.min().to_numpy())
    pd.testing.assert_frame_equal(
        paired_differences(summed, "b", "a"), paired_differences(rows, "b", "a")
    )
