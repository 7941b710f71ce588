"""The literature's rules and ours: against slow versions written from the published facts."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from folders import make_coco, make_voc, own_cache  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from celp_nb.bundled.scenes import samples
from celp_nb.data import recognition, transforms
from celp_nb.data.coco import COCO_CLASSES, coco_layout
from celp_nb.data.episodes import images_in_turn, pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.rules import (
    LITERATURE,
    STRICT,
    find_rules,
    fitted_size,
    floored_size,
    place_crop,
    place_last_crop,
    rescale_by_corners,
)
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.checkpoints import (
    BUNDLED,
    load_checkpoint,
    load_model,
    resume_state,
    rules_of,
    save_checkpoint,
    save_state,
)
from celp_nb.engine.evaluation import evaluate_plainly
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import METHODS, build_model
from celp_nb.engine.segmenter import Segmenter
from celp_nb.engine.training import Optimisation
from celp_nb.repro.config import change_config, make_config, read_config, write_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.runs import run
from celp_nb.repro.setup import prepare, training_items
from celp_nb.repro.statistics import SUMMED

LEAST = 2 * 32 * 32


# ---- draws ------------------------------------------------------------------------------------


def published_lists(pixels, classes):
    "Which images are in the list, and which may be supports of a class: image by image."
    listed, files = [], {c: [] for c in classes}
    for i, counts in enumerate(pixels):
        large = [c for c in classes if counts[c - 1] >= LEAST]
        if large: listed.append(i)
        for c in large: files[c].append(i)
    return listed, files


def a_table(seed, n=40, n_classes=4):
    "Pixel counts of images; small objects beside large ones; every class large in ten images."
    rng = np.random.default_rng(seed)
    table = rng.choice([0, 0, 1, 300, LEAST - 1, LEAST, 9000], (n, n_classes))
    for c in range(n_classes): table[rng.choice(n, 10, replace=False), c] = LEAST
    return table


@settings(max_examples=30)
@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.sampled_from([[1], [2, 4], [1, 2, 3, 4]]),
    st.sampled_from(["in turn", "pairs"]),
)
def test_literature_draws_are_possible_ones_of_the_published_loop(seed, shots, classes, protocol):
    table = a_table(seed)
    listed, files = published_lists(table, classes)
    if protocol == "pairs": episodes = pairs_per_class(table, classes, 30, shots, 0, query_pixels=1)
    else: episodes = images_in_turn(table, classes, 90, shots, 0, query_pixels=1)
    for cls, query, support in zip(*(x.tolist() for x in episodes)):
        assert query in listed and cls in classes and table[query, cls - 1] >= 1
        assert len({query, *support}) == 1 + shots and {*support} <= {*files[cls]}
    if protocol == "pairs": assert Counter(episodes.cls.tolist()) == dict.fromkeys(classes, 30)
    else:
        for n in range(0, 90 - len(listed) + 1, len(listed)):
            assert sorted(episodes.query[n : n + len(listed)].tolist()) == listed


def expected_shares(table, classes):
    "Probability of (image, class) by the published code: an image, then one of its classes."
    listed, _ = published_lists(table, classes)
    shares = {}
    for i in listed:
        shown = [c for c in classes if table[i, c - 1] > 0]
        for c in shown: shares[i, c] = 1 / len(listed) / len(shown)
    return shares


def test_a_class_is_drawn_uniformly_from_all_that_have_a_pixel():
    table, classes, n = a_table(3), [1, 2, 3], 60_000
    episodes = images_in_turn(table, classes, n, 1, 0, query_pixels=1)
    seen = Counter(zip(episodes.query.tolist(), episodes.cls.tolist()))
    shares = expected_shares(table, classes)
    assert set(seen) <= set(shares)
    for pair, share in shares.items():
        assert abs(seen[pair] - n * share) < 5 * (n * share) ** 0.5, pair
    small = sum(count for (i, c), count in seen.items() if table[i, c - 1] < LEAST)
    assert small > 0.2 * n, "small objects are asked about"
    strict = images_in_turn(table, classes, n, 1, 0)
    assert (table[strict.query, strict.cls - 1] >= LEAST).all(), "ours asks about none"


def test_pairs_take_every_image_of_the_list_that_shows_the_class_equally_often():
    table, n = a_table(4), 30_000
    listed, files = published_lists(table, [1, 2])
    episodes = pairs_per_class(table, [1, 2], n, 1, 0, query_pixels=1)
    for c in (1, 2):
        shown = [i for i in listed if table[i, c - 1] > 0]
        seen = Counter(episodes.query[episodes.cls == c].tolist())
        assert set(seen) == set(shown)
        assert max(abs(v - n / len(shown)) for v in seen.values()) < 5 * (n / len(shown)) ** 0.5
        outside = [i for i in shown if i not in files[c]]
        rows = (episodes.cls == c) & np.isin(episodes.query, outside)
        supports = Counter(episodes.support[rows, 0].tolist())
        assert set(supports) == set(files[c]), "a query of few pixels has all supports to draw"


def test_our_draws_are_what_they_were_to_the_bit():
    table = a_table(5)
    for draw in (pairs_per_class, images_in_turn):
        ours, same = draw(table, [1, 2, 4], 50, 3, 7), draw(
            table, [1, 2, 4], 50, 3, 7, query_pixels=LEAST
        )
        assert all(np.array_equal(a, b) for a, b in zip(ours, same))
        digest = hashlib.sha1(b"".join(x.tobytes() for x in ours)).hexdigest()
        assert digest[:8] == {"pairs_per_class": PAIRS, "images_in_turn": TURN}[draw.__name__]


PAIRS, TURN = "c21560ef", "acc9df63"  # of the draws before there were rules


# ---- sizes and resizing -----------------------------------------------------------------------


def published_size(h, w, side):
    "The long side fills the square, the other is cut to whole pixels; then both are floored."
    if h >= w: new_h, new_w = side, int(w * (side * 1.0 / h))
    else: new_h, new_w = int(h * (side * 1.0 / w)), side
    return new_h - new_h % 8, new_w - new_w % 8


@given(st.integers(60, 900), st.integers(60, 900), st.sampled_from([161, 241, 473, 641]))
def test_fitted_sizes_are_the_published_ones(h, w, side):
    sizes = floored_size(h, w, side)
    assert sizes == tuple(max(8, n) for n in published_size(h, w, side))
    assert all(0 <= b - a < 9 for a, b in zip(sizes, fitted_size(h, w, side)) if a > 8)


def test_the_example_of_the_published_size():
    assert floored_size(375, 500, 473) == (352, 472) and fitted_size(375, 500, 473) == (355, 473)
    assert floored_size(9, 900, 473) == (8, 472), "published, it would have no row"


def slow_bilinear(image, rows, columns):
    "An (H, W) array between half-pixel centres, nothing averaged, edges repeated."
    h, w = image.shape
    out = np.zeros((rows, columns))
    for y in range(rows):
        for x in range(columns):
            a = min(max((y + 0.5) * h / rows - 0.5, 0), h - 1)
            b = min(max((x + 0.5) * w / columns - 0.5, 0), w - 1)
            i, j = int(a), int(b)
            below, right = min(i + 1, h - 1), min(j + 1, w - 1)
            upper = (1 - b + j) * image[i, j] + (b - j) * image[i, right]
            lower = (1 - b + j) * image[below, j] + (b - j) * image[below, right]
            out[y, x] = (1 - a + i) * upper + (a - i) * lower
    return out


def slow_corners(mask, rows, columns):
    "Each new pixel is the old one under its upper left corner."
    h, w = mask.shape
    return np.array([[mask[y * h // rows, x * w // columns] for x in range(columns)]
                     for y in range(rows)])


def a_pair(seed, h, w, n_classes=3):
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 256, (h, w, 3), np.uint8), np.zeros((h, w), np.uint8)
    for value in (*range(1, n_classes + 1), 255):
        y, x = rng.integers(0, h - 4), rng.integers(0, w - 4)
        mask[y : y + h // 3, x : x + w // 3] = value
    return image, mask


def as_tv(image, mask):
    return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(
        torch.from_numpy(mask)
    )


@settings(max_examples=15, deadline=None)
@given(*(st.integers(8, 40) for _ in range(4)), st.integers(0, 99))
def test_resizing_is_that_of_the_published_code(h, w, rows, columns, seed):
    image, mask = a_pair(seed, h, w)
    x, m = rescale_by_corners(*as_tv(image, mask), (rows, columns))
    assert x.dtype == torch.float32, "not rounded on the way"
    for channel in range(3):
        slow = slow_bilinear(image[..., channel].astype(float), rows, columns)
        assert np.abs(x[channel].numpy() - slow).max() < 0.02
    assert (m.numpy() != slow_corners(mask, rows, columns)).mean() < 0.02, "but ties of rounding"


@settings(max_examples=15, deadline=None)
@given(*(st.integers(8, 70) for _ in range(4)), st.integers(0, 99))
def test_resizing_is_opencvs(h, w, rows, columns, seed):
    cv2 = pytest.importorskip("cv2")
    image, mask = a_pair(seed, h, w)
    x, m = rescale_by_corners(*as_tv(image, mask), (rows, columns))
    theirs = cv2.resize(
        image.astype(np.float32), dsize=(columns, rows), interpolation=cv2.INTER_LINEAR
    )
    assert np.abs(x.permute(1, 2, 0).numpy() - theirs).max() < 0.02
    labels = cv2.resize(
        mask.astype(np.float32), dsize=(columns, rows), interpolation=cv2.INTER_NEAREST
    )
    assert (m.numpy() != labels).mean() < 0.05, "but ties of rounding"


@pytest.mark.parametrize("h, w, side", [(37, 60, 33), (60, 37, 49), (50, 50, 57), (20, 26, 73)])
def test_the_square_is_the_published_one(h, w, side):
    image, mask = a_pair(h, h, w)
    x, m = transforms.fit_square(image, mask, side, LITERATURE)
    rows, columns = published_size(h, w, side)
    mean, std = (255 * np.array(v) for v in (transforms.IMAGENET_MEAN, transforms.IMAGENET_STD))
    for channel in range(3):
        square = np.zeros((side, side))
        square[:rows, :columns] = slow_bilinear(image[..., channel].astype(float), rows, columns)
        square = (square - mean[channel]) / std[channel]
        assert np.abs(x[channel].numpy() - square).max() < 1e-3
    labels = np.full((side, side), 255)
    labels[:rows, :columns] = slow_corners(mask, rows, columns)
    assert (m.numpy() != labels).mean() < 0.02
    padding = transforms.padding_of(h, w, side, LITERATURE)[0].numpy()
    outside = np.add.outer(np.arange(side) >= rows, np.arange(side) >= columns)
    assert np.array_equal(padding, outside)


# ---- the recipe -------------------------------------------------------------------------------


def published_crop(inside, side, rng):
    "Drawn, and drawn again while too little is kept and the counter is at most 30."
    h, w = inside.shape
    draw = lambda: (int(rng.integers(h - side, endpoint=True)),
                    int(rng.integers(w - side, endpoint=True)))
    held = lambda place: inside[place[0] : place[0] + side, place[1] : place[1] + side].sum()
    place, count = draw(), 0
    while held(place) < 0.85 * inside.sum() and count <= 30:
        place = draw()
        count += 1
    return place, count


def crop_of(inside, top, left):
    return inside[top : top + 33, left : left + 33]


@pytest.mark.parametrize("size", [3, 12, 40])
def test_the_crop_is_the_last_of_its_draws(size):
    recipe, counts = transforms.LiteratureRecipe(), []
    for seed in range(40):
        inside = np.zeros((60, 70), bool)
        y, x = np.random.default_rng([seed, 1]).integers(0, 61 - size, 2)
        inside[y : y + size, x : x + size] = True
        expected, count = published_crop(inside, 33, np.random.default_rng(seed))
        how = inside, 33, recipe.keep, recipe.tries
        assert place_last_crop(*how, np.random.default_rng(seed)) == expected
        counts.append(count)
        (y, x), best = expected, place_crop(*how, np.random.default_rng(seed))
        assert crop_of(inside, *best).sum() >= crop_of(inside, y, x).sum()
    assert max(counts) > 0
    if size == 40: assert max(counts) == 31, "never enough: the limit is reached"


def published_augmentation(image, mask, cls, recipe, rng):
    "Scale by corners, flip, pad, crop: without rotation and blur, pixel by pixel."
    factor = rng.uniform(*recipe.scale) * recipe.side / recipe.reference
    rng.uniform(-recipe.rotation, recipe.rotation)
    flipped = rng.random(3)[2] < recipe.flip_probability
    rows, columns = (round(n * factor) for n in mask.shape)
    labels, side = slow_corners(mask, rows, columns), recipe.side
    layers = [slow_bilinear(image[..., k].astype(float), rows, columns) for k in range(3)]
    if flipped: labels, layers = labels[:, ::-1], [x[:, ::-1] for x in layers]
    top, left = max(0, side - rows) // 2, max(0, side - columns) // 2
    shape = max(side, rows), max(side, columns)
    whole, padded = np.full(shape, 255), []
    whole[top : top + rows, left : left + columns] = labels
    for mean, std, layer in zip(transforms.IMAGENET_MEAN, transforms.IMAGENET_STD, layers):
        plane = np.zeros(shape)
        plane[top : top + rows, left : left + columns] = (layer / 255 - mean) / std
        padded.append(plane)
    (y, x), _ = published_crop(whole == cls, side, rng)
    return [p[y : y + side, x : x + side] for p in padded], whole[y : y + side, x : x + side]


@pytest.mark.parametrize("seed", range(8))
def test_an_augmented_image_is_the_published_one(seed):
    chances = {"rotation_probability": 0, "blur_probability": 0}
    recipe = transforms.LiteratureRecipe(33, 40, (0.7, 1.6), **chances)
    image, mask = a_pair(seed, 36, 48)
    x, m = transforms.augment(image, mask, 1, recipe, np.random.default_rng(seed))
    layers, labels = published_augmentation(image, mask, 1, recipe, np.random.default_rng(seed))
    assert (m.numpy() != labels).mean() < 0.02, "but ties of rounding"
    for ours, layer in zip(x.numpy(), layers): assert np.abs(ours - layer).max() < 0.02


def test_a_rotation_may_lose_the_object():
    image, mask = np.zeros((60, 60, 3), np.uint8), np.zeros((60, 60), np.uint8)
    mask[:2, :2] = 1
    chances = {"rotation_probability": 1, "blur_probability": 0, "flip_probability": 0}
    kept = {}
    for kind in (transforms.Recipe, transforms.LiteratureRecipe):
        recipe = kind(60, 60, (1, 1), 30.0, **chances)
        maps = [transforms.augment(image, mask, 1, recipe, np.random.default_rng(k))[1]
                for k in range(20)]
        kept[kind] = [bool((m == 1).any()) for m in maps]
    assert all(kept[transforms.Recipe]) and not all(kept[transforms.LiteratureRecipe])


def test_kept_views_tell_the_rules_apart_and_ours_keep_their_folder():
    ours, theirs = asdict(transforms.Recipe()), asdict(transforms.LiteratureRecipe())
    assert set(theirs) - set(ours) == {"rules"} and theirs["rules"] == "literature"
    assert theirs["tries"] == 31 and ours["tries"] == 30


# ---- schedule ---------------------------------------------------------------------------------


def test_the_schedule_begins_at_iteration_one():
    opt = Optimisation(iterations=7, lr=0.3, first_iteration=LITERATURE.first_iteration)
    for step in range(7):
        current = 0 * 7 + step + 1  # epoch * steps in it + i + 1
        assert opt.lr_at(step) == pytest.approx(0.3 * (1 - current / 7) ** 0.9)
    assert opt.lr_at(6) == 0, "the last step moves nothing that has a schedule"
    before = Optimisation(iterations=7, lr=0.3, first_iteration=STRICT.first_iteration)
    assert [before.lr_at(s) for s in range(7)] == [0.3 * (1 - s / 7) ** 0.9 for s in range(7)]


def test_an_interrupted_training_from_before_the_rules_goes_on(tmp_path):
    from celp_nb.engine.checkpoints import Trained

    now = {"first_iteration": 0, "lr": 1.0}
    path = tmp_path / "last.pt"
    save_state(path, 0, {"lr": 1.0}, {}, {}, Trained({}, {}))
    assert resume_state(path, now, {}, {})[1] == 0
    with pytest.raises(ValueError, match="first_iteration = 0 then and 1 now"):
        resume_state(path, {**now, "first_iteration": 1}, {}, {})


# ---- crowds -----------------------------------------------------------------------------------


def test_crowds_are_background_or_void(tmp_path):
    pytest.importorskip("pycocotools")
    square, corner = [0, 0, 30, 0, 30, 30, 0, 30], [20, 20, 50, 20, 50, 38, 20, 38]
    root = make_coco(
        tmp_path / "coco",
        [
            {"segmentation": [square]},
            {"segmentation": [corner], "category_id": 44, "iscrowd": 1},
            {"segmentation": [corner], "category_id": 44, "iscrowd": 1, "image_id": 9},
        ],
    )
    masks = {}
    for crowds in ("void", "background", "void"):  # neither is read from the other's cache
        with pytest.warns(UserWarning, match=f"crowds .iscrowd 1. and {crowds}, among"):
            found = coco_layout(root, "train2014", crowds=crowds)
        assert len(found.ids) == 2, "an image with nothing but a crowd stays in the list"
        masks[crowds] = found.read_mask(0), found.read_mask(1)
    void, skipped = masks["void"][0], masks["background"][0]
    assert void[25, 25] == 255 and skipped[25, 25] == 1, "what lies under a crowd comes out"
    assert void[35, 45] == 255 and skipped[35, 45] == 0
    assert set(np.unique(skipped)) == {0, 1} and not masks["background"][1].any()


# ---- which rules a run has --------------------------------------------------------------------


def listed(root, names, split="val"):
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return root


def test_a_benchmark_is_recognised_by_its_test_images(tmp_path, monkeypatch):
    names = [f"2007_{n:06d}" for n in range(9)]
    monkeypatch.setattr(recognition, "PASCAL_TEST_NAMES", recognition.names_digest(names))
    rules = lambda place: recognition.default_rules(place).name
    assert rules(listed(tmp_path / "a", names[::-1])) == "literature"
    assert rules(listed(tmp_path / "b", names[1:])) == "strict"
    assert rules(listed(tmp_path / "c", [*names, "more"])) == "strict"
    assert rules(listed(tmp_path / "d", names, "train")) == "strict", "by test images"
    (tmp_path / "e/VOCdevkit").mkdir(parents=True)
    assert rules(tmp_path / "e") == "literature"
    assert rules("samples") == rules(tmp_path / "nowhere") == "strict"
    config = resolve(make_config(data=str(tmp_path / "a")))
    assert config.data.rules == "literature" and config.optimisation.checks == 10
    config = resolve(change_config(make_config(data=str(tmp_path / "a")), select="test"))
    assert config.optimisation.checks == 100
    config = resolve(make_config(data=str(tmp_path / "a"), rules="strict", select="test"))
    assert config.data.rules == "strict" and config.optimisation.checks == 10
    with pytest.raises(ValueError, match="rules"):
        resolve(make_config(data=str(tmp_path / "a"), rules="loose"))


def test_the_whole_of_coco_is_recognised_and_a_part_is_not(tmp_path):
    pytest.importorskip("pycocotools")
    every = [{"id": k, "name": name} for k, name in enumerate(COCO_CLASSES, 1)]
    square = [0, 0, 30, 0, 30, 30, 0, 30]
    objects = [{"segmentation": [square]}, {"segmentation": [square], "image_id": 9}]
    root = make_coco(tmp_path / "whole", objects, categories=every, split="val2014")
    assert recognition.is_whole_coco(root, 2) and not recognition.is_whole_coco(root, 3)
    assert not recognition.is_whole_coco(root), "of 40,137 images"
    other = make_coco(tmp_path / "other", objects, split="val2014")
    assert not recognition.is_whole_coco(other, 2), "other classes"


TINY = make_config(
    folds=(0,), crop=57, side=97, width=16, iterations=4, pairs=2, shots=(1,),
    methods=("PFENet",), trivial=False, cache_views=0,
)


def test_a_run_knows_its_rules_everywhere(tmp_path):
    config = resolve(change_config(TINY, rules="literature"))
    setup = prepare(config)
    assert setup.memory.rules is LITERATURE
    items = training_items(config, setup.train, setup.folds[0])
    assert isinstance(items.recipe, transforms.LiteratureRecipe)
    ours = prepare(resolve(TINY))
    assert ours.memory.rules is STRICT
    assert type(training_items(ours.config, ours.train, ours.folds[0]).recipe) is transforms.Recipe
    results = run(config, tmp_path / "run")
    assert set(results.rules) == {"literature"}
    assert read_config(tmp_path / "run").data.rules == "literature"
    assert "rules of the published code" in (tmp_path / "run/table.md").read_text()
    path = tmp_path / "run/fold0/PFENet.pt"
    assert rules_of(load_model(path)[1]) is LITERATURE
    assert Segmenter.from_pretrained(path).rules is LITERATURE
    older = load_checkpoint(path)
    del older["rules"]
    save_checkpoint(tmp_path / "older.pt", **older)
    assert Segmenter.from_pretrained(tmp_path / "older.pt").rules is STRICT, "of ours"
    with pytest.raises(ValueError, match="rules = 'literature' then and 'strict' now"):
        run(TINY, tmp_path / "run", resume=True)


@pytest.fixture
def script(results_script): return results_script("rules")


def test_what_our_rules_change_is_measured_with_the_same_models(tmp_path, script):
    "`results/rules.py`: its counts are those of the plain evaluation by the rules it names."
    run(change_config(TINY, rules="literature"), tmp_path / "run")
    path, backbone = tmp_path / "run/fold0/PFENet.pt", load_backbone("tiny")
    saved, g = load_checkpoint(path), torch.Generator().manual_seed(0)
    for w in saved["model"].values(): w += 0.3 * torch.randn(w.shape, generator=g)
    save_checkpoint(path, **saved)
    rows, model = script.run_rows(tmp_path / "run", pairs=2), load_model(path)[0]
    counts = {m: r.groupby(["cls", "query"])[[*SUMMED]].sum() for m, r in rows.groupby("method")}
    for test, rules in ("literature", LITERATURE), ("ours", STRICT):
        setup = prepare(resolve(change_config(TINY, rules=rules.name)))
        asked, known = setup.folds[0].evaluation, setup.folds[0].train_classes
        plain = evaluate_plainly({"": model}, backbone, setup.val, asked, known, 97, rules=rules)
        expected = plain.groupby(["cls", "query"])[[*SUMMED]].sum()
        table = counts[f"PFENet: {test}"]
        assert table.loc[expected.index].equals(expected)
        assert not table.drop(expected.index).to_numpy().any()
    assert not counts["PFENet: ours"].equals(counts["PFENet: literature"])
    assert " PFENet | " in script.differences_table(rows, draws=10)


def test_a_question_of_one_test_alone_counts_nothing_in_the_others(script):
    asked = {"method": ["a", "a", "b"], "query": ["x", "y", "y"], **dict.fromkeys(SUMMED, 3)}
    rows = pd.DataFrame(asked).assign(fold=0, seed=0, shots=1, cls=1)
    rows = script.by_question(pd.concat([rows, rows[:1]]))
    counts = rows.set_index(["method", "query"]).union_fg
    assert counts.to_dict() == {("a", "x"): 6, ("b", "x"): 0, ("a", "y"): 3, ("b", "y"): 3}


def test_settings_from_before_the_rules_are_of_ours(tmp_path):
    write_config(tmp_path, resolve(change_config(TINY, rules="literature")))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    del values["data"]["rules"]
    path.write_text(json.dumps(values))
    assert read_config(tmp_path).data.rules == "strict"


def test_a_model_of_unknown_rules_is_refused(tmp_path):
    saved = torch.load(BUNDLED[0]["PFENet"], weights_only=True)
    torch.save({**saved, "rules": "loose"}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="m.pt.*'rules' is 'loose', not one of literature, strict"):
        load_model(tmp_path / "m.pt")
    with pytest.raises(ValueError, match="no rules 'loose'; choose one of literature, strict"):
        find_rules("loose")


def test_fast_and_plain_evaluation_fit_alike(tmp_path):
    data, backbone = samples("val"), load_backbone("tiny")
    torch.manual_seed(0)
    net = build_model(240, 8, (1.0, 0.5), method=METHODS["CyCTR"])
    for p in net.parameters(): p.data = p.data + 0.3 * torch.randn(p.shape)
    net, episodes = net.eval(), pairs_per_class(data.pixels, [1, 2], 2, 1, 0)
    counts = {}
    for rules in (STRICT, LITERATURE):
        bank = feature_bank(backbone, data, 57)._replace(rules=rules)
        fast = evaluate({"m": net}, bank, data, episodes, [6, 7])
        slow = evaluate_plainly({"m": net}, backbone, data, episodes, [6, 7], 57, rules=rules)
        assert fast.equals(slow[fast.columns])
        counts[rules.name] = fast.inter_fg.tolist(), fast.predicted.tolist()
    assert counts["strict"] != counts["literature"], "161 pixels become 57, or 56"
    photo = read_image(data, 0)
    square, _ = transforms.fit_square(photo, data.read_mask(0), 57, LITERATURE)
    bank = feature_bank(backbone, data, 57)._replace(rules=LITERATURE)
    assert torch.equal(bank.square(0)[0], square)


def test_vanishing_queries_are_no_reason_to_warn(tmp_path, recwarn):
    "By the literature's rules a query may have one pixel, which training loses."
    masks = {}
    for k in range(6):
        mask = np.zeros((120, 160), np.uint8)
        # at nine tenths of the size, row and column 99 are between those that are kept
        mask[:60, :80], mask[99, 99] = 1 + k % 3, 1 + (k + 1) % 3
        masks[f"im{k}"] = mask
    from PIL import Image

    for split in ("train", "val"):
        root = tmp_path / "voc"
        make_voc(root, {k: v[:40, :56] for k, v in masks.items()}, split)
        for name, mask in masks.items():
            photo = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), np.uint8)
            Image.fromarray(photo).save(root / f"JPEGImages/{name}.jpg")
            Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
    config = change_config(
        TINY, data=str(root), rules="literature", n_folds=3, backbone="tiny", precision="float32",
        reference=97,
    )
    setup = prepare(resolve(config))
    fold = setup.folds[0]
    small = setup.train.pixels[fold.training.query, fold.training.cls - 1] < LEAST
    said = [str(w.message).replace(str(tmp_path), "") for w in recwarn]  # which has the word too
    assert small.any() and not any("vanish" in text for text in said)
