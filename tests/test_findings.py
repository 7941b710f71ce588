"""What a run says: the sentence of a difference, the pairs, and the prior's best cut."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from celp_nb.repro import findings
from celp_nb.repro.config import make_config, write_config
from celp_nb.repro.findings import (
    PRIOR,
    finding_pairs,
    finding_rows,
    findings_figure,
    findings_text,
    sentence,
    write_findings,
)


def line(difference, low, high, shots=1):
    return SimpleNamespace(
        method="b", than="a", shots=shots, difference=difference, low=low, high=high
    )


@pytest.mark.parametrize(
    "score, confusion, said",
    [
        ((2, 1, 3), (0, -1, 1), "b is better than a with one shot: +2.0 [+1.0, +3.0] points of"),
        ((-2, -3, -1), (0, -1, 1), "b is worse than a with one shot: −2.0 [−3.0, −1.0] points"),
        ((1, -1, 3), (0, -1, 1), "b is not told from a with one shot: +1.0 [−1.0, +3.0] points"),
        ((1, -1, 3), (-2, -3, -1), "mIoU; it confuses known classes less: −2.0 [−3.0, −1.0]."),
        ((1, -1, 3), (2, 1, 3), "mIoU; it confuses known classes more: +2.0 [+1.0, +3.0]."),
        ((1, -1, 3), (np.nan, np.nan, np.nan), "+1.0 [−1.0, +3.0] points of mIoU."),
        ((1, -1, 3, 5), (0, -1, 1), "with 5 shots"),
    ],
)
def test_a_sentence_follows_from_the_interval(score, confusion, said):
    assert said in sentence(line(*score), line(*confusion))


def rows_of(method, fold, share):
    "Ten queries of two classes, of whose 100 pixels a share is found."
    lines = []
    for episode in range(20):
        found = round(100 * share) + episode % 3
        counts = dict(inter_fg=found, union_fg=100, inter_bg=800, union_bg=900)
        counts |= dict(predicted=found, on_known=10 - fold, valid=1000)
        asked = dict(episode=episode, cls=2 * fold + 1 + episode % 2, query=f"i{episode // 2}")
        lines.append(dict(method=method, shots=1, fold=fold, seed=0, **asked, **counts))
    return lines


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run of two folds, in each of which another cut of the prior is best."
    shares = {"PFENet": 0.4, "PFENet+CE": 0.5, "prior ≥ 0.30": 0.2, "prior ≥ 0.50": 0.3}
    rows = pd.DataFrame(
        [x for m, share in shares.items() for fold in (0, 1) for x in rows_of(m, fold, share)]
    )
    best = {0: "prior ≥ 0.30", 1: "prior ≥ 0.50"}
    results = pd.DataFrame([dict(fold=f, method=m, shots=1) for f, m in best.items()])
    monkeypatch.setattr(findings, "every_row", lambda folder: rows)
    monkeypatch.setattr(findings, "read_table", lambda path: results)
    write_config(tmp_path, make_config(methods=("PFENet", "PFENet+CE")))
    return tmp_path


def test_of_the_prior_the_best_cut_of_each_fold_is_taken(run):
    rows = finding_rows(run)
    chosen = rows[rows.method == PRIOR]
    assert set(rows.method) == {PRIOR, "PFENet", "PFENet+CE"} and len(chosen) == 40
    assert chosen.groupby("fold").inter_fg.mean().tolist() == pytest.approx([20.95, 30.95])


def test_a_run_says_what_beats_the_prior_and_what_ce_adds(run):
    text = findings_text(finding_rows(run))
    assert "* PFENet is better than the prior's best cut with one shot: +15.0" in text
    assert "* PFENet+CE is better than the prior's best cut with one shot: +25.0" in text
    assert "* PFENet+CE is better than PFENet with one shot: +10.0" in text
    assert text.index("What follows") < text.index("| difference")
    axes = findings_figure(finding_rows(run), "x").axes
    assert [ax.get_xlabel()[:4] for ax in axes] == ["mIoU", "know"]


def test_votes_with_several_shots_alone_leave_the_figure_as_it_is(run):
    rows = finding_rows(run)
    votes = rows[rows.method == "PFENet"].assign(method="PFENet v-2", shots=2)
    axes = findings_figure(pd.concat([rows, votes]), "x").axes
    plain = findings_figure(rows, "x").axes
    labels = [[t.get_text() for t in axs[0].get_yticklabels()] for axs in (axes, plain)]
    assert labels[0] == labels[1]


def test_findings_are_written_once(run):
    files, stamps = [run / f"findings.{end}" for end in ("md", "png")], []
    for _ in range(2):
        text = write_findings(run)
        stamps.append([file.stat().st_mtime_ns for file in files])
    assert stamps[0] == stamps[1] and files[0].read_text(encoding="utf-8") == text


def test_a_run_without_rows_leaves_no_findings(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "every_row", lambda folder: pd.DataFrame())
    assert write_findings(tmp_path) == "" and not [*tmp_path.iterdir()]


def test_without_a_prior_only_what_ce_adds_is_compared():
    methods = pd.DataFrame({"method": ["PFENet", "PFENet+CE"]})
    assert finding_pairs(methods) == [("PFENet+CE", "PFENet")]
