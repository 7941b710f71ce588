"""The site's icon and the picture that a preview of a link shows: drawn scenes, drawn regions."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from celp_nb.app.latent_answer import region_at
from celp_nb.app.latent_payload import PanelImage
from celp_nb.data.transforms import known_mask
from celp_nb.latent import DELTA
from celp_nb.ops import STRIDE
from celp_nb.viz import OKABE_ITO, overlay

BLUE = OKABE_ITO["blue"]  # known objects, as in the panel
INK, PAPER = "#1a1a1a", "#ffffff"


def scene_and_region(
    shown: PanelImage,
) -> tuple[np.ndarray, np.ndarray]:  # twice (S, S, 3) uint8: the scene, and M′ over it
    "A scene, and the same with known objects blue and the latent region vermillion."
    image, payload = shown.image, shown.payload
    known = known_mask(image.class_map, payload["known_classes"])
    pseudo = region_at(image, known, payload["centre"], DELTA)[0]
    return image.photo, overlay(overlay(image.photo, known == 1, BLUE), pseudo == 1)


def enlarged(picture: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)


def preview(shown: PanelImage, title: str, lines: list[str]) -> Image.Image:
    "1200 by 630 pixels: the scene, its latent region, and some words below."
    from matplotlib.font_manager import FontProperties, findfont

    def font(size, weight="normal"):
        path = findfont(FontProperties(family="DejaVu Sans", weight=weight))
        return ImageFont.truetype(path, size)

    card = Image.new("RGB", (1200, 630), PAPER)
    for k, picture in enumerate(scene_and_region(shown)):
        card.paste(enlarged(picture, 400), (60 + 430 * k, 30))
    draw = ImageDraw.Draw(card)
    draw.text((60, 455), title, INK, font(56, "bold"))
    for k, line in enumerate(lines): draw.text((60, 530 + 38 * k), line, INK, font(27))
    draw.text((910, 170), "one image,\ntwo targets", BLUE, font(36, "bold"), spacing=12)
    return card


def icon(shown: PanelImage) -> Image.Image:
    "64 by 64 pixels: the marked region's middle."
    marked = scene_and_region(shown)[1]
    row, column = divmod(shown.payload["centre"], shown.payload["w"])
    side = len(marked)
    half = side // 4
    y = min(max(STRIDE * row, half), side - half)
    x = min(max(STRIDE * column, half), side - half)
    return enlarged(marked[y - half : y + half, x - half : x + half], 64)


def write_pictures(folder: Path, shown: PanelImage, title: str) -> None:
    "Write favicon.png and preview.png."
    lines = ["Contrastive enhancement with latent prototypes:", "derived, drawn, checked and run"]
    icon(shown).save(folder / "favicon.png")
    preview(shown, title, lines).save(folder / "preview.png", optimize=True)
