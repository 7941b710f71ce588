"""Parity with the published implementation: its numbers are in tests/fixtures.

Where ../shared/golden is, its whole fixtures are read too; $CELP_GOLDEN names another folder to
read instead of both: any seed, salt, map size or bins.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_inputs import fill, read_keys, whole_fixture

from celp_nb.conditioning import Features, SupportFeatures
from celp_nb.contrast import two_path_losses
from celp_nb.cyctr import DeformableAttention
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.methods import with_published_attention
from celp_nb.latent import DELTA, sample_latent
from celp_nb.losses import cross_entropy, dice
from celp_nb.repro.published import (
    CYCTR_NAMES,
    PFENET_NAMES,
    RESNET_NAMES,
    VGG_NAMES,
    load_published,
    published_name,
)
from celp_nb.similarity import known_positions, self_similarity, similar_count

BUNDLED = Path(__file__).parent / "fixtures"
WHOLE = Path(__file__).parent.parent.parent / "shared" / "golden"
if "CELP_GOLDEN" in os.environ:
    FOLDERS = [Path(os.environ["CELP_GOLDEN"])]
else:
    FOLDERS = [folder for folder in (BUNDLED, WHOLE) if folder.is_dir()]
KEYS = read_keys(FOLDERS[0]) or read_keys(BUNDLED)


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def golden(request):
    "A folder of fixtures."
    assert request.param.is_dir(), f"CELP_GOLDEN is {request.param}, which is no folder"
    return request.param


def load(folder, name):
    path = folder / f"{name}.npz"
    if not path.is_file(): pytest.skip(f"no {path}")
    return whole_fixture(path)


def official(model, salt, only=lambda name: True):
    return {
        k: torch.as_tensor(np.asarray(fill(k, s, salt))) for k, s in KEYS[model].items() if only(k)
    }


def tensors(data):
    "Query and support features and masks as our functions take them."
    t = {k: torch.as_tensor(v) for k, v in data.items() if v.dtype.kind in "fibu"}
    f = lambda k: t[k].float()
    query = Features(torch.cat([f("q3"), f("q2")], 1), f("q4"))
    support = SupportFeatures(
        torch.cat([f("s3"), f("s2")], 2), f("s4"), f("s4")
    )  # a model reads one of the two
    return t, query, support


def published(kind, settings):
    """The published model with the fixtures' parameters, without dropout; CyCTR with the two
    defects of its attention."""
    backbone, model = load_published(
        official(f"{kind}_resnet50", settings["salt"]), settings["ppm"]
    )
    for m in model.modules():
        if isinstance(m, (torch.nn.Dropout, torch.nn.Dropout2d)): m.p = 0.0
    if kind == "cyctr": with_published_attention(model.decoder)
    return model


def close(ours, theirs, rtol=1e-4):
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max(), (
        f"off by {(ours - theirs).abs().max() / theirs.abs().max():.2e} relative"
    )


def gradient_norms(model, losses):
    losses.total(contrast=0.1, auxiliary=1.0).backward()
    return {n: p.grad.norm().item() for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    "case,names,loss",
    [
        ("pfenet_train", PFENET_NAMES, cross_entropy),
        ("pfenet_train_fixed_bins", PFENET_NAMES, cross_entropy),
        ("cyctr_train", CYCTR_NAMES, dice),
        ("pfenet_train_ours", PFENET_NAMES, cross_entropy),
    ],
)
def test_training_step(golden, case, names, loss):
    data, settings = load(golden, case)
    t, query, support = tensors(data)
    size = query.high.shape[-2:]
    known = known_positions(t["c"], size)
    assert torch.equal(known, t["known"])
    N = similar_count(self_similarity(query.high), known, DELTA)
    assert torch.equal(
        N.masked_fill(known, 0).float(), t["support_count"]
    )  # published: 0 at known positions, which eq. 3 excludes anyway
    pseudo, centre = sample_latent(query.high, t["c"], centre=t["centre"])
    assert torch.equal(pseudo, t["pseudo_mask"]) and torch.equal(centre, t["centre"])

    model = published(case.split("_")[0], settings).train()
    losses = two_path_losses(model, query, support, t["sy"], t["y"], pseudo, loss)
    resized = lambda x: torch.nn.functional.interpolate(
        x, t["y"].shape[-2:], mode="bilinear", align_corners=True
    )
    close(resized(losses.logits), data["logits"])
    close(resized(losses.contrast_logits), data["contrast_logits"])
    for ours, theirs in [
        (losses.main, "main_loss"),
        (losses.auxiliary, "aux_loss"),
        (losses.contrast, "contrast_loss"),
    ]:
        assert ours.item() == pytest.approx(float(data[theirs]), rel=1e-4), theirs
    grads = gradient_norms(model, losses)
    expected = {
        published_name(str(n), names): float(g)
        for n, g in zip(data["grad_names"], data["grad_norms"])
    }
    assert grads.keys() == expected.keys()
    for name, norm in expected.items(): assert grads[name] == pytest.approx(norm, rel=1e-3), name


@pytest.mark.parametrize("case", ["pfenet_eval_1shot", "pfenet_eval_5shot", "cyctr_eval_1shot"])
@torch.no_grad()
def test_evaluation(golden, case):
    data, settings = load(golden, case)
    t, query, support = tensors(data)
    logits = published(case.split("_")[0], settings).eval()(
        query, support, t["sy"], t["y"] == 255
    )  # where the published CyCTR looks for padding
    close(
        torch.nn.functional.interpolate(
            logits, t["y"].shape[-2:], mode="bilinear", align_corners=True
        ),
        data["logits"],
    )


@torch.no_grad()
def test_deformable_attention(golden):
    data, _ = load(golden, "deformable_attention")
    t = {k: torch.as_tensor(v) for k, v in data.items()}
    rows, width = t["param/attention_weights.weight"].shape
    module = DeformableAttention(width, heads=rows // 9)
    prefix = "param/"
    own = {k.removeprefix(prefix): v for k, v in t.items() if k.startswith(prefix)}
    module.load_state_dict(own)
    close(module(t["query"], t["value"], t["pad"], tuple(t["hw"].tolist())), t["out"])


@pytest.mark.parametrize(
    "case,name,model",
    [
        ("backbone_resnet50", "resnet50_deep", "pfenet_resnet50"),
        ("backbone_resnet101", "resnet101_deep", "pfenet_resnet101"),
        ("backbone_vgg16", "vgg16_bn", "pfenet_vgg16"),
    ],
)
@torch.no_grad()
def test_backbone(golden, case, name, model):
    data, settings = load(golden, case)
    state = official(model, settings["salt"], only=lambda k: k.startswith("layer"))
    names = VGG_NAMES if name.startswith("vgg") else RESNET_NAMES
    backbone = load_backbone(name, {published_name(k, names): v for k, v in state.items()})
    f2 = backbone.layer2(torch.as_tensor(data["x"]))
    f3 = backbone.layer3(f2)
    f4 = backbone.layer4(f3)
    for ours, theirs, step, shape in zip(
        (f2, f3, f4), ("f2", "f3", "f4"), (16, 32, 64), data["shapes"]
    ):
        assert tuple(ours.shape) == tuple(shape)
        close(ours[:, ::step][:, :data[theirs].shape[1]], data[theirs])


@pytest.mark.parametrize(
    "kind", ["pfenet_resnet50", "pfenet_resnet101", "pfenet_vgg16", "cyctr_resnet50"]
)
def test_load_published_finds_every_tensor(kind):
    state = official(kind, 0)
    backbone, model = load_published({f"module.{k}": v for k, v in state.items()})
    assert backbone.name == {
        "resnet50": "resnet50_deep",
        "resnet101": "resnet101_deep",
        "vgg16": "vgg16_bn",
    }[kind.split("_")[1]] + "_stepped" * kind.startswith("cyctr")
    names = CYCTR_NAMES if kind.startswith("cyctr") else PFENET_NAMES
    for theirs, value in state.items():
        if not theirs.startswith(("layer", "backbone", "addtional_proj", "adjust_feature")):
            assert torch.equal(model.state_dict()[published_name(theirs, names)], value), theirs
    if kind.startswith("cyctr"):
        assert torch.equal(
            model.reduce[0].weight,
            torch.cat(
                [
                    state["adjust_feature.0.weight"][:, 512:],
                    state["adjust_feature.0.weight"][:, :512],
                ],
                1,
            ),
        )


@pytest.mark.parametrize(
    "kind,part",
    [
        ("pfenet_resnet50", "inner_cls."),
        ("pfenet_resnet101", "layer3.22."),
        ("pfenet_vgg16", "layer0.0."),
        ("cyctr_resnet50", "transformer.cross_layers."),
        ("cyctr_resnet50", "backbone.body.bn2."),
    ],
)
def test_every_tensor_that_is_missing_or_left_over_is_named_as_in_the_file(kind, part):
    state = official(kind, 0)
    gone = [k for k in state if k.startswith(part) and not k.endswith("num_batches_tracked")]
    mine = [
        "mine.weight",
        "layer0.9.weight",
        "layer9.0.weight",
        "backbone.body.mine",
        "down_supp.0.weight",
    ]
    with pytest.raises(ValueError) as refusal:
        load_published(
            {k: v for k, v in state.items() if k not in gone} | {k: torch.zeros(1) for k in mine}
        )
    missing, extra = str(refusal.value).split("; ")
    assert f"{len(gone)} missing" in missing and f"{len(mine)} left over" in extra
    assert all(k in missing for k in gone) and all(k in extra for k in mine)


@pytest.mark.parametrize(
    "kind,name,shape",
    [
        ("pfenet_resnet50", "down_feat.0.weight", (256,)),
        ("pfenet_vgg16", "down_feat.0.weight", (256, 1536, 1, 1)),
        ("cyctr_resnet50", "adjust_feature.0.weight", (384, 700, 1, 1)),
    ],
)
def test_a_tensor_of_another_shape_is_named(kind, name, shape):
    with pytest.raises(ValueError, match="1 of another shape .reduce.0.weight"):
        load_published(official(kind, 0) | {name: torch.zeros(shape)})


def test_a_file_that_is_none_or_only_half_of_one():
    with pytest.raises(ValueError, match="none of down_feat.0.weight"):
        load_published({"mine.weight": torch.zeros(1)})
    for kind, inside in [("pfenet_resnet50", "layer"), ("cyctr_resnet50", "backbone.")]:
        with pytest.raises(ValueError, match=f"holds no backbone: no name begins with {inside}"):
            load_published({k: v for k, v in official(kind, 0).items() if not k.startswith(inside)})


def test_the_original_pfenet_has_two_reductions():
    state = official("pfenet_resnet50", 0)
    state["down_query.0.weight"] = state.pop("down_feat.0.weight")
    with pytest.raises(ValueError, match=r"1 missing \(down_supp.0.weight\)"): load_published(state)
    state["down_supp.0.weight"] = state["down_query.0.weight"] + 1
    _, model = load_published(state)
    assert torch.equal(model.reduce_support[0].weight, model.reduce[0].weight + 1)
