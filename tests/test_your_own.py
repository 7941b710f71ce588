"""Somebody else's decoder, loss and backbone: registered, tried, trained, saved, loaded."""

import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn

import celp_nb
from celp_nb.app.cli import main
from celp_nb.app.commands import command_functions
from celp_nb.bundled.scenes import samples
from celp_nb.engine.backbones import (
    BACKBONES,
    backbone_fingerprint,
    check_stages,
    feature_channels,
    image_features,
    load_backbone,
    register_backbone,
)
from celp_nb.engine.checkpoints import load_model
from celp_nb.engine.feature_bank import bytes_of_an_image, feature_bank
from celp_nb.engine.methods import (
    BUILT_IN_METHODS,
    DECODERS,
    METHODS,
    check_decoder,
    find_method,
    register_decoder,
)
from celp_nb.engine.networks import resnet_layers
from celp_nb.engine.plugins import load_plugin
from celp_nb.engine.segmenter import Segmenter
from celp_nb.losses import dice
from celp_nb.ops import VOID
from celp_nb.repro.comparison import compare_with_paper, comparison_text, read_runs
from celp_nb.repro.config import change_config, make_config, read_config
from celp_nb.repro.defaults import resolve, warn_of_bins
from celp_nb.repro.runs import evaluate_run, run, train_run

SMALL = make_config(
    folds=(0,),
    crop=57,
    side=97,
    width=16,
    iterations=3,
    pairs=1,
    photographs=40,
    shots=(1, 2),
    methods=("Mine", "Mine+CE"),
    trivial=False,
    cache_views=0,
)

DECODER = """
import torch
from torch import nn
from celp_nb.engine.methods import register_decoder

class Mine(nn.Module):
    def __init__(self, width, bins):
        super().__init__()
        self.mix, self.out = nn.Conv2d(2 * width + 1, width, 1), nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, cond, target=None):
        prototype = cond.prototype[:, :, None, None].expand_as(cond.query)
        x = self.mix(torch.cat([cond.query, prototype, cond.prior], 1)).relu()
        return self.out(x), None

register_decoder("Mine", Mine)
"""
VIT = """
import torch.nn.functional as F
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer
from celp_nb.engine.backbones import register_backbone

class Patches(nn.Module):
    def __init__(self, vit):
        super().__init__()
        self.project, at = vit.conv_proj, vit.encoder.pos_embedding[0, 1:]
        self.at = nn.Parameter(at.T.unflatten(1, (4, 4))[None])

    def forward(self, x):
        x = self.project(x)
        return x + F.interpolate(self.at, x.shape[-2:], mode="bicubic")

class Blocks(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x.flatten(2).mT).mT.unflatten(2, x.shape[-2:])

def cut(vit):
    first, second, third = vit.encoder.layers
    return nn.Sequential(Patches(vit), Blocks([first])), Blocks([second]), Blocks([third])

build = lambda: VisionTransformer(56, 14, 3, num_heads=2, hidden_dim=32, mlp_dim=48)
register_backbone("vit14", build, cut, stride=14, remainder=0)
"""
TIMM = """
import timm
from torch import nn
from celp_nb.engine.backbones import register_backbone

def cut(net):
    layer2 = nn.Sequential(net.conv1, net.bn1, net.act1, net.maxpool, net.layer1, net.layer2)
    return layer2, net.layer3, net.layer4

register_backbone("timm", lambda: timm.create_model("resnet10t", output_stride=8), cut)
"""


@pytest.fixture(autouse=True)
def tables():
    "The tables of decoders, methods and backbones, put back after a test; plugins are forgotten."
    before = [dict(table) for table in (DECODERS, METHODS, BACKBONES)]

    def restore():
        for table, rows in zip((DECODERS, METHODS, BACKBONES), before):
            table.clear()
            table.update(rows)
        for name in [n for n in sys.modules if n.startswith("celp_plugin_")]: del sys.modules[name]

    yield restore
    restore()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plugin(folder, text, name="my.py"):
    (folder / name).write_text(text)
    return str(folder / name)


class Plain(nn.Module):
    "A decoder that keeps the contract."
    def __init__(self, width, bins):
        super().__init__()
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, cond, target=None): return self.out(cond.query), None


def resnet(width=1):
    return tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1])


# --- the whole way: run, load, evaluate, resume


def test_a_run_whose_files_have_moved_is_scored_with_their_new_places(tmp_path, tables, capsys):
    def command(line):
        tables()  # as in a new process
        return main(line.split()), capsys.readouterr().err

    weights = tmp_path / "tiny.pth"
    shutil.copy(Path(celp_nb.__file__).parent / "weights/tiny.pth", weights)
    own = plugin(tmp_path, DECODER)
    config = change_config(SMALL, plugin=(own,), methods=("Mine",), weights=str(weights))
    before = run(config, tmp_path / "run").miou.tolist()
    (tmp_path / "new").mkdir()
    weights, own = (Path(p).rename(tmp_path / "new" / Path(p).name) for p in (weights, own))
    line = f"evaluate {tmp_path / 'run'}"
    assert command(line)[0] == 1
    status, said = command(f"{line} --plugin {own}")
    assert status == 1 and "there is no weights file" in said
    for form in ("", f" --fold 0 --episodes {tmp_path / 'run/fold0/episodes.csv'}"):
        status, said = command(f"{line}{form} --plugin {own} --weights {weights}")
        assert status == 0, said
    assert pd.read_csv(tmp_path / "run/results.csv").miou.tolist() == before
    status, said = command(f"evaluate --published x.pth --weights {weights}")
    assert status == 1 and "--weights is for a run whose files are elsewhere now" in said


@pytest.mark.parametrize("kind", ["tiny", "vit14", "timm"])
def test_a_plugin_trains_with_and_without_ce(kind, tmp_path, tables):
    if kind == "timm": pytest.importorskip("timm", reason="timm is not installed")
    files = [plugin(tmp_path, DECODER)]
    if kind != "tiny": files.append(plugin(tmp_path, {"vit14": VIT, "timm": TIMM}[kind], "net.py"))
    weights = None if kind == "tiny" else "random"
    settings = dict(plugin=tuple(files), backbone=kind, weights=weights)
    if kind == "vit14": settings |= dict(crop=56, side=98)
    config = change_config(SMALL, **settings)
    train_run(config, tmp_path / "run")
    once = run(config, tmp_path / "run", resume=True)
    assert once.method.tolist() == ["Mine", "Mine+CE"] * 2 and once.miou.notna().all()

    tables()  # as in a new process
    assert "Mine" not in METHODS
    again = evaluate_run(tmp_path / "run")  # the folder knows its plugins
    same = ["method", "shots", "miou", "fb_iou"]
    assert again[same].equals(once[same])

    file = tmp_path / "run/fold0/Mine+CE.pt"
    model, saved = load_model(file)
    assert type(model.decoder).__name__ == "Mine" and saved["plugin"] == tuple(files)
    segmenter = Segmenter.from_pretrained(file)
    assert segmenter.backbone.stride == (14 if kind == "vit14" else 8)
    picture = np.zeros((60, 80, 3), np.uint8)
    segmenter.set_support([picture], [np.ones((60, 80), np.uint8)])
    assert segmenter.predict(picture).mask.shape == (60, 80)


def test_a_training_goes_on_from_its_checkpoint(tmp_path, tables, monkeypatch):
    config = change_config(SMALL, plugin=(plugin(tmp_path, DECODER),), shots=(1,))
    run(config, tmp_path / "once")
    from celp_nb.engine import training

    monkeypatch.setattr(training, "SAVE_AFTER", 0)
    train_step, done = training.train_step, []

    def stopping(*args, **kwargs):
        if len(done) == 4: raise KeyboardInterrupt  # two methods a step: after the second step
        done.append(1)
        return train_step(*args, **kwargs)
    monkeypatch.setattr(training, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt): run(config, tmp_path / "stopped")
    monkeypatch.setattr(training, "train_step", train_step)
    tables()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    moved = change_config(config, plugin=(plugin(moved, DECODER),))  # the file may have moved
    run(moved, tmp_path / "stopped", resume=True)
    losses = [(tmp_path / name / "fold0/losses.csv").read_text() for name in ("once", "stopped")]
    assert losses[0] == losses[1]
    assert read_config(tmp_path / "stopped").model.plugin == moved.model.plugin


def test_a_model_of_a_plugin_says_which_to_give(tmp_path, tables):
    path = plugin(tmp_path, DECODER + VIT)
    config = dict(plugin=(path,), backbone="vit14", weights="random", crop=56, side=98, shots=(1,))
    train_run(change_config(SMALL, **config), tmp_path / "run")
    file = tmp_path / "run/fold0/Mine.pt"
    tables()
    (tmp_path / "my.py").write_text("raise SystemExit('imported')\n")
    words = "the method Mine and the backbone vit14 of a plugin; give --plugin "
    with pytest.raises(ValueError, match=words) as e: load_model(file)
    assert path in str(e.value) and f"load_plugin({path!r})" in str(e.value)
    (tmp_path / "my.py").write_text(VIT)
    load_plugin(path)
    with pytest.raises(ValueError, match="with the method Mine of a plugin"):
        Segmenter.from_pretrained(file)


def test_the_command_takes_several_plugins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, DECODER)
    plugin(tmp_path, VIT, "net.py")
    line = "run --plugin my.py --plugin net.py --methods Mine Mine+CE --backbone vit14 --name mine"
    line += " --weights random --fold 0 --iterations 2 --pairs 1 --side 70 --crop 56 --width 8"
    assert main(line.split()) == 0
    kept = json.loads((tmp_path / "runs/mine/config.json").read_text())["model"]["plugin"]
    assert kept == [str(tmp_path / "my.py"), str(tmp_path / "net.py")]
    capsys.readouterr()
    assert main(["table", "runs/mine"]) == 0
    assert "The paper has no row for Mine, Mine+CE on vit14." in capsys.readouterr().out
    assert main(["run", "--plugin", "none.py"]) == 1
    assert f"there is no plugin {tmp_path / 'none.py'}; give" in capsys.readouterr().err
    assert "plugin" not in str(command_functions(["presets"])["presets"])


# --- the paper's tables beside a third decoder


def test_presets_and_tables_are_the_papers_with_a_third_decoder():
    code = """
from torch import nn
from celp_nb.engine.methods import METHODS, register_decoder
register_decoder("Third", lambda width, bins: nn.Identity())
from celp_nb.repro.defaults import FOLDER_DEFAULTS
from celp_nb.repro.presets import PRESETS, presets_table
from celp_nb.repro.tables import SYSTEMS
import celp_nb.repro.comparison
assert "Third+CE" in METHODS
papers = ("PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE")
assert FOLDER_DEFAULTS.model.methods == papers
assert [row.split()[0] for row in SYSTEMS.rows] == [*papers, *3 * ["PFENet+CE"], *3 * ["CyCTR+CE"]]
assert len(PRESETS) == 15 and "Third" not in presets_table() and len(presets_table()) > 1000
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def results_folder(folder, methods):
    folder.mkdir()
    config = make_config(methods=("PFENet+CE", "PFENet+CE delta=0.4", "Mine"))
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    facts = dict(data="pascal5i", backbone="resnet50", fold=0, shots=1, seed=0, iterations=9)
    table = pd.DataFrame({"method": methods}).assign(**facts, miou=50.0, fb_iou=60.0, episodes=5)
    table.to_csv(folder / "results.csv", index=False)
    return folder


def test_rows_of_another_decoder_stand_without_the_papers(tmp_path):
    methods = ["all foreground", "PFENet+CE", "PFENet+CE delta=0.4", "Mine"]
    compared = compare_with_paper(read_runs([results_folder(tmp_path / "a", methods)]))
    assert set(compared.method) == {"PFENet+CE", "PFENet+CE delta=0.4", "Mine"}
    paper = compared[compared.metric == "mIoU"].set_index("method").paper
    assert paper["PFENet+CE"].notna().all() and paper["Mine"].isna().all()
    assert paper["PFENet+CE delta=0.4"].isna().all(), "a variant, not the paper's row"
    said = "The paper has no row for Mine, PFENet+CE delta=0.4 on resnet50."
    assert said in comparison_text(compared)
    only = compare_with_paper(read_runs([results_folder(tmp_path / "b", ["Mine"])]))
    assert set(only.method) == {"Mine"}
    file = tmp_path / "b/results.csv"  # a file alone does not say what Mine is
    with pytest.raises(ValueError, match="no row of the results is of PFENet"):
        compare_with_paper(read_runs([file]))


# --- decoders: names, parts, the trial


def test_a_registered_decoder_gives_two_methods():
    register_decoder("Mine", Plain, dice, mean_over="images", whole_support=True)
    assert find_method("Mine").contrast == 0 and find_method("Mine+CE").contrast == 0.1
    assert find_method("Mine+CE delta=0.4").delta == 0.4
    assert DECODERS["Mine"] == (Plain, dice, "images", True, "-")
    assert BUILT_IN_METHODS == ("PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE")
    check_decoder("Mine")


@pytest.mark.parametrize(
    "name", ["", "two words", "Mine+CE", "a/b", "a\\b", "..", ".hidden", "-x", "1e3", "a.b", None]
)
def test_a_name_is_one_word(name):
    with pytest.raises(ValueError, match="is no name for a decoder"): register_decoder(name, Plain)
    with pytest.raises(ValueError, match="is no name for a backbone"):
        register_backbone(name, resnet, resnet_layers)
    assert len(METHODS) == 4


@pytest.mark.parametrize("name", ["PFENet", "pfenet", "last", "Step"])
def test_a_taken_name_of_a_decoder(name):
    with pytest.raises(ValueError, match=f"there is a decoder '{name}' already"):
        register_decoder(name, Plain)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("Mine", "Plain"), "build and loss of the decoder Mine must be functions"),
        (("Mine", Plain, "dice"), "build and loss of the decoder Mine must be functions"),
    ],
)
def test_parts_of_a_decoder_that_cannot_be(arguments, words):
    with pytest.raises(ValueError, match=words): register_decoder(*arguments)
    with pytest.raises(ValueError, match="there is no mean_over 'positions'"):
        register_decoder("Mine", Plain, mean_over="positions")
    assert "Mine" not in METHODS and "Mine" not in DECODERS


def answering(forward):
    "A decoder of this forward, a function of itself, its conditioning and the target."
    return type("Odd", (Plain,), {"forward": forward})


MISTAKES = {
    "one channel": (
        answering(lambda self, c, target=None: (self.out(c.query)[:, :1], None)),
        r"its logits are \(2, 1, 8, 8\), not \(2, 2, h, w\)",
    ),
    "one item": (
        answering(lambda self, c, target=None: (self.out(c.query)[:1], None)),
        r"its logits are \(1, 2, 8, 8\), not \(2, 2, h, w\)",
    ),
    "no pair": (
        answering(lambda self, c, target=None: self.out(c.query)),
        r"its forward gives a Tensor, not \(logits, own loss\)",
    ),
    "nothing": (answering(lambda self, c, target=None: None), "its forward gives a NoneType"),
    "a loss per pixel": (
        answering(lambda self, c, target=None: (self.out(c.query), c.prior)),
        r"its own loss is \(2, 1, 8, 8\), not a scalar",
    ),
    "no gradient": (
        answering(lambda self, c, target=None: (self.out(c.query).detach(), None)),
        "RuntimeError: element 0 of tensors does not require grad",
    ),
    "no target": (answering(lambda self, c: None), "TypeError: .* positional argument"),
    "one shot": (
        answering(lambda self, c, target=None: (self.out(c.query + c.support.squeeze(1)), None)),
        "RuntimeError",
    ),
    "no module": (lambda width, bins: len, "build gives a builtin_function_or_method"),
    "no build": (lambda width: Plain(width, ()), "TypeError"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_decoder_is_found_before_a_run(mistake, tmp_path):
    build, words = MISTAKES[mistake]
    register_decoder("Mine", build)
    with pytest.raises(ValueError, match=f"the decoder Mine fails on a trial: .*{words}"):
        run(SMALL, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_decoder_of_one_map_size_is_found_before_a_run():
    class OneSize(Plain):
        def __init__(self, width, bins):
            super().__init__(width, bins)
            self.at = nn.Parameter(torch.zeros(8, 8))  # of the crop of 57 pixels

        def forward(self, cond, target=None): return self.out(cond.query + self.at), None
    register_decoder("Mine", OneSize)
    resolve(change_config(SMALL, side=57))
    with pytest.raises(ValueError, match=r"test_your_own.py, line \d+: RuntimeError: The size"):
        resolve(SMALL)


@pytest.mark.parametrize(
    "loss, words",
    [
        (lambda z, y: F.cross_entropy(z, y), "RuntimeError"),  # at the map's size
        (
            lambda z, y: F.cross_entropy(F.interpolate(z, y.shape[-2:]), y),
            "Target 255 is out of bounds",
        ),
        (lambda z, y: z, "its loss gives .*, not a scalar"),
        (lambda z, y: 0.0, "its loss gives 0.0, not a scalar"),
    ],
)
def test_a_wrong_loss_is_found(loss, words):
    register_decoder("Mine", Plain, loss)
    with pytest.raises(ValueError, match=f"the decoder Mine fails on a trial: .*{words}"):
        check_decoder("Mine")


def test_a_trial_uses_no_random_number_of_the_caller():
    register_decoder("Mine", Plain)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    check_decoder("Mine")
    assert torch.equal(torch.rand(3), expected)


def test_parameters_of_a_transformer_must_be_there():
    register_decoder("Mine", Plain, transformer="decoder.out")
    check_decoder("Mine")
    with pytest.raises(ValueError, match="attention is CyCTR's, and Mine has none"):
        find_method("Mine attention=published")
    register_decoder("Other", Plain, transformer="transformer.")
    with pytest.raises(ValueError, match="none of its parameters begins with 'transformer.'"):
        check_decoder("Other")


# --- backbones: sizes, weights, stages


def load_vit(tmp_path):
    load_plugin(plugin(tmp_path, VIT))
    torch.manual_seed(0)
    return load_backbone("vit14", "random")


def test_sizes_belong_to_the_backbone(tmp_path):
    backbone = load_vit(tmp_path)
    assert (backbone.stride, backbone.remainder) == (14, 0)
    assert feature_channels(backbone) == (64, 32)
    assert image_features(backbone, torch.zeros(1, 3, 98, 98)).high.shape[-2:] == (7, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        register_decoder("Mine", Plain)
        data = resolve(change_config(SMALL, backbone="vit14", weights="random")).data
    assert (data.side, data.crop) == (98, 56)
    assert [str(w.message) for w in caught] == [
        "side 97 is not of the form 14n; 98 is used.",
        "side 57 is not of the form 14n; 56 is used.",
    ]
    with pytest.raises(ValueError, match=r"feature stride \(14\); use 14n pixels, such as 280"):
        resolve(change_config(SMALL, backbone="vit14", weights="random", side=13))


def test_evaluation_asks_the_backbone_for_its_stride(tmp_path):
    backbone, data = load_vit(tmp_path), samples("val")
    bank = feature_bank(backbone, data, 98, 1.0)
    assert bytes_of_an_image(bank, []) == 4 * 7 * 7 * 2 * 32 + 2 * 98**2


class Layer(nn.Conv2d):
    def __init__(self, cin, cout, stride=1): super().__init__(cin, cout, 3, stride, 1)


def stages(*steps):
    "`cut` of a network that is built of three convolutions with these strides."
    widths = [3, 4, 5, 6]
    layers = [Layer(*pair, step) for *pair, step in zip(widths, widths[1:], steps)]
    return lambda net: layers


STAGE_MISTAKES = {
    "stride 16": (stages(8, 2, 1), "layer3 .* gives a map of 3×3 positions .* where 5×5 belong"),
    "stride 4": (stages(4, 1, 1), "layer3 .* gives a map of 9×9 positions"),
    "two sizes": (stages(8, 1, 2), "layer4 .* gives a map of 3×3 positions"),
    "two stages": (lambda net: stages(8, 1, 1)(net)[:2], "must give three modules"),
    "a function": (lambda net: [*stages(8, 1, 1)(net)[:2], len], "must give three modules"),
    "a list": (lambda net: [nn.Flatten(), *stages(8, 1, 1)(net)[1:]], r"layer2 .* \(1, 3267\)"),
    "no cut": (lambda net: net.layer2, "cut of the backbone mine stops .AttributeError"),
    "no parameters": (lambda net: [nn.Identity()] * 3, "has no parameters"),
    "widths": (lambda net: [Layer(3, 4, 8), Layer(3, 4), Layer(4, 4)], "layer3 .* stops on an"),
}


@pytest.mark.parametrize("mistake", STAGE_MISTAKES)
def test_stages_that_break_the_promise(mistake):
    cut, words = STAGE_MISTAKES[mistake]
    register_backbone("mine", nn.Identity, cut)
    with pytest.raises(ValueError, match=words): load_backbone("mine", "random")


def test_stages_that_keep_the_promise():
    register_backbone("mine", nn.Identity, stages(8, 1, 1))
    backbone = load_backbone("mine", "random")
    check_stages(backbone)
    assert not any(p.requires_grad for p in backbone.parameters()) and not backbone.training
    register_backbone("sixteen", nn.Identity, stages(8, 2, 1), stride=16)
    assert load_backbone("sixteen", "random").stride == 16


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"build": 3}, "must be functions"),
        ({"cut": None}, "must be functions"),
        ({"weights": 3}, "weights of the backbone mine must be a file"),
        ({"stride": 0}, "has stride 0 and remainder 1"),
        ({"stride": 14.0}, "has stride 14.0"),
        ({"stride": 14, "remainder": 14}, "remainder 14"),
    ],
)
def test_parts_of_a_backbone_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        register_backbone("mine", **({"build": resnet, "cut": resnet_layers} | settings))
    with pytest.raises(ValueError, match="there is a backbone 'ResNet50' already"):
        register_backbone("ResNet50", resnet, resnet_layers)
    assert "mine" not in BACKBONES


def test_weights_of_a_registered_backbone(tmp_path):
    torch.manual_seed(0)
    net = resnet()
    register_backbone("brings", lambda: net, resnet_layers, weights="build", unused=("fc.",))
    register_backbone("none", resnet, resnet_layers, unused="fc.")
    torch.save({k: v for k, v in net.state_dict().items() if "fc." not in k}, tmp_path / "w.pth")
    register_backbone("file", resnet, resnet_layers, weights=str(tmp_path / "w.pth"), unused="fc.")
    x = torch.randn(1, 3, 33, 33)
    high = image_features(load_backbone("brings"), x).high
    for name, weights in [("file", None), ("none", tmp_path / "w.pth")]:
        assert torch.equal(image_features(load_backbone(name, weights), x).high, high)
    assert torch.equal(image_features(load_backbone("brings", "imagenet"), x).high, high)
    with pytest.raises(ValueError, match="there are no weights for none; give a file"):
        load_backbone("none")
    with pytest.raises(ValueError, match="brings is built with its weights"):
        load_backbone("brings", "random")

    def broken(): raise OSError("no network")
    register_backbone("broken", broken, resnet_layers)
    with pytest.raises(RuntimeError, match=r"broken could not be built \(no network\)"):
        load_backbone("broken", "random")


class LoudNorm(nn.BatchNorm2d):
    "A norm that does more than a norm, such as timm's with an activation inside."
    def forward(self, x): return super().forward(x).relu() + 1


def test_a_registered_network_computes_what_it_computed():
    torch.manual_seed(0)
    first = nn.Sequential(Layer(3, 4, 8), LoudNorm(4))
    second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    second[1].running_mean.fill_(0.3)
    second.forward = lambda x: second[0](second[1](x))  # not in the order of its parts
    parts = (first.eval(), second.eval(), Layer(4, 4))
    x = torch.randn(1, 3, 33, 33)
    with torch.no_grad(): expected = parts[1](parts[0](x))
    register_backbone("mine", nn.Identity, lambda net: parts)
    with torch.no_grad(): found = load_backbone("mine", "random")(x)[1]
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_fingerprint_tells_how_a_network_is_cut():
    prints = []
    for split in (1, 2):
        torch.manual_seed(0)
        layers = [Layer(3, 4, 8), Layer(4, 4), Layer(4, 4), Layer(4, 4)]
        first, second = nn.Sequential(*layers[:split]), nn.Sequential(*layers[split:3])
        register_backbone("mine", nn.Identity, lambda net, p=(first, second, layers[3]): p)
        prints.append(backbone_fingerprint(load_backbone("mine", "random")))
        del BACKBONES["mine"]
    assert prints[0] != prints[1]


# --- plugins


@pytest.mark.parametrize(
    "text, words",
    [
        ("import torch\n\ndef f(:\n", r"my.py, line 3: SyntaxError: "),
        ("x = 1\n\n\nimport nothinghere\n", r"my.py, line 4: ModuleNotFoundError: No module"),
        (DECODER + "raise SystemExit\n", r"my.py, line \d+: SystemExit: no message"),
        (DECODER.replace('"Mine", ', '"a b", '), r"my.py, line \d+: ValueError: 'a b' is no name"),
        (DECODER + VIT.replace("stride=14", "stride=-1"), r"my.py, line \d+: ValueError: the back"),
        (DECODER + "import json\njson.loads('{')\n", r"my.py, line \d+: JSONDecodeError"),
        ("\0", r"my.py"),
    ],
)
def test_a_broken_plugin_names_file_and_line_and_leaves_nothing(text, words, tmp_path):
    path = plugin(tmp_path, text)
    with pytest.raises(ValueError, match=f"the plugin stops at .*{words}"): load_plugin(path)
    assert len(METHODS) == 4 and "vit14" not in BACKBONES
    load_plugin(plugin(tmp_path, DECODER))  # mended
    assert "Mine+CE" in METHODS


def test_a_plugin_is_imported_once_and_sees_the_files_beside_it(tmp_path):
    (tmp_path / "beside_a_plugin.py").write_text("NAME = 'Mine'\n")
    text = DECODER.replace('"Mine", ', "NAME, ").replace("import torch\n", "import torch\n", 1)
    path = plugin(tmp_path, "from beside_a_plugin import NAME\n" + text)
    before = list(sys.path)
    assert load_plugin(path) is load_plugin(tmp_path / "." / "my.py") and "Mine" in METHODS
    assert sys.path == before
    del sys.modules["beside_a_plugin"]


def test_what_is_no_plugin(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no plugin {tmp_path / 'my.py'}"):
        load_plugin(tmp_path / "my.py")
    with pytest.raises(ValueError, match="is no Python file"):
        load_plugin(plugin(tmp_path, "x", "my.txt"))
    with pytest.warns(UserWarning, match="registers no decoder and no backbone"):
        load_plugin(plugin(tmp_path, "x = 1\n"))


def test_a_plugin_that_is_not_used_is_said(tmp_path):
    path = plugin(tmp_path, DECODER)
    with pytest.warns(UserWarning, match="nothing of Mine, registered by .*my.py, is used"):
        config = resolve(make_config(plugin=(path, path)))
    assert config.model.plugin == (path,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(change_config(SMALL, plugin=(path,))).model.plugin == (path,)


# --- bins


def test_scales_of_more_positions_than_the_map_are_said():
    fitting = dict(crop=97, side=97, methods=("PFENet",))
    words = "60 30 15 8, .* 97 pixels has 13 × 13 .*--bins 1 0.5 0.25 0.125"
    with pytest.warns(UserWarning, match=words):
        warn_of_bins(resolve(make_config(**fitting, bins=(60, 30, 15, 8))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_bins(resolve(make_config(**fitting, bins=(13, 8))))
        warn_of_bins(resolve(make_config(**{**fitting, "methods": ("CyCTR",)}, bins=(60, 30))))


def test_a_run_with_such_scales_says_so(tmp_path):
    config = change_config(SMALL, methods=("PFENet",), bins=(60, 30))
    with pytest.warns(UserWarning, match="bins are 60 30"):
        train_run(config, tmp_path / "run")


def test_void_is_part_of_the_trial():
    seen = []

    def loss(logits, mask):
        seen.append(mask.unique().tolist())
        return logits.mean()
    register_decoder("Mine", Plain, loss)
    check_decoder("Mine")
    assert seen == [[0, 1, VOID]]
