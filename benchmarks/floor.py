"""The convolutions and matrix products of a training step, and their time when nothing else runs.

    python benchmarks/floor.py --data DIR --backbone mobilenet_v2 --weights FILE --side 161
        [--methods PFENet] [--precision bf16]

Every convolution and product of one step, forwards and backwards, is called again alone, with
tensors of its shapes and layouts, in turn with whole steps. Their sum is what a step would cost if
all else were free; the rates are what this processor does at these shapes. `results/speed.md` has
what was measured. The other options are those of `views.py`.
"""
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from views import prepare, read_arguments

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


def operations(name, args):
    "Floating-point operations of a call: two for each multiplication with its addition."
    if name == "convolution_backward":
        gradient, _, weight = args[:3]
        return 2 * gradient.numel() * weight[0].numel() * (args[10][0] + args[10][1])
    if name == "convolution":
        (images, _, *size), weight = args[0].shape, args[1]
        return 2 * images * size[0] * size[1] * weight.numel()
    left, right = args[-2:]
    return 2 * left.numel() * right.shape[-1]


class Calls(TorchDispatchMode):
    "Collects the convolutions and products that are called: shapes → call, and how often."
    def __init__(self):
        super().__init__()
        self.calls, self.counts = {}, {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if name.startswith("convolution") or name in PRODUCTS:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            key = name, *((tuple(x.shape), x.stride(), x.dtype) for x in tensors)
            copies = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in args]
            if key not in self.calls: self.calls[key] = op, copies, operations(name, args)
            self.counts[key] = self.counts.get(key, 0) + 1
        return op(*args, **(kwargs or {}))


@torch.no_grad()
def seconds_alone(op, args):
    "Processor time of a call, the mean of two, its data in the cache."
    op(*args)
    start = time.process_time()
    op(*args)
    op(*args)
    return (time.process_time() - start) / 2


def main():
    sys.argv += [] if "--steps" in sys.argv else ["--steps", "4"]
    args, folder = read_arguments(), Path(tempfile.mkdtemp())
    try:
        sources, train = prepare(args, folder)
        steps = list(sources["kept views"]())
    finally: shutil.rmtree(folder)
    for number, step in enumerate(steps): train(step, number)
    with Calls() as seen: train(steps[0], 0)
    whole, alone = [], {key: [] for key in seen.calls}
    for number in range(args.pairs):
        start = time.process_time()
        train(steps[number % len(steps)], number)
        whole.append(time.process_time() - start)
        for key, (op, given, _) in seen.calls.items(): alone[key].append(seconds_alone(op, given))
    rows = []
    for key, (_, _, each) in seen.calls.items():
        count = seen.counts[key]
        shapes = " ".join("×".join(map(str, shape)) for shape, *_ in key[1:])
        spent = count * statistics.median(alone[key])
        rows.append((spent, count * each, f"{count} {key[0]} {shapes} {str(key[1][2])[6:]}"))
    floor, work = sum(r[0] for r in rows), sum(r[1] for r in rows)
    print(f"{args.backbone}, {args.side} px, {args.precision}, {', '.join(args.methods)}")
    print(
        f"a step {1000 * statistics.median(whole):.0f} ms, its {work / 1e9:.1f} G operations alone "
        f"{1000 * floor:.0f} ms ({work / floor / 1e9:.0f} G/s): "
        f"{statistics.median(whole) / floor:.2f} times"
    )
    for spent, work, words in sorted(rows, reverse=True)[:12]:
        print(f"{1000 * spent:7.2f} ms {work / 1e9:7.2f} G {work / spent / 1e9:5.0f} G/s  {words}")


if __name__ == "__main__": main()
