"""Statistics of differences: what resampling must and must not do."""

import warnings

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.statistics import (
    interval,
    named_queries,
    paired_differences,
    resampled_confusion,
    resampled_miou,
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
