"""Put the results of runs into two files that are committed.

    python results/collect.py FOLDER RUN [RUN ...] [--queries]

Adds to (or replaces in) FOLDER/scores.csv, which has every score, and FOLDER/rows.csv.gz, which has
the pixel counts of every episode of the trained methods. A run is a folder of `celp run` or
`celp table`; what it has not finished yet is not in its results.csv and comes with the next call.

With --queries the counts are summed over the episodes of each query image and class, which keeps
all that intervals over query images need in a tenth of the size; `episodes` says how many they are.
"""

import sys
from pathlib import Path

import pandas as pd

from celp_nb.repro.fair_comparisons import run_rows
from celp_nb.repro.report import write_table
from celp_nb.repro.table_texts import scored_run


def collected(runs: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Scores and pixel counts of all runs."
    scores, rows = [scored_run(run) for run in runs], [run_rows(run) for run in runs]
    return pd.concat(scores, ignore_index=True), pd.concat(rows, ignore_index=True)


def summed(rows: pd.DataFrame) -> pd.DataFrame:
    "Pixel counts summed over the episodes of each query image and class; `episode` is their first."
    of_question = ["run", "fold", "seed", "episode_seed", "training_set", "method", "shots", "cls"]
    together = rows.assign(episodes=1).groupby([*of_question, "query"], sort=False)
    sums = together.sum(numeric_only=True).drop(columns="episode")
    return sums.assign(episode=together.episode.min()).reset_index()


def added(path: Path, new: pd.DataFrame) -> pd.DataFrame:
    "A table with the new rows in place of those of the same runs."
    if not path.is_file(): return new
    old = pd.read_csv(path, dtype={"commit": str, "weights": str})
    return pd.concat([old[~old.run.isin(new.run.unique())], new], ignore_index=True)


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
        sys.exit()
    by_query, given = "--queries" in sys.argv, [x for x in sys.argv[1:] if x != "--queries"]
    if len(given) < 2: sys.exit(__doc__)
    folder, runs = Path(given[0]), [Path(run) for run in given[1:]]
    scores, rows = collected([run for run in runs if (run / "results.csv").is_file()])
    if by_query: rows = summed(rows)
    write_table(folder / "scores.csv", added(folder / "scores.csv", scores))
    added(folder / "rows.csv.gz", rows).to_csv(
        folder / "rows.csv.gz", index=False, compression={"method": "gzip", "mtime": 0}
    )
