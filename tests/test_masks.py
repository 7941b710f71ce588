"Masks: the numbers that were meant, or a sentence; and sets of more than 254 classes."

import io
import struct
import warnings
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from folders import PICTURE, blocks, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures
from PIL import Image
from torch.testing import assert_close

from celp_nb.bundled.scenes import samples
from celp_nb.data import masks as data_masks
from celp_nb.data.images import merge, read_image, read_png_mask, write_png_mask
from celp_nb.data.pairs import check_mask_size
from celp_nb.data.photographs import ORIENTATION, UnreadableImage
from celp_nb.data.transforms import Recipe, augment, binary_mask, fit_square, known_mask
from celp_nb.data.voc import voc_layout
from celp_nb.engine.evaluation import read_truth
from celp_nb.engine.segmenter import mask_array, object_mask, photograph
from celp_nb.repro import folds as repro_folds
from celp_nb.repro import runs as repro_runs
from celp_nb.repro.config import make_config
from celp_nb.repro.support_swap import swap_supports


def packed(mask, bits):
    "A grey PNG of so many bits per pixel, which Pillow does not write."
    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    height, width = mask.shape
    digits = (mask[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(height, width * bits), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def with_palette(mask, colours):
    picture = Image.fromarray(mask)
    picture.putpalette([x for colour in colours for x in colour])
    return picture


def mask_folder(root, a, b, **options):
    "A set of two images, whose masks are given as pictures or as bytes."
    make_voc(root, {"a": blocks(0, 1), "b": blocks(0, 1)}, **options)
    for name, content in [("a", a), ("b", b)]:
        path = root / f"SegmentationClass/{name}.png"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path, "PNG")
    return root


# --- one mask


@pytest.mark.parametrize("bits, values", [(1, (0, 1)), (2, (0, 1, 2, 3)), (4, (0, 1, 9, 15))])
def test_stored_numbers_of_few_bits(tmp_path, bits, values):
    mask = blocks(*values)
    content = packed(mask, bits)
    root = mask_folder(tmp_path, content, content, names=list("abcdefghijklmno"))
    data = voc_layout(root, "train")
    assert (data.read_mask(1) == mask).all() and data.read_mask(1).dtype == np.uint8
    assert data.pixels[1].nonzero()[0].tolist() == [v - 1 for v in values if v]
    assert object_mask(root / "SegmentationClass/a.png", values[-1]).any()


@pytest.mark.parametrize("bits, levels", [(1, 2), (2, 4), (4, 16)])
def test_palettes_of_few_bits_hold_their_numbers(tmp_path, bits, levels):
    mask = blocks(0, 1, levels - 1)
    picture = with_palette(mask, [(k, 9, 255 - k) for k in range(levels)])
    picture.save(tmp_path / "a.png", bits=bits)
    assert (read_png_mask([tmp_path / "a.png"], 0) == mask).all()


def test_grey_in_several_channels(tmp_path):
    mask = blocks(0, 1, 255)
    for k, alpha in enumerate([[], [np.full_like(mask, 255)]]):
        Image.fromarray(np.dstack([mask, mask, mask, *alpha])).save(tmp_path / f"{k}.png")
        assert (read_png_mask([tmp_path / f"{k}.png"], 0) == mask).all()
    Image.fromarray(np.dstack([mask, np.full_like(mask, 255)])).save(tmp_path / "la.png")
    assert (read_png_mask([tmp_path / "la.png"], 0) == mask).all()


def jpeg(mask):
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "JPEG", quality=100)
    return file.getvalue()


@pytest.mark.parametrize("content, message", [
    (Image.fromarray(PICTURE), r"a.png: a mask must hold class numbers.*colours \(mode RGB\)"),
    (Image.fromarray(np.dstack([blocks(0, 1)] * 2)), r"a.png: .*\(mode LA\).*without transparency"),
    (jpeg(blocks(0, 1, 2)), "a.png: a mask must not be a JPEG file"),
])
def test_numbers_in_doubt_are_refused(tmp_path, content, message):
    root = mask_folder(tmp_path, content, content)
    for skip in (False, True):
        with pytest.raises(ValueError, match=message) as raised:
            voc_layout(root, "train", skip_unreadable=skip)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        object_mask(root / "SegmentationClass/a.png")


def test_other_kinds_of_masks_are_refused(tmp_path):
    for k, picture in enumerate([
        Image.fromarray(blocks(0, 1).astype(np.float32)),
        Image.fromarray(blocks(0, 1).astype(np.int32)),
        Image.fromarray(PICTURE).convert("CMYK"),
    ]):
        picture.save(tmp_path / f"{k}.tif")
        with pytest.raises(ValueError, match=f"{k}.tif: a mask must hold class numbers"):
            read_png_mask([tmp_path / f"{k}.tif"], 0)
    Image.fromarray(PICTURE).save(tmp_path / "j.tif", compression="jpeg")
    with pytest.raises(ValueError, match="j.tif: a mask must not be"):
        read_png_mask([tmp_path / "j.tif"], 0)


def test_masks_called_jpg_are_told_from_missing_ones(tmp_path):
    root = make_voc(tmp_path, {"a": blocks(0, 1)})
    (root / "SegmentationClass/a.png").rename(root / "SegmentationClass/a.jpg")
    with pytest.raises(ValueError, match="SegmentationClass/a.jpg: a mask must be a PNG file"):
        voc_layout(root, "train")


def test_a_mask_is_turned_as_its_tag_says(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(blocks(0, 1, 2)).copy()).save(tmp_path / "a.png", exif=exif)
    assert (read_png_mask([tmp_path / "a.png"], 0) == blocks(0, 1, 2)).all()


# --- masks of one folder

REDS, BLUES = [(0, 0, 0), (200, 0, 0), (0, 200, 0)], [(0, 0, 0), (0, 0, 200), (0, 200, 0)]


def test_a_number_with_two_colours_is_refused_naming_two_files(tmp_path):
    root = mask_folder(
        tmp_path, with_palette(blocks(0, 1, 2), REDS), with_palette(blocks(0, 1, 2), BLUES)
    )
    with pytest.raises(ValueError, match=r"b.png: number 1 has the colour \(0, 0, 200\).*a.png"):
        voc_layout(root, "train")


def test_colours_that_no_pixel_has_and_those_of_void_may_differ(tmp_path):
    whole = [[*colours, *[(7, 7, 7)] * 252, void] for colours, void in
             [(REDS, (1, 1, 1)), (BLUES, (2, 2, 2))]]
    a, b = (with_palette(blocks(0, k + 1, 255), colours) for k, colours in enumerate(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = voc_layout(mask_folder(tmp_path, a, b), "train")
    assert data.colours[1][0] == (200, 0, 0) and data.colours[2][0] == (0, 200, 0)


def test_the_splits_of_a_folder_are_compared_too(tmp_path):
    root = mask_folder(
        tmp_path / "set", *[with_palette(blocks(0, 1, 2), REDS)] * 2, split="train"
    )
    make_voc(root, {"c": blocks(0, 1)}, split="val")
    with_palette(blocks(0, 1, 2), BLUES).save(root / "SegmentationClass/c.png")
    with pytest.raises(ValueError, match="c.png: number 1 has the colour .*a.png"):
        repro_folds.open_splits(make_config(data=str(root)).data)


def test_vocs_colours_at_other_numbers_are_a_warning(tmp_path):
    cat, dog, void = (64, 0, 0), (64, 0, 128), (224, 224, 192)
    picture = with_palette(blocks(0, 1, 2), [(0, 0, 0), cat, dog])
    root = mask_folder(tmp_path / "a", picture, picture)
    for _ in range(2):  # the second time from the cache
        with pytest.warns(UserWarning, match=r"number 1 has the colour \(64, 0, 0\) .*VOC's for 8"):
            voc_layout(root, "train")
    picture = with_palette(blocks(0, 1, 2), [(0, 0, 0), (1, 2, 3), void])
    with pytest.warns(UserWarning, match=r"number 2 .* VOC's for 255 \(void\)"):
        voc_layout(mask_folder(tmp_path / "b", picture, picture), "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples("train")
        grey = with_palette(blocks(0, 1, 128), [(k, k, k) for k in range(256)])
        names = [f"c{k}" for k in range(130)]
        voc_layout(mask_folder(tmp_path / "c", grey, grey, names=names), "train")


@pytest.mark.parametrize("content, words", [
    (packed(blocks(0, 1), 1), "b.png has 1 bits .*a.png has 8 bits"),
    (packed(blocks(0, 3), 4), "b.png has 4 bits .*a.png has 8 bits"),
    (Image.fromarray(blocks(0, 1).astype(np.uint16)), "a.png has 8 bits .*b.png has 16 bits"),
])
def test_masks_of_different_depths_are_refused_naming_two_files(tmp_path, content, words):
    root = mask_folder(tmp_path, Image.fromarray(blocks(0, 1, 255)), content)
    with pytest.raises(ValueError, match=words):
        voc_layout(root, "train")


@pytest.mark.parametrize("content", [
    packed(blocks(0, 0), 1), Image.fromarray(blocks(0, 0).astype(np.uint16))
])
def test_masks_of_nothing_but_background_may_have_any_depth(tmp_path, content):
    data = voc_layout(mask_folder(tmp_path, Image.fromarray(blocks(0, 1)), content), "train")
    assert data.read_mask(1).dtype == np.uint8 and not data.read_mask(1).any()


# --- files of `predict`


def test_predict_reads_as_data_sets_do(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(PICTURE).copy()).save(tmp_path / "a.png", exif=exif)
    assert (photograph(tmp_path / "a.png") == PICTURE).all()
    wide = data_masks.in_type(blocks(0, 1, 0, 255), np.dtype(np.uint16))
    write_png_mask(tmp_path / "m.png", wide)
    assert (object_mask(tmp_path / "m.png") == blocks(0, 1, 0, 255)).all()
    with pytest.raises(ValueError, match="orientation"):
        check_mask_size(blocks(0, 1).T.shape, PICTURE.shape, "m.png", "a.png")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="x.png"):
        photograph(tmp_path / "x.png")


# --- more than 254 classes

#: the samples' class → one of 300, in the same order; 255 among them
NUMBERS = np.array([0, *range(7, 148, 15), *range(156, 246, 12), 255, 300])


def test_a_mask_may_be_derived_from_one_that_was_read(tmp_path):
    "A picture keeps no note of how it was stored in what Pillow hands on."
    stored = packed(np.eye(16, dtype=np.uint8), 4)
    (tmp_path / "m.png").write_bytes(stored)
    with Image.open(tmp_path / "m.png") as picture:
        first = mask_array(picture, "m")
        again = mask_array(picture.point(lambda v: 1 if v else 0), "m")
    assert "stored_mode" not in picture.info and (first == again).all() and first.any()


def test_void_by_type():
    for kind, void in [(np.uint8, 255), (np.uint16, 65535)]:
        assert data_masks.void_of(np.zeros(1, kind)) == void
    assert data_masks.void_of(torch.zeros(1, dtype=torch.uint8)) == 255
    assert data_masks.void_of(torch.zeros(1, dtype=torch.int32)) == 65535
    assert data_masks.class_map_dtype(254) == np.uint8
    assert data_masks.class_map_dtype(255) == data_masks.class_map_dtype(65534) == np.uint16
    with pytest.raises(ValueError, match="65535 classes do not fit into a mask"):
        data_masks.class_map_dtype(65535)


def relabelled(mask):
    "A mask of the samples with the numbers of 300 classes."
    return np.where(mask == 255, 65535, NUMBERS[np.minimum(mask, 20)]).astype(np.uint16)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    "Some of the samples in two folders: with their 20 classes, and with 300."
    places = [tmp_path_factory.mktemp("twins") / name for name in ("few", "many")]
    names = [f"class {k:03d}" for k in range(1, 301)]
    for split in ("train", "val"):
        data = samples(split)
        for place, many in zip(places, (False, True)):
            for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
                (place / part).mkdir(parents=True, exist_ok=True)
            listed = "\n".join(data.ids[:60])
            (place / f"ImageSets/Segmentation/{split}.txt").write_text(listed)
            for i in range(60):
                (place / f"JPEGImages/{data.ids[i]}.jpg").symlink_to(data.image_paths[i])
                mask = data.read_mask(i)
                path = place / f"SegmentationClass/{data.ids[i]}.png"
                write_png_mask(path, relabelled(mask) if many else mask)
            wanted = names if many else [names[n - 1] for n in NUMBERS[1:]]
            (place / "classes.txt").write_text("\n".join(wanted))
    return places


def test_a_wide_set_is_read_as_its_twin(twins):
    few, many = (voc_layout(place, "train") for place in twins)
    assert len(many.class_names) == 300 and many.pixels.shape == (60, 300)
    assert (many.pixels[:, NUMBERS[1:] - 1] == few.pixels).all()
    assert many.pixels.sum() == few.pixels.sum()
    for i in range(5):
        a, b = few.read_mask(i), many.read_mask(i)
        assert b.dtype == np.uint16 and (b == relabelled(a)).all()
        for old in (0, 3, 19, 20):
            new = int(NUMBERS[old]) if old else 1  # class 1 is nowhere
            old = old or 254
            assert (binary_mask(a, old) == binary_mask(b, new)).all()
        classes = [1, 5, 19]
        wide = NUMBERS[classes].tolist()
        assert (known_mask(a, classes) == known_mask(b, wide)).all()
        truth = [read_truth(s, i, c, k) for s, c, k in
                 [(few, 19, classes), (many, 255, wide)]]
        for x, y in zip(*truth):
            assert_close(x, y, rtol=0, atol=0)
        photo, recipe = read_image(few, i), Recipe(97, 161)
        squares = [fit_square(photo, m, 97) for m in (a, b)]
        crops = [augment(photo, m, 0, recipe, np.random.default_rng(i)) for m in (a, b)]
        for (x, narrow), (y, broad) in (squares, crops):
            assert torch.equal(x, y) and broad.dtype == torch.int32
            assert (relabelled(narrow.numpy()) == broad.numpy()).all()


def test_a_wide_set_runs_as_its_twin(twins, tmp_path):
    rows = []
    for place in twins:
        config = make_config(
            data=str(place), n_folds=2, folds=(1,), side=65, crop=65, reference=161, width=8,
            backbone="tiny", iterations=2, pairs=2, shots=(1,), methods=("PFENet+CE",),
            skip_rare=True, device="cpu", precision="float32",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            repro_runs.run(config, tmp_path / place.name)
        rows.append(pd.read_csv(tmp_path / place.name / "fold1/rows.csv"))
    few, many = rows
    assert set(many.cls) <= set(NUMBERS[11:].tolist()) and 255 in set(many.cls)
    assert (NUMBERS[few.cls] == many.cls).all()
    pd.testing.assert_frame_equal(few.drop(columns="cls"), many.drop(columns="cls"))


def test_wide_sets_in_parts_and_unions(twins):
    few, many = (voc_layout(place, "train") for place in twins)
    both = merge(many, few)
    assert len(both.class_names) == 300 and both.read_mask(60).dtype == np.uint16
    assert (both.read_mask(61) == many.read_mask(1)).all()
    assert (both.pixels[60:] == many.pixels).all()
    other = merge(few, many)
    assert len(other.class_names) == 300 and other.read_mask(0).dtype == np.uint16
    assert (other.read_mask(0) == data_masks.in_type(few.read_mask(0), np.dtype("u2"))).all()
    for i in (0, 60):
        counts = [int((other.read_mask(i) == c).sum()) for c in range(1, 301)]
        assert counts == other.pixels[i].tolist()
    episodes = repro_folds.pairs_per_class(many.pixels, [255, 300], 2, 1, seed=0)
    _, swapped, _ = swap_supports(episodes, many, [255, 300])
    mask = many.read_mask(0)
    expected = np.where(mask == 255, 300, np.where(mask == 300, 255, mask))
    assert (swapped.read_mask(0) == expected).all()


def test_16_bits_for_few_classes_are_read_and_8_bits_for_many_refused(tmp_path):
    wide = data_masks.in_type(blocks(0, 1, 255), np.dtype(np.uint16))
    picture = Image.fromarray(wide)
    root = mask_folder(tmp_path / "few", picture, picture)
    assert (voc_layout(root, "train").read_mask(0) == blocks(0, 1, 255)).all()
    assert voc_layout(root, "train").read_mask(0).dtype == np.uint8
    picture = Image.fromarray(np.where(wide == 1, 255, wide).astype(np.uint16))
    with pytest.raises(ValueError, match=r"mask value 255 is outside 0 to 3 and 65535 \(void\)"):
        voc_layout(mask_folder(tmp_path / "odd", picture, picture), "train")
    with pytest.raises(ValueError, match="masks of 8 bits hold at most 254 classes"):
        names = [f"c{k}" for k in range(300)]
        narrow = Image.fromarray(blocks(0, 1))
        voc_layout(mask_folder(tmp_path / "many", narrow, narrow, names=names), "train")


def test_masks_that_number_objects_need_names_and_little_memory(tmp_path):
    picture = Image.fromarray((blocks(0, 1, 2).astype(np.int32) * 26001).astype(np.uint16))
    root = mask_folder(tmp_path, picture, picture, names=())
    with pytest.raises(ValueError, match="no classes.txt, and masks of 16 bits,.* 52002"):
        voc_layout(root, "train")
    (root / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match="mask value 26001 is outside 0 to 1 and 65535"):
        voc_layout(root, "train")
    [kept] = (tmp_path / "cache").glob("*.npz")
    assert kept.stat().st_size < 10_000, "no column for each number"
