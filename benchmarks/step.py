"""How much faster a training step of PFENet+CE is than a plain one, and how much memory each takes.

    python benchmarks/step.py [--side 241] [--batch 4] [--backbone resnet50] [--weights random|FILE]
                              [--precision float32|bf16|both] [--profile]
    python benchmarks/step.py --methods [the same, or --backbone tiny] [--csv FILE]

The two take turns in one run. Ours: query and support through the frozen, folded backbone in one
batch, both paths of Eq. (13) in one decoder call. Plain: as one would write it from the paper:
torchvision's layers with their batch norm, one image set after the other, the concatenation of
Eq. (12) made, the decoder called once for each path with its inner classifiers, and float32
throughout. Their losses are compared first.

With --methods: what a step of PFENet and of CyCTR costs with Contrastive Enhancement and without,
all four in turn; which share of it the backbone takes; and what the transformer's attention takes
of memory at 60×60 positions, with the published 600 keys and with all 3600.
"""
import argparse
import copy
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

from celp_nb.contrast import FewShotModel, two_path_losses
from celp_nb.cyctr import CycleAttention
from celp_nb.engine.backbones import (
    autocast,
    episode_features,
    feature_channels,
    load_backbone,
    read_weights,
)
from celp_nb.engine.methods import DECODERS, METHODS, Method, Step, build_model
from celp_nb.engine.networks import dilate_
from celp_nb.engine.training import (
    Objective,
    Optimisation,
    accelerator_for,
    optimisers_for,
    train_step,
)
from celp_nb.latent import sample_latent
from celp_nb.pfenet import COCO_BINS, PASCAL_BINS, PFENet, bin_size

NUMBER = 7  # seeds the centres
WIDTHS = {"PFENet": 256, "CyCTR": 384}  # as published
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}


def resize(x, size): return F.interpolate(x, size, mode="bilinear", align_corners=True)


class PlainBackbone(nn.Module):
    "torchvision's ResNet, dilated, batch norm where it is."
    def __init__(self, net):
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2)
        self.layer3, self.layer4 = dilate_(net.layer3, 2), dilate_(net.layer4, 4)
        self.eval()


def plain_features(backbone, image, mask=None):
    f2 = backbone.stem(image)
    f3 = backbone.layer3(f2)
    m = 1.0 if mask is None else resize((mask == 1).float().unsqueeze(1), f3.shape[-2:])
    return torch.cat([f3, f2], 1), backbone.layer4(f3 * m)


def plain_cosine(a, b):
    return a.transpose(1, 2) @ b / (a.norm(dim=1).unsqueeze(2) @ b.norm(dim=1).unsqueeze(1) + 1e-7)


def plain_min_max(x):
    low, high = x.flatten(1).min(1)[0].view(-1, 1, 1, 1), x.flatten(1).max(1)[0].view(-1, 1, 1, 1)
    return (x - low) / (high - low + 1e-7)


def plain_prototype(mid, mask):
    m = resize((mask == 1).float().unsqueeze(1), mid.shape[-2:])
    return (mid * m).sum((2, 3)) / (m.sum((2, 3)) + 0.0005)


def plain_decoder(net, mid, v, prior):
    "The Feature Enrichment Module with its concatenations made: logits and inner logits."
    size, maps, inner = mid.shape[-2:], [], []
    for i, bin in enumerate(net.bins):
        at = bin_size(bin, size)
        x = torch.cat(
            [
                F.adaptive_avg_pool2d(mid, at),
                v[:, :, None, None].expand(-1, -1, *at),
                resize(prior, at),
            ],
            1,
        )
        x = net.init_merge[i](x)
        if i: x = x + net.alpha_conv[i - 1](torch.cat([x, resize(maps[-1], at)], 1))
        x = x + net.beta_conv[i](x)
        inner.append(net.inner_cls[i](x))
        maps.append(resize(x, size))
    x = net.res1(torch.cat(maps, 1))
    return net.cls(x + net.res2(x)), inner


def plain_losses(backbone, model, data):
    "The three losses of Eq. (13), path after path. The supports are one shot."
    with torch.no_grad():
        mid_q, high_q = plain_features(backbone, data["query"])
        mid_s, high_s = plain_features(backbone, data["support"][:, 0], data["support_mask"][:, 0])
        m = resize((data["support_mask"][:, 0] == 1).float().unsqueeze(1), high_s.shape[-2:])
        prior = plain_min_max(
            plain_cosine(high_q.flatten(2), (high_s * m).flatten(2))
            .max(2)[0]
            .view(len(m), 1, *high_q.shape[-2:])
        )
        pseudo, _ = sample_latent(
            high_q,
            data["known"],
            torch.Generator().manual_seed(NUMBER),
            delta=data["delta"],
        )
    q, s, target = model.reduce(mid_q), model.reduce(mid_s), data["target"]
    cross_entropy = lambda logits, mask: F.cross_entropy(
        resize(logits, mask.shape[-2:]), mask, ignore_index=255
    )
    logits, inner = plain_decoder(
        model.decoder, q, plain_prototype(s, data["support_mask"][:, 0]), prior
    )
    main, auxiliary = (
        cross_entropy(logits, target),
        sum(cross_entropy(x, target) for x in inner) / len(inner),
    )
    v = plain_prototype(q, pseudo)
    logits, _ = plain_decoder(
        model.decoder,
        q,
        v,
        plain_min_max(plain_cosine(v.unsqueeze(2), q.flatten(2)).view(len(m), 1, *q.shape[-2:])),
    )
    return main, auxiliary, cross_entropy(logits, pseudo)


def plain_step(backbone, model, optimisers, method, data):
    main, auxiliary, contrast = plain_losses(backbone, model.train(), data)
    model.zero_grad()
    (main + method.auxiliary * auxiliary + method.contrast * contrast).backward()
    for optimiser in optimisers: optimiser.step()
    return main.item()


def now(device):
    "Seconds of the clock and of the processor, everything before them done."
    if device.type == "cuda": torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def prepared(model, method, device, precision):
    "What `our_step` needs beside data and backbone."
    accelerator = accelerator_for(device.type, precision)
    objective = accelerator.prepare(Objective(model, DECODERS[method.decoder].loss))
    return {
        "objective": objective,
        "optimisers": optimisers_for(model, method, Optimisation()),
        "method": method,
        "accelerator": accelerator,
        "precision": precision,
    }


def our_step(backbone, data, objective, optimisers, method, accelerator, precision):
    "The losses of `train_step`, and the seconds, by clock and processor, of the backbone."
    device, start = data["query"].device, now(data["query"].device)
    with autocast(device, precision):
        query, support = episode_features(
            backbone,
            data["query"],
            data["support"],
            data["support_mask"],
            DECODERS[method.decoder].whole_support,
        )
    spent = [b - a for a, b in zip(start, now(device))]
    step = Step(query, support, data["support_mask"], data["target"], data["known"])
    return train_step(objective, optimisers, method, step, 1e-3, NUMBER, accelerator), spent


def blobs(g, *shape, side):
    "Masks with one coarse blob each."
    return (
        resize(torch.rand(*shape, 3, 3, generator=g).flatten(0, -3).unsqueeze(1), (side, side))
        > 0.6
    ).view(*shape, side, side)


def network(args, g):
    "torchvision's, with weights from the file, or random ones whose batch norm does something."
    net = getattr(tv, args.backbone)()
    if args.weights == "random":
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                (
                    m.running_mean.normal_(0, 0.1, generator=g),
                    m.running_var.uniform_(0.8, 1.2, generator=g),
                    m.weight.data.uniform_(0.4, 0.6, generator=g),
                )
    else:
        net.load_state_dict(
            {
                k: v.float() if v.is_floating_point() else v
                for k, v in read_weights(args.weights).items()
            },
            strict=False,
        )
    return net


def inputs(args, device, g):
    "Random images and masks."
    B, S = args.batch, args.side
    images = lambda *shape: (
        resize(torch.randn(*shape, 3, S // 8, S // 8, generator=g).flatten(0, -4), (S, S))
        .view(*shape, 3, S, S)
        .to(device)
    )
    data = {
        "query": images(B),
        "support": images(B, 1),
        "support_mask": blobs(g, B, 1, side=S).byte().to(device),
        "target": blobs(g, B, side=S).long().to(device),
    }
    data["known"] = (data["target"] == 1).byte()
    return {**data, "delta": args.delta}


def bins_at(side): return PASCAL_BINS if side == 473 else COCO_BINS


def make(args, device):
    "Both networks with the same weights, a decoder, and random images."
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    net = network(args, g)
    ours = load_backbone(args.backbone, net.state_dict()).to(device)
    plain = PlainBackbone(net).requires_grad_(False).to(device)
    width = args.width or WIDTHS["PFENet"]
    return (
        ours,
        plain,
        FewShotModel(feature_channels(ours)[0], PFENet(width, bins_at(args.side)), width).to(
            device
        ),
        inputs(args, device, g),
    )


def variants(args, device):
    "name → a function that makes one training step."
    ours, plain, model, data = make(args, device)
    method = Method(delta=args.delta)
    def of(precision):
        parts = prepared(copy.deepcopy(model), method, device, PRECISIONS[precision])
        return lambda: our_step(ours, data, **parts)
    own = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    optimisers = optimisers_for(own, method, Optimisation(lr=1e-3))
    return {
        "plain": lambda: plain_step(plain, own, optimisers, method, data),
        **{p: of(p) for p in chosen(args)},
    }, (ours, plain, model, data)


def chosen(args): return ["float32", "bf16"] if args.precision == "both" else [args.precision]


def frozen_inputs(args, device):
    "A backbone of our own, and `inputs` for it."
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    if args.backbone == "tiny": backbone = load_backbone("tiny", args.weights).to(device)
    else: backbone = load_backbone(args.backbone, network(args, g).state_dict()).to(device)
    return backbone, inputs(args, device, g)


def method_steps(args, device):
    "name → a function that makes one training step of a method; the name says the precision too."
    backbone, data = frozen_inputs(args, device)
    channels = feature_channels(backbone)[0]
    def of(name, precision):
        def build():  # late: a process that measures one of them holds no other
            method = replace(METHODS[name], delta=args.delta)
            torch.manual_seed(0)
            model = build_model(
                channels, args.width or WIDTHS[method.decoder], bins_at(args.side), method=method
            ).to(device)
            parts = prepared(model, method, device, PRECISIONS[precision])
            return lambda: our_step(backbone, data, **parts)
        return build

    return {
        f"{name} {precision}": of(name, precision) for precision in chosen(args) for name in METHODS
    }


QUERIES, KEYS = 60 * 60, (600, 60 * 60)


def attention_step(args, device, keys):
    "A function that goes through the attention once and back."
    torch.manual_seed(0)
    width, B = args.width or WIDTHS["CyCTR"], args.batch
    net = CycleAttention(width).to(device)
    flags = lambda n, share: torch.rand(B, n, device=device) < share
    query, support = (
        torch.randn(B, n, width, device=device, requires_grad=True) for n in (QUERIES, keys)
    )
    valid = torch.ones(B, keys, dtype=torch.bool, device=device)
    return lambda: (
        net(query, support, flags(keys, 0.5), valid, ~valid, flags(QUERIES, 0.9))[0]
        .sum()
        .backward()
    )


def compare_methods(args, device):
    "All four in turn: seconds, memory, what Contrastive Enhancement costs, the backbone's share."
    names = [f"{name} {precision}" for precision in chosen(args) for name in METHODS]
    peaks = {name: memory(args, name) for name in names}
    steps = {name: build() for name, build in method_steps(args, device).items()}
    seconds, inside = {name: [] for name in names}, {name: [] for name in names}
    for turn in range(args.repeats + 1):
        for name in names:
            start = now(device)
            losses, backbone = steps[name]()
            spent = [b - a for a, b in zip(start, now(device))]
            if "+CE" in name and losses["latent"] < 1:
                sys.exit(
                    f"{name}: only {losses['latent']:.0%} of the images have a latent region at "
                    f"--delta {args.delta}; lower it, or the step does less work than it should."
                )
            if turn:
                (
                    seconds[name].append(spent),
                    inside[name].append(backbone),
                )  # the first is for warming up
    rows = []
    for name in names:
        plain = name.replace("+CE", "")
        wall, cpu = (
            statistics.median(s[i] / p[i] for s, p in zip(seconds[name], seconds[plain]))
            for i in (0, 1)
        )
        share = statistics.median(b[0] / s[0] for b, s in zip(inside[name], seconds[name]))
        each = statistics.median(s[0] for s in seconds[name])
        cost = (
            f"{wall:4.2f} x {plain.split()[0]} (in processor time {cpu:.2f} x)"
            if plain != name
            else ""
        )
        line = (
            f"{name:18} {each:7.3f} s per step, {share:4.0%} in the backbone; "
            f"peak memory {peaks[name]:6.0f} MiB; {cost}"
        )
        print(line.rstrip("; "))
        method, precision = name.split()
        rows.append(
            {
                "device": machine(device),
                "backbone": args.backbone,
                "weights": args.weights,
                "side": args.side,
                "batch": args.batch,
                "method": method,
                "precision": precision,
                "seconds": round(each, 4),
                "backbone_share": round(share, 3),
                "peak_mib": round(peaks[name]),
                "cost_of_ce": round(wall, 3),
            }
        )
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(args.csv, index=False)
    taken = {keys: memory(args, f"attention {keys}") for keys in KEYS}
    scores = {keys: args.batch * QUERIES * keys * 4 / 2**20 for keys in KEYS}
    print(
        f"attention of {QUERIES} positions, batch {args.batch}: "
        + ", ".join(
            f"{taken[k]:.0f} MiB for {k} keys (one map of scores is {scores[k]:.0f})" for k in KEYS
        )
        + f"; {taken[KEYS[1]] / max(taken[KEYS[0]], 1):.1f} x the memory "
        + f"for {KEYS[1] / KEYS[0]:.0f} x the keys"
    )


@torch.no_grad()
def agree(ours, plain, model, data):
    "Print the two steps' losses without dropout; stop the program where they differ."
    model.eval()
    query, support = episode_features(ours, data["query"], data["support"], data["support_mask"])
    generator = torch.Generator().manual_seed(NUMBER)
    pseudo, centre = sample_latent(query.high, data["known"], generator, delta=data["delta"])
    a = two_path_losses(model, query, support, data["support_mask"], data["target"], pseudo)[:3]
    b = plain_losses(plain, model, data)
    for name, x, y in zip(("main", "auxiliary", "contrast"), a, b):
        if not abs(x - y) <= 1e-3 * abs(y):
            sys.exit(f"the steps differ: {name} loss {x.item():.6f} against {y.item():.6f}")
    if (centre < 0).any():
        sys.exit(
            f"{int((centre < 0).sum())} images have no latent region at --delta {data['delta']}; "
            "lower it, or the plain step does more work than ours."
        )
    print(
        "the same losses: "
        + ", ".join(
            f"{n} {x.item():.5f} = {y.item():.5f}"
            for n, x, y in zip(("main", "auxiliary", "contrast"), a, b)
        )
    )


def profile(args, device):
    "Seconds in each part of our step in float32, one after the other, medians."
    ours, _, model, data = make(args, device)
    model.train()
    seconds = {}
    def timed(name, f, *args, **options):
        if device.type == "cuda": torch.cuda.synchronize()
        start = time.perf_counter()
        value = f(*args, **options)
        if device.type == "cuda": torch.cuda.synchronize()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return value
    images = (data["query"], data["support"], data["support_mask"])
    for _ in range(args.repeats):
        query, support = timed("backbone", episode_features, ours, *images)
        generator = torch.Generator().manual_seed(NUMBER)
        pseudo, _ = timed(
            "latent sampling", sample_latent, query.high, data["known"], generator, delta=args.delta
        )
        step_inputs = (query, support, data["support_mask"], data["target"], pseudo)
        losses = timed("forward", two_path_losses, model, *step_inputs)
        timed("backward", losses.total().backward)
    whole = sum(statistics.median(s) for s in seconds.values())
    for name, s in seconds.items():
        print(f"  {name:16} {statistics.median(s):8.3f} s  {statistics.median(s) / whole:5.0%}")
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    ) as p:
        two_path_losses(model, *step_inputs).total().backward()
    print(
        p.key_averages().table(
            sort_by=f"self_{device.type}_time_total", row_limit=14, max_name_column_width=50
        )
    )


def peak_of(step, device):
    "The most bytes in use during a step: on the device, or of the process (counted anew on Linux)."
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with suppress(OSError): Path("/proc/self/clear_refs").write_text("5")
    step()
    try:
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_use(device):
    "Bytes, now."
    if device.type == "cuda": return torch.cuda.memory_allocated()
    try:
        return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return 0


def memory(args, name):
    """Peak memory in MiB of one step of one variant, in a process of its own.

    Of attention what is added while it runs."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True
    )
    if done.returncode: sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def machine(device):
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.startswith("flags")).split()
        flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in known]
    except (OSError, StopIteration):
        flags = []
    return (
        f"{device} ({name}; {', '.join(flags) or 'CPU flags unknown'}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=241, help="pixels, 8n+1")
    parser.add_argument("--batch", type=int, default=4, help="episodes a step")
    parser.add_argument(
        "--backbone",
        default="resnet50",
        choices=["resnet18", "resnet50", "resnet101", "tiny"],
        help="tiny with --methods alone",
    )
    parser.add_argument("--weights", default="random", help="a state dict for both, or random")
    parser.add_argument(
        "--width", type=int, help="channels of the decoders; as published otherwise: 256, CyCTR 384"
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=0.3,
        help="similarity threshold: low, so that random weights give every image a latent region",
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16", "both"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--profile", action="store_true", help="say where our step spends its time, and stop"
    )
    parser.add_argument(
        "--methods",
        action="store_true",
        help="PFENet and CyCTR with and without Contrastive Enhancement, instead of the plain step",
    )
    parser.add_argument("--csv", help="with --methods: a file for its table")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.backbone == "tiny" and not args.methods:
        parser.error(
            "the plain step is made of torchvision's layers, which tiny has none of; "
            "give a ResNet, or --methods."
        )
    if args.profile: return profile(args, device)
    if args.only and args.only.startswith("attention"):
        attention_step(
            argparse.Namespace(**{**vars(args), "batch": 1}), device, 60
        )()  # libraries make room for themselves
        step, before = attention_step(args, device, int(args.only.split()[1])), in_use(device)
        return print(json.dumps((peak_of(step, device) - before) / 2**20))
    if args.only:
        step = (
            method_steps(args, device)[args.only]()
            if args.methods
            else variants(args, device)[0][args.only]
        )  # the others are let go
        return print(json.dumps(peak_of(step, device) / 2**20))
    print(
        f"{machine(device)}; {args.backbone} ({args.weights}), {args.side} px, batch {args.batch}, "
        f"width {args.width or 'as published'}, {args.repeats} rounds, the variants in turn"
    )
    if args.methods: return compare_methods(args, device)
    names = ["plain", *chosen(args)]
    peaks = {name: memory(args, name) for name in names}
    made, parts = variants(args, device)
    agree(*parts)
    seconds = {name: [] for name in names}
    for turn in range(args.repeats + 1):
        for name in names:
            start = now(device)
            made[name]()
            if turn:
                seconds[name].append(
                    [b - a for a, b in zip(start, now(device))]
                )  # the first is for warming up
    for name in names:
        wall, cpu = (
            statistics.median(p[i] / s[i] for p, s in zip(seconds["plain"], seconds[name]))
            for i in (0, 1)
        )
        print(
            f"{name:8} {statistics.median(s[0] for s in seconds[name]):7.3f} s per step, "
            f"{wall:5.2f} x as fast as plain (in processor time {cpu:.2f} x); "
            f"peak memory {peaks[name]:6.0f} MiB, {peaks[name] / peaks['plain']:4.2f} x plain"
        )


if __name__ == "__main__": main()
