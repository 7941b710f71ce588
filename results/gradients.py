"""How strongly each loss of Eq. (13) pulls at the decoder while it is trained.

    python results/gradients.py OUT.csv [--seeds 0 1 2] [--every 20] [celp run's options]

Trains the methods of a run on its first fold. Every few steps the gradient of each loss by itself,
without its weight, is computed for the decoder's weights, and a row is written: method, seed, step,
loss (main, auxiliary, contrast), its value and the norm of its gradient; and of the queries' pixels
the share that the decoder calls foreground, the share whose foreground logit alone is above 0, and
the share of the objects.
"""

from pathlib import Path

import pandas as pd
import torch
import tyro

from celp_nb.app.commands import Settings
from celp_nb.engine.methods import Method, Step
from celp_nb.engine.steps import shared_inputs
from celp_nb.engine.training import Objective, Optimisation, prepare_training, train_step
from celp_nb.losses import at_mask_size
from celp_nb.ops import VOID
from celp_nb.repro.config import change_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.fold_training import steps_of
from celp_nb.repro.setup import Setup, new_models, prepare

LOSSES = ("main", "auxiliary", "contrast")


def measured(objective: Objective, method: Method, data: Step, number: int) -> list[dict]:
    "A row per loss."
    model = objective.model
    pseudo, prior = shared_inputs(model, method, data, number, 0, {})
    torch.manual_seed(number)  # of dropout, as in the training step that follows
    given = data.query, data.support, data.support_mask, data.target, pseudo, prior
    losses, weights = objective.train()(*given), [*model.parameters()]
    logits, seen = at_mask_size(losses.logits, data.target.shape[1:]).detach(), data.target != VOID
    maps = {
        "foreground": logits[:, 1] > logits[:, 0],
        "own_channel": logits[:, 1] > 0,
        "target": data.target == 1,
    }
    shares = {name: of_pixels[seen].float().mean().item() for name, of_pixels in maps.items()}
    rows = []
    for name in LOSSES:
        loss = getattr(losses, name)
        if not loss.requires_grad: continue
        own = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        norm = torch.stack([g.norm() for g in own if g is not None]).norm()
        rows.append({"loss": name, "value": loss.item(), "norm": norm.item(), **shares})
    return rows


def trained_rows(setup: Setup, every: int) -> list[dict]:
    "Rows of all methods of a run, trained on its first fold."
    config, (fold, *_) = setup.config.optimisation, setup.folds
    opt = Optimisation(
        fold.iterations, config.batch, config.lr,
        optimiser=config.optimiser, transformer_lr=config.transformer_lr,
    )
    models, rows, seed = new_models(setup), [], setup.config.runtime.seed
    objectives, optimisers = prepare_training(models, setup.methods, opt, setup.accelerator)
    for step, data in enumerate(steps_of(setup, fold)(0)):
        shared, number = {}, seed * 1_000_003 + step
        for name, method in setup.methods.items():
            if step % every == 0:
                for row in measured(objectives[name], method, data, number):
                    rows.append({"method": name, "seed": seed, "step": step, **row})
            own = objectives[name], optimisers[name], method, data, opt.lr_at(step), number
            train_step(*own, setup.accelerator, name, 1, shared)
    return rows


def main(
    out: tyro.conf.Positional[Path],
    config: Settings,
    seeds: tuple[int, ...] = (0, 1, 2),
    every: int = 20,
) -> None:
    "Measure for every seed; the table is written after each."
    rows, config = [], change_config(config, folds=(0,))
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rows += trained_rows(prepare(resolve(change_config(config, seed=seed))), every)
        pd.DataFrame(rows).to_csv(out, index=False, float_format="%.5g")
        print(f"seed {seed}: {len(rows)} rows", flush=True)


if __name__ == "__main__": tyro.cli(main, description=__doc__)
