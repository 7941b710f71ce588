"""Eq. (1) to Eq. (14) against loops over positions in float64, and what the paper assumes."""
import ast
import inspect
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from celp_nb import contrast as contrast_module
from celp_nb.conditioning import (
    Conditioning,
    Features,
    SupportFeatures,
    latent_prior,
    masked_average,
    prototype,
    support_prior,
)
from celp_nb.contrast import (
    FewShotModel,
    Losses,
    cross_entropy,
    fewer_channels,
    latent_conditioning,
    main_prior,
    masked_latent_conditioning,
    support_conditioning,
    two_path_losses,
)
from celp_nb.engine.backbones import episode_features, load_backbone
from celp_nb.engine.steps import image_delta
from celp_nb.latent import (
    candidates,
    draw_centre,
    pseudo_mask,
    sample_latent,
    similar_region,
)
from celp_nb.ops import cosine, min_max, resize
from celp_nb.pfenet import PFENet, bin_size, dense_comparison
from celp_nb.similarity import (
    known_positions,
    self_similarity,
    similar_count,
    similarity_rows,
)

few = settings(derandomize=True, deadline=None, max_examples=25)


# --- the equations once more, slowly


def slow_resize(x, height, width):
    "Bilinear with aligned corners, (h, w) → (height, width)."
    h, w = x.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, z = (
                i * (h - 1) / (height - 1) if height > 1 else 0.0,
                j * (w - 1) / (width - 1) if width > 1 else 0.0,
            )
            a, b = min(int(y), h - 1), min(int(z), w - 1)
            c, d = min(a + 1, h - 1), min(b + 1, w - 1)
            u, v = y - a, z - b
            out[i, j] = (1 - u) * ((1 - v) * x[a, b] + v * x[a, d]) + u * (
                (1 - v) * x[c, b] + v * x[c, d]
            )
    return out


def slow_cosine(a, b):
    "Of two vectors."
    dot, aa, bb = sum(x * y for x, y in zip(a, b)), sum(x * x for x in a), sum(y * y for y in b)
    return dot / (math.sqrt(aa) * math.sqrt(bb) + 1e-7)


def slow_similarity(high):
    "Eq. (1) of one image, (C, n) → (n, n)."
    n = high.shape[1]
    return np.array([[slow_cosine(high[:, i], high[:, j]) for j in range(n)] for i in range(n)])


def slow_min_max(x):
    "Eq. (9) of one map."
    low, high = min(x.flat), max(x.flat)
    return np.array([[(v - low) / (high - low + 1e-7) for v in row] for row in x])


def slow_average(mid, weight):
    "Eq. (7) and Eq. (11) of one image, (C, h, w) and (h, w) → (C,)."
    total = [0.0] * len(mid)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            for c in range(len(mid)): total[c] += mid[c, i, j] * weight[i, j]
    return np.array(total) / (sum(weight.flat) + 0.0005)


def slow_cross_entropy(logits, masks):
    "The mean over valid pixels of -log softmax, (B, 2, h, w) and (B, H, W)."
    terms = []
    for l, m in zip(logits, masks):
        big = [slow_resize(l[c], *m.shape) for c in (0, 1)]
        for i in range(m.shape[0]):
            for j in range(m.shape[1]):
                if m[i, j] != 255:
                    top = max(big[0][i, j], big[1][i, j])
                    terms.append(
                        top
                        + math.log(sum(math.exp(b[i, j] - top) for b in big))
                        - big[m[i, j]][i, j]
                    )
    return sum(terms) / len(terms) if terms else 0.0


def slow_conv(x, weight, bias=None):
    "Zero-padded convolution, (C, h, w) with (D, C, k, k) → (D, h, w)."
    D, C, k, _ = weight.shape
    _, h, w = x.shape
    out = np.zeros((D, h, w))
    for d in range(D):
        for i in range(h):
            for j in range(w):
                total = 0.0 if bias is None else bias[d]
                for c in range(C):
                    for a in range(k):
                        for b in range(k):
                            y, z = i + a - k // 2, j + b - k // 2
                            if 0 <= y < h and 0 <= z < w: total += weight[d, c, a, b] * x[c, y, z]
                out[d, i, j] = total
    return out


def slow_pool(x, height, width):
    """Adaptive average pooling: output i covers inputs from floor(i h / height) up to
    ceil((i + 1) h / height)."""
    C, h, w = x.shape
    out = np.zeros((C, height, width))
    for c in range(C):
        for i in range(height):
            for j in range(width):
                rows = range(i * h // height, -(-(i + 1) * h // height))
                columns = range(j * w // width, -(-(j + 1) * w // width))
                out[c, i, j] = sum(x[c, r, s] for r in rows for s in columns) / (
                    len(rows) * len(columns)
                )
    return out


# --- random inputs


class Case(NamedTuple):
    "One random image batch: sizes, features and masks as numpy."
    high: np.ndarray   # (B, C, h, w) float32
    mid: np.ndarray    # (B, C, h, w) float32
    known: np.ndarray  # (B, H, W) uint8 {0, 1, 255}
    region: np.ndarray # (B, hw) bool
    rng: np.random.Generator


@st.composite
def cases(draw, images=3, side=5):
    B, C, h, w = (
        draw(st.integers(1, images)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, side)),
        draw(st.integers(1, side)),
    )
    H, W = draw(st.integers(h, 2 * side + 1)), draw(st.integers(w, 2 * side + 1))
    kind, rng = (
        draw(st.sampled_from(["some", "all", "none", "void"])),
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
    )
    known = {
        "some": rng.choice(np.array([0, 0, 0, 1, 255], np.uint8), (B, H, W)),
        "all": np.ones((B, H, W), np.uint8),
        "none": np.zeros((B, H, W), np.uint8),
        "void": np.full((B, H, W), 255, np.uint8),
    }[kind]
    features = lambda: rng.normal(size=(B, C, h, w)).astype(np.float32)
    return Case(
        features(),
        features(),
        known,
        rng.random((B, h * w)) < draw(st.sampled_from([0.0, 0.3, 1.0])),
        rng,
    )


def tensor(x):
    return torch.from_numpy(np.ascontiguousarray(x))


def near(ours, slow, atol=2e-5):
    slow = np.asarray(slow, np.float64)
    assert tuple(ours.shape) == slow.shape
    assert np.abs(ours.detach().numpy().astype(np.float64) - slow).max(initial=0) <= atol * max(
        1.0, np.abs(slow).max(initial=0)
    )


def slow_known(known, h, w):
    "Resized values of the annotated mask, (B, H, W) → (B, hw)."
    return np.stack([slow_resize(k.astype(float), h, w).ravel() for k in known])


delta_values = st.floats(-0.95, 0.95)


# --- similarity


@few
@given(cases())
def test_equation_1(case):
    D = self_similarity(tensor(case.high))
    near(D, [slow_similarity(x.reshape(len(x), -1).astype(float)) for x in case.high])
    assert torch.allclose(D, D.transpose(1, 2), atol=1e-6)
    long = (
        np.linalg.norm(case.high, axis=1).reshape(len(D), -1) > 0.1
    )  # the published 1e-7 shortens tiny vectors
    diagonal = D.diagonal(dim1=1, dim2=2).numpy()
    assert np.abs(diagonal[long] - 1).max(initial=0) < 2e-5


@few
@given(cases(), st.floats(0.5, 100), st.floats(0.5, 100))
def test_cosine_has_no_scale_and_no_order(case, s, t):
    a, b = tensor(case.high).flatten(2), tensor(case.mid).flatten(2)
    assume(min(a.norm(dim=1).min(), b.norm(dim=1).min()) > 0.1)
    assert torch.allclose(cosine(s * a, t * b), cosine(a, b), atol=2e-5)
    assert torch.allclose(cosine(-a, b), -cosine(a, b), atol=1e-6)
    assert torch.allclose(cosine(b, a), cosine(a, b).transpose(1, 2), atol=1e-6)


def test_cosine_of_nothing_is_zero():
    assert (cosine(torch.zeros(1, 3, 2), torch.ones(1, 3, 4)) == 0).all()


@few
@given(cases())
def test_known_positions(case):
    h, w = case.high.shape[2:]
    values, ours = slow_known(case.known, h, w), known_positions(tensor(case.known), (h, w)).numpy()
    clear = (
        np.abs(values - 0.25) > 1e-4
    )  # on the threshold itself rounding decides, but for the exact case below
    assert (ours == (values > 0.25))[clear].all()
    if not case.known.any(): assert not ours.any()
    if case.known.all(): assert ours.all()


def test_known_positions_on_the_threshold():
    # 4 × 4 pixels at 3 × 3 positions: the middle one is the average of the four middle pixels
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, 1, 1] = 1
    assert not known_positions(mask, (3, 3))[0, 4]  # exactly a quarter is not enough
    mask[0, 1, 2] = 1
    assert known_positions(mask, (3, 3))[0, 4]
    assert known_positions(torch.where(mask == 1, 255, 0).roll(1, 2), (3, 3))[
        0, 4
    ]  # a quarter of void is


@few
@given(cases(), delta_values)
def test_equations_2_and_3(case, delta):
    B, _, h, w = case.high.shape
    D = np.stack([slow_similarity(x.reshape(len(x), -1).astype(float)) for x in case.high])
    assume(np.abs(D - delta).min() > 1e-5)
    known = case.region
    N = np.array(
        [
            [
                sum(D[b, i, j] > delta and not known[b, j] for j in range(h * w))
                for i in range(h * w)
            ]
            for b in range(B)
        ]
    )
    ours = similar_count(self_similarity(tensor(case.high)), tensor(known), delta)
    assert (ours.numpy() == N).all()
    for sigma in range(h * w + 2):
        P = [[bool(N[b, i] >= sigma and not known[b, i]) for i in range(h * w)] for b in range(B)]
        assert candidates(ours, tensor(known), sigma).tolist() == P
    assert not candidates(ours, tensor(known), h * w + 1).any()


@few
@given(cases(), delta_values, delta_values, st.integers(0, 12), st.integers(0, 12))
def test_fewer_positions_pass_a_higher_threshold(case, delta, other, sigma, more):
    D, known, (low, high) = (
        self_similarity(tensor(case.high)),
        tensor(case.region),
        sorted([delta, other]),
    )
    many, few_ = similar_count(D, known, low), similar_count(D, known, high)
    assert (many >= few_).all() and (many <= (~known).sum(1, keepdim=True)).all()
    P, smaller = candidates(many, known, sigma), candidates(many, known, sigma + more)
    assert not (smaller & ~P).any() and not (P & known).any()


@pytest.mark.parametrize("delta", [-1, 1, 1.5, -3, math.nan, math.inf])
def test_delta_outside_the_range_of_a_cosine(delta):
    high, known = torch.rand(1, 2, 3, 3), torch.zeros(1, 9, 9, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"delta is {delta}.*between -1 and 1"):
        similar_count(self_similarity(high), known[:, :3, :3].flatten(1) > 0, delta)
    with pytest.raises(ValueError, match="delta is"):
        sample_latent(high, known, torch.Generator(), delta=delta)


@pytest.mark.parametrize("delta", [-1, 1, 65])
def test_delta_is_checked_with_a_given_centre_too(delta):
    with pytest.raises(ValueError, match="delta is"):
        sample_latent(
            torch.rand(1, 2, 3, 3),
            torch.zeros(1, 9, 9, dtype=torch.uint8),
            centre=torch.tensor([0]),
            delta=delta,
        )


# --- latent prototypes


def test_the_centre_is_drawn_uniformly():
    "Positions 0, 2 and 3 are alike, 4 is like them but known, 1 is like none."
    high = (
        torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0]])
        .view(1, 2, 1, 5)
        .expand(6000, -1, -1, -1)
    )
    known = torch.tensor([[False, False, False, False, True]]).expand(6000, -1)
    counts = draw_centre(high, known, torch.Generator().manual_seed(0), 0.5, 2).bincount(
        minlength=5
    )
    assert counts[1] == counts[4] == 0
    assert (counts[[0, 2, 3]] - 2000).abs().max() < 5 * math.sqrt(6000 * (1 / 3) * (2 / 3))


@pytest.mark.parametrize("at", [0, 63, 64, 130, 198])
def test_the_only_pair_is_found_wherever_it_comes(at):
    """Of 200 positions two are alike: one the last of the shuffle, the other early or late in it.
    In a second image all are alike."""
    order = torch.rand(2, 200, generator=torch.Generator().manual_seed(5)).argsort(
        1, descending=True
    )
    high = torch.stack([torch.eye(200), torch.ones(200, 200)])
    high[0][:, order[0, at]] = high[0][:, order[0, 199]]
    centre = draw_centre(
        high.view(2, 200, 10, 20),
        torch.zeros(2, 200, dtype=torch.bool),
        torch.Generator().manual_seed(5),
        0.5,
        2,
    )
    assert centre.tolist() == [order[0, at], order[1, 0]]


def test_no_candidate_no_centre():
    high, known = torch.ones(3, 1, 9, 9), torch.zeros(3, 81, dtype=torch.bool)
    known[0], known[1, :71] = (
        True,
        True,
    )  # nothing to ask about; ten positions of one kind; all of one kind
    assert [
        c >= 0 for c in draw_centre(high, known, torch.Generator().manual_seed(0), 0.5, 11).tolist()
    ] == [False, False, True]


@few
@given(cases(), delta_values, st.integers(0, 6), st.integers(0, 99))
def test_the_centre_is_the_first_candidate_of_a_shuffle(case, delta, sigma, seed):
    B, _, h, w = case.high.shape
    D = np.stack([slow_similarity(x.reshape(len(x), -1).astype(float)) for x in case.high])
    assume(np.abs(D - delta).min() > 1e-5)
    draw = torch.rand(B, h * w, generator=torch.Generator().manual_seed(seed))
    slow = []
    for b in range(B):
        P = [
            i
            for i in range(h * w)
            if not case.region[b, i]
            and sum(D[b, i, j] > delta and not case.region[b, j] for j in range(h * w)) >= sigma
        ]
        slow.append(max(P, key=lambda i: draw[b, i], default=-1))
    assert (
        draw_centre(
            tensor(case.high),
            tensor(case.region),
            torch.Generator().manual_seed(seed),
            delta,
            sigma,
        ).tolist()
        == slow
    )


@few
@given(cases(), delta_values, st.randoms())
def test_equation_4(case, delta, random):
    B, _, h, w = case.high.shape
    D = np.stack([slow_similarity(x.reshape(len(x), -1).astype(float)) for x in case.high])
    assume(np.abs(D - delta).min() > 1e-5)
    centre = [random.randint(-1, h * w - 1) for _ in range(B)]
    slow = [
        [bool(c >= 0 and D[b, c, j] > delta and not case.region[b, j]) for j in range(h * w)]
        for b, c in enumerate(centre)
    ]
    rows = similarity_rows(tensor(case.high), torch.tensor(centre).unsqueeze(1))
    assert (
        rows.shape == (B, 1, h * w)
        and similar_region(rows[:, 0], tensor(case.region), delta).tolist() == slow
    )


@few
@given(cases())
def test_equations_5_and_6(case):
    B, _, h, w = case.high.shape
    ours = pseudo_mask(tensor(case.region), (h, w), tensor(case.known)).numpy()
    for b in range(B):
        share = slow_resize(case.region[b].reshape(h, w).astype(float), *case.known.shape[1:])
        for i in range(share.shape[0]):
            for j in range(share.shape[1]):
                # M' = M¹ + M²⁵⁵: 1 where the region is, 255 where neither region nor annotation is
                M1 = int(share[i, j] >= 0.25 and case.known[b, i, j] != 1)
                M255 = 255 * int(M1 == 0 and case.known[b, i, j] != 1)
                if abs(share[i, j] - 0.25) > 1e-5: assert ours[b, i, j] == M1 + M255
    assert set(np.unique(ours)) <= {0, 1, 255} and ours.dtype == np.int64
    assert (
        (ours == 0) == (case.known == 1)
    ).all()  # the three values part the image; annotated stays background
    if not case.region.any(): assert not (ours == 1).any()


def test_pseudo_mask_on_the_threshold():
    region = torch.tensor([[True, False, False, False]])
    mask = pseudo_mask(region, (2, 2), torch.zeros(1, 3, 3, dtype=torch.uint8))[0]
    assert mask.tolist() == [
        [1, 1, 255],
        [1, 1, 255],
        [255, 255, 255],
    ]  # the middle pixel holds exactly a quarter


@few
@given(cases())
def test_equations_7_and_11(case):
    B, C, h, w = case.mid.shape
    near(
        masked_average(tensor(case.mid), tensor(case.region.reshape(B, 1, h, w)).float()),
        [
            slow_average(x.astype(float), m.reshape(h, w).astype(float))
            for x, m in zip(case.mid, case.region)
        ],
    )
    soft = [slow_resize((k == 1).astype(float), h, w) for k in case.known]
    ours = prototype(tensor(case.mid), tensor(case.known))
    near(ours, [slow_average(x.astype(float), m) for x, m in zip(case.mid, soft)])
    if not (case.known == 1).any():
        assert (ours == 0).all()  # void is no foreground, and nothing averages to nothing


@few
@given(cases(), st.integers(0, 12), delta_values, st.integers(0, 99))
def test_latent_prototype_sampling_keeps_its_promises(case, sigma, delta, seed):
    B, _, h, w = case.high.shape
    pseudo, centre = sample_latent(
        tensor(case.high),
        tensor(case.known),
        torch.Generator().manual_seed(seed),
        delta=delta,
        sigma=sigma,
    )
    again, _ = sample_latent(
        tensor(case.high), tensor(case.known), centre=centre, delta=delta, sigma=sigma
    )
    assert torch.equal(pseudo, again)
    known = known_positions(tensor(case.known), (h, w))
    P = candidates(similar_count(self_similarity(tensor(case.high)), known, delta), known, sigma)
    for b in range(B):
        assert P[b, centre[b]] if P[b].any() else centre[b] == -1
        if centre[b] < 0: assert not (pseudo[b] == 1).any()
    if case.known.all(): assert (centre == -1).all()


@given(cases(), st.floats(0.05, 0.9))
def test_the_delta_of_an_image_is_exceeded_by_the_share_of_its_cosines(case, share):
    high, known = tensor(case.high), tensor(case.known)
    own = image_delta(high, known, share)
    for b, delta in enumerate(own.tolist()):
        unknown = ~known_positions(known[b:b + 1], tuple(high.shape[-2:]))[0]
        cosines = self_similarity(high[b:b + 1])[0][unknown][:, unknown].flatten()
        if not len(cosines): assert delta == pytest.approx(0.9999)
        elif -0.9 < delta < 0.9:  # otherwise at the bounds of what a δ can be
            assert (cosines > delta + 1e-5).sum() <= share * (len(cosines) - 1) + 1 and (
                cosines >= delta - 1e-5
            ).sum() >= share * (len(cosines) - 1)


def test_each_image_is_sampled_with_its_own_delta():
    torch.manual_seed(0)
    high, known, centre, delta = (
        torch.randn(3, 6, 5, 5),
        torch.zeros(3, 33, 33, dtype=torch.long),
        torch.tensor([3, 12, 24]),
        torch.tensor([0.1, 0.5, -0.2]),
    )
    together = sample_latent(high, known, centre=centre, delta=delta, sigma=1)[0]
    for b in range(3):
        assert torch.equal(
            together[b],
            sample_latent(
                high[b : b + 1],
                known[b : b + 1],
                centre=centre[b : b + 1],
                delta=delta[b].item(),
                sigma=1,
            )[0][0],
        )
    with pytest.raises(ValueError, match="between -1 and 1"):
        sample_latent(high, known, centre=centre, delta=torch.tensor([0.1, 1.5, 0.2]))


def test_the_masked_prior_is_nothing_outside_of_the_region():
    "⊙ [M′ = 1], the sentence after Eq. (8): 0 on known objects and on the rest alike."
    torch.manual_seed(0)
    net = FewShotModel(6, PFENet(4, (1.0,)), 4).eval()
    query, support = (
        Features(torch.rand(2, 6, 5, 5), torch.rand(2, 6, 5, 5)),
        Features(torch.rand(2, 1, 6, 5, 5), torch.rand(2, 1, 6, 5, 5)),
    )
    pseudo = torch.full((2, 33, 33), 255)
    pseudo[0, 8:20, 8:20], pseudo[1, :, 20:], pseudo[:, 24:, :12] = 1, 1, 0
    cond = support_conditioning(net, query, support, torch.ones(2, 1, 33, 33))
    whole, masked = latent_conditioning(cond, pseudo), masked_latent_conditioning(cond, pseudo)
    outside = resize((pseudo == 1).float().unsqueeze(1), (5, 5)) == 0
    assert (masked.prior[outside] == 0).all() and (whole.prior[outside] > 0).any()
    assert torch.equal(whole.prototype, masked.prototype)
    assert torch.equal(whole.support_mask, masked.support_mask)


def test_a_prior_that_is_given_is_used():
    torch.manual_seed(0)
    net = FewShotModel(6, PFENet(4, (1.0,)), 4).eval()
    query, support, mask = (
        Features(torch.rand(2, 6, 5, 5), torch.rand(2, 6, 5, 5)),
        Features(torch.rand(2, 1, 6, 5, 5), torch.rand(2, 1, 6, 5, 5)),
        torch.ones(2, 1, 33, 33),
    )
    alone, other = support_conditioning(net, query, support, mask), torch.rand(2, 1, 5, 5)
    assert torch.equal(main_prior(net, query, support, mask), alone.prior)
    given = support_conditioning(net, query, support, mask, prior=other)
    assert torch.equal(given.prior, other)


def test_a_centre_needs_a_source():
    with pytest.raises(ValueError, match="torch.Generator, or the centre"):
        sample_latent(torch.rand(1, 2, 3, 3), torch.zeros(1, 9, 9, dtype=torch.uint8))


# --- priors


@few
@given(cases())
def test_equation_9(case):
    x = case.mid[:, 0]
    ours = min_max(tensor(x))
    near(ours, [slow_min_max(m.astype(float)) for m in x])
    assert (ours >= 0).all() and (ours <= 1).all() and (ours.amin((1, 2)) == 0).all()
    if x[0].size == 1: assert (ours == 0).all()


@few
@given(cases())
def test_equations_8_and_9(case):
    B, C, h, w = case.mid.shape
    v = case.rng.normal(size=(B, C)).astype(np.float32)
    maps = [
        np.array(
            [
                [
                    slow_cosine(v[b].astype(float), case.mid[b, :, i, j].astype(float))
                    for j in range(w)
                ]
                for i in range(h)
            ]
        )
        for b in range(B)
    ]
    assume(all(m.size == 1 or np.ptp(m) > 1e-2 for m in maps))  # min-max stretches rounding
    near(latent_prior(tensor(v), tensor(case.mid)), [[slow_min_max(m)] for m in maps], atol=1e-4)
    assert (
        latent_prior(torch.zeros(B, C), tensor(case.mid)) == 0
    ).all()  # no latent region, no prior


@st.composite
def episodes(draw, shots=3, side=4):
    "Query features, support features and masks (B, K, H, W), one batch."
    case, K = draw(cases(images=2, side=side)), draw(st.integers(1, shots))
    (B, C, h, w), (H, W) = case.high.shape, case.known.shape[1:]
    support = case.rng.normal(size=(B, K, C, h, w)).astype(np.float32)
    kind = draw(st.sampled_from(["some", "all", "none"]))
    mask = {
        "some": case.rng.choice(np.array([0, 1, 1, 255], np.uint8), (B, K, H, W)),
        "all": np.ones((B, K, H, W), np.uint8),
        "none": np.zeros((B, K, H, W), np.uint8),
    }[kind]
    return case, support, mask


def slow_best_match(query, support):
    "The best cosine of each query position with any support position, (C, h, w) both → (h, w)."
    vectors = support.reshape(len(support), -1).T
    best = np.zeros(query.shape[1:])
    for i, j in np.ndindex(*best.shape):
        best[i, j] = max(slow_cosine(query[:, i, j], vector) for vector in vectors)
    return best


@few
@given(episodes())
def test_support_prior(episode):
    case, support, mask = episode
    (B, K, _, h, w), f = support.shape, np.float64
    ours = support_prior(tensor(case.high), tensor(support), tensor(mask))
    slow = np.zeros((B, 1, h, w))
    for b in range(B):
        for k in range(K):
            s = support[b, k].astype(f) * slow_resize((mask[b, k] == 1).astype(f), h, w)
            best = slow_best_match(case.high[b].astype(f), s)
            assume(best.size == 1 or np.ptp(best) == 0 or np.ptp(best) > 1e-2)
            slow[b, 0] += slow_min_max(best) / K
    near(ours, slow, atol=1e-4)
    assert (ours >= 0).all() and (ours <= 1).all()
    if not (mask == 1).any(): assert (ours == 0).all()
    single = [
        support_prior(tensor(case.high), tensor(support[:, k : k + 1]), tensor(mask[:, k : k + 1]))
        for k in range(K)
    ]
    assert torch.allclose(
        ours, torch.stack(single).mean(0), atol=1e-6
    )  # K shots are the mean of single ones


# --- the decoder


@few
@given(cases(images=2, side=3), st.integers(1, 3))
def test_equation_12(case, D):
    B, C, h, w = case.mid.shape
    v, prior, weight = (
        case.rng.normal(size=s).astype(np.float32)
        for s in ((B, C), (B, 1, h, w), (D, 2 * C + 1, 1, 1))
    )
    slow = []
    for b in range(B):
        expanded = np.broadcast_to(v[b][:, None, None], (C, h, w))
        slow.append(
            slow_conv(
                np.concatenate([case.mid[b], expanded, prior[b]]).astype(float),
                weight.astype(float),
            )
        )
    near(
        dense_comparison(tensor(weight), tensor(case.mid), tensor(v), tensor(prior)),
        slow,
        atol=1e-4,
    )


def slow_pfenet(decoder, query, v, prior):
    """The Feature Enrichment Module of one image in loops: logits (2, h, w) and the inner logits of
    each bin."""
    p = {n: t.detach().numpy().astype(float) for n, t in decoder.named_parameters()}
    relu = lambda x: np.maximum(x, 0)
    conv = lambda x, name: slow_conv(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
    two = lambda x, name: relu(conv(relu(conv(x, f"{name}.0")), f"{name}.2"))
    head = lambda x, name: conv(relu(conv(x, f"{name}.0")), f"{name}.3")
    (_, h, w), maps, inner = query.shape, [], []
    for i, bin in enumerate(decoder.bins):
        a, b = (int(bin), int(bin)) if bin > 1 else (max(1, int(h * bin)), max(1, int(w * bin)))
        everywhere = np.array([[[c] * b] * a for c in v])
        inputs = [slow_pool(query, a, b), everywhere, slow_resize(prior[0], a, b)[None]]
        x = relu(conv(np.concatenate(inputs), f"init_merge.{i}.0"))
        if i:
            previous = np.stack([slow_resize(m, a, b) for m in maps[-1]])
            x = x + relu(conv(np.concatenate([x, previous]), f"alpha_conv.{i - 1}.0"))
        x = x + two(x, f"beta_conv.{i}")
        inner.append(head(x, f"inner_cls.{i}"))
        maps.append(np.stack([slow_resize(m, h, w) for m in x]))
    x = relu(conv(np.concatenate(maps), "res1.0"))
    return head(x + two(x, "res2"), "cls"), inner


@settings(few, max_examples=6)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(3, 4), (4, 3), (1, 1), (2, 5)]),
    st.sampled_from([(3, 2), (1.0, 0.5), (5,), (1.0, 0.5, 0.125)]),
)
def test_equation_14_and_the_decoder(seed, size, bins):
    rng, B, C = np.random.default_rng(seed), 2, 2
    torch.manual_seed(seed)
    decoder = PFENet(C, bins).eval()
    query, v, prior = (
        rng.normal(size=s).astype(np.float32) for s in ((B, C, *size), (B, C), (B, 1, *size))
    )
    target = rng.choice([0, 1, 255], (B, 7, 6))
    cond = Conditioning(tensor(query), tensor(v), tensor(prior), None, None, None)
    with torch.no_grad(): logits, auxiliary = decoder(cond, tensor(target))
    slow = [
        slow_pfenet(decoder, query[b].astype(float), v[b].astype(float), prior[b].astype(float))
        for b in range(B)
    ]
    near(logits, [s[0] for s in slow], atol=1e-4)
    per_bin = [slow_cross_entropy([s[1][i] for s in slow], target) for i in range(len(bins))]
    assert auxiliary.item() == pytest.approx(sum(per_bin) / len(bins), rel=1e-4)
    with torch.no_grad():
        one, only_first = decoder(
            cond, tensor(target[:1])
        )  # targets of the first items only, as in training with both paths
        assert torch.allclose(one, logits) and decoder(cond)[1] is None
    per_bin = [slow_cross_entropy([slow[0][1][i]], target[:1]) for i in range(len(bins))]
    assert only_first.item() == pytest.approx(sum(per_bin) / len(bins), rel=1e-4)


@pytest.mark.parametrize(
    "bin, size, expected",
    [
        (60, (31, 20), (60, 60)),
        (1.0, (31, 20), (31, 20)),
        (0.5, (31, 20), (15, 10)),
        (0.125, (31, 7), (3, 1)),
        (2, (1, 1), (2, 2)),
    ],
)
def test_bin_size(bin, size, expected):
    assert bin_size(bin, size) == expected


# --- both paths


class ToyDecoder(nn.Module):
    "A decoder as short as can be: similarity to the prototype and the prior, weighted."
    def __init__(self, width, own_loss=True):
        super().__init__()
        self.head, self.own_loss, self.calls = nn.Conv2d(width + 2, 2, 1), own_loss, []

    def forward(self, cond, target=None):
        self.calls.append((cond, target))
        alike = (cond.query * cond.prototype[:, :, None, None]).sum(1, keepdim=True)
        logits = self.head(torch.cat([cond.query, alike, cond.prior], 1))
        if target is None or not self.own_loss: return logits, None
        return logits, cross_entropy(logits[:len(target)], target)


def toy_model(width=3, in_channels=4, own_loss=True, seed=0):
    torch.manual_seed(seed)
    return FewShotModel(in_channels, ToyDecoder(width, own_loss), width, dropout=0.0)


@st.composite
def training_batches(draw):
    """Features, masks and pseudo-masks of up to three images with one or two shots; some
    pseudo-masks without a region."""
    B, K, seed = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 2**32 - 1))
    (h, w), (H, W) = draw(st.sampled_from([((3, 4), (9, 7)), ((1, 1), (1, 1)), ((2, 3), (5, 8))]))
    empty = draw(st.lists(st.booleans(), min_size=B, max_size=B))
    rng = np.random.default_rng(seed)
    f = lambda *s: tensor(rng.normal(size=(*s, h, w)).astype(np.float32))
    masks = lambda *s: tensor(rng.choice([0, 1, 255], (*s, H, W)))
    pseudo = masks(B)
    pseudo[tensor(np.array(empty))] = 255
    pseudo[~tensor(np.array(empty)), 0, 0] = 1
    return (
        Features(f(B, 4), f(B, 5)),
        Features(f(B, K, 4), f(B, K, 5)),
        masks(B, K),
        masks(B),
        pseudo,
    )


def slow_conditionings(model, query, support, support_mask, pseudo):
    "Eq. (7) to Eq. (12) in loops: mid, prototype and prior of both paths, per image."
    weight = model.reduce[0].weight.detach().numpy().astype(float)
    reduce = lambda x: np.maximum(slow_conv(x.numpy().astype(float), weight), 0)
    h, w = query.mid.shape[2:]
    soft = lambda m: slow_resize((m.numpy() == 1).astype(float), h, w)
    main, latent = [], []
    for b in range(len(pseudo)):
        mid = reduce(query.mid[b])
        shots = [slow_average(reduce(s), soft(m)) for s, m in zip(support.mid[b], support_mask[b])]
        one = slice(b, b + 1)
        prior = support_prior(query.high[one], support.high[one], support_mask[one])
        main.append((mid, sum(shots) / len(shots), prior[0].numpy()))
        v = slow_average(mid, soft(pseudo[b]))
        cosines = [slow_cosine(v, x) for x in mid.reshape(len(mid), -1).T]
        latent.append((mid, v, slow_min_max(np.reshape(cosines, (h, w)))[None]))
    return main, latent


@few
@given(training_batches())
def test_equations_10_and_13(batch):
    query, support, support_mask, target, pseudo = batch
    model = toy_model()
    losses = two_path_losses(model, query, support, support_mask, target, pseudo)
    main, latent = slow_conditionings(model, query, support, support_mask, pseudo)
    with_region = [b for b in range(len(pseudo)) if (pseudo[b] == 1).any()]

    weight, bias = (p.detach().numpy().astype(float) for p in model.decoder.head.parameters())
    decode = lambda mid, v, prior: slow_conv(
        np.concatenate([mid, np.einsum("chw,c->hw", mid, v)[None], prior]), weight, bias
    )
    L1 = slow_cross_entropy([decode(*c) for c in main], target.numpy())
    second = [decode(*latent[b]) for b in with_region]
    L2 = slow_cross_entropy(second, [pseudo[b].numpy() for b in with_region])
    about = lambda x, rel=1e-3: pytest.approx(x, rel=rel, abs=1e-6)
    assert losses.main.item() == about(L1, 1e-4)
    assert losses.auxiliary.item() == losses.main.item()  # the toy's own loss: one scale
    assert losses.contrast.item() == about(L2)
    assert losses.total(0.3, 2.0).item() == about(L1 + 2.0 * L1 + 0.3 * L2)
    assert losses.total().item() == about(L1 + 1.0 * L1 + 0.1 * L2)

    assert len(model.decoder.calls) == 1  # both paths in one call
    cond, given_target = model.decoder.calls[0]
    assert all(len(x) == len(pseudo) + len(with_region) for x in cond)
    assert torch.equal(given_target, target)
    for i, (mid, v, prior) in enumerate(main + [latent[b] for b in with_region]):
        near(cond.query[i], mid, 1e-4)
        near(cond.prototype[i], v, 1e-4)
        near(cond.prior[i], prior, 1e-3)
    assert torch.equal(cond.padding, torch.cat([target, pseudo[with_region]]) == 255)
    assert torch.equal(
        cond.support_mask[len(pseudo) :],
        pseudo[with_region].unsqueeze(1).expand(-1, support_mask.shape[1], -1, -1),
    )


def test_cross_entropy_of_nothing_but_void():
    logits = torch.randn(2, 2, 3, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 5, 5), 255))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


@few
@given(training_batches())
def test_images_without_a_region_drop_out_of_the_contrast_loss(batch):
    query, support, support_mask, target, pseudo = batch
    with_region = (pseudo == 1).flatten(1).any(1)
    take = lambda f: Features(*(x[with_region] for x in f))
    losses = two_path_losses(toy_model(), query, support, support_mask, target, pseudo)
    assert len(losses.contrast_logits) == with_region.sum() and len(losses.logits) == len(target)
    if with_region.any():
        others = two_path_losses(
            toy_model(),
            take(query),
            take(support),
            support_mask[with_region],
            target[with_region],
            pseudo[with_region],
        )
        assert losses.contrast.item() == pytest.approx(others.contrast.item(), rel=1e-5)
        assert torch.allclose(losses.contrast_logits, others.contrast_logits, atol=1e-6)
    else:
        assert losses.contrast.item() == 0


def gradients(model, total):
    grads = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), grads)]


@few
@given(training_batches(), st.sampled_from(["toy", "PFENet"]))
def test_contrast_weight_zero_is_the_plain_loss(batch, kind):
    query, support, support_mask, target, pseudo = batch
    target[:, 0, 0] = 0
    torch.manual_seed(0)
    model = toy_model() if kind == "toy" else FewShotModel(4, PFENet(3, (2, 1)), 3).eval()
    both, plain = (
        two_path_losses(model, query, support, support_mask, target, p) for p in (pseudo, None)
    )
    assert torch.allclose(both.total(contrast=0.0), plain.total(contrast=0.0), rtol=1e-5)
    assert (
        torch.equal(plain.total(contrast=0.0), plain.total(contrast=7.0))
        and len(plain.contrast_logits) == 0
    )
    for a, b in zip(gradients(model, both.total(contrast=0.0)), gradients(model, plain.total())):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_decoder_without_a_loss_of_its_own_gets_enhancement_too():
    batch = (
        Features(torch.rand(2, 4, 3, 3), torch.rand(2, 5, 3, 3)),
        Features(torch.rand(2, 1, 4, 3, 3), torch.rand(2, 1, 5, 3, 3)),
    )
    masks = torch.tensor([[0, 1, 1], [0, 255, 1], [0, 0, 0]]).expand(2, 3, 3)
    model = toy_model(own_loss=False)
    losses = two_path_losses(model, *batch, masks[:, None], masks, masks)
    assert (
        losses.auxiliary.item() == 0
        and losses.contrast.item() > 0
        and len(model.decoder.calls) == 1
    )
    assert losses.total(contrast=0.1).item() == pytest.approx(
        losses.main.item() + 0.1 * losses.contrast.item()
    )


@few
@given(training_batches(), st.permutations(range(3)))
def test_the_order_of_the_batch_does_not_matter(batch, order):
    query, support, support_mask, target, pseudo = batch
    order = [i for i in order if i < len(target)]
    mixed = (
        Features(*(x[order] for x in query)),
        Features(*(x[order] for x in support)),
        support_mask[order],
        target[order],
        pseudo[order],
    )
    straight, shuffled = two_path_losses(toy_model(), *batch), two_path_losses(toy_model(), *mixed)
    for a, b in zip(straight[:3], shuffled[:3]):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
    assert torch.allclose(straight.logits[order], shuffled.logits, atol=1e-6)
    D = self_similarity(query.high)
    known = known_positions(pseudo, query.high.shape[-2:])
    centre = torch.arange(len(target)) % D.shape[1]
    for f in (
        lambda o: D[o],
        lambda o: similar_count(D[o], known[o], 0.2),
        lambda o: similar_region(D[o, centre[o]], known[o], 0.2),
        lambda o: sample_latent(query.high[o], pseudo[o], centre=centre[o], delta=0.2)[0],
    ):
        assert torch.equal(f(order), f(list(range(len(target))))[order])


@few
@given(training_batches())
def test_five_shots_are_the_mean_of_single_ones(batch):
    query, support, support_mask, _, _ = batch
    model = toy_model().eval()
    with torch.no_grad():
        cond = support_conditioning(model, query, support, support_mask)
        single = [
            support_conditioning(
                model,
                query,
                Features(*(x[:, k : k + 1] for x in support)),
                support_mask[:, k : k + 1],
            )
            for k in range(support_mask.shape[1])
        ]
        near(cond.prototype, torch.stack([c.prototype for c in single]).mean(0).numpy(), 1e-6)
        near(cond.prior, torch.stack([c.prior for c in single]).mean(0).numpy(), 1e-6)
        same = Features(*(x[:, :1].repeat_interleave(5, 1) for x in support))
        assert torch.allclose(
            model(query, same, support_mask[:, :1].expand(-1, 5, -1, -1)),
            model(query, Features(*(x[:, :1] for x in support)), support_mask[:, :1]),
            atol=1e-5,
        )
    assert not cond.padding.any()


def test_the_auxiliary_path_sees_the_query_alone():
    "Other supports, the same latent question."
    f = lambda *s: torch.rand(*s, 3, 3)
    query, pseudo = Features(f(1, 4), f(1, 5)), torch.tensor([[[0, 1, 1], [0, 255, 1], [0, 0, 0]]])
    model = toy_model()
    asks = [
        latent_conditioning(
            support_conditioning(
                model, query, Features(f(1, 2, 4), f(1, 2, 5)), torch.randint(0, 2, (1, 2, 3, 3))
            ),
            pseudo,
        )
        for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*asks))
    assert torch.equal(asks[0].support[0, 0], asks[0].query[0]) and torch.equal(
        asks[0].support[0, 1], asks[0].query[0]
    )


def test_the_latent_prototype_and_its_prior_train_the_reduction():
    "Only the pseudo-mask is without gradient."
    query = Features(torch.rand(1, 4, 3, 3), torch.rand(1, 5, 3, 3))
    support = Features(torch.rand(1, 1, 4, 3, 3), torch.rand(1, 1, 5, 3, 3))
    mask = torch.tensor([[[0, 1, 1], [0, 255, 1], [0, 0, 0]]])
    model = toy_model()
    main = support_conditioning(model, query, support, mask[None])
    latent = latent_conditioning(main, mask)
    for x in (main.query, main.prototype, latent.query, latent.prototype, latent.prior):
        total, weight = (x * torch.rand_like(x)).sum(), model.reduce[0].weight
        (slope,) = torch.autograd.grad(total, weight, retain_graph=True)
        assert slope.abs().sum() > 0


# --- models that ask for more


def slow_fewer(x, channels):
    """(C, h, w) → (channels, h, w): the mean of each stretch of channels, from
    floor(i C / channels) up to ceil((i + 1) C / channels)."""
    stretches = [
        range(i * len(x) // channels, -(-(i + 1) * len(x) // channels)) for i in range(channels)
    ]
    return np.array([sum(x[c] for c in stretch) / len(stretch) for stretch in stretches])


@few
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(), (1,), (2,), (2, 3)]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_fewer_channels(seed, images, C, channels, h, w):
    x = np.random.default_rng(seed).normal(size=(*images, C, h, w)).astype(np.float32)
    slow = np.array(
        [slow_fewer(one, channels) for one in x.reshape(-1, C, h, w).astype(float)]
    ).reshape(*images, channels, h, w)
    near(fewer_channels(tensor(x), channels), slow)


def support_of_both_kinds(B=2, K=2, seed=0):
    "Features of random images, the supports' with and without background, and masks."
    rng = np.random.default_rng(seed)
    f = lambda *s: tensor(rng.normal(size=(*s, 3, 4)).astype(np.float32))
    return (
        Features(f(B, 4), f(B, 5)),
        SupportFeatures(f(B, K, 4), f(B, K, 5), f(B, K, 5)),
        tensor(rng.choice([0, 1, 1, 255], (B, K, 9, 7))),
    )


def test_a_reduction_of_its_own_for_the_support():
    query, support, mask = support_of_both_kinds()
    torch.manual_seed(0)
    model = FewShotModel(4, ToyDecoder(3), 3, dropout=0.0, separate=True)
    cond = support_conditioning(model, query, support, mask)
    weights = [
        r[0].weight.detach().numpy().astype(float) for r in (model.reduce, model.reduce_support)
    ]
    assert np.abs(weights[0] - weights[1]).max() > 0.1
    of_query, of_support = (
        lambda x, w=w: np.maximum(slow_conv(x.numpy().astype(float), w), 0) for w in weights
    )
    for b in range(2):
        near(cond.query[b], of_query(query.mid[b]), 1e-5)
        shots = [of_support(x) for x in support.mid[b]]
        near(cond.support[b], np.array(shots), 1e-5)
        near(
            cond.prototype[b],
            sum(
                slow_average(x, slow_resize((m.numpy() == 1).astype(float), 3, 4))
                for x, m in zip(shots, mask[b])
            )
            / 2,
            1e-5,
        )
    to_query, to_support = (
        torch.autograd.grad(x.sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
        for x in (cond.query, cond.prototype)
    )
    names = [n for n, _ in model.named_parameters()]
    reached = lambda grads: [n for n, g in zip(names, grads) if g is not None]
    assert reached(to_query) == ["reduce.0.weight"]
    assert reached(to_support) == ["reduce_support.0.weight"]


@pytest.mark.parametrize("width", [2, 5, 7])
def test_the_prior_of_models_that_compare_the_whole_support(width):
    "That of averaged channels, and of high features in which the support's background was seen."
    query, support, mask = support_of_both_kinds()
    torch.manual_seed(0)
    model = FewShotModel(4, ToyDecoder(width), width, whole_support=True)
    prior = lambda support: support_conditioning(model, query, support, mask).prior
    slow = np.zeros((2, 1, 3, 4))
    for b in range(2):
        q = slow_fewer(query.high[b].numpy().astype(float), width)
        for k in range(2):
            weight = slow_resize((mask[b, k].numpy() == 1).astype(float), 3, 4)
            s = slow_fewer(support.whole[b, k].numpy().astype(float), width) * weight
            slow[b, 0] += slow_min_max(slow_best_match(q, s)) / 2
    near(prior(support), slow, 1e-4)
    assert torch.equal(prior(support), prior(support._replace(high=-support.high)))


def test_supports_made_without_their_background_are_refused():
    query, support, mask = support_of_both_kinds()
    model = FewShotModel(4, ToyDecoder(3), 3, whole_support=True)
    without = Features(support.mid, support.high)
    words = (
        r"this model compares the support's high features with their background: "
        r"make them with whole=True\."
    )
    with pytest.raises(ValueError, match=words): model(query, without, mask)
    plain = FewShotModel(4, ToyDecoder(3), 3).eval()  # a model that does not compare them
    assert torch.equal(plain(query, support, mask), plain(query, without, mask))


# --- the seam


def test_contrastive_enhancement_knows_nothing_of_the_decoder():
    "No part of a decoder is named, and none of PFENet, where both paths are made."
    seam = [
        FewShotModel,
        support_conditioning,
        latent_conditioning,
        Losses,
        cross_entropy,
        two_path_losses,
    ]
    parts = {name.split(".")[0] for name, _ in PFENet(2, (1,)).named_modules() if name} | {"bins"}
    assert {"init_merge", "res1", "cls"} <= parts
    for part in seam:
        tree = ast.parse(inspect.getsource(part))
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        assert not used & (parts | {"PFENet", "PASCAL_BINS"}), part.__name__
    for module, words in [
        ("pfenet", ("pseudo", "latent", "contrast")),
        ("conditioning", ("pseudo_mask", "contrast")),
    ]:
        code = inspect.getsource(__import__(f"celp_nb.{module}", fromlist=["x"]))
        nodes = list(ast.walk(ast.parse(code)))
        imports = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        assert not {"contrast", "latent"} & imports
        names = {n.id for n in nodes if isinstance(n, ast.Name)}
        names |= {n.attr for n in nodes if isinstance(n, ast.Attribute)}
        assert not names & set(words), module


def test_no_line_of_the_seam_names_a_decoder():
    "Not even in a comment: what holds for these decoders holds for the reader's own."
    for number, line in enumerate(inspect.getsource(contrast_module).splitlines(), 1):
        assert not any(name in line.lower() for name in ("pfenet", "cyctr")), (
            f"line {number}: {line}"
        )


def image_episode(B=2, K=2, side=33, seed=0):
    rng = np.random.default_rng(seed)
    image = lambda *s: tensor(rng.normal(size=(*s, 3, side, side)).astype(np.float32))
    mask = lambda *s: tensor(
        rng.choice(np.array([0, 1, 255], np.uint8), (*s, side, side), p=[0.45, 0.45, 0.1])
    )
    return image(B), image(B, K), mask(B, K), mask(B)


def test_gradients_reach_what_is_trained_and_never_the_backbone():
    torch.manual_seed(0)
    backbone = load_backbone("tiny", "random")
    query_image, support_image, support_mask, target = image_episode()
    query, support = episode_features(backbone, query_image, support_image, support_mask)
    model = FewShotModel(query.mid.shape[1], PFENet(8, (3, 1)), 8).train()
    pseudo = torch.full(target.shape, 255)
    pseudo[:, :10] = 1
    two_path_losses(model, query, support, support_mask, target.long(), pseudo).total().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert not any(x.requires_grad for x in (*query, *support))


@pytest.mark.parametrize("loss", ["main", "contrast"])
def test_each_path_trains_the_shared_reduction_and_the_shared_decoder(loss):
    query, support = (
        Features(torch.rand(1, 4, 3, 3), torch.rand(1, 5, 3, 3)),
        Features(torch.rand(1, 1, 4, 3, 3), torch.rand(1, 1, 5, 3, 3)),
    )
    mask = torch.tensor([[[0, 1, 1], [0, 255, 1], [0, 0, 0]]])
    model = toy_model()
    for g in gradients(
        model, getattr(two_path_losses(model, query, support, mask[None], mask, mask), loss)
    ):
        assert g.abs().sum() > 0


@pytest.mark.parametrize("decoder", ["toy", "PFENet"])
def test_the_query_mask_changes_no_logits(decoder):
    "Neither its foreground nor its void pixels: what the published evaluation leaks."
    query_image, support_image, support_mask, target = image_episode()
    query, support = episode_features(
        load_backbone("tiny", "random"), query_image, support_image, support_mask
    )
    torch.manual_seed(0)
    model = FewShotModel(
        query.mid.shape[1], PFENet(6, (3, 1)) if decoder == "PFENet" else ToyDecoder(6), 6
    ).eval()
    with torch.no_grad():
        plain = model(query, support, support_mask)
        for other in (
            target,
            1 - target.clamp(max=1),
            torch.where(target == 255, 0, target),
            torch.where(torch.rand(target.shape) < 0.5, 255, target),
        ):
            assert torch.equal(
                two_path_losses(model, query, support, support_mask, other.long(), None).logits,
                plain,
            )
    assert "target" not in inspect.signature(FewShotModel.forward).parameters


@few
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_resizing(seed, h, w, H, W):
    x = np.random.default_rng(seed).normal(size=(h, w)).astype(np.float32)
    near(resize(tensor(x)[None, None], (H, W))[0, 0], slow_resize(x.astype(float), H, W))


def test_the_seam_is_exported():
    assert {
        "FewShotModel",
        "two_path_losses",
        "support_conditioning",
        "latent_conditioning",
    } <= set(contrast_module.__all__)
