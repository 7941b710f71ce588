"""Which level of a backbone should D and the support prior read? Training photographs only.

    python results/pascal-part/levels.py FOLDER BACKBONE WEIGHTS SIDE      # prints two tables

200 episodes of training photographs, 10 per class. *Prior*: mIoU of the support prior at its best
cut. *Region*: the positions with D(i*, ·) > δ, for five centres i* on the query's object; its
purity, its coverage of the object, and the IoU of the two, in the mean over centres. No test image
is opened.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F

from celp_nb.conditioning import best_match, foreground_vectors
from celp_nb.data.episodes import pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import binary_mask, fit_square
from celp_nb.data.voc import voc_layout
from celp_nb.engine.backbones import autocast, load_backbone
from celp_nb.ops import STRIDE, VOID, keep_foreground, min_max, resize
from celp_nb.similarity import self_similarity

DELTAS = np.arange(0.1, 0.96, 0.05).round(2)
CUTS = np.arange(0, 1, 0.05).round(2)
LEVELS = ("layer2", "layer3", "layer4", "layer3 and layer4")


@torch.no_grad()
def features_of(backbone, image, mask=None):
    "Level → (C, h, w) float32; of the mask's foreground alone where there is a mask."
    with autocast(torch.device("cpu"), torch.bfloat16):
        f2 = backbone.layer2(image[None])
        f3 = backbone.layer3(f2)
        if mask is not None: f2, f3 = (keep_foreground(x, mask[None]) for x in (f2, f3))
        f4 = backbone.layer4(f3)
    both = torch.cat([F.normalize(x.float(), dim=1) for x in (f3, f4)], 1)
    return dict(zip(LEVELS, (x[0].float() for x in (f2, f3, f4, both))))


def count_prior(query, support, mask, target, counts):
    "Add intersection and union of the prior at every cut to `counts`, (cuts, 2)."
    vectors = foreground_vectors(support, mask)
    prior = resize(min_max(best_match(query, vectors)[None])[None], target.shape)[0, 0]
    valid, inside = target != VOID, target == 1
    for row, cut in zip(counts, CUTS):
        said = prior >= cut
        row += [int((said & inside & valid).sum()), int(((said | inside) & valid).sum())]


def count_regions(query, labels, cls, centres, sums):
    "Add purity, coverage, IoU and 1 of each centre's region at every δ to `sums`, (deltas, 4)."
    D, valid, inside = self_similarity(query[None])[0], labels != VOID, labels == cls
    for centre in centres:
        for row, delta in zip(sums, DELTAS):
            region = (D[centre] > delta) & valid
            hit, size = int((region & inside).sum()), int(region.sum())
            union = int(((region | inside) & valid).sum())
            row += [hit / max(1, size), hit / int(inside.sum()), hit / max(1, union), 1]


def measure(data, backbone, side):
    "Level → prior's counts (classes, cuts, 2), and → regions' sums (deltas, 4)."
    episodes, rng = pairs_per_class(data.pixels, range(1, 21), 10, 1, 0), np.random.default_rng(0)
    priors = {level: np.zeros((21, len(CUTS), 2)) for level in LEVELS}
    regions = {level: np.zeros((len(DELTAS), 4)) for level in LEVELS}
    for cls, q, (s,) in zip(*(x.tolist() for x in episodes)):
        (xq, mq), (xs, ms) = (
            fit_square(read_image(data, i), data.read_mask(i), side) for i in (q, s)
        )
        query, support = features_of(backbone, xq), features_of(backbone, xs, binary_mask(ms, cls))
        labels = mq[::STRIDE, ::STRIDE].flatten().long()
        on_object = np.flatnonzero((labels == cls).numpy())
        centres = rng.choice(on_object, min(5, len(on_object)), replace=False)
        mask, target = binary_mask(ms, cls), binary_mask(mq, cls)
        for level in LEVELS:
            count_prior(query[level], support[level], mask, target, priors[level][cls])
            count_regions(query[level], labels, cls, centres, regions[level])
    return priors, regions


def print_tables(priors, regions):
    "Markdown tables of both."
    print("\n| level | all foreground | prior, best cut | at cut |\n|---|---:|---:|---:|")
    for level, counts in priors.items():
        miou = 100 * (counts[1:, :, 0] / np.maximum(counts[1:, :, 1], 1)).mean(0)
        best = miou.argmax()
        print(f"| {level} | {miou[0]:.1f} | {miou[best]:.1f} | {CUTS[best]:.2f} |")
    at = [int(np.flatnonzero(d == DELTAS)[0]) for d in (0.25, 0.3, 0.4, 0.5, 0.65, 0.8)]
    names = " | ".join(f"δ = {DELTAS[k]:g}" for k in at)
    print(f"\n| level: purity / coverage / IoU | {names} | best IoU |")
    print(f"|---|{'---|' * (len(at) + 1)}")
    for level, sums in regions.items():
        means = 100 * sums[:, :3] / sums[:, 3:]
        cells = [" / ".join(f"{x:.0f}" for x in means[k]) for k in at]
        best = means[:, 2].argmax()
        cells.append(f"{means[best, 2]:.1f} at {DELTAS[best]:g}")
        print(f"| {level} | {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) != 5: sys.exit(__doc__)
    folder, name, weights, side = sys.argv[1:]
    torch.set_num_threads(1)
    results = measure(voc_layout(folder, "train"), load_backbone(name, weights), int(side))
    print(f"{name}, {side} pixels")
    print_tables(*results)
