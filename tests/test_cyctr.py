"""CyCTR against loops over positions, and what must not matter: padding, void, batch, truth."""
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_equations import few, near, slow_average, slow_conv, slow_resize, tensor
from test_losses import slow_dice

from celp_nb import cyctr
from celp_nb.conditioning import Conditioning, Features
from celp_nb.contrast import FewShotModel, two_path_losses
from celp_nb.cyctr import (
    CycleAttention,
    CyCTR,
    DeformableAttention,
    Transformer,
    choose_keys,
    cycle_consistent,
    nearest,
    position_grid,
    sample_points,
    sine_position,
    with_fallback,
)
from celp_nb.losses import dice


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def lively(module, seed=0, scale=0.5):
    "Weights that are not those of a new module, so that forgetting one shows."
    g = seeded(seed)
    for p in module.parameters(): p.data = p.data + scale * torch.randn(p.shape, generator=g)
    return module.eval()


# --- position


@few
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_sine_position(seed, h, w, width, share):
    padded = np.random.default_rng(seed).random((2, h, w)) < share
    slow = np.zeros((2, h * w, width))
    for b in range(2):
        for i in range(h):
            for j in range(w):
                row = (~padded[b, : i + 1, j]).sum() / ((~padded[b, :, j]).sum() + 1e-6)
                column = (~padded[b, i, : j + 1]).sum() / ((~padded[b, i]).sum() + 1e-6)
                for c in range(width):
                    axis, k = (row, c) if c < width // 2 else (column, c - width // 2)
                    slow[b, i * w + j, c] = (math.cos if k % 2 else math.sin)(
                        2 * math.pi * axis / 10_000 ** (2 * (k // 2) / (width // 2))
                    )
    near(sine_position(tensor(padded), width), slow, 1e-5)


def test_the_last_row_and_column_of_the_image_are_1_wherever_the_padding_begins():
    padded = torch.zeros(1, 6, 6, dtype=torch.bool)
    padded[:, 4:], padded[:, :, 3:] = True, True
    inside = sine_position(padded, 8).view(6, 6, 8)[:4, :3]
    near(inside, sine_position(padded[:, :4, :3], 8).view(4, 3, 8).numpy(), 1e-5)


def test_positions_are_x_before_y():
    assert position_grid((2, 3)).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


# --- deformable attention


def slow_at(plane, x, y):
    "A map (h, w) between its positions, bilinearly; what lies outside is 0."
    total = 0.0
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < plane.shape[0] and 0 <= j < plane.shape[1]:
                total += (1 - abs(y - i)) * (1 - abs(x - j)) * plane[i, j]
    return total


@few
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_sample_points(seed, heads, P, h, w):
    rng, (B, C, n) = np.random.default_rng(seed), (2, 2, 3)
    value, share = rng.normal(size=(B, heads, C, h, w)), rng.normal(size=(B, n, heads, P))
    points = rng.uniform(-2, [w + 1, h + 1], (B, n, heads, P, 2))
    slow = np.zeros((B, n, heads * C))
    for b, i, k, c in np.ndindex(B, n, heads, C):
        for p in range(P):
            at = slow_at(value[b, k, c], *points[b, i, k, p])
            slow[b, i, k * C + c] += share[b, i, k, p] * at
    near(sample_points(tensor(value), tensor(points), tensor(share)), slow, 1e-10)


def test_a_point_on_a_position_is_the_position():
    value = torch.randn(1, 1, 2, 3, 4)
    seen = sample_points(value, position_grid((3, 4)).view(1, 12, 1, 1, 2), torch.ones(1, 12, 1, 1))
    assert torch.allclose(seen[0].T.view(2, 3, 4), value[0, 0], atol=1e-5)


def slow_deformable(net, query, value, padded, size):
    "Of one image: (hw, C), (hw, C), (hw,) → (hw, C)."
    p = {n: t.detach().numpy().astype(float) for n, t in net.named_parameters()}
    (h, w), heads, P = size, net.heads, net.points
    linear = lambda x, name: p[f"{name}.weight"] @ x + p[f"{name}.bias"]
    v = (value @ p["value_proj.weight"].T) * ~padded[:, None]
    out = np.zeros_like(value)
    for i in range(h * w):
        offset = linear(query[i], "sampling_offsets").reshape(heads, P, 2)
        points = offset + [i % w, i // w]
        share = np.exp(linear(query[i], "attention_weights").reshape(heads, P))
        means = []
        for k in range(heads):
            for c in range(k * value.shape[1] // heads, (k + 1) * value.shape[1] // heads):
                plane = v[:, c].reshape(h, w)
                total = sum(share[k, q] * slow_at(plane, *points[k, q]) for q in range(P))
                means.append(total / share[k].sum())
        out[i] = p["output_proj.weight"] @ means
    return out


@settings(few, max_examples=12)
@given(
    st.integers(0, 99),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 4, 9]),
    st.sampled_from([(3, 4), (4, 2), (1, 1)]),
    st.sampled_from([0.0, 0.4, 1.0]),
)
def test_deformable_attention(seed, heads, points, size, share):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = lively(DeformableAttention(4, heads, points), seed)
    query, value = (rng.normal(size=(2, size[0] * size[1], 4)).astype(np.float32) for _ in range(2))
    padded = rng.random(query.shape[:2]) < share
    slow = [
        slow_deformable(net, q.astype(float), v.astype(float), p, size)
        for q, v, p in zip(query, value, padded)
    ]
    near(net(tensor(query), tensor(value), tensor(padded), size), slow, 1e-4)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_new_module_looks_at_its_neighbours_alike(heads):
    points, share = DeformableAttention(4, heads).where(torch.randn(1, 20, 4), (4, 5))
    around = {(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)}
    for i in range(20):
        for k in range(heads):
            assert {(x - i % 5, y - i // 5) for x, y in points[0, i, k].tolist()} == around
    assert torch.allclose(share, torch.tensor(1 / 9))


def double(net, monkeypatch):
    "A module that calculates in float64 from end to end: its coordinates too."
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return net.double()


@pytest.mark.parametrize("heads", [1, 2])
def test_gradients_of_deformable_attention(heads, monkeypatch):
    """By finite differences in float64: of its inputs and of all its weights. No point lies on a
    row or column, where bilinear interpolation has a kink."""
    torch.manual_seed(0)
    net = double(lively(DeformableAttention(4, heads, 2), 1), monkeypatch)
    query, value = (
        torch.randn(2, 6, 4, dtype=torch.float64, generator=seeded(s)).requires_grad_()
        for s in (0, 1)
    )
    padded = torch.tensor([[False] * 6, [False, True, False, False, False, True]])
    points = net.where(query, (2, 3))[0]
    assert (points - points.round()).abs().min() > 1e-3
    names, weights = zip(*net.named_parameters())
    run = lambda query, value, *w: torch.func.functional_call(
        net, dict(zip(names, w)), (query, value, padded, (2, 3))
    )
    assert torch.autograd.gradcheck(run, (query, value, *weights))


def test_gradients_of_sampling():
    value, share = (
        torch.randn(2, 2, 2, 3, 4, dtype=torch.float64, generator=seeded(0)),
        torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=seeded(1)),
    )
    points = 6 * torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, generator=seeded(2)) - 1.5
    assert (points - points.round()).abs().min() > 1e-3
    assert torch.autograd.gradcheck(
        sample_points, tuple(x.requires_grad_() for x in (value, points, share))
    )


# --- keys


@few
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(4, 4), (2, 6), (6, 8)]),
    st.integers(1, 2),
    st.sampled_from([(0, 1, 255), (0, 255), (1, 255), (0,), (1,), (255,)]),
)
def test_with_fallback(seed, size, K, labels):
    mask = np.random.default_rng(seed).choice(labels, (3, K, *size))
    h, w = size
    slow = mask.copy()
    for one, other in zip(slow, mask):
        for shot in one:
            if not (other == 1).any(): shot[h // 2 - 1:h // 2 + 1, w // 2 - 1:w // 2 + 1] = 1
        if not (one == 0).any():
            for shot in one:
                for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)): shot[corner] = 0
    assert (with_fallback(tensor(mask)).numpy() == slow).all()
    for one in slow: assert {0, 1} <= set(one.flat)


def test_fallback_keeps_the_type_and_looks_at_all_shots_together():
    mask = torch.full((1, 2, 5, 5), 0, dtype=torch.uint8)
    mask[0, 1, 0, 1] = 1
    assert torch.equal(with_fallback(mask), mask)  # the other shot shows the object
    assert with_fallback(mask).dtype == torch.uint8
    filled = with_fallback(mask * 0)
    assert (filled[0, :, 2, 2] == 1).all() and (filled[0, :, [0, 0, 4, 4], [0, 4, 0, 4]] == 0).all()


def kinds(seed, B, n, weights):
    label = np.random.default_rng(seed).choice([0, 1, 255], (B, n), p=weights)
    return tensor(label == 1), tensor(label == 0)


MIXTURES = st.sampled_from(
    [
        (0.4, 0.4, 0.2),
        (0.8, 0.1, 0.1),
        (0.1, 0.8, 0.1),
        (0.0, 0.9, 0.1),
        (0.9, 0.0, 0.1),
        (0.05, 0.05, 0.9),
    ]
)


@few
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 30), st.integers(1, 8), MIXTURES
)
def test_how_many_keys_of_which_kind(seed, B, n, limit, weights):
    foreground, background = kinds(seed, B, n, weights)
    positions, key_valid = choose_keys(foreground, background, limit)
    counts = []
    for b in range(B):
        drawn = positions[b, key_valid[b]].tolist()
        fg, bg = int(foreground[b].sum()), int(background[b].sum())
        of_fg = [p for p in drawn if foreground[b, p]]
        of_bg = [p for p in drawn if background[b, p]]
        assert drawn == of_fg + of_bg  # no void, foreground first
        assert len(set(drawn)) == len(drawn)  # none twice
        assert len(of_fg) == min(fg, max(limit, 2 * limit - bg))
        assert len(of_bg) == min(bg, max(limit, 2 * limit - fg))
        assert key_valid[b].tolist() == [i < len(drawn) for i in range(key_valid.shape[1])]
        counts.append(len(drawn))
    assert positions.shape[1] == max(counts)


@pytest.mark.parametrize("limit", [2, 4])
def test_each_position_is_drawn_equally_often(limit):
    """Three of foreground, nine of background, two of void; with a limit of 4 background gets five
    keys, for foreground has too few."""
    draws = 6000
    label = torch.tensor([1, 0, 0, 255, 0, 0, 1, 0, 0, 0, 255, 0, 1, 0])
    torch.manual_seed(0)
    positions, key_valid = choose_keys(
        (label == 1).expand(draws, -1), (label == 0).expand(draws, -1), limit
    )
    often = positions[key_valid].bincount(minlength=14)
    for kind, taken in ((1, min(3, limit)), (0, 2 * limit - min(3, limit))):
        p = taken / (label == kind).sum().item()
        assert (often[label == kind] - p * draws).abs().max() <= 5 * math.sqrt(draws * p * (1 - p))
    assert (often[label == 255] == 0).all()


def keys_of(net, runs=1, **inputs):
    "The keys of each layer of each run."
    seen = []
    for layer in net.layers:
        layer.cross_attention.register_forward_pre_hook(
            lambda module, given: seen.append(given[1].detach())
        )
    with torch.no_grad():
        for _ in range(runs): net(**inputs)
    return seen


def transformer_inputs(B=2, K=1, C=4, size=(6, 7), seed=0, padded=True):
    "Features whose vectors all differ, masks with both kinds and void, and a padded right edge."
    g = seeded(seed)
    mask = torch.tensor([0, 1, 255])[
        torch.multinomial(
            torch.tensor([0.45, 0.4, 0.15]), B * K * size[0] * size[1], True, generator=g
        )
    ].view(B, K, *size)
    edge = torch.zeros(B, *size, dtype=torch.bool)
    if padded: edge[:, :, -2:], edge[0, -1] = True, True
    return dict(
        query=torch.randn(B, C, *size, generator=g),
        support=torch.randn(B, K, C, *size, generator=g),
        support_mask=mask,
        padded=edge,
    )


def transformer(C=4, seed=0, **more):
    torch.manual_seed(seed)
    return lively(Transformer(C, **more), seed, 0.2)


def test_keys_are_drawn_anew_in_training_and_are_the_same_in_evaluation(monkeypatch):
    monkeypatch.setattr(cyctr, "KEYS", 5)
    inputs = transformer_inputs()
    seen = keys_of(transformer().train(), 2, **inputs)
    assert len(seen) == 4 and all(
        not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i]
    )
    seen = keys_of(transformer().eval(), 2, **inputs)
    torch.manual_seed(99)  # whatever happens outside
    seen += keys_of(transformer().eval(), 1, **inputs)
    assert len(seen) == 6 and all(torch.equal(a, seen[0]) for a in seen)
    assert seen[0].shape[1] == 10


def test_evaluation_draws_nothing_from_the_global_generator(monkeypatch):
    monkeypatch.setattr(cyctr, "KEYS", 5)
    net, inputs = transformer(), transformer_inputs()
    before = torch.get_rng_state()
    net(**inputs)
    assert torch.equal(torch.get_rng_state(), before)


# --- cycle consistency


@few
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 7), st.integers(1, 8), st.data()
)
def test_cycle_consistency(seed, B, n, m, data):
    scores = np.random.default_rng(seed).normal(size=(B, n, m)).astype(np.float32)
    flags = lambda size: data.draw(
        st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
    )
    label = [data.draw(st.lists(st.booleans(), min_size=m, max_size=m)) for _ in range(B)]
    key_valid, query_valid = [flags(m) for _ in range(B)], [flags(n) for _ in range(B)]
    slow = [[False] * m for _ in range(B)]
    for b in range(B):
        for j in range(m):
            if not key_valid[b][j]: continue
            i = max((i for i in range(n) if query_valid[b][i]), key=lambda i: scores[b, i, j])
            back = max((k for k in range(m) if key_valid[b][k]), key=lambda k: scores[b, i, k])
            slow[b][j] = label[b][j] == label[b][back]
    ours = cycle_consistent(
        tensor(scores), torch.tensor(label), torch.tensor(key_valid), torch.tensor(query_valid)
    )
    assert ours.tolist() == slow


class Cross(NamedTuple):
    "Inputs of the cross-attention."
    query: torch.Tensor
    support: torch.Tensor
    label: torch.Tensor
    key_valid: torch.Tensor
    ignored: torch.Tensor
    query_valid: torch.Tensor


def cross(seed, B=2, n=6, m=7, C=4):
    g = seeded(seed)
    return Cross(
        torch.randn(B, n, C, generator=g),
        torch.randn(B, m, C, generator=g),
        torch.rand(B, m, generator=g) < 0.5,
        torch.arange(m) < torch.tensor([[m], [m - 2]][:B]),
        torch.rand(B, m, generator=g) < 0.2,
        torch.arange(n) < torch.tensor([[n], [n - 1]][:B]),
    )


def slow_attention(net, query, support, allowed):
    "Of one image: (n, C), (m, C), (m,) bool → (n, C), over the allowed keys alone."
    linears = net.q_fc, net.k_fc, net.v_fc, net.proj
    q, k, v, o = (linear.weight.detach().numpy().astype(float) for linear in linears)
    out = []
    for x in query:
        scores = [(q @ x) @ (k @ s) / math.sqrt(len(x)) for s in support]
        weight = [math.exp(z) if a else 0.0 for z, a in zip(scores, allowed)]
        out.append(o @ (sum(w * (v @ s) for w, s in zip(weight, support)) / sum(weight)))
    return np.array(out)


@few
@given(st.integers(0, 999))
def test_dropped_keys_get_no_weight(seed):
    net, asks = lively(CycleAttention(4), seed), cross(seed)
    with torch.no_grad():
        out, dropped = net(*asks)
        consistent = cycle_consistent(
            net.q_fc(asks.query) @ net.k_fc(asks.support).transpose(1, 2),
            asks.label,
            asks.key_valid,
            asks.query_valid,
        )
    assert torch.equal(dropped, (asks.ignored | ~consistent) & asks.key_valid)
    allowed = asks.key_valid & ~dropped
    assume(allowed.any(1).all())
    near(
        out,
        [
            slow_attention(net, *(x[b].numpy().astype(float) for x in asks[:2]), allowed[b])
            for b in range(2)
        ],
        1e-4,
    )


def test_where_every_key_is_dropped_all_of_them_are_attended_to():
    "-10000 on each is -10000 on none, but for the digits that it costs."
    net, asks = lively(CycleAttention(4)), cross(3)
    with torch.no_grad(): out, dropped = net(*asks._replace(ignored=torch.ones_like(asks.ignored)))
    assert torch.equal(dropped, asks.key_valid)
    near(
        out,
        [
            slow_attention(net, *(x[b].numpy().astype(float) for x in asks[:2]), asks.key_valid[b])
            for b in range(2)
        ],
        5e-3,
    )


@pytest.mark.parametrize("ignored", [False, True])
def test_what_fills_up_a_row_of_keys_does_not_matter(ignored):
    net, asks = lively(CycleAttention(4)), cross(5)
    asks = asks._replace(ignored=asks.ignored | ignored)
    other = asks._replace(
        support=torch.where(asks.key_valid.unsqueeze(2), asks.support, 1e3),
        label=torch.where(asks.key_valid, asks.label, ~asks.label),
    )
    for a, b in zip(net(*asks), net(*other)): assert torch.equal(a, b)


# --- the transformer


def test_padded_query_positions_change_nothing():
    "Not through the self-attention, not through the round trip: the rest is the same to the bit."
    net, inputs = transformer(), transformer_inputs()
    padded = inputs["padded"].unsqueeze(1).expand_as(inputs["query"])
    with torch.no_grad():
        plain = net(**inputs)
        for value in (0.0, 30.0, -30.0):
            other = net(**{**inputs, "query": torch.where(padded, value, inputs["query"])})
            assert torch.equal(plain[~padded], other[~padded]) and not torch.equal(plain, other)


def test_void_support_positions_change_nothing():
    net, inputs = transformer(), transformer_inputs(K=2)
    void = (inputs["support_mask"] == 255).unsqueeze(2).expand_as(inputs["support"])
    assert void.any()
    with torch.no_grad():
        plain = net(**inputs)
        for value in (0.0, 30.0, -30.0):
            assert torch.equal(
                plain, net(**{**inputs, "support": torch.where(void, value, inputs["support"])})
            )
        assert not torch.equal(plain, net(**{**inputs, "support": inputs["support"] + 0.1}))


def test_an_image_that_is_all_padding_is_finite():
    net, inputs = transformer().train(), transformer_inputs()
    out = net(
        **{
            **inputs,
            "padded": torch.ones_like(inputs["padded"]),
            "support_mask": torch.full_like(inputs["support_mask"], 255),
        }
    )
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


def test_a_batch_is_its_halves():
    "One row has fewer keys than the other; what it is filled up with does not show."
    net, inputs = transformer(), transformer_inputs(B=4)
    inputs["support_mask"][1, 0, :3] = 255
    with torch.no_grad():
        whole = net(**inputs)
        halves = [
            net(**{k: v[half] for k, v in inputs.items()}) for half in (slice(2), slice(2, None))
        ]
    assert torch.allclose(whole, torch.cat(halves), atol=1e-5)


def test_the_same_support_again_and_again_is_one_shot():
    "As long as all positions are keys: then each key comes K times, and its label with it."
    net, inputs = transformer(), transformer_inputs()
    with torch.no_grad():
        one = net(**inputs)
        for K in (2, 5, 10):
            again = {
                k: inputs[k].expand(-1, K, *inputs[k].shape[2:])
                for k in ("support", "support_mask")
            }
            assert inputs["support_mask"][0].numel() * K <= 2 * cyctr.KEYS
            assert torch.allclose(one, net(**{**inputs, **again}), atol=1e-4)


def test_the_order_of_the_shots_does_not_matter():
    net, inputs = transformer(), transformer_inputs(K=3)
    with torch.no_grad():
        assert torch.allclose(
            net(**inputs),
            net(**{**inputs, **{k: inputs[k].flip(1) for k in ("support", "support_mask")}}),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (
            dict(width=6),
            "the transformer's width is 6; sines and cosines of rows and columns need a multiple "
            "of 4",
        ),
        (
            dict(width=8, heads=3),
            "the transformer's width is 8, which 3 heads cannot share; use a multiple of 3",
        ),
        (dict(width=4, heads=8), "the transformer's width is 4, which 8 heads cannot share"),
    ],
)
def test_a_width_that_does_not_divide(wrong, sentence):
    with pytest.raises(ValueError, match=sentence): CyCTR(**wrong)


# --- the decoder


def conditioning(B=2, K=1, C=4, size=(6, 7), pixels=(11, 13), seed=0):
    g = seeded(seed)
    labels = lambda *s: torch.tensor([0, 1, 255])[
        torch.multinomial(torch.tensor([0.45, 0.4, 0.15]), math.prod(s), True, generator=g)
    ].view(*s)
    padding = torch.zeros(B, *pixels, dtype=torch.bool)
    padding[:, :, 11:] = True
    return Conditioning(
        torch.randn(B, C, *size, generator=g),
        torch.randn(B, C, generator=g),
        torch.rand(B, 1, *size, generator=g),
        torch.randn(B, K, C, *size, generator=g),
        labels(B, K, *pixels),
        padding,
    ), labels(B, *pixels)


def decoder(C=4, seed=0):
    torch.manual_seed(seed)
    return lively(CyCTR(C), seed, 0.1)


def test_a_batch_is_its_halves_to_the_decoder_too():
    net, (cond, target) = decoder(), conditioning(B=4, K=2)
    with torch.no_grad():
        logits, loss = net(cond, target)
        parts = [
            net(Conditioning(*(x[half] for x in cond)), target[half])
            for half in (slice(2), slice(2, None))
        ]
    assert torch.allclose(logits, torch.cat([p[0] for p in parts]), atol=1e-5)
    assert loss.item() == pytest.approx(sum(p[1].item() for p in parts) / 2, rel=1e-5)


def test_the_loss_is_over_the_first_items_and_the_logits_do_not_depend_on_the_target():
    net, (cond, target) = decoder(), conditioning(B=3)
    with torch.no_grad():
        logits, none = net(cond)
        again, loss = net(cond, target[:2])
        _, first = net(Conditioning(*(x[:2] for x in cond)), target[:2])
    assert (
        none is None
        and torch.equal(logits, again)
        and loss.item() == pytest.approx(first.item(), rel=1e-5)
    )


def test_equation_15():
    "The query's object, averaged over its mask, segments each shot."
    net, (cond, target) = decoder(), conditioning(K=2)
    p = {n: t.detach().numpy().astype(float) for n, t in net.named_parameters()}
    relu = lambda x: np.maximum(x, 0)
    conv = lambda x, name: slow_conv(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
    seen = []
    net.cls.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad(): loss = net(cond, target)[1].item()
    logits, masks = [], []
    for b in range(2):
        x, mid = seen[0][b].numpy().astype(float), cond.query[b].numpy().astype(float)
        mask = slow_resize((target[b].numpy() == 1).astype(float), *mid.shape[1:])
        v = slow_average(relu(conv(x, "pred_supp_qry_proj.0")) + mid, mask)
        everywhere = np.broadcast_to(v[:, None, None], mid.shape)
        for k in range(2):
            support = cond.support[b, k].numpy().astype(float)
            y = relu(conv(np.concatenate([support, everywhere]), "supp_init_merge.0"))
            y = y + relu(conv(relu(conv(y, "supp_beta_conv.0")), "supp_beta_conv.2"))
            logits.append(conv(relu(conv(y, "supp_cls.0")), "supp_cls.3"))
            masks.append(cond.support_mask[b, k].numpy())
    assert loss == pytest.approx(slow_dice(logits, masks), rel=1e-4)


def model_inputs(B=2, K=1, seed=0):
    g = seeded(seed)
    f = lambda *s: torch.randn(*s, 6, 7, generator=g)
    cond, target = conditioning(B, K, seed=seed)
    pseudo = torch.where(torch.rand(B, 11, 13, generator=g) < 0.4, 1, 255)
    return (
        Features(f(B, 3), f(B, 5)),
        Features(f(B, K, 3), f(B, K, 5)),
        cond.support_mask,
        target,
        pseudo,
    )


def few_shot(seed=0):
    torch.manual_seed(seed)
    return FewShotModel(3, decoder(seed=seed), 4, dropout=0.0)


WAY_BACK = tuple(
    f"decoder.{part}."
    for part in ("pred_supp_qry_proj", "supp_init_merge", "supp_beta_conv", "supp_cls")
)


def test_every_parameter_is_trained_and_the_way_back_by_its_own_loss_alone():
    model = few_shot().train()
    losses = two_path_losses(model, *model_inputs(), dice)
    names, parameters = zip(*model.named_parameters())
    def reached(loss):
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return {n for n, g in zip(names, grads) if g is not None and g.abs().sum() > 0}
    back = {n for n in names if n.startswith(WAY_BACK)}
    assert reached(losses.total()) == set(names) and len(back) == 7
    assert reached(losses.main) == reached(losses.contrast) == set(names) - back
    last = {n for n in names if n.startswith("decoder.cls.")}
    assert reached(losses.auxiliary) == set(names) - last


def test_the_decoder_hears_of_void_query_pixels_only_as_padding():
    """The query's foreground never changes its logits; void does where it is passed as padding,
    as in training."""
    query, support, support_mask, target, _ = model_inputs()
    model = few_shot().eval()
    with torch.no_grad():
        plain = model(query, support, support_mask)
        trained = lambda target: (
            two_path_losses(model, query, support, support_mask, target, None).logits
        )
        swapped = torch.where(target == 255, 255, 1 - target)
        assert torch.equal(trained(target), trained(swapped)) and not torch.equal(
            trained(target), plain
        )
        assert torch.equal(trained(target), model(query, support, support_mask, target == 255))
        assert torch.equal(trained(target.clamp(max=1)), plain)


@pytest.mark.parametrize("K", [2, 10])
def test_copies_of_one_shot_are_one_shot_to_the_model(K):
    query, support, support_mask, target, pseudo = model_inputs()
    model = few_shot().eval()
    copies = (
        Features(*(x.expand(-1, K, *x.shape[2:]) for x in support)),
        support_mask.expand(-1, K, -1, -1),
    )
    with torch.no_grad():
        one, many = (
            two_path_losses(model, query, *s, target, pseudo, dice)
            for s in ((support, support_mask), copies)
        )
    assert torch.allclose(one.logits, many.logits, atol=1e-4) and torch.allclose(
        one.contrast_logits, many.contrast_logits, atol=1e-4
    )
    for a, b in zip(one[:3], many[:3]): assert a.item() == pytest.approx(b.item(), rel=1e-4)


# --- lower precision


def lower():
    return torch.autocast("cpu", torch.bfloat16)


def test_points_and_their_weights_are_computed_in_float32():
    net, query = lively(DeformableAttention(4, 2)), torch.randn(2, 42, 4, generator=seeded(0))
    exact = net.where(query, (6, 7))
    with lower(): ours = net.where(query, (6, 7))
    for a, b in zip(exact, ours): assert b.dtype == torch.float32 and torch.equal(a, b)
    with lower(): assert net.sampling_offsets(query).dtype == torch.bfloat16  # without `where`


def test_the_map_is_read_at_points_that_are_not_rounded():
    "A ramp of 60 columns, whole numbers that bf16 holds, shows where it was read."
    ramp = torch.arange(60.0).expand(1, 1, 1, 60, 60).bfloat16()
    points = torch.rand(1, 500, 1, 1, 2, generator=seeded(0)) * 59
    with lower(): read = sample_points(ramp, points, torch.ones(1, 500, 1, 1))
    assert (read[0, :, 0] - points[0, :, 0, 0, 0]).abs().max() < 1e-4


def test_the_round_trip_and_the_keys_are_calculated_in_float32(monkeypatch):
    monkeypatch.setattr(cyctr, "KEYS", 5)
    net, inputs, seen = transformer(), transformer_inputs(), []
    original = cyctr.cycle_consistent
    monkeypatch.setattr(
        cyctr,
        "cycle_consistent",
        lambda scores, *flags: seen.append(scores) or original(scores, *flags),
    )
    with torch.no_grad():
        exact = net(**inputs)
        drawn = cyctr.draw_keys(with_fallback(inputs["support_mask"]).flatten(1), False)
        with lower():
            ours = net(**inputs)
            assert all(
                torch.equal(a, b)
                for a, b in zip(
                    drawn, cyctr.draw_keys(with_fallback(inputs["support_mask"]).flatten(1), False)
                )
            )
            assert sine_position(inputs["padded"], 4).dtype == torch.float32
    assert len(seen) == 4 and all(s.dtype == torch.float32 for s in seen)
    assert (exact - ours.float()).abs().max() > 0 and ours.isfinite().all()


def test_a_step_in_lower_precision_is_close():
    exact = two_path_losses(few_shot().train(), *model_inputs(), dice)
    model = few_shot().train()
    with lower(): ours = two_path_losses(model, *model_inputs(), dice)
    for a, b in zip(exact[:3], ours[:3]):
        assert b.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=0.1)
    ours.total().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_masks_are_resized_without_mixing():
    mask = torch.tensor([0, 1, 255], dtype=torch.uint8)[
        torch.randint(3, (2, 9, 11), generator=seeded(0))
    ]
    ours = nearest(mask, (4, 5))
    assert ours.dtype == torch.uint8 and ours.shape == (2, 4, 5)
    for b in range(2):
        for i in range(4):
            for j in range(5): assert ours[b, i, j] == mask[b, i * 9 // 4, j * 11 // 5]
