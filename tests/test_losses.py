"""Cross-entropy and Dice against loops over pixels in float64, and what void pixels do to each."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_equations import few, slow_cross_entropy, slow_resize, tensor

from celp_nb.losses import cross_entropy, dice

LOSSES = pytest.mark.parametrize("loss", [cross_entropy, dice])


def slow_dice(logits, masks):
    "1 - 2 Σ p y / (Σ p² + Σ y) per channel and image, averaged; a void pixel has p but no y."
    terms = []
    for l, m in zip(logits, masks):
        for c in (0, 1):
            overlap, size = 0.0, 0.0
            for z, label in zip(slow_resize(l[c], *m.shape).flat, m.flat):
                p, y = 1 / (1 + math.exp(-z)), label == c
                overlap += p * y
                size += p * p + y
            terms.append(1 - 2 * overlap / size)
    return sum(terms) / len(terms)


@st.composite
def answers(draw):
    "Logits (B, 2, h, w) and masks (B, H, W) of random sizes; with much, little or only void."
    B, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    H, W = draw(st.sampled_from([(h, w), (7, 5), (1, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    void = draw(st.sampled_from([0.0, 0.3, 1.0]))
    mask = np.where(rng.random((B, H, W)) < void, 255, rng.integers(0, 2, (B, H, W)))
    logits = draw(st.sampled_from([1.0, 8.0])) * rng.normal(size=(B, 2, h, w))
    return logits.astype(np.float32), mask


@few
@given(answers())
def test_cross_entropy(answer):
    logits, mask = answer
    slow = slow_cross_entropy(logits.astype(float), mask)
    ours = cross_entropy(tensor(logits), tensor(mask)).item()
    assert ours == pytest.approx(slow, rel=1e-4, abs=1e-6)


@few
@given(answers())
def test_dice(answer):
    logits, mask = answer
    ours = dice(tensor(logits), tensor(mask)).item()
    assert ours == pytest.approx(slow_dice(logits.astype(float), mask), rel=1e-4) and 0 <= ours <= 1


@few
@given(answers(), st.integers(0, 99))
def test_what_a_void_pixel_does(answer, seed):
    "No gradient in cross-entropy; in Dice both channels are too high there."
    _, mask = answer
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(mask), 2, *mask.shape[1:], generator=generator).requires_grad_()
    void = tensor(mask == 255).unsqueeze(1).expand_as(logits)
    gradient = {}
    for loss in (cross_entropy, dice):
        gradient[loss] = torch.autograd.grad(loss(logits, tensor(mask)), logits)[0]
    assert (gradient[cross_entropy][void] == 0).all()
    # a channel without pixels has no gradient in Dice
    has_pixels = torch.stack([tensor((mask == c).any((1, 2))) for c in (0, 1)], 1)
    has_pixels = has_pixels[:, :, None, None].expand_as(logits)
    assert (gradient[dice][void & has_pixels] > 0).all()
    assert (gradient[dice][~has_pixels] == 0).all()
    if not void.all(): assert (gradient[cross_entropy][~void] != 0).all()


def test_a_void_pixel_by_hand():
    "Probability ½ everywhere: void adds ¼ to each denominator of Dice, nothing to cross-entropy."
    mask = torch.tensor([[[0, 1, 255]]])
    three, two = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 2)
    assert cross_entropy(three, mask).item() == pytest.approx(math.log(2))
    assert dice(three, mask).item() == pytest.approx(1 - 2 * 0.5 / (3 * 0.25 + 1))
    assert dice(two, mask[:, :, :2]).item() == pytest.approx(1 - 2 * 0.5 / (2 * 0.25 + 1))


@LOSSES
@pytest.mark.parametrize("size", [(3, 3), (5, 5)])
@pytest.mark.parametrize("logit", [0.0, -300.0, 300.0])
def test_all_void_is_finite_and_moves_nothing(loss, size, logit):
    logits = torch.full((2, 2, 3, 3), logit, requires_grad=True)
    value = loss(logits, torch.full((2, *size), 255))
    value.backward()
    assert value.item() == {cross_entropy: 0, dice: 1}[loss] and (logits.grad == 0).all()


@LOSSES
def test_the_right_answer_costs_nothing_and_its_opposite_most(loss):
    mask = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    sure = 60 * torch.stack([1 - 2 * mask, 2 * mask - 1], 1).float()
    assert loss(sure, mask).item() < 1e-6
    assert loss(-sure, mask).item() == pytest.approx({cross_entropy: 120, dice: 1}[loss])


@LOSSES
def test_lower_precision_is_left_before_anything_is_added_up(loss):
    logits = torch.randn(1, 2, 41, 41, generator=torch.Generator().manual_seed(0)).bfloat16()
    mask = torch.arange(81 * 81).view(1, 81, 81) % 2
    lower = loss(logits, mask)
    assert lower.dtype == torch.float32 and torch.equal(lower, loss(logits.float(), mask))


def test_dice_weighs_images_alike_and_cross_entropy_pixels():
    logits = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 4, 4, dtype=torch.int64)
    mask[0, 0], mask[1, :, 0], mask[1, :, 1:3] = 1, 1, 255  # of the second image half is void
    each = lambda loss: [loss(logits[[i]], mask[[i]]).item() for i in (0, 1)]
    assert dice(logits, mask).item() == pytest.approx(sum(each(dice)) / 2)
    first, second = each(cross_entropy)
    assert cross_entropy(logits, mask).item() == pytest.approx((2 * first + second) / 3)


@pytest.mark.parametrize("size", [(41, 41), (17, 33), (5, 6), (3, 2)])
def test_cross_entropy_is_pytorchs_with_its_gradient(size):
    "Not to the bit: the order of sums differs; far logits do not overflow."
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([0, 1, 255])[torch.randint(0, 3, (3, *size), generator=generator)]
    for scale in (1, 30, 1000):
        logits = scale * torch.randn(3, 2, 5, 6, generator=generator)
        logits.requires_grad_()
        theirs = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        theirs = F.cross_entropy(theirs, mask, ignore_index=255)
        ours = cross_entropy(logits, mask)
        assert ours.item() == pytest.approx(theirs.item(), rel=2e-6)
        gradients = [torch.autograd.grad(x, logits)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
