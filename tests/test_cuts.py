"Cuts of the probability: models that mark more, and a cut that is not chosen on its own test."

import pandas as pd
import pytest
import torch

from celp_nb.engine.methods import build_model, find_method, trial_conditioning
from celp_nb.repro.cuts import (
    ANSWER_CUTS,
    at_every_cut,
    cuts_of_other_folds,
    miou_at_cuts,
    rows_at,
    with_cut,
)


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
@torch.no_grad()
def test_a_cut_is_one_of_the_probability_and_the_model_stays_as_it_was(decoder):
    torch.manual_seed(0)
    model = build_model(8, 16, (8, 4), method=find_method(decoder)).eval()
    answer = lambda model: model.decoder(trial)[0]
    trial = trial_conditioning(16, 9, 65, 2, 1)
    before = answer(model)
    p, shown = before.softmax(1)[:, 1], at_every_cut({decoder: model})
    assert [*shown] == [f"{decoder} ≥ {c}" for c in ANSWER_CUTS]
    middle = float(p.median())
    for cut in (*ANSWER_CUTS, middle):
        assert (answer(with_cut(model, cut)).argmax(1) == (p > cut))[(p - cut).abs() > 1e-6].all()
    assert 0.2 < (p > middle).float().mean() < 0.8 and (answer(model) == before).all()


@pytest.mark.parametrize("cut", [0, 1, -0.1, 30, float("nan")])
def test_a_cut_that_is_no_probability_is_refused(cut):
    with pytest.raises(ValueError, match="give a probability between 0 and 1"):
        with_cut(build_model(8, 16, (8, 4)), cut)


def test_a_decoder_that_ends_otherwise_is_refused():
    model = build_model(8, 16, (8, 4))
    model.decoder = torch.nn.Identity()
    with pytest.raises(ValueError, match="Identity has no classifier `cls`"): with_cut(model, 0.3)


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
