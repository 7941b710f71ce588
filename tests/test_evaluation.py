"""Evaluation: the cache, K shots, votes, trivial predictors and scores, each the slow way too."""
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cachetools import LRUCache
from PIL import Image
from torch import nn

from celp_nb import cyctr
from celp_nb.conditioning import Features, SupportFeatures, support_prior
from celp_nb.contrast import FewShotModel, support_conditioning
from celp_nb.data.episodes import Episodes
from celp_nb.data.images import ImageSet, read_image
from celp_nb.data.transforms import at_native_size, fit_square, padding_of
from celp_nb.engine import evaluation as engine_evaluation
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.evaluation import (
    Query,
    VotingPredictor,
    all_foreground,
    best_prior,
    evaluate_plainly,
    prior_predictors,
    scores,
    voting,
)
from celp_nb.engine.feature_bank import (
    bytes_of,
    episode_inputs,
    evaluate,
    feature_bank,
    tensors_in,
)
from celp_nb.engine.methods import METHODS, build_model
from celp_nb.engine.order import by_class_and_query, unused_names, upcoming_uses
from celp_nb.pfenet import PFENet


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


def model(seed=0, decoder="PFENet"):
    "A small model of the tiny backbone's channels."
    torch.manual_seed(seed)
    return build_model(240, 16, (1.0, 0.5), method=METHODS[decoder])


def lively(net, seed=0):
    "Weights with which everything that is given shows in the logits."
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters(): p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return net.eval()


def drawn(root, sizes):
    "Images of these sizes with classes 1 to 3 and void."
    rng, masks, paths = np.random.default_rng(0), [], []
    for i, (h, w) in enumerate(sizes):
        mask = np.zeros((h, w), np.uint8)
        for c in (1, 2, 3):
            mask[
                (c - 1) * h // 3 : c * h // 3 - 2,
                rng.integers(0, w // 3) : w - rng.integers(0, w // 3),
            ] = c
        mask[:, -2:] = 255
        image = rng.integers(0, 256, (h, w, 3)).astype(np.uint8) // 2 + (
            mask[..., None] % 4 * 40
        ).astype(np.uint8)
        paths.append(root / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
        masks.append(mask)
    pixels = np.array([[(m == c).sum() for c in (1, 2, 3)] for m in masks])
    return ImageSet(
        "photographs",
        [p.stem for p in paths],
        paths,
        lambda i: masks[i].copy(),
        ["a", "b", "c"],
        pixels,
    ), masks


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return drawn(
        tmp_path_factory.mktemp("photographs"),
        [(40, 56), (64, 41), (56, 56), (30, 70), (57, 40), (48, 64)],
    )


@pytest.fixture(scope="module")
def thirteen(tmp_path_factory):
    rng = np.random.default_rng(1)
    return drawn(
        tmp_path_factory.mktemp("thirteen"),
        [tuple(map(int, rng.integers(20, 50, 2))) for _ in range(13)],
    )


SIDE = 57
LIST = Episodes(np.array([3, 2, 3]), np.array([0, 1, 3]), np.array([[1, 2], [3, 0], [4, 5]]))


def many(n=11):
    "Episodes of six images with five supports each; the first one comes twice."
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(6) for _ in range(n - 1)])
    orders = np.concatenate([orders, orders[:1]])
    cls = rng.integers(1, 4, n - 1)
    return Episodes(np.append(cls, cls[0]), orders[:, 0], orders[:, 1:])


# --- the plain loop


def slow_parts(backbone, data, masks, c, query, supports, side):
    "What a model is given, from the files on: features, masks, padding."
    def features(i, mask=None):
        x, class_map = fit_square(read_image(data, i), masks[i], side)
        f2 = backbone.layer2(x[None])
        f3 = backbone.layer3(f2)
        weight = (
            1.0
            if mask is None
            else torch.nn.functional.interpolate(
                (class_map == c).float()[None, None],
                f3.shape[-2:],
                mode="bilinear",
                align_corners=True,
            )
        )
        return torch.cat([f3, f2], 1), backbone.layer4(f3 * weight), class_map
    with torch.no_grad():
        shots = [(*features(s, c)[:2], features(s)[1]) for s in supports]
        support = SupportFeatures(*(torch.stack(x, 1) for x in zip(*shots)))
        mid, high, _ = features(query)
    seen = [fit_square(read_image(data, s), masks[s], side)[1] for s in supports]
    mask = torch.stack([torch.where(m == 255, 255, (m == c).byte()) for m in seen])[None]
    return (
        Features(mid, high),
        support,
        mask,
        torch.from_numpy(square_of(np.zeros_like(masks[query]), side) == 255)[None],
    )


def at_size(logits, h, w):
    "(H, W): by how much foreground leads."
    big = torch.nn.functional.interpolate(
        logits, (max(h, w), max(h, w)), mode="bilinear", align_corners=True
    )[0, :, :h, :w]
    return (big[1] - big[0]).numpy()


def slow_leads(predictor, parts, size):
    "One map of one predictor, or one a vote."
    query, support, mask, padding = parts
    if isinstance(predictor, VotingPredictor):
        return [
            slow_leads(
                predictor.predict,
                (query, SupportFeatures(*(x[:, [k]] for x in support)), mask[:, [k]], padding),
                size,
            )[0]
            for k in range(mask.shape[1])
        ]
    with torch.no_grad():
        return [
            at_size(
                predictor(
                    query,
                    support if predictor.whole_support else Features(*support[:2]),
                    mask,
                    padding,
                ),
                *size,
            )
        ]


def slow_rows(net, backbone, data, masks, episodes, K, train_classes):
    "One episode after the other, one pixel after the other."
    rows = []
    for c, q, supports in zip(*(x.tolist() for x in episodes)):
        h, w = masks[q].shape
        lead = slow_leads(net, slow_parts(backbone, data, masks, c, q, supports[:K], SIDE), (h, w))[
            0
        ]
        row = dict.fromkeys(
            ("inter_fg", "union_fg", "inter_bg", "union_bg", "predicted", "on_known", "valid"), 0
        )
        for i in range(h):
            for j in range(w):
                truth = int(masks[q][i, j])
                if truth == 255: continue
                found, wanted = bool(lead[i, j] > 0), truth == c
                row["inter_fg"] += found and wanted
                row["union_fg"] += found or wanted
                row["inter_bg"] += not found and not wanted
                row["union_bg"] += not (found and wanted)
                row["predicted"] += found
                row["on_known"] += found and truth in train_classes
                row["valid"] += 1
        rows.append({"cls": c, **row})
    return rows


def balanced(net, backbone, photographs, episodes, side=SIDE):
    "Shift a random network's logits until about half of an image is foreground."
    data, masks = photographs
    c, q, supports = (x[0].tolist() for x in episodes)
    lead = slow_leads(
        net, slow_parts(backbone, data, masks, c, q, supports[:1], side), masks[q].shape
    )[0]
    with torch.no_grad():
        net.decoder.cls[3].bias[1] -= float(
            np.quantile(lead, 0.5003)
        )  # no pixel's own value, which would be a tie
    return net


@pytest.mark.parametrize("K", [1, 2])
def test_evaluation_against_a_slow_loop(K, backbone, photographs):
    data, masks = photographs
    nets = {
        "one": balanced(model().eval(), backbone, photographs, LIST),
        "two": balanced(model(seed=4).eval(), backbone, photographs, LIST),
    }
    done = []
    table = evaluate(nets, feature_bank(backbone, data, SIDE), data, LIST, [1], (1, 2), done.append)
    assert (
        len(table) == 2 * 2 * 3
        and list(table.columns[:5]) == ["method", "shots", "episode", "cls", "query"]
        and table["query"].tolist() == [data.ids[q] for q in LIST.query for _ in range(4)]
        and done == [0, 1, 2]
    )
    assert table[["episode", "shots", "method"]].values.tolist() == [
        [e, k, name] for e in range(3) for k in (1, 2) for name in nets
    ]
    for name, net in nets.items():
        ours = table[(table.method == name) & (table.shots == K)]
        slow = pd.DataFrame(slow_rows(net, backbone, data, masks, LIST, K, [1]))
        assert ours[slow.columns].reset_index(drop=True).to_dict() == slow.to_dict()
        assert 0 < slow.inter_fg.sum() < slow.predicted.sum() < slow.valid.sum()
        score = scores(table).set_index(["method", "shots"]).loc[name, K]
        iou = {c: part.inter_fg.sum() / part.union_fg.sum() for c, part in slow.groupby("cls")}
        assert score.miou == pytest.approx(100 * sum(iou.values()) / 2) and score.episodes == 3
        assert score.confusion == pytest.approx(100 * slow.on_known.sum() / slow.predicted.sum())


def found_masks(monkeypatch):
    "From now on each row of `evaluate` has the mask that was counted."
    counts = engine_evaluation.pixel_counts
    monkeypatch.setattr(
        engine_evaluation,
        "pixel_counts",
        lambda f, *rest: {**counts(f, *rest), "found": f.numpy()},
    )


def agree(found, leads, needed=1):
    """Whether the mask is what the slow maps vote for, wherever none of them is near a tie.

    (A batch may round otherwise than one question alone.)"""
    sure = np.all([abs(z) > 1e-4 * abs(z).max() for z in leads], 0)
    votes = np.sum([z > 0 for z in leads], 0)
    return sure.mean() > 0.95 and np.array_equal(found[sure], (votes >= needed)[sure])


@pytest.fixture(scope="module")
def zoo(backbone, photographs):
    "A PFENet, one with two reductions, a CyCTR, votes of two of them."
    torch.manual_seed(3)
    two = FewShotModel(240, PFENet(16, (1.0, 0.5)), 16, separate=True)
    nets = {
        "PFENet": lively(model(seed=1), 1),
        "two reductions": lively(two, 2),
        "CyCTR": lively(model(seed=2, decoder="CyCTR"), 2),
    }
    nets = {name: balanced(net, backbone, photographs, many()) for name, net in nets.items()}
    return {
        **nets,
        **{f"{m} {k}": v for m in ("PFENet", "CyCTR") for k, v in voting(nets[m], 5).items()},
    }


@pytest.fixture(scope="module")
def slow_zoo(zoo, backbone, photographs):
    "(episode, K, method) → the slow maps."
    data, masks = photographs
    @lru_cache(None)
    def of(e, K, name):
        c, q, supports = (x[e].tolist() for x in many())
        return slow_leads(
            zoo[name], slow_parts(backbone, data, masks, c, q, supports[:K], SIDE), masks[q].shape
        )
    return of


@pytest.mark.parametrize(
    "gigabytes, batch, turn",
    [(4.0, 4, None), (0.0, 1, None), (0.001, 3, 0), (4.0, 1, 1), (0.0005, 64, 2)],
)
def test_all_at_once_is_a_plain_loop_whatever_the_budget_the_batch_and_the_order(
    gigabytes, batch, turn, zoo, slow_zoo, backbone, photographs, monkeypatch
):
    data, _ = photographs
    order = np.arange(11) if turn is None else np.random.default_rng(turn).permutation(11)
    found_masks(monkeypatch)
    table = evaluate(
        {**zoo, "all": all_foreground, **prior_predictors((0.5,))},
        feature_bank(backbone, data, SIDE, gigabytes),
        data,
        Episodes(*(x[order] for x in many())),
        [1],
        (1, 2, 5),
        batch=batch,
    )
    assert len(table) == 11 * (3 * 5 + 2 * (1 + 2 + 5))
    for row in table[~table.method.isin(["all", "prior ≥ 0.50"])].itertuples():
        assert agree(
            row.found,
            slow_zoo(int(order[row.episode]), row.shots, row.method),
            getattr(zoo[row.method], "needed", 1),
        ), (row.method, row.shots)
    for name in ("PFENet", "two reductions", "CyCTR"):
        assert 0.05 < np.mean([f.mean() for f in table[table.method == name].found]) < 0.95


def test_few_keys_are_drawn_alike_alone_and_in_a_batch(
    zoo, slow_zoo, backbone, photographs, monkeypatch
):
    "Rows of a batch have masks of different sizes; the slow loop asks one after the other."
    data, _ = photographs
    monkeypatch.setattr(cyctr, "KEYS", 5)
    slow_zoo.cache_clear()
    found_masks(monkeypatch)
    table = evaluate(
        {"CyCTR": zoo["CyCTR"]},
        feature_bank(backbone, data, SIDE),
        data,
        many(),
        [1],
        (1, 5),
        batch=6,
    )
    assert all(
        agree(row.found, slow_zoo(row.episode, row.shots, "CyCTR")) for row in table.itertuples()
    )
    slow_zoo.cache_clear()


class Watched(nn.Module):
    "A decoder that notes what it was given and what it answered; or is told another padding."
    def __init__(self, decoder, padding=None):
        super().__init__()
        self.decoder, self.padding, self.given, self.said = decoder, padding, [], []

    def forward(self, cond):
        if self.padding is not None: cond = cond._replace(padding=self.padding)
        self.given.append(cond)
        self.said.append(self.decoder(cond)[0])
        return self.said[-1], None


def watched(net, padding=None):
    "The same reduction before a watched decoder."
    other = FewShotModel(
        240, Watched(net.decoder, padding), net.width, whole_support=net.whole_support
    )
    other.reduce = net.reduce
    return other.eval()


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
def test_a_decoder_is_given_the_conditioning_of_training(decoder, backbone, photographs):
    data, _ = photographs
    net, memory = watched(lively(model(decoder=decoder))), feature_bank(backbone, data, SIDE)
    episodes, seen = LIST, net.decoder.given
    evaluate({"m": net}, memory, data, episodes, [1], (1, 2), batch=1)
    order = np.lexsort((episodes.query, episodes.cls))
    assert len(seen) == 6
    for n, cond in enumerate(seen):
        e, K = int(order[n // 2]), n % 2 + 1
        query, support, masks = episode_inputs(memory, episodes.shots(K), e, net.whole_support)
        with torch.no_grad():
            plain = support_conditioning(
                net,
                query,
                support,
                masks,
                padding_of(*data.read_mask(int(episodes.query[e])).shape, SIDE),
            )
        for name, a, b in zip(cond._fields, cond, plain):
            assert (
                a.shape == b.shape
                and a.dtype == b.dtype
                and torch.allclose(a.float(), b.float(), atol=1e-4 * max(1, b.float().abs().max()))
            ), name


def test_a_function_is_given_the_prior_and_no_channels(backbone, photographs):
    data, _ = photographs
    given = []
    evaluate(
        {"f": lambda cond: given.append(cond) or all_foreground(cond)},
        feature_bank(backbone, data, SIDE),
        data,
        LIST,
        [1],
        (2,),
        batch=1,
    )
    h = (SIDE - 1) // 8 + 1
    for cond in given:
        assert (
            cond.query.shape == (1, 0, h, h)
            and cond.prototype.shape == (1, 0)
            and cond.support.shape == (1, 2, 0, h, h)
            and cond.prior.shape == (1, 1, h, h)
        )
    query, support, masks = episode_inputs(
        feature_bank(backbone, data, SIDE), LIST, 1
    )  # the first by class
    assert (
        torch.allclose(given[0].prior, support_prior(query.high, support.high, masks), atol=1e-5)
        and given[0].prior.max() > 0.5
    )


@pytest.mark.parametrize("K", [1, 2])
def test_the_plain_loop_counts_pixel_by_pixel(K, backbone, photographs):
    data, masks = photographs
    net = balanced(model().eval(), backbone, photographs, LIST)
    plain = evaluate_plainly({"m": net}, backbone, data, LIST, [1], SIDE, (K,))
    slow = pd.DataFrame(slow_rows(net, backbone, data, masks, LIST, K, [1]))
    assert plain[slow.columns].to_dict() == slow.to_dict() and (plain.shots == K).all()


def test_the_plain_loop_and_the_bank_count_the_same_pixels(zoo, backbone, photographs):
    data, _ = photographs
    episodes = Episodes(*(x[:4] for x in many()))
    plain = evaluate_plainly(zoo, backbone, data, episodes, [1], SIDE, (1, 5))
    fast = evaluate(zoo, feature_bank(backbone, data, SIDE), data, episodes, [1], (1, 5))
    named = ["method", "shots", "episode", "cls", "query"]
    assert plain["query"].tolist() == [data.ids[episodes.query[e]] for e in plain.episode]
    assert plain[named].equals(fast[named]) and list(plain) == list(fast)
    counts = [name for name in plain if name not in named]
    apart = (plain[counts] - fast[counts]).abs().max(axis=1)
    assert (apart <= 2 * plain.shots).all() and (apart == 0).mean() > 0.8  # ties of a batch


# --- the cache


class Witness(LRUCache):
    "A memory that notes how much it holds, by its own count, and what was thrown out."
    def __init__(self, megabytes):
        super().__init__(megabytes * 1e6, bytes_of)
        self.most, self.dropped = 0, 0

    def __setitem__(self, name, value):
        super().__setitem__(name, value)

        def leaves(x):
            return (
                [x]
                if isinstance(x, torch.Tensor)
                else sum(map(leaves, x.values() if isinstance(x, dict) else x), [])
            )

        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for item in self.values()
            for x in leaves(item)
            if x.numel()
        }
        self.most = max(self.most, sum(storages.values()))

    def popitem(self):
        self.dropped += 1
        return super().popitem()


@pytest.mark.parametrize("megabytes", [0, 0.02, 0.2, 0.5, 100])
def test_never_more_than_the_budget_is_kept(megabytes, zoo, backbone, photographs):
    data, _ = photographs
    memory, kept = feature_bank(backbone, data, SIDE)._replace(kept=Witness(megabytes)), []
    evaluate(zoo, memory, data, many(), [1], (1, 5), lambda n: kept.append(len(memory.kept)))
    assert memory.kept.most <= megabytes * 1e6 and not len(memory.kept)
    assert (memory.kept.dropped > 0) == (0 < megabytes < 100) and (max(kept) > 2) == (megabytes > 0)
    if megabytes >= 0.2:
        assert (
            memory.kept.most > 0.8 * min(megabytes, 0.7) * 1e6
        )  # there is no more than 0.77 MB in all
    for e in range(3): episode_inputs(memory, LIST, e, True)
    assert memory.kept.most <= megabytes * 1e6


def calls(stage, side):
    "A list that grows with the images that a stage is given; and the hook."
    seen = []
    return seen, stage.register_forward_hook(
        lambda net, given, out: (
            seen.extend([1] * len(given[0])) if given[0].shape[-1] == side else None
        )
    )


@pytest.mark.parametrize(
    "nets",
    [("PFENet",), ("CyCTR",), ("PFENet", "two reductions", "CyCTR", "PFENet v-2", "CyCTR v-1")],
)
@pytest.mark.parametrize("shots", [(1,), (1, 2, 5)])
def test_each_image_goes_through_the_backbone_once(nets, shots, zoo, backbone, photographs):
    """And through layer4 once as a query and once for each class that it supports.

    For a model that compares whole images it is once in all."""
    data, _ = photographs
    (images, one), (high, other) = (
        calls(backbone.layer2, SIDE),
        calls(backbone.layer4, (SIDE - 1) // 8 + 1),
    )
    evaluate(
        {name: zoo[name] for name in nets},
        feature_bank(backbone, data, SIDE),
        data,
        many(),
        [1],
        shots,
    )
    one.remove(), other.remove()
    queries, supports = (
        set(many().query.tolist()),
        {
            (c, s)
            for c, all_of in zip(many().cls.tolist(), many().support[:, : max(shots)].tolist())
            for s in all_of
        },
    )
    everything = queries | {s for _, s in supports}
    assert len(images) == len(everything)
    assert len(high) == (len(everything) if "CyCTR" in nets else len(queries)) + (
        len(supports) if "PFENet" in nets else 0
    )


@pytest.mark.parametrize("K", [1, 5])
def test_without_a_memory_it_is_the_plain_loop(K, zoo, backbone, photographs):
    data, _ = photographs
    images, hook = calls(backbone.layer2, SIDE)
    evaluate(
        {name: zoo[name] for name in ("PFENet", "CyCTR")},
        feature_bank(backbone, data, SIDE, 0.0),
        data,
        many(),
        [1],
        (K,),
        batch=1,
    )
    hook.remove()
    assert len(images) == 11 * (1 + K)


def test_the_order_of_a_list_costs_nothing(zoo, backbone, photographs):
    "With a cache that holds a part, as many images are encoded whatever the order; and fewer."
    data, _ = photographs
    looks = []
    for seed, megabytes in [(0, 0.3), (1, 0.3), (2, 0.3), (0, 0.0)]:
        order = np.random.default_rng(seed).permutation(10)  # without the one that comes twice
        images, hook = calls(backbone.layer2, SIDE)
        evaluate(
            {"PFENet": zoo["PFENet"]},
            feature_bank(backbone, data, SIDE, megabytes / 1e3),
            data,
            Episodes(*(x[order] for x in many())),
            [1],
            (2,),
            batch=1,
        )
        hook.remove()
        looks.append(len(images))
    assert looks[0] == looks[1] == looks[2] < looks[3] == 30


def test_a_question_that_comes_again_is_answered_once(zoo, backbone, photographs):
    "The last episode is the first; a vote of one support is the one-shot question."
    data, _ = photographs
    net = watched(zoo["PFENet"])
    evaluate(
        {"m": net, **voting(net, 2)}, feature_bank(backbone, data, SIDE), data, many(), [1], (1, 2)
    )
    e = many()
    single = {
        (c, q, s)
        for c, q, supports in zip(e.cls.tolist(), e.query.tolist(), e.support[:, :2].tolist())
        for s in supports
    }
    two = {
        (c, q, *supports)
        for c, q, supports in zip(e.cls.tolist(), e.query.tolist(), e.support[:, :2].tolist())
    }
    assert (
        sum(len(cond.query) for cond in net.decoder.given) == len(single) + len(two)
        and len(two) < 11
    )
    assert max(len(cond.query) for cond in net.decoder.given) == 4


def test_other_weights_give_other_answers(backbone, photographs):
    "Nothing is left of the last time."
    data, _ = photographs
    memory, net = (
        feature_bank(backbone, data, SIDE),
        balanced(lively(model()), backbone, photographs, LIST),
    )
    before = evaluate({"m": net}, memory, data, LIST, [1])
    lively(net, seed=5)
    after = evaluate({"m": net}, memory, data, LIST, [1])
    assert not after.equals(before) and after.equals(
        evaluate({"m": net}, feature_bank(backbone, data, SIDE), data, LIST, [1])
    )


def test_an_upcoming_use_is_before_so_many_others_have_been_touched():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n, images = int(rng.integers(1, 7)), 6
        orders = np.array([rng.permutation(images) for _ in range(n)])
        coming, i, room = (
            Episodes(rng.integers(1, 3, n), orders[:, 0], orders[:, 1:3]),
            int(rng.integers(images)),
            int(rng.integers(0, 7)),
        )
        slow, touched = set(), set()
        for c, q, supports in zip(*(x.tolist() for x in coming)):
            touched |= {q, *supports}
            if len(touched) > room: break
            if q == i: slow.add(("high", i))
            if i in supports: slow.add(("support", i, c))
        assert set(upcoming_uses(coming, i, room)) == slow


def names_of(episodes, e, predict):
    "All that an episode uses, written down one by one."
    c, q, *_ = (x[e].tolist() for x in episodes)
    supports = episodes.support[e].tolist()
    names = {("image", q), ("high", q), Query(predict, c, q, tuple(supports))}
    for s in supports:
        names |= {("image", s), ("support", s, c), ("match", 0, c, q, s)}
        names.add(Query(predict, c, q, (s,)))
    return names


def test_what_no_coming_episode_uses_is_over():
    "A name is over when the last episode that uses it is; some are when their class is."
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = int(rng.integers(2, 8))
        orders = np.array([rng.permutation(6) for _ in range(n)])
        episodes = Episodes(rng.integers(1, 4, n), orders[:, 0], orders[:, 1:3])
        episodes = Episodes(*(x[by_class_and_query(episodes)] for x in episodes))
        names = [names_of(episodes, e, max) for e in range(n)]
        for first in range(n):
            coming = Episodes(*(x[first:] for x in episodes))
            over, used = set(unused_names(set.union(*names), coming)), set.union(*names[first:])
            assert not over & used
            late = set.union(*names) - used - over  # kept a little longer: those of the class
            now = int(coming.cls[0]), int(coming.query[0])
            assert all(
                (x.cls, x.query) == now if isinstance(x, Query)
                else x[2:4] == now if x[0] == "match"
                else x[0] == "support" and x[2] == now[0]
                for x in late
            )


def test_an_evaluation_keeps_only_what_later_episodes_use(zoo, backbone, photographs):
    "And what it keeps holds no more memory than is counted."
    data, _ = photographs
    memory, episodes, past = feature_bank(backbone, data, SIDE), many(), []
    order = by_class_and_query(episodes)

    def look(n):
        coming = Episodes(*(x[order[n:]] for x in episodes))
        past.extend(unused_names(memory.kept, coming))
        storages = {
            x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
            for item in memory.kept.values()
            for x in tensors_in(item)
        }
        assert 0 < sum(storages.values()) <= memory.kept.currsize

    evaluate(zoo, memory, data, episodes, [1], (1, 5), look, batch=1)
    assert past == []


def test_lower_precision_is_close_and_half_the_size(backbone, photographs):
    data, _ = photographs
    exact, lower = (
        feature_bank(backbone, data, SIDE),
        feature_bank(backbone, data, SIDE, precision=torch.bfloat16),
    )
    for a, b in zip(episode_inputs(exact, LIST, 0)[:2], episode_inputs(lower, LIST, 0)[:2]):
        for x, y in zip(a, b):
            assert y.dtype == torch.float32 and 0 < (x - y).abs().max() <= 0.05 * x.abs().max()
    net, high = watched(lively(model())), []
    for memory in (exact, lower):
        evaluate(
            {"m": net},
            memory,
            data,
            LIST,
            [1],
            (2,),
            lambda n, bank=memory: high.append(bank.kept["high", 3][0]),
            batch=3,
        )
    assert high[0].dtype == torch.float32 and high[-1].dtype == torch.bfloat16
    (a, b) = net.decoder.given
    for x, y in zip(a[:4], b[:4]):
        assert y.dtype == torch.float32 and 0 < (x - y).abs().max() <= 0.05 * x.abs().max()


# --- the query's mask


CHANGES = [
    lambda m: np.where(m == 255, 0, m),
    lambda m: np.full_like(m, 3),
    lambda m: np.where(m == 3, 255, m),
    lambda m: np.zeros_like(m),
    lambda m: np.full_like(m, 255),
]
ASKED = Episodes(np.array([3]), np.array([0]), np.array([[1, 2]]))  # image 0 is no support


def with_mask(data, masks, change):
    "Image 0 has another mask."
    other = [change(m) if i == 0 else m for i, m in enumerate(masks)]
    return replace(data, read_mask=lambda i: other[i].copy())


def test_the_query_mask_reaches_no_predictor(backbone, photographs):
    "Another ground truth, void included, and every predictor is given the very same tensors."
    data, masks = photographs
    def seen(change):
        nets, given = {d: watched(lively(model(decoder=d))) for d in ("PFENet", "CyCTR")}, []
        altered = with_mask(data, masks, change)
        evaluate(
            {
                **nets,
                **voting(nets["CyCTR"], 2),
                "spy": lambda cond: given.append(cond) or all_foreground(cond),
            },
            feature_bank(backbone, altered, SIDE),
            altered,
            ASKED,
            [1],
            (1, 2),
        )
        return (
            [x for net in nets.values() for cond in net.decoder.given for x in cond]
            + [x for cond in given for x in cond]
            + [x for net in nets.values() for x in net.decoder.said]
        )
    plain = seen(lambda m: m)
    assert len(plain) >= 40
    for change in CHANGES:
        assert all(torch.equal(a, b) for a, b in zip(plain, seen(change), strict=True))


def test_a_model_that_uses_padding_gets_the_shape_of_the_image(backbone, photographs):
    "CyCTR gets the image's shape beside the query's features; another padding changes its logits."
    data, masks = photographs
    net = lively(model(decoder="CyCTR"))
    def answer(padding=None):
        spy = watched(net, padding)
        evaluate({"m": spy}, feature_bank(backbone, data, SIDE), data, ASKED, [1])
        return spy.decoder.given[0].padding, spy.decoder.said[0]

    (padding, logits), leak = (
        answer(),
        torch.from_numpy(square_of(np.where(masks[0] == 3, 255, masks[0]), SIDE) == 255)[None],
    )
    assert torch.equal(
        padding[0], torch.from_numpy(square_of(np.zeros_like(masks[0]), SIDE) == 255)
    )
    assert not torch.equal(answer(leak)[1], logits) and torch.equal(answer(padding)[1], logits)


def test_void_is_seen_where_that_is_asked_for(backbone, photographs):
    "The padding that a query's model gets: of the square, or with the ground truth's void."
    data, masks = photographs
    episodes, given = Episodes(np.array([1]), np.array([0]), np.array([[2]])), {}
    for seen in (False, True):
        spy = watched(lively(model(decoder="CyCTR")))
        evaluate(
            {"m": spy},
            feature_bank(backbone, data, SIDE)._replace(void_seen=seen),
            data,
            episodes,
            [2],
        )
        given[seen] = spy.decoder.given[0].padding[0]
    assert (
        torch.equal(given[True], torch.from_numpy(square_of(masks[0], SIDE) == 255))
        and given[True].sum() > given[False].sum()
        and (given[True] | ~given[False]).all()
    )


@pytest.mark.parametrize("change", CHANGES)
def test_the_mask_of_a_support_does_reach_them(change, backbone, photographs):
    "The test above can fail: the same change shows where image 0 is a support."
    data, masks = photographs
    episodes = Episodes(np.array([1]), np.array([1]), np.array([[0, 2]]))
    def said(change):
        net, altered = (
            watched(lively(model())),
            with_mask(
                data,
                masks,
                lambda m: (
                    np.where(m == 1, 1, change(m))
                    if (change(m) == 1).any()
                    else np.where(np.arange(len(m))[:, None] < 9, 1, change(m))
                ),
            ),
        )
        evaluate({"m": net}, feature_bank(backbone, altered, SIDE), altered, episodes, [2])
        return net.decoder.given[0].support_mask
    assert not torch.equal(said(lambda m: m), said(change))


def square_of(mask, side):
    "The mask as a model sees it; 255 is void, or no image."
    return fit_square(np.zeros((*mask.shape, 3), np.uint8), mask, side)[1].numpy()


@pytest.mark.parametrize(
    "height, width",
    [
        (40, 56),
        (56, 40),
        (57, 57),
        (1, 1),
        (1, 300),
        (300, 1),
        (5, 400),
        (333, 500),
        (500, 375),
        (57, 56),
        (114, 113),
        (38, 57),
        (3, 2),
    ],
)
@pytest.mark.parametrize("side", [17, 57, 81])
def test_padding_is_where_the_square_holds_no_image(height, width, side):
    square = square_of(np.zeros((height, width), np.uint8), side)
    ours = padding_of(height, width, side)
    assert (
        ours.shape == (1, side, side)
        and ours.dtype == torch.bool
        and np.array_equal(ours[0].numpy(), square == 255)
    )
    assert not ours[0, 0, 0] and ours.any() == (square == 255).any()



# --- many shots


TEN = Episodes(
    np.array([1, 2]),
    np.array([0, 4]),
    np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [12, 11, 10, 9, 8, 7, 6, 5, 3, 2]]),
)


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
def test_votes_are_single_passes_one_after_the_other(decoder, backbone, thirteen, monkeypatch):
    """For K from 1 to 10: v-k is foreground where k of the K masks at the photograph's size are.

    It is not used with fewer shots than votes."""
    data, masks = thirteen
    net = balanced(lively(model(decoder=decoder), seed=1), backbone, thirteen, TEN, 33)
    found_masks(monkeypatch)
    table = evaluate(
        voting(net, 10), feature_bank(backbone, data, 33), data, TEN, [1], shots=tuple(range(1, 11))
    )
    ours = {
        (e, K, method): f
        for e, K, method, f in zip(table.episode, table.shots, table.method, table.found)
    }
    assert len(table) == 2 * 55 and set(ours) == {
        (e, K, f"v-{k}") for e in (0, 1) for K in range(1, 11) for k in range(1, K + 1)
    }
    different = 0
    for e, (c, q, supports) in enumerate(zip(*(x.tolist() for x in TEN))):
        leads = [
            slow_leads(net, slow_parts(backbone, data, masks, c, q, [s], 33), masks[q].shape)[0]
            for s in supports
        ]
        for K in range(1, 11):
            for k in range(1, K + 1):
                assert agree(ours[e, K, f"v-{k}"], leads[:K], k), (K, k)
                if k > 1: assert not (ours[e, K, f"v-{k}"] & ~ours[e, K, f"v-{k - 1}"]).any()
        different = max(different, len(np.unique(np.sum([z > 0 for z in leads], 0))))
    assert different > 4  # the supports disagree


def test_votes_share_one_set_of_passes(backbone, thirteen):
    data, _ = thirteen
    net = watched(lively(model()))
    evaluate(voting(net, 10), feature_bank(backbone, data, 33), data, TEN, [1], shots=(1, 4, 10))
    assert sum(len(cond.query) for cond in net.decoder.given) == 2 * 10 and all(
        cond.support.shape[1] == 1 for cond in net.decoder.given
    )


def test_fewer_supports_than_shots(backbone, photographs):
    data, _ = photographs
    with pytest.raises(
        ValueError, match="5 shots were asked for, but the episodes hold 2 supports"
    ):
        evaluate(
            {"m": lambda *x: pytest.fail("before any work")},
            feature_bank(backbone, data, SIDE),
            data,
            LIST,
            [1],
            shots=(1, 5),
        )


def test_an_empty_support_mask_is_named(backbone, photographs):
    data, masks = photographs
    empty = replace(
        data, read_mask=lambda i: np.where(masks[i] == 3, 0, masks[i]) if i == 2 else masks[i]
    )
    memory = feature_bank(backbone, empty, SIDE)
    with pytest.raises(ValueError, match="support image number 2 shows no pixel of class 3"):
        episode_inputs(memory, LIST, 0)
    with pytest.raises(ValueError, match="support image number 2 shows no pixel of class 3"):
        evaluate({"m": model().eval()}, memory, empty, LIST, [1], (2,))
    episode_inputs(memory, LIST.shots(1), 0)
    evaluate({"m": model().eval()}, memory, empty, LIST, [1], (1,))


# --- trivial predictors


def test_prior_predictors_cut_the_prior(backbone, photographs):
    data, masks = photographs
    cuts = (0.2, 0.5, 0.8)
    memory = feature_bank(backbone, data, SIDE)
    table = evaluate(prior_predictors(cuts), memory, data, LIST, [1], shots=(1, 2))
    for e in range(3):
        for K in (1, 2):
            query, support, mask = episode_inputs(memory, LIST.shots(K), e)
            h, w = masks[LIST.query[e]].shape
            prior = torch.nn.functional.interpolate(
                support_prior(query.high, support.high, mask),
                (max(h, w), max(h, w)),
                mode="bilinear",
                align_corners=True,
            )[0, 0, :h, :w].numpy()
            valid = masks[LIST.query[e]] != 255
            for cut in cuts:
                row = table[
                    (table.method == f"prior ≥ {cut:.2f}")
                    & (table.shots == K)
                    & (table.episode == e)
                ]
                assert row.predicted.item() == ((prior >= cut) & valid).sum()
    foreground = table.groupby("method").predicted.sum()
    assert foreground.is_monotonic_decreasing and foreground.iloc[0] > foreground.iloc[-1] > 0


def test_best_prior_keeps_the_best_threshold_of_each_number_of_shots():
    row = lambda method, shots, miou: {"method": method, "shots": shots, "miou": miou}
    table = pd.DataFrame(
        [
            row("PFENet", 1, 9),
            row("prior ≥ 0.20", 1, 5),
            row("prior ≥ 0.50", 1, 7),
            row("prior ≥ 0.20", 5, 8),
            row("prior ≥ 0.50", 5, 6),
        ]
    )
    kept = best_prior(table)
    assert sorted(map(tuple, kept.values.tolist())) == [
        ("PFENet", 1, 9),
        ("prior ≥ 0.20", 5, 8),
        ("prior ≥ 0.50", 1, 7),
    ]


def test_all_foreground(backbone, photographs):
    data, masks = photographs
    table = evaluate({"all": all_foreground}, feature_bank(backbone, data, SIDE), data, LIST, [1])
    for row, (c, q) in zip(table.itertuples(), zip(LIST.cls, LIST.query)):
        assert (
            row.predicted == row.valid == (masks[q] != 255).sum()
            and row.inter_fg == (masks[q] == c).sum()
            and row.on_known == (masks[q] == 1).sum()
        )


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (70, 70)])
def test_native_size_is_a_corner_of_the_large_square(height, width):
    logits, side = torch.randn(1, 2, 31, 31), max(height, width)
    square = F.interpolate(logits, (side, side), mode="bilinear", align_corners=True)
    ours = at_native_size(logits, height, width)
    assert torch.allclose(ours, square[0, :, :height, :width], atol=1e-5)


def test_a_long_photograph_never_becomes_a_square():
    assert at_native_size(torch.randn(1, 1, 5, 5), 3, 200_000).shape == (1, 3, 200_000)
    assert at_native_size(torch.randn(1, 1, 5, 5), 200_000, 3).shape == (1, 200_000, 3)


@pytest.mark.parametrize("height, width", [(30, 70), (70, 30), (57, 57), (1, 9)])
def test_native_size_cuts_the_padding_off(height, width):
    logits = torch.arange(2 * 8 * 8, dtype=torch.float32).view(1, 2, 8, 8)
    ours = at_native_size(logits, height, width)
    assert ours.shape == (2, height, width)
    side = max(height, width)
    for i, j in [(0, 0), (height - 1, 0), (0, width - 1)]:  # a linear ramp stays one
        assert ours[0, i, j].item() == pytest.approx(
            i * 7 / (side - 1) * 8 + j * 7 / (side - 1), abs=1e-3
        )
