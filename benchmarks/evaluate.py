"""How much faster evaluation is when each image's features are computed once; against a loop that computes them for every episode.

    python benchmarks/evaluate.py [--episodes 100] [--data DIR] [--backbone tiny] [--weights FILE|random] [--side 161]

Both predict the same episodes with the same model, in turn, and must count the same pixels. With few episodes nothing is seen twice and
nothing is gained; a paper's 1,000 pairs a class see every image many times.
"""
import argparse
import statistics
import sys
import time

import torch

from celp_nb.backbones import episode_features, feature_channels, load_backbone
from celp_nb.contrast import FewShotModel
from celp_nb.datasets import binary_mask, fit_square, known_mask, read_image, samples, voc_layout
from celp_nb.episodes import fold_classes, pairs_per_class
from celp_nb.evaluation import at_native_size, evaluate, feature_memory
from celp_nb.metrics import COUNTS, counts
from celp_nb.pfenet import COCO_BINS, PFENet


@torch.no_grad()
def per_episode(backbone, model, data, episodes, train_classes, side):
    "Counts of each episode, everything from the files up."
    device, rows = next(backbone.parameters()).device, []
    for c, q, supports in zip(episodes.cls.tolist(), episodes.query.tolist(), episodes.support.tolist()):
        pairs = [fit_square(read_image(data, i), data.read_mask(i), side) for i in (q, *supports)]
        images, masks = (torch.stack(x).to(device) for x in zip(*pairs))
        masks = binary_mask(masks[1:], c)[None]
        query, support = episode_features(backbone, images[:1], images[None, 1:], masks)
        truth = torch.as_tensor(data.read_mask(q))
        found = at_native_size(model(query, support, masks), *truth.shape).argmax(0).bool().cpu()
        rows.append(counts(found, binary_mask(truth, c), known_mask(truth, train_classes)))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100, help="in all, over the fold's classes")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--data", help="a folder in VOC layout; the bundled samples otherwise")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", help="a state dict, or random; tiny has its own")
    parser.add_argument("--width", type=int, default=64, help="channels of the decoder")
    parser.add_argument("--side", type=int, default=161, help="pixels, 8n+1")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = voc_layout(args.data, "val") if args.data else samples("val")
    classes = fold_classes(len(data.class_names), args.fold)
    train_classes = [c for c in range(1, len(data.class_names) + 1) if c not in classes]
    backbone = load_backbone(args.backbone, args.weights).to(args.device)
    model = FewShotModel(feature_channels(backbone)[0], PFENet(args.width, COCO_BINS), args.width).to(args.device).eval()
    print(f"{args.device}, {torch.get_num_threads()} threads; {data.name}, fold {args.fold}, {args.backbone}, {args.side} px, width {args.width}, {args.repeats} rounds, the two in turn")
    for K in args.shots:
        episodes = pairs_per_class(data.pixels, classes, -(-args.episodes // len(classes)), K, 0, class_names=data.class_names)
        images = len({*episodes.query.tolist(), *episodes.support.ravel().tolist()})
        seconds = {"loop": [], "memory": []}
        for _ in range(args.repeats):
            start = time.perf_counter(), time.process_time()
            slow = per_episode(backbone, model, data, episodes, train_classes, args.side)
            middle = time.perf_counter(), time.process_time()
            fast = evaluate({"model": model}, feature_memory(backbone, data, args.side), data, episodes, train_classes, (K,))
            end = time.perf_counter(), time.process_time()
            for name, a, b in (("loop", start, middle), ("memory", middle, end)): seconds[name].append([y - x for x, y in zip(a, b)])
            for name in COUNTS:  # rounding may turn single pixels whose two logits are equal to the last digit
                off = sum(abs(row[name] - value) for row, value in zip(slow, fast[name]))
                if off > 1e-4 * max(1, sum(row["valid"] for row in slow)): sys.exit(f"the two count differently: {name} is off by {off} pixels")
        wall, cpu = (statistics.median(a[i] / b[i] for a, b in zip(seconds["loop"], seconds["memory"])) for i in (0, 1))
        print(f"{K} shot{'s' * (K > 1)}: {len(fast)} episodes of {images} images; "
              f"loop {statistics.median(s[0] for s in seconds['loop']):.2f} s, with memory {statistics.median(s[0] for s in seconds['memory']):.2f} s, {wall:.2f} x as fast (in processor time {cpu:.2f} x)")


if __name__ == "__main__": main()
