"""Evaluation: features computed once, K shots, votes, trivial predictors and scores, each against the slow way."""
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from celp_nb import evaluation
from celp_nb.backbones import Features, SupportFeatures, load_backbone
from celp_nb.datasets import ImageSet, fit_square, read_image
from celp_nb.episodes import Episodes
from celp_nb.evaluation import (FeatureMemory, all_foreground, at_native_size, best_prior, episode_inputs, evaluate, feature_memory, padding_of, prior_predictors, scores,
                                single_passes, voting)
from celp_nb.priors import support_prior
from celp_nb.training import build_model


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


def model(seed=0, decoder="PFENet"):
    "A small model of the tiny backbone's channels."
    torch.manual_seed(seed)
    return build_model(240, 16, (1.0, 0.5), decoder=decoder)



@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    "Six images of different shapes with classes 1 to 3 and void."
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    masks, paths = [], []
    for i, (h, w) in enumerate([(40, 56), (64, 41), (56, 56), (30, 70), (57, 40), (48, 64)]):
        mask = np.zeros((h, w), np.uint8)
        for c in (1, 2, 3): mask[(c - 1) * h // 3: c * h // 3 - 2, rng.integers(0, w // 3): w - rng.integers(0, w // 3)] = c
        mask[:, -2:] = 255
        image = rng.integers(0, 256, (h, w, 3)).astype(np.uint8) // 2 + (mask[..., None] % 4 * 40).astype(np.uint8)
        paths.append(root / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
        masks.append(mask)
    pixels = np.array([[(m == c).sum() for c in (1, 2, 3)] for m in masks])
    return ImageSet("photographs", [p.stem for p in paths], paths, lambda i: masks[i].copy(), ["a", "b", "c"], pixels), masks


LIST = Episodes(np.array([3, 2, 3]), np.array([0, 1, 3]), np.array([[1, 2], [3, 0], [4, 5]]))


def slow_rows(net, backbone, data, masks, episodes, K, train_classes, side):
    "One episode after the other, one image after the other, one pixel after the other."
    rows = []
    for c, q, supports in zip(*(x.tolist() for x in episodes)):
        def square(i): return fit_square(read_image(data, i), masks[i], side)
        def features(x, weight=None):
            f2 = backbone.layer2(x[None])
            f3 = backbone.layer3(f2)
            return torch.cat([f3, f2], 1)[0], backbone.layer4(f3 if weight is None else f3 * torch.nn.functional.interpolate(weight[None, None], f3.shape[-2:], mode="bilinear", align_corners=True))[0]
        with torch.no_grad():
            query = features(square(q)[0])
            shots = [(*features(x, (m == c).float()), (m == c).byte()) for x, m in map(square, supports[:K])]
            mid, high, mask = (torch.stack(x)[None] for x in zip(*shots))
            logits = net(Features(query[0][None], query[1][None]), Features(mid, high), mask)
            h, w = masks[q].shape
            big = torch.nn.functional.interpolate(logits, (max(h, w), max(h, w)), mode="bilinear", align_corners=True)[0]
        row = dict.fromkeys(("inter_fg", "union_fg", "inter_bg", "union_bg", "predicted", "on_known", "valid"), 0)
        for i in range(h):
            for j in range(w):
                truth = int(masks[q][i, j])
                if truth == 255: continue
                found, wanted = bool(big[1, i, j] > big[0, i, j]), truth == c
                row["inter_fg"] += found and wanted
                row["union_fg"] += found or wanted
                row["inter_bg"] += not found and not wanted
                row["union_bg"] += not (found and wanted)
                row["predicted"] += found
                row["on_known"] += found and truth in train_classes
                row["valid"] += 1
        rows.append({"cls": c, **row})
    return rows


def balanced(net, memory):
    "Shift a random network's logits until about half of an image is foreground."
    net.eval()
    with torch.no_grad():
        logits = net(*episode_inputs(memory, LIST, 0))[0]
        net.decoder.classify[3].bias[1] -= (logits[1] - logits[0]).median()
    return net


@pytest.mark.parametrize("K", [1, 2])
def test_evaluation_against_a_slow_loop(K, backbone, photographs):
    data, masks = photographs
    memory = feature_memory(backbone, data, 57)
    nets = {"one": balanced(model(), memory), "two": balanced(model(seed=4), memory)}
    table = evaluate(nets, memory, data, LIST, [1], shots=(1, 2))
    assert len(table) == 2 * 2 * 3 and list(table.columns[:4]) == ["method", "shots", "episode", "cls"]
    for name, net in nets.items():
        ours = table[(table.method == name) & (table.shots == K)].sort_values("episode")
        slow = pd.DataFrame(slow_rows(net, backbone, data, masks, LIST, K, [1], 57))
        assert ours[slow.columns].reset_index(drop=True).to_dict() == slow.to_dict()
        assert 0 < slow.inter_fg.sum() < slow.predicted.sum() < slow.valid.sum()
        score = scores(table).set_index(["method", "shots"]).loc[name, K]
        iou = {c: part.inter_fg.sum() / part.union_fg.sum() for c, part in slow.groupby("cls")}
        assert score.miou == pytest.approx(100 * sum(iou.values()) / 2) and score.episodes == 3
        assert score.confusion == pytest.approx(100 * slow.on_known.sum() / slow.predicted.sum())


def test_a_small_memory_gives_the_same(backbone, photographs):
    data, masks = photographs
    large, small = (evaluate({"m": model().eval()}, feature_memory(backbone, data, 57, gigabytes), data, LIST, [1], (1, 2)) for gigabytes in (4.0, 0.0))
    assert large.equals(small)


def test_a_memory_of_lower_precision_is_close_and_half_the_size(backbone, photographs):
    data, _ = photographs
    exact, lower = feature_memory(backbone, data, 57), feature_memory(backbone, data, 57, precision=torch.bfloat16)
    episodes = Episodes(np.array([1]), np.array([0]), np.array([[1, 2]]))
    for a, b in zip(episode_inputs(exact, episodes, 0)[:2], episode_inputs(lower, episodes, 0)[:2]):
        for x, y in zip(a, b): assert y.dtype == torch.float32 and 0 < (x - y).abs().max() <= 0.05 * x.abs().max()
    for part in (lower.mid(0), lower.high(0), lower.foreground(1, 1)): assert part.dtype == torch.bfloat16


def test_the_query_mask_reaches_no_predictor(backbone, photographs):
    "Another ground truth, void included, and every predictor is given the very same tensors."
    data, masks = photographs
    episodes = Episodes(np.array([3]), np.array([0]), np.array([[1, 2]]))
    def seen(change):
        other = [change(m) if i == 0 else m for i, m in enumerate(masks)]
        altered, given = ImageSet(data.name, data.ids, data.image_paths, lambda i: other[i].copy(), data.class_names, data.pixels), []
        def predict(query, support, mask, padding):
            given.extend([*query, *support, mask, padding])
            return all_foreground(query)
        evaluate({"spy": predict}, feature_memory(backbone, altered, 57), altered, episodes, [1])
        return given
    plain = seen(lambda m: m)
    for change in (lambda m: np.where(m == 255, 0, m), lambda m: np.full_like(m, 3), lambda m: np.where(m == 3, 255, m), lambda m: np.zeros_like(m)):
        assert all(torch.equal(a, b) for a, b in zip(plain, seen(change)))


def lively(net, seed=0):
    "Weights with which everything that is given shows in the logits."
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters(): p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return net.eval()


def test_the_query_mask_changes_no_logits_of_a_model_that_looks_at_padding(backbone, photographs):
    "What CyCTR is told of the query beside its features is the image's shape; told otherwise, it would answer otherwise."
    data, masks = photographs
    episodes, net = Episodes(np.array([3]), np.array([0]), np.array([[1, 2]])), lively(model(decoder="CyCTR"))
    def answer(change, lie=False):
        other, given = [change(m) if i == 0 else m for i, m in enumerate(masks)], []
        altered = ImageSet(data.name, data.ids, data.image_paths, lambda i: other[i].copy(), data.class_names, data.pixels)
        def predict(query, support, mask, padding):
            given.append((padding, net(query, support, mask, torch.from_numpy(square_of(other[0], 57) == 255)[None] if lie else padding)))
            return given[-1][1]
        evaluate({"spy": predict}, feature_memory(backbone, altered, 57), altered, episodes, [1], (1, 2), whole=True)
        return given
    plain = answer(lambda m: m)
    assert len(plain) == 2 and all(torch.equal(padding[0], torch.from_numpy(square_of(np.zeros_like(masks[0]), 57) == 255)) for padding, _ in plain)
    for change in (lambda m: np.where(m == 255, 0, m), lambda m: np.full_like(m, 3), lambda m: np.where(m == 3, 255, m), lambda m: np.full_like(m, 255)):
        for (padding, logits), (other_padding, other_logits) in zip(plain, answer(change)): assert torch.equal(padding, other_padding) and torch.equal(logits, other_logits)
    assert not torch.equal(answer(lambda m: np.where(m == 3, 255, m), lie=True)[0][1], plain[0][1])


def square_of(mask, side):
    "The mask as a model sees it; 255 is void, or no image."
    return fit_square(np.zeros((*mask.shape, 3), np.uint8), mask, side)[1].numpy()


@pytest.mark.parametrize("height, width", [(40, 56), (56, 40), (57, 57), (1, 1), (1, 300), (300, 1), (5, 400), (333, 500), (500, 375), (57, 56), (114, 113), (38, 57), (3, 2)])
@pytest.mark.parametrize("side", [17, 57, 81])
def test_padding_is_where_the_square_holds_no_image(height, width, side):
    square = square_of(np.zeros((height, width), np.uint8), side)
    ours = padding_of(height, width, side)
    assert ours.shape == (1, side, side) and ours.dtype == torch.bool and np.array_equal(ours[0].numpy(), square == 255)
    assert not ours[0, 0, 0] and ours.any() == (square == 255).any()


def test_the_supports_background_is_computed_where_it_is_asked_for(backbone, photographs):
    data, masks = photographs
    seen = {False: [], True: []}
    for whole, given in seen.items():
        evaluate({"spy": lambda query, support, *_: given.append((query, support)) or all_foreground(query)}, feature_memory(backbone, data, 57), data, LIST, [1], (1, 2), whole=whole)
    assert len(seen[False]) == len(seen[True]) == 6
    for i, ((q, s), (whole_q, whole_s)) in enumerate(zip(seen[False], seen[True])):
        e, K = i // 2, i % 2 + 1
        assert type(s) is Features and type(whole_s) is SupportFeatures and all(torch.equal(a, b) for a, b in zip(q + s, whole_q + whole_s[:2]))
        for k, i in enumerate(LIST.support[e, :K]):
            with torch.no_grad(): f3 = backbone.layer3(backbone.layer2(fit_square(read_image(data, i), masks[i], 57)[0][None]))
            assert torch.allclose(whole_s.whole[0, k], backbone.layer4(f3)[0], rtol=1e-4, atol=1e-4) and whole_s.whole.shape == (1, K, *q.high.shape[1:])
            assert (whole_s.whole[0, k] - whole_s.high[0, k]).abs().max() > 0.1


def test_evaluation_without_the_supports_background_is_refused(backbone, photographs):
    data, _ = photographs
    with pytest.raises(ValueError, match=r"compares the support's high features with their background: make them with whole=True\."):
        evaluate({"m": model(decoder="CyCTR").eval()}, feature_memory(backbone, data, 57), data, LIST, [1])


# --- many shots


def imagined(n=13, side=33):
    "Images of many shapes that nobody draws: random features, masks of class 1 and 2 with void."
    rng = np.random.default_rng(0)
    masks = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (int(rng.integers(20, 50)), int(rng.integers(20, 50))), p=[0.3, 0.3, 0.3, 0.1]) for _ in range(n)]
    f = [torch.from_numpy(rng.normal(size=(3, n, 6, 5, 5)).astype(np.float32))[k] for k in range(3)]
    data = ImageSet("imagined", [str(i) for i in range(n)], [None] * n, lambda i: masks[i].copy(), ["a", "b"], np.array([[(m == c).sum() for c in (1, 2)] for m in masks]))
    memory = FeatureMemory(lambda i: f[0][i], lambda i: f[1][i], lambda i, c: f[2][i] * c, lambda i: torch.from_numpy(square_of(masks[i], side)))
    return data, memory, masks, f


TEN = Episodes(np.array([1, 2]), np.array([0, 4]), np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [12, 11, 10, 9, 8, 7, 6, 5, 3, 2]]))


def undecided(decoder):
    "A small model of six-channel features whose answers differ from support to support."
    torch.manual_seed(1)
    net = lively(build_model(6, 8, (1.0, 0.5), decoder=decoder), seed=1)
    data, memory, _, _ = imagined()
    classify = net.decoder.classify[3]
    with torch.no_grad():
        logits = torch.cat([single_passes(net)(*episode_inputs(memory, TEN, e, True), padding_of(*data.read_mask(int(TEN.query[e])).shape, 33)) for e in (0, 1)])
        classify.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    return net


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
def test_votes_are_single_passes_one_after_the_other(decoder, monkeypatch):
    "For K from 1 to 10: v-k is foreground where k of the K answers at the photograph's own size are, and is not asked with fewer shots."
    data, memory, masks, (mid, high, foreground) = imagined()
    net, found = undecided(decoder), []
    counts = evaluation.counts
    monkeypatch.setattr(evaluation, "counts", lambda f, *rest: found.append(f.numpy()) or counts(f, *rest))
    table = evaluate(voting(net, 10), memory, data, TEN, [1], shots=tuple(range(1, 11)), whole=True)
    assert len(found) == len(table) == 2 * 55
    ours = {(e, K, method): f for e, K, method, f in zip(table.episode, table.shots, table.method, found)}
    assert set(ours) == {(e, K, f"v-{k}") for e in (0, 1) for K in range(1, 11) for k in range(1, K + 1)}
    for e, (c, q, supports) in enumerate(zip(*(x.tolist() for x in TEN))):
        h, w = masks[q].shape
        says, sure = [], np.ones((h, w), bool)
        for s in supports:
            mask, padding = torch.from_numpy(np.where(square_of(masks[s], 33) == 255, 255, square_of(masks[s], 33) == c))[None, None], torch.from_numpy(square_of(np.zeros((h, w), np.uint8), 33) == 255)[None]
            support = SupportFeatures(*(x[None, None] for x in (mid[s], foreground[s] * c, high[s])))
            with torch.no_grad(): logits = net(Features(mid[q][None], high[q][None]), support, mask, padding)
            big = torch.nn.functional.interpolate(logits, (max(h, w), max(h, w)), mode="bilinear", align_corners=True)[0, :, :h, :w].numpy()
            says.append(big[1] > big[0])
            sure &= abs(big[1] - big[0]) > 1e-4 * abs(big).max()  # a pass of many may round otherwise than a pass alone
        assert sure.mean() > 0.97
        for K in range(1, 11):
            votes = sum(a.astype(int) for a in says[:K])
            for k in range(1, K + 1):
                assert np.array_equal(ours[e, K, f"v-{k}"][sure], (votes >= k)[sure]), (K, k)
                if k > 1: assert not (ours[e, K, f"v-{k}"] & ~ours[e, K, f"v-{k - 1}"]).any()
        assert 0.05 < np.mean(votes == 0) + np.mean(votes == 10) < 0.95 and len(np.unique(votes)) > 4  # the supports disagree


def test_votes_share_one_set_of_passes(monkeypatch):
    data, memory, _, _ = imagined()
    net, passes = undecided("PFENet"), []
    net.decoder.register_forward_hook(lambda module, given, out: passes.append(len(given[0].query)))
    evaluate(voting(net, 10), memory, data, TEN, [1], shots=(1, 4, 10), whole=True)
    assert passes == [1, 4, 10] * 2


@pytest.mark.parametrize("kind, decoder", [(Features, "PFENet"), (SupportFeatures, "PFENet"), (SupportFeatures, "CyCTR")])
def test_single_passes_give_one_answer_for_each_support(kind, decoder):
    data, memory, _, _ = imagined()
    net = undecided(decoder)
    query, support, masks = episode_inputs(memory, TEN, 1, kind is SupportFeatures)
    padding = padding_of(20, 33, 33)
    with torch.no_grad():
        answers = single_passes(net)(query, support, masks, padding)
        assert answers.shape[0] == 10
        for k in range(10):
            alone = net(query, kind(*(x[:, k:k + 1] for x in support)), masks[:, k:k + 1], padding)
            assert torch.allclose(answers[k], alone[0], rtol=1e-4, atol=1e-4 * alone.abs().max()) and not torch.allclose(answers[k], answers[k - 1], rtol=1e-2)


def test_fewer_supports_than_shots(backbone, photographs):
    data, _ = photographs
    with pytest.raises(ValueError, match="5 shots were asked for, but the episodes hold 2 supports"):
        evaluate({"m": lambda *x: pytest.fail("before any work")}, feature_memory(backbone, data, 57), data, LIST, [1], shots=(1, 5))


def test_an_empty_support_mask_is_named(backbone, photographs):
    data, masks = photographs
    empty = ImageSet(data.name, data.ids, data.image_paths, lambda i: np.where(masks[i] == 3, 0, masks[i]) if i == 2 else masks[i], data.class_names, data.pixels)
    memory = feature_memory(backbone, empty, 57)
    with pytest.raises(ValueError, match="support image number 2 shows no pixel of class 3"): episode_inputs(memory, LIST, 0)
    episode_inputs(memory, LIST.shots(1), 0)


def test_prior_predictors_cut_the_prior(backbone, photographs):
    data, masks = photographs
    cuts = (0.2, 0.5, 0.8)
    memory = feature_memory(backbone, data, 57)
    table = evaluate(prior_predictors(cuts), memory, data, LIST, [1], shots=(1, 2))
    for e in range(3):
        for K in (1, 2):
            query, support, mask = episode_inputs(memory, LIST.shots(K), e)
            h, w = masks[LIST.query[e]].shape
            prior = torch.nn.functional.interpolate(support_prior(query.high, support.high, mask), (max(h, w), max(h, w)), mode="bilinear", align_corners=True)[0, 0, :h, :w].numpy()
            valid = masks[LIST.query[e]] != 255
            for cut in cuts:
                row = table[(table.method == f"prior ≥ {cut:.2f}") & (table.shots == K) & (table.episode == e)]
                assert row.predicted.item() == ((prior >= cut) & valid).sum()
    foreground = table.groupby("method").predicted.sum()
    assert foreground.is_monotonic_decreasing and foreground.iloc[0] > foreground.iloc[-1] > 0


def test_best_prior_keeps_the_best_threshold_of_each_number_of_shots():
    row = lambda method, shots, miou: {"method": method, "shots": shots, "miou": miou}
    table = pd.DataFrame([row("PFENet", 1, 9), row("prior ≥ 0.20", 1, 5), row("prior ≥ 0.50", 1, 7), row("prior ≥ 0.20", 5, 8), row("prior ≥ 0.50", 5, 6)])
    kept = best_prior(table)
    assert sorted(map(tuple, kept.values.tolist())) == [("PFENet", 1, 9), ("prior ≥ 0.20", 5, 8), ("prior ≥ 0.50", 1, 7)]


def test_all_foreground(backbone, photographs):
    data, masks = photographs
    table = evaluate({"all": all_foreground}, feature_memory(backbone, data, 57), data, LIST, [1])
    for row, (c, q) in zip(table.itertuples(), zip(LIST.cls, LIST.query)):
        assert row.predicted == row.valid == (masks[q] != 255).sum() and row.inter_fg == (masks[q] == c).sum() and row.on_known == (masks[q] == 1).sum()


@pytest.mark.parametrize("height, width", [(30, 70), (70, 30), (57, 57), (1, 9)])
def test_native_size_cuts_the_padding_off(height, width):
    logits = torch.arange(2 * 8 * 8, dtype=torch.float32).view(1, 2, 8, 8)
    ours = at_native_size(logits, height, width)
    assert ours.shape == (2, height, width)
    side = max(height, width)
    for i, j in [(0, 0), (height - 1, 0), (0, width - 1)]:  # a linear ramp stays one
        assert ours[0, i, j].item() == pytest.approx(i * 7 / (side - 1) * 8 + j * 7 / (side - 1), abs=1e-3)
