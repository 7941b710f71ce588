"Photographs: whatever a file holds is what a viewer shows, or is refused by name."

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from folders import blocks, make_voc, own_cache  # noqa: F401  autouse fixture
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from celp_nb.app.explorer_state import decode_upload
from celp_nb.data import photographs, voc
from celp_nb.data.images import UnreadableImage, as_photograph, read_image, read_photograph

RNG = np.random.default_rng(0)
SMOOTH = np.array(Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((56, 40)))
GREY = SMOOTH[..., 1]
AS_GREY = GREY[..., None].repeat(3, 2)


@pytest.fixture(autouse=True)
def warnings_fail():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def tag(number):
    exif = Image.Exif()
    exif[photographs.ORIENTATION] = number
    return exif


# --- upright


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_every_orientation_is_shown_upright(tmp_path, number, suffix):
    path = tmp_path / f"phone{suffix}"
    Image.fromarray(SMOOTH).save(path, exif=tag(number))
    with Image.open(path) as stored:
        expected = np.array(ImageOps.exif_transpose(stored).convert("RGB"))
    found = read_photograph(path)
    assert found.shape == ((40, 56, 3) if number < 5 else (56, 40, 3))
    assert (found == expected).all() and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]
    shape, _, notes = photographs.inspect_photograph(path)
    assert shape == found.shape[:2] and not notes
    with Image.open(path) as opened:  # as a user of the library passes it
        assert (as_photograph(opened, "mine") == expected).all()


def test_orientation_in_xmp_counts_and_nonsense_does_not(tmp_path):
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(SMOOTH).save(tmp_path / "xmp.png", pnginfo=text)
    assert read_photograph(tmp_path / "xmp.png").shape == (56, 40, 3)
    for number in (0, 9, 255):
        Image.fromarray(SMOOTH).save(tmp_path / "odd.png", exif=tag(number))
        assert (read_photograph(tmp_path / "odd.png") == SMOOTH).all()


def test_damaged_tags_are_said_and_the_picture_is_read(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense of many kinds")
    with pytest.warns(UserWarning, match="a.png: its tags are damaged; it is taken as upright"):
        assert (read_photograph(tmp_path / "a.png") == SMOOTH).all()


@pytest.mark.parametrize("number", [3, 6, 8])
def test_a_set_is_upright_and_its_masks_fit(tmp_path, number):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1), "b": blocks(2, 3)})
    turned = {3: 180, 6: 90, 8: 270}[number]
    stored = np.rot90(SMOOTH, turned // 90).copy()
    Image.fromarray(stored).save(root / "JPEGImages/a.png", exif=tag(number))
    (root / "JPEGImages/a.jpg").unlink()
    data = voc.voc_layout(root, "train")
    assert (read_image(data, 0) == SMOOTH).all()
    assert data.read_mask(0).shape == read_image(data, 0).shape[:2]


def test_a_mask_that_fits_only_turned_is_said_with_the_word_orientation(tmp_path):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})
    Image.fromarray(SMOOTH).save(root / "JPEGImages/a.jpg", exif=tag(6))
    with pytest.raises(ValueError, match="a.jpg: the image is 56x40 .* 40x56 .*orientation is 6"):
        voc.voc_layout(root, "train")
    root = make_voc(tmp_path / "other", {"a": blocks(0, 1)})
    Image.fromarray(blocks(0, 1).T.copy()).save(root / "SegmentationClass/a.png")
    with pytest.raises(ValueError, match="a.jpg: the image is 40x56 .* orientation"):
        voc.voc_layout(root, "train")


# --- more than 8 bits


def numbers(factor, kind):
    return Image.fromarray((GREY * np.float64(factor)).astype(kind))


@pytest.mark.parametrize("name, picture, note", [
    ("16 bits.png", numbers(257, np.uint16), None),
    ("16 bits.tif", numbers(257, np.uint16), None),
    ("12 of 16 bits.png", numbers(4095 / 255, np.uint16), "12-bit"),
    ("8 of 16 bits.tif", numbers(1, np.uint16), "8-bit"),
    ("14 of 32 bits.tif", numbers(16383 / 255, np.int32), "14-bit"),
    ("32 bits.tif", numbers(257, np.int32), None),
    ("unit.tif", numbers(1 / 255, np.float32), None),
    ("bytes.tif", numbers(1, np.float32), None),
    ("large.tif", numbers(257, np.float32), None),
    ("unit.pfm", numbers(1 / 255, np.float32), None),
])
def test_values_are_divided_by_their_range(tmp_path, name, picture, note):
    picture.save(tmp_path / name)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = read_photograph(tmp_path / name)
        data_notes = photographs.inspect_photograph(tmp_path / name)[2]
    said = [str(w.message) for w in told]
    assert len(said) == len(data_notes) == (note is not None), "said in a data set too"
    assert all(name in text and note in text for text in said)
    assert np.abs(found.astype(int) - AS_GREY).max() <= 1


def test_a_pgm_declares_its_range(tmp_path):
    values = (GREY.astype(np.int32) * 4095 // 255).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 56 40 4095\n" + values.tobytes())
    assert np.abs(read_photograph(tmp_path / "a.pgm").astype(int) - AS_GREY).max() <= 1


@pytest.mark.parametrize("values, words", [
    (np.where(GREY > 99, np.nan, GREY / 255).astype(np.float32), "float.*NaN or infinite"),
    (np.where(GREY > 99, np.inf, GREY / 255).astype(np.float32), "float.*NaN or infinite"),
    ((GREY / 255 - 0.5).astype(np.float32), "float.*values from -"),
    (GREY.astype(np.int32) - 99, "32-bit.*values from -"),
    (GREY.astype(np.int32) * 2**20, "32-bit.*save it with 8 or 16 bits"),
    (GREY.astype(np.uint16) + np.uint16(29000), "16-bit.*nearly one grey"),
    ((GREY > 99).astype(np.int32), "32-bit.*nearly one grey"),
])
def test_values_without_a_known_range_are_refused(tmp_path, values, words):
    Image.fromarray(values).save(tmp_path / "a.tif")
    for read in (read_photograph, photographs.inspect_photograph):
        with pytest.raises(UnreadableImage, match=f"a.tif: {words}"):
            read(tmp_path / "a.tif")


def png(width, height, depth, colour, rows):
    "A PNG of a kind that Pillow does not write."
    def chunk(name, body):
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_16_bits_per_colour(tmp_path):
    path = tmp_path / "a.png"
    whole, part = ((SMOOTH.astype(np.uint16) * factor).astype(">u2") for factor in (257, 16))
    path.write_bytes(png(56, 40, 16, 2, [row.tobytes() for row in whole]))
    assert (read_photograph(path) == SMOOTH).all()
    path.write_bytes(png(56, 40, 16, 2, [row.tobytes() for row in part]))
    for read in (read_photograph, photographs.inspect_photograph):
        with pytest.raises(UnreadableImage, match="a.png: image of 16 bits per colour"):
            read(path)


# --- colours and transparency


def test_colour_spaces(tmp_path):
    picture = Image.fromarray(SMOOTH)
    picture.convert("CMYK").save(tmp_path / "a.jpg", quality=100)  # inverted, with Adobe's mark
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.abs(read_photograph(tmp_path / "a.jpg").astype(int) - SMOOTH).max() <= 8
    picture.convert("CMYK").save(tmp_path / "a.tif")
    assert (read_photograph(tmp_path / "a.tif") == SMOOTH).all()
    for mode, worst in [("YCbCr", 3), ("HSV", 12)]:
        found = as_photograph(picture.convert(mode), mode)
        assert np.abs(found.astype(int) - SMOOTH).max() <= worst
    assert (as_photograph(picture.convert("1"), "1") == np.array(picture.convert("1"))[..., None]
            * np.uint8(255)).all()


def test_lab_is_read_as_its_colours(tmp_path):
    ImageCms = pytest.importorskip("PIL.ImageCms")
    srgb, lab = (ImageCms.createProfile(space) for space in ("sRGB", "LAB"))
    picture = ImageCms.profileToProfile(Image.fromarray(SMOOTH), srgb, lab, outputMode="LAB")
    picture.save(tmp_path / "a.tif")
    assert np.abs(read_photograph(tmp_path / "a.tif").astype(int) - SMOOTH).max() <= 30


HOLE = np.where(np.arange(56) < 28, 0, 255).astype(np.uint8)[None].repeat(40, 0)


def transparent(mode):
    "A picture whose left half is transparent, with black below."
    rgba = Image.fromarray(np.dstack([np.where(HOLE[..., None], SMOOTH, 0), HOLE]))
    if mode == "P": return rgba.quantize(64)
    return rgba.convert("LA").convert("La") if mode == "La" else rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGBa", "La"])
def test_transparent_pixels_are_white(tmp_path, mode):
    with pytest.warns(UserWarning, match="mine: its transparent pixels are shown on white"):
        found = as_photograph(transparent(mode), "mine")
    assert (found[:, :28] == 255).all() and found[:, 28:].std() > 10
    opaque = as_photograph(Image.fromarray(np.dstack([SMOOTH, HOLE * 0 + 255])), "opaque")
    assert (opaque == SMOOTH).all()
    with pytest.raises(UnreadableImage, match="nothing: every pixel is transparent"):
        as_photograph(Image.fromarray(np.dstack([SMOOTH, HOLE * 0])), "nothing")


def test_one_transparent_colour(tmp_path):
    picture = np.where(HOLE[..., None], np.maximum(SMOOTH, 1), 0).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png", transparency=(0, 0, 0))
    with pytest.warns(UserWarning, match="a.png: its transparent pixels are shown on white"):
        assert (read_photograph(tmp_path / "a.png")[:, :28] == 255).all()


# --- frames


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_of_several_frames_is_read(tmp_path, suffix):
    first, second = (Image.fromarray(np.full((40, 56, 3), v, np.uint8)) for v in (40, 200))
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=f"a{suffix}: it has several frames or pages; the first"):
        assert np.abs(read_photograph(tmp_path / f"a{suffix}").astype(int) - 40).max() <= 2


def test_a_telephones_second_picture_is_not_spoken_of(tmp_path):
    first, second = (Image.fromarray(np.full((40, 56, 3), v, np.uint8)) for v in (40, 200))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert np.abs(read_photograph(tmp_path / "a.jpg").astype(int) - 40).max() <= 2


# --- what cannot be read


def as_bytes(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


WHOLE = {kind: as_bytes(Image.fromarray(SMOOTH), kind) for kind in ("PNG", "JPEG", "TIFF", "GIF")}


def broken(path, kind):
    "Make something at this path that is no photograph."
    if kind == "folder": path.mkdir()
    elif kind == "pipe": os.mkfifo(path)
    elif kind == "link": path.symlink_to("nowhere")
    else: path.write_bytes({
        "empty": b"",
        "text": b"no photograph",
        "truncated": WHOLE["JPEG"][:-400],
        "broken chunk": WHOLE["PNG"][:33] + b"\xff" * 8 + WHOLE["PNG"][41:],
        "half a header": WHOLE["TIFF"][:20],
        "half a GIF": WHOLE["GIF"][:300],
        "huge": png(60000, 60000, 8, 0, [b""]),
        "large": png(10000, 10000, 8, 0, [b""]),
        "no pixels": png(0, 0, 8, 0, [b""]),
        "drawing": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 56 40\n%%EndComments\nshowpage\n",
    }[kind])


BROKEN = ["folder", "pipe", "link", "empty", "text", "truncated", "broken chunk", "half a header",
          "half a GIF", "huge", "large", "no pixels", "drawing"]


REASONS = {
    "drawing": "EPS is a drawing",
    "large": "100000000 pixels are too many",
    "pipe": "no file",
    "folder": "it is a folder",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_named_and_skipped(tmp_path, kind):
    if kind == "pipe" and not hasattr(os, "mkfifo"): pytest.skip("no named pipes here")
    root = make_voc(tmp_path / "set", {name: blocks(0, k + 1) for k, name in enumerate("abc")})
    path = root / "JPEGImages/b.jpg"
    path.unlink()
    broken(path, kind)
    for read in (read_photograph, photographs.inspect_photograph):
        with pytest.raises(UnreadableImage, match="b.jpg: ") as raised:
            read(path)
        assert "\n" not in str(raised.value)
    words = REASONS.get(kind, "unreadable or truncated image")
    with pytest.raises(UnreadableImage, match=f"b.jpg: .*{words}.*skip_unreadable"):
        voc.voc_layout(root, "train")
    with pytest.warns(UserWarning, match="1 of 3 images are unreadable and were skipped.*b.jpg"):
        assert voc.voc_layout(root, "train", skip_unreadable=True).ids == ["a", "c"]


@pytest.mark.parametrize("error", [MemoryError(), struct.error("x"), SyntaxError("x"), KeyError(1)])
def test_whatever_a_decoder_raises_is_an_unreadable_image(tmp_path, monkeypatch, error):
    def fails(self):
        raise error

    Image.fromarray(SMOOTH).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    with pytest.raises(UnreadableImage, match="a.png: unreadable or truncated image"):
        read_photograph(tmp_path / "a.png")


# --- what is said of a set


def test_odd_photographs_are_said_once_for_each_kind(tmp_path):
    root = make_voc(tmp_path / "set", {name: blocks(0, 1) for name in "abcd"}, suffix=".png")
    for name in "bc":
        transparent("RGBA").save(root / f"JPEGImages/{name}.png")
    numbers(16, np.uint16).save(root / "JPEGImages/d.png")
    for _ in range(2):  # the second time from the cache
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            data = voc.voc_layout(root, "train")
        said = sorted(str(w.message) for w in told)
        assert len(said) == 2 and "d.png: the 16-bit image holds 12-bit" in said[1]
        assert "b.png: its transparent pixels are shown on white (2 of 4" in said[0]
    assert (read_image(data, 1)[:, :28] == 255).all(), "and nothing is said again"


# --- the explorer


def test_uploads_are_read_as_photographs():
    content = as_bytes(Image.fromarray(SMOOTH), "PNG", exif=tag(6))
    assert decode_upload("phone.png", content).shape == (56, 40, 3)
    content = as_bytes(numbers(257, np.uint16), "PNG")
    assert (decode_upload("grey.png", content) == AS_GREY).all()
    with pytest.raises(ValueError, match="'huge.png' cannot be read as an image .*pixels"):
        decode_upload("huge.png", png(60000, 60000, 8, 0, [b""]))
