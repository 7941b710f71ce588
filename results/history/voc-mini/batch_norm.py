"""PFENet with and without CE on voc-mini, the backbone's batch norm in training mode.

    OMP_NUM_THREADS=1 python results/history/voc-mini/batch_norm.py \\
        --out runs/vm-batchnorm-s0 --folds 0 2
    python results/collect.py results/history/voc-mini runs/vm-batchnorm-s0

PFENet itself trains so; CELP's code freezes batch norm. The regime, the views and the episodes are
those of vm-main, but features cannot be cached: in training each batch norm takes the statistics of
the step's own images (queries together, supports together) and moves its running ones towards them,
which are used at test time. Writes a run folder like that of `celp run`, for `collect.py`; its name
for the backbone distinguishes it from other runs.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import default_collate

from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe, binary_mask, known_mask
from celp_nb.engine.backbones import (
    BACKBONES,
    Backbone,
    autocast,
    image_features,
    load_weights_,
    read_weights,
    support_features,
)
from celp_nb.engine.feature_bank import feature_bank
from celp_nb.engine.methods import Step
from celp_nb.engine.training import Optimisation, fit
from celp_nb.engine.views import drawn_views, fixed_view
from celp_nb.repro.config import RunConfig, change_config, write_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.fold_evaluation import evaluate_fold
from celp_nb.repro.folds import Fold
from celp_nb.repro.report import progress_display, write_table
from celp_nb.repro.runs import read_results
from celp_nb.repro.setup import Setup, new_models, precision_of, prepare
from celp_nb.repro.tables import DEVELOPMENT_DEFAULTS

NAME = "resnet50, batch norm in training mode"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = DEVELOPMENT_DEFAULTS.optimisation.iterations
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=["PFENet", "PFENet+CE"])
    parser.add_argument("--iterations", type=int, default=steps)
    return parser.parse_args()


def config_of(args: argparse.Namespace) -> RunConfig:  # resolved
    "The regime of voc-mini with the settings of the command line."
    config = change_config(
        DEVELOPMENT_DEFAULTS,
        data=str(args.shared / "data/voc-mini"),
        weights=str(args.shared / "weights/resnet50_imagenet_fp16.pth"),
        seed=args.seed,
        folds=tuple(args.folds),
        methods=tuple(args.methods),
        iterations=args.iterations,
        trivial=False,
    )
    return resolve(config)


def unfolded_backbone(weights: str) -> Backbone:
    "ResNet-50 with its batch norm as layers."
    build, cut, _, unused = BACKBONES["resnet50"]
    net = load_weights_(build(), read_weights(weights), weights, unused)
    backbone = Backbone("resnet50", *cut(net)).requires_grad_(False)
    return backbone.to(memory_format=torch.channels_last)


def training_item(items: TrainingEpisodes, i: int, views: int) -> tuple:
    "Images, masks and known mask of an episode, from the fixed views that `cached_steps` takes."
    episodes = items.episodes
    cls, images = int(episodes.cls[i]), [int(episodes.query[i]), *episodes.support[i].tolist()]
    drawn = [
        fixed_view(items, j, cls, view) for j, view in zip(images, drawn_views(items, i, views))
    ]
    squares, maps = zip(*drawn)
    masks = binary_mask(torch.stack(maps), cls)
    return torch.stack(squares), masks, known_mask(maps[0], items.train_classes)


def step_features(backbone: Backbone, images, masks, precision) -> tuple:
    "Features of a step, of its queries together and of its supports together."
    backbone.train()
    with autocast(images.device, precision):
        query = image_features(backbone, images[:, 0])
        support = support_features(backbone, images[:, 1], masks[:, 1])
    backbone.eval()
    return tuple(type(f)(*(x.float() for x in f)) for f in (query, support))


def steps_of(backbone: Backbone, items: TrainingEpisodes, config: RunConfig) -> Iterator[Step]:
    "The steps of `cached_steps`, each with features of its own."
    batch, views = config.optimisation.batch, config.runtime.cache_views
    for first in range(0, len(items) - batch + 1, batch):
        rows = [training_item(items, i, views) for i in range(first, first + batch)]
        images, masks, known = default_collate(rows)
        precision = precision_of(config.runtime)
        query, support = step_features(backbone, images, masks, precision)
        one_shot = type(support)(*(x[:, None] for x in support))
        yield Step(query, one_shot, masks[:, 1:], masks[:, 0].long(), known)


def train(setup: Setup, fold: Fold, backbone: Backbone, tick) -> dict:
    "Train the methods of a run on a fold, on features of a backbone in training mode."
    config, models = setup.config, new_models(setup)
    data, opt = config.data, config.optimisation
    recipe = Recipe(data.crop, round(data.crop * data.reference / data.side), data.scale)
    seed = config.runtime.seed
    items = TrainingEpisodes(setup.train, fold.training, fold.train_classes, recipe, seed)

    def report(step, losses):
        words = (f"{m} {of_method['main']:.3f}" for m, of_method in losses.items())
        tick(step + 1, "  ".join(words))

    optimisation = Optimisation(
        fold.iterations,
        opt.batch,
        opt.lr,
        weight_decay=opt.weight_decay,
        optimiser=opt.optimiser,
    )
    fit(
        models,
        setup.methods,
        lambda first: steps_of(backbone, items, config),
        optimisation,
        seed,
        report=report,
        accelerator=setup.accelerator,
    )
    return models


def run_fold(setup: Setup, fold: Fold, folder: Path, watch) -> None:
    "Train and evaluate a fold, and add its scores to the results."
    began, config = time.time(), setup.config
    backbone = unfolded_backbone(config.model.weights)
    models = train(setup, fold, backbone, watch(f"fold {fold.number} train", fold.iterations))
    precision = precision_of(config.runtime)
    memory = feature_bank(backbone.eval(), setup.val, config.data.side, precision=precision)
    (folder / f"fold{fold.number}").mkdir(exist_ok=True)
    new = evaluate_fold(setup._replace(memory=memory), fold, models, folder, watch)
    new = new.assign(backbone=NAME, seconds=round(time.time() - began, 1))
    old = read_results(folder)
    results = pd.concat([old, new]).sort_values("fold", kind="stable") if len(old) else new
    write_table(folder / "results.csv", results)
    columns = ["fold", "method", "shots", "miou", "confusion"]
    print(new[columns].round(1).to_string(index=False), flush=True)


if __name__ == "__main__":
    args = read_arguments()
    config = config_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    write_config(args.out, config)
    setup = prepare(config)
    watch = progress_display(2 * len(setup.folds))
    for fold in setup.folds:
        if fold.number not in set(read_results(args.out).fold):
            run_fold(setup, fold, args.out, watch)
