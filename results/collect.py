"""Put the results of runs into two files that are committed: every score, and the pixel counts of every episode of the trained methods.

    python results/collect.py FOLDER RUN [RUN ...]     # adds to (or replaces in) FOLDER/scores.csv and FOLDER/rows.csv.gz

A run is a folder of `celp run` or `celp table`; what it has not finished yet is not in its results.csv and comes with the next call.
"""
import sys
from pathlib import Path

import pandas as pd

from celp_nb.repro.report import write_table
from celp_nb.repro.runs import read_config
from celp_nb.repro.tables import scored_run


def rows_of(run: Path, fold: int, seed: int, trained: tuple[str, ...]) -> pd.DataFrame:
    rows = pd.read_csv(run / f"fold{fold}" / "rows.csv")
    return rows[rows.method.str.replace(r" v-\d+$", "", regex=True).isin(trained)].assign(
        run=run.name, fold=fold, seed=seed
    )


def collected(runs: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    scores, rows = [], []
    for run in runs:
        config, results = read_config(run), scored_run(run)
        scores.append(results)
        rows += [rows_of(run, fold, config.seed, config.methods) for fold in results.fold.unique()]
    return pd.concat(scores, ignore_index=True), pd.concat(rows, ignore_index=True)


def added(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    if not path.is_file(): return new
    old = pd.read_csv(path, dtype={"commit": str} if "commit" in new else None)
    return pd.concat([old[~old.run.isin(new.run.unique())], new], ignore_index=True)


if __name__ == "__main__":
    if len(sys.argv) < 3: sys.exit(__doc__)
    folder, runs = Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]]
    scores, rows = collected([run for run in runs if (run / "results.csv").is_file()])
    write_table(folder / "scores.csv", added(folder / "scores.csv", scores))
    added(folder / "rows.csv.gz", rows).to_csv(
        folder / "rows.csv.gz", index=False, compression={"method": "gzip", "mtime": 0}
    )
