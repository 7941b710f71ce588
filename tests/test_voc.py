"The VOC layout: what it reads and what it refuses."


import numpy as np
import pytest
from folders import PICTURE, blocks, cut, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures
from PIL import Image

from celp_nb.data import images as data_images
from celp_nb.data import voc as data_voc


def test_voc_layout_reads_what_is_there(tmp_path):
    masks = {"b": blocks(0, 1, 255), "a": blocks(3, 3, 2)}
    image_set = data_voc.voc_layout(make_voc(tmp_path / "mine", masks), "train")
    assert (image_set.name, image_set.ids, image_set.class_names, image_set.interleaved) == (
        "mine",
        ["b", "a"],
        ["cat", "dog", "cow"],
        False,
    )
    for i, mask in enumerate(masks.values()):
        assert (image_set.read_mask(i) == mask).all() and image_set.read_mask(i).dtype == np.uint8
        assert image_set.pixels[i].tolist() == [int((mask == c).sum()) for c in (1, 2, 3)]
    image = data_images.read_image(image_set, 0)
    assert image.shape == (40, 56, 3) and image.dtype == np.uint8
    assert image_set.pixels.dtype == np.int64 and all(
        path.is_file() for path in image_set.image_paths
    )


def test_palette_masks_grey_photographs_and_png(tmp_path):
    root = make_voc(tmp_path, {"a": blocks(0, 1, 255)}, suffix=".PNG")
    palette = Image.fromarray(blocks(2, 0, 3)).convert("P")
    palette.putdata(blocks(2, 0, 3).ravel().tolist())
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(root / "SegmentationClass/a.png")
    Image.fromarray(PICTURE[..., 0]).save(root / "JPEGImages/a.PNG")
    image_set = data_voc.voc_layout(root, "train")
    assert (image_set.read_mask(0) == blocks(2, 0, 3)).all(), "indices, not colours"
    assert (data_images.read_image(image_set, 0) == PICTURE[..., :1]).all()


def test_class_names(tmp_path):
    root = make_voc(tmp_path, {"a": blocks(0, 1, 2)}, names=())
    assert data_voc.voc_layout(root, "train", class_names=["x", "y", "z"]).class_names == [
        "x",
        "y",
        "z",
    ]
    with pytest.warns(UserWarning, match="no classes.txt, so 2 classes"):
        assert data_voc.voc_layout(root, "train").class_names == ["class_1", "class_2"]
    with pytest.raises(ValueError, match="mask value 2 is outside 0 to 1"):
        data_voc.voc_layout(root, "train", class_names=["x"])
    (root / "classes.txt").write_text("p\nq\n")
    assert data_voc.voc_layout(root, "train").class_names == ["p", "q"]
    with pytest.raises(ValueError, match="classes.txt: names 2 classes other than the 3 given"):
        data_voc.voc_layout(root, "train", class_names=["x", "y", "z"])
    (root / "classes.txt").write_text("p\np\n")
    with pytest.raises(ValueError, match="classes.txt: 2 class names, 1 of them different"):
        data_voc.voc_layout(root, "train")


def test_pascal_names_only_for_pascal(tmp_path):
    with pytest.warns(UserWarning, match="no classes.txt.*VOC's 20 class names are assumed"):
        image_set = data_voc.voc_layout(
            make_voc(tmp_path / "voc", {"2007_000032": blocks(0, 15, 255)}, names=()), "train"
        )
    assert (
        image_set.class_names == data_voc.PASCAL_CLASSES
        and image_set.pixels.shape == (1, 20)
        and image_set.pixels[0, 14] > 0
    )
    with pytest.warns(UserWarning):
        image_set = data_voc.voc_layout(
            make_voc(tmp_path / "other", {"2007_000032": blocks(0, 21, 255)}, names=()), "train"
        )
    assert image_set.class_names[20] == "class_21"


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").unlink(),
            FileNotFoundError,
            r"train.txt: no such split; there are: other",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").write_text("\n \n"),
            ValueError,
            r"train.txt: the split is empty",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n"),
            ValueError,
            r"train.txt: 'a' is listed twice",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").unlink(),
            FileNotFoundError,
            r"JPEGImages/b.jpg: no such image",
        ),
        (
            lambda r: (r / "SegmentationClass/b.png").unlink(),
            FileNotFoundError,
            r"SegmentationClass/b.png: no such mask",
        ),
        (
            lambda r: (r / "SegmentationClass").rename(r / "masks"),
            FileNotFoundError,
            r"SegmentationClass: no such folder",
        ),
        (
            lambda r: cut(r / "JPEGImages/b.jpg"),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable or truncated image .*skip_unreadable",
        ),
        (
            lambda r: cut(r / "SegmentationClass/b.png"),
            data_images.UnreadableImage,
            r"SegmentationClass/b.png: unreadable or truncated",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").write_bytes(b""),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable",
        ),
        (
            lambda r: (r / "JPEGImages/b.jpg").write_text("no photograph"),
            data_images.UnreadableImage,
            r"JPEGImages/b.jpg: unreadable",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 1).T.copy()).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.jpg: the image is 40x56 .*mask is 56x40",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 4)).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: mask value 4 is outside 0 to 3 and 255",
        ),
        (
            lambda r: Image.fromarray(blocks(0, 254)).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: mask value 254",
        ),
        (
            lambda r: Image.fromarray(PICTURE).save(r / "SegmentationClass/b.png"),
            ValueError,
            r"b.png: a mask must hold class numbers.*RGB",
        ),
        (
            lambda r: make_voc(r, {"a": blocks(1), "b": blocks(1, height=7)}),
            ValueError,
            r"b.jpg: 7x56 pixels is smaller than one feature stride \(8\)",
        ),
    ],
)
def test_bad_folders_are_refused_in_one_sentence(tmp_path, damage, error, message):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1), "b": blocks(2, 3)})
    (root / "ImageSets/Segmentation/other.txt").write_text("a\n")
    damage(root)
    with pytest.raises(error, match=message) as raised:
        data_voc.voc_layout(root, "train")
    assert "\n" not in str(raised.value)
    assert (
        data_voc.voc_layout(root, "other").ids == ["a"]
        if (root / "SegmentationClass").is_dir()
        else True
    )


@pytest.mark.parametrize(
    "line, message",
    [
        ("JPEGImages/a.jpg", "is a path or a file; write the name alone.*suffix: a\\."),
        ("a.jpg", "is a path or a file; .* a\\."),
        ("JPEGImages\\a.jpg", "is a path or a file; .* a\\."),
        ("JPEGImages/a.jpg SegmentationClassAug/a.png", "is two paths; write the name alone"),
        ("/JPEGImages/a.jpg\t/SegmentationClass/a.png", "is two paths; .* a\\."),
        ("a  1", "VOC's lists of one class, whose second column.* name alone: a\\."),
        ("a -1", "VOC's lists of one class"),
        ("# a list", "no such image; add it"),
    ],
)
def test_a_line_that_is_no_bare_name_is_explained(tmp_path, line, message):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{line}\n")
    with pytest.raises(FileNotFoundError, match=message) as raised:
        data_voc.voc_layout(root, "train")
    assert line in str(raised.value) and "\n" not in str(raised.value)


def test_names_may_have_blanks_and_digits(tmp_path):
    names = ["photo 1", "a -1", "x.jpg", "# 1"]
    root = make_voc(tmp_path / "set", {name: blocks(0, 1) for name in names})
    assert data_voc.voc_layout(root, "train").ids == names


def test_lists_and_files_may_differ_in_encoding_and_composition(tmp_path):
    names = ["b\u00e4r", "cafe\u0301"]
    root = make_voc(tmp_path / "set", {name: blocks(0, k + 1) for k, name in enumerate(names)})
    (root / "ImageSets/Segmentation/train.txt").write_bytes(
        "\r\n".join(["ba\u0308r \t", "", "caf\u00e9"]).encode("utf-16")
    )
    image_set = data_voc.voc_layout(root, "train")
    assert image_set.ids == ["b\u00e4r", "caf\u00e9"]
    assert [int(image_set.read_mask(i).max()) for i in range(2)] == [1, 2]
    with pytest.raises(ValueError, match="'b\u00e4r' is listed twice, in lines 1 and 2"):
        (root / "ImageSets/Segmentation/train.txt").write_text("ba\u0308r\nb\u00e4r\n")
        data_voc.voc_layout(root, "train")


@pytest.mark.parametrize(
    "lines, message",
    [
        ("_background_\ncat\ndog\ncow\n", "classes.txt, line 1: '_background_' is no class"),
        ("cat\n\n0: Void\ndog\n", "classes.txt, line 3: '0: Void' is no class"),
        ("__ignore__\n_background_\ncat\n", "line 1: '__ignore__' is no class"),
        ("# names\ncat\n", "line 1: '# names' is no class name"),
        ("1\tcat\n", "line 1: '1\tcat' is no class name"),
        ("cat\ncat \n", "2 class names, 1 of them different"),
        ("caf\u00e9\ncafe\u0301\n", "2 class names, 1 of them different"),
        ("\n \n", "0 class names"),
    ],
)
def test_lines_of_classes_txt_that_are_no_class_are_refused(tmp_path, lines, message):
    root = make_voc(tmp_path / "set", {"a": blocks(0, 1)})
    (root / "classes.txt").write_text(lines, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        data_voc.voc_layout(root, "train")
    assert "classes.txt" in str(raised.value) and "\n" not in str(raised.value)


def test_missing_root_and_empty_masks(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        data_voc.voc_layout(tmp_path / "nowhere", "train")
    root = make_voc(tmp_path / "set", {"a": blocks(0, 255)}, names=())
    with pytest.raises(ValueError, match="every mask of split 'train' is background or void"):
        data_voc.voc_layout(root, "train")


def test_unreadable_files_are_skipped_with_a_count(tmp_path):
    root = make_voc(
        tmp_path / "set", {name: blocks(0, k % 3 + 1) for k, name in enumerate("abcde")}
    )
    cut(root / "JPEGImages/b.jpg")
    cut(root / "SegmentationClass/d.png")
    for _ in range(2):  # the second time from the cache
        with pytest.warns(
            UserWarning, match="2 of 5 images are unreadable and were skipped, the first: .*b.jpg"
        ):
            image_set = data_voc.voc_layout(root, "train", skip_unreadable=True)
        assert image_set.ids == ["a", "c", "e"] and [
            path.stem for path in image_set.image_paths
        ] == ["a", "c", "e"]
        assert [int(image_set.read_mask(i).max()) for i in range(3)] == [1, 3, 2]
        assert (image_set.pixels > 0).argmax(axis=1).tolist() == [0, 2, 1]
        with pytest.raises(data_images.UnreadableImage, match="b.jpg.*and 1 more"):
            data_voc.voc_layout(root, "train")
    for name in "ace":
        cut(root / f"JPEGImages/{name}.jpg")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="none of its 5 images can be read"),
    ):
        data_voc.voc_layout(root, "train", skip_unreadable=True)


def test_a_photograph_that_goes_bad_later_is_named(tmp_path):
    image_set = data_voc.voc_layout(make_voc(tmp_path / "set", {"a": blocks(0, 1)}), "train")
    cut(image_set.image_paths[0])
    with pytest.raises(data_images.UnreadableImage, match="a.jpg"):
        data_images.read_image(image_set, 0)
