"""Backbones: frozen, folded, dilated, and never with other weights than those asked for."""
import copy
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.models as tv
from PIL import Image
from torch import nn

from celp_nb.conditioning import Features, SupportFeatures, index_features
from celp_nb.engine import backbones as engine_backbones
from celp_nb.engine.backbones import (
    BACKBONES,
    TINY_WEIGHTS,
    Backbone,
    backbone_fingerprint,
    episode_features,
    feature_channels,
    freeze_,
    image_features,
    load_backbone,
    load_weights_,
    photograph_or_sample,
    read_weights,
    support_features,
)
from celp_nb.engine.networks import deepen_stem_, dilate_, tiny_net
from celp_nb.ops import keep_foreground, resize, soft_mask

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("CELP_SHARED", ROOT.parent / "shared")) / "weights"


def lively(net, seed=0):
    "The network with batch norm statistics and weights that are not those of a new one."
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2, generator=g)
            m.running_var.uniform_(0.5, 1.5, generator=g)
            m.weight.data.uniform_(0.5, 1.5, generator=g)
            m.bias.data.normal_(0, 0.2, generator=g)
    return net.eval()


def close(a, b, rtol=1e-4):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= rtol * b.abs().max()


SMALL = {
    "tiny": tiny_net,
    "resnet18": tv.resnet18,
    "mobilenet_v2": tv.mobilenet_v2,
    "vgg16_bn": lambda: tv.vgg16_bn(init_weights=False),
}


@pytest.fixture(scope="module")
def networks():
    "A network of random weights and lively statistics for each small architecture; do not change."
    made = {}
    def network(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = lively(SMALL[name]())
            if name == "vgg16_bn":
                made[name].classifier = nn.Identity()  # 120 M parameters that are not used
        return made[name]
    return network


def image(n=2, side=65, seed=0):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


# --- frozen


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_frozen(name, networks):
    backbone = load_backbone(name, networks(name).state_dict())
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    mid, high = image_features(backbone, image())
    nn.ModuleDict({"inside": backbone}).train()  # as a part of something that is trained
    backbone.train()
    assert not any(m.training for m in backbone.modules())
    assert not any(p.requires_grad for p in backbone.parameters())
    x = image().requires_grad_()
    again = image_features(backbone, x)
    assert not again.mid.requires_grad and not again.high.requires_grad
    assert torch.equal(again.mid, mid) and torch.equal(again.high, high)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_an_image_does_not_depend_on_its_batch(networks):
    backbone = load_backbone("tiny", networks("tiny").state_dict())
    together = image_features(backbone, image(3))
    for i in range(3):
        close(image_features(backbone, image(3)[i:i + 1]).high[0], together.high[i], 1e-5)


# --- folding


@pytest.mark.parametrize("name", list(SMALL))
def test_folding_batch_norm_changes_nothing(name, networks):
    unfolded = Backbone(name, *BACKBONES[name][1](copy.deepcopy(networks(name))))
    folded = load_backbone(name, networks(name).state_dict())
    assert any(isinstance(m, nn.BatchNorm2d) for m in unfolded.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = image(1, 33)
    for ours, plain in zip(image_features(folded, x), image_features(unfolded, x)):
        close(ours, plain)
    if name == "vgg16_bn":  # the one with stride 16 behind its fourth pooling
        features = image_features(folded, x)
        assert (
            folded.layer2(x).shape == (1, 256, 5, 5)
            and features.mid.shape == (1, 512 + 256, 3, 3)
            and features.high.shape == (1, 512, 3, 3)
        )


def test_a_batch_norm_without_a_convolution_in_front_stays():
    net = lively(
        nn.Sequential(
            nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)
        )
    )
    x = torch.rand(1, 2, 4, 4)
    expected = net(x)
    assert torch.allclose(freeze_(net)(x), expected, rtol=1e-5, atol=1e-6)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net) == 2


# --- shape


SHAPES = {
    "tiny": (96, 144, 224),
    "resnet18": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet50_deep": (512, 1024, 2048),
    "mobilenet_v2": (32, 96, 96),  # its high features are layer3's
}


@pytest.mark.parametrize("name", SHAPES)
def test_stride_8_and_channels(name):
    backbone = load_backbone(name, "random")
    c2, c3, c4 = SHAPES[name]
    features = image_features(backbone, image(1, 73))
    assert features.mid.shape == (1, c3 + c2, 10, 10) and features.high.shape == (1, c4, 10, 10)
    assert feature_channels(backbone) == (c3 + c2, c4)
    f2 = backbone.layer2(image(1, 73))
    assert f2.shape == (1, c2, 10, 10)
    mid, f3 = backbone(image(1, 73))
    assert torch.equal(mid[:, :c3], f3) and torch.equal(mid[:, c3:], f2)  # layer3 first
    assert torch.equal(features.high, backbone.layer4(f3))


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_dilation_reaches_every_convolution_of_the_last_two_stages(name):
    backbone = load_backbone(name, "random")
    for stage, dilation in [(backbone.layer2, 1), (backbone.layer3, 2), (backbone.layer4, 4)]:
        threes = [
            m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
        ]
        assert threes and all(m.dilation == (dilation, dilation) for m in threes)
    assert all(
        m.stride == (1, 1)
        for stage in (backbone.layer3, backbone.layer4)
        for m in stage.modules()
        if isinstance(m, nn.Conv2d)
    )


def test_dilation_keeps_the_values_of_the_strided_network():
    "On every second position a dilated stage of stride 1 gives what the strided one gave."
    torch.manual_seed(0)
    strided = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1))
    dilated = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1))
    dilated.load_state_dict(strided.state_dict())
    dilate_(dilated[2:], 2)
    x = torch.rand(1, 3, 17, 17)
    assert torch.allclose(dilated(x)[:, :, ::2, ::2], strided(x), atol=1e-6)


def test_mobilenet_ends_with_layer3_and_needs_no_weights_of_later_blocks(networks):
    state = networks("mobilenet_v2").state_dict()
    used = tuple(f"features.{i}." for i in range(14))
    cut = {k: v for k, v in state.items() if k.startswith(used)}
    backbone = load_backbone("mobilenet_v2", cut)
    assert not list(backbone.layer4.parameters())
    whole = load_backbone("mobilenet_v2", state)
    assert backbone_fingerprint(backbone) == backbone_fingerprint(whole)
    x, mask = image(), torch.zeros(1, 33, 33, dtype=torch.uint8)
    mask[:, :17] = 1
    f3 = backbone(x)[1]
    assert torch.equal(image_features(backbone, x).high, f3)
    high = support_features(backbone, x, mask).high
    assert torch.equal(high, keep_foreground(f3, mask)) and not high[:, :, -1].any()
    for lost in ("features.13.conv.0.0.weight", "features.6.conv.0.0.weight"):
        with pytest.raises(ValueError, match="1 missing"):
            load_backbone("mobilenet_v2", {k: v for k, v in cut.items() if k != lost})


# --- local files


@pytest.mark.parametrize(
    "name, last, keep_head",
    [
        ("resnet18", "layer2", True),
        ("resnet18", "layer2", False),
        ("mobilenet_v2", "features.6", True),
        ("vgg16_bn", "features.23", False),
    ],
)
def test_a_torchvision_state_dict_from_a_file(name, last, keep_head, networks, tmp_path):
    net = networks(name)
    state = net.state_dict()
    heads = BACKBONES[name][3]
    if not keep_head: state = {k: v for k, v in state.items() if not k.startswith(heads)}
    torch.save(state, tmp_path / "weights.pth")
    backbone = load_backbone(name, tmp_path / "weights.pth")

    seen = []
    handle = net.get_submodule(last).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    x = image(1, 64)  # even, so that pools which round up and pools which round down agree
    with torch.no_grad(): net(x)
    handle.remove()
    close(backbone.layer2(x), seen[0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "epoch": 3},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    ],
)
def test_what_people_wrap_around_a_state_dict(wrap, networks, tmp_path):
    state = networks("tiny").state_dict()
    torch.save(wrap(state), tmp_path / "w.pth")
    close(
        image_features(load_backbone("tiny", tmp_path / "w.pth"), image()).high,
        image_features(load_backbone("tiny", state), image()).high,
        1e-6,
    )


def test_half_precision_files_become_single_precision(networks, tmp_path):
    state = networks("tiny").state_dict()
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
        tmp_path / "half.pth",
    )
    backbone = load_backbone("tiny", tmp_path / "half.pth")
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    ours, exact = (
        image_features(b, image()).high for b in (backbone, load_backbone("tiny", state))
    )
    close(ours, exact, 2e-2)
    assert not torch.equal(ours, exact)


def test_deep_stem(networks):
    torch.manual_seed(0)
    net = lively(deepen_stem_(tv.resnet50()))
    backbone = load_backbone("resnet50_deep", {**net.state_dict(), "fc.weight": torch.zeros(9, 9)})
    x = image(1, 33)
    for i in (1, 2, 3): x = getattr(net, f"bn{i}")(getattr(net, f"conv{i}")(x)).relu()
    assert x.shape == (1, 128, 17, 17)
    expected = net.layer2(net.layer1(nn.functional.max_pool2d(x, 3, 2, 1)))
    close(backbone.layer2(image(1, 33)), expected.detach())


@pytest.mark.skipif(
    not TINY_WEIGHTS.is_file(), reason=f"no {TINY_WEIGHTS}: pre-train it with notebook A1"
)
def test_tiny_comes_with_its_weights():
    a, b = load_backbone("tiny"), load_backbone("tiny", "imagenet")
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert (
        sum(v.numel() for v in a.state_dict().values()) <= 1_500_000
        and TINY_WEIGHTS.stat().st_size <= 3_000_000
    )
    state = read_weights(TINY_WEIGHTS)
    close(
        image_features(a, image()).mid,
        image_features(load_backbone("tiny", state), image()).mid,
        1e-6,
    )


@pytest.mark.parametrize(
    "name, file, layer",
    [
        ("resnet18", "resnet18_imagenet_fp16.pth", "layer2"),
        ("resnet50", "resnet50_imagenet_fp16.pth", "layer2"),
        ("mobilenet_v2", "mobilenet_v2_imagenet.pth", "features.6"),
    ],
)
def test_real_weights(name, file, layer):
    if not (SHARED / file).is_file():
        pytest.skip(f"no {SHARED / file}; set CELP_SHARED to the folder that holds weights/")
    state = read_weights(SHARED / file)
    net = getattr(tv, name)().eval()
    net.load_state_dict(
        {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, strict=False
    )
    seen = []
    net.get_submodule(layer).register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    with torch.no_grad(): net(image(1))
    close(load_backbone(name, SHARED / file).layer2(image(1)), seen[0], 1e-3)


# --- weights that are not what was asked for


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ValueError, match="no backbone 'resnet34'.*" + ".*".join(BACKBONES)):
        load_backbone("resnet34", "random")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "no.pth"))):
        load_backbone("resnet18", tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match="rndom"):
        load_backbone("tiny", "rndom")  # a slip of the pen is no random network


def test_a_missing_tiny_file_is_no_random_network(monkeypatch, tmp_path):
    moved = BACKBONES["tiny"]._replace(weights=tmp_path / "tiny.pth")
    monkeypatch.setitem(BACKBONES, "tiny", moved)
    with pytest.raises(FileNotFoundError, match="tiny.pth"): load_backbone("tiny")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_state_dict(content, tmp_path):
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))): load_backbone("tiny", path)


def test_a_truncated_file(networks, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(networks("tiny").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=re.escape(str(path))): load_backbone("tiny", path)


@pytest.mark.parametrize(
    "thing", [torch.zeros(3), [1, 2], {"epoch": 3}, {}, {"state_dict": {"a": 1}}]
)
def test_a_file_with_something_else(thing, tmp_path):
    torch.save(thing, tmp_path / "else.pth")
    with pytest.raises(ValueError, match="else.pth holds no state dict"):
        load_backbone("tiny", tmp_path / "else.pth")


class Trap:
    "Runs code when unpickled carelessly."
    def __reduce__(self):
        return (os.mkdir, (os.environ["CELP_TRAP"],))


def test_no_code_from_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CELP_TRAP", str(tmp_path / "sprung"))
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth"): load_backbone("tiny", tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_architecture_are_counted_and_named(networks, tmp_path):
    torch.save(networks("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError) as e: load_backbone("tiny", tmp_path / "resnet18.pth")
    own = {k for k in tiny_net().state_dict() if not k.endswith("num_batches_tracked")}
    theirs = {k for k in networks("resnet18").state_dict() if not k.endswith("num_batches_tracked")}
    message = str(e.value)
    assert "resnet18.pth" in message
    assert f"{len(own - theirs)} missing ({sorted(own - theirs)[0]}" in message
    assert f"{len(theirs - own)} left over ({sorted(theirs - own)[0]}" in message
    with pytest.raises(ValueError, match="of another shape"):
        load_backbone("resnet50", networks("resnet18").state_dict())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("layer4.0.conv1.weight"), "1 missing (layer4.0.conv1.weight)"),
        (lambda s: s.update(extra=torch.zeros(2)), "1 left over (extra)"),
        (
            lambda s: s.update({"layer3.0.bn1.bias": torch.zeros(3)}),
            "1 of another shape (layer3.0.bn1.bias)",
        ),
    ],
)
def test_one_wrong_entry_is_enough(change, words, networks):
    state = dict(networks("tiny").state_dict())
    change(state)
    net = tiny_net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=re.escape(f"the weights in here do not fit this network: {words};")
    ):
        load_weights_(net, state, "here")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_deep_stems_have_no_weights_of_their_own(weights):
    with pytest.raises(ValueError, match="no weights for resnet50_deep.*weights=PATH"):
        load_backbone("resnet50_deep", weights)


# --- download


@pytest.fixture
def served(networks, monkeypatch, tmp_path):
    "ResNet-18's weights at a file:// address, under a name with their hash, which is checked."
    weights = BACKBONES["resnet18"][2].value
    torch.save(networks("resnet18").state_dict(), tmp_path / "made.pth")
    digest = hashlib.sha256((tmp_path / "made.pth").read_bytes()).hexdigest()[:8]
    path, url = (tmp_path / "made.pth").rename(tmp_path / f"resnet18-{digest}.pth"), weights.url
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    object.__setattr__(weights, "url", path.as_uri())
    yield path
    object.__setattr__(weights, "url", url)


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_download(weights, networks, served):
    ours, given = (
        load_backbone("resnet18", weights),
        load_backbone("resnet18", networks("resnet18").state_dict()),
    )
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), given.state_dict().values())
    )


def test_a_damaged_download_is_refused(served):
    served.write_bytes(served.read_bytes()[:-1000])
    with pytest.raises(RuntimeError, match="could not be downloaded from file://.*weights=PATH"):
        load_backbone("resnet18")


def test_a_failing_download_names_the_address(served):
    served.unlink()
    with pytest.raises(
        RuntimeError,
        match="of resnet18 could not be downloaded from file://.*resnet18.*weights=PATH",
    ):
        load_backbone("resnet18", "imagenet")


# --- query and support


def test_soft_mask_counts_the_class_alone():
    mask = torch.tensor([[[1, 255, 0], [0, 0, 0], [255, 0, 1]]], dtype=torch.uint8)
    assert torch.equal(soft_mask(mask, (3, 3))[0, 0], (mask[0] == 1).float())
    assert soft_mask(mask, (2, 2)).tolist() == [[[[1.0, 0.0], [0.0, 1.0]]]]
    assert soft_mask(mask, (5, 5))[0, 0, 0].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_a_map_that_fits_is_returned_as_it_is():
    x = torch.rand(1, 2, 3, 4)
    assert resize(x, (3, 4)) is x and resize(x, (1, 9)).shape == (1, 2, 1, 9)


def test_query_and_support_in_one_pass(networks, monkeypatch):
    backbone = load_backbone("tiny", networks("tiny").state_dict())
    B, K = 2, 3
    query, support = image(B), image(B * K, seed=1).unflatten(0, (B, K))
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 2, (B, K, 65, 65), generator=generator, dtype=torch.uint8)
    mask[1, 2], mask[0, 0, :30] = 0, 255
    runs = []
    backbone.layer2.register_forward_hook(lambda m, i, o: runs.append(len(o)))
    q, s = episode_features(backbone, query, support, mask)
    assert runs == [B + B * K]
    with torch.no_grad():
        for b in range(B):
            f2 = backbone.layer2(query[b:b + 1])
            f3 = backbone.layer3(f2)
            close(q.mid[b], torch.cat([f3, f2], 1)[0]), close(q.high[b], backbone.layer4(f3)[0])
            for k in range(K):
                f2 = backbone.layer2(support[b, k][None])
                f3 = backbone.layer3(f2)
                share = nn.functional.interpolate(
                    (mask[b, k] == 1).float()[None, None],
                    f3.shape[-2:],
                    mode="bilinear",
                    align_corners=True,
                )
                (
                    close(s.mid[b, k], torch.cat([f3, f2], 1)[0]),
                    close(s.high[b, k], backbone.layer4(f3 * share)[0]),
                )
                one = support_features(backbone, support[b, k][None], mask[b, k][None])
                close(one.mid[0], s.mid[b, k]), close(one.high[0], s.high[b, k])


def test_the_whole_support_beside_its_foreground(networks):
    "Asked for, the background's share is there too; everything else stays what it was."
    backbone = load_backbone("tiny", networks("tiny").state_dict())
    B, K = 2, 3
    query, support = image(B), image(B * K, seed=1).unflatten(0, (B, K))
    mask = torch.randint(
        0, 2, (B, K, 65, 65), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    (q, s), (whole_q, whole_s) = (
        episode_features(backbone, query, support, mask, whole) for whole in (False, True)
    )
    for a, b in zip(q + s, whole_q + whole_s[:2]): close(a, b)
    assert (
        type(s) is Features
        and type(whole_s) is SupportFeatures
        and whole_s.whole.shape == s.high.shape
    )
    for b in range(B):
        for k in range(K):
            close(whole_s.whole[b, k], image_features(backbone, support[b, k][None]).high[0])
    picked = index_features(whole_s, (slice(None), [2, 0]))
    assert type(picked) is SupportFeatures and all(
        torch.equal(p, torch.stack([x[:, 2], x[:, 0]], 1)) for p, x in zip(picked, whole_s)
    )


def test_what_is_outside_the_support_mask_does_not_reach_its_high_features(networks):
    backbone = load_backbone("tiny", networks("tiny").state_dict())
    _, f3 = backbone(image(1))
    nothing = torch.zeros(1, 65, 65, dtype=torch.uint8)
    a, b = (support_features(backbone, image(1, seed=s), nothing) for s in (0, 1))
    assert (
        torch.equal(a.high, b.high)
        and torch.equal(a.high, backbone.layer4(torch.zeros_like(f3)))
        and not torch.equal(a.mid, b.mid)
    )


def test_every_public_name_has_its_sentence():
    assert all(
        getattr(engine_backbones, n).__doc__
        for n in engine_backbones.__all__
        if callable(getattr(engine_backbones, n))
    )


# --- photographs, where they can be had


def test_a_photograph_and_weights_are_taken_from_the_environment(tmp_path, monkeypatch):
    sample = np.full((161, 161, 3), 7, np.uint8)
    for name in ("CELP_WEIGHTS", "CELP_PHOTO"): monkeypatch.delenv(name, raising=False)
    net, x, nothing, words = photograph_or_sample(sample)
    assert (
        net.name == "tiny"
        and x.shape == (1, 3, 161, 161)
        and not nothing.any()
        and words == "tiny with the bundled weights; a bundled sample"
    )
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save(photo)
    monkeypatch.setenv("CELP_PHOTO", str(photo))
    _, x, nothing, words = photograph_or_sample(sample)
    assert (
        str(photo) in words and (nothing[0, :78] == 0).all() and (nothing[0, 82:] == 255).all()
    )  # twice as wide as high
    monkeypatch.setenv("CELP_WEIGHTS", str(tmp_path / "none.pth"))
    net, _, _, words = photograph_or_sample(sample)
    assert net.name == "tiny" and "instead of resnet50" in words and "none.pth" in words
    photo.write_bytes(b"no image")
    with pytest.raises(ValueError, match="photo.png"): photograph_or_sample(sample)
