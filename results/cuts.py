"""Does one method segment better, or does it only mark more? Its scores at every cut.

    python results/cuts.py FOLDER RUN [RUN ...] [--pairs N]

Scores the models of runs at several cuts of the probability (44e_cuts): the first N episodes of
each class (50 by default) of each fold's list, with the shots of the run. Of a run with fewer
training classes (--classes) also N episodes of each class that it left out, in training
photographs that it did not use: on them a cut can be chosen without the test. The pixel counts go
to FOLDER/cuts.csv.gz, in place of those of the same runs: of each query image and class where
`asked` is "test", of each class where it is "left out". The mean of the folds at each cut is
printed.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from collect import by_question, measure_runs

from celp_nb.data.episodes import Episodes, pairs_per_class
from celp_nb.engine.feature_bank import evaluate
from celp_nb.repro.config import rules_of_run
from celp_nb.repro.cuts import ANSWER_CUTS, at_every_cut, miou_at_cuts
from celp_nb.repro.defaults import settings_of_run
from celp_nb.repro.fold_evaluation import first_of_each_class
from celp_nb.repro.fold_training import trained_models
from celp_nb.repro.folds import Fold, read_episode_list, split_classes
from celp_nb.repro.presets import markdown_grid
from celp_nb.repro.setup import Setup, check_data, evaluation_memory, prepare


def listed_episodes(setup: Setup, fold: Fold, run: Path, pairs: int) -> Episodes:
    "The first episodes of each class in a fold's list."
    path = run / f"fold{fold.number}" / "episodes.csv"
    listed = read_episode_list(path, setup.val, fold, max(setup.config.evaluation.shots))
    return Episodes(*(x[first_of_each_class(listed, pairs)] for x in listed))


def left_out_episodes(setup: Setup, fold: Fold, pairs: int) -> Episodes | None:
    "Of training classes that a run left out, in photographs not trained on; None without any."
    config, train = setup.config, setup.train
    possible, _ = split_classes(config, train, setup.val, fold.number)
    classes = sorted({*possible}.difference(fold.train_classes, fold.held))
    if not classes: return None
    unseen = train.pixels.copy()
    unseen[np.concatenate([fold.training.query, fold.training.support.ravel()])] = 0
    shots, seed = max(config.evaluation.shots), config.evaluation.episode_seed
    how = {"class_names": train.class_names, "query_pixels": rules_of_run(config.data).query_pixels}
    return pairs_per_class(unseen, classes, pairs, shots, seed, **how)


def fold_rows(setup: Setup, fold: Fold, run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `by_question` of one fold of a run, the method named with its cut."
    models, config, tables = at_every_cut(trained_models(setup, fold, run)), setup.config, []
    training = evaluation_memory(config, setup.backbone, setup.train)._replace(void_seen=False)
    for asked, data, memory, episodes in (
        ("test", setup.val, setup.memory, listed_episodes(setup, fold, run, pairs)),
        ("left out", setup.train, training, left_out_episodes(setup, fold, pairs)),
    ):
        if not episodes: continue
        shots = config.evaluation.shots
        rows = evaluate(models, memory, data, episodes, fold.train_classes, shots)
        if asked == "left out": rows = rows.assign(query="all")
        rows = by_question(rows.assign(fold=fold.number, seed=config.runtime.seed))
        tables.append(rows.assign(asked=asked))
    return pd.concat(tables)


def run_rows(run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `fold_rows` of all folds of a run."
    setup, tables = prepare(settings_of_run(run)), []
    check_data(setup, run)
    for fold in setup.folds:
        tables.append(fold_rows(setup, fold, run, pairs))
        print(f"{run}: fold {fold.number}", flush=True)
    return pd.concat(tables).assign(run=run.name)


def cuts_table(rows: pd.DataFrame) -> str:
    "The mIoU of each method at each cut, mean of the folds."
    lines = []
    for (asked, shots), part in rows.groupby(["asked", "shots"], sort=False):
        means = miou_at_cuts(part).groupby("method").mean()
        for name, line in means.iterrows():
            lines.append([asked, shots, name, *(f"{x:.1f}" for x in line)])
    return markdown_grid(["classes", "shots", "method", *map(str, ANSWER_CUTS)], lines)


if __name__ == "__main__": measure_runs("cuts", run_rows, cuts_table, __doc__, pairs=50)
