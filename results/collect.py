"""Put the results of runs where they are committed.

    python results/collect.py FOLDER RUN [RUN ...] [--queries] [--name NAME]

Adds to (or replaces in) FOLDER/scores.csv, which has every score, and writes the pixel counts of
every episode of the trained methods to FOLDER/rows/RUN.csv.gz. A run is a folder of `celp run` or
`celp table`; what it has not finished yet is not in its results.csv and comes with the next call.

A model that another run in FOLDER has scored to the same digit is left out (Table 7's row of
averages is such a one), so that it does not count twice.

With --name all RUNs are parts of one run of that name, as `benchmarks/many_trainings.py` leaves
them.

With --queries the counts are summed over the episodes of each query image and class, which keeps
all that intervals over query images need in a tenth of the size; `episodes` says how many they are.
"""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

import pandas as pd

from celp_nb.repro.fair_comparisons import run_rows
from celp_nb.repro.report import write_table
from celp_nb.repro.statistics import SUMMED
from celp_nb.repro.table_texts import scored_run

MODEL = ["fold", "method", "shots"]
QUESTION = ["fold", "seed", "shots", "cls", "query"]
SCORED = [*MODEL, "data", "seed", "episode_seed", "miou", "fb_iou", "confusion"]


def summed(rows: pd.DataFrame) -> pd.DataFrame:
    "Pixel counts summed over the episodes of each query image and class; `episode` is their first."
    of_question = ["run", "fold", "seed", "episode_seed", "training_set", "method", "shots", "cls"]
    together = rows.assign(episodes=1).groupby([*of_question, "query"], sort=False)
    sums = together.sum(numeric_only=True).drop(columns="episode")
    return sums.assign(episode=together.episode.min()).reset_index()


def by_question(rows: pd.DataFrame) -> pd.DataFrame:
    "Counts summed over the episodes of each question; zeros where a method was not asked one."
    sums = rows.groupby(["method", *QUESTION])[[*SUMMED]].sum().unstack("method", fill_value=0)
    rows = sums.stack("method", future_stack=True).reset_index()
    return rows.assign(episode=rows["query"])


def rows_of_others(path: Path, runs: Collection[str]) -> pd.DataFrame:
    "What a table holds of other runs than these; empty where there is none yet."
    if not path.is_file(): return pd.DataFrame()
    table = pd.read_csv(path, dtype={"commit": str, "weights": str})
    return table[~table.run.isin(runs)]


def write_compressed(path: Path, rows: pd.DataFrame) -> None:
    "Write a table whose bytes do not depend on the time."
    rows.to_csv(path, index=False, compression={"method": "gzip", "mtime": 0})


def replace_rows(path: Path, rows: pd.DataFrame) -> None:
    "Put rows into a compressed table, in place of those of the same runs."
    others = rows_of_others(path, rows.run.unique())
    write_compressed(path, pd.concat([others, rows], ignore_index=True))


def measure_runs(
    name: str,  # of the table, without its ending
    measure: Callable[[Path, int], pd.DataFrame],  # run and episodes per class → rows
    text: Callable[[pd.DataFrame], str],  # what all rows say
    about: str,
    pairs: int,  # episodes per class, by default
) -> None:
    "The command FOLDER RUN [RUN ...] of a script: the rows of each run are kept when it is done."
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=pairs, help="episodes per class")
    given, tables = parser.parse_args(), []
    if given.pairs < 1: parser.error(f"--pairs is {given.pairs}; give 1 or more.")
    given.folder.mkdir(parents=True, exist_ok=True)
    for run in given.runs:
        tables.append(measure(run, given.pairs))
        replace_rows(given.folder / f"{name}.csv.gz", tables[-1])
    print(text(pd.concat(tables)))


def unrepeated(new: pd.DataFrame, old: pd.DataFrame) -> pd.DataFrame:
    "The new scores without those of models that are in the old ones, to the same digit."
    if old.empty: return new
    told = set(old[SCORED].itertuples(index=False, name=None))
    return new[[score not in told for score in new[SCORED].itertuples(index=False, name=None)]]


def collect(folder: Path, parts: list[Path], name: str, by_query: bool) -> None:
    "Put the scores and pixel counts of a run, which may be in parts, into a folder."
    others = rows_of_others(folder / "scores.csv", [name])
    scores = pd.concat([scored_run(part) for part in parts], ignore_index=True)
    scores = unrepeated(scores.assign(run=name), others)
    rows = pd.concat([run_rows(part) for part in parts], ignore_index=True).assign(run=name)
    if by_query: rows = summed(rows)
    rows = rows.merge(scores[MODEL].drop_duplicates())
    write_table(folder / "scores.csv", pd.concat([others, scores], ignore_index=True))
    (folder / "rows").mkdir(exist_ok=True)
    write_compressed(folder / "rows" / f"{name}.csv.gz", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--queries", action="store_true")
    parser.add_argument("--name")
    given = parser.parse_args()
    for run in given.runs:
        if not run.is_dir(): parser.error(f"{run}: no such folder; give what celp run has written.")
    given.folder.mkdir(parents=True, exist_ok=True)
    ended = [run for run in given.runs if (run / "results.csv").is_file()]
    if given.name and ended: collect(given.folder, ended, given.name, given.queries)
    for run in ended if not given.name else ():
        collect(given.folder, [run], run.name, given.queries)
