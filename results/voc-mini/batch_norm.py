"""PFENet with and without CE on voc-mini, the backbone's batch norm in training mode: as PFENet itself, which CELP's code freezes.

    OMP_NUM_THREADS=1 python results/voc-mini/batch_norm.py --out runs/vm-batchnorm-s0 --seed 0 --folds 0 2
    python results/collect.py results/voc-mini runs/vm-batchnorm-s0

The regime and the very views and episodes of vm-main; but features cannot be kept: in training each batch norm takes the statistics of the step's own images (queries together, supports together) and moves its running ones towards
them, which hold at test time. A run folder like that of `celp run`, for `collect.py`; what it calls its backbone tells it from others.
"""
import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import default_collate

from celp_nb.data.episodes import atomic_file
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
from celp_nb.engine.steps import drawn_views, fixed_view
from celp_nb.engine.training import Optimisation, fit
from celp_nb.repro.config import resolve
from celp_nb.repro.report import progress_display, write_table
from celp_nb.repro.runs import (
    evaluate_fold,
    method_of,
    new_models,
    precision_of,
    prepare,
    read_results,
)
from celp_nb.repro.tables import DEVELOPMENT_DEFAULTS

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--shared", type=Path, default=Path("../shared"))
parser.add_argument("--out", type=Path, required=True, help="folder of the run")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3])
parser.add_argument("--methods", nargs="+", default=["PFENet", "PFENet+CE"])
parser.add_argument("--iterations", type=int, default=DEVELOPMENT_DEFAULTS.iterations)
args = parser.parse_args()
weights = args.shared / "weights/resnet50_imagenet_fp16.pth"
config = resolve(
    replace(
        DEVELOPMENT_DEFAULTS,
        data=str(args.shared / "data/voc-mini"),
        weights=str(weights),
        seed=args.seed,
        folds=tuple(args.folds),
        methods=tuple(args.methods),
        iterations=args.iterations,
        trivial=False,
    )
)


def unfolded() -> Backbone:
    "ResNet-50 with its batch norm as layers."
    build, cut, _, unused = BACKBONES["resnet50"]
    return (
        Backbone(
            "resnet50", *cut(load_weights_(build(), read_weights(weights), str(weights), unused))
        )
        .requires_grad_(False)
        .to(memory_format=torch.channels_last)
    )


def steps(backbone: Backbone, episodes: TrainingEpisodes):
    "The steps of `cached_steps`, each with features of its own."
    def row(i):
        c, images = (
            int(episodes.episodes.cls[i]),
            [int(episodes.episodes.query[i]), *episodes.episodes.support[i].tolist()],
        )
        seen, maps = zip(
            *(
                fixed_view(episodes, j, c, v)
                for j, v in zip(images, drawn_views(episodes, i, config.cache_views))
            )
        )
        return (
            torch.stack(seen),
            binary_mask(torch.stack(maps), c),
            known_mask(maps[0], episodes.train_classes),
        )
    for step in range(len(episodes) // config.batch):
        images, masks, known = default_collate(
            [row(i) for i in range(step * config.batch, (step + 1) * config.batch)]
        )
        backbone.train()
        with autocast(images.device, precision_of(config)):
            query, support = (
                image_features(backbone, images[:, 0]),
                support_features(backbone, images[:, 1], masks[:, 1]),
            )
        backbone.eval()
        query, support = (type(f)(*(x.float() for x in f)) for f in (query, support))
        yield Step(
            query,
            type(support)(*(x[:, None] for x in support)),
            masks[:, 1:],
            masks[:, 0].long(),
            known,
        )


args.out.mkdir(parents=True, exist_ok=True)
with atomic_file(args.out / "config.json", "w") as f:
    f.write(json.dumps(asdict(config), indent=1) + "\n")
setup = prepare(config)
watch = progress_display(2 * len(setup.folds))
for fold in setup.folds:
    if fold.number in set(read_results(args.out).fold): continue
    began, backbone, models = time.time(), unfolded(), new_models(setup)
    items = TrainingEpisodes(
        setup.train,
        fold.training,
        fold.train_classes,
        Recipe(config.crop, round(config.crop * config.reference / config.side), config.scale),
        config.seed,
    )
    tick = watch(f"fold {fold.number} train", fold.iterations)
    fit(
        models,
        {m: method_of(config, m) for m in models},
        lambda first: steps(backbone, items),
        Optimisation(
            fold.iterations,
            config.batch,
            config.lr,
            weight_decay=config.weight_decay,
            optimiser=config.optimiser,
        ),
        config.seed,
        report=lambda step, told: tick(
            step + 1, "  ".join(f"{m} {losses['main']:.3f}" for m, losses in told.items())
        ),
        accelerator=setup.accelerator,
    )
    mine = setup._replace(
        memory=feature_bank(backbone.eval(), setup.val, config.side, precision=precision_of(config))
    )
    (args.out / f"fold{fold.number}").mkdir(exist_ok=True)
    new = evaluate_fold(mine, fold, models, args.out, watch).assign(
        backbone="resnet50, batch norm in training mode", seconds=round(time.time() - began, 1)
    )
    old = read_results(args.out)
    write_table(
        args.out / "results.csv",
        pd.concat([old, new]).sort_values("fold", kind="stable") if len(old) else new,
    )
    print(
        new[["fold", "method", "shots", "miou", "confusion"]].round(1).to_string(index=False),
        flush=True,
    )
