"""What a GPU gives: is everything right on it, and how fast is it? One command, 8 minutes at most.

    python benchmarks/gpu.py [--minutes 8] [--out DIR] [--data DIR --fold-weights FILE]

It measures the card's rate of matrix products; `pytest -m cuda`; training steps of
PFENet, PFENet+CE, CyCTR and CyCTR+CE at 473 pixels (random ResNet-50), with features in the card's
memory and with the backbone in the step, in batches of 4 and 16, in bf16, tf32 and float32, with
and without torch.compile; training from kept views, and how busy the card is in it; evaluation;
and, with --data, folds of these photographs with `celp run` for as long as time is left. What says
most comes first.

Every measurement is a row of DIR/rows.csv, on the disk as soon as it is made: a run that is killed
keeps its rows. What fails, or does not fit into memory or time, is a row that says so. The page
DIR/README.md is written from the rows after each measurement (again: benchmarks/gpu_page.py DIR).
`benchmarks/pack.py` packs what a machine without a network needs.
"""
import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from gpu_measurements import (
    PRECISIONS,
    Variant,
    card,
    cuda_tests,
    evaluation_rows,
    fold_rows,
    matmul_rates,
    step_rows,
    view_rows,
)
from gpu_page import write_page
from gpu_rows import OutOfTime, Table, limited, reason
from step import machine

from celp_nb.engine.backbones import BACKBONES
from celp_nb.repro.setup import code_version

DECODER_PAIRS = (("PFENet", "PFENet+CE"), ("CyCTR", "CyCTR+CE"))


class Measurement(NamedTuple):
    "Something to measure, unless too little time is left for it."
    columns: dict  # what its row says where it gives none
    rows: object  # a function: → rows
    least: float = 15.0  # seconds that must be left
    most: float = 120.0  # seconds that it may take


def named(features, batch, methods, precision="", compiled=""):
    "Columns of a measurement of steps."
    return {
        "measurement": "step",
        "features": features,
        "batch": batch,
        "method": ", ".join(methods),
        "precision": precision,
        "compiled": compiled,
    }


def plain_steps(args, device, rates, methods, batch, online, backbone=""):
    "Both methods of a decoder in all precisions, in turn."
    precisions = args.precisions
    variants = [Variant(m, p) for p in precisions for m in methods]
    columns = named("online" if online else "kept", batch, methods, ", ".join(precisions))
    if backbone: columns["backbone"] = backbone
    run = partial(step_rows, args, device, rates, batch, variants, online, backbone)
    return Measurement(columns, run)


def compiled_steps(args, device, rates, method, batch, precision):
    "A method as it is and compiled, in turn."
    variants = [Variant(method, precision), Variant(method, precision, True)]
    columns = named("kept", batch, [method], precision, True)
    run = partial(step_rows, args, device, rates, batch, variants)
    return Measurement(columns, run, least=args.compile_least)


def compilations(args, device, rates):
    "What is compiled: with contrast before without, the first precision before the others."
    with_contrast = [pair[1] for pair in DECODER_PAIRS]
    methods = [*with_contrast, *(pair[0] for pair in DECODER_PAIRS)]
    first, *others = args.precisions
    cells = [(m, b, first) for b in args.batches for m in methods]
    cells += [(m, b, p) for p in others for b in args.batches for m in methods]
    return [compiled_steps(args, device, rates, *cell) for cell in cells]


def plan(args, device, rates, rows, left):
    "Everything in order of importance."
    steps = partial(plain_steps, args, device, rates)
    pfenet, cyctr = DECODER_PAIRS
    small, *larger = args.batches
    views = Measurement({"measurement": "kept views"}, partial(view_rows, args, device))
    evaluation = Measurement(
        {"measurement": "evaluation"}, partial(evaluation_rows, args, device, left), most=60
    )
    first = [steps(pfenet, small, False), views, steps(cyctr, small, False), evaluation]
    compiled = compilations(args, device, rates)
    later = [compiled[0], *(steps(pair, small, True) for pair in DECODER_PAIRS), compiled[1]]
    for online in (False, True):
        later += [steps(pair, batch, online) for batch in larger for pair in DECODER_PAIRS]
    later += [steps(pfenet, small, True, backbone=args.second_backbone), *compiled[2:]]
    folds = []
    if args.data and args.folds:
        run = partial(fold_rows, args, device, rows, left)
        folds = [Measurement({"measurement": "fold"}, run, args.fold_least, 60 * args.minutes)]
    return first, later, folds


def measure(table, measurement, left, reserved=0.0):
    "Add a measurement's rows: what it gives until it fails or its time is over, and how it ended."
    room = left() - reserved
    if room < measurement.least:
        table.add({**measurement.columns, "status": "no time was left"})
        return
    try:
        with limited(min(room, measurement.most)):
            for row in measurement.rows(): table.add(row)
    except OutOfTime:
        table.add({**measurement.columns, "status": "out of time"})
    except Exception as error:
        short = isinstance(error, torch.OutOfMemoryError)
        table.add({**measurement.columns, "status": "out of memory" if short else reason(error)})


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="that the whole may take")
    add("--out", default="runs/gpu", help="a folder without a rows.csv")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--backbone", default="resnet50", help="for times; its weights are random")
    add("--second-backbone", default="mobilenet_v2", help="for a few of them")
    add("--side", type=int, default=473, help="pixels, 8n+1")
    add("--batches", type=int, nargs="+", default=[4, 16], help="episodes per step")
    add("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    add("--width", type=int, help="channels of the decoders; as published otherwise")
    add("--delta", type=float, default=0.3, help="low: random weights must give latent regions")
    add("--matmul", type=int, default=8192, help="rows and columns of the matrices")
    add("--repeats", type=int, default=10, help="times that each step is taken")
    add("--warmup", type=int, default=3, help="times before that")
    add("--view-steps", type=int, default=8, help="training steps from kept views")
    add("--episodes", type=int, default=1000, help="of an evaluation, at most")
    add("--evaluation-seconds", type=float, default=25.0, help="for 1 shot, and for 5")
    add("--compile-least", type=float, default=45.0, help="seconds for a compilation to start")
    add("--data", help="photographs in VOC layout; the bundled scenes otherwise, and no folds")
    add("--folds", type=int, nargs="*", default=[0, 1, 2, 3])
    add("--fold-backbone", default="mobilenet_v2", choices=list(BACKBONES))
    add("--fold-weights", default="imagenet", help="a file, where there is no network")
    add("--fold-methods", nargs="+", default=["PFENet", "PFENet+CE"])
    add("--fold-iterations", type=int, help="steps; as many as fit otherwise")
    add("--fold-pairs", type=int, default=50, help="test episodes per class")
    add("--fold-least", type=float, default=60.0, help="seconds for a fold to start")
    add("--fold-share", type=float, default=0.3, help="of the time that is kept for folds")
    add("--commit", default=code_version(), help="of the code, for the rows")
    add("--no-tests", action="store_true", help="leave out pytest -m cuda")
    return parser.parse_args()


def main():
    start, args = time.monotonic(), parsed()
    device, out = torch.device(args.device), Path(args.out)
    left = lambda: 60 * args.minutes - (time.monotonic() - start)
    if (out / "rows.csv").exists():
        raise SystemExit(f"{out / 'rows.csv'} is there already; give another --out.")
    name = torch.cuda.get_device_name() if device.type == "cuda" else machine(device)
    constants = {"device": name, "torch": torch.__version__, "commit": args.commit}
    table, rates = Table(out / "rows.csv", constants), {}
    def take(measurement, reserved=0.0):
        measure(table, measurement, left, reserved)
        write_page(out)
        row = table.rows[-1]
        cell = (str(row[k]) for k in ("at_s", "measurement", "method", "per_second", "unit"))
        print(" ".join(filter(None, cell)), "--", row["status"], flush=True)

    take(Measurement({"measurement": "card"}, lambda: [card(args, device)], 0))
    take(Measurement({"measurement": "matmul"}, partial(matmul_rates, args, device), 5, 40))
    for row in table.rows:
        if row["measurement"] == "matmul" and row["per_second"]:
            rates[row["precision"]] = row["per_second"]
    if not args.no_tests:
        take(Measurement({"measurement": "tests"}, partial(cuda_tests, args, device)))
    first, later, folds = plan(args, device, rates, table.rows, left)
    reserved = 60 * args.minutes * args.fold_share if folds else 0.0
    for measurement in first: take(measurement)
    for measurement in later: take(measurement, reserved)
    for measurement in folds: take(measurement)
    print(f"{len(table.rows)} rows in {time.monotonic() - start:.0f} s: {out / 'README.md'}")
    sys.stdout.flush()
    os._exit(0)  # a compilation that was stopped would hold the process up for a minute


if __name__ == "__main__": main()
