"""Print the tables of this folder's page, and draw its figure, from runs of several seeds.

    python results/samples/tables.py runs/samples-s0 runs/samples-s1 …

Scores with 95 % intervals over seeds and query images; how far single seeds spread; and the
differences: every trained method beside the prior's best cut, CE beside its decoder without. The
differences with one shot are drawn into findings.png here.
"""

import sys
from itertools import product
from pathlib import Path

import pandas as pd

from celp_nb.repro.comparison import read_table
from celp_nb.repro.findings import PRIOR, finding_rows, findings_figure, findings_text
from celp_nb.repro.presets import markdown_grid
from celp_nb.repro.report import save_figure
from celp_nb.repro.statistics import MEASURES, contrast_intervals


def named_scores(runs: list[Path]) -> pd.DataFrame:
    "Scores of all runs; the prior's best cut of each fold under its one name."
    scores = pd.concat([read_table(run) for run in runs], ignore_index=True)
    is_prior = scores.method.str.startswith("prior ≥")
    return scores.assign(method=scores.method.mask(is_prior, PRIOR))


def score_line(
    rows: pd.DataFrame, scores: pd.DataFrame, method: str, shots: int
) -> list[str]:  # cells
    "The line of a method: folds, mean over folds and seeds with its interval, confusion likewise."
    of_method = scores[(scores.method == method) & (scores.shots == shots)]
    folds = [f"{x:.1f}" for x in of_method.groupby("fold").miou.mean()]
    part = rows[(rows.method == method) & (rows.shots == shots)]
    cells = [method, str(shots), *folds]
    if part.empty:
        return cells + [f"{of_method[k].mean():.1f}" for k in ("miou", "fb_iou", "confusion")]
    table = contrast_intervals(part, lambda s: s[method], lines=MEASURES)
    means = [
        f"{r.value:.1f} ({r.low:.1f} to {r.high:.1f})"
        for r in table.itertuples()
    ]
    return [*cells, means[0], f"{of_method.fb_iou.mean():.1f}", means[1]]


def spread_line(scores: pd.DataFrame, method: str, shots: int) -> list[str]:  # cells
    "Mean over folds per seed; standard deviation over seeds, of this mean and of single folds."
    of_method = scores[(scores.method == method) & (scores.shots == shots)]
    table = of_method.pivot_table(index="seed", columns="fold", values="miou")
    means = table.mean(axis=1)
    spread = table.std()
    cells = [method, str(shots), *(f"{x:.1f}" for x in means), f"{means.std():.1f}"]
    return [*cells, ", ".join(f"{x:.1f}" for x in spread)]


if __name__ == "__main__":
    runs = [Path(run) for run in sys.argv[1:]]
    if not runs: sys.exit(__doc__)
    rows = pd.concat([finding_rows(run) for run in runs], ignore_index=True)
    scores = named_scores(runs)
    trained = [m for m in dict.fromkeys(rows.method) if m != PRIOR]
    shots, named = sorted(set(rows.shots)), ["all foreground", *trained, PRIOR]
    folds = [f"fold {f}" for f in sorted(set(scores.fold))]
    head = ["method", "shots", *folds, "mIoU", "FB-IoU", "confusion"]
    print(markdown_grid(head, [score_line(rows, scores, m, n) for n, m in product(shots, named)]))
    seeds = [f"seed {s}" for s in sorted(set(scores.seed))]
    head = ["method", "shots", *seeds, "deviation", f"of {', '.join(folds)}"]
    print(markdown_grid(head, [spread_line(scores, m, n) for n, m in product(shots, trained)]))
    print(findings_text(rows))
    title = f"samples, {len(seeds)} seeds"
    save_figure(Path(__file__).with_name("findings.png"), findings_figure(rows, title))
