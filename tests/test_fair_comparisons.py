"""Comparisons of a table: like with like, counted, corrected, and with what it could have found."""

import numpy as np
import pandas as pd
import pytest
from folders import TINY

from celp_nb.repro.config import change_config, write_config
from celp_nb.repro.fair_comparisons import (
    common_rows,
    compared_pairs,
    detectable,
    differences_text,
    holm,
    p_text,
    power_line,
    power_of,
    row_pairs,
    run_rows,
    runs_differences,
)
from celp_nb.repro.statistics import paired_differences, t_quantile
from celp_nb.repro.tables import TABLES


def rows_of(method, seeds, gain=0, folds=(0, 1), **columns):
    "Two classes a fold, eight images each; trainings of a method differ by a point or two."
    rng = np.random.default_rng([*map(ord, method)])
    keys = [(f, s, 2 * f + c, q) for f in folds for s in seeds for c in (1, 2) for q in range(8)]
    table = pd.DataFrame(keys, columns=["fold", "seed", "cls", "query"])
    luck = {key: rng.normal(0, 10) for key in zip(table.fold, table.seed)}
    own = [luck[key] for key in zip(table.fold, table.seed)]
    inter = 400 + 10 * gain + np.array(own) + rng.normal(0, 9, len(table))
    table["episode"] = table["query"] + 8 * table.cls
    return table.assign(
        method=method,
        shots=1,
        inter_fg=inter.round().astype(int),
        union_fg=1000,
        on_known=rng.integers(1, 9, len(table)),
        predicted=10,
        **columns,
    )


def test_seeds_and_folds_that_one_of_two_lacks_are_left_out_and_said():
    a, b = rows_of("a", (0,)), rows_of("b", (0, 1, 2))
    kept, note = common_rows(pd.concat([a, b]), "b", "a")
    assert set(kept.seed) == {0} and note == "b − a: b without fold 0, 1 with seed 1, 2."
    expected = paired_differences(pd.concat([a, b[b.seed == 0]]), "b", "a")
    pd.testing.assert_frame_equal(paired_differences(kept, "b", "a"), expected)
    some = b[~((b.fold == 1) & (b.seed == 2))]
    kept, note = common_rows(pd.concat([rows_of("a", (0, 1, 2)), some]), "b", "a")
    assert note == "b − a: a without fold 1 with seed 2." and len(kept) == 2 * 5 * 16
    assert common_rows(pd.concat([a, rows_of("b", (0,))]), "b", "a")[1] == ""


@pytest.mark.parametrize(
    "other, message",
    [
        (rows_of("a", (5,)), "b and a have no fold and seed in common; run the same"),
        (rows_of("a", (0,)).assign(query=9), "asked different episodes in fold 0 with seed 0"),
        (rows_of("a", (0,))[1:], "asked different episodes in fold 0 with seed 0"),
        (rows_of("a", (0,), training_set="y"), "trained on different images in fold 0 with seed 0"),
        (pd.concat([rows_of("a", (0,))] * 2), "fold 0 of a with seed 0 is there twice"),
    ],
)
def test_what_cannot_be_mended_is_refused(other, message):
    if "training_set" not in other: other = other.assign(training_set="x")
    rows = pd.concat([rows_of("b", (0,), training_set="x"), other])
    with pytest.raises(ValueError, match=message): common_rows(rows, "b", "a")


def test_holm_is_the_step_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1]) and holm([0.2]) == pytest.approx([0.2])
    rng = np.random.default_rng(0)
    for n in (3, 12):
        p = rng.random(n) ** 4
        for value, corrected in zip(p, holm(p)):
            up_to = sorted(x for x in p if x <= value)
            steps = [min(1, (n - k) * x) for k, x in enumerate(up_to)]
            assert corrected == pytest.approx(max(steps))


def test_power_is_the_share_of_intervals_without_zero():
    rng = np.random.default_rng(0)
    for freedom in (1, 3, 40):
        for effect in (0, 2, 5):
            error = np.sqrt(rng.chisquare(freedom, 40_000) / freedom)
            found = abs(effect + rng.normal(size=40_000)) > t_quantile(freedom) * error
            assert power_of(effect, freedom) == pytest.approx(found.mean(), abs=0.01)
    assert power_of(detectable(1, 5), 5) == pytest.approx(0.8, abs=1e-4)
    assert detectable(3.0, 5) == pytest.approx(3 * detectable(1.0, 5)) and detectable(0, 5) == 0


def test_a_family_is_all_pairs_shots_and_measures():
    one = pd.concat([rows_of("a", (0, 1, 2)), rows_of("b", (0, 1, 2), 9), rows_of("c", (0, 1, 2))])
    rows = pd.concat([one, one.assign(shots=5)])
    table, notes = compared_pairs(rows, [("b", "a"), ("c", "a"), ("d", "a")], draws=50)
    assert len(table) == 2 * 2 * 2 and not notes
    part = paired_differences(one, "b", "a", draws=50)
    line = table[(table.method == "b") & (table.shots == 5)].set_index("measure")
    columns = ["difference", "low", "high"]
    assert line.loc["mIoU", columns].tolist() == part.loc["mIoU", columns].tolist()
    assert (table.p_corrected.to_numpy() == holm(table.p)).all()
    assert (table.low_all < table.low).all() and (table.high_all > table.high).all()
    assert (table.detectable_all > table.detectable).all()
    found = (table.low > 0) | (table.high < 0)
    assert (found == (table.p < 0.05)).all()
    of_all = (table.low_all > 0) | (table.high_all < 0)
    assert (of_all == (table.p * 8 < 0.05)).all() and of_all.any() and not of_all.all()


def test_a_table_says_how_many_comparisons_and_what_it_could_have_found():
    a = rows_of("a", (0, 1, 2), training_set="x")
    rows = [a, rows_of("b", (0, 1), 9, training_set="x"), rows_of("c", (0, 1), training_set="y")]
    text = differences_text(pd.concat(rows), [("b", "a"), ("c", "a")], draws=50)
    assert "| b − a" in text and "c − a" not in text
    assert "2 comparisons; p is corrected for all of them (Holm): " in text
    assert "b − a: a without fold 0, 1 with seed 2." in text
    assert "c and a were trained on different images in fold 0 with seed 0" in text
    table, _ = compared_pairs(pd.concat(rows), [("b", "a")], draws=50)
    least = table.detectable[table.measure == "mIoU"].item()
    assert f"of {least:.1f} points would have been found four times in five" in text
    assert "64 episodes of 8 images" in text and "With one seed" not in text
    single = pd.concat(rows)[lambda x: x.seed == 0]
    table, _ = compared_pairs(single, [("b", "a")], draws=50)
    assert "With one seed this is the luck of the images alone" in power_line(table)
    assert differences_text(pd.DataFrame(), [("b", "a")]) == ""


def test_pairs_of_a_table():
    labels = ["PFENet, 2 classes", "PFENet+CE, 2 classes", "PFENet, all", "PFENet+CE, all"]
    assert row_pairs(labels) == [(labels[1], labels[0]), (labels[3], labels[2])]
    labels = ["as published", "no CE", "no CE, separate"]
    assert row_pairs(labels, labels[0]) == [("no CE", labels[0]), (labels[2], "no CE")]
    assert row_pairs(["v-1", "v-2"], "avg") == []
    labels = list(TABLES["1"].rows)
    assert dict(row_pairs(labels)) == {m: m.split("+")[0] for m in labels if "+CE" in m}
    few = "PFENet+CE contrast=1 delta=0.25, 5 classes"
    assert dict(row_pairs(list(TABLES["regime"].rows)))[few] == "PFENet, 5 classes"
    labels = ["PFENet separate=yes", "PFENet+CE separate=yes", "PFENet"]
    assert dict(row_pairs(labels))[labels[1]] == labels[0]


def written(folder, seed, **settings):
    "A folder of a run with the rows of one fold, as `celp run` leaves it."
    config = change_config(TINY, methods=("PFENet", "PFENet+CE"), seed=seed, **settings)
    (folder / "fold0").mkdir(parents=True)
    write_config(folder, config, {"train": "digest"})
    rows = [rows_of(m, (seed,), folds=(0,)) for m in ("PFENet", "PFENet+CE", "all foreground")]
    rows = pd.concat(rows).assign(query="007").drop(columns=["fold", "seed"])
    rows.to_csv(folder / "fold0" / "rows.csv", index=False)
    return folder


def test_rows_of_a_run_say_what_decides_whether_they_may_be_compared(tmp_path):
    rows = run_rows(written(tmp_path / "a", 3, episode_seed=4, photographs=50))
    assert set(rows.method) == {"PFENet", "PFENet+CE"} and set(rows["query"]) == {"007"}
    facts = rows[["run", "fold", "seed", "episode_seed", "training_set"]].drop_duplicates()
    assert facts.to_numpy().tolist() == [["a", 0, 3, 4, "digest all 50"]]
    write_config(tmp_path, TINY)
    assert run_rows(tmp_path).empty  # not evaluated yet


def test_runs_that_come_together_are_compared_together(tmp_path):
    runs = [written(tmp_path / f"{seed}", seed) for seed in (0, 1)]
    other = written(tmp_path / "other", 0, photographs=50)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text('{"data": "samples", "preset": null, "seed": 0}')
    with pytest.warns(UserWarning, match="of an earlier version"):
        assert runs_differences([tmp_path / "old"]) == ""
    text = runs_differences([*runs, other, tmp_path / "file.csv"])
    together, alone = text.split("## What CE adds: ")[1:]
    assert together.startswith(f"{runs[0]} + {runs[1]}\n") and " 0, 1 " in together
    assert alone.startswith(f"{other}\n") and "With one seed" in alone


def test_damaged_rows_are_named(tmp_path):
    folder = written(tmp_path / "a", 0)
    (folder / "fold0/rows.csv").write_text("")
    with pytest.raises(ValueError, match="fold0/rows.csv is damaged; celp evaluate .*a writes it"):
        run_rows(folder)


def test_questions_without_names_are_told_apart_by_their_class():
    a, b = rows_of("a", (0,)).assign(query=np.nan), rows_of("b", (0,)).assign(query=np.nan)
    assert len(common_rows(pd.concat([a, b]), "b", "a")[0]) == 64
    with pytest.raises(ValueError, match="asked different episodes"):
        common_rows(pd.concat([a, b.assign(cls=1)]), "b", "a")


def test_a_p_that_underflows_is_not_said_to_be_zero():
    assert [p_text(p) for p in (0.0, 2e-14, 0.034)] == ["< 1e−14", "2e−14", "0.034"]
    assert p_text(float("nan")) == "–"
