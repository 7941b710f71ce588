"""A seed gives the same draw on every device: random numbers are drawn on the CPU and moved."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from celp_nb import cyctr
from celp_nb.conditioning import Features
from celp_nb.engine.methods import Step, find_method
from celp_nb.engine.steps import draw_pseudo_masks
from celp_nb.latent import draw_centre

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*(ROOT / "celp_nb").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_no_generator_is_made_for_a_device():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.Generator":
                assert not node.args and not node.keywords, f"{path.name}, line {node.lineno}"


class DrawsOnTheCpu(TorchFunctionMode):
    "Counts the draws, and refuses one that names a device."

    draws = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.rand, torch.randn, torch.randperm, torch.multinomial):
            self.draws += 1
            assert "device" not in (kwargs or {}), "drawn on the device of the data"
        return function(*args, **kwargs or {})


def step(device="cpu", rows=slice(None)):
    g = torch.Generator().manual_seed(0)
    high, known = torch.randn(4, 8, 7, 7, generator=g), torch.rand(4, 49, 49, generator=g) < 0.02
    query = Features(high[rows].to(device), high[rows].to(device))
    target = known[rows].long().to(device)
    return Step(query, query, target.unsqueeze(1), target, target)


METHOD = replace(find_method("PFENet+CE"), delta=0.3, sigma=2)


def pseudo_masks(device="cpu"): return draw_pseudo_masks(METHOD, step(device), 7, 0)


def centres(device="cpu"):
    known = (torch.arange(49) < 20).expand(4, -1).to(device)
    return draw_centre(step(device).query.high, known, torch.Generator().manual_seed(3), 0.3, 2)


def keys(device="cpu", training=False):
    torch.manual_seed(5)
    mask = torch.arange(2000).remainder(3).eq(0).long().expand(2, -1).to(device)
    return cyctr.draw_keys(mask, training)[0]


def training_keys(device="cpu"): return keys(device, True)


@pytest.mark.parametrize("draw", [pseudo_masks, centres, keys, training_keys])
def test_no_draw_names_the_device_of_the_data(draw):
    with DrawsOnTheCpu() as counted: draw()
    assert counted.draws > 0


@needs_cuda
@pytest.mark.parametrize("draw", [pseudo_masks, centres, keys, training_keys])
def test_the_same_draw_on_a_gpu(draw):
    assert torch.equal(draw(), draw("cuda").cpu())


@needs_cuda
def test_two_processes_on_a_gpu_draw_what_one_does():
    halves = [step("cuda", slice(2 * rank, 2 * rank + 2)) for rank in (0, 1)]
    apart = [draw_pseudo_masks(METHOD, half, 7, rank) for rank, half in enumerate(halves)]
    assert torch.equal(pseudo_masks("cuda"), torch.cat(apart))
