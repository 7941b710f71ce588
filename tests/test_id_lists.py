"Lists of training images, and PASCAL-5i's test recognised in a folder."

import warnings
from pathlib import Path

import numpy as np
import pytest
from folders import SHARED, blocks, make_pascal, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures
from PIL import Image

from celp_nb.data import id_lists as data_id_lists
from celp_nb.data.benchmarks import index_size, open_folder, pascal5i
from celp_nb.data.id_lists import listed_part, pascal_part, read_train_list, set_digests
from celp_nb.data.images import subset
from celp_nb.data.voc import PASCAL_CLASSES
from celp_nb.repro.config import make_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.folds import open_splits
from celp_nb.repro.presets import published_test
from celp_nb.repro.tables import SCALES

COUNTS = {"train": 4, "val": 1, "trainaug": 6}


def test_the_lists_that_ship():
    part, own = read_train_list("pascal-part"), read_train_list("pascal-part-5i")
    assert (len(part), len(own)) == (2294, 1363) and set(own) < set(part)
    assert all(len(name) == 11 and name[:2] == "20" and name[4] == "_" for name in part)
    assert pascal_part(part, set(own)) == (
        "2,294 of trainaug's 10,582 images, 1,363 of them among PASCAL-5i's 5,953"
    )
    assert pascal_part(own, set(own)) == "1,363 of PASCAL-5i's 5,953 images"
    assert SCALES["pascal-part"].data.train_list == "pascal-part"


@pytest.fixture
def recognised(tmp_path, monkeypatch):
    "A folder whose val split is made known as PASCAL-5i's test."
    root = make_voc(tmp_path / "voc", {"2007_a": blocks(0, 1), "2007_b": blocks(2, 255)}, names=())
    masks = {"2007_d": blocks(0, 3), "2007_c": blocks(255, 20)}
    make_voc(root, masks, split="val", names=())
    (root / "classes.txt").write_text("\n".join(PASCAL_CLASSES))
    names, pixels = set_digests(open_folder(root, "val"))
    monkeypatch.setattr(data_id_lists, "PASCAL_TEST_NAMES", names)
    monkeypatch.setattr(data_id_lists, "PASCAL_TEST_PIXELS", pixels)
    return root


def test_pascals_test_is_told_by_its_names_and_masks(recognised):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        val = open_folder(recognised, "val")
        assert (val.benchmark, val.name) == ("pascal-5i", "voc")
        assert open_folder(recognised, "train").benchmark == ""
        lines = recognised / "ImageSets/Segmentation/val.txt"
        lines.write_text("2007_c\n2007_d\n")
        assert open_folder(recognised, "val").benchmark == "pascal-5i", "in whatever order"
        lines.write_text("2007_c\n")
        assert open_folder(recognised, "val").benchmark == "", "a part is none"
        lines.write_text("2007_c\n2007_d\n")
        (recognised / "classes.txt").write_text("\n".join(PASCAL_CLASSES[::-1]))
        assert open_folder(recognised, "val").benchmark == "", "other classes"
        (recognised / "classes.txt").write_text("\n".join(PASCAL_CLASSES))
    Image.fromarray(blocks(3, 0, 0)).save(recognised / "SegmentationClass/2007_d.png")
    with pytest.warns(UserWarning, match="those of VOC 2012 val, but masks or sizes are not"):
        assert open_folder(recognised, "val").benchmark == ""


def test_a_left_out_image_makes_it_no_test(recognised):
    (recognised / "JPEGImages/2007_d.jpg").write_bytes(b"none")
    with pytest.warns(UserWarning, match="1 of 2 images are unreadable"):
        assert open_folder(recognised, "val", skip_unreadable=True).benchmark == ""


def test_known_training_images_are_counted(recognised, monkeypatch):
    lists = {"pascal-part": ["2007_a", "2007_b", "2007_z"], "pascal-part-5i": ["2007_b"]}
    monkeypatch.setattr(data_id_lists, "read_train_list", lists.get)
    train = open_folder(recognised, "train")
    assert train.part_of == (
        "2 of trainaug's 10,582 images, 1 of them among PASCAL-5i's 5,953"
    )
    assert subset(train, np.array([0])).part_of == ""
    lists["pascal-part"] = ["2007_a"]
    assert open_folder(recognised, "train").part_of == "", "2007_b is in no list"


def test_a_folder_is_cut_to_a_list(recognised, tmp_path):
    (tmp_path / "mine.txt").write_text("2007_b\r\n\r\n")
    data = resolve(make_config(data=str(recognised), train_list=str(tmp_path / "mine.txt"))).data
    assert data.train_list == str(tmp_path / "mine.txt")
    train, val = open_splits(data)
    assert train.ids == ["2007_b"] and len(val.ids) == 2 and val.benchmark == "pascal-5i"
    assert (train.read_mask(0) == blocks(2, 255)).all()
    (tmp_path / "mine.txt").write_text("2007_b\n2007_x\n2007_d\n")
    with pytest.raises(ValueError, match="mine.txt: image '2007_x' and 1 more of its 3 not in the"):
        open_splits(data)
    (tmp_path / "mine.txt").write_text("2007_b\n2007_b\n")
    with pytest.raises(ValueError, match="listed twice"):
        open_splits(data)


def test_a_list_that_is_not_there_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="one of pascal-part, pascal-part-5i"):
        resolve(make_config(train_list="pascal-prat"))
    assert resolve(make_config(train_list="pascal-part")).data.train_list == "pascal-part"
    Path("mine.txt").write_text("x\n")
    assert resolve(make_config(train_list="mine.txt")).data.train_list == str(tmp_path / "mine.txt")


def test_samples_too_can_be_cut(tmp_path):
    from celp_nb.bundled.scenes import samples

    ids = samples("train").ids[5:2:-1]
    (tmp_path / "mine.txt").write_text("\n".join(ids))
    train, val = open_splits(make_config(train_list=str(tmp_path / "mine.txt")).data)
    assert train.ids == ids and val.benchmark == "samples"
    assert listed_part(samples("train"), tmp_path / "mine.txt").ids == ids


@pytest.fixture
def both_sets(tmp_path):
    "VOC train a, b; val c; SBD train_noval b, d, e; its train also c, f, its val g."
    from scipy.io import savemat

    root = make_pascal(tmp_path / "data")
    for name, value in {"2007_c": 9, "2009_f": 6, "2009_g": 7}.items():
        entry = np.zeros((1,), dtype=[("Segmentation", object)])
        entry[0]["Segmentation"] = blocks(0, value)
        savemat(root / f"sbd/cls/{name}.mat", {"GTcls": entry})
        Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(root / f"sbd/img/{name}.jpg")
    (root / "sbd/train.txt").write_text("2007_b\n2007_c\n2008_d\n2008_e\n2009_f\n")
    (root / "sbd/val.txt").write_text("2009_g\n")
    return root


def listed(root, *names, **more):
    "PASCAL's training images of a list of these names."
    path = root / "list.txt"
    path.write_text("\n".join(names))
    return pascal5i(root, "train", counts=COUNTS, train_list=path, **more)


def test_a_list_is_built_from_voc_and_all_of_sbd(both_sets):
    train = listed(both_sets, "2009_g", "2007_b", "2008_d", "2009_f")
    assert train.ids == ["2009_g", "2007_b", "2008_d", "2009_f"]
    masks = [blocks(0, 7), blocks(255, 2), blocks(0, 4), blocks(0, 6)]
    for i, mask in enumerate(masks):
        assert (train.read_mask(i) == mask).all(), "an image in both keeps VOC's mask"
    assert train.benchmark == "" and train.name == "pascal5i"
    assert train.part_of == "4 of trainaug's 6 images, 2 of them among PASCAL-5i's 4"
    whole = pascal5i(both_sets, "train", counts=COUNTS)
    assert (whole.benchmark, whole.part_of) == ("pascal-5i", "PASCAL-5i's 4 images")


def test_a_list_that_ships_is_found_by_name_and_its_index_is_counted(both_sets, monkeypatch):
    (both_sets / "short.txt").write_text("2009_g\n2007_a\n")
    monkeypatch.setitem(data_id_lists.TRAIN_LISTS, "short", both_sets / "short.txt")
    before = index_size(both_sets)[0]
    train = pascal5i(both_sets, "train", counts=COUNTS, train_list="short")
    assert train.ids == ["2009_g", "2007_a"] and index_size(both_sets)[0] > before
    assert pascal5i(both_sets, "val", counts=COUNTS, train_list="short").ids == ["2007_c"]


def test_sbds_other_lists_are_needed_for_its_other_images_alone(both_sets):
    (both_sets / "sbd/val.txt").unlink()
    assert listed(both_sets, "2008_d").part_of == "1 of PASCAL-5i's 4 images"
    with pytest.raises(FileNotFoundError, match=r"val.txt: no such list; take it from dataset/ of"):
        listed(both_sets, "2008_d", "2009_f")


def test_lists_that_cannot_be_built_are_refused(both_sets):
    with pytest.raises(ValueError, match="'2007_c', are in VOC 2012 val, which PASCAL-5i tests"):
        listed(both_sets, "2008_d", "2007_c")
    with pytest.raises(ValueError, match="image '2001_x' not in VOC 2012 train or SBD"):
        listed(both_sets, "2008_d", "2001_x")
    (both_sets / "sbd/val.txt").write_text("2009_g\n2009_h\n")
    with pytest.raises(ValueError, match="trainaug in .* has 7 images, not the published 6"):
        listed(both_sets, "2009_f")


def test_scores_say_what_was_trained_on():
    assert published_test("pascal-5i", "5 images") == "PASCAL-5i test, trained on 5 images."
    assert published_test("coco-20i", "5 images") == "COCO-20i test, trained on 5 images."
    assert published_test("pascal-5i", "") == published_test("", "5 images") == ""
    assert published_test("samples", "5 images") == ""


def test_the_photographs_that_are_here_are_pascals_test():
    root = SHARED / "data/pascal-part"
    if not root.is_dir():
        pytest.skip(f"real photographs are not in {SHARED}/data")
    with pytest.warns(UserWarning, match="VOC's 20 class names are assumed"):
        val = open_folder(root, "val")
    assert (len(val.ids), val.benchmark) == (1449, "pascal-5i")
    lists = root / "ImageSets/Segmentation"
    assert read_train_list("pascal-part") == (lists / "train.txt").read_text().split()
    assert read_train_list("pascal-part-5i") == (lists / "train_pascal5i.txt").read_text().split()
