"""The page of `gpu.py`, written from its table.

    python benchmarks/gpu_page.py DIR        # DIR/rows.csv → DIR/README.md
"""
import argparse
import csv
from pathlib import Path

from gpu_rows import FIELDS, OK

from celp_nb.data.episodes import atomic_file

TARGETS = {"busy": 0.9, "share": 0.5, "episodes": 200.0}
COMMAND = "python benchmarks/gpu.py --data DIR --fold-weights FILE --out results/gpu"


def read_rows(folder):
    "The rows of a folder's table; none where there is no table."
    path = Path(folder) / "rows.csv"
    if not path.is_file(): return []
    with path.open(newline="") as f: return list(csv.DictReader(f))


def number(text, digits=3):
    "A number for a table, or nothing."
    return f"{float(text):,.{digits}g}" if text and float(text) < 1000 else (
        f"{float(text):,.0f}" if text else ""
    )


def percent(text): return f"{100 * float(text):.0f} %" if text else ""


def table(head, rows):
    "Lines of a markdown table; none where there are no rows."
    if not rows: return []
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def of(rows, *names): return [row for row in rows if row["measurement"] in names]


def good(rows): return [row for row in rows if row["status"] == OK]


def matmul_lines(rows):
    cells = [
        (row["precision"], f"{row['side']}³", number(row["per_second"]), row["n"])
        for row in good(of(rows, "matmul"))
    ]
    return table(["products", "size", "TFLOP per second, median", "of"], cells)


def step_lines(rows, features):
    "Training steps with features from one place."
    cells = []
    for row in of(rows, "step"):
        if row["features"] != features or row["status"] != OK: continue
        ratio = f"{float(row['ratio']):.2f} × {row['to']}" if row["ratio"] else ""
        name = row["method"] + ", compiled" * (row["compiled"] == "True")
        quartiles = "–".join(f"{1000 * float(row[k]):.4g}" for k in ("q25", "q75"))
        cells.append(
            (name, row["backbone"], row["batch"], row["precision"])
            + (f"{1000 * float(row['seconds']):.4g} ({quartiles})", number(row["per_second"]))
            + (number(row["peak_mib"]), percent(row["share"]), ratio)
        )
    head = ["method", "backbone", "batch", "precision", "ms per step (quartiles)", "images per s"]
    return table([*head, "peak MiB", "of the matmul rate", "time"], cells)


def view_lines(rows):
    cells = [
        (row["measurement"], row["method"], row["precision"], row["batch"])
        + (f"{1000 * float(row['seconds']):.4g}", number(row["per_second"]), percent(row["busy"]))
        for row in good(of(rows, "new views", "kept views"))
    ]
    head = ["features", "method", "precision", "batch", "ms per step", "images per s", "busy"]
    return table(head, cells)


def evaluation_lines(rows):
    cells = [
        (row["method"], row["precision"], row["note"], row["n"], number(row["per_second"]))
        for row in good(of(rows, "evaluation"))
    ]
    return table(["method", "precision", "what", "episodes", "episodes per s"], cells)


def fold_lines(rows):
    cells = [
        (row["note"], row["method"], row["n"], f"{float(row['score']):.1f}", number(row["seconds"]))
        for row in good(of(rows, "fold"))
    ]
    return table(["fold", "method", "episodes", "mIoU", "seconds"], cells)


def verdict(words, found, target):
    "One line of the targets: best value, and whether it is enough."
    if not found: return f"* {words}: not measured."
    best = max(found)
    shown = percent(best) if target <= 1 else number(best)
    goal = percent(target) if target <= 1 else number(target)
    return f"* {words}: {shown} (target {goal}: {'met' if best >= target else 'missed'})."


def target_lines(rows):
    values = lambda chosen, column: [float(row[column]) for row in chosen if row[column]]
    steps = [row for row in good(of(rows, "step")) if row["precision"] == "bf16"]
    shares = values([row for row in steps if row["method"] == "PFENet+CE"], "share")
    return [
        verdict(
            "training of PFENet+CE from kept views, share of the time in which the card is busy",
            values(good(of(rows, "kept views")), "busy"), TARGETS["busy"],
        ),
        verdict(
            "decoder of PFENet+CE in bf16, share of the measured matmul rate",
            shares, TARGETS["share"],
        ),
        verdict(
            "evaluation, episodes per second",
            values(good(of(rows, "evaluation")), "per_second"), TARGETS["episodes"],
        ),
        "",
    ]


def failure_lines(rows):
    "What is no number, and why."
    lines = []
    for row in rows:
        if row["status"] == OK: continue
        names = ("measurement", "method", "features", "batch", "precision")
        words = " ".join(row[k] for k in names if row[k])
        lines.append(f"* {words}{', compiled' * (row['compiled'] == 'True')}: {row['status']}")
    return [*lines, ""] if lines else ["Nothing: everything was measured.", ""]


NOTHING = f"""# On a GPU

No card was at hand yet: nothing here was measured. One command does it, in at most 8 minutes:

    {COMMAND}

`benchmarks/pack.py` says how to bring code, weights and photographs to a machine without a network.
"""


def page(rows):
    "The page's text."
    if not rows: return NOTHING
    first, tests = rows[0], of(rows, "tests")
    is_card = not any("no card was at hand" in row["note"] for row in of(rows, "card"))
    start = [
        "# On a GPU" if is_card else "# Rehearsal without a GPU: these numbers say nothing",
        "",
        f"{first['device']}. {of(rows, 'card')[0]['note'] if of(rows, 'card') else ''}",
        f"PyTorch {first['torch']}, commit {first['commit']}; {len(rows)} rows in "
        f"{float(rows[-1]['at_s']):.0f} s. Written from rows.csv by `benchmarks/gpu_page.py`.",
        "",
    ]
    said = [f"`pytest -m cuda`: {row['status']} ({row['note']}).\n" for row in tests]
    parts = {
        "Targets": target_lines(rows),
        "The card": [*matmul_lines(rows), *said],
        "Training steps, features in the card's memory": step_lines(rows, "kept"),
        "Training steps, the backbone in them": step_lines(rows, "online"),
        "Training from kept views": view_lines(rows),
        "Evaluation": evaluation_lines(rows),
        "Folds": fold_lines(rows),
        "Not measured": failure_lines(rows),
    }
    lines = list(start)
    for title, body in parts.items():
        if body: lines += [f"## {title}", "", *body]
    lines += ["## Columns of rows.csv", "", *(f"* `{k}`: {v}" for k, v in FIELDS.items())]
    return "\n".join(lines) + "\n"


def write_page(folder):
    "Write a folder's page, whole or not at all."
    text = page(read_rows(folder))
    with atomic_file(Path(folder) / "README.md", "w") as f: f.write(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="with rows.csv")
    write_page(parser.parse_args().folder)


if __name__ == "__main__": main()
