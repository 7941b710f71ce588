"From arrays to tensors and back: masks, augmentation, the square and its padding."

import math
import warnings

import numpy as np
import pytest
import torch
from folders import PICTURE, blocks, one_thread, own_cache  # noqa: F401  autouse fixtures
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from celp_nb.data import transforms as data_transforms


@given(st.integers(0, 2**31), st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True))
def test_known_and_binary_masks(seed, classes):
    class_map = np.random.default_rng(seed).choice([*range(21), 255], (9, 13)).astype(np.uint8)
    slow = np.array(
        [[255 if v == 255 else int(v in classes) for v in row] for row in class_map.tolist()]
    )
    for array in (class_map, torch.from_numpy(class_map)):
        known = data_transforms.known_mask(array, classes)
        assert (
            type(known) is type(array)
            and known.dtype == array.dtype
            and (np.asarray(known) == slow).all()
        )
        one = np.asarray(data_transforms.binary_mask(array, classes[0]))
        assert (
            ((one == 1) == (class_map == classes[0])).all()
            and ((one == 255) == (class_map == 255)).all()
            and set(one.ravel()) <= {0, 1, 255}
        )


def test_normalise_and_back():
    expected = (PICTURE / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    x = data_transforms.normalise(PICTURE)
    assert x.dtype == torch.float32 and x.shape == (3, 40, 56)
    assert np.allclose(x.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert torch.equal(
        data_transforms.normalise(torch.from_numpy(PICTURE).permute(2, 0, 1)[None])[0], x
    )
    assert (data_transforms.denormalise(x) == PICTURE).all()


@pytest.mark.parametrize(
    "side, rounded",
    [(473, 473), (161, 161), (240, 241), (237, 241), (236, 233), (8, 9), (480, 481)],
)
def test_round_side(side, rounded):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert data_transforms.round_side(side) == rounded
    assert len(caught) == (side != rounded) and all(
        f"side {side} is not of the form 8n+1; {rounded} is used" in str(w.message) for w in caught
    )


def test_round_side_refuses_less_than_a_stride():
    with pytest.raises(ValueError, match=r"^side: 7 pixels is .* stride \(8\); use 8n\+1"):
        data_transforms.round_side(7)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([33, 65, 97]), st.integers(0, 999))
def test_fit_square(height, width, side, seed):
    rng = np.random.default_rng(seed)
    image, mask = (
        rng.integers(0, 256, (height, width, 3), np.uint8),
        rng.choice([0, 3, 7], (height, width)).astype(np.uint8),
    )
    x, m = data_transforms.fit_square(image, mask, side)
    assert (
        x.shape == (3, side, side)
        and x.dtype == torch.float32
        and m.shape == (side, side)
        and m.dtype == torch.uint8
    )
    long = max(height, width)
    new_h, new_w = (max(1, round(n * side / long)) for n in (height, width))
    assert max(new_h, new_w) == side
    slow = np.full((side, side), 255)
    for y in range(new_h):
        for z in range(new_w):
            slow[y, z] = mask[
                (2 * y + 1) * height // (2 * new_h), (2 * z + 1) * width // (2 * new_w)
            ]
    assert (m.numpy() == slow).mean() > 0.9 and set(np.unique(m)) <= {0, 3, 7, 255}, (
        "float rounding may pick a neighbour"
    )
    assert ((m.numpy() == 255) == (slow == 255)).all()
    black = data_transforms.normalise(np.zeros((1, 1, 3), np.uint8))
    assert torch.equal(x * torch.from_numpy(slow == 255), black * torch.from_numpy(slow == 255))
    if long == side:
        assert (data_transforms.denormalise(x)[:height, :width] == image).all() and (
            m.numpy()[:height, :width] == mask
        ).all()


RECIPES = {
    "published": data_transforms.Recipe(65, 65),
    "wide": data_transforms.Recipe(65, 65, (0.6, 2.0), 30.0),
    "still": data_transforms.Recipe(65, 65, (1, 1), 0, flip_probability=0, blur_probability=0),
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 100), st.integers(8, 100), st.sampled_from(list(RECIPES)), st.integers(0, 2**31)
)
def test_augment_gives_original_values_and_keeps_the_class(height, width, recipe, seed):
    rng = np.random.default_rng(seed)
    image, mask = (
        rng.integers(0, 256, (height, width, 3), np.uint8),
        rng.choice([0, 3, 9], (height, width)).astype(np.uint8),
    )
    top, left = rng.integers(height - 4), rng.integers(width - 4)
    mask[top: top + 5, left: left + 5] = 7
    x, m = data_transforms.augment(image, mask, 7, RECIPES[recipe], np.random.default_rng(seed))
    assert (
        x.shape == (3, 65, 65)
        and x.dtype == torch.float32
        and m.shape == (65, 65)
        and m.dtype == torch.uint8
    )
    assert type(x) is torch.Tensor and type(m) is torch.Tensor and m.is_contiguous()
    assert set(np.unique(m)) <= {0, 3, 7, 9, 255} and (m == 7).any()
    again = data_transforms.augment(image, mask, 7, RECIPES[recipe], np.random.default_rng(seed))
    assert torch.equal(x, again[0]) and torch.equal(m, again[1])


def test_augment_without_chance_is_a_padded_copy():
    x, m = data_transforms.augment(
        PICTURE, blocks(1, 2), 1, RECIPES["still"], np.random.default_rng(0)
    )
    top, left = (65 - 40) // 2, (65 - 56) // 2
    assert (data_transforms.denormalise(x)[top : top + 40, left : left + 56] == PICTURE).all() and (
        m[top : top + 40, left : left + 56].numpy() == blocks(1, 2)
    ).all()
    outside = m == 255
    assert outside.sum() == 65 * 65 - 40 * 56 and x[:, outside].abs().max() < 0.01, (
        "padded with the mean"
    )


def test_augment_moves_image_and_mask_together():
    """The image carries the mask in its colours, so both must still agree.

    Outlines are softened by interpolation and blur.
    """
    mask = np.kron(np.random.default_rng(1).integers(0, 2, (6, 8)), np.ones((20, 20))).astype(
        np.uint8
    )
    image = np.repeat(mask[..., None] * 255, 3, 2)
    for seed in range(30):
        x, m = data_transforms.augment(
            image, mask, 1, data_transforms.Recipe(97, 97, (0.8, 1.3)), np.random.default_rng(seed)
        )
        bright = data_transforms.denormalise(x)[..., 0].astype(int)
        valid = (m != 255).numpy()
        wrong = (np.abs(bright - 255 * (m.numpy() == 1)) > 128) & valid
        assert wrong.sum() < 0.025 * valid.sum(), seed


def test_scale_follows_side_over_reference():
    "At half the side an image is shrunk by half more: a crop shows the same part of the scene."
    image, mask = np.zeros((200, 200, 3), np.uint8), np.ones((200, 200), np.uint8)
    still = dict(scale=(0.5, 0.5), rotation_probability=0)
    for side, reference in [(201, 201), (201, 402), (201, 101)]:
        _, m = data_transforms.augment(
            image,
            mask,
            1,
            data_transforms.Recipe(side, reference, **still),
            np.random.default_rng(0),
        )
        size = round(200 * 0.5 * side / reference)
        assert (m == 1).sum() == min(size, 201) ** 2


def test_each_step_is_drawn_half_of_the_time(monkeypatch):
    counts = dict(rotate=0, gaussian_blur=0, horizontal_flip=0)
    for name in counts:
        real = getattr(data_transforms.F, name)

        def counting(x, *args, name=name, real=real, **kw):
            counts[name] += isinstance(x, tv_tensors.Image)
            return real(x, *args, **kw)

        monkeypatch.setattr(data_transforms.F, name, counting)
    n, picture, mask = 300, PICTURE[:17, :17], blocks(1, height=17, width=17)
    for seed in range(n):
        data_transforms.augment(
            picture, mask, 1, data_transforms.Recipe(17, 17), np.random.default_rng(seed)
        )
    for name, count in counts.items():
        assert abs(count - n / 2) < 4.5 * math.sqrt(n / 4), name
    for name, step in [
        ("rotate", "rotation"),
        ("gaussian_blur", "blur"),
        ("horizontal_flip", "flip"),
    ]:
        counts.update(dict.fromkeys(counts, 0))
        chances = {
            f"{other}_probability": float(other == step) for other in ("rotation", "blur", "flip")
        }
        data_transforms.augment(
            picture, mask, 1, data_transforms.Recipe(17, 17, **chances), np.random.default_rng(0)
        )
        assert counts == {**dict.fromkeys(counts, 0), name: 1}


def test_rotation_brings_in_void_and_the_mean_colour():
    image, mask = np.full((65, 65, 3), 255, np.uint8), np.ones((65, 65), np.uint8)
    turning = data_transforms.Recipe(
        65, 65, (1, 1), 30.0, rotation_probability=1, blur_probability=0
    )
    seen = 0
    for seed in range(6):
        x, m = data_transforms.augment(image, mask, 1, turning, np.random.default_rng(seed))
        assert set(np.unique(m)) <= {1, 255}
        clear = (
            torch.nn.functional.max_pool2d((m == 1).float()[None], 5, 1, 2)[0] == 0
        )  # void, away from the softened edge
        assert (x[:, clear].abs() < 0.01).all()
        seen += clear.sum().item()
    assert seen > 500


def test_crop_is_drawn_again_until_it_keeps_enough():
    one = np.zeros((200, 200), bool)
    one[90:110, 20:40] = True
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(200):
        top, left = data_transforms.place_crop(one, 100, 0.85, 30, rng)
        assert 0 <= top <= 100 and 0 <= left <= 100
        kept.append(one[top: top + 100, left: left + 100].mean() * 100 * 100 / 400)
    assert min(kept) > 0 and np.mean(np.array(kept) >= 0.85) > 0.97
    drawn_once = [
        data_transforms.place_crop(np.ones((200, 200), bool), 100, 0.0, 30, rng) for _ in range(400)
    ]
    assert len(set(drawn_once)) > 380 and np.ptp(drawn_once, axis=0).min() > 90, (
        "with nothing to keep, anywhere"
    )
    assert abs(np.mean(drawn_once, axis=0) - 50).max() < 8


def test_crop_without_the_class_is_centred_on_it():
    ring = np.zeros((300, 300), bool)
    ring[200:207, 250:257] = True
    ring[202:205, 252:255] = False  # its centre is not of the class
    top, left = data_transforms.place_crop(ring, 9, 0.85, 0, np.random.default_rng(0))
    assert ring[top: top + 9, left: left + 9].any()
    corner = np.zeros((300, 300), bool)
    corner[299, 0] = True
    assert data_transforms.place_crop(corner, 33, 0.85, 0, np.random.default_rng(0)) == (267, 0)
    nothing = data_transforms.place_crop(
        np.zeros((40, 40), bool), 33, 0.85, 3, np.random.default_rng(0)
    )
    assert all(0 <= p <= 7 for p in nothing)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([33, 97, 161]))
def test_padding_is_measured_where_it_is_made(height, width, side):
    image, mask = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    _, square = data_transforms.fit_square(image, mask, side)
    padding = data_transforms.padding_of(height, width, side)
    assert padding.shape == (1, side, side) and torch.equal(padding[0], square == 255)
    rows, columns = data_transforms.fitted_size(height, width, side)
    assert max(rows, columns) == side and (~padding).sum() == rows * columns
