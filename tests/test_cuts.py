"Cuts of the probability: models that mark more, and a cut that is not chosen on its own test."

import numpy as np
import pandas as pd
import pytest
import torch

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import Episodes
from celp_nb.data.images import read_image
from celp_nb.data.transforms import binary_mask
from celp_nb.engine.backbones import feature_channels, load_backbone
from celp_nb.engine.evaluation import evaluate_plainly
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import build_model, find_method
from celp_nb.engine.segmenter import Segmenter
from celp_nb.ops import VOID
from celp_nb.repro.config import make_config
from celp_nb.repro.cuts import (
    ANSWER_CUTS,
    at_every_cut,
    cuts_of_other_folds,
    miou_at_cuts,
    rows_at,
)
from celp_nb.repro.defaults import settings_of_run
from celp_nb.repro.runs import run
from celp_nb.repro.setup import prepare

SIDE = 57


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
def test_an_answer_at_a_cut_is_the_probability_cut_there(decoder):
    "In a segmenter, in the plain evaluation and in the fast one."
    torch.manual_seed(0)
    backbone, data, c = load_backbone("tiny"), samples("val"), 3
    model = build_model(feature_channels(backbone)[0], 16, (8, 4), method=find_method(decoder))
    model.eval()
    q, s = np.flatnonzero(data.pixels[:, c - 1] >= 2500)[:2].tolist()
    support = read_image(data, s), binary_mask(data.read_mask(s), c)
    def ask(**cut):
        segmenter = Segmenter(model, backbone, SIDE, **cut).set_support(*support)
        return segmenter.predict(read_image(data, q))

    p, known = ask().probability, data.read_mask(q) != VOID
    middle, zoo = float(np.median(p)), at_every_cut({decoder: model})
    assert [*zoo] == [f"{decoder} ≥ {cut}" for cut in ANSWER_CUTS]
    zoo["middle"] = zoo[f"{decoder} ≥ 0.5"]._replace(cut=middle)
    episode = Episodes(np.array([c]), np.array([q]), np.array([[s]]))
    fast = evaluate(zoo, feature_bank(backbone, data, SIDE), data, episode, [6])
    plain = evaluate_plainly(zoo, backbone, data, episode, [6], SIDE)
    for cut, *counted in zip((*ANSWER_CUTS, middle), fast.predicted, plain.predicted):
        certain, wanted = abs(p - cut) > 1e-5, p > cut
        assert (ask(cut=cut).mask == wanted)[certain].all()
        assert max(abs((wanted & known).sum() - n) for n in counted) <= (~certain).sum()
    assert 0.4 < (p > middle).mean() < 0.6


@pytest.mark.parametrize("cut", [0, 1, -0.1, 30, float("nan")])
def test_a_cut_that_is_no_probability_is_refused_before_anything_is_read(cut):
    with pytest.raises(ValueError, match="give a probability between 0 and 1"):
        Segmenter.from_pretrained("no such model", cut=cut)
    with pytest.raises(ValueError, match="give a probability between 0 and 1"):
        Segmenter(None, None, SIDE, cut=cut)


def rows_of(scores, cuts=(0.2, 0.5)):
    "Rows of one class of 100 pixels: scores by method and fold, one per cut."
    return pd.DataFrame([
        dict(method=f"{m} ≥ {cut}", fold=f, cls=1, inter_fg=iou, union_fg=100, query="a")
        for (m, f), ious in scores.items()
        for cut, iou in zip(cuts, ious)
    ])


SCORES = {("a", 0): (30, 40), ("a", 1): (50, 20), ("a", 2): (50, 45), ("b", 0): (1, 2)}


def test_scores_by_fold_and_cut_are_means_over_classes():
    rows = rows_of({("a", 0): (30, 40)})
    both = pd.concat([rows, rows.assign(cls=2, inter_fg=10), rows.assign(cls=2, inter_fg=30)])
    table = miou_at_cuts(both)
    assert table.loc[("a", 0)].to_dict() == {0.2: 25, 0.5: 30}


def test_the_cut_of_a_fold_is_that_of_the_others():
    table = miou_at_cuts(rows_of({k: v for k, v in SCORES.items() if k[0] == "a"}))
    cuts = cuts_of_other_folds(table)
    assert cuts.to_dict() == {("a", 0): 0.2, ("a", 1): 0.5, ("a", 2): 0.2}
    with pytest.raises(ValueError, match="there is one fold; give two"):
        cuts_of_other_folds(miou_at_cuts(rows_of(SCORES)))


def test_rows_of_the_chosen_cuts_have_the_methods_own_name():
    rows = rows_of(SCORES)
    chosen = pd.Series({("a", 0): 0.5, ("a", 2): 0.2})
    found = rows_at(rows, chosen)
    assert found[["method", "fold", "inter_fg"]].values.tolist() == [["a", 0, 40], ["a", 2, 50]]


@pytest.fixture
def script(results_script): return results_script("cuts")


def test_cuts_are_scored_on_the_test_and_on_classes_left_out_of_training(tmp_path, script):
    small = dict(crop=57, width=8, iterations=2, pairs=2, folds=(0,), device="cpu", trivial=False)
    run(make_config(**small, methods=("PFENet",), classes=9), tmp_path / "few")
    run(make_config(**small, methods=("PFENet",)), tmp_path / "all")
    setup = prepare(settings_of_run(tmp_path / "few"))
    fold, train = setup.folds[0], setup.train
    asked, shown = script.left_out_episodes(setup, fold, 3), {*fold.training.query}
    shown |= {*fold.training.support.ravel()}
    left_out = set(range(1, 21)) - {*fold.train_classes} - {*fold.test_classes}
    assert set(asked.cls) == left_out and len(left_out) == 6 and len(asked.cls) == 18
    used = {*asked.query, *asked.support.ravel()}
    assert shown and not used & shown
    assert all(train.pixels[i, c - 1] for c, i in zip(asked.cls, asked.query))
    rows = script.run_rows(tmp_path / "few", 1)
    by_asked = rows.groupby("asked").cls.unique()
    assert set(by_asked["test"]) == {*fold.test_classes} and set(by_asked["left out"]) == left_out
    assert set(rows[rows.asked == "left out"]["query"]) == {"all"}
    assert "left out" in script.cuts_table(rows)
    assert set(script.run_rows(tmp_path / "all", 1).asked) == {"test"}, "none was left out"
