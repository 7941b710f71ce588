"""Ask the models of runs with supports of another class: what each episode still finds of its own object.

    OMP_NUM_THREADS=1 python results/voc-mini/other_supports.py runs/vm-main-s0 [RUN ...]     # adds to other_supports.csv.gz

One shot, the run's own episode lists. A row an episode and method: pixel counts as of `evaluate`, summed over `questions`, the shifts of `celp_nb.listening.other_supports` that were asked.
"""
import sys
import time
from pathlib import Path

import pandas as pd

from celp_nb.data.episodes import atomic_file
from celp_nb.engine.feature_bank import evaluate
from celp_nb.metrics import COUNTS
from celp_nb.repro.runs import prepare, read_config, trained_models
from celp_nb.repro.support_swap import swap_supports

SHIFTS = (1, 2)
OUT = Path(__file__).with_name("other_supports.csv.gz")


def asked_otherwise(run: Path) -> pd.DataFrame:
    setup, tables = prepare(read_config(run)), []
    for fold in setup.folds:
        began, models = time.time(), trained_models(setup, fold, run)
        for shift in SHIFTS:
            episodes, data, which = swap_supports(
                fold.evaluation, setup.val, fold.test_classes, shift
            )
            rows = evaluate(models, setup.memory, data, episodes, fold.train_classes)
            tables.append(
                rows.assign(
                    episode=which[rows.episode],
                    cls=fold.evaluation.cls[which[rows.episode]],
                    run=run.name,
                    fold=fold.number,
                    seed=setup.config.seed,
                )
            )
        print(f"{run.name} fold {fold.number}: {time.time() - began:.0f} s", flush=True)
    keys = ["run", "seed", "fold", "method", "cls", "episode"]
    rows = pd.concat(tables).groupby(keys, sort=False)
    return rows[list(COUNTS)].sum().assign(questions=rows.size()).reset_index()


if __name__ == "__main__":
    if len(sys.argv) < 2: sys.exit(__doc__)
    for run in map(Path, sys.argv[1:]):
        new = asked_otherwise(run)
        if OUT.is_file():
            new = pd.concat(
                [(old := pd.read_csv(OUT))[old.run != run.name], new], ignore_index=True
            )
        with atomic_file(OUT, "wb") as f:
            new.to_csv(f, index=False, compression={"method": "gzip", "mtime": 0})
