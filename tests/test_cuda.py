"""On a GPU everything is as on the CPU: pseudo-masks, losses, scores, resuming, files.

`pytest -m cuda` runs what needs a card. Each test runs on the CPU too, against itself: so that it
is known to be a working test when there is a card at last.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import fold_classes, images_in_turn, pairs_per_class
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe
from celp_nb.engine.backbones import feature_channels, load_backbone
from celp_nb.engine.checkpoints import BUNDLED, load_model, save_checkpoint
from celp_nb.engine.evaluation import scores
from celp_nb.engine.feature_bank import evaluate, feature_bank
from celp_nb.engine.methods import DECODERS, METHODS, build_model
from celp_nb.engine.steps import online_steps, shared_inputs
from celp_nb.engine.training import Objective, Optimisation, accelerator_for, fit
from celp_nb.engine.views import cached_steps
from celp_nb.latent import candidates, sample_latent
from celp_nb.metrics import COUNTS
from celp_nb.pfenet import COCO_BINS
from celp_nb.similarity import known_positions, self_similarity, similar_count

SIDE, WIDTH, DELTA = 65, 16, 0.5  # 9 × 9 positions
NAMES = list(METHODS)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none"
                ),
            ],
        ),
    ]
)
def device(request):
    "Where a test runs; float32 is float32 on it, not tf32."
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield torch.device(request.param)
    matmul.allow_tf32, cudnn.allow_tf32 = before


def to(device, item):
    "Tensors, in tuples too, on a device."
    if isinstance(item, torch.Tensor): return item.to(device)
    parts = [to(device, part) for part in item]
    return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)


def blobs(seed, B=4, kinds=5):
    """High features in a few kinds of things, far apart, and the known part of the images.

    No cosine is near δ: rounding cannot move a position across it."""
    g, n = torch.Generator().manual_seed(seed), -(-SIDE // 8)
    centres = torch.nn.functional.normalize(torch.randn(kinds, 64, generator=g), dim=1)
    kind = torch.randint(0, kinds, (B, 3, 3), generator=g)
    kind = kind.repeat_interleave(-(-n // 3), 1).repeat_interleave(-(-n // 3), 2)[:, :n, :n]
    high = centres[kind].movedim(-1, 1) + 0.01 * torch.randn(B, 64, n, n, generator=g)
    known = torch.zeros(B, SIDE, SIDE, dtype=torch.uint8)
    known[:, :20, :24], known[0], known[:, 40:44] = 1, 1, 255  # no latent region in the first
    return high.contiguous(), known


@pytest.mark.parametrize("seed", range(4))
def test_similar_positions_candidates_and_pseudo_masks_are_the_same(seed, device):
    high, known = blobs(seed)
    D = self_similarity(high)
    assert (D - DELTA).abs().min() > 0.01, "the comparison would be one of rounding"
    def sets(high, known):
        at_map = known_positions(known, tuple(high.shape[-2:]))
        N = similar_count(self_similarity(high), at_map, DELTA)
        generator = torch.Generator().manual_seed(seed)
        pseudo, centre = sample_latent(high, known, generator, delta=DELTA)
        return at_map, N, candidates(N, at_map, 11), centre, pseudo
    mine, theirs = sets(high, known), sets(*to(device, (high, known)))
    for a, b in zip(mine, theirs): assert torch.equal(a, b.cpu())
    assert mine[3][0] == -1 and (mine[3][1:] >= 0).all()
    assert (self_similarity(high.to(device)).cpu() - D).abs().max() < 1e-4


@pytest.fixture(scope="module")
def backbone(): return load_backbone("tiny")


@pytest.fixture(scope="module")
def training():
    "Four episodes a step, six steps."
    data = samples("train")
    classes = [c for c in range(1, 21) if c not in fold_classes(20, 0)]
    drawn = images_in_turn(data.pixels, classes, 24, 1, 0)
    return TrainingEpisodes(data, drawn, classes, Recipe(SIDE, SIDE), 0)


def untied(item, generator):
    "Features a little apart from each other: drawn scenes have flat parts, where maxima tie."
    noise = (x + 0.01 * x.std() * torch.randn(x.shape, generator=generator) for x in item)
    return type(item)(*noise)


@pytest.fixture(scope="module")
def steps(backbone, training):
    g = torch.Generator().manual_seed(0)
    return [
        step._replace(query=untied(step.query, g), support=untied(step.support, g))
        for step in online_steps(backbone, training, 4, whole=True)
    ]


def untrained(backbone, name, dropout=0.5):
    torch.manual_seed(0)
    model = build_model(feature_channels(backbone)[0], WIDTH, COCO_BINS, dropout, METHODS[name])
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d): part.p = dropout
    return model


def losses_and_gradients(model, name, step, device, precision=None):
    "The three losses of a step on a device, without dropout, and the gradients of all weights."
    method, decoder = replace(METHODS[name], delta=0.3), DECODERS[METHODS[name].decoder]
    accelerator = accelerator_for(device.type, precision)
    model, step = model.to(device), to(device, step)
    pseudo, prior = shared_inputs(model, method, step, 7, 0, {})
    objective = accelerator.prepare(Objective(model, decoder.loss, decoder.mean_over))
    torch.manual_seed(7)
    losses = objective.train()(*step[:4], pseudo, prior)
    for p in model.parameters(): p.grad = None
    accelerator.backward(losses.total(method.contrast, method.auxiliary))
    gradients = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]
    return torch.stack(losses[:3]).detach().float().cpu(), gradients, pseudo


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_the_same(name, device, backbone, steps):
    mine, gradients, pseudo = losses_and_gradients(
        untrained(backbone, name, 0.0), name, steps[0], torch.device("cpu")
    )
    theirs, others, pseudo_there = losses_and_gradients(
        untrained(backbone, name, 0.0), name, steps[0], device
    )
    assert (mine - theirs).abs().max() < 1e-4 and torch.isfinite(mine).all()
    assert ("+CE" in name) == (mine[2] > 0)
    if pseudo is not None:
        assert (pseudo == 1).any() and (pseudo != pseudo_there.cpu()).float().mean() < 1e-3
    assert len(gradients) == len(others) > 0
    for a, b in zip(gradients, others): assert (a - b).norm() <= 1e-3 * a.norm() + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_near_float32(name, device, backbone, steps):
    "Losses within three percent: bf16 has eight bits, and the decoders are some ten layers deep."
    runs = [
        losses_and_gradients(untrained(backbone, name, 0.0), name, steps[0], device, precision)
        for precision in (None, torch.bfloat16)
    ]
    (exact, _, _), (short, _, _) = runs
    assert not torch.equal(exact, short), "bf16 was not used"
    assert ((exact - short).abs() <= 0.03 * exact.abs() + 0.003).all()
    assert accelerator_for(device.type) is not None  # float32 again for the tests that follow


def test_features_and_priors_are_the_same(device, backbone, training, tmp_path):
    "Steps online and from kept views, those of the card and those of the CPU."
    there = load_backbone("tiny").to(device)
    sources = {
        "online": lambda net: online_steps(net, training, 4, whole=True),
        "views": lambda net: cached_steps(
            tmp_path / str(next(net.parameters()).device), net, training, 4, 1, whole=True
        ),
    }
    for name, source in sources.items():
        mine, theirs = next(source(backbone)), next(source(there))
        assert theirs.query.mid.device.type == device.type
        near = 1e-4 if name == "online" else 2e-3  # views are kept in half precision
        for a, b in zip((*mine.query, *mine.support), (*theirs.query, *theirs.support)):
            assert (a - b.cpu()).norm() <= near * a.norm(), name
        for a, b in zip(mine[2:], theirs[2:]): assert torch.equal(a, b.cpu()), name


@pytest.mark.parametrize("name", ["PFENet", "PFENet+CE contrast=1", "CyCTR"])
def test_scores_are_the_same(name, device, backbone):
    "Of the bundled models; of a CyCTR that has learned nothing."
    data = samples("val")
    classes = fold_classes(20, 0)
    known = [c for c in range(1, 21) if c not in classes]
    episodes = pairs_per_class(data.pixels, classes, 3, 2, 0, class_names=data.class_names)
    tables = []
    for place in (torch.device("cpu"), device):
        model = load_model(BUNDLED[0][name])[0] if name in BUNDLED[0] else untrained(backbone, name)
        bank = feature_bank(load_backbone("tiny").to(place), data, SIDE)
        predictors = {name: model.to(place).eval()}
        tables.append(evaluate(predictors, bank, data, episodes, known, (1, 2)))
    mine, theirs = tables
    assert (mine.inter_fg.sum() > 0) and (mine.predicted < mine.valid).any(), "all alike"
    assert mine["query"].equals(theirs["query"]) and len(mine) == 2 * len(episodes.cls)
    for column in COUNTS:
        off = (mine[column] - theirs[column]).abs().sum() / mine.valid.sum()
        assert off < 1e-4, f"{column} differs in {off:.1e} of the pixels"
    assert (np.abs(scores(mine).miou - scores(theirs).miou) < 0.1).all()


class Stopped(Exception): pass


@pytest.mark.parametrize("name", ["PFENet+CE", "CyCTR+CE"])
def test_a_training_that_was_stopped_goes_on_with_the_same_losses(
    name, device, backbone, steps, tmp_path
):
    methods, opt = {name: replace(METHODS[name], delta=0.3)}, Optimisation(6, lr=1e-3)
    data = [to(device, step) for step in steps]
    source, accelerator = lambda start: iter(data[start:]), accelerator_for(device.type)
    new = lambda: {name: untrained(backbone, name, 0.1).to(device)}
    def train(models, *rest):
        return fit(models, methods, source, opt, 0, *rest, accelerator=accelerator)
    straight, path = train(new()), tmp_path / "last.pt"
    def stop(step, losses):
        if step == 3: raise Stopped
    with pytest.raises(Stopped): train(new(), path, 2, stop)
    models = new()
    for p in models[name].parameters(): torch.nn.init.normal_(p)
    resumed = train(models, path, 2)
    assert len(resumed.history[name]) == 6
    for a, b in zip(straight.history[name], resumed.history[name]):
        assert a == (b if device.type == "cpu" else pytest.approx(b, rel=1e-3, abs=1e-4))
    assert resumed.history[name][0]["main"] != resumed.history[name][5]["main"]


@pytest.mark.parametrize("name", ["PFENet+CE", "CyCTR+CE"])
def test_a_file_that_was_written_on_a_card_is_read_on_the_cpu(
    name, device, backbone, steps, tmp_path
):
    models = {name: untrained(backbone, name, 0.1).to(device)}
    data = [to(device, step) for step in steps[:2]]
    opt, accelerator = Optimisation(2, lr=1e-3), accelerator_for(device.type)
    fit(models, {name: METHODS[name]}, lambda start: iter(data), opt, 0, accelerator=accelerator)
    model = models[name]
    assert next(model.parameters()).device.type == device.type
    save_checkpoint(
        tmp_path / "model.pt",
        model=model.state_dict(),
        method=name,
        fold=0,
        backbone="tiny",
        weights=None,
        fingerprint="",
        in_channels=model.reduce[0].in_channels,
        width=WIDTH,
        bins=COCO_BINS,
        side=SIDE,
        seed=0,
    )
    read, _ = load_model(tmp_path / "model.pt")
    assert all(p.device.type == "cpu" for p in read.parameters())
    for a, b in zip(model.state_dict().values(), read.state_dict().values(), strict=True):
        assert torch.equal(a.cpu(), b)
    step = steps[0]
    with torch.no_grad():
        mine = read(step.query, step.support, step.support_mask)
        there = to(device, step)
        theirs = model.eval()(there.query, there.support, there.support_mask)
    assert (mine - theirs.cpu()).abs().max() < 1e-4 * max(1, mine.abs().max())
