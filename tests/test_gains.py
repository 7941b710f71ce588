"""Where a difference comes from: kinds of errors, kinds of episodes, the effect of the support."""

import warnings

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.gains import (
    ERRORS,
    episode_parts,
    gains,
    support_effects,
    swap_rows,
    with_errors,
)


def counts_of(method, rng, seeds=(0, 1)):
    "Masks of 20 × 20 pixels as counts: object, prediction, rim and known objects at random."
    lines = []
    for fold, seed, cls, episode in np.ndindex(2, len(seeds), 2, 6):
        target = np.zeros((20, 20), bool)
        size = (2, 6, 12)[episode % 3]
        target[:size, :size] = True
        rim = np.zeros_like(target)
        rim[size - 1 : size + 1] = True
        predicted, known = rng.random((2, 20, 20)) < 0.3
        known &= ~target & (episode % 2 == 0)
        lines.append(
            {
                "method": method,
                "fold": fold,
                "seed": seeds[seed],
                "cls": 2 * fold + cls + 1,
                "episode": 6 * cls + episode,
                "query": f"{cls} {episode}",
                "shots": 1,
                "inter_fg": (predicted & target).sum(),
                "union_fg": (predicted | target).sum(),
                "predicted": predicted.sum(),
                "on_known": (predicted & known).sum(),
                "known": known.sum(),
                "valid": 400,
                "rim_missed": (rim & target & ~predicted).sum(),
                "rim_false": (rim & ~target & predicted).sum(),
                "missed elsewhere": (~rim & target & ~predicted).sum(),
                "false elsewhere": (~rim & ~target & predicted).sum(),
                "size": size**2 / 400,
            }
        )
    return pd.DataFrame(lines)


RNG = np.random.default_rng(0)
ROWS = pd.concat([counts_of(m, RNG) for m in "ab"], ignore_index=True)


def test_the_four_errors_are_those_of_the_masks():
    rows = with_errors(ROWS)
    assert (rows["missed, whole"] == rows["missed elsewhere"]).all()
    assert (rows["false, whole"] == rows["false elsewhere"]).all()
    assert (rows[[*ERRORS]].sum(axis=1) == rows.union_fg - rows.inter_fg).all()
    assert rows.object.to_numpy() == pytest.approx(rows["size"])


def test_every_episode_is_of_one_size_and_beside_known_objects_or_not():
    parts = episode_parts(with_errors(ROWS))
    by_size = [mask for name, mask in parts.items() if "%" in name]
    beside = [mask for name, mask in parts.items() if "beside" in name]
    for masks in (by_size, beside):
        assert (np.sum(masks, axis=0) == 1).all() and all(mask.any() for mask in masks)


def by_hand(rows, part, error):
    "Mean over classes of an error's share of the union, seed by seed."
    rows, means = with_errors(rows)[part], {}
    for method, of_method in rows.groupby("method"):
        sums = of_method.groupby(["seed", "cls"])[[error, "union_fg"]].sum()
        means[method] = 100 * (sums[error] / sums.union_fg).groupby("cls").mean().mean()
    return means["b"] - means["a"]


def test_gains_are_means_over_classes_and_seeds_of_each_part():
    table = gains(ROWS, "b", "a", draws=20)
    parts = episode_parts(with_errors(ROWS))
    for part, mask in parts.items():
        for error in ERRORS:
            assert table.difference[part, error] == pytest.approx(by_hand(ROWS, mask, error))
        errors = sum(table.difference[part, error] for error in ERRORS)
        assert errors == pytest.approx(-table.difference[part, "mIoU"])
    assert ("none beside", "known objects' pixels") not in table.index
    sums = ROWS.groupby(["method", "fold", "seed"])[["on_known", "known"]].sum()
    shares = (100 * sums.on_known / sums.known).groupby("method").mean()
    line = table.loc["all", "known objects' pixels"]
    assert line.difference == pytest.approx(shares["b"] - shares["a"]) and line.episodes == 48


def test_rows_of_an_earlier_version_are_refused():
    old = ROWS.rename(columns={"rim_false": "edge_false", "rim_missed": "edge_missed"})
    with pytest.raises(ValueError, match="no column rim_false.* score the run anew"):
        gains(old, "b", "a")


# --- the effect of the support


def swapped_twice(keep):
    "Other supports' answers for some episodes, twice for the first class."
    tables = [ROWS[ROWS.episode < keep], ROWS[ROWS.episode < 6]]
    swapped = pd.concat(tables, ignore_index=True)
    return swapped.assign(inter_fg=swapped.inter_fg // 2)


def test_own_answers_count_as_often_as_they_were_swapped():
    both = swap_rows(ROWS, swapped_twice(9))
    own = both[both.method == "a: own supports"]
    other = both[both.method == "a: another class's"]
    assert len(own) == len(other) == 2 * 2 * 9 and list(own) == list(other)
    original = ROWS[(ROWS.method == "a") & (ROWS.episode < 9)]
    times = np.where(original.episode < 6, 2, 1)
    assert own.union_fg.sum() == other.union_fg.sum() == (original.union_fg * times).sum()
    assert other.inter_fg.sum() == (original.inter_fg // 2 * times).sum()


def test_an_effect_is_a_difference_and_its_share_a_share_of_the_own_score():
    effects = support_effects(swap_rows(ROWS, swapped_twice(12)), draws=50)
    mine = ROWS[ROWS.method == "b"].assign(half=lambda x: x.inter_fg // 2)
    sums = mine.groupby(["seed", "cls"])[["inter_fg", "half", "union_fg"]].sum()
    own, other = (
        100 * (sums[k] / sums.union_fg).groupby("cls").mean().mean() for k in ("inter_fg", "half")
    )
    assert effects.value["b", "effect"] == pytest.approx(own - other)
    assert effects.value["b", "share"] == pytest.approx(100 * (1 - other / own))
    assert (effects.low < effects.value).all() and (effects.value < effects.high).all()


def test_a_model_without_a_score_has_no_share_to_lose():
    "NaN, and not a word of NumPy's; for one episode too, whose other classes have no pixels."
    one = ROWS[ROWS.episode < 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (ROWS, one):
            effects = support_effects(swap_rows(rows.assign(inter_fg=0), rows), draws=20)
            shares = effects.xs("share", level="measure")
            assert shares[["value", "low", "high"]].isna().all(axis=None)
            assert (effects.xs("effect", level="measure").value < 0).all()
        halved = one.assign(inter_fg=one.inter_fg // 2)
        assert support_effects(swap_rows(one, halved), draws=20).value.notna().all()


def test_without_any_swap_there_is_one_sentence():
    with pytest.raises(ValueError, match="no query was shown another class's support"):
        support_effects(swap_rows(ROWS, ROWS[:0]))


def test_a_model_that_ignores_its_support_has_no_effect():
    effects = support_effects(swap_rows(ROWS, ROWS), draws=20)
    assert effects[["value", "low", "high"]].to_numpy(float) == pytest.approx(0, abs=1e-9)
