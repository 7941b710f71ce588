"""One pilot of the search for a regime on voc-mini.

    OMP_NUM_THREADS=1 python results/history/voc-mini/pilot.py --width 256 --lr 5e-4 \\
        --iterations 1200

Trains a method on classes 11-20 and scores it on classes 6-10, both on `train` images; the options
are the settings of a row of the README. The training images are those without any pixel of classes
6-10; fold 0's test classes (1-5) and all `val` images stay unseen. Episodes: 20 per class, seed 7.
bf16 backbone throughout. --shared is the folder with data/ and weights/.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from celp_nb.data.coco import coco_layout
from celp_nb.data.episodes import images_in_turn, pairs_per_class
from celp_nb.data.images import merge
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe
from celp_nb.data.voc import voc_layout
from celp_nb.engine.backbones import feature_channels, load_backbone
from celp_nb.engine.evaluation import (
    all_foreground,
    best_prior,
    prior_predictors,
    scores,
)
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import DECODERS, METHODS, build_model
from celp_nb.engine.training import Optimisation, accelerator_for, fit
from celp_nb.engine.views import cached_steps
from celp_nb.pfenet import COCO_BINS

HELD, SHOWN = range(6, 11), range(11, 21)
PRECISION = torch.bfloat16


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shared", type=Path, default=Path("../shared"))
    add("--cache", default="/tmp/pilot-views", help="folder for the features of fixed views")
    add("--views", type=int, default=2)
    add("--method", default="PFENet", choices=METHODS)
    add("--side", type=int, default=241)
    add("--width", type=int, default=128)
    add("--optimiser", default="adamw", choices=["sgd", "adamw"])
    add("--lr", type=float, default=1e-3)
    add("--transformer-lr", type=float, default=1e-4)
    add("--dropout", type=float, default=0.1)
    add("--iterations", type=int, default=600)
    add("--batch", type=int, default=4)
    add("--every", type=int, default=0, help="also score the model every so many steps")
    add("--he", action="store_true", help="He initialisation of the decoder, not PyTorch's default")
    add("--coco", action="store_true", help="also train on coco-mini's classes that VOC lacks")
    add("--trivial", action="store_true", help="score the trivial predictors too")
    return parser.parse_args()


def enough(pixels: np.ndarray) -> np.ndarray:
    "Whether an image shows a class: from 2,048 pixels on."
    return pixels >= 2048


def training_pixels(pixels: np.ndarray, voc_images: int, coco: bool) -> np.ndarray:
    "Pixels per image and class, 0 for images that are never drawn."
    pixels = pixels.copy()
    held = (pixels[:, [c - 1 for c in HELD]] > 0).any(1)
    pixels[held] = 0
    if not coco: pixels[voc_images:] = 0
    return pixels


def training_classes(pixels: np.ndarray) -> list[int]:
    "Classes that are trained on: those shown in at least two images."
    candidates = [*SHOWN, *range(21, pixels.shape[1] + 1)]
    return [c for c in candidates if enough(pixels[:, c - 1]).sum() >= 2]


def initialise_he(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, (2 / layer.weight[0].numel()) ** 0.5)


def main(args: argparse.Namespace) -> None:
    voc = voc_layout(args.shared / "data/voc-mini", "train")
    data = merge(voc, coco_layout(args.shared / "data/coco-mini", "train2014"))
    pixels = training_pixels(data.pixels, len(voc.ids), args.coco)
    classes = training_classes(pixels)
    images = enough(pixels[:, [c - 1 for c in classes]]).any(1).sum()
    print(f"{len(classes)} classes in {images} images")

    backbone = load_backbone("resnet50", args.shared / "weights/resnet50_imagenet_fp16.pth")
    n, names = args.iterations * args.batch, data.class_names
    episodes = images_in_turn(pixels, classes, n, 1, 0, class_names=names)
    items = TrainingEpisodes(data, episodes, classes, Recipe(args.side), 0)
    torch.manual_seed(0)
    method, channels = METHODS[args.method], feature_channels(backbone)[0]
    model = build_model(channels, args.width, COCO_BINS, args.dropout, method)
    if args.he: initialise_he(model)

    queries = pairs_per_class(voc.pixels, HELD, 20, 5, 7, class_names=voc.class_names)
    memory = feature_bank(backbone, voc, args.side, precision=PRECISION)

    def score(predictors):
        return scores(evaluate(predictors, memory, voc, queries, classes, (1, 5)))

    train(args, model, backbone, items, score)
    trivial = {"all foreground": all_foreground, **prior_predictors()} if args.trivial else {}
    table = score({args.method: model} | trivial)
    print(json.dumps({k: str(v) for k, v in vars(args).items()}))
    print((best_prior(table) if args.trivial else table).round(1).to_string())


def train(args, model, backbone, items, score) -> None:
    "Train a model, with progress and scores on the way."
    start, losses, whole = time.time(), [], DECODERS[METHODS[args.method].decoder].whole_support

    def report(step, of_methods):
        losses.append(of_methods[args.method]["main"])
        if (step + 1) % 100 == 0:
            mean, seconds = np.mean(losses[-100:]), time.time() - start
            print(f"{step + 1}: main loss {mean:.3f}, {seconds:.0f} s", flush=True)

    def check(step):
        table = score({args.method: model}).round(1)
        words = f"mIoU {table.miou.tolist()}, confusion {table.confusion.tolist()}"
        print(f"{step}: {words}, {time.time() - start:.0f} s with scoring", flush=True)
        return {args.method: float(table.miou[0])}

    def steps(first):
        return cached_steps(
            args.cache, backbone, items, args.batch, args.views, first, PRECISION, whole
        )

    optimisation = Optimisation(
        args.iterations,
        args.batch,
        args.lr,
        optimiser=args.optimiser,
        transformer_lr=args.transformer_lr,
    )
    fit(
        {args.method: model},
        METHODS,
        steps,
        optimisation,
        0,
        report=report,
        accelerator=accelerator_for(precision=PRECISION),
        check=check if args.every else None,
        checks=range(args.every, args.iterations, args.every) if args.every else (),
    )


if __name__ == "__main__":
    main(read_arguments())
