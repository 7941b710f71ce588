"""Counts and summaries against loops over single pixels and rows."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from celp_nb.engine.evaluation import error_counts, near_edge, rim_reach
from celp_nb.metrics import COUNTS, pixel_counts, summarise


@st.composite
def masks(draw):
    "(prediction, target, known) uint8 arrays of one random size; void is at the same pixels."
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    both = st.sampled_from([(0, 0), (0, 1), (1, 0), (1, 1), (255, 255)])
    pixel, n = st.tuples(st.integers(0, 1), both), shape[0] * shape[1]
    pixels = draw(st.lists(pixel, min_size=n, max_size=n))
    triples = [(p, t, k) for p, (t, k) in pixels]
    return tuple(np.array(values, np.uint8).reshape(shape) for values in zip(*triples))


def count(prediction, target, known):
    return pixel_counts(*(torch.from_numpy(mask) for mask in (prediction, target, known)))


@given(masks())
def test_counts_equal_sets_of_pixels(m):
    prediction, target, known = m
    where = lambda mask, value: {tuple(p) for p in np.argwhere(mask == value)}
    valid = where(target, 0) | where(target, 1)
    p, t, k = where(prediction, 1) & valid, where(target, 1), where(known, 1)
    expected = dict(
        inter_fg=p & t,
        union_fg=p | t,
        inter_bg=valid - p - t,
        union_bg=valid - (p & t),
        predicted=p,
        on_known=p & k,
        valid=valid,
    )
    assert count(*m) == {name: len(pixels) for name, pixels in expected.items()}
    assert tuple(expected) == COUNTS


@given(masks(), st.randoms())
def test_nothing_under_void_matters(m, random):
    prediction, target, known = m
    other = prediction.copy()
    for p in np.argwhere(target == 255):
        other[tuple(p)] = random.randint(0, 1)
    assert count(other, target, known) == count(*m)


@given(masks(), st.integers(0, 2**32 - 1))
def test_pixel_order_does_not_matter(m, seed):
    order = np.random.default_rng(seed).permutation(m[0].size)
    assert count(*(mask.ravel()[order].reshape(mask.shape[::-1]) for mask in m)) == count(*m)


@given(masks())
def test_bool_and_uint8_predictions_agree(m):
    assert count(m[0].astype(bool), *m[1:]) == count(*m)


@given(masks(), st.integers(1, 7))
def test_an_edge_is_where_both_are_within_reach(m, reach):
    target = m[1]
    near = near_edge(torch.from_numpy(target), reach).numpy()
    for i, j in np.ndindex(target.shape):
        around = target[max(0, i - reach):i + reach + 1, max(0, j - reach):j + reach + 1] == 1
        assert near[i, j] == (around.any() and not around.all())


@given(masks(), st.integers(1, 3))
def test_errors_at_the_edge_are_some_of_the_errors(m, reach):
    prediction, target, known = (torch.from_numpy(x) for x in m)
    near = near_edge(target, reach)
    edge = error_counts(prediction == 1, target, known, near)
    whole = error_counts(prediction == 1, target, known, torch.ones_like(near))
    c = count(*m)
    assert whole["rim_false"] + whole["rim_missed"] == c["union_fg"] - c["inter_fg"]
    assert whole["rim_false"] == c["predicted"] - c["inter_fg"]
    assert edge["rim_false"] == (near.numpy() & (m[0] == 1) & (m[1] == 0)).sum()
    assert edge["rim_missed"] == (near.numpy() & (m[0] == 0) & (m[1] == 1)).sum()
    assert edge["known"] == (m[2] == 1).sum()


def test_padding_adds_nothing():
    random = np.random.default_rng(0)
    prediction, target, known = (random.integers(0, 2, (9, 7), np.uint8) for _ in range(3))
    values = ((prediction, 1), (target, 255), (known, 255))
    padded = [np.pad(mask, ((0, 4), (0, 6)), constant_values=value) for mask, value in values]
    assert count(*padded) == count(prediction, target, known)
    assert count(prediction, target, known)["valid"] == 63


def test_exact_prediction_and_its_opposite():
    target = np.array([[1, 1, 0, 255]], np.uint8)
    known = np.array([[0, 0, 1, 255]], np.uint8)
    right, wrong = (count(p.astype(bool), target, known) for p in (target, target != 1))
    assert right == dict(
        inter_fg=2, union_fg=2, inter_bg=1, union_bg=1, predicted=2, on_known=0, valid=3
    )
    assert wrong == dict(
        inter_fg=0, union_fg=3, inter_bg=0, union_bg=3, predicted=1, on_known=1, valid=3
    )


ZERO = torch.zeros(4, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    "bad, words",
    [
        ((ZERO[:3], ZERO, ZERO), r"\(3, 5\), \(4, 5\), \(4, 5\)"),
        ((ZERO.float(), ZERO, ZERO), "float32"),
        ((ZERO + 255, ZERO, ZERO), "maximum 255"),
        ((ZERO, ZERO.long(), ZERO), "torch.int64 and torch.uint8"),
        ((ZERO, ZERO, ZERO.bool()), "torch.uint8 and torch.bool"),
        ((ZERO, ZERO + 2, ZERO), "one class map"),
        ((ZERO, ZERO + 254, ZERO + 254), "one class map"),
        ((ZERO, ZERO, ZERO + 7), "one class map"),
        ((ZERO, ZERO + 255, ZERO), "one class map"),
        ((ZERO, ZERO, ZERO + 255), "one class map"),
    ],
)
def test_masks_that_do_not_belong_together_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        pixel_counts(*bad)


# --- summarise


episode = st.tuples(st.integers(1, 4), masks())


def as_rows(episodes):
    return pd.DataFrame([{"cls": cls, **count(*m)} for cls, m in episodes])


@given(st.lists(episode, min_size=1, max_size=8))
def test_summary_equals_loops_over_all_pixels(episodes):
    pixels = []
    for cls, m in episodes:
        triples = zip(*(mask.ravel().tolist() for mask in m))
        pixels += [(cls, p, t, k) for p, t, k in triples if t != 255]
    share = lambda part, whole: len(part) / len(whole) if whole else math.nan
    per_class = {}
    for cls in {cls for cls, _ in episodes}:
        own = [(p, t) for c, p, t, _ in pixels if c == cls]
        per_class[cls] = share([1 for p, t in own if p and t], [1 for p, t in own if p or t])
    if any(math.isnan(iou) for iou in per_class.values()):
        with pytest.raises(ValueError, match="no foreground"):
            summarise(as_rows(episodes))
        return
    summary = summarise(as_rows(episodes))
    chosen = lambda test: [1 for _, p, t, k in pixels if test(p, t, k)]
    ratio_of = lambda part, whole: share(chosen(part), chosen(whole))
    foreground = ratio_of(lambda p, t, k: p and t, lambda p, t, k: p or t)
    background = ratio_of(lambda p, t, k: not p and not t, lambda p, t, k: not p or not t)
    confusion = ratio_of(lambda p, t, k: p and k, lambda p, t, k: p)
    assert summary["per_class"] == pytest.approx(per_class)
    assert summary["miou"] == pytest.approx(sum(per_class.values()) / len(per_class))
    assert summary["fb_iou"] == pytest.approx((foreground + background) / 2, nan_ok=True)
    assert summary["confusion"] == pytest.approx(confusion, nan_ok=True)


def rows(*values):
    return pd.DataFrame(values, columns=["cls", *COUNTS])


BY_HAND = rows(
    (3, 1, 2, 6, 7, 2, 0, 8),
    (3, 90, 100, 50, 60, 95, 5, 150),
    (7, 0, 20, 80, 100, 10, 10, 100),
)


def test_any_mapping_of_columns_is_summarised():
    columns = {name: BY_HAND[name].tolist() for name in BY_HAND}
    assert summarise(columns) == summarise(BY_HAND)
    assert summarise({name: np.array(values) for name, values in columns.items()}) == summarise(
        BY_HAND
    )


def test_miou_is_the_sum_in_the_order_of_classes_over_their_number():
    random = np.random.default_rng(0)
    counts = random.integers(1, 10**6, (60, len(COUNTS)))
    table = pd.DataFrame(counts, columns=COUNTS).assign(cls=random.permutation(60) % 20 + 1)
    summary = summarise(table)
    assert list(summary["per_class"]) == sorted(summary["per_class"])
    total = 0.0
    for cls in sorted(set(table.cls)):
        own = table[table.cls == cls]
        total += int(own.inter_fg.sum()) / int(own.union_fg.sum())
    assert summary["miou"] == total / 20


@given(st.permutations(range(3)), st.permutations(["query", "cls", *COUNTS]))
def test_order_of_rows_and_columns_does_not_matter(order, columns):
    shuffled = BY_HAND.assign(query="image.jpg").iloc[list(order)][columns]
    assert summarise(shuffled) == summarise(BY_HAND)


def test_classes_weigh_equally_and_pixels_are_summed_first():
    summary = summarise(BY_HAND)
    assert summary["per_class"] == pytest.approx({3: 91 / 102, 7: 0.0})
    assert summary["miou"] == pytest.approx(91 / 204)
    assert summary["fb_iou"] == pytest.approx((91 / 122 + 136 / 167) / 2)
    assert summary["confusion"] == pytest.approx(15 / 107)
    assert all(type(summary[name]) is float for name in ("miou", "fb_iou", "confusion"))


def test_nothing_predicted_has_no_confusion():
    summary = summarise(rows((1, 0, 10, 90, 100, 0, 0, 100)))
    assert summary["miou"] == 0 and summary["fb_iou"] == 0.45 and math.isnan(summary["confusion"])


def test_no_background_anywhere_has_no_fb_iou():
    assert math.isnan(summarise(rows((1, 10, 10, 0, 0, 10, 0, 10)))["fb_iou"])


@pytest.mark.parametrize(
    "bad, words",
    [
        (BY_HAND[:0], "empty"),
        (BY_HAND.drop(columns=["cls", "valid"]), "cls, valid"),
        (rows((4, 0, 0, 9, 9, 0, 0, 9), (5, 1, 1, 8, 8, 1, 0, 9)), "class 4 has no foreground"),
    ],
)
def test_rows_that_cannot_be_summarised_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        summarise(bad)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16)])
def test_the_band_holds_the_same_share_of_an_object_of_any_size(shape):
    "One of fixed width would hold all of the small one."
    shares = []
    for scale in (5, 10, 40):
        h, w = (n * scale for n in shape)
        target = torch.zeros(3 * h, 3 * w, dtype=torch.uint8)
        target[h : 2 * h, w : 2 * w] = 1
        reach = rim_reach(target)
        assert reach == round(0.1 * (h * w) ** 0.5)
        near = near_edge(target, reach) & (target == 1)
        assert near.sum() == h * w - (h - 2 * reach) * (w - 2 * reach)
        shares.append(near.sum() / (h * w))
    assert torch.stack(shares).numpy() == pytest.approx(shares[0].item(), abs=1e-6)
    assert rim_reach(torch.zeros(4, 4, dtype=torch.uint8)) == 1
