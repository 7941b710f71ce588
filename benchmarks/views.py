"""What `--cache-views` saves a training step, and what it takes on disk.

    python benchmarks/views.py --data DIR --backbone resnet50 --weights FILE --side 473
                               [--precision bf16] [--steps 6]

The same episodes online, from new views and from kept ones; a step of PFENet+CE is taken behind
each. Kept views are read again from the page cache where memory allows: where it cannot hold
them, reading is slower.
"""
import argparse
import shutil
import statistics
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
from celp_nb.engine.methods import DECODERS, METHODS, build_model
from celp_nb.engine.steps import online_steps
from celp_nb.engine.training import (
    Objective,
    Optimisation,
    accelerator_for,
    optimisers_for,
    train_step,
)
from celp_nb.engine.views import cached_steps
from celp_nb.pfenet import COCO_BINS


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="a folder in VOC layout; the bundled samples otherwise")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights")
    parser.add_argument("--side", type=int, default=161)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    args = parser.parse_args()
    precision = torch.bfloat16 if args.precision == "bf16" else None
    data, backbone, method = (
        voc_layout(args.data, "train") if args.data else samples("train"),
        load_backbone(args.backbone, args.weights),
        METHODS["PFENet+CE"],
    )
    classes = [
        c
        for c in range(1, len(data.class_names) + 1)
        if c not in fold_classes(len(data.class_names), 0)
    ]
    items = TrainingEpisodes(
        data,
        images_in_turn(data.pixels, classes, args.steps * args.batch, 1, 0),
        classes,
        Recipe(args.side, args.side),
        0,
    )
    torch.manual_seed(0)
    model, accelerator = (
        build_model(feature_channels(backbone)[0], args.width, COCO_BINS),
        accelerator_for(precision=precision),
    )
    objective, optimisers = (
        accelerator.prepare(Objective(model, DECODERS[method.decoder].loss)),
        optimisers_for(model, method, Optimisation()),
    )
    folder = Path(tempfile.mkdtemp())
    sources = {"online": lambda: online_steps(backbone, items, args.batch, precision=precision)} | {
        name: lambda: cached_steps(folder, backbone, items, args.batch, 1, precision=precision)
        for name in ("new views", "kept views", "kept views again")
    }
    print(
        f"{args.backbone}, {args.side} px, batch {args.batch}, {args.precision}, "
        f"{torch.get_num_threads()} threads, {data.name}, "
        f"{args.steps} steps of PFENet+CE behind each"
    )
    try:
        for name, source in sources.items():
            seconds, last = [], time.perf_counter()
            for number, step in enumerate(source()):
                between = time.perf_counter()
                train_step(objective, optimisers, method, step, 1e-3, number, accelerator)
                seconds.append((between - last, time.perf_counter() - between))
                last = time.perf_counter()
            features, decoder = (statistics.median(s) for s in zip(*seconds[1:]))
            print(
                f"{name:16} {features:6.3f} s for the features, {decoder:6.3f} s for the decoder: "
                f"{features + decoder:6.3f} s per step"
            )
        views = list(folder.rglob("*.pt"))
        print(f"{sum(v.stat().st_size for v in views) / len(views) / 2**20:.1f} MiB per view")
    finally: shutil.rmtree(folder)


if __name__ == "__main__": main()
