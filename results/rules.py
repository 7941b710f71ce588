"""How much easier our rules make a test than the literature's (20d_rules).

    python results/rules.py FOLDER RUN [RUN ...] [--pairs N]

Scores the models of runs, with the shots of each, on three tests of N episodes per class each (200
by default): drawn and fitted by the literature's rules; drawn by ours and fitted by the
literature's; drawn and fitted by ours. The pixel counts of each query image and class go to
FOLDER/rules.csv.gz, with zeros where a test does not ask for an image, so that the tests are
compared over images drawn together. Prints the mIoU of each method and what the tests differ by.
"""

from operator import itemgetter
from pathlib import Path

import pandas as pd
from collect import by_question, measure_runs

from celp_nb.engine.feature_bank import evaluate
from celp_nb.repro.defaults import settings_of_run
from celp_nb.repro.fold_training import trained_models
from celp_nb.repro.presets import markdown_grid
from celp_nb.repro.setup import Setup, check_data, prepare
from celp_nb.repro.statistics import contrast_intervals, paired_differences

TESTS = {  # name → rules of the draw, rules of the fitting
    "literature": ("literature", "literature"),
    "drawn by ours": ("strict", "literature"),
    "ours": ("strict", "strict"),
}


def run_rows(run: Path, pairs: int) -> pd.DataFrame:
    "Rows of `by_question` of all folds of a run, the method named with its test."
    setups: dict[str, Setup] = {}
    for rules in ("literature", "strict"):
        setups[rules] = prepare(settings_of_run(run, rules=rules, pairs=pairs))
        check_data(setups[rules], run)
    tables = []
    for at, fold in enumerate(setups["literature"].folds):
        models = trained_models(setups["literature"], fold, run)
        labels = {"fold": fold.number, "seed": setups["literature"].config.runtime.seed}
        for test, (drawn, fitted) in TESTS.items():
            of_draw, of_fit = setups[drawn], setups[fitted]
            asked, shots = of_draw.folds[at].evaluation, of_draw.config.evaluation.shots
            rows = evaluate(
                models, of_fit.memory, of_fit.val, asked, fold.train_classes, shots
            )
            tables.append(rows.assign(method=rows.method + f": {test}", **labels))
            print(f"{run}: fold {fold.number}, {test}", flush=True)
    return by_question(pd.concat(tables)).assign(run=run.name)


def differences_table(rows: pd.DataFrame, draws: int = 1000) -> str:
    "The mIoU of each method by the literature's rules, and what the other tests differ by."
    lines = []
    for shots, of_shots in rows.groupby("shots"):
        for method in dict.fromkeys(name.split(": ")[0] for name in rows.method):
            names = [f"{method}: {test}" for test in TESTS]
            own = of_shots[of_shots.method.isin(names)]
            score = contrast_intervals(own, itemgetter(names[0]), draws, lines=["mIoU"])
            cells = [f"{score.value['mIoU']:.1f}"]
            for name in names[1:]:
                line = paired_differences(own, name, names[0], draws, lines=["mIoU"]).loc["mIoU"]
                cells.append(f"{line.difference:+.1f} [{line.low:.1f}, {line.high:.1f}]")
            lines.append([shots, method, *cells])
    heads = [f"{test} − literature [95 %]" for test in [*TESTS][1:]]
    return markdown_grid(["shots", "method", "literature", *heads], lines)


if __name__ == "__main__": measure_runs("rules", run_rows, differences_table, __doc__, pairs=200)
