"PASCAL-5i and COCO-20i: parts, counts, downloads."

import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from folders import SQUARE, blocks, make_coco, make_pascal, make_voc, one_thread, own_cache  # noqa: F401  autouse fixtures

from celp_nb.data import benchmarks as data_benchmarks
from celp_nb.data import coco as data_coco
from celp_nb.data import images as data_images
from celp_nb.data import index as data_index
from celp_nb.data import pascal_files as data_pascal_files
from celp_nb.data import voc as data_voc
from celp_nb.data.layouts import check_same_classes, folder_layout
from celp_nb.repro.config import make_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.folds import open_splits


def test_coco20i_needs_the_80_classes_and_says_when_it_is_a_part(tmp_path):
    pytest.importorskip("pycocotools")
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}])
    with pytest.raises(ValueError, match="3 categories are not COCO's 80"):
        data_benchmarks.coco20i(root, "train")
    with pytest.raises(ValueError, match="no split 'test'"):
        data_benchmarks.coco20i(root, "test")
    make_coco(
        root,
        [{"segmentation": [SQUARE]}],
        categories=[{"id": k + 1, "name": name} for k, name in enumerate(data_coco.COCO_CLASSES)],
    )
    with pytest.warns(
        UserWarning,
        match="train: 1 annotated images instead of 82081: scores from it are not COCO-20i",
    ):
        image_set = data_benchmarks.coco20i(root, "train")
    assert image_set.interleaved and image_set.name == "coco" and image_set.pixels.shape == (1, 80)
    assert image_set.benchmark == "", "a part is no benchmark"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = data_benchmarks.coco20i(root, "train", {"train": 1})
    assert whole.interleaved and whole.name == "coco20i" and whole.benchmark == "coco-20i"
    assert data_images.subset(whole, [0]).benchmark == ""
    assert data_images.merge(whole, image_set).benchmark == ""


@pytest.mark.parametrize("name", ["pascal5i", "coco20i", "samples", "001", "NA", "1e3", "nan"])
def test_a_folder_is_what_is_in_it_whatever_it_is_called(tmp_path, name):
    root = make_voc(tmp_path / name, {"a": blocks(0, 1)})
    (root / "annotations").mkdir()  # of VOC's boxes, on disks where case does not matter
    (root / "annotations/a.xml").write_text("<annotation/>")
    image_set = data_benchmarks.open_folder(root, "train")
    assert (image_set.name, image_set.benchmark, image_set.interleaved) == (name, "", False)
    with pytest.raises(FileNotFoundError, match="no such split; there are: train"):
        data_benchmarks.open_folder(root, "val")


def test_the_layout_of_a_folder_is_clear_or_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        folder_layout(tmp_path / "none")
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match="neither VOC layout .* nor COCO layout"):
        folder_layout(tmp_path)
    (tmp_path / "annotations/instances_train2014.json").touch()
    assert folder_layout(tmp_path) == "coco"
    (tmp_path / "ImageSets").mkdir()
    with pytest.raises(ValueError, match="has COCO layout .* and VOC layout"):
        data_benchmarks.open_folder(tmp_path, "train")
    (tmp_path / "VOCdevkit").mkdir()
    assert folder_layout(tmp_path) == "pascal-5i"


def test_splits_with_other_classes_are_named(tmp_path):
    names = ["cat", "dog", "cow"]
    check_same_classes(tmp_path, names, names)
    voc = make_voc(tmp_path / "voc", {"a": blocks(0, 1)})
    for val, said in [
        (["cat", "cow"], "only the training split has dog; list all names in classes.txt"),
        (["cat", "ox", "cow"], "only the training split has dog; only the evaluation split has ox"),
        (["cat", "cow", "dog"], "'dog' is class 2 of the training split and 3 of the other"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_same_classes(voc, names, val)
        (tmp_path / "coco/annotations").mkdir(parents=True, exist_ok=True)
        (tmp_path / "coco/annotations/instances_val2014.json").touch()
        with pytest.raises(ValueError, match=said.split("; list")[0]) as raised:
            check_same_classes(tmp_path / "coco", names, val)
        assert "categories" in str(raised.value) and "classes.txt" not in str(raised.value)


def test_data_samples_are_the_bundled_ones_and_a_folder_of_that_name_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, val = open_splits(make_config(data="samples").data)
    assert train.benchmark == val.benchmark == "samples"
    for split in ("train", "val"):
        make_voc(tmp_path / "samples", {"a": blocks(0, 1)}, split=split)
    with pytest.warns(UserWarning, match="bundled scenes, not the folder.*write ./samples"):
        assert open_splits(make_config(data="samples").data)[1].benchmark == "samples"
    own = open_splits(resolve(make_config(data="./samples")).data)[1]
    assert (own.name, own.benchmark, own.ids) == ("samples", "", ["a"])


def test_missing_extras_are_named(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *rest, **kw):
        if name.split(".")[0] in ("pycocotools", "scipy"):
            raise ImportError(name)
        return real(name, *rest, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'celp_nb\[coco\]'"):
        data_coco.coco_layout(tmp_path, "train2014")
    with pytest.raises(ImportError, match=r"pip install 'celp_nb\[sbd\]'"):
        data_benchmarks.pascal5i(tmp_path, "train")


def test_pascal5i_joins_voc_and_sbd(tmp_path):
    root = make_pascal(tmp_path / "data")
    counts = {"train": 4, "val": 1}
    train = data_benchmarks.pascal5i(root, "train", counts=counts)
    assert (
        train.ids == ["2007_a", "2007_b", "2008_d", "2008_e"]
        and train.class_names == data_voc.PASCAL_CLASSES
        and train.name == "pascal5i"
        and train.benchmark == "pascal-5i"
    )
    for i, mask in enumerate([blocks(0, 1), blocks(255, 2), blocks(0, 4), blocks(5, 0)]):
        assert (train.read_mask(i) == mask).all(), "an image in both keeps VOC's mask"
        assert data_images.read_image(train, i).shape == (40, 56, 3)
        assert train.pixels[i].sum() == ((mask > 0) & (mask < 255)).sum()
    assert data_benchmarks.pascal5i(root, "val", counts=counts).ids == ["2007_c"]


def test_sbd_masks_are_rendered_once(tmp_path, monkeypatch):
    root, counts = make_pascal(tmp_path / "data"), {"train": 4, "val": 1}
    first = data_benchmarks.pascal5i(root, "train", counts=counts)
    with monkeypatch.context() as patch:
        patch.setattr(data_pascal_files, "read_sbd_mask", lambda *a: pytest.fail("read again"))
        again = pickle.loads(pickle.dumps(data_benchmarks.pascal5i(root, "train", counts=counts)))
    for i in range(4):
        assert (again.read_mask(i) == first.read_mask(i)).all()
    rendered = sorted(path.name for path in (tmp_path / "cache").rglob("*.png"))
    assert rendered == ["000000-2008_d.png", "000001-2008_e.png"], "VOC's masks stay where they are"
    entry = np.zeros((1,), dtype=[("Segmentation", object)])
    entry[0]["Segmentation"] = blocks(7, 0)
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(root / "sbd/cls/2008_e.mat", {"GTcls": entry})
    changed = data_benchmarks.pascal5i(root, "train", counts=counts)
    assert (changed.read_mask(3) == blocks(7, 0)).all(), "a changed source is rendered anew"


def test_pascal5i_leaves_unreadable_images_out_on_request(tmp_path, monkeypatch):
    root = make_pascal(tmp_path / "data")
    counts = {"train": 4, "val": 1}
    monkeypatch.setattr(data_benchmarks.pascal5i, "__defaults__", (False, counts, False, None))
    (root / "sbd/img/2008_d.jpg").write_bytes(b"no picture")
    with pytest.raises(data_images.UnreadableImage, match="2008_d.jpg.*--skip-unreadable"):
        data_benchmarks.open_folder(root, "train")
    with pytest.warns(UserWarning, match="1 of 4 images are unreadable and were skipped.*2008_d"):
        part = data_benchmarks.open_folder(root, "train", skip_unreadable=True)
    assert part.ids == ["2007_a", "2007_b", "2008_e"] and part.name == "pascal5i"
    assert part.benchmark == "", "a part is no benchmark"
    assert (part.read_mask(2) == blocks(5, 0)).all()
    whole = data_benchmarks.open_folder(root, "val", skip_unreadable=True)
    assert whole.benchmark == "pascal-5i"


def test_pascal5i_refuses_what_is_not_whole(tmp_path):
    root = make_pascal(tmp_path / "data")
    counts = {"train": 4, "val": 1}
    with pytest.raises(
        ValueError, match="PASCAL-5i train in .* has 4 images, not the published 5953"
    ):
        data_benchmarks.pascal5i(root, "train")
    with pytest.raises(ValueError, match="has 1 images, not the published 1449"):
        data_benchmarks.pascal5i(root, "val")
    with pytest.raises(ValueError, match="no split 'test'"):
        data_benchmarks.pascal5i(root, "test")
    with pytest.raises(FileNotFoundError, match="VOC2012: no such folder; pass download=True"):
        data_benchmarks.pascal5i(tmp_path / "none", "val")
    (root / "sbd/cls/2008_d.mat").write_bytes(b"nothing")
    with pytest.raises(
        data_images.UnreadableImage, match="2008_d.mat: unreadable or truncated mask"
    ):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    whole = (root / "sbd/cls/2008_e.mat").read_bytes()
    (root / "sbd/cls/2008_e.mat").write_bytes(b"nothing")
    with pytest.raises(data_images.UnreadableImage, match=r"2008_d.mat: .* \(and 1 more\) Replace"):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd/cls/2008_e.mat").write_bytes(whole)
    (root / "sbd/cls/2008_d.mat").unlink()
    with pytest.raises(FileNotFoundError, match="2008_d.mat: listed but not there"):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd/train_noval.txt").unlink()
    with pytest.raises(FileNotFoundError, match="train_noval.txt: no such list; fetch https"):
        data_benchmarks.pascal5i(root, "train", counts=counts)
    (root / "sbd").rename(root / "other")
    with pytest.raises(FileNotFoundError, match="sbd: no such folder"):
        data_benchmarks.pascal5i(root, "train", counts=counts)


def test_pascal5i_downloads_only_what_is_missing(tmp_path, monkeypatch):
    import torchvision.datasets as tvd

    root = make_pascal(tmp_path / "data")
    asked = []
    for name in ("VOCSegmentation", "SBDataset"):
        real = getattr(tvd, name)

        def spy(*args, real=real, name=name, **kw):
            asked.append((name, bool(kw.get("download"))))
            return real(*args, **{**kw, "download": False})

        spy.url = spy.voc_train_url = "https://example.org"
        monkeypatch.setattr(tvd, name, spy)
    data_benchmarks.pascal5i(root, "train", download=True, counts={"train": 4, "val": 1})
    assert not any(download for _, download in asked), "both are there"
    asked.clear()
    (root / "sbd").rename(tmp_path / "away")
    with pytest.raises((RuntimeError, FileNotFoundError)):
        data_benchmarks.pascal5i(root, "train", download=True, counts={"train": 4, "val": 1})
    assert ("SBDataset", True) in asked and ("VOCSegmentation", False) in asked


def test_a_failing_download_is_one_sentence_and_may_be_tried_again(tmp_path, monkeypatch):
    import torchvision.datasets.sbd as sbd
    import torchvision.datasets.voc as voc

    def offline(*args, **kw):
        raise URLError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(voc, "download_and_extract_archive", offline)
        with pytest.raises(
            RuntimeError,
            match=r"VOC 2012 could not be downloaded .*no route to host.*"
            r"fetch https\S+VOCtrainval_11-May-2012.tar elsewhere",
        ) as raised:
            data_benchmarks.prepare_pascal(tmp_path / "none")
        assert "\n" not in str(raised.value) and str(tmp_path / "none") in str(raised.value)
    root = make_pascal(tmp_path / "data")
    (root / "sbd").rename(tmp_path / "away")
    tries = []
    with monkeypatch.context() as patch:
        patch.setattr(
            sbd,
            "download_and_extract_archive",
            lambda url, folder, **kw: (
                Path(folder).mkdir(exist_ok=True),
                tries.append(url),
                offline(),
            ),
        )
        for attempt in (1, 2):  # the first leaves an empty folder behind
            with pytest.raises(
                RuntimeError,
                match=r"SBD could not be downloaded .*benchmark.tgz and "
                r"https\S+train_noval.txt elsewhere.*sbd unopened",
            ):
                data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})
            assert len(tries) == attempt
    (root / "sbd").rmdir()
    (tmp_path / "away").rename(root / "sbd")
    assert [len(s.ids) for s in data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})] == [
        4,
        1,
    ]


def test_preparing_pascal_counts_what_is_there_and_indexes_it(tmp_path, monkeypatch):
    root = make_pascal(tmp_path / "data")
    with pytest.raises(ValueError, match="4 images, not the published 5953"):
        data_benchmarks.prepare_pascal(root)
    train, val = data_benchmarks.prepare_pascal(root, {"train": 4, "val": 1})
    lines = data_benchmarks.inventory(root, train, val).splitlines()
    assert lines[0] == f"pascal5i in {root.resolve()}:"
    words = ["train", "4", "images,", "0", "of", "20", "classes", "in", "them"]
    assert lines[1].split() == words, (
        "no object has 2048 pixels but stripes of 40 x 56"
    )
    size = sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*.*") if f.is_file())
    assert size and data_benchmarks.index_size(root) == (size, tmp_path / "cache")
    monkeypatch.setattr(data_index, "count_pixels", lambda *a: pytest.fail("counted again"))
    assert data_benchmarks.pascal5i(root, "val", counts={"train": 4, "val": 1}).ids == val.ids


def test_preparing_coco_names_what_is_missing_and_where_it_comes_from(tmp_path):
    pytest.importorskip("pycocotools")
    zips = [
        "http://images.cocodataset.org/zips/train2014.zip",
        "http://images.cocodataset.org/zips/val2014.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    ]
    with pytest.raises(FileNotFoundError) as raised:
        data_benchmarks.prepare_coco(tmp_path / "coco")
    assert all(url in str(raised.value) for url in zips) and "\n" not in str(raised.value)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(data_coco.COCO_CLASSES)]
    root = make_coco(tmp_path / "coco", [{"segmentation": [SQUARE]}], categories=categories)
    with pytest.raises(FileNotFoundError) as raised:
        data_benchmarks.prepare_coco(root)
    said = str(raised.value)
    assert (
        "lacks val2014, annotations/instances_val2014.json" in said
        and zips[0] not in said
        and zips[1] in said
        and zips[2] in said
    )
    make_coco(
        root,
        [{"segmentation": [SQUARE]}, {"image_id": 9, "segmentation": [SQUARE]}],
        categories=categories,
        split="val2014",
    )
    with (
        pytest.raises(
            ValueError, match="COCO-20i train in .* has 1 images, not the published 82081"
        ),
        pytest.warns(UserWarning, match="instead of 82081"),
    ):
        data_benchmarks.prepare_coco(root)
    with (
        pytest.raises(ValueError, match="COCO-20i val in .* has 2 images, not the published 40137"),
        pytest.warns(UserWarning, match="instead of 40137"),
    ):
        data_benchmarks.prepare_coco(root, {"train": 1, "val": 40137})
    train, val = data_benchmarks.prepare_coco(root, {"train": 1, "val": 2})
    assert (len(train.ids), len(val.ids)) == (1, 2) and train.interleaved and val.interleaved
    assert data_benchmarks.index_size(root)[0] == sum(
        f.stat().st_size for f in (tmp_path / "cache").rglob("*.*") if f.is_file()
    )
