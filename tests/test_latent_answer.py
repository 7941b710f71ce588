"""The decoder's answer in the panel of Eq. (1) to Eq. (9)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from celp_nb.app.explorer_state import prepare_image, rank_similarities, slider_maps
from celp_nb.app.latent_answer import (
    answer_of_state,
    answering_widget,
    chosen_known,
    decoder_answer,
    panel_state,
    region_at,
)
from celp_nb.app.latent_payload import (
    PanelImage,
    equal_runs,
    latent_payload,
    run_values,
    scene_images,
)
from celp_nb.conditioning import prototype
from celp_nb.engine.backbones import load_backbone
from celp_nb.ops import VOID


@pytest.fixture(scope="module")
def images():
    return scene_images(2)


@pytest.fixture
def narrow():
    "An image of 161×75 pixels in its square, with a decoder that marks every pixel."
    noise = np.random.default_rng(0).integers(0, 256, (161, 75, 3), dtype=np.uint8)
    image = prepare_image(load_backbone("tiny"), noise, np.zeros((161, 75), np.uint8), 161)
    mid, seen = image.features.mid, []

    def decoder(cond):
        seen.append(cond)
        return torch.stack([cond.prior[:, 0] * 0, cond.prior[:, 0] + 1], 1), None

    payload = latent_payload("noise", image, mid, [], 0)
    return PanelImage(payload, image, mid, SimpleNamespace(decoder=decoder)), seen


def test_padding_is_neither_known_nor_region_nor_answer(narrow):
    shown, _ = narrow
    assert shown.payload["photo_size"] == [161, 75]
    padding = shown.image.padding[0]
    everything = torch.ones(161, 161, dtype=torch.uint8)
    for known in ("classes", "drawn", "nothing"):
        assert (chosen_known(shown, known, everything)[padding] == VOID).all()
        region = region_at(shown.image, chosen_known(shown, known, everything), 5, -0.9)
        assert (region[0][padding] == VOID).all()
    state = ["noise", 5, -0.9, "nothing", "latent", []]
    answer = run_values(answer_of_state(shown, state)["runs"], 161)
    assert (answer == ~padding.numpy()).all()


def test_the_answer_is_for_the_prototype_of_what_is_drawn(narrow):
    shown, seen = narrow
    drawn = torch.zeros(161, 161, dtype=torch.uint8)
    drawn[20:60, 10:160] = 1  # into the padding
    state = ["noise", 5, 0.65, "classes", "drawn", equal_runs(drawn.numpy())]
    answer_of_state(shown, state)
    expected = prototype(shown.mid, drawn[None] * ~shown.image.padding)
    torch.testing.assert_close(seen[-1].prototype.flatten(), expected.flatten())


def test_a_mask_without_a_pixel_is_not_answered(narrow):
    shown, seen = narrow
    state = ["noise", 5, 0.65, "classes", "drawn", []]
    assert answer_of_state(shown, state) == {"of": state, "runs": None} and not seen
    assert decoder_answer(shown, torch.full((1, 161, 161), VOID)) is None


def test_a_region_is_that_of_all_maps(images):
    shown = next(iter(images.values()))
    drawn = torch.zeros(161, 161, dtype=torch.uint8)
    drawn[30:90, 30:90] = 1
    for kind in ("classes", "drawn", "nothing"):
        known = chosen_known(shown, kind, drawn)
        ranked = rank_similarities(shown.image.D, known, (21, 21))
        for centre, delta in ((30, 0.3), (220, 0.65)):
            maps = slider_maps(shown.image, ranked, shown.mid, centre, delta, 11)
            assert torch.equal(region_at(shown.image, known, centre, delta), maps.pseudo)


def test_the_answer_follows_the_panel(images):
    widget = answering_widget(images)
    first, second = images
    seen = []
    widget.observe(lambda change: seen.append(change.new), "answer")

    def settled():
        import time

        end = time.monotonic() + 60
        while widget.answer.get("of") != panel_state(widget):
            assert time.monotonic() < end, "no answer"
            time.sleep(0.02)
        return run_values(widget.answer["runs"], 161)

    before = settled()
    assert widget.decoder and before.any() and not before.all()
    assert (before == run_values(
        answer_of_state(images[first], panel_state(widget))["runs"], 161
    )).all()
    widget.delta = 0.2
    assert (settled() != before).any()
    widget.image, widget.centre = second, images[second].payload["centre"]
    settled()
    mask = np.zeros((161, 161), np.uint8)
    mask[50:90, 50:90] = 1
    widget.drawn = {second: equal_runs(mask)}
    widget.answer_for = "drawn"
    by_hand = settled()
    widget.known = "drawn"
    assert (settled() == by_hand).all()  # what is known has no part in it
