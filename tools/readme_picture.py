"""Draw the animated picture of the README, docs/celp.gif, from bundled scenes and models.

    python tools/readme_picture.py             # about 20 seconds on one core
    python tools/readme_picture.py --out FILE

First δ moves over the scene with the star and the latent region follows, Eq. (1) to Eq. (6). Then
one episode is answered without and with CE: of 200 one-shot episodes of fold 1 those in which the
IoU of the two answers differs by more than 0.05, and of these the one with the median difference.
Make the picture again when the bundled scenes or models change.
"""

import argparse
import io
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from celp_nb.app.explorer_state import prepare_image
from celp_nb.app.latent_answer import region_at
from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import atomic_file, fold_classes, pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import binary_mask, known_mask
from celp_nb.engine.checkpoints import BUNDLED
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.segmenter import Segmenter
from celp_nb.latent import DELTA
from celp_nb.ops import STRIDE
from celp_nb.viz import OKABE_ITO, overlay

ROOT = Path(__file__).resolve().parent.parent
STAR_FOLD, ANSWER_FOLD = 0, 1  # the star is of a class that fold 0 tests; the models are of fold 1
MODELS = dict(zip(("without CE", "with CE"), BUNDLED[ANSWER_FOLD].values()))
STAR, CENTRE = "val_0001", (13, 8)  # the notebooks' scene; row and column of i* on its star
DELTAS = [*np.linspace(0.25, 0.9, 14), *np.linspace(0.85, DELTA, 5)]
LEAST = 0.05  # the IoU of two answers that differ, as 00_overview counts them
FONT = 12  # points, at 100 dots per inch
FIRST, SECOND = (
    "Training with CE: what is similar to + ?",
    "Then: mark in a query what one support shows",
)


def new_classes(count: int, fold: int) -> tuple[list[int], list[int]]:
    "Novel and training classes of a fold."
    novel = [int(c) for c in fold_classes(count, fold)]
    return novel, [c for c in range(1, count + 1) if c not in novel]


def star_regions(
    segmenter: Segmenter,  # for its backbone
    deltas: list[float],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The scene with the star: the image, (S, S, 3) uint8, the centre's row of D, (h, w), and for
    each δ the pseudo-mask, (S, S) {0, 1, 255}."""
    data = samples("val")
    i, training = data.ids.index(STAR), new_classes(len(data.class_names), STAR_FOLD)[1]
    photo, class_map = read_image(data, i), data.read_mask(i)
    image = prepare_image(segmenter.backbone, photo, class_map, segmenter.side)
    h, w = image.features.high.shape[-2:]
    known, centre = known_mask(image.class_map, training), CENTRE[0] * w + CENTRE[1]
    masks = [region_at(image, known, centre, delta)[0].numpy() for delta in deltas]
    return image.photo, image.D[:, centre].view(h, w).numpy(), masks


def median_index(difference: pd.Series) -> int:
    "The label of the middle value, the lower one of two."
    return int(difference.sort_values(kind="stable").index[(len(difference) - 1) // 2])


def median_episode(segmenters: dict[str, Segmenter]) -> tuple[int, int, int, list[float]]:
    """Class, query and support of the episode with the median difference, of those whose answers
    differ, and the models' IoU."""
    data, one = samples("val"), segmenters["with CE"]
    novel, training = new_classes(len(data.class_names), ANSWER_FOLD)
    episodes = pairs_per_class(data.pixels, novel, 40, 1, seed=0)
    models = {name: segmenter.model for name, segmenter in segmenters.items()}
    bank = feature_bank(one.backbone, data, one.side)
    rows = evaluate(models, bank, data, episodes, training)
    rows["iou"] = rows.inter_fg / rows.union_fg
    iou = rows.pivot(index="episode", columns="method", values="iou")[list(MODELS)]
    change = iou["with CE"] - iou["without CE"]
    e = median_index(change[change.abs() > LEAST])
    support = int(episodes.support[e, 0])
    return int(episodes.cls[e]), int(episodes.query[e]), support, iou.loc[e].tolist()


def on_grey(photo: np.ndarray, mask: np.ndarray, colour: str) -> np.ndarray:
    "A photograph without its colours, with a mask in one of OKABE_ITO's."
    grey = np.asarray(Image.fromarray(photo).convert("L").convert("RGB"))
    return overlay(grey, mask, OKABE_ITO[colour], 0.6)


def frame(
    title: str,
    pictures: dict[str, np.ndarray | None],  # label → (H, W, 3) uint8, (h, w), or a blank
    below: str,  # a sentence under the pictures
    delta: float | None = None,  # shown on a scale, with a + at i* in every picture
) -> Image.Image:
    "One frame: labelled pictures in a row."
    fig, axes = plt.subplots(1, len(pictures), figsize=(7, 3.4), dpi=100)
    fig.subplots_adjust(0.01, 0.15, 0.99, 0.77, 0.04)
    fig.text(0.5, 0.945, title, ha="center", va="center", fontsize=FONT + 3, weight="bold")
    left = 0.36 if delta is not None else 0.01
    fig.text(left, 0.07, below, va="center", fontsize=FONT)
    for ax, (label, picture) in zip(axes, pictures.items()):
        ax.axis("off")
        if picture is None: continue
        ax.set_title(label, fontsize=FONT)
        ax.imshow(picture, vmin=0, vmax=1, interpolation="nearest")
    if delta is not None:
        draw_knob(fig.add_axes((0.01, 0.0, 0.33, 0.14)), delta)
        mark_centre(axes)
    out = io.BytesIO()
    fig.savefig(out, format="png")
    plt.close(fig)
    return Image.open(out).convert("RGB")


def draw_knob(ax, delta: float) -> None:
    "δ as a knob on a line from 0 to 1."
    ax.set(xlim=(-1.0, 1.1), ylim=(-1, 1))
    ax.axis("off")
    ax.plot([0, 1], [0, 0], color="0.6", lw=4, solid_capstyle="round")
    ax.plot([delta], [0], "o", ms=13, color="black")
    ax.text(-0.95, 0, f"δ = {delta:.2f}", va="center", fontsize=FONT + 2, weight="bold")


def mark_centre(axes) -> None:
    "A + at i* in two pictures of pixels, and between them in one of positions."
    for ax, scale in zip(axes, (STRIDE, 1, STRIDE)):
        place = CENTRE[1] * scale, CENTRE[0] * scale
        ax.plot(*place, "+", ms=15, mew=4, color="black")
        ax.plot(*place, "+", ms=13, mew=2, color="white")


def moving_delta(segmenter: Segmenter) -> list[tuple[Image.Image, int]]:
    "Frames with their milliseconds: δ moves, the region follows."
    photo, row, masks = star_regions(segmenter, DELTAS)
    frames = []
    for delta, mask in zip(DELTAS, masks):
        pictures = {
            "blue: annotated": overlay(photo, mask == 0, OKABE_ITO["blue"]),
            "similarity to +, Eq. (1)": row,
            "orange: above δ": on_grey(photo, mask == 1, "orange"),
        }
        below = f"{100 * (mask == 1).mean():.0f} % is orange: a second thing to segment."
        frames.append((frame(FIRST, pictures, below, delta), 180))
    return [*frames[:-1], (frames[-1][0], 2500)]


def one_episode(segmenters: dict[str, Segmenter]) -> list[tuple[Image.Image, int]]:
    "Frames with their milliseconds: support, query, and two answers, one after the other."
    data = samples("val")
    cls, query, support, ious = median_episode(segmenters)
    photo, shown = read_image(data, query), read_image(data, support)
    mask = np.asarray(binary_mask(data.read_mask(support), cls), np.uint8)
    pictures = {"support\nwith mask (blue)": on_grey(shown, mask, "blue"), "query\n": photo}
    for (name, segmenter), iou in zip(segmenters.items(), ious):
        segmenter.set_support([shown], [mask])
        answer = on_grey(photo, segmenter.predict(photo).mask, "orange")
        pictures[f"answer {name}\nIoU {100 * iou:.0f} %"] = answer
    below = "Where the two answers differ, this is the median difference: one proves nothing."
    labels, frames = list(pictures), []
    for shown_count, milliseconds in zip(range(1, 5), (1200, 1200, 1200, 5000)):
        now = {label: pictures[label] for label in labels[:shown_count]}
        now |= dict.fromkeys(labels[shown_count:])
        frames.append((frame(SECOND, now, below if shown_count == 4 else ""), milliseconds))
    return frames


def write_gif(frames: list[tuple[Image.Image, int]], out: Path) -> None:
    "Write frames with one palette, so that what stays the same takes no space."
    pictures, durations = zip(*frames)
    tall = Image.new("RGB", (pictures[0].width, 3 * pictures[0].height))
    for k, picture in enumerate((pictures[0], pictures[-2], pictures[-1])):
        tall.paste(picture, (0, k * picture.height))
    palette = tall.quantize(256)
    palette.putpalette([255 if v > 245 else v for v in palette.getpalette()])  # white stays white
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    with atomic_file(out, "wb") as f:
        first.save(f, "GIF", save_all=True, append_images=rest, duration=list(durations), loop=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "celp.gif")
    out = parser.parse_args().out
    matplotlib.use("agg")
    segmenters = {name: Segmenter.from_pretrained(model) for name, model in MODELS.items()}
    frames = moving_delta(segmenters["with CE"]) + one_episode(segmenters)
    write_gif(frames, out)
    print(f"{out}: {len(frames)} frames, {out.stat().st_size / 1e6:.2f} MB")
