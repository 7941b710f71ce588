"The index of a data set: cached, checked, rendered masks."

import os

import numpy as np
import pytest
from folders import blocks, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures
from PIL import Image

from celp_nb.data import images as data_images
from celp_nb.data import index as data_index
from celp_nb.data import voc as data_voc


def test_cache_is_used_and_made_again_when_a_file_changes(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1), "b": blocks(2, 3)})
    counted = []
    real = data_index.count_pixels
    monkeypatch.setattr(
        data_index,
        "count_pixels",
        lambda path, mask: counted.append(path.stem) or real(path, mask),
    )
    first = data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"]
    again = data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"] and (again.pixels == first.pixels).all()
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".npz", "one file, no leftovers"

    mask = (
        root / "SegmentationClass/b.png"
    )  # other content, the time of change put back: the size tells
    stat = mask.stat()
    Image.fromarray(blocks(1, 2, 3, 0, 1, 2, 3)).save(mask)
    assert mask.stat().st_size != stat.st_size
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (data_voc.voc_layout(root, "train").pixels[1] > 0).all()

    os.utime(root / "JPEGImages/a.jpg", ns=(1, 1))  # same size, another time
    counted.clear()
    data_voc.voc_layout(root, "train")
    assert sorted(counted) == ["a", "b"]

    make_voc(root, {"a": blocks(0, 1), "b": blocks(2, 3), "c": blocks(0, 2)})
    assert data_voc.voc_layout(root, "train").ids == ["a", "b", "c"]
    assert len(list((tmp_path / "cache").iterdir())) == 1, "replaced, not heaped up"

    next((tmp_path / "cache").iterdir()).write_bytes(b"damaged")
    assert len(data_voc.voc_layout(root, "train").ids) == 3


def test_a_damaged_word_in_an_index_is_a_damaged_index(tmp_path, monkeypatch):
    "The compression of its members is none that there is."
    monkeypatch.setenv("CELP_CACHE", str(tmp_path))
    make = lambda: {"a": np.arange(3)}
    data_index.cached_arrays("x", "mark", make)
    path = next(tmp_path.glob("*.npz"))
    content = bytearray(path.read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] == b"PK\1\2": content[at + 10 : at + 12] = b"\x63\0"
    path.write_bytes(content)
    assert data_index.cached_arrays("x", "mark", make)["a"].tolist() == [0, 1, 2]


def test_an_index_that_has_lost_an_array_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("CELP_CACHE", str(tmp_path))
    make = lambda: {"a": np.arange(3), "b": np.arange(2)}
    data_index.cached_arrays("x", "mark", make)
    path = next(tmp_path.glob("*.npz"))
    with np.load(path) as stored: arrays = {k: stored[k] for k in stored.files if k != "b"}
    np.savez(path, **arrays)
    assert set(data_index.cached_arrays("x", "mark", make)) == {"a", "b"}


def test_cache_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})

    def dies(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", dies)
        with pytest.raises(KeyboardInterrupt):
            data_voc.voc_layout(root, "train")
    assert list((tmp_path / "cache").iterdir()) == []
    assert data_voc.voc_layout(root, "train").ids == ["a"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set CELP_CACHE"):
        assert data_voc.voc_layout(
            make_voc(tmp_path / "set", {"a": blocks(0, 1)}), "train"
        ).ids == ["a"]


def test_an_index_of_an_earlier_format_is_made_anew(tmp_path, monkeypatch):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})
    data_voc.voc_layout(root, "train")
    with monkeypatch.context() as patch:
        patch.setattr(data_index, "count_pixels", lambda *a: pytest.fail("counted again"))
        data_voc.voc_layout(root, "train")
    path = next((tmp_path / "cache").iterdir())
    with np.load(path) as stored:
        arrays = dict(stored)
    mark = str(arrays.pop("mark"))
    number, fingerprint = mark.split()
    assert number == str(data_index.CACHE_FORMAT)
    arrays["pixels"] = np.zeros_like(arrays["pixels"])
    for earlier in (fingerprint, f"{data_index.CACHE_FORMAT - 1} {fingerprint}"):
        np.savez(path, mark=np.array(earlier), **arrays)
        assert (data_voc.voc_layout(root, "train").pixels == [40 * 28, 0, 0]).all()


# --- rendered masks


class Drawing:
    "Masks that lie in no file, and which of them were drawn."

    def __init__(self, root, n=6):
        self.masks = [np.full((20, 24), value, np.uint8) for value in range(1, n + 1)]
        self.ids, self.drawn = [f"ü/{i}" for i in range(n)], []
        self.source = root / "source.txt"
        self.source.write_text("one")

    def draw(self, i):
        self.drawn.append(i)
        return self.masks[i]

    def render(self):
        self.drawn.clear()
        return data_index.render_masks("drawn", [self.source], self.ids, lambda: self.draw)


def test_only_missing_masks_are_rendered(tmp_path):
    drawing = Drawing(tmp_path)
    paths = drawing.render()
    assert sorted(drawing.drawn) == list(range(6))
    for i, mask in enumerate(drawing.masks):
        assert (data_images.read_png_mask(paths, i) == mask).all()
    assert drawing.render() == paths and drawing.drawn == []
    paths[2].unlink()
    paths[4].unlink()
    assert drawing.render() == paths and sorted(drawing.drawn) == [2, 4]
    assert all(path.suffix == ".png" for path in paths[0].parent.iterdir()), "no leftovers"


def test_a_changed_source_is_rendered_anew(tmp_path):
    drawing = Drawing(tmp_path)
    before = drawing.render()
    drawing.source.write_text("another")
    drawing.masks[0] = drawing.masks[0] + 1
    after = drawing.render()
    assert len(drawing.drawn) == 6 and not set(before) & set(after)
    assert (data_images.read_png_mask(after, 0) == drawing.masks[0]).all()
    assert (data_images.read_png_mask(before, 0) == drawing.masks[0] - 1).all()


def test_interrupted_rendering_goes_on(tmp_path):
    drawing = Drawing(tmp_path)
    real = drawing.draw

    def dies(i):
        if i == 3:
            raise KeyboardInterrupt
        return real(i)

    drawing.draw = dies
    with pytest.raises(KeyboardInterrupt):
        drawing.render()
    drawing.draw = real
    paths = drawing.render()
    assert 3 in drawing.drawn
    for i, mask in enumerate(drawing.masks):
        assert (data_images.read_png_mask(paths, i) == mask).all()


def test_masks_that_cannot_be_kept_are_rendered_for_now(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELP_CACHE", str(tmp_path / "file"))
    drawing = Drawing(tmp_path)
    with pytest.warns(UserWarning, match="could not be kept.*set CELP_CACHE"):
        paths = drawing.render()
    for i, mask in enumerate(drawing.masks):
        assert (data_images.read_png_mask(paths, i) == mask).all()
