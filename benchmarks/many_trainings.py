"""Many trainings at once: a process per fold and method, as many as there are cores.

    nvidia-cuda-mps-control -d    # on a GPU: else the processes take turns
    python benchmarks/many_trainings.py RUN [RUN ...] OUT [--seeds 0 1 2] [--workers 16]
        [--device cuda] [--score]

RUN is the folder of a run whose settings are taken: its data, folds, methods and regime; a file
config.json in it is enough. OUT gets a run per RUN, seed, fold and method, in that order, each as
`celp train` leaves it, or with --score as `celp run` does, for `results/collect.py FOLDER --name
RUN OUT/RUN-*`; what is there goes on where it was stopped. Ends with the steps per second, all else
included. A training step on a GPU is bound by the calls of one processor core, so a card is filled
by many of them; so is the evaluation.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import torch

from celp_nb.repro.config import RunConfig, change_config, read_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.runs import run, train_run
from celp_nb.repro.side_by_side import available_cores


def jobs(runs: dict[str, RunConfig], seeds: list[int]) -> dict[str, RunConfig]:
    "Settings of a run for each of `runs`, seed, fold and method, by its name."
    found = {}
    for (name, config), seed in itertools.product(runs.items(), seeds):
        for fold, method in itertools.product(config.data.folds, config.model.methods):
            own = change_config(config, seed=seed, folds=(fold,), methods=(method,))
            found[f"{name} {method} seed {seed} fold {fold}".replace(" ", "-")] = own
    return found


def do(work: Callable, folder: Path, config: RunConfig) -> str:
    "Train, or train and score, one method on one fold. Raises as `train_run` or `run`."
    torch.set_num_threads(1)
    work(config, folder, resume=True)
    return folder.name


def do_all(
    work: Callable, found: dict[str, RunConfig], out: Path, workers: int
) -> float:  # seconds
    "Train, or train and score, all, `workers` at a time."
    began, context = time.monotonic(), multiprocessing.get_context("spawn")
    with context.Pool(workers, maxtasksperchild=1) as pool:
        given = [pool.apply_async(do, (work, out / n, config)) for n, config in found.items()]
        for name in (job.get() for job in given):
            print(f"{time.monotonic() - began:.0f} s: {name}", flush=True)
    return time.monotonic() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--score", action="store_const", const=run, default=train_run)
    given = parser.parse_args()
    names = [place.name for place in given.run]
    if twice := next((name for name in names if names.count(name) > 1), None):
        parser.error(f"two runs are called {twice}; rename the folder of one.")
    on_device = lambda place: resolve(change_config(read_config(place), device=given.device))
    try: found = jobs(dict(zip(names, map(on_device, given.run))), given.seeds)
    except (ValueError, OSError) as error: parser.error(str(error))
    seconds = do_all(given.score, found, given.out, given.workers)
    steps = sum(config.optimisation.iterations for config in found.values())
    said = f"{steps:,} steps in {seconds:.0f} s: {steps / seconds:.1f} a second"
    print(f"{len(found)} trainings, {said}")
