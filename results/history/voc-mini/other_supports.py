"""Evaluate the models of runs with supports of another class: the support swap.

    OMP_NUM_THREADS=1 python results/history/voc-mini/other_supports.py runs/vm-main-s0 [RUN ...]

Adds to other_supports.csv.gz. One shot, the run's own episode lists. A row per episode and method:
pixel counts as of `evaluate`, of the query's own object, summed over `questions`, the number of
shifts of `celp_nb.repro.support_swap.swap_supports` that were possible.
"""

import sys
import time
from pathlib import Path

import pandas as pd

from celp_nb.data.episodes import atomic_file
from celp_nb.engine.feature_bank import evaluate
from celp_nb.metrics import COUNTS
from celp_nb.repro.config import read_config
from celp_nb.repro.fold_training import trained_models
from celp_nb.repro.setup import prepare
from celp_nb.repro.support_swap import swap_supports

SHIFTS = (1, 2)
OUT = Path(__file__).with_name("other_supports.csv.gz")


def swapped_rows(run: Path) -> pd.DataFrame:
    "Pixel counts of every episode of a run, summed over the shifts."
    setup, tables = prepare(read_config(run)), []
    for fold in setup.folds:
        began, models = time.time(), trained_models(setup, fold, run)
        for shift in SHIFTS:
            episodes, data, which = swap_supports(
                fold.evaluation, setup.val, fold.test_classes, shift
            )
            rows = evaluate(models, setup.memory, data, episodes, fold.train_classes)
            own = which[rows.episode]  # number of the episode in the run's list
            rows = rows.assign(episode=own, cls=fold.evaluation.cls[own])
            seed = setup.config.runtime.seed
            tables.append(rows.assign(run=run.name, fold=fold.number, seed=seed))
        print(f"{run.name} fold {fold.number}: {time.time() - began:.0f} s", flush=True)
    keys = ["run", "seed", "fold", "method", "cls", "episode"]
    groups = pd.concat(tables).groupby(keys, sort=False)
    return groups[list(COUNTS)].sum().assign(questions=groups.size()).reset_index()


def add(new: pd.DataFrame, run: str) -> None:
    "Write the table with the new rows in place of those of the same run."
    if OUT.is_file():
        old = pd.read_csv(OUT)
        new = pd.concat([old[old.run != run], new], ignore_index=True)
    with atomic_file(OUT, "wb") as f:
        new.to_csv(f, index=False, compression={"method": "gzip", "mtime": 0})


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    if len(sys.argv) < 2: sys.exit(__doc__)
    for run in map(Path, sys.argv[1:]): add(swapped_rows(run), run.name)
