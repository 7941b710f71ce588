"""`celp predict` as a user meets it: what it reads, marks, writes, says and refuses."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from celp_nb.app import predict as app_predict
from celp_nb.app.cli import main
from celp_nb.app.photo_files import is_own_file, output_files, query_files
from celp_nb.bundled.scenes import samples
from celp_nb.contrast import FewShotModel
from celp_nb.data.images import read_image, read_photograph
from celp_nb.engine.backbones import backbone_fingerprint, load_backbone
from celp_nb.engine.checkpoints import save_checkpoint
from celp_nb.engine.methods import DECODERS, METHODS
from celp_nb.engine.segmenter import Segmenter
from celp_nb.engine.supports import point_mask

MODEL, CLASS = "samples-pfenet-ce", 3


@pytest.fixture(scope="module")
def scenes():
    "Six scenes with the class, and their masks (0, 1 and 255)."
    data = samples("val")
    images = np.flatnonzero(data.pixels[:, CLASS - 1] >= 2500)[:6].tolist()
    return [(read_image(data, i), data.read_mask(i)) for i in images]


@pytest.fixture
def here(tmp_path, monkeypatch, scenes):
    "A working folder: a.png and b.png, a_mask.png and b_mask.png; photos/1.png to 4.png."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k, (photo, mask) in enumerate(scenes):
        name = "ab"[k] if k < 2 else f"photos/{k - 1}"
        Image.fromarray(photo).save(f"{name}.png")
        if k < 2: Image.fromarray(np.uint8(mask == CLASS)).save(f"{name}_mask.png")
    return tmp_path


def celp(line, capsys):
    "Exit status, stdout and stderr of `celp predict MODEL line`."
    capsys.readouterr()
    status = main(["predict", MODEL, *line.split()])
    return (status, *capsys.readouterr())


def refused(line, capsys, *words):
    "The command costs one line and leaves the folder as it was."
    before = sorted(os.walk("."))
    status, out, err = celp(line, capsys)
    assert status == 1 and not out and err.count("\n") == 1 and err.startswith("celp: "), err
    for word in words: assert word in err, err
    assert sorted(os.walk(".")) == before


def pixels(path):
    return np.array(Image.open(path))


ONE = "--support a.png --mask a_mask.png --query photos/1.png"


# --- what is written


@pytest.mark.parametrize(
    "supports",
    [
        "--support a.png --mask a_mask.png --support b.png --mask b_mask.png",
        "--support a.png b.png --mask a_mask.png b_mask.png",
        "--support a.png --support b.png --mask a_mask.png b_mask.png",
    ],
)
def test_supports_come_in_pairs_and_queries_in_folders(supports, here, scenes, capsys):
    status, out, err = celp(f"{supports} --query photos --out masks", capsys)
    assert status == 0 and not err
    photos, masks = zip(*((photo, mask == CLASS) for photo, mask in scenes[:2]))
    segmenter = Segmenter.from_pretrained(MODEL).set_support(photos, masks)
    for k, line in enumerate(out.splitlines(), 1):
        result, mask = segmenter.predict(scenes[k + 1][0]), pixels(f"masks/{k}.png")
        assert np.array_equal(mask == 255, result.mask) and set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(pixels(f"masks/{k}_overlay.png"), result.overlay())
        marked, path = int((mask > 0).sum()), os.path.join("masks", f"{k}.png")
        percent = 100 * marked / mask.size
        assert line == f"{path}: {percent:.1f}% ({marked:,} of {mask.size:,} pixels)"
    assert k == 4 and len(os.listdir("masks")) == 8


def test_queries_may_be_repeated_files_and_folders(here, capsys):
    status, out, err = celp("--support a.png --mask a_mask.png --query b.png a.png "
                            "--query photos --query photos/1.png", capsys)
    assert status == 0 and not err
    names = [line.split(":")[0] for line in out.splitlines()]
    assert names == [os.path.join("predictions", f"{n}.png") for n in "ba1234"]


def test_one_query_goes_to_a_file(here, capsys):
    status, out, err = celp(ONE, capsys)
    assert status == 0 and not err and out.startswith("prediction.png: ")
    assert pixels("prediction.png").shape == (161, 161)
    assert pixels("prediction_overlay.png").shape == (161, 161, 3)
    assert celp(f"{ONE} --out new/deep/m.PNG", capsys)[0] == 0 and (here / "new/deep").is_dir()
    refused(f"{ONE} --out m.jpg", capsys, "m.jpg", ".png")
    refused(
        "--support a.png --mask a_mask.png --query photos --out m.png", capsys, "m.png", "folder"
    )


def test_a_file_is_replaced_if_predict_wrote_it_and_that_is_said(here, capsys):
    assert celp(f"{ONE} --out m.png", capsys)[0] == 0
    first = pixels("m.png")
    assert is_own_file(here / "m.png") and is_own_file(here / "m_overlay.png")
    status, out, _ = celp(f"{ONE} --out m.png", capsys)
    assert status == 0 and out.startswith("m.png (replaced): ")
    assert np.array_equal(pixels("m.png"), first)
    Image.fromarray(first).save("m.png")  # somebody changed it
    refused(f"{ONE} --out m.png", capsys, "m.png is there already", "--out")
    (here / "m.png").unlink()
    (here / "m_overlay.png").write_text("mine")
    refused(f"{ONE} --out m.png", capsys, "m_overlay.png is there already")


def test_inputs_are_never_replaced(here, capsys):
    assert celp(f"{ONE} --out m.png", capsys)[0] == 0  # an own file, now an input
    for name in ("a.png", "a_mask.png", "photos/1.png", "../" + here.name + "/a.png"):
        refused(f"{ONE} --out {name}", capsys, "is read by this command")
    refused("--support a.png --mask a_mask.png --query m.png --out m.png", capsys, "m.png is read")
    refused("--support a.png --mask a_mask.png --query photos --out photos", capsys, "is read by")
    refused(f"{ONE} --out a.png/m.png", capsys, "a.png is no folder")


def test_a_folder_that_cannot_be_written_is_named_before_any_work(here, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    refused(f"{ONE} --out there/m.png", capsys, "there/m.png cannot be written", "is read-only")


def test_two_queries_of_one_name_are_refused(here, capsys):
    Image.new("RGB", (20, 20)).save("photos/1.jpg")
    refused("--support a.png --mask a_mask.png --query photos", capsys, "1.jpg", "1.png", "both")
    (here / "photos/1.jpg").unlink()
    Image.new("RGB", (20, 20)).save("photos/1_overlay.bmp")
    refused("--support a.png --mask a_mask.png --query photos", capsys, "1_overlay.bmp", "both")


def test_a_folder_is_its_photographs_by_name(here):
    for name in ("z.JPG", ".hidden.png", "notes.txt", "b.tiff"): (here / "photos" / name).touch()
    (here / "photos/folder.png").mkdir()
    names = [path.name for path in query_files([here / "photos"])]
    assert names == ["1.png", "2.png", "3.png", "4.png", "b.tiff", "z.JPG"]
    (here / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: there is no photograph"):
        query_files([here / "empty"])
    files = output_files([here / "a.png"], None, several=True)
    assert [str(p) for p in files[here / "a.png"]] == [
        os.path.join("predictions", name) for name in ("a.png", "a_overlay.png")
    ]


# --- photographs that cannot be read


def test_each_photograph_is_decoded_once(here, capsys, monkeypatch):
    "The supports too."
    read = []
    def counted(path):
        read.append(str(path))
        return read_photograph(path)
    monkeypatch.setattr("celp_nb.engine.segmenter.read_photograph", counted)
    status, out, _ = celp("--support a.png --mask a_mask.png --query photos b.png --out m", capsys)
    queries = [os.path.join("photos", f"{k}.png") for k in (1, 2, 3, 4)]
    assert status == 0 and len(out.splitlines()) == 5
    assert sorted(read) == sorted(["a.png", "b.png", *queries])


def test_unreadable_queries_are_named_left_out_and_counted(here, capsys):
    whole = (here / "photos/2.png").read_bytes()
    (here / "photos/2.png").write_bytes(whole[:500])
    Image.new("RGB", (5, 5)).save("photos/dot.png")
    status, out, err = celp("--support a.png --mask a_mask.png --query photos --out m", capsys)
    assert status == 1
    assert [line.split(":")[0] for line in out.splitlines()] == [
        os.path.join("m", f"{k}.png") for k in (1, 3, 4)
    ]
    broken, dot, count = err.splitlines()
    assert "2.png" in broken and broken.endswith("It is left out.")
    assert "dot.png" in dot and "5x5" in dot
    assert count.startswith("celp: 2 of 5 queries")
    assert not (here / "m/2.png").exists() and not (here / "m/dot.png").exists()
    for k in (1, 3, 4): (here / f"photos/{k}.png").unlink()
    status, out, err = celp("--support a.png --mask a_mask.png --query photos --out n", capsys)
    assert status == 1 and not out and "none of the queries" in err and not (here / "n").exists()
    refused("--support a.png --mask a_mask.png --query photos/2.png", capsys, "2.png", "truncated")


# --- marks


def test_a_box_stands_for_its_mask(here, scenes, capsys):
    mask = np.zeros((161, 161), np.uint8)
    mask[20:90, 30:161] = 1
    Image.fromarray(mask).save("box.png")
    assert celp("--support a.png --mask box.png --query photos/1.png --out m.png", capsys)[0] == 0
    assert (
        celp("--support a.png --box 20,30,90,161 --query photos/1.png --out box_out.png", capsys)[0]
        == 0
    )
    assert np.array_equal(pixels("m.png"), pixels("box_out.png"))
    assert celp("--support a.png b.png --box 20,30,90,161 --box 0,0,50,60 --query photos/1.png "
                "--out two.png", capsys)[0] == 0
    assert not np.array_equal(pixels("two.png"), pixels("box_out.png"))


def test_a_point_says_what_it_marks(here, scenes, capsys):
    y, x = (int(k) for k in np.argwhere(scenes[0][1] == CLASS)[500])
    status, out, err = celp(f"--support a.png --point {y},{x} --query photos/1.png", capsys)
    segmenter = Segmenter.from_pretrained(MODEL)
    mask = point_mask(scenes[0][0], (y, x), segmenter.backbone, 161)
    said, _ = out.splitlines()
    n = int(mask.sum())
    assert status == 0 and not err and mask[y, x] == 1
    assert said == f"a.png: the point {y},{x} marks {n / mask.size:.1%} ({n:,} of 25,921 pixels)"
    expected = segmenter.set_support(scenes[0][0], mask).predict(scenes[2][0]).mask
    assert np.array_equal(pixels("prediction.png") == 255, expected)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--support a.png", ["nothing", "--mask, --box or --point"]),
        ("--box 1,2,3,4", ["no support"]),
        ("--support a.png b.png --box 1,2,3,4", ["2 --support and 1 --box"]),
        ("--support a.png --mask a_mask.png b_mask.png", ["1 --support and 2 --mask"]),
        ("--support a.png --mask a_mask.png --point 3,4", ["--mask and --point"]),
        ("--support a.png --box 1,2,3", ["--box 1,2,3", "4 whole numbers"]),
        ("--support a.png --point 1,2,3", ["--point 1,2,3", "2 whole numbers"]),
        ("--support a.png --point 1.5,2", ["--point 1.5,2", "whole numbers"]),
        ("--support a.png --box 1,2,162,4", ["a.png", "1,2,162,4", "161x161", "y1 <= 161"]),
        ("--support a.png --box 9,9,9,12", ["a.png", "9,9,9,12"]),
        ("--support a.png --box=-1,2,3,4", ["a.png", "-1,2,3,4"]),
        ("--support a.png --point 161,2", ["a.png", "161,2", "y < 161"]),
        ("--support a.png --mask gone.png", ["gone.png"]),
        ("--support a.png --mask a_mask.png --value 4", ["a_mask.png", "4"]),
        ("--support gone.png --mask a_mask.png", ["gone.png"]),
        ("--support a.png --mask a_mask.png --query gone.png", ["gone.png"]),
        ("--support a.png --mask a_mask.png --device cuda", ["device is cuda"]),
        ("--support a.png --mask a_mask.png --weights gone.pth", ["gone.pth"]),
    ],
)
def test_mistakes_cost_a_sentence(line, words, here, capsys):
    if "cuda" in line and torch.cuda.is_available(): pytest.skip("there is a GPU")
    query = "" if "--query" in line else "--query photos/1.png"
    refused(f"{line} {query}", capsys, *words)


@pytest.mark.parametrize(
    "line, photo",
    [
        (ONE, "photos/1.png"),
        ("--query photos/1.png --support a.png --mask a_mask.png", "a_mask.png"),
    ],
)
def test_a_model_that_is_left_out_is_missed(line, photo, here, capsys):
    assert main(["predict", *line.split()]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"celp: no model is named: {photo}") and err.count("\n") == 1


def test_files_of_another_kind_are_named_without_pythons_words(here, capsys):
    (here / "list.csv").write_text("class,query\n1,2\n")
    (here / "text.png").write_text("no photograph")
    refused("--support a.png --mask a_mask.png --query text.png", capsys, "text.png", "format")
    assert main(["predict", "list.csv", *ONE.split()]) == 1
    err = capsys.readouterr().err
    assert "list.csv is not a checkpoint" in err and "load failed); give" in err, err
    refused("--support text.png --mask a_mask.png --query a.png", capsys, "no known format")


def test_everything_is_checked_before_the_model_is_read(here, capsys, monkeypatch):
    def unread(*_): raise AssertionError("the model was read")

    monkeypatch.setattr(app_predict.Segmenter, "from_pretrained", unread)
    (here / "broken.png").write_bytes(b"nothing")
    for line in (
        "--support a.png --box 1,2,3,400 --query photos",
        "--support a.png --point 1,200 --query photos",
        "--support a.png --mask photos/1.png --query photos",
        "--support a.png --mask a_mask.png --query broken.png",
        "--support a.png --mask a_mask.png --query photos --out m.png",
        "--support a.png --mask a_mask.png --query photos --out photos",
    ):
        refused(line, capsys)
    assert (
        main(["predict", "samples-pfenett", *ONE.split()]) == 1
    )
    assert "samples-pfenet-ce, samples-pfenet" in capsys.readouterr().err


# --- warnings


def test_an_empty_answer_is_a_warning(here, capsys, monkeypatch):
    segment = Segmenter.predict

    def nothing(self, image):
        found = segment(self, image)
        return found._replace(mask=found.mask & False)

    monkeypatch.setattr(app_predict.Segmenter, "predict", nothing)
    status, out, err = celp(ONE, capsys)
    path = os.path.join("photos", "1.png")
    assert status == 0 and err == f"celp: {path}: nothing was found, the mask is empty.\n"
    assert out == "prediction.png: 0.0% (0 of 25,921 pixels)\n"


def test_a_photograph_for_a_model_of_scenes_is_one_warning(here, capsys):
    for k in (1, 2): Image.open(f"photos/{k}.png").resize((150, 161)).save(f"photos/{k}.png")
    status, out, err = celp("--support a.png --mask a_mask.png --query photos", capsys)
    assert status == 0 and len(out.splitlines()) == 4
    assert err.count("\n") == 1 and "drawn scenes alone" in err


def test_options_without_effect_are_warnings(here, capsys):
    torch.save({"conv1.weight": torch.zeros(2, 2)}, "resnet.pth")
    status, _, err = celp(f"{ONE} --weights resnet.pth --out w.png", capsys)
    assert status == 0 and err.count("\n") == 1 and "resnet.pth are not those of" in err
    assert celp(f"{ONE} --out m.png", capsys)[0] == 0
    assert np.array_equal(pixels("m.png"), pixels("w.png"))
    for mark in ("--box 1,2,30,40", "--point 80,80"):
        status, _, err = celp(f"--support a.png {mark} --value 1 --query b.png", capsys)
        assert status == 0 and err.count("\n") == 1 and "--value had no effect" in err


# --- plugins


PLUGIN = """
import torch

from celp_nb.engine.methods import register_decoder


class Brightest(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Conv2d(width + 1, 2, 1)

    def forward(self, cond, target=None):
        return self.layer(torch.cat([cond.query, cond.prior], 1)), None


register_decoder("Brightest", lambda width, bins: Brightest(width))
"""


@pytest.fixture
def forgotten():
    "What a test registers is gone afterwards."
    tables = (DECODERS, METHODS)
    before = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, before):
        table.clear()
        table.update(rows)


def test_a_model_of_a_plugin_is_used_with_it(here, capsys, forgotten):
    (here / "mine.py").write_text(PLUGIN)
    fingerprint = backbone_fingerprint(load_backbone("tiny"))
    fields = {"backbone": "tiny", "weights": None, "fingerprint": fingerprint, "seed": 0}
    sizes = {"in_channels": 240, "width": 8, "bins": (1.0,), "side": 161, "plugin": ("mine.py",)}
    torch.manual_seed(0)
    net = FewShotModel(240, torch.nn.ModuleDict({"layer": torch.nn.Conv2d(9, 2, 1)}), 8)
    save_checkpoint("m.pt", model=net.state_dict(), method="Brightest", fold=0, **fields, **sizes)
    line = f"predict m.pt {ONE}".split()
    assert main(line) == 1 and "--plugin mine.py" in capsys.readouterr().err
    assert not (here / "prediction.png").exists()
    assert main([*line, "--plugin", "mine.py"]) == 0
    assert capsys.readouterr().out.startswith("prediction.png: ")
    refused(f"{ONE} --plugin gone.py", capsys, "gone.py")


# --- precision, bar


def test_precision_is_an_option(here, capsys):
    assert celp(f"{ONE} --out m.png", capsys)[0] == 0
    assert celp(f"{ONE} --out h.png --precision bf16 --device cpu", capsys)[0] == 0
    half = Segmenter.from_pretrained(MODEL, precision="bf16")
    half.set_support("a.png", "a_mask.png")
    assert np.array_equal(pixels("h.png") == 255, half.predict("photos/1.png").mask)
    assert (pixels("h.png") != pixels("m.png")).mean() < 0.05


def test_a_bar_is_shown_to_whoever_looks(here, capsys, monkeypatch):
    plain = celp("--support a.png --mask a_mask.png --query photos", capsys)[1]
    assert "\r" not in plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, _ = celp("--support a.png --mask a_mask.png --query photos --out m", capsys)
    assert status == 0 and "█" in out and "4/4" in out
    lines = {part.strip() for part in out.replace("\n", "\r").split("\r")}
    assert {line.replace("predictions", "m") for line in plain.splitlines()} <= lines
