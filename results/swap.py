"""What the models of a run owe to their supports: own ones, and those of another class.

    python results/swap.py FOLDER RUN [RUN ...] [--pairs N]

Of each fold's episode list the first N episodes of each class (50 by default) are scored with one
shot, with their own supports and with those of each other class of the fold (10_support_swap). The
sums of pixel counts go to FOLDER/swap.csv.gz, in place of those of the same runs, and the share of
each method's mIoU that depends on the support is printed, with its interval over query images and
seeds.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from collect import measure_runs

from celp_nb.data.episodes import Episodes
from celp_nb.engine.feature_bank import evaluate
from celp_nb.repro.defaults import settings_of_run
from celp_nb.repro.fold_evaluation import first_of_each_class
from celp_nb.repro.fold_training import trained_models
from celp_nb.repro.folds import Fold, read_episode_list
from celp_nb.repro.gains import support_effects, swap_rows
from celp_nb.repro.presets import markdown_grid
from celp_nb.repro.setup import Setup, check_data, prepare
from celp_nb.repro.support_swap import swap_supports


def fold_rows(setup: Setup, fold: Fold, run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `swap_rows` of one fold of a run."
    models = trained_models(setup, fold, run)
    listed = read_episode_list(run / f"fold{fold.number}" / "episodes.csv", setup.val, fold, 1)
    chosen = first_of_each_class(listed, pairs)
    episodes = Episodes(*(x[chosen] for x in listed.shots(1)))
    labels = {"fold": fold.number, "seed": setup.config.runtime.seed}
    def scored(asked, truth):
        return evaluate(models, setup.memory, truth, asked, fold.train_classes).assign(**labels)

    own, swapped = scored(episodes, setup.val), []
    classes = np.unique(episodes.cls).tolist()
    for shift in range(1, len(classes)):
        asked, truth, which = swap_supports(episodes, setup.val, classes, shift)
        rows = scored(asked, truth)
        swapped.append(rows.assign(episode=which[rows.episode]))
    return swap_rows(own, pd.concat(swapped))


def run_swap(run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `swap_rows` of all folds of a run."
    setup = prepare(settings_of_run(run))
    check_data(setup, run)
    tables = []
    for fold in setup.folds:
        tables.append(fold_rows(setup, fold, run, pairs))
        print(f"{run}: fold {fold.number}", flush=True)
    return pd.concat(tables).assign(run=run.name)


def effects_table(rows: pd.DataFrame) -> str:
    "For each method its mIoU with own supports less that with others', and the share that this is."
    effects, lines = support_effects(rows), []
    for method in dict.fromkeys(effects.index.get_level_values(0)):
        cells = [effects.loc[method, measure] for measure in ("effect", "share")]
        lines.append([method, *(f"{c.value:.1f} [{c.low:.1f}, {c.high:.1f}]" for c in cells)])
    return markdown_grid(["method", "points of mIoU [95 %]", "percent of mIoU [95 %]"], lines)


if __name__ == "__main__": measure_runs("swap", run_swap, effects_table, __doc__, pairs=50)
