"""Models that come with the project: how they are shipped, named, offered, and on which weights."""

import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.models as tv
from folders import SHARED
from PIL import Image

from celp_nb import model_card
from celp_nb.app import predict as app_predict
from celp_nb.app.cli import main
from celp_nb.app.explorer import chosen_image, first_choice
from celp_nb.engine import pretrained
from celp_nb.engine.backbones import BACKBONES, backbone_fingerprint, load_backbone
from celp_nb.engine.checkpoints import MORE_FIELDS, load_checkpoint, load_model, save_checkpoint
from celp_nb.engine.methods import METHODS, build_model
from celp_nb.engine.pretrained import (
    PRETRAINED,
    first_offered,
    half_precision,
    ship_model,
)
from celp_nb.engine.segmenter import Segmenter

ROOT = Path(__file__).resolve().parent.parent
NAME = "photos-mobilenetv2"
URL = BACKBONES["mobilenet_v2"].weights.url
RNG = np.random.default_rng(0)
PHOTOS = [RNG.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(2)]
MASK = np.zeros((60, 80), np.uint8)
MASK[10:50, 20:60] = 1


def network(seed):
    "Weights of a MobileNetV2 that nobody has trained."
    torch.manual_seed(seed)
    return tv.mobilenet_v2().state_dict()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "The folder where torchvision keeps what it has fetched; there is no network."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def no_network(*_, **__): raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def trained(tmp_path):
    "What a run writes: a small model on MobileNetV2, and the file of the backbone's weights."
    weights = tmp_path / "mine" / "mobilenet.pth"
    weights.parent.mkdir()
    torch.save(network(1), weights)
    fingerprint = backbone_fingerprint(load_backbone("mobilenet_v2", weights))
    torch.manual_seed(0)
    model = build_model(128, 8, (1.0, 0.5), method=METHODS["PFENet+CE"])
    for p in model.parameters(): p.data += 0.3 * torch.randn_like(p)
    path = tmp_path / "mine" / "PFENet+CE.pt"
    save_checkpoint(
        path, model=model.state_dict(), method="PFENet+CE", fold=0, backbone="mobilenet_v2",
        weights=str(weights), fingerprint=fingerprint, in_channels=128, width=8, bins=(1.0, 0.5),
        side=57, seed=3, rules="literature", selected="last checkpoint", steps=7000, batch=4,
        commit="abc1234", delta=0.25, contrast=1.0, train_classes=["cat", "dog"], held_classes=[],
        train_images=["a", "b", "c"], plugin=(), data={"train": "1", "val": "2"},
    )
    return path, weights, model.eval()


@pytest.fixture
def photos(trained, tmp_path, monkeypatch):
    "The shipped model, first in the table of names, as the real one would be."
    before = dict(PRETRAINED)
    table = {NAME: tmp_path / "shipped.pt"}  # never the real file, where there is one
    table |= {name: path for name, path in before.items() if name != NAME}
    PRETRAINED.clear()
    PRETRAINED.update(table)
    ship_model(trained[0], PRETRAINED[NAME], "## What it scores\n\n12.3 ± 4.5")
    yield NAME
    PRETRAINED.clear()
    PRETRAINED.update(before)


def logits_of(segmenter):
    return segmenter.set_support(PHOTOS[0], MASK).predict(PHOTOS[1]).logits


# --- what is shipped


def test_a_shipped_model_is_half_as_large_and_says_all_that_the_runs_file_says(trained, photos):
    path, _, model = trained
    before, saved = load_checkpoint(path), load_checkpoint(PRETRAINED[NAME])
    for name, x in model.state_dict().items():
        half = saved["model"][name]
        assert half.dtype == torch.float16 and torch.equal(half, x.half())
    others = {k: v for k, v in saved.items() if k not in ("model", "weights", "about")}
    assert others == {k: v for k, v in before.items() if k not in ("model", "weights")}
    assert saved["weights"] is None and "12.3" in saved["about"]
    assert str(path.parent).encode() not in PRETRAINED[NAME].read_bytes()


def test_what_cannot_be_shipped_is_refused(trained, tmp_path):
    path, *_ = trained
    saved = load_checkpoint(path)
    large = {**saved["model"], "reduce.0.weight": saved["model"]["reduce.0.weight"] + 1e6}
    for name, value, said in (("model", large, "reduce.0.weight"), ("weights", "random", "random")):
        save_checkpoint(tmp_path / "other.pt", **{**saved, name: value})
        with pytest.raises(ValueError, match=said):
            ship_model(tmp_path / "other.pt", tmp_path / "out.pt")
    with pytest.raises(FileNotFoundError): ship_model(tmp_path / "gone.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    whole = {"n": torch.tensor([3])}
    assert torch.equal(half_precision(whole)["n"], whole["n"])


def test_the_tool_puts_a_model_into_the_package(trained, photos, tmp_path, monkeypatch, capsys):
    PRETRAINED[NAME].unlink()
    card = tmp_path / "card.md"

    def bundle(*arguments):
        monkeypatch.setattr(sys, "argv", ["bundle.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "tools" / "bundle.py"), run_name="__main__")

    card.write_text("mIoU TO FILL IN")
    for wrong in ((), (trained[0], "samples-pfenett"), (trained[0], NAME, card)):
        with pytest.raises(SystemExit) as stop: bundle(*wrong)
        assert isinstance(stop.value.code, str) and not PRETRAINED[NAME].exists()
    card.write_text("mIoU 55.5\n")
    bundle(trained[0], NAME, card)
    assert load_checkpoint(PRETRAINED[NAME])["about"] == "mIoU 55.5"
    assert f"# {NAME}" in capsys.readouterr().out


def test_the_card_in_the_file_is_the_page():
    page = (ROOT / f"docs/{NAME}.md").read_text(encoding="utf-8")
    assert load_checkpoint(ROOT / f"celp_nb/weights/{NAME}.pt")["about"] == page.strip()


def test_a_card_says_what_the_file_says(photos, tmp_path):
    card = model_card(NAME)
    for words in (
        f"# {NAME}\n", "cat, dog", "7,000 steps of 4 episodes", "seed 3", "commit abc1234",
        "rules literature", "57 pixels", "PFENet+CE", "weight 1, δ = 0.25", "12.3 ± 4.5",
        load_checkpoint(PRETRAINED[NAME])["fingerprint"], "| 3, named in the file",
    ):
        assert words in card, words
    known = load_checkpoint(PRETRAINED["samples-pfenet"])
    needed = {name: value for name, value in known.items() if name not in MORE_FIELDS}
    save_checkpoint(tmp_path / "older.pt", **needed)  # of before these facts were written
    older = model_card(tmp_path / "older.pt")
    assert "PFENet, decoder of 64 channels" in older and "contrastive" not in older
    saved = load_checkpoint(PRETRAINED[NAME]) | {"contrast": 0.0, "delta": None}
    save_checkpoint(tmp_path / "alone.pt", **saved)
    assert "contrastive" not in model_card(tmp_path / "alone.pt")
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="holds no trained model"):
        model_card(tmp_path / "other.pt")


@pytest.mark.parametrize("field, value", [("steps", "many"), ("train_images", 3), ("about", 1)])
def test_a_fact_that_cannot_be_is_named(field, value, trained, tmp_path):
    save_checkpoint(tmp_path / "odd.pt", **{**load_checkpoint(trained[0]), field: value})
    with pytest.raises(ValueError, match=f"'{field}' is {value!r}, not "):
        load_model(tmp_path / "odd.pt")


# --- the backbone's weights


def test_the_backbone_is_the_one_that_torchvision_has_fetched(trained, photos, hub):
    path, weights, model = trained
    (hub / Path(URL).name).write_bytes(weights.read_bytes())
    segmenter = Segmenter.from_pretrained(NAME)
    saved = load_checkpoint(path)
    assert backbone_fingerprint(segmenter.backbone) == saved["fingerprint"]
    assert segmenter.side == 57 and segmenter.rules.name == "literature"
    given = Segmenter.from_pretrained(NAME, weights)
    assert np.array_equal(logits_of(segmenter), logits_of(given))
    model.load_state_dict(half_precision(model.state_dict()))
    alone = Segmenter(model, given.backbone, 57, rules=given.rules)
    assert np.array_equal(logits_of(alone), logits_of(given))


def test_without_a_network_and_a_file_it_says_what_helps(photos, hub):
    with pytest.raises(RuntimeError, match="could not be downloaded") as error:
        Segmenter.from_pretrained(NAME)
    said = str(error.value)
    assert URL in said and "weights=PATH" in said and "--weights PATH" in said and "\n" not in said


@pytest.mark.parametrize("fetched", [False, True])
def test_other_weights_are_refused_in_a_sentence(fetched, trained, photos, hub, tmp_path):
    _, weights, _ = trained
    if fetched: (hub / Path(URL).name).write_bytes(weights.read_bytes())
    other, misfit = tmp_path / "other.pth", tmp_path / "resnet.pth"
    torch.save(network(2), other)
    torch.save({"conv1.weight": torch.zeros(2, 2)}, misfit)
    said = (
        f"{NAME} was trained on mobilenet_v2 with the weights .*, not .* of .*other.pth; use torch"
    )
    with pytest.raises(ValueError, match=said) as error: Segmenter.from_pretrained(NAME, other)
    assert URL in str(error.value)
    with pytest.raises(ValueError, match="resnet.pth do not fit this network"):
        Segmenter.from_pretrained(NAME, misfit)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        Segmenter.from_pretrained(NAME, tmp_path / "gone.pth")


def test_torchvisions_file_that_is_another_is_refused(photos, hub):
    torch.save(network(2), hub / Path(URL).name)
    with pytest.raises(ValueError, match=f"{NAME} was trained on mobilenet_v2 with the weights"):
        Segmenter.from_pretrained(NAME)


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason=f"no weights in {SHARED}")
def test_the_shared_weights_are_torchvisions_wherever_they_lie(hub):
    file = SHARED / "weights" / "mobilenet_v2_imagenet.pth"
    (hub / Path(URL).name).write_bytes(file.read_bytes())
    prints = {backbone_fingerprint(load_backbone("mobilenet_v2", w)) for w in (None, file)}
    assert prints == {"bfb311c72e"}


def test_celp_predict_takes_the_weights_as_a_file(
    trained, photos, hub, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, pixels in (("a", PHOTOS[0]), ("b", PHOTOS[1]), ("mask", MASK)):
        Image.fromarray(pixels).save(f"{name}.png")
    line = ["predict", NAME, "--support", "a.png", "--mask", "mask.png", "--query", "b.png"]
    assert main(line) == 1
    out, err = capsys.readouterr()
    assert "prediction" not in out  # torch.hub says what it fetches
    assert err.startswith("celp: the ImageNet weights") and err.count("\n") == 1
    assert "--weights PATH" in err
    assert not Path("prediction.png").exists()
    assert main([*line, "--weights", str(trained[1])]) == 0
    expected = Segmenter.from_pretrained(NAME, trained[1]).set_support(PHOTOS[0], MASK)
    mask = np.array(Image.open("prediction.png"))
    assert np.array_equal(mask == 255, expected.predict(PHOTOS[1]).mask)


# --- what is offered first


def test_the_first_of_the_table_is_offered_first(photos, trained, hub):
    assert first_offered() == NAME
    with pytest.raises(ValueError, match=f"such as celp predict {NAME} --support"):
        app_predict.check_model_is_given("a.jpg")
    with pytest.warns(UserWarning, match=f"do not trust the mask; take {NAME}, or train"):
        pretrained.warn_of_photographs(PHOTOS)
    with pytest.raises(FileNotFoundError, match=f"give one of {NAME}, samples-pfenet-ce, samples"):
        Segmenter.from_pretrained("photos")


def test_without_it_nothing_is_said_of_it():
    assert first_offered() in PRETRAINED and all(path.is_file() for path in PRETRAINED.values())
    if "photos" in first_offered(): return
    with pytest.warns(UserWarning, match="do not trust the mask; train on photographs"):
        pretrained.warn_of_photographs(PHOTOS)


def test_the_explorer_reads_scenes_and_photographs_with_their_own_models(
    photos, trained, hub, tmp_path
):
    assert first_choice()[1].model == "samples-pfenet-ce"
    Image.fromarray(PHOTOS[0]).save(tmp_path / "photo.png")
    choices, first = first_choice(str(tmp_path))
    assert first.model == NAME
    with pytest.raises((ValueError, OSError, RuntimeError), match="could not be downloaded"):
        chosen_image(first, choices)
    name, shown, words = chosen_image(first._replace(weights=str(trained[1])), choices)
    assert "mobilenet_v2" in words and shown.model and name.startswith("photo.png_")
    assert "do not trust" not in words  # it has seen photographs
