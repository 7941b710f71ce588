"""The site's icon and the picture that a preview of a link shows: drawn scenes, drawn regions."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from celp_nb.app.latent_payload import dequantise
from celp_nb.data.transforms import known_mask
from celp_nb.latent import sample_latent
from celp_nb.viz import overlay

BLUE = "#0072B2"  # known objects, as in the panel
INK, PAPER = "#1a1a1a", "#ffffff"


def scene_and_region(
    payload: dict,  # of `latent_payload`
) -> tuple[np.ndarray, np.ndarray]:  # twice (S, S, 3) uint8: the scene, and M′ over it
    "A bundled scene, and the same with known objects blue and the latent region vermillion."
    data = base64.b64decode(payload["picture"].partition(",")[2])
    scene = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    runs = np.array(payload["class_map"], np.int64)
    class_map = torch.from_numpy(np.repeat(runs[::2], runs[1::2]).reshape(scene.shape[:2]))
    known = known_mask(class_map.to(torch.uint8), payload["known_classes"])[None]
    high = dequantise(payload["high"], (payload["h"], payload["w"]))
    pseudo = sample_latent(high, known, centre=torch.tensor([payload["centre"]]))[0][0].numpy()
    marked = overlay(overlay(scene, known[0].numpy() == 1, BLUE), pseudo == 1)
    return scene, marked


def enlarged(picture: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)


def preview(payload: dict, title: str, lines: list[str]) -> Image.Image:
    "1200 by 630 pixels: the scene, its latent region, and some words below."
    from matplotlib.font_manager import FontProperties, findfont

    def font(size, weight="normal"):
        path = findfont(FontProperties(family="DejaVu Sans", weight=weight))
        return ImageFont.truetype(path, size)

    card = Image.new("RGB", (1200, 630), PAPER)
    for k, picture in enumerate(scene_and_region(payload)):
        card.paste(enlarged(picture, 400), (60 + 430 * k, 30))
    draw = ImageDraw.Draw(card)
    draw.text((60, 455), title, INK, font(56, "bold"))
    for k, line in enumerate(lines): draw.text((60, 530 + 38 * k), line, INK, font(27))
    draw.text((910, 170), "one image,\ntwo targets", BLUE, font(36, "bold"), spacing=12)
    return card


def icon(payload: dict) -> Image.Image:
    "64 by 64 pixels: the marked region's middle."
    marked = scene_and_region(payload)[1]
    row, column = divmod(payload["centre"], payload["w"])
    side = len(marked)
    half = side // 4
    y = min(max(8 * row, half), side - half)
    x = min(max(8 * column, half), side - half)
    return enlarged(marked[y - half : y + half, x - half : x + half], 64)


def write_pictures(folder: Path, payload: dict, title: str) -> None:
    "Write favicon.png and preview.png."
    lines = ["Contrastive enhancement with latent prototypes:", "derived, drawn, checked and run"]
    icon(payload).save(folder / "favicon.png")
    preview(payload, title, lines).save(folder / "preview.png", optimize=True)
