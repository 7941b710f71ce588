"""Folders as other people have them: right ones, and ones with something odd in them."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from celp_nb.engine.checkpoints import BUNDLED, load_checkpoint
from celp_nb.repro.config import make_config

IDS = ("a", "b", "c")  # of a folder's images, where nothing is odd
ODD_NAMES = ("ä", "a\u0308", "001", "1e3", "NA", "a b", "x" * 80, "a.b", "-n", "train", "ß", "a'b")
names = st.one_of(
    st.sampled_from(ODD_NAMES),
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"), max_size=12),
)


def rarely(odd, usual):
    "Three times of four the usual."
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), odd)


@st.composite
def damaged(draw, content):
    "A file's bytes as they are, or cut, emptied, replaced, with a bit turned, with bytes after it."
    kind = draw(rarely(st.sampled_from(("cut", "empty", "noise", "bit", "more")), "whole"))
    if kind == "cut": return content[: draw(st.integers(0, len(content)))]
    if kind == "empty": return b""
    if kind == "noise": return draw(st.binary(max_size=200))
    if kind == "more": return content + draw(st.binary(min_size=1, max_size=20))
    if kind == "bit" and content:
        place = draw(st.integers(0, len(content) - 1))
        turned = content[place] ^ (1 << draw(st.integers(0, 7)))
        return content[:place] + bytes([turned]) + content[place + 1 :]
    return content


ENCODINGS = ("utf-8-sig", "utf-16", "latin-1", "utf-16-le", "cp037")


@st.composite
def text_file(draw, lines):
    "Lines as bytes: another encoding, other line ends, blanks, a zero byte."
    end = draw(rarely(st.sampled_from(("\r\n", "\r", "\n\n", " \n", "\t\n", "\0\n", "")), "\n"))
    text = "".join(line + end for line in lines)
    encoding = draw(rarely(st.sampled_from(ENCODINGS), "utf-8"))
    return draw(damaged(text.encode(encoding, errors="replace")))


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


sides = st.integers(8, 24)
odd_sides = st.sampled_from((1, 2, 7, 300))


@st.composite
def photograph_file(draw, height, width):
    "A photograph: one of Pillow's modes, perhaps turned by its tag, perhaps of another size."
    height, width = draw(rarely(odd_sides, height)), draw(rarely(odd_sides, width))
    seed = draw(st.integers(0, 3))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    mode = draw(rarely(st.sampled_from(("L", "1", "LA", "P", "RGBA", "I", "I;16", "CMYK")), "RGB"))
    image = Image.fromarray(pixels)
    if mode == "I;16": image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("CMYK", "I"): return draw(damaged(encoded(image.convert(mode), "TIFF")))
    else: image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = draw(rarely(st.sampled_from((3, 6, 8, 0, 99)), 1))
    kind = "PNG" if mode != "RGB" or draw(st.booleans()) else "JPEG"
    return draw(damaged(encoded(image, kind, exif=exif)))


@st.composite
def mask_file(draw, height, width):
    "A mask: palette, grey, few bits, 16 bits, colours; values that are classes, void, or neither."
    height, width = draw(rarely(odd_sides, height)), draw(rarely(odd_sides, width))
    values = draw(st.lists(rarely(st.integers(0, 255), 1), min_size=1, max_size=4))
    pixels = np.resize(np.array([0, *values], np.uint8).repeat(3), (height, width))
    mode = draw(rarely(st.sampled_from(("L", "1", "RGB", "I;16", "bits", "LA")), "P"))
    if mode == "RGB": image = Image.fromarray(np.stack([pixels, pixels * 7, pixels * 0], 2))
    elif mode == "I;16": image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else: image = Image.fromarray(pixels)
    if mode in ("1", "LA"): image = image.convert(mode)
    options = {}
    if mode in ("P", "bits"):
        image = Image.fromarray(pixels).convert("P")
        shift = draw(rarely(st.integers(1, 3), 0))
        image.putpalette([(k * 37 + shift * (k % 3)) % 256 for k in range(768)])
        if mode == "bits": options = {"bits": 4}
    return draw(damaged(encoded(image, "PNG", **options)))


@st.composite
def voc_folder(draw):
    "A folder in VOC layout: path → bytes; None makes a folder of that path."
    height, width = draw(sides), draw(sides)
    ids = draw(rarely(st.lists(names, min_size=1, max_size=3), list(IDS)))
    files = {}
    for name in ids:
        if draw(rarely(st.just(False), True)):
            suffix = draw(rarely(st.sampled_from((".png", ".JPG", ".jpeg", ".bmp")), ".jpg"))
            files[f"JPEGImages/{name}{suffix}"] = draw(photograph_file(height, width))
        if draw(rarely(st.just(False), True)):
            files[f"SegmentationClass/{name}.png"] = draw(mask_file(height, width))
    listed = draw(rarely(st.lists(names, max_size=4), ids))
    files["ImageSets/Segmentation/train.txt"] = draw(text_file(listed))
    classes = draw(rarely(st.lists(names, max_size=5), ["cat", "dog"]))
    if draw(st.booleans()): files["classes.txt"] = draw(text_file(classes))
    if draw(rarely(st.just(True), False)): files[draw(st.sampled_from(sorted(files)))] = None
    return files


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from((0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"))),
        st.sampled_from(("", "a", "1", "NA", "../x", "ä")),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def changed_json(draw, value, changes=2):
    "A value of JSON with some of its entries replaced, taken out or doubled."
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, changes))):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys: break
            key = draw(st.sampled_from(keys))
            inside = place[key]
            if isinstance(inside, dict | list) and inside and draw(rarely(st.just(False), True)):
                place = inside
                continue
            kind = draw(st.sampled_from(("replace", "remove", "double")))
            if kind == "replace": place[key] = draw(json_values)
            elif kind == "remove": del place[key]
            elif isinstance(place, list): place.append(inside)
            else: place[draw(st.sampled_from(("id", "extra")))] = inside
            break
    return value


SQUARE = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]
RUNS = {"size": [12, 16], "counts": [10, 30, 152]}
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]


@st.composite
def coco_folder(draw):
    "A folder in COCO layout with some entries of its annotation file changed."
    images = [
        {"id": k, "file_name": f"{name}.jpg", "height": 12, "width": 16}
        for k, name in enumerate(IDS, 5)
    ]
    outlines = ([SQUARE], RUNS, [SQUARE, [x + 1 for x in SQUARE]])
    entries = [
        {
            "id": k,
            "image_id": 5 + k % 3,
            "category_id": CATEGORIES[k % 2]["id"],
            "iscrowd": 0,
            "area": 64.0,
            "bbox": [1.0, 1.0, 8.0, 8.0],
            "segmentation": outlines[k % 3],
        }
        for k in range(4)
    ]
    whole = {"images": images, "annotations": entries, "categories": CATEGORIES}
    text = json.dumps(draw(changed_json(whole, 3)))
    files = {"annotations/instances_train2014.json": draw(damaged(text.encode()))}
    for name in IDS:
        if draw(rarely(st.just(False), True)):
            files[f"train2014/{name}.jpg"] = draw(photograph_file(12, 16))
    return files


cells = st.one_of(st.sampled_from((*IDS, "cat", "dog", "1", "2")), names)
EPISODES = [
    ["class", "class_id", "query", "support_1", "support_2"],
    ["cat", "1", "a", "b", "c"],
    ["dog", "2", "c", "a", "b"],
]


@st.composite
def episode_list(draw):
    "An episode list: cells changed, lines cut and doubled."
    table = [list(row) for row in EPISODES]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(table))
        kind = draw(st.sampled_from(("cell", "less", "more", "line")))
        if kind == "cell" and row: row[draw(st.integers(0, len(row) - 1))] = draw(cells)
        elif kind == "less" and row: row.pop(draw(st.integers(0, len(row) - 1)))
        elif kind == "more": row.append(draw(cells))
        else: table.append(list(row))
    quote = draw(rarely(st.sampled_from(('"', "'")), ""))
    lines = [",".join(f"{quote}{cell}{quote}" for cell in row) for row in table]
    return {"episodes.csv": draw(text_file(lines))}


@st.composite
def config_folder(draw):
    "A run's folder with settings changed."
    settings = asdict(make_config(backbone="tiny", data="samples"))
    text = json.dumps(draw(changed_json(settings, 3)), indent=1)
    return {"config.json": draw(damaged(text.encode()))}


ODD_ENTRIES = (None, -1, 0, 2**40, "x", 1.5, (), (0.0,), [3], {"a": 1}, torch.zeros(2))


@st.composite
def checkpoint_file(draw):
    "A bundled model with fields changed, tensors of other shapes, or not a model at all."
    saved = load_checkpoint(BUNDLED[0]["PFENet"])
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(sorted(saved)))
        kind = draw(st.sampled_from(("remove", "replace", "tensor")))
        if kind == "remove": saved.pop(key)
        elif kind == "replace": saved[key] = draw(st.sampled_from(ODD_ENTRIES))
        elif isinstance(saved.get("model"), dict):
            weights = dict(saved["model"])
            name = draw(st.sampled_from(sorted(weights)))
            weights[name] = draw(st.sampled_from(ODD_ENTRIES))
            saved["model"] = weights
        if not saved: break
    whole = draw(rarely(st.sampled_from(ODD_ENTRIES), saved))
    out = io.BytesIO()
    torch.save(whole, out)
    return {"model.pt": draw(damaged(out.getvalue()))}


@st.composite
def single_files(draw):
    "A photograph and a mask, for `celp predict`."
    height, width = draw(sides), draw(sides)
    photo, mask = draw(photograph_file(height, width)), draw(mask_file(height, width))
    return {"photo.png": photo, "mask.png": mask}


def write_folder(root: Path, files: dict[str, bytes | None]) -> None:
    "Write what the file system can hold of it; names that it cannot are left out."
    for name, content in files.items():
        path = root / name
        try:
            if content is None: path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        except (OSError, ValueError): continue
