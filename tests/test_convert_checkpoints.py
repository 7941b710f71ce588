"""Checkpoints with the decoders' former parameter names: converted by the script, else refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from celp_nb.engine.checkpoints import (
    Trained,
    load_checkpoint,
    load_model,
    resume_state,
    save_checkpoint,
    save_state,
)
from celp_nb.engine.methods import METHODS, build_model

SCRIPT = Path(__file__).parent.parent / "tools" / "convert_checkpoints.py"
#: present → former names of a PFENet with two scales
PFENET = {
    "reduce.0.weight": "reduce.0.weight",
    "decoder.init_merge.0.0.weight": "decoder.merge.0.weight",
    "decoder.init_merge.1.0.weight": "decoder.merge.1.weight",
    "decoder.alpha_conv.0.0.weight": "decoder.carry.0.weight",
    "decoder.beta_conv.0.0.weight": "decoder.refine.0.0.weight",
    "decoder.beta_conv.0.2.weight": "decoder.refine.0.2.weight",
    "decoder.beta_conv.1.0.weight": "decoder.refine.1.0.weight",
    "decoder.beta_conv.1.2.weight": "decoder.refine.1.2.weight",
    "decoder.inner_cls.0.0.weight": "decoder.inner.0.0.weight",
    "decoder.inner_cls.0.3.weight": "decoder.inner.0.3.weight",
    "decoder.inner_cls.0.3.bias": "decoder.inner.0.3.bias",
    "decoder.inner_cls.1.0.weight": "decoder.inner.1.0.weight",
    "decoder.inner_cls.1.3.weight": "decoder.inner.1.3.weight",
    "decoder.inner_cls.1.3.bias": "decoder.inner.1.3.bias",
    "decoder.res1.0.weight": "decoder.fuse.weight",
    "decoder.res2.0.weight": "decoder.refine_all.0.weight",
    "decoder.res2.2.weight": "decoder.refine_all.2.weight",
    "decoder.cls.0.weight": "decoder.classify.0.weight",
    "decoder.cls.3.weight": "decoder.classify.3.weight",
    "decoder.cls.3.bias": "decoder.classify.3.bias",
}
#: and of CyCTR, but for its transformer's layers
CYCTR = {
    "reduce.0.weight": "reduce.0.weight",
    "decoder.qry_merge_feat.0.weight": "decoder.query_in.0.weight",
    "decoder.supp_merge_feat.0.weight": "decoder.support_in.0.weight",
    "decoder.transformer.level_embed": "decoder.transformer.level",
    "decoder.merge_multi_lvl_reduce.0.weight": "decoder.reduce.0.weight",
    "decoder.merge_multi_lvl_sum.0.weight": "decoder.refine.0.weight",
    "decoder.merge_multi_lvl_sum.2.weight": "decoder.refine.2.weight",
    "decoder.cls.0.weight": "decoder.classify.0.weight",
    "decoder.cls.3.weight": "decoder.classify.3.weight",
    "decoder.cls.3.bias": "decoder.classify.3.bias",
    "decoder.pred_supp_qry_proj.0.weight": "decoder.back_out.0.weight",
    "decoder.supp_init_merge.0.weight": "decoder.back_in.0.weight",
    "decoder.supp_beta_conv.0.weight": "decoder.back_refine.0.weight",
    "decoder.supp_beta_conv.2.weight": "decoder.back_refine.2.weight",
    "decoder.supp_cls.0.weight": "decoder.back_classify.0.weight",
    "decoder.supp_cls.3.weight": "decoder.back_classify.3.weight",
    "decoder.supp_cls.3.bias": "decoder.back_classify.3.bias",
}
#: and inside of each of those
LAYER = {
    "self_attention.sampling_offsets.weight": "self_attention.offsets.weight",
    "self_attention.sampling_offsets.bias": "self_attention.offsets.bias",
    "self_attention.attention_weights.weight": "self_attention.share.weight",
    "self_attention.attention_weights.bias": "self_attention.share.bias",
    "self_attention.value_proj.weight": "self_attention.value.weight",
    "self_attention.output_proj.weight": "self_attention.out.weight",
    "cross_attention.q_fc.weight": "cross_attention.q.weight",
    "cross_attention.k_fc.weight": "cross_attention.k.weight",
    "cross_attention.v_fc.weight": "cross_attention.v.weight",
    "cross_attention.proj.weight": "cross_attention.out.weight",
    "ffns.0.0.0.weight": "feed.0.net.0.weight",
    "ffns.0.1.weight": "feed.0.net.3.weight",
    "ffns.1.0.0.weight": "feed.1.net.0.weight",
    "ffns.1.1.weight": "feed.1.net.3.weight",
    "layer_norms.0.weight": "norm.0.weight",
    "layer_norms.0.bias": "norm.0.bias",
    "layer_norms.1.weight": "norm.1.weight",
    "layer_norms.1.bias": "norm.1.bias",
    "layer_norms.2.weight": "norm.2.weight",
    "layer_norms.2.bias": "norm.2.bias",
    "layer_norms.3.weight": "norm.3.weight",
    "layer_norms.3.bias": "norm.3.bias",
}
for i in (0, 1):
    prefix = f"decoder.transformer.layers.{i}."
    CYCTR |= {prefix + present: prefix + former for present, former in LAYER.items()}
FORMER_NAMES = {"PFENet+CE": PFENET, "CyCTR+CE": CYCTR}


def model_of(method):
    torch.manual_seed(0)
    return build_model(6, 8, (1.0, 0.5), method=METHODS[method])


def with_former_names(method, state):
    names = FORMER_NAMES[method]
    assert state.keys() == names.keys()  # no parameter is forgotten
    return {names[name]: value for name, value in state.items()}


def same(a, b):
    "Whether two tables hold the same names in the same order, and the same tensors to the bit."
    equal = lambda x, y: x.dtype == y.dtype and torch.equal(x, y)
    return list(a) == list(b) and all(equal(a[name], b[name]) for name in a)


def as_file(method, state):
    "What a file of a trained model holds."
    about = {"fold": 0, "backbone": "tiny", "weights": "", "fingerprint": "f", "side": 65}
    sizes = {"in_channels": 6, "width": 8, "bins": (1.0, 0.5), "seed": 0}
    return {"model": state, "method": method, **about, **sizes}


def convert(*paths):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, paths)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("method", FORMER_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_trained_model_is_refused_then_converted(method, dtype, tmp_path):
    net, path = model_of(method), tmp_path / "m.pt"
    state = {name: value.to(dtype) for name, value in net.state_dict().items()}
    save_checkpoint(path, **as_file(method, with_former_names(method, state)))
    with pytest.raises(ValueError) as refusal: load_model(path)
    assert str(refusal.value) == (
        f"{path} was written by an earlier version, with other names of parameters; "
        f"run tools/convert_checkpoints.py {path}, or train again."
    )
    done = convert(path)
    assert done.returncode == 0 and done.stdout == f"{path}: converted\n"
    saved = load_checkpoint(path)
    assert same(saved.pop("model"), state)
    assert saved == {k: v for k, v in as_file(method, None).items() if k != "model"}
    load_model(path)
    assert sorted(tmp_path.iterdir()) == [path]  # nothing else is left behind


@pytest.mark.parametrize("method", FORMER_NAMES)
def test_a_training_is_refused_then_converted_and_resumed(method, tmp_path):
    net, path = model_of(method), tmp_path / "last.pt"
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in net.parameters()).backward()
    optimiser.step()
    state, former = net.state_dict(), with_former_names(method, net.state_dict())
    settings, own = {"lr": 0.1}, {"a": [optimiser]}
    best = {"a": (0.5, 1, former)}
    save_state(path, 2, settings, {"a": net}, own, Trained({"a": []}, {}))
    saved = {**load_checkpoint(path), "models": {"a": former}, "best": best}
    save_checkpoint(path, **saved)

    other = model_of(method)
    again = {"a": [torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)]}
    for wanted in (settings, {"lr": 0.2}):  # this is said before other settings are
        with pytest.raises(ValueError, match=r"last\.pt was written by an earlier .*convert"):
            resume_state(path, wanted, {"a": other}, again)
    assert same(other.state_dict(), model_of(method).state_dict())
    assert convert(path).returncode == 0
    trained, step = resume_state(path, settings, {"a": other}, again)
    assert step == 2 and same(other.state_dict(), state)
    assert same(trained.best["a"].state, state) and trained.best["a"][:2] == (0.5, 1)
    momenta = zip(optimiser.state.values(), again["a"][0].state.values())
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in momenta)


def test_a_file_with_present_names_is_left_as_it_is(tmp_path):
    path = tmp_path / "m.pt"
    save_checkpoint(path, **as_file("PFENet+CE", model_of("PFENet+CE").state_dict()))
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert convert(path).stdout == f"{path}: nothing to convert\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_what_is_no_checkpoint_is_named_and_left_as_it_is(tmp_path):
    path, gone = tmp_path / "m.pt", tmp_path / "gone.pt"
    path.write_text("mine")
    for file, words in ((path, "is not a checkpoint of this project"), (gone, "no checkpoint")):
        done = convert(file)
        assert done.returncode == 1 and str(file) in done.stderr and words in done.stderr
    assert path.read_text() == "mine" and not gone.exists()
    assert convert().returncode == 1
