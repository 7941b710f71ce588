"""Statistics of differences: what resampling must and must not do."""
import numpy as np
import pandas as pd
import pytest

from celp_nb.experiments import interval, resampled_miou


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
