"""How often latent draws meet a hidden object, for variants of the scenes' generator.

    python tools/scene_variants.py [VARIANT ...] [--scenes 300] [--sheets FOLDER]

Each variant draws the validation scenes with the same twenty classes and the same seed (`today`
gives the committed ones), passes them through JPEG and the tiny backbone, and prints a row of the
table in results/samples/scenes.md, which says what the columns mean. FOLDER gets a contact sheet of
twelve scenes for each variant. Without names all variants are measured, one to three minutes each.
"""

import argparse
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from celp_nb.bundled import objects, scenes
from celp_nb.bundled.catalogue import bundled_classes
from celp_nb.bundled.tiny import purity
from celp_nb.conditioning import support_prior
from celp_nb.data.episodes import pairs_per_class
from celp_nb.data.transforms import RECIPES, augment, normalise
from celp_nb.engine.backbones import episode_features, image_features, load_backbone
from celp_nb.latent import DELTA, SIGMA, candidates
from celp_nb.ops import STRIDE, VOID, resize
from celp_nb.similarity import self_similarity, similar_count


class Variant(NamedTuple):
    "Parameters of the generator; the defaults are those of the committed scenes."
    counts: dict[int, float] = {2: 0.3, 3: 0.5, 4: 0.2}  # objects per scene → probability
    folds: int = 2  # that the classes of a scene come from, at least
    sizes: tuple[int, int] | None = None  # of objects, pixels; None: as committed, 2472 to 4000
    side: int = 161  # of the image, pixels
    patches: int = 0  # of ground, each with a texture of its own; 0: one or two, as committed
    litter: int = 1  # times as many short lines on the ground


VARIANTS = {
    "today": Variant(),
    "litter": Variant(litter=8),
    "patchy": Variant(patches=12),
    "four-for-two": Variant({3: 0.5, 4: 0.5}),
    "four": Variant({4: 1.0}, folds=4),
    "four-large": Variant({4: 1.0}, folds=4, sizes=(3000, 4300)),
    "four-larger": Variant({4: 1.0}, folds=4, sizes=(4400, 6000)),
    "three-larger": Variant({3: 1.0}, folds=3, sizes=(6000, 8000)),
    "five": Variant({5: 1.0}, folds=4, sizes=(2600, 3600)),
    "five-larger": Variant({5: 1.0}, folds=4, sizes=(3200, 4400)),
    "six": Variant({6: 1.0}, folds=4, sizes=(2475, 3000)),
}
CROP = 113  # side of the samples' training crops, pixels
LEAST = 2150  # labelled pixels that every object keeps, as committed


def patchy_ground(side: int, patches: int, r: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    "As `scenes._background`, with a texture for the neighbourhood of each of some random points."
    y, x = np.mgrid[:side, :side]
    points = r.uniform(0, side, (patches, 2))
    nearest = np.hypot(y - points[:, :1, None], x - points[:, 1:, None]).argmin(0)
    kinds = r.integers(len(objects.GROUNDS), size=patches)
    grounds = np.stack([objects.render_ground(side, int(kind), r) for kind in kinds])
    canvas = np.take_along_axis(grounds, nearest[None, ..., None], 0)[0]
    return canvas.copy(), kinds[nearest].astype(np.uint8)


def set_ground(variant: Variant) -> None:
    "Make the generator draw the ground of a variant."
    background, litter = ORIGINAL
    if variant.patches: background = lambda side, r: patchy_ground(side, variant.patches, r)
    scenes._background = background
    objects._draw_litter = lambda *how: [litter(*how) for _ in range(variant.litter)]


ORIGINAL = scenes._background, objects._draw_litter


def place(
    patch: objects.Patch, side: int, r: np.random.Generator, near: tuple[int, int] | None
) -> tuple[int, int]:
    "A row and column: near the present one, or anywhere; a quarter of the patch may stick out."
    size = len(patch.coverage)
    low, high = -(size // 4), max(side - size + size // 4, 1 - size // 4)
    if near is None or r.random() < 0.3: return tuple(r.integers(low, high, 2).tolist())
    return tuple(np.clip(np.round(near + r.normal(0, 8, 2)), low, high - 1).astype(int).tolist())


def arranged(patches, chosen: list[int], side: int, r: np.random.Generator):
    "As `scenes._arranged`, with small moves too: corners and mask, or None after 600 moves."
    needed = np.array([max(LEAST, 0.6 * patch.area) for patch in patches])
    corners, missing = [place(patch, side, r, None) for patch in patches], np.inf
    for move in range(600):
        moved, k = list(corners), int(r.integers(len(patches)))
        if move: moved[k] = place(patches[k], side, r, moved[k])
        mask = scenes._scene_mask(patches, moved, chosen, side)
        visible = np.bincount(mask.ravel(), minlength=256)[np.array(chosen) + 1]
        lack = np.maximum(needed - visible, 0).sum()
        if lack <= missing: corners, missing = moved, lack
        if missing == 0: return corners, mask
    return None


def draw(variant: Variant, index: int) -> scenes.Scene:
    "One validation scene, as `bundled_scene` draws it but for the variant's parameters."
    r = np.random.default_rng([scenes.SEED, list(scenes.SPLITS).index("val"), index])
    n = int(r.choice(list(variant.counts), p=list(variant.counts.values())))
    while True:
        chosen = [int(k) for k in r.permutation(20)[:n]]
        if len({k // 5 for k in chosen}) < variant.folds: continue
        if variant.sizes is None:
            return scenes.render_scene(bundled_classes(), chosen, r, variant.side)
        areas = r.uniform(*variant.sizes, n)
        patches = [objects.render_object(bundled_classes()[k], a, r) for k, a in zip(chosen, areas)]
        placed = arranged(patches, chosen, variant.side, r)
        if placed: return scenes._painted_scene(patches, *placed, r)


def as_jpeg(image: np.ndarray) -> tuple[np.ndarray, int]:
    "An image as its file shows it, and the file's bytes."
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85, optimize=True)
    size = file.tell()
    return np.array(Image.open(file)), size


def sheet(images: list[np.ndarray]) -> Image.Image:
    "Twelve scenes in two rows, twice as large."
    rows = [np.concatenate([np.pad(x, ((2, 2), (2, 2), (0, 0))) for x in images[k : k + 6]], 1)
            for k in (0, 6)]
    picture = Image.fromarray(np.concatenate(rows))
    return picture.resize((picture.width * 3 // 2, picture.height * 3 // 2))


def interval(values: np.ndarray, statistic=np.mean) -> str:
    "A statistic of the rows in percent, with its 95 % bootstrap interval."
    r = np.random.default_rng(0)
    again = [statistic(values[r.integers(len(values), size=len(values))]) for _ in range(500)]
    low, high = np.percentile(again, [2.5, 97.5])
    return f"{100 * statistic(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def draws_and_regions(
    high: torch.Tensor,  # (B, C, h, w) float
    label: torch.Tensor,  # (B, hw) int64: 0 background, 1 + index of the class, 255 void
) -> tuple[np.ndarray, torch.Tensor]:
    """What a draw meets and how well regions of hidden objects fit, each fold hidden in turn.

    Gives (images, 4): share of P on a hidden object; (2, positions): purity, coverage.
    """
    D, shares, regions = self_similarity(high), [], []
    for fold in range(4):
        hidden = (label > 0) & (label < VOID) & ((label - 1) // 5 == fold)
        known = (label > 0) & ~hidden  # void too
        P = candidates(similar_count(D, known, DELTA), known, SIGMA)
        shares.append((P & hidden).sum(1) / P.sum(1))
        kinds = torch.where(known, VOID, torch.where(hidden, label - 1, 20))
        regions.append(torch.stack(purity(D, kinds, 20, DELTA)))
    return torch.stack(shares, 1).numpy(), torch.cat(regions, 1)


def class_pixels(masks: torch.Tensor) -> np.ndarray:  # (n, 20)
    "Labelled pixels of each class in each image."
    return np.stack([np.bincount(mask.ravel(), minlength=256)[1:21] for mask in masks.numpy()])


def prior_counts(network, inputs, masks) -> np.ndarray:  # (episodes of a class, 20, 2, 42)
    "Intersections and unions of the support prior at 41 cuts, and of all foreground."
    episodes = pairs_per_class(class_pixels(masks), range(1, 21), pairs=20, shots=1, seed=0)
    cuts, counts = torch.linspace(0, 1, 41)[:, None], []
    for start in range(0, len(episodes.cls), 20):
        part = slice(start, start + 20)
        cls = torch.from_numpy(episodes.cls[part])[:, None, None]
        query, support = episodes.query[part], episodes.support[part, 0]
        support_mask = (masks[support] == cls).long()[:, None]
        q, s = episode_features(network, inputs[query], inputs[support][:, None], support_mask)
        prior = resize(support_prior(q.high, s.high, support_mask), masks.shape[1:])[:, 0]
        for c, p, m in zip(episodes.cls[part], prior, masks[query]):
            p, true = p[m != VOID], (m == c)[m != VOID]
            predicted = torch.cat([p >= cuts, torch.ones(1, len(p), dtype=torch.bool)])
            counts.append([(predicted & true).sum(1).tolist(), (predicted | true).sum(1).tolist()])
    order = np.argsort(episodes.cls, kind="stable")
    return np.array(counts)[order].reshape(20, -1, 2, 42).swapaxes(0, 1)


def best_cut(counts: np.ndarray) -> float:  # (episodes, 20, 2, 42)
    "mIoU at the one cut that is best for all classes."
    sums = counts.sum(0)
    return float((sums[:, 0] / sums[:, 1]).mean(0)[:-1].max())


def crop_shares(network, images, masks) -> np.ndarray:  # (n, 4)
    "Share of P on a hidden object in one training crop per image and hidden fold, nan without."
    recipe, r = RECIPES["strict"](CROP, CROP, (0.9, 1.1)), np.random.default_rng(0)
    pixels, shares = class_pixels(masks), np.full((len(images), 4), np.nan)
    for fold in range(4):
        crops = []
        for image, mask, row in zip(images, masks.numpy(), pixels):
            seen = [k for k in np.flatnonzero(row) if k // 5 != fold]
            crops.append(augment(image, mask, 1 + int(r.choice(seen)), recipe, r))
        for start in range(0, len(crops), 20):
            x, maps = map(torch.stack, zip(*crops[start : start + 20]))
            label = maps[:, ::STRIDE, ::STRIDE].flatten(1).long()
            share, _ = draws_and_regions(image_features(network, x).high, label)
            shares[start : start + 20, fold] = share[:, fold]
    return shares


def measure(name: str, n: int, sheets: Path | None) -> dict[str, str]:
    "A row of the table."
    set_ground(VARIANTS[name])
    drawn = [draw(VARIANTS[name], index) for index in range(n)]
    images, sizes = zip(*(as_jpeg(scene.image) for scene in drawn))
    masks = torch.from_numpy(np.stack([scene.mask for scene in drawn]))
    if sheets:
        sheets.mkdir(parents=True, exist_ok=True)
        sheet(images[:12]).save(sheets / f"{name}.png")
    inputs = normalise(torch.from_numpy(np.stack(images)).movedim(-1, 1))
    network = load_backbone("tiny")
    label = masks[:, ::STRIDE, ::STRIDE].flatten(1).long()
    parts = [
        draws_and_regions(image_features(network, x).high, at)
        for x, at in zip(inputs.split(20), label.split(20))
    ]
    shares = np.concatenate([share for share, _ in parts])  # (n, 4)
    pure, covered = torch.cat([region for _, region in parts], 1).mean(1).tolist()
    counts, objects_of = prior_counts(network, inputs, masks), class_pixels(masks)
    everywhere = counts.sum(0)[..., -1]
    return {
        "variant": name,
        "objects per scene": f"{(objects_of > 0).sum() / n:.2f}",
        "background, %": f"{100 * float((masks == 0).float().mean()):.0f}",
        "draws on a hidden object": interval(np.nanmean(shares, 1)),
        "in training crops": f"{100 * np.nanmean(crop_shares(network, images, masks)):.1f}",
        "where there is one": f"{100 * shares[shares > 0].mean():.1f}",
        "purity · coverage": f"{100 * pure:.0f} · {100 * covered:.0f}",
        "prior's best cut": interval(counts, best_cut),
        "all foreground": f"{100 * (everywhere[:, 0] / everywhere[:, 1]).mean():.1f}",
        "smallest object": f"{objects_of[objects_of > 0].min()}",
        "JPEG, 900 scenes": f"{sum(sizes) / n * 900 / 1e6:.1f} MB",
    }


if __name__ == "__main__":
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--sheets", type=Path)
    given = parser.parse_args()
    unknown = set(given.variants) - set(VARIANTS)
    if unknown: parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}.")
    for k, name in enumerate(given.variants or VARIANTS):
        row = measure(name, given.scenes, given.sheets)
        if k == 0: print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
        print("| " + " | ".join(row.values()) + " |", flush=True)
