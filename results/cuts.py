"""Does one method segment better, or does it only mark more? Its scores at every cut.

    python results/cuts.py FOLDER RUN [RUN ...] [--pairs N]

Scores the models of runs at several cuts of the probability (44e_cuts): the first N episodes of
each class (50 by default) of each fold's list, with the shots of the run. The pixel counts of each
query image and class go to FOLDER/cuts.csv.gz, in place of those of the same runs, and the mean of
the folds at each cut is printed.
"""

from pathlib import Path

import pandas as pd
from collect import by_question, measure_runs

from celp_nb.data.episodes import Episodes
from celp_nb.engine.feature_bank import evaluate
from celp_nb.repro.cuts import ANSWER_CUTS, at_every_cut, miou_at_cuts
from celp_nb.repro.defaults import settings_of_run
from celp_nb.repro.fold_evaluation import first_of_each_class
from celp_nb.repro.fold_training import trained_models
from celp_nb.repro.folds import read_episode_list
from celp_nb.repro.presets import markdown_grid
from celp_nb.repro.setup import check_data, prepare


def run_rows(run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `by_question` of all folds of a run, the method named with its cut."
    setup, tables = prepare(settings_of_run(run)), []
    check_data(setup, run)
    shots = setup.config.evaluation.shots
    for fold in setup.folds:
        models = at_every_cut(trained_models(setup, fold, run))
        path = run / f"fold{fold.number}" / "episodes.csv"
        listed = read_episode_list(path, setup.val, fold, max(shots))
        episodes = Episodes(*(x[first_of_each_class(listed, pairs)] for x in listed))
        rows = evaluate(models, setup.memory, setup.val, episodes, fold.train_classes, shots)
        tables.append(rows.assign(fold=fold.number, seed=setup.config.runtime.seed))
        print(f"{run}: fold {fold.number}", flush=True)
    return by_question(pd.concat(tables)).assign(run=run.name)


def cuts_table(rows: pd.DataFrame) -> str:
    "The mIoU of each method at each cut, mean of the folds."
    lines = []
    for shots, of_shots in rows.groupby("shots"):
        means = miou_at_cuts(of_shots).groupby("method").mean()
        lines += [[shots, name, *(f"{x:.1f}" for x in line)] for name, line in means.iterrows()]
    return markdown_grid(["shots", "method", *map(str, ANSWER_CUTS)], lines)


if __name__ == "__main__": measure_runs("cuts", run_rows, cuts_table, __doc__, pairs=50)
