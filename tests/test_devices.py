"""Devices and precisions: what the words of the command line do to PyTorch."""
import pytest
import torch

from celp_nb.engine.devices import find_device, is_on_cpu, set_precision
from celp_nb.engine.segmenter import Segmenter
from celp_nb.repro.config import make_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.setup import prepare


def switches():
    "Whether cuDNN's convolutions, and other products, may use TF32."
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


def switch(convolutions, products):
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.backends.cuda.matmul.allow_tf32 = products


@pytest.fixture(autouse=True)
def as_before():
    "Switches as PyTorch has them, before a test and after it."
    before = switches()
    switch(True, False)
    yield
    switch(*before)


@pytest.mark.parametrize(
    ("precision", "dtype", "wanted"),
    [
        ("float32", None, (False, False)),
        ("tf32", None, (True, True)),
        ("bf16", torch.bfloat16, (True, False)),
    ],
)
def test_float32_is_float32_and_tf32_comes_when_asked_for(precision, dtype, wanted):
    for before in ((True, True), (False, False)):
        switch(*before)
        assert set_precision(precision, "cuda") is dtype and switches() == wanted


def test_a_run_and_a_segmenter_compute_in_their_precision():
    run = dict(folds=(0,), methods=("PFENet",), iterations=1, device="cpu")
    prepare(resolve(make_config(precision="float32", **run)))
    assert switches() == (False, False)
    prepare(resolve(make_config(precision="bf16", **run)))
    assert switches() == (True, False)
    Segmenter.from_pretrained("samples-pfenet")
    assert switches() == (False, False)


def test_tf32_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="tf32, which only a GPU has"):
        Segmenter.from_pretrained("samples-pfenet", precision="tf32")
    with pytest.raises(ValueError, match="tf32, which only a GPU has"):
        prepare(resolve(make_config(precision="tf32", device="cpu")))
    assert switches() == (True, False)


def test_a_device_that_is_not_here_is_refused_by_a_run_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu") and is_on_cpu("auto")
    for call in (lambda: find_device("cuda"), lambda: resolve(make_config(device="cuda"))):
        with pytest.raises(ValueError, match="device is cuda, but PyTorch sees no such GPU here"):
            call()
