"""What `gpu.py` measures: functions that yield rows for its table."""
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from gpu_rows import OK, covered, reason, spread
from step import NUMBER, WIDTHS, bins_at, frozen_inputs, our_step, prepared
from torch.utils.flop_counter import FlopCounterMode

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import MIN_PIXELS, fold_classes, images_in_turn, pairs_per_class
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe
from celp_nb.data.voc import voc_layout
from celp_nb.engine.backbones import episode_features, feature_channels
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import DECODERS, METHODS, Step, build_model
from celp_nb.engine.steps import shared_inputs
from celp_nb.engine.training import part_losses, train_step
from celp_nb.engine.views import cached_steps

ROOT = Path(__file__).resolve().parent.parent
LR = 1e-3
#: name → type inside of autocast, and whether float32 products may run as tf32: (products,
#: convolutions). bf16 leaves the latter as PyTorch has them, and so as `celp run` has them.
PRECISIONS = {
    "bf16": (torch.bfloat16, (False, True)),
    "tf32": (None, (True, True)),
    "float32": (None, (False, False)),
}


class Variant(NamedTuple):
    "One way to take a training step."
    method: str
    precision: str
    compiled: bool = False


@contextmanager
def arithmetic(precision):
    "The precision's switches inside of the block."
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = PRECISIONS[precision][1]
    try: yield
    finally: matmul.allow_tf32, cudnn.allow_tf32 = before


def surroundings():
    "Environment variables in which another process finds the package where this one does."
    found = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([found] if found else [])])}


def wait(device):
    if device.type == "cuda": torch.cuda.synchronize()


def seconds_of(f, device):
    "Of one call, everything before it done."
    wait(device)
    start = time.perf_counter()
    f()
    wait(device)
    return time.perf_counter() - start


def memory(device): return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def clear(device):
    "Give back what nothing holds; count the most memory in use anew."
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# --- the card


def card(args, device):
    "Name, memory and driver."
    if device.type != "cuda":
        return {"measurement": "card", "note": "no card was at hand: a rehearsal on the processor"}
    found = torch.cuda.get_device_properties(device)
    driver = "not known"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=30)
        driver = (said.stdout.splitlines() or [driver])[0].strip()
    words = (
        f"{found.total_memory / 2**30:.1f} GiB, {found.multi_processor_count} multiprocessors, "
        f"driver {driver}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )
    return {"measurement": "card", "note": words}


def matmul_rates(args, device):
    "Products of large square matrices of random numbers, in each precision."
    n = args.matmul
    for precision in PRECISIONS:
        kind = PRECISIONS[precision][0] or torch.float32
        a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
        multiply = partial(torch.matmul, a, b)
        with arithmetic(precision):
            for _ in range(args.warmup): multiply()
            seconds = [seconds_of(multiply, device) for _ in range(args.repeats)]
        rate = 2 * n**3 / statistics.median(seconds) / 1e12
        yield {
            "measurement": "matmul",
            "precision": precision,
            "side": n,
            "tflop": 2 * n**3 / 1e12,
            "per_second": rate,
            "unit": "TFLOP",
            **spread(seconds),
        }


def cuda_tests(args, device):
    "`pytest -m cuda`, in a process of its own."
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    start = time.perf_counter()
    command.append(str(ROOT / "tests" / "test_cuda.py"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=surroundings())
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr.strip()]
    failed = [line.split(" - ")[0] for line in lines if line.startswith("FAILED")]
    good = done.returncode == 0 and (device.type == "cpu" or " passed" in lines[-1])
    yield {
        "measurement": "tests",
        "seconds": time.perf_counter() - start,
        "n": 1,
        "status": OK if good else "failed",
        "note": "; ".join([lines[-1].strip("= "), *failed]),
    }


# --- training steps


def setting(args, batch, backbone):
    "What `step.py` makes its inputs from."
    weights = None if backbone == "tiny" else "random"
    return Namespace(
        batch=batch, side=args.side, delta=args.delta, backbone=backbone, weights=weights
    )


def kept_features(backbone, data, whole):
    "A step's data with features as kept views give them: made once, in half precision."
    with arithmetic("float32"):
        query, support = episode_features(
            backbone, data["query"], data["support"], data["support_mask"], whole
        )
    query, support = (type(f)(*(x.half().float() for x in f)) for f in (query, support))
    return Step(query, support, data["support_mask"], data["target"], data["known"])


def build(args, device, backbone, variant):
    "A model, and what a step of it needs."
    method = replace(METHODS[variant.method], delta=args.delta)
    torch.manual_seed(0)
    width = args.width or WIDTHS[method.decoder]
    channels = feature_channels(backbone)[0]
    model = build_model(channels, width, bins_at(args.side), method=method).to(device)
    if variant.compiled: model.decoder.compile()
    return prepared(model, method, device, PRECISIONS[variant.precision][0])


def kept_step(parts, step):
    "A training step behind the features: the losses."
    objective, optimisers, method = (parts[k] for k in ("objective", "optimisers", "method"))
    return train_step(objective, optimisers, method, step, LR, NUMBER, parts["accelerator"])


def decoder_pass(parts, step):
    "A function that passes reduction and decoder forward and backward, and nothing else."
    accelerator, method = parts["accelerator"], parts["method"]
    model = accelerator.unwrap_model(parts["objective"]).model
    pseudo, prior = shared_inputs(model, method, step, NUMBER, 0, {})
    def passed():
        for optimiser in parts["optimisers"]: optimiser.zero_grad()
        all_of_them = slice(0, len(step.target))
        losses, _ = part_losses(parts["objective"], step, pseudo, prior, all_of_them)
        accelerator.backward(losses.total(method.contrast, method.auxiliary))
    return passed


def operations(parts, step):
    "TFLOP of `decoder_pass`: convolutions and matrix products, two for each multiply-add."
    passed = decoder_pass(parts, step)
    with FlopCounterMode(display=False) as counter: passed()
    return counter.get_total_flops() / 1e12


def prepare_variant(args, device, variant, backbone, data, step, online, common, counted):
    """What times a variant, warm: its step, its decoder's pass, and columns for its row.

    `common` is the memory that all variants share, `counted` is the TFLOP of each method."""
    clear(device)
    before = memory(device)
    parts = build(args, device, backbone, variant)
    def stepped():
        if online: return our_step(backbone, data, **parts)[0]
        return kept_step(parts, step)
    start = time.perf_counter()
    with arithmetic(variant.precision):
        for _ in range(max(1, args.warmup)): losses = stepped()
        wait(device)
        warm = time.perf_counter() - start
        row = {"latent": losses["latent"]} if "+CE" in variant.method else {}
        if device.type == "cuda":
            held = torch.cuda.max_memory_allocated() - before + common
            row["peak_mib"] = held / 2**20
        if not online:
            passed = decoder_pass(parts, step)
            for _ in range(args.warmup): passed()
            if variant.method not in counted and not variant.compiled:
                counted[variant.method] = operations(parts, step)
    if variant.compiled: row["note"] = f"the first {max(1, args.warmup)} steps took {warm:.1f} s"
    return stepped, None if online else passed, row


def alternate(args, device, calls):
    "Seconds of each variant's call, the variants in turn."
    seconds = {variant: [] for variant in calls}
    for _ in range(args.repeats):
        for variant, call in calls.items():
            with arithmetic(variant.precision): seconds[variant].append(seconds_of(call, device))
    return seconds


def reference(variant, variants):
    "What a variant's seconds are compared with: the same uncompiled, or without CE; or None."
    plain = variant._replace(compiled=False)
    if variant.compiled: return plain if plain in variants else None
    plain = variant._replace(method=variant.method.replace("+CE", ""))
    return plain if plain in variants and plain != variant else None


def step_rows(args, device, rates, batch, variants, online=False, backbone=""):
    "Training steps of some variants, in turn: a row each, also where one fails."
    name = backbone or args.backbone
    shared = {
        "measurement": "step",
        "backbone": name,
        "side": args.side,
        "batch": batch,
        "features": "online" if online else "kept",
    }
    def row_of(variant, **more):
        named = {"method": variant.method, "precision": variant.precision}
        return {**shared, **named, "compiled": variant.compiled, **more}

    torch._dynamo.reset()
    network, data = frozen_inputs(setting(args, batch, name), device)
    whole = any(DECODERS[METHODS[v.method].decoder].whole_support for v in variants)
    step = None if online else kept_features(network, data, whole)
    common, made, counted = memory(device), {}, {}
    for variant in variants:
        try:
            made[variant] = prepare_variant(
                args, device, variant, network, data, step, online, common, counted
            )
        except Exception as error:
            short = isinstance(error, torch.OutOfMemoryError)
            yield row_of(variant, status="out of memory" if short else reason(error))
    steps = alternate(args, device, {v: parts[0] for v, parts in made.items()})
    passes = alternate(args, device, {v: parts[1] for v, parts in made.items() if parts[1]})
    for variant, (_, _, row) in made.items():
        each = spread(steps[variant])
        row |= {"unit": "images", "per_second": 2 * batch / each["seconds"], **each}
        if variant in passes:
            took, tflop = statistics.median(passes[variant]), counted.get(variant.method)
            row |= {"decoder_s": took, "tflop": "" if tflop is None else tflop}
            if tflop and rates.get(variant.precision):
                row["share"] = tflop / took / rates[variant.precision]
        other = reference(variant, made)
        if other:
            pairs = zip(steps[variant], steps[other])
            row["ratio"] = statistics.median(mine / its for mine, its in pairs)
            row["to"] = "uncompiled" if variant.compiled else other.method
        yield row_of(variant, **row)


# --- training from kept views


def split(args, name):
    "The given photographs, or the bundled scenes."
    return voc_layout(args.data, name) if args.data else samples(name)


def training_episodes(args, batch):
    "As many training episodes of fold 0 as the steps take."
    data = split(args, "train")
    number = len(data.class_names)
    classes = [c for c in range(1, number + 1) if c not in fold_classes(number, 0)]
    drawn = images_in_turn(data.pixels, classes, args.view_steps * batch, 1, 0)
    return TrainingEpisodes(data, drawn, classes, Recipe(args.side, args.side), 0)


def busy_share(run, device):
    "Share of a run's time in which the card computes or copies, from PyTorch's profiler."
    from torch.profiler import ProfilerActivity, profile

    on_card = device.type == "cuda"
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if on_card else ("cpu_op",)
    activity = ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler: seconds = seconds_of(run, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(errors="replace"))["traceEvents"]
    spans = [(e["ts"], e["dur"]) for e in events if e.get("cat") in kinds and "dur" in e]
    return covered(spans) / 1e6 / seconds


def view_rows(args, device, method="PFENet+CE", precision="bf16"):
    "Training with `--cache-views 1`: while views are made, when they are there, and how busy."
    batch, variant = args.batches[0], Variant(method, precision)
    network, _ = frozen_inputs(setting(args, batch, args.backbone), device)
    episodes, parts = training_episodes(args, batch), build(args, device, network, variant)
    folder = Path(tempfile.mkdtemp())
    whole = DECODERS[METHODS[method].decoder].whole_support
    source = lambda: cached_steps(
        folder, network, episodes, batch, 1, precision=PRECISIONS[precision][0], whole=whole
    )
    def through():  # seconds of each step, but the first
        seconds, last = [], time.perf_counter()
        for step in source():
            kept_step(parts, step)
            wait(device)
            seconds.append(time.perf_counter() - last)
            last = time.perf_counter()
        return seconds[1:] or seconds

    try:
        for name in ("new views", "kept views"):
            clear(device)
            with arithmetic(precision): each = spread(through())
            row = {
                "measurement": name,
                "method": method,
                "precision": precision,
                "backbone": args.backbone,
                "side": args.side,
                "batch": batch,
                "features": "views",
                "unit": "images",
                "per_second": 2 * batch / each["seconds"],
                **each,
            }
            if device.type == "cuda": row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            if name == "kept views":
                with arithmetic(precision): row["busy"] = busy_share(through, device)
            yield row
    finally: shutil.rmtree(folder)


# --- evaluation


class Enough(Exception): "The time that an evaluation may take is over."


def evaluation_rows(args, device, left, methods=("PFENet",), precisions=("bf16",)):
    "Episodes per second of `evaluate` from an empty memory, for 1 and 5 shots."
    data = split(args, "val")
    number = len(data.class_names)
    hidden = fold_classes(number, 0)
    known = [c for c in range(1, number + 1) if c not in hidden]
    images = (data.pixels >= MIN_PIXELS).sum(0)
    classes = [c for c in hidden if images[c - 1] > 5]  # a packed subset may have fewer
    each = -(-args.episodes // len(classes))
    network, _ = frozen_inputs(setting(args, 1, args.backbone), device)
    for method, precision, shots in product(methods, precisions, (1, 5)):
        episodes = pairs_per_class(
            data.pixels, classes, each, shots, 0, class_names=data.class_names
        )
        parts = build(args, device, network, Variant(method, precision))
        model = parts["accelerator"].unwrap_model(parts["objective"]).model.eval()
        bank = feature_bank(network, data, args.side, 8.0, PRECISIONS[precision][0])
        clear(device)
        done, start = [], time.perf_counter()
        most = min(args.evaluation_seconds, left() - 5)
        def report(n, done=done, end=start + most):
            done.append(time.perf_counter())
            if done[-1] > end: raise Enough
        with arithmetic(precision), suppress(Enough):
            evaluate({method: model}, bank, data, episodes, known, (shots,), report, 16)
        took = (done[-1] if done else time.perf_counter()) - start
        row = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if memory(device) else {}
        yield {
            "measurement": "evaluation",
            "method": method,
            "backbone": args.backbone,
            "side": args.side,
            "batch": 16,
            "precision": precision,
            "n": len(done),
            "seconds": took,
            "per_second": len(done) / took,
            "unit": "episodes",
            "note": f"{shots} shot{'s' * (shots > 1)}, {len(data.ids)} images of {data.name}"
            + ", stopped early" * (len(done) < len(episodes.cls)),
            **row,
        }


# --- folds


def fold_steps(rows, methods, seconds):
    "Training steps that fit into some seconds, by the rows of steps with the backbone in them."
    found = [
        row["seconds"]
        for row in rows
        if row["measurement"] == "step" and row["status"] == OK and row["precision"] == "bf16"
        if row["method"] in methods and not row["compiled"] and row["batch"] == 4
        if row["features"] == "online"
    ]
    return max(50, int(seconds / (sum(found) or 0.5)))


def fold_command(args, device, fold, steps):
    "`celp run` of one fold, as words; it runs in another folder."
    weights = Path(args.fold_weights)
    options = {
        "--name": f"fold{fold}",
        "--data": Path(args.data).resolve(),
        "--fold": fold,
        "--backbone": args.fold_backbone,
        "--weights": weights.resolve() if weights.is_file() else args.fold_weights,
        "--side": args.side,
        "--crop": args.side,
        "--methods": args.fold_methods,
        "--shots": [1, 5],
        "--iterations": steps,
        "--pairs": args.fold_pairs,
        "--precision": "float32" if device.type == "cpu" else "bf16",
        "--device": device.type,
    }
    if args.width: options["--width"] = args.width
    words = [sys.executable, "-m", "celp_nb", "run", "--skip-rare"]
    for option, value in options.items():
        words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def fold_rows(args, device, rows, left):
    "`celp run` on folds of the given photographs, one after the other, while there is time."
    shared = {
        "measurement": "fold",
        "backbone": args.fold_backbone,
        "side": args.side,
        "batch": 4,
        "precision": "float32" if device.type == "cpu" else "bf16",
        "features": "online",
    }
    data = split(args, "train")
    for fold in args.folds:
        most = left() - 10
        if most < args.fold_least: return
        steps = args.fold_iterations or fold_steps(rows, args.fold_methods, 0.5 * most)
        with tempfile.TemporaryDirectory() as place:
            start, words = time.perf_counter(), fold_command(args, device, fold, steps)
            given = {"capture_output": True, "text": True, "cwd": place, "env": surroundings()}
            try:
                done = subprocess.run(words, timeout=most, **given)
            except subprocess.TimeoutExpired:
                yield {**shared, "status": "out of time", "note": f"fold {fold}, {steps} steps"}
                return
            took = time.perf_counter() - start
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                yield {**shared, "status": said[:160], "note": f"fold {fold}"}
                continue
            results = pd.read_csv(Path(place) / "runs" / f"fold{fold}" / "results.csv")
        words = f"{steps} steps on {len(data.ids)} photographs, seconds are of the whole run"
        for row in results.to_dict("records"):
            yield {
                **shared,
                "method": row["method"],
                "n": int(row["episodes"]),
                "seconds": took,
                "score": row["miou"],
                "note": f"fold {fold}, {row['shots']} shots, {words}",
            }
