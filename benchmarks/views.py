"""What `--cache-views` saves a training step; and its speed against another checkout, in pairs.

    python benchmarks/views.py --data DIR --backbone mobilenet_v2 --weights FILE --side 161
        [--methods PFENet "PFENet+CE delta=0.4"] [--precision bf16] [--steps 10]
        [--against CHECKOUT] [--pairs 7]

Without `--against`: the processor time of a step online, from views that are made on the way, and
from views that are there. With it, this checkout and the other take turns, each in a process of
its own that works on the same episodes: the median, least and largest ratio of their processor
times, of the first epoch, in which views are made, and of those after it; and how far the losses of
the two differ. Numbers of different runs of this benchmark should not be compared: other
processes slow the machine down. `results/speed.md` has what was measured.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import fold_classes, images_in_turn
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe
from celp_nb.data.voc import voc_layout
from celp_nb.engine.backbones import feature_channels, load_backbone
from celp_nb.engine.methods import DECODERS, build_model, find_method
from celp_nb.engine.steps import online_steps
from celp_nb.engine.training import Optimisation, accelerator_for, prepare_training, step_all
from celp_nb.pfenet import COCO_BINS

try:
    from celp_nb.engine.views import cached_steps
except ImportError:  # an earlier checkout
    from celp_nb.engine.steps import cached_steps

HERE = Path(__file__).resolve().parent.parent


def read_arguments():
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a folder in VOC layout; the bundled samples otherwise")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("--side", type=int, default=161)
    parser.add_argument("--reference", type=int, help="as of celp train; the side by default")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="in an epoch")
    parser.add_argument("--methods", nargs="+", default=["PFENet", "PFENet+CE"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--against", help="the folder of another checkout")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # the folder of views of a child
    return parser.parse_args()


def prepare(args, folder):
    "Sources of steps by name, each a function without arguments; and a function that takes one."
    precision = torch.bfloat16 if args.precision == "bf16" else None
    data = voc_layout(args.data, "train") if args.data else samples("train")
    backbone = load_backbone(args.backbone, args.weights)
    count = len(data.class_names)
    classes = [c for c in range(1, count + 1) if c not in fold_classes(count, 0)]
    drawn = images_in_turn(data.pixels, classes, args.steps * args.batch, 1, 0)
    recipe = Recipe(args.side, args.reference or args.side)
    items = TrainingEpisodes(data, drawn, classes, recipe, 0)
    methods = {name: find_method(name) for name in args.methods}
    whole = any(DECODERS[m.decoder].whole_support for m in methods.values())
    accelerator, models = accelerator_for(precision=precision), {}
    for name, method in methods.items():
        torch.manual_seed(0)
        models[name] = build_model(
            feature_channels(backbone)[0], args.width, COCO_BINS, method=method
        )
    opt = Optimisation(100_000, args.batch, 1e-3, optimiser="adamw")
    parties = *prepare_training(models, methods, opt, accelerator), methods
    more = dict(precision=precision, whole=whole)
    kept = lambda: cached_steps(folder, backbone, items, args.batch, 1, **more)
    online = lambda: online_steps(backbone, items, args.batch, **more)
    train = lambda step, number: step_all(*parties, step, 1e-3, number, accelerator, 1)
    return {"online": online, "new views": kept, "kept views": kept}, train


def epoch(source, train):
    "Processor seconds per step, for its data and for training on it; and all losses."
    spent, losses, last = [], [], time.process_time()
    for number, step in enumerate(source()):
        between = time.process_time()
        losses.append([list(of_model.values()) for of_model in train(step, number).values()])
        spent.append((between - last, time.process_time() - between))
        last = time.process_time()
    return spent, losses


def serve(args):
    "Work for a parent: an epoch for each line that is read."
    sources, train = prepare(args, args.serve)
    print("ready", flush=True)
    for _ in sys.stdin:
        spent, losses = epoch(sources["kept views"], train)
        print(json.dumps([sum(map(sum, spent)) / len(spent), losses]), flush=True)


def start_child(checkout, folder):
    "This benchmark as a process that works with the modules of a checkout."
    command = [sys.executable, __file__, *sys.argv[1:], "--serve", str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(checkout)}, **pipes)
    if child.stdout.readline() != "ready\n": raise SystemExit(f"{checkout} could not be started")
    return child


def ask(child):
    "One epoch of a child: seconds per step, and losses."
    child.stdin.write("go\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def compare(args, folder):
    "Print the ratios of the processor times of two checkouts that take turns."
    checkouts = {"there": Path(args.against).resolve(), "here": HERE}
    children = {name: start_child(path, folder / name) for name, path in checkouts.items()}
    made = {name: ask(child) for name, child in children.items()}
    first = {name: seconds for name, (seconds, _) in made.items()}
    largest = 0.0
    for there, here in zip(*(torch.tensor(losses) for _, losses in made.values())):
        difference = (there - here).abs() / there.abs().clamp(min=1e-3)
        largest = max(largest, difference.max().item())
    seconds = {name: [] for name in children}
    for number in range(args.pairs):
        order = list(children) if number % 2 else list(children)[::-1]
        for name in order: seconds[name].append(ask(children[name])[0])
    for child in children.values():
        child.stdin.close()
        child.wait()
    ratios = [a / b for a, b in zip(seconds["there"], seconds["here"])]
    words = [f"{1000 * statistics.median(seconds[name]):.0f} ms {name}" for name in seconds]
    print(
        f"a step from kept views: {', '.join(words)}; "
        f"{statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {args.pairs} pairs of {args.steps} steps)"
    )
    print(f"while views are made: {first['there'] / first['here']:.2f} times as fast")
    print(f"largest relative difference of a loss in the first {args.steps} steps: {largest:.1e}")


def main():
    args = read_arguments()
    if args.serve: return serve(args)
    folder = Path(tempfile.mkdtemp())
    print(
        f"{args.backbone}, {args.side} px, batch {args.batch}, {args.precision}, "
        f"{torch.get_num_threads()} threads, {', '.join(args.methods)}"
    )
    try:
        if args.against: return compare(args, folder)
        sources, train = prepare(args, folder)
        for name, source in sources.items():
            features, decoders = (statistics.median(s) for s in zip(*epoch(source, train)[0][1:]))
            print(
                f"{name:12} {features:6.3f} s for the features, "
                f"{decoders:6.3f} s for the decoders: {features + decoders:6.3f} s per step"
            )
        for file in folder.rglob("views.bin"):
            views = file.with_name("views.jsonl").read_text().count("\n") // 2
            print(f"{file.stat().st_size / views / 2**20:.1f} MiB per view")
    finally: shutil.rmtree(folder)


if __name__ == "__main__": main()
