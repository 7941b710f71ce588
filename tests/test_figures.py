"""Figures of results: what is drawn where."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from celp_nb.repro.figures import (
    curve_figure,
    difference_figure,
    number_axis,
    training_differences,
)
from celp_nb.repro.statistics import paired_differences


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def invented(methods=("a", "b"), folds=(0, 1), seeds=(0, 1, 2)):
    rng = np.random.default_rng(0)
    shape = [(m, f, s, c, q) for m in methods for f in folds for s in seeds for c in (1, 2)
             for q in range(4)]
    rows = pd.DataFrame(shape, columns=["method", "fold", "seed", "cls", "query"])
    rows = rows.assign(cls=rows.cls + 2 * rows.fold, episode=rows["query"] + 4 * rows.cls, shots=1)
    counts = {"inter_fg": 40, "union_fg": 100, "on_known": 9, "predicted": 60}
    for name, low in counts.items(): rows[name] = rng.integers(low, low + 20, len(rows))
    return rows


ROWS = invented()


def test_a_point_is_the_difference_of_one_training():
    points = training_differences(ROWS, "b", "a").set_index(["fold", "seed"])
    assert len(points) == 6
    for (fold, seed), point in points.iterrows():
        part = ROWS[(ROWS.fold == fold) & (ROWS.seed == seed)]
        sums = part.groupby(["method", "cls"])[["inter_fg", "union_fg"]].sum()
        iou = (100 * sums.inter_fg / sums.union_fg).groupby("method").mean()
        assert point.mIoU == pytest.approx(iou["b"] - iou["a"])
        sums = part.groupby("method")[["on_known", "predicted"]].sum()
        ratio = 100 * sums.on_known / sums.predicted
        assert point.confusion == pytest.approx(ratio["b"] - ratio["a"])
    table = paired_differences(ROWS, "b", "a", 20)
    assert points.mIoU.mean() == pytest.approx(table.difference["mIoU"])
    assert points.confusion.mean() == pytest.approx(table.difference["confusion"])


def test_trainings_without_a_counterpart_are_no_points():
    rows = ROWS[~((ROWS.method == "a") & (ROWS.seed == 2))]
    assert set(training_differences(rows, "b", "a").seed) == {0, 1}


def test_a_figure_has_a_point_per_training_a_mean_and_its_interval():
    fig = difference_figure(ROWS, [("b", "a")], "title", draws=20)
    table, points = paired_differences(ROWS, "b", "a", 20), training_differences(ROWS, "b", "a")
    for ax, measure in zip(fig.axes, ("mIoU", "confusion")):
        drawn = [line.get_xdata() for line in ax.get_lines() if line.get_label().startswith("fold")]
        assert sorted(np.concatenate(drawn)) == pytest.approx(sorted(points[measure]))
        interval, mean = (line.get_xdata() for line in ax.get_lines()[:2])
        d = table.loc[measure]
        assert list(interval) == pytest.approx([d.low, d.high])
        assert list(mean) == pytest.approx([d.difference])
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fold 0", "fold 1"]
    assert not any(ax.get_legend() for ax in fig.axes)


def test_settings_stand_where_their_numbers_are():
    _, (far, near) = plt.subplots(1, 2)
    number_axis(far, [0, 0.1, 0.25, 1, 2], "weight")
    number_axis(near, [0.25, 0.4, 0.65], "δ")
    assert (far.get_xscale(), near.get_xscale()) == ("function", "linear")
    assert far.get_xticks().tolist() == [0, 0.1, 0.25, 1, 2]
    assert [label.get_text() for label in near.get_xticklabels()] == ["0.25", "0.4", "0.65"]
    at = far.transScale.transform([(x, 1) for x in (0, 0.25, 1)])[:, 0]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0])  # roots: 0, ½, 1


def test_panels_in_a_row_have_one_range():
    table = pd.DataFrame({"curve": "x", "at": [1, 2], "value": [1.0, 2], "low": 0, "high": 3})
    fig = curve_figure({"one": table, "two": table.assign(value=[50.0, 60], high=70)}, "x", "y")
    one, two = fig.axes
    assert one.get_ylim() == two.get_ylim() and one.get_ylim()[1] >= 70
    assert len(fig.legends) == 1 and two.get_ylabel() == ""


def test_a_figure_leaves_what_a_notebook_sets_up_when_the_first_one_is_drawn(monkeypatch):
    "IPython turns its display of figures on while the first one is made."
    made = plt.subplots

    def first_one(*args, **settings):
        monkeypatch.setitem(plt.rcParams, "interactive", not before)
        return made(*args, **settings)

    before = plt.rcParams["interactive"]
    monkeypatch.setattr(plt, "subplots", first_one)
    difference_figure(ROWS, [("b", "a")], draws=20)
    assert plt.rcParams["interactive"] is not before and plt.rcParams["text.parse_math"]
