"""One pilot of the search for a regime on voc-mini: trains a method on classes 11-20, scores it on classes 6-10, both on `train` images.

    OMP_NUM_THREADS=1 python results/voc-mini/pilot.py --width 256 --lr 5e-4 --iterations 1200     # the settings of a row of the README

The training images are those without any pixel of classes 6-10; fold 0's test classes (1-5) and all `val` images stay unseen. Episodes: 20 a
class, seed 7. bf16 backbone throughout. --shared is the folder with data/ and weights/.
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
from celp_nb.engine.steps import cached_steps
from celp_nb.engine.training import Optimisation, accelerator_for, fit
from celp_nb.pfenet import COCO_BINS

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--shared", type=Path, default=Path("../shared"))
parser.add_argument(
    "--cache", default="/tmp/pilot-views", help="folder for the features of fixed views"
)
parser.add_argument("--views", type=int, default=2)
parser.add_argument("--method", default="PFENet", choices=METHODS)
parser.add_argument("--side", type=int, default=241)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--optimiser", default="adamw", choices=["sgd", "adamw"])
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--transformer-lr", type=float, default=1e-4)
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--iterations", type=int, default=600)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument(
    "--every",
    type=int,
    default=0,
    help="also score the model as it is every so many steps: a learning curve",
)
parser.add_argument(
    "--he",
    action="store_true",
    help="He initialisation of the decoder instead of PyTorch's default",
)
parser.add_argument(
    "--coco", action="store_true", help="add coco-mini's classes that VOC lacks to the training"
)
parser.add_argument("--trivial", action="store_true", help="score the trivial predictors too")
args = parser.parse_args()

HELD, SHOWN = range(6, 11), range(11, 21)
voc = voc_layout(args.shared / "data/voc-mini", "train")
data = merge(voc, coco_layout(args.shared / "data/coco-mini", "train2014"))
pixels = data.pixels.copy()
pixels[(pixels[:, [c - 1 for c in HELD]] > 0).any(1)] = (
    0  # an image without pixels of any class is never drawn
)
if not args.coco: pixels[len(voc.ids):] = 0
classes = [
    c for c in [*SHOWN, *range(21, pixels.shape[1] + 1)] if (pixels[:, c - 1] >= 2048).sum() >= 2
]
print(
    f"{len(classes)} classes in {(pixels[:, [c - 1 for c in classes]] >= 2048).any(1).sum()} images"
)

backbone = load_backbone("resnet50", args.shared / "weights/resnet50_imagenet_fp16.pth")
episodes = images_in_turn(
    pixels, classes, args.iterations * args.batch, 1, 0, class_names=data.class_names
)
items = TrainingEpisodes(data, episodes, classes, Recipe(args.side), 0)
torch.manual_seed(0)
method = METHODS[args.method]
model, whole = (
    build_model(feature_channels(backbone)[0], args.width, COCO_BINS, args.dropout, method),
    DECODERS[method.decoder].whole_support,
)
if args.he:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, (2 / layer.weight[0].numel()) ** 0.5)

asked = pairs_per_class(voc.pixels, HELD, 20, 5, 7, class_names=voc.class_names)
memory = feature_bank(backbone, voc, args.side, precision=torch.bfloat16)
score = lambda predictors: scores(evaluate(predictors, memory, voc, asked, classes, (1, 5)))
start, losses = time.time(), []
def report(step, of):
    losses.append(of[args.method]["main"])
    if (step + 1) % 100 == 0:
        print(
            f"{step + 1}: main loss {np.mean(losses[-100:]):.3f}, {time.time() - start:.0f} s",
            flush=True,
        )
def check(step):
    table = score({args.method: model}).round(1)
    print(
        f"{step}: mIoU {table.miou.tolist()}, confusion {table.confusion.tolist()}, {time.time() - start:.0f} s with scoring",
        flush=True,
    )
    return {args.method: float(table.miou[0])}
fit(
    {args.method: model},
    METHODS,
    lambda first: cached_steps(
        args.cache, backbone, items, args.batch, args.views, first, torch.bfloat16, whole
    ),
    Optimisation(
        args.iterations,
        args.batch,
        args.lr,
        optimiser=args.optimiser,
        transformer_lr=args.transformer_lr,
    ),
    0,
    report=report,
    accelerator=accelerator_for(precision=torch.bfloat16),
    check=check if args.every else None,
    checks=range(args.every, args.iterations, args.every) if args.every else (),
)

table = score(
    {args.method: model}
    | ({"all foreground": all_foreground, **prior_predictors()} if args.trivial else {})
)
print(json.dumps({k: str(v) for k, v in vars(args).items()}))
print((best_prior(table) if args.trivial else table).round(1).to_string())
