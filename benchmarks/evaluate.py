"""How much faster evaluation with a feature bank is than a plain loop over the episodes.

    python benchmarks/evaluate.py [--data DIR --fold 0] [--backbone tiny] [--weights FILE|random]
                                  [--side 161] [--episodes 100] [--plain 20]

Ours works through all episodes of a fold. The plain loop, as one would write it from the paper,
reads the files of every episode anew and sends each image through the network's layers as they
come (batch norm unfolded), one after the other; every position of a support takes part in the
prior; both logits are resized. It gets a random sample of the same episodes, half of them before
ours and half after, and its seconds per episode are compared with ours. On the sample both must
count the same pixels. What can be saved depends on how often a list of episodes comes back to an
image, to a pair and to a question: these numbers are printed too.
"""
import argparse
import copy
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from step import (
    machine,
    plain_cosine,
    plain_decoder,
    plain_features,
    plain_min_max,
    plain_prototype,
    resize,
)

from celp_nb.bundled.scenes import samples
from celp_nb.contrast import FewShotModel
from celp_nb.data.episodes import Episodes, fold_classes, pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import binary_mask, fit_square, known_mask
from celp_nb.data.voc import voc_layout
from celp_nb.engine.backbones import (
    BACKBONES,
    TINY_WEIGHTS,
    feature_channels,
    load_backbone,
    load_weights_,
    read_weights,
)
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.metrics import COUNTS, pixel_counts, summarise
from celp_nb.pfenet import COCO_BINS, PASCAL_BINS, PFENet

TOLERANCE = 1e-5  # of the valid pixels, and of mIoU


def networks(args):
    "The same weights as a plain network and as ours."
    build, cut, _, unused, *_ = BACKBONES[args.backbone]
    net = build()
    if args.weights != "random":
        load_weights_(net, read_weights(args.weights), args.weights, unused)
    ours = load_backbone(args.backbone, copy.deepcopy(net.state_dict()))
    stages = [stage.requires_grad_(False).eval().to(args.device) for stage in cut(net)]
    return SimpleNamespace(**dict(zip(("stem", "layer3", "layer4"), stages))), ours.to(args.device)


@torch.no_grad()
def plain_logits(backbone, model, data, c, q, supports, side):
    "Everything from the files up: (2, H, W), and the query's class map."
    device, truth = next(model.parameters()).device, torch.as_tensor(data.read_mask(q))
    read = lambda i: [
        x[None].to(device) for x in fit_square(read_image(data, i), data.read_mask(i), side)
    ]
    mid, high = plain_features(backbone, read(q)[0])
    prototypes, priors = [], []
    for s in supports:
        image, class_map = read(s)
        mask = binary_mask(class_map, c)
        mid_s, high_s = plain_features(backbone, image, mask)
        kept = high_s * resize((mask == 1).float().unsqueeze(1), high_s.shape[-2:])
        prototypes.append(plain_prototype(model.reduce(mid_s), mask))
        priors.append(
            plain_min_max(
                plain_cosine(high.flatten(2), kept.flatten(2))
                .max(2)[0]
                .view(1, 1, *high.shape[-2:])
            )
        )
    logits, _ = plain_decoder(
        model.decoder,
        model.reduce(mid),
        torch.stack(prototypes).mean(0),
        torch.stack(priors).mean(0),
    )
    height, width = truth.shape
    return resize(logits, (max(height, width),) * 2)[0, :, :height, :width], truth


def plain_loop(backbone, model, data, episodes, train_classes, side):
    "A row of counts per episode; seconds by the clock and of the processor."
    rows, start = [], (time.perf_counter(), time.process_time())
    for c, q, supports in zip(*(x.tolist() for x in episodes)):
        logits, truth = plain_logits(backbone, model, data, c, q, supports, side)
        rows.append(
            {
                "cls": c,
                **pixel_counts(
                    logits.argmax(0).bool().cpu(),
                    binary_mask(truth, c),
                    known_mask(truth, train_classes),
                ),
            }
        )
    return rows, np.subtract((time.perf_counter(), time.process_time()), start)


def agree(plain, ours):
    "Stop the program where the two count differently."
    for name in COUNTS:
        off = (plain[name] - ours[name]).abs().sum() / plain.valid.sum()
        if off > TOLERANCE:
            sys.exit(f"the two count differently: {name} is off by {off:.1e} of all pixels")
    a, b = (summarise(rows)["miou"] for rows in (plain, ours))
    if abs(a - b) > TOLERANCE * a:
        sys.exit(f"the two score differently: mIoU {100 * a:.4f} and {100 * b:.4f}")
    off = max((plain[name] - ours[name]).abs().sum() for name in COUNTS)
    return (
        f"counts differ by {off} of {plain.valid.sum()} pixels at most, "
        f"mIoU {100 * a:.4f} and {100 * b:.4f} (random decoder)"
    )


def compare(args, data, plain, ours, model, K):
    "One number of shots."
    classes = fold_classes(len(data.class_names), args.fold)
    train_classes = [c for c in range(1, len(data.class_names) + 1) if c not in classes]
    episodes = pairs_per_class(
        data.pixels, classes, -(-args.episodes // len(classes)), K, 0, class_names=data.class_names
    )
    sample = np.random.default_rng(0).choice(
        len(episodes.cls), min(args.plain, len(episodes.cls)), replace=False
    )
    half = lambda which: plain_loop(
        plain, plain_model, data, Episodes(*(x[which] for x in episodes)), train_classes, args.side
    )
    with torch.no_grad():  # a random decoder is made to find foreground on half of an image
        difference = plain_logits(
            plain, model, data, *(x[0].tolist() for x in episodes), args.side
        )[0].diff(dim=0)
        model.decoder.cls[3].bias[1] -= difference.median()
    plain_model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    bank, encoded, most = feature_bank(ours, data, args.side, args.gigabytes), [], []
    hook = ours.layer3.register_forward_hook(lambda net, given, out: encoded.append(len(out)))
    first, spent = half(sample[::2])
    start = time.perf_counter(), time.process_time()
    table = evaluate(
        {"model": model},
        bank,
        data,
        episodes,
        train_classes,
        (K,),
        lambda n: most.append(bank.kept.currsize),
        args.batch,
    )
    took = np.subtract((time.perf_counter(), time.process_time()), start)
    hook.remove()
    second, more = half(sample[1::2])
    agreement = agree(
        pd.DataFrame(first + second),
        table.iloc[[*sample[::2], *sample[1::2]]].reset_index(drop=True),
    )
    each, mine = (spent + more) / len(sample), took / len(table)
    pairs = {(c, q, s) for c, q, supports in zip(*(x.tolist() for x in episodes)) for s in supports}
    distinct = {(c, q, *supports) for c, q, supports in zip(*(x.tolist() for x in episodes))}
    images = len(np.unique(np.c_[episodes.query, episodes.support]))
    print(
        f"{K} shot{'s' * (K > 1)}: {len(table)} episodes of {images} images, "
        f"{len(distinct)} different, with {len(pairs)} different pairs; "
        f"{sum(encoded) - 1} images through the backbone\n"
        f"  plain, {len(sample)} of the episodes: {each[0]:.3f} s per episode "
        f"({each[1]:.3f} s of processor time), so {each[0] * len(table):.0f} s for all\n"
        f"  ours, all of them: {mine[0]:.4f} s per episode ({mine[1]:.4f}), {took[0]:.0f} s; "
        f"{each[0] / mine[0]:.1f} x as fast (in processor time {each[1] / mine[1]:.1f} x)\n"
        f"  kept at most {max(most) / 1e9:.2f} GB of {args.gigabytes:g}; {agreement}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=100, help="in all, over the fold's classes")
    parser.add_argument(
        "--plain", type=int, default=20, help="of these for the plain loop, at random"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--data", help="a folder in VOC layout; the bundled samples otherwise")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--backbone", default="tiny", choices=list(BACKBONES))
    parser.add_argument(
        "--weights", default=str(TINY_WEIGHTS), help="a state dict, or random; tiny's own otherwise"
    )
    parser.add_argument("--width", type=int, default=256, help="channels of the decoder")
    parser.add_argument("--side", type=int, default=161, help="pixels, 8n+1")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="budget of the memory")
    parser.add_argument(
        "--batch", type=int, default=4, help="episodes that go through the decoder together"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = voc_layout(args.data, "val") if args.data else samples("val")
    plain, ours = networks(args)
    model = (
        FewShotModel(
            feature_channels(ours)[0],
            PFENet(args.width, PASCAL_BINS if args.side == 473 else COCO_BINS),
            args.width,
        )
        .to(args.device)
        .eval()
    )
    print(
        f"{machine(torch.device(args.device))}; {data.name}, fold {args.fold}, seed 0, "
        f"{args.backbone}, {args.side} px, PFENet of width {args.width}, batch {args.batch}",
        flush=True,
    )
    for K in args.shots: compare(args, data, plain, ours, model, K)


if __name__ == "__main__": main()
