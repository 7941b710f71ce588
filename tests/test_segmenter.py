"""Image to mask: the segmenter against computing everything anew, and what it takes and refuses."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from celp_nb.bundled.scenes import samples
from celp_nb.conditioning import Features, SupportFeatures
from celp_nb.data.episodes import Episodes, fold_classes, pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import at_native_size, binary_mask, fit_square, padding_of
from celp_nb.engine import checkpoints as engine_checkpoints
from celp_nb.engine import pretrained
from celp_nb.engine.backbones import (
    backbone_fingerprint,
    image_features,
    load_backbone,
    support_features,
)
from celp_nb.engine.checkpoints import (
    BUNDLED,
    load_model,
    save_checkpoint,
)
from celp_nb.engine.evaluation import VotingPredictor, evaluate_plainly, segment_plainly
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import METHODS, build_model
from celp_nb.engine.pretrained import PRETRAINED, saw_only_scenes
from celp_nb.engine.segmenter import Segmenter
from celp_nb.engine.supports import box_mask, check_point, point_mask, position_of
from celp_nb.ops import VOID

SIDE = 57


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def data():
    return samples("val")


def random_model(seed, decoder="PFENet"):
    "A small model with random weights, large enough that everything shows in the logits."
    torch.manual_seed(seed)
    net = build_model(240, 8, (1.0, 0.5), method=METHODS[decoder])
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters(): p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return net.eval()


def masked(data, i, c):
    return read_image(data, i), binary_mask(data.read_mask(i), c)


def an_episode(data, K, cls=3, cut=(100, 161)):
    "K supports, their masks, and a query that is no square."
    images = np.flatnonzero(data.pixels[:, cls - 1] >= 2500)[: K + 1].tolist()
    photos, masks = zip(*(masked(data, i, cls) for i in images))
    query = np.ascontiguousarray(photos[K][: cut[0], : cut[1]])
    return list(photos[:K]), list(masks[:K]), query


@torch.no_grad()
def slow_logits(net, backbone, photos, masks, query):
    "One image after the other through the backbone, one after the other into the model."
    pairs = [fit_square(*pair, SIDE) for pair in zip(photos, masks)]
    shots = [support_features(backbone, x[None], m[None]) for x, m in pairs]
    if net.whole_support:
        whole = [image_features(backbone, x[None]).high for x, _ in pairs]
        shots = [SupportFeatures(*shot, high) for shot, high in zip(shots, whole)]
    support = type(shots[0])(*(torch.cat(maps)[None] for maps in zip(*shots)))
    size = query.shape[:2]
    x, _ = fit_square(query, np.zeros(size, np.uint8), SIDE)
    features = Features(*image_features(backbone, x[None]))
    masks = torch.stack([m for _, m in pairs])[None]
    return at_native_size(net(features, support, masks, padding_of(*size, SIDE)), *size).numpy()


# --- the same as everything anew


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
@pytest.mark.parametrize("K", [1, 2, 3, 5, 10])
def test_a_prediction_is_that_of_everything_anew_to_the_bit(K, decoder, backbone, data):
    net = random_model(K, decoder)
    photos, masks, query = an_episode(data, K)
    segmenter = Segmenter(net, backbone, SIDE).set_support(photos, masks)
    for other in (photos[0], query, photos[-1], query): result = segmenter.predict(other)
    slow = slow_logits(net, backbone, photos, masks, query)
    assert np.array_equal(result.logits, slow) and result.logits.dtype == np.float32
    assert np.array_equal(result.mask, slow[1] > slow[0]) and result.mask.dtype == bool
    expected = torch.from_numpy(slow).softmax(0)[1].numpy()
    assert np.array_equal(result.probability, expected) 
    assert result.share == np.count_nonzero(result.mask) / result.mask.size
    drawn = result.overlay()
    same = (drawn == query).all(2)
    assert (
        drawn.dtype == np.uint8
        and same[~result.mask].all()
        and same.all() == (not result.mask.any())
    )


def test_fifty_episodes_are_those_of_the_plain_evaluation_to_the_bit(backbone, data):
    "One segmenter for all episodes against everything anew for each; all counts are the same."
    zoo = {"PFENet": random_model(1), "CyCTR": random_model(2, "CyCTR")}
    episodes = pairs_per_class(data.pixels, fold_classes(20, 0), 10, 2, seed=5)
    assert len(episodes.cls) == 50
    plain = evaluate_plainly(zoo, backbone, data, episodes, [6, 7], SIDE, (1, 2))
    kept = {name: Segmenter(net, backbone, SIDE) for name, net in zoo.items()}
    for row in plain.itertuples():
        c, q = int(episodes.cls[row.episode]), int(episodes.query[row.episode])
        supports = episodes.support[row.episode][: row.shots].tolist()
        pairs = [masked(data, s, c) for s in supports]
        found = kept[row.method].set_support(*zip(*pairs)).predict(read_image(data, q)).mask
        anew = segment_plainly(zoo[row.method], backbone, data, SIDE, c, q, supports)
        truth = data.read_mask(q)
        assert np.array_equal(found, anew.numpy())
        assert row.predicted == (found & (truth != VOID)).sum()
        assert row.inter_fg == (found & (truth == c)).sum()
    fast = evaluate(zoo, feature_bank(backbone, data, SIDE), data, episodes, [6, 7], (1, 2))
    apart = (fast.predicted - plain.predicted).abs()
    assert apart.max() <= 3 and (apart > 0).mean() < 0.1  # the last digits of batches


def test_plain_evaluation_computes_every_feature_anew(backbone, data, monkeypatch):
    "For each episode, number of shots and method, the query and each support go through anew."
    seen = []
    forward = type(backbone).forward
    noted = lambda self, image: seen.append(len(image)) or forward(self, image)
    monkeypatch.setattr(type(backbone), "forward", noted)
    c = 3
    images = np.flatnonzero(data.pixels[:, c - 1] >= 2500)[:3]
    episodes = Episodes(np.array([c, c]), images[[0, 0]], images[[[1, 2], [1, 2]]])
    zoo = {"a": random_model(1), "v-1": VotingPredictor(random_model(1), 1)}
    evaluate_plainly(zoo, backbone, data, episodes, [6], SIDE, (1, 2))
    assert seen == [1] * 2 * (2 + 2 + 3 + 4)  # K = 1: 2, 2; K = 2: 3, and the votes 2 + 2


def test_supports_are_computed_once(backbone, data, monkeypatch):
    seen = []
    forward = type(backbone).forward
    noted = lambda self, image: seen.append(len(image)) or forward(self, image)
    monkeypatch.setattr(type(backbone), "forward", noted)
    photos, masks, query = an_episode(data, 3)
    segmenter = Segmenter(random_model(0), backbone, SIDE).set_support(photos, masks)
    assert seen == [1, 1, 1]
    list(segmenter.predict_all([query] * 4))
    assert seen == [1] * 7
    list(segmenter.predict_all([query] * 5, batch=3))
    assert seen == [1] * 7 + [3, 2]


# --- many queries


@pytest.mark.parametrize("decoder", ["PFENet", "CyCTR"])
def test_many_queries_are_single_ones(decoder, backbone, data):
    "To the bit one at a time, to the last digits in batches; read only when they are needed."
    photos, masks, _ = an_episode(data, 2)
    queries = [an_episode(data, 2 + k, cut=(100 + 9 * k, 161 - 20 * k))[2] for k in range(5)]
    segmenter = Segmenter(random_model(0, decoder), backbone, SIDE).set_support(photos, masks)
    alone = [segmenter.predict(query) for query in queries]
    read = []
    lazily = segmenter.predict_all(read.append(k) or query for k, query in enumerate(queries))
    assert next(lazily).mask.shape == queries[0].shape[:2] and read == [0]
    for one, other in zip(alone[1:], lazily): assert np.array_equal(one.logits, other.logits)
    for batch in (2, 5, 9):
        together = list(segmenter.predict_all(queries, batch))
        assert len(together) == 5
        for one, other, query in zip(alone, together, queries):
            assert np.allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)
            assert (one.mask != other.mask).mean() < 0.001
            assert np.array_equal(other.photograph, query)


def test_a_stack_of_arrays_is_several_and_one_array_is_one(backbone, data):
    photos, masks, query = an_episode(data, 2)
    segmenter = Segmenter(random_model(0), backbone, SIDE)
    expected = segmenter.set_support(photos, masks).predict(query).logits
    stacked = segmenter.set_support(np.stack(photos), np.stack(masks))
    assert np.array_equal(stacked.predict(query).logits, expected)
    one = segmenter.set_support(photos[0], masks[0] == 1).predict(query).logits
    assert np.array_equal(one, segmenter.set_support(photos[:1], masks[:1]).predict(query).logits)
    assert not np.array_equal(one, expected)
    assert len(list(segmenter.predict_all(query))) == 1
    assert len(list(segmenter.predict_all(np.stack([query] * 3)))) == 3


# --- what is taken and refused


def test_paths_pictures_and_arrays_are_the_same(backbone, data, tmp_path):
    (photo,), (mask,), query = an_episode(data, 1)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(query).save(tmp_path / "query.png")
    Image.fromarray(mask * np.uint8(mask == 1) * 255).save(tmp_path / "white.png")
    Image.fromarray(np.where(mask == 1, 7, 0).astype(np.uint8)).save(tmp_path / "seven.png")
    net = Segmenter(random_model(0), backbone, SIDE)
    expected = net.set_support(photo, mask == 1).predict(query).logits
    same = lambda photo, mask, query=query: np.array_equal(
        net.set_support(photo, mask).predict(query).logits, expected
    )
    assert same(tmp_path / "photo.png", str(tmp_path / "white.png"), str(tmp_path / "query.png"))
    assert same(Image.fromarray(photo), Image.open(tmp_path / "seven.png"), Image.fromarray(query))
    assert same(photo / 255, (mask == 1).astype(np.uint8), (query / 255).astype(np.float32))
    turned = np.asfortranarray(photo[:, ::-1])[:, ::-1]
    turned.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(turned, mask == 1)
    grey = photo[..., 1]
    expected = net.set_support(np.stack([grey] * 3, 2), mask == 1).predict(query).logits
    assert same(grey, mask == 1) and same(Image.fromarray(grey), mask == 1)


WRONG_IMAGES = [
    (np.zeros((9, 9, 4), np.uint8), r"shape \(9, 9, 4\)"),
    (np.zeros((3, 90, 90), np.uint8), r"shape \(3, 90, 90\)"),
    (np.zeros((9, 9, 3), np.int64), "type int64"),
    (np.zeros((9, 9), bool), "type bool"),
    (np.full((9, 9, 3), 200.0), "from 200 to 200"),
    (np.full((9, 9, 3), -0.1), "from -0.1 to -0.1"),
    (np.full((9, 9, 3), np.nan), "from nan to nan"),
    (np.zeros((7, 90, 3), np.uint8), "7x90 pixels is smaller than one feature stride"),
    (np.zeros((0, 0, 3), np.uint8), "0x0 pixels is smaller"),
    (torch.zeros(9, 9, 3), "is a Tensor; give a path"),
    (None, "is a NoneType; give a path"),
]
WRONG_MASKS = [
    (lambda m: m.astype(np.int64), "type int64"),
    (lambda m: m.astype(np.float32), "type float32"),
    (lambda m: m[..., None], r"shape \(161, 161, 1\)"),
    (lambda m: m * np.uint8(7), "holds the value 7"),
    (lambda m: m[:-1], "support image 1: .* is 161x161 .* mask is 160x161 .support mask 1"),
    (lambda m: m * np.uint8(0), "support mask 1 marks no pixel"),
    (lambda m: np.where(m == 1, 255, 0).astype(np.uint8), "support mask 1 marks no pixel"),
    (lambda m: Image.new("RGB", (161, 161)), "mode RGB"),
    (lambda m: Image.new("L", (161, 161)), "support mask 1 is empty"),
    (lambda m: 3, "is a int; give a path"),
]


@pytest.mark.parametrize("wrong, words", WRONG_IMAGES)
def test_what_is_no_image_is_refused_in_a_sentence(wrong, words, backbone, data):
    photos, masks, query = an_episode(data, 1)
    segmenter = Segmenter(random_model(0), backbone, SIDE)
    with pytest.raises(ValueError, match=f"support image 1.*{words}") as refusal:
        segmenter.set_support([wrong], masks)
    segmenter.set_support(photos, masks)
    with pytest.raises(ValueError, match=f"query image 2.*{words}"):
        list(segmenter.predict_all([query, wrong]))
    text = str(refusal.value)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize("wrong, words", WRONG_MASKS)
def test_what_is_no_mask_is_refused_in_a_sentence(wrong, words, backbone, data):
    photos, masks, _ = an_episode(data, 1)
    segmenter = Segmenter(random_model(0), backbone, SIDE)
    with pytest.raises(ValueError, match=words): segmenter.set_support(photos, [wrong(masks[0])])
    assert segmenter.support is None


def test_a_segmenter_refuses_supports_that_show_nothing(backbone, data):
    photos, masks, query = an_episode(data, 2)
    segmenter = Segmenter(random_model(0), backbone, SIDE)
    with pytest.raises(ValueError, match="call set_support first"): segmenter.predict(query)
    with pytest.raises(ValueError, match="call set_support first"): segmenter.predict_all([query])
    with pytest.raises(ValueError, match="2 support images and 1 masks"):
        segmenter.set_support(photos, masks[:1])
    with pytest.raises(ValueError, match="0 support images"): segmenter.set_support([], [])
    large, dot = np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), np.uint8)
    dot[0, 0] = 1
    with pytest.raises(ValueError, match="dot.png: the object is too small to be seen at 57 pix"):
        segmenter.set_support([large], [dot], [("large.png", "dot.png")])
    with pytest.raises(ValueError, match="batch is 0"):
        segmenter.set_support(photos, masks).predict_all([query], batch=0)


# --- models by name and by file


def test_bundled_models_have_names(data):
    photos, masks, query = an_episode(data, 1)
    for name, bundled in zip(("samples-pfenet", "samples-pfenet-ce"), BUNDLED[0].values()):
        assert PRETRAINED[name] == bundled and bundled.is_file()
        named = Segmenter.from_pretrained(name).set_support(photos, masks).predict(photos[0])
        path = Segmenter.from_pretrained(str(bundled)).set_support(photos, masks)
        assert np.array_equal(named.logits, path.predict(photos[0]).logits)
    with pytest.raises(FileNotFoundError, match="samples-pfenett.*samples-pfenet-ce, samples"):
        Segmenter.from_pretrained("samples-pfenett")


def test_one_pair_of_bundled_models_is_of_the_fold_with_the_median_gain():
    "Of results/samples, seed 0: the lower one of two in the middle. The other pair is of fold 0."
    scores = pd.read_csv(Path(__file__).parent.parent / "results" / "samples" / "scores.csv")
    scores = scores[(scores.seed == 0) & (scores.shots == 1)]
    by_method = scores.pivot(index="fold", columns="method", values="miou")
    gains = by_method["PFENet+CE contrast=1"] - by_method["PFENet"]
    fold = gains.sort_values().index[1]
    assert list(BUNDLED) == [0, fold]
    for number, files in BUNDLED.items():
        for (method, path), weight in zip(files.items(), (0, 1)):
            saved = load_model(path)[1]
            assert (saved["fold"], saved["method"], saved["contrast"]) == (number, method, weight)
            assert (saved["steps"], saved["seed"]) == (400, 0) and path.stat().st_size < 1.5e6


@pytest.fixture
def saved(tmp_path):
    "A checkpoint on a tiny backbone with random weights, and its model."
    torch.manual_seed(7)
    fingerprint = backbone_fingerprint(load_backbone("tiny", "random"))
    net = random_model(3)
    fields = {"backbone": "tiny", "weights": "random", "fingerprint": fingerprint, "seed": 7}
    sizes = {"in_channels": 240, "width": 8, "bins": (1.0, 0.5), "side": SIDE}
    path = tmp_path / "m.pt"
    save_checkpoint(path, model=net.state_dict(), method="PFENet", fold=0, **fields, **sizes)
    return path, net, fingerprint


def test_a_segmenter_from_a_file_has_the_backbone_of_its_training(saved, tmp_path, monkeypatch):
    "The file is read once; random weights come from its seed, and other draws stay as they are."
    (path, net, fingerprint), reads = saved, []
    load = engine_checkpoints.load_checkpoint
    noted = lambda where: reads.append(where) or load(where)
    monkeypatch.setattr(engine_checkpoints, "load_checkpoint", noted)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    segmenter = Segmenter.from_pretrained(path)
    assert torch.equal(torch.rand(3), expected)
    assert reads == [path] and segmenter.side == SIDE and not segmenter.model.training
    assert backbone_fingerprint(segmenter.backbone) == fingerprint
    for a, b in zip(segmenter.model.parameters(), net.parameters()): assert torch.equal(a, b)
    with pytest.raises(FileNotFoundError, match="gone.pt"):
        Segmenter.from_pretrained(tmp_path / "gone.pt")


def test_weights_of_another_backbone_have_no_effect_and_that_is_said(saved, tmp_path, monkeypatch):
    path, _, fingerprint = saved
    misfit, gone = tmp_path / "resnet.pth", tmp_path / "gone.pth"
    torch.save({"conv1.weight": torch.zeros(2, 2)}, misfit)
    for weights in (str(misfit), "imagenet"):  # tiny's own, which are not those of the training
        with pytest.warns(UserWarning, match=f"{weights} are not those of .*m.pt, a model on tiny"):
            segmenter = Segmenter.from_pretrained(path, weights)
        assert backbone_fingerprint(segmenter.backbone) == fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Segmenter.from_pretrained(path, "random")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth is not a readable"):
        Segmenter.from_pretrained(path, str(tmp_path / "text.pth"))
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        Segmenter.from_pretrained(path, str(gone))
    load = pretrained.load_backbone

    def lost(name, weights=None):
        if weights == "random": raise RuntimeError("no network")
        return load(name, weights)

    monkeypatch.setattr(pretrained, "load_backbone", lost)
    with pytest.raises(ValueError, match="resnet.pth do not fit"):
        Segmenter.from_pretrained(path, str(misfit))


def test_a_model_of_drawn_scenes_warns_of_a_photograph(saved, data):
    photos, masks, query = an_episode(data, 1)
    segmenter = Segmenter.from_pretrained("samples-pfenet-ce")
    assert segmenter.only_scenes and saw_only_scenes(segmenter.backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.set_support(photos, masks).predict(photos[0])
    with pytest.warns(UserWarning, match="drawn scenes alone"): segmenter.predict(query)
    with pytest.warns(UserWarning, match="drawn scenes alone"):
        segmenter.set_support(photos[0][:90], masks[0][:90])
    random = Segmenter.from_pretrained(saved[0])
    assert not random.only_scenes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random.set_support(photos, masks).predict(query)


# --- devices and precisions


def test_devices_and_precisions_have_the_words_of_the_command_line(data, monkeypatch):
    photos, masks, _ = an_episode(data, 1)
    segmenter = Segmenter.from_pretrained("samples-pfenet-ce").set_support(photos, masks)
    expected = segmenter.predict(photos[0]).logits
    assert segmenter.to("cpu") is segmenter and segmenter.device == torch.device("cpu")
    assert np.array_equal(segmenter.predict(photos[0]).logits, expected)
    for device, words in (("gpu", "no device 'gpu'"), ("cuda:99", "cuda:99.*no such GPU")):
        with pytest.raises(ValueError, match=words): segmenter.to(device)
        with pytest.raises(ValueError, match=words):
            Segmenter.from_pretrained("samples-pfenet", device=device)
    with pytest.raises(ValueError, match="no precision 'fp8'; choose one of float32, tf32, bf16"):
        Segmenter.from_pretrained("samples-pfenet", precision="fp8")
    half = Segmenter.from_pretrained("samples-pfenet-ce", precision="bf16")
    result = half.set_support(photos, masks).predict(photos[0])
    assert result.logits.dtype == np.float32 and not np.array_equal(result.logits, expected)
    assert np.abs(result.logits - expected).mean() < 0.1 * np.abs(expected).mean()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_segmenter_moves_to_a_gpu_with_its_supports(precision, data):
    photos, masks, _ = an_episode(data, 3)
    queries = [read_image(data, i) for i in range(8)]
    cpu = Segmenter.from_pretrained("samples-pfenet-ce").set_support(photos, masks)
    expected = [cpu.predict(query) for query in queries]
    moved = cpu.to("cuda")
    assert moved.device.type == "cuda"
    made = Segmenter.from_pretrained("samples-pfenet-ce", device="auto", precision=precision)
    assert made.device.type == "cuda"
    made.set_support(photos, masks)
    for segmenter in (moved, made):
        for batch in (1, 8):
            for one, other in zip(expected, segmenter.predict_all(queries, batch)):
                assert (one.mask != other.mask).mean() < 0.02
                assert np.abs(one.probability - other.probability).mean() < 0.02


# --- boxes and points


def test_a_box_marks_its_pixels():
    rng = np.random.default_rng(0)
    for _ in range(30):
        h, w = (int(n) for n in rng.integers(1, 12, 2))
        y0, x0 = int(rng.integers(h)), int(rng.integers(w))
        y1, x1 = int(rng.integers(y0 + 1, h + 1)), int(rng.integers(x0 + 1, w + 1))
        slow = [[int(y0 <= y < y1 and x0 <= x < x1) for x in range(w)] for y in range(h)]
        mask = box_mask((h, w), (y0, x0, y1, x1))
        assert mask.dtype == np.uint8 and mask.tolist() == slow
    for box in [(0, 0, 0, 3), (2, 2, 2, 5), (5, 2, 3, 4), (-1, 0, 3, 3), (0, 0, 11, 3),
                (0, 0, 3, 21), (0, -2, 3, 3)]:
        with pytest.raises(ValueError, match=r"box .* does not lie in an image of 10x20 pixels"):
            box_mask((10, 20), box)


def test_the_position_of_a_pixel_is_the_nearest():
    n = 8
    for size in [(57, 57), (40, 57), (100, 31)]:
        long = max(size) - 1
        for y in range(0, size[0], 3):
            for x in range(0, size[1], 3):
                row, column = divmod(position_of((y, x), size, n), n)
                for k, place in ((y, row), (x, column)):
                    away = [abs(i / (n - 1) * long - k) for i in range(n)]
                    assert away[place] <= min(away) + 1e-9


@torch.no_grad()
def slow_region(backbone, image, point, delta):
    "How much of each pixel lies in the region of a point, one position and pixel after the other."
    (H, W), n = image.shape[:2], (SIDE - 1) // 8 + 1
    x, padding = fit_square(image, np.zeros((H, W), np.uint8), SIDE)
    high = image_features(backbone, x[None]).high[0].double().numpy()
    row, column = divmod(position_of(point, (H, W), n), n)
    v, region = high[:, row, column], np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        w = high[:, i, j]
        similar = v @ w / (np.linalg.norm(v) * np.linalg.norm(w) + 1e-7) > delta
        region[i, j] = similar and padding[8 * i, 8 * j] != VOID
    region[row, column] = 1
    weight, long = np.zeros((H, W)), max(H, W) - 1
    for y, x in np.ndindex(H, W):
        for i, j in np.ndindex(n, n):
            away = abs(y / long * (n - 1) - i), abs(x / long * (n - 1) - j)
            if max(away) < 1: weight[y, x] += (1 - away[0]) * (1 - away[1]) * region[i, j]
    weight[point] = 1
    return weight


@pytest.mark.parametrize("size", [(57, 57), (60, 31), (30, 66)])
def test_a_point_marks_what_resembles_it(size, backbone, data):
    image = np.ascontiguousarray(read_image(data, 4)[40 : 40 + size[0], 40 : 40 + size[1]])
    shares = []
    for point in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, 7), (11, size[1] // 3)]:
        for delta in (0.5, 0.8):
            mask = point_mask(image, point, backbone, SIDE, delta)
            weight = slow_region(backbone, image, point, delta)
            tied = np.abs(weight - 0.25) < 1e-5  # rounding decides
            assert mask.shape == size and mask.dtype == np.uint8 and mask[point] == 1
            assert np.array_equal((mask == 1)[~tied], (weight > 0.25)[~tied])
            shares.append(mask.mean())
    assert len(set(shares)) > 5 and min(shares) < 0.6 * max(shares)


def test_a_point_is_always_in_its_mask_and_has_to_lie_in_the_image(backbone):
    flat = np.zeros((57, 57, 3), np.uint8)  # beside nothing that a threshold could not exclude
    for point in [(0, 0), (28, 31), (56, 56)]:
        assert point_mask(flat, point, backbone, SIDE, 0.9999)[point] == 1
    noise = np.random.default_rng(0).integers(0, 256, (93, 93, 3)).astype(np.uint8)
    alone = point_mask(noise, (46, 46), backbone, SIDE, 0.9999)  # a quarter of it, less by rounding
    assert alone[46, 46] == 1 and alone.mean() < 0.1
    beside = point_mask(np.ascontiguousarray(noise[:, :48]), (46, 47), backbone, SIDE, 0.9999)
    assert beside[46, 47] == 1 and beside.sum() > 20  # its nearest position is in the padding
    for point in [(-1, 0), (0, 57), (57, 3)]:
        with pytest.raises(ValueError, match=r"the point .* does not lie in an image of 57x57"):
            point_mask(flat, point, backbone, SIDE)
        with pytest.raises(ValueError, match="0 <= y < 57 and 0 <= x < 57"):
            check_point((57, 57), point)
    with pytest.raises(ValueError, match="delta is 2"): point_mask(flat, (1, 1), backbone, SIDE, 2)
