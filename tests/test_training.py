"""Training and evaluation: one small truth each about the loop, checkpoints, resuming, caches and scores."""
import copy
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from celp_nb import cyctr, evaluation, training as training_module
from celp_nb.backbones import Features, SupportFeatures, episode_features, load_backbone
from celp_nb.contrast import FewShotModel, two_path_losses
from celp_nb.datasets import Batch, ImageSet, Recipe, TrainingEpisodes, augment, binary_mask, fit_square, known_mask, read_image, samples
from celp_nb.episodes import Episodes, fold_classes, images_in_turn
from celp_nb.evaluation import (FeatureMemory, all_foreground, at_native_size, best_prior, episode_inputs, evaluate, feature_memory, padding_of, prior_predictors, scores,
                                single_passes, voting)
from celp_nb.pfenet import PFENet
from celp_nb.priors import support_prior
from celp_nb.training import (METHODS, Method, Optimisation, Step, build_model, cached_steps, fit, load_checkpoint, load_model, online_steps, optimisers_for, save_checkpoint, train_step)

SIDE = 81


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny")


@pytest.fixture(scope="module")
def scenes():
    return samples("train")


TRAIN_CLASSES = [c for c in range(1, 21) if c not in fold_classes(20, 0)]
RECIPE = Recipe(side=SIDE, reference=161, rotation_probability=0.0)


@pytest.fixture(scope="module")
def training(scenes):
    return TrainingEpisodes(scenes, images_in_turn(scenes.pixels, TRAIN_CLASSES, 24, 1, 0, min_pixels=1000), TRAIN_CLASSES, RECIPE, 0)


def model(seed=0, width=16, channels=240):
    torch.manual_seed(seed)
    return FewShotModel(channels, PFENet(width, (1.0, 0.5)), width)


@pytest.fixture(scope="module")
def steps(backbone, training):
    "Twelve steps of two episodes, computed once."
    made = list(online_steps(backbone, training, 2))
    return lambda start: iter(made[start:])


@pytest.fixture(scope="module")
def whole_steps(backbone, training):
    "The same for decoders that compare the query with all of the support."
    made = list(online_steps(backbone, training, 2, whole=True))
    return lambda start: iter(made[start:])


def attentive(seed=0, width=16, channels=240):
    "A small CyCTR."
    torch.manual_seed(seed)
    return build_model(channels, width, (1.0,), decoder="CyCTR")


PLAIN = METHODS["PFENet"]
LATENT = Method(delta=0.3, sigma=3)  # a region in nearly every image, whatever the weights
ATTENTIVE = replace(LATENT, decoder="CyCTR")
SHORT = Optimisation(iterations=6, batch=2, lr=0.01)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- learning


def test_overfitting_four_episodes(backbone, scenes):
    "A few seconds of training on four episodes: the loss falls and the masks are right."
    episodes = images_in_turn(scenes.pixels, TRAIN_CLASSES, 4, 1, 1, min_pixels=3000)
    still = Recipe(121, 161, (1.0, 1.0), rotation_probability=0, blur_probability=0, flip_probability=0)
    rows = Batch(*(torch.stack(x) for x in zip(*TrainingEpisodes(scenes, episodes, TRAIN_CLASSES, still, 0))))
    query, support = episode_features(backbone, rows.query, rows.support, rows.support_mask)
    step = Step(query, support, rows.support_mask, rows.target.long(), rows.known)
    torch.manual_seed(0)
    net = FewShotModel(query.mid.shape[1], PFENet(48, (1.0,), dropout=0.0), 48, dropout=0.0)
    history = fit({"CE": net}, {"CE": Method()}, lambda start: (step for _ in range(140)), Optimisation(140, 4, 0.2), 0)["CE"]
    assert history[-1]["main"] < 0.1 * history[0]["main"] and history[-1]["auxiliary"] < 0.1 * history[0]["auxiliary"] and history[0]["latent"] > 0
    with torch.no_grad(): logits = net(query, support, rows.support_mask)
    found = torch.nn.functional.interpolate(logits, rows.target.shape[-2:], mode="bilinear", align_corners=True).argmax(1)
    ious = [((f == 1) & (t == 1)).sum() / (((f == 1) | (t == 1)) & (t != 255)).sum() for f, t in zip(found, rows.target)]
    assert sum(ious) / 4 > 0.9


def test_schedule():
    "lr (1 - step / iterations)^0.9: whole at first, 0.9 of the power at the middle, next to nothing in the last step."
    opt = Optimisation(iterations=1000, lr=0.025)
    assert opt.lr_at(0) == 0.025 and opt.lr_at(1000) == 0
    for step in (1, 250, 500, 999): assert opt.lr_at(step) == pytest.approx(0.025 * math.exp(0.9 * math.log(1 - step / 1000)))
    assert Optimisation().lr == pytest.approx(10 * 2.5e-3) and Optimisation().power == 0.9 and Optimisation().momentum == 0.9 and Optimisation().weight_decay == 1e-4


def test_a_step_is_one_step_of_sgd_at_its_rate(steps):
    data, ours = next(steps(0)), model()
    plain, optimisers = copy.deepcopy(ours), optimisers_for(ours, PLAIN, SHORT)
    train_step(ours, optimisers, PLAIN, data, 0.125, 7)
    torch.manual_seed(7)
    plain.train()
    losses = two_path_losses(plain, data.query, data.support, data.support_mask, data.target, None)
    (losses.main + losses.auxiliary).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters()):
        assert torch.allclose(a, b - 0.125 * (b.grad + 1e-4 * b), atol=1e-6), name


def test_adamw_moves_every_weight_by_the_rate_at_first(steps):
    "Without decay, the first step of Adam is the sign of the gradient times the rate."
    data, net = next(steps(0)), model()
    before = copy.deepcopy(net.state_dict())
    opt = Optimisation(optimiser="adamw", weight_decay=0.0)
    train_step(net, optimisers_for(net, PLAIN, opt), PLAIN, data, 1e-3, 0)
    for name, value in net.named_parameters():
        moved = value.grad.abs() > 1e-5
        assert torch.allclose(value[moved], (before[name] - 1e-3 * value.grad.sign())[moved], atol=2e-6), name


def test_fit_follows_the_schedule_and_reports_every_step(steps):
    seen, net = [], model()
    before = copy.deepcopy(net.state_dict())
    history = fit({"a": net}, {"a": LATENT}, steps, SHORT, 0, report=lambda step, losses: seen.append((step, losses["a"])))
    assert [s for s, _ in seen] == list(range(6)) and [h for _, h in seen] == history["a"]
    assert all(set(h) == {"main", "auxiliary", "contrast", "latent"} and 0 <= h["latent"] <= 1 for h in history["a"])
    assert not net.training and not same(before, net.state_dict())
    still = model()
    fit({"a": still}, {"a": LATENT}, steps, Optimisation(6, 2, 0.0), 0)
    assert same(still.state_dict(), before)


# --- two optimisers


def transformer_names(net):
    return {n for n, _ in net.named_parameters() if n.startswith("decoder.transformer.")}


def names_in(net, groups):
    "Names of the parameters in an optimiser's groups, with repetitions."
    name = {id(p): n for n, p in net.named_parameters()}
    return [name[id(p)] for group in groups for p in group["params"]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", ["sgd", "adamw"])
def test_each_parameter_has_one_optimiser(method, first):
    net = build_model(240, 16, (1.0, 0.5), decoder=METHODS[method].decoder)
    optimisers = optimisers_for(net, METHODS[method], Optimisation(optimiser=first))
    owned, names = [names_in(net, o.param_groups) for o in optimisers], {n for n, _ in net.named_parameters()}
    assert sorted(sum(owned, [])) == sorted(names)
    assert type(optimisers[0]) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[first]
    if METHODS[method].decoder == "PFENet":
        assert len(optimisers) == 1
    else:
        assert len(optimisers) == 2 and type(optimisers[1]) is torch.optim.AdamW
        assert set(owned[1]) == transformer_names(net) and {"reduce.0.weight", "decoder.query_in.0.weight", "decoder.back_classify.3.bias"} <= set(owned[0])


def test_biases_of_the_transformer_do_not_decay():
    net = attentive()
    groups = [group for o in optimisers_for(net, ATTENTIVE, Optimisation(weight_decay=0.5, lr=0.25)) for group in o.param_groups]
    decay = {name: (group["weight_decay"], group["lr"]) for group in groups for name in names_in(net, [group])}
    biases = {n for n in transformer_names(net) if n.endswith(".bias")}
    assert len(biases) == 2 * 6 and len(decay) == len(list(net.parameters()))  # of offsets, shares and four normalisations in each of two layers
    for name, settings in decay.items():
        assert settings == ((0.0, 1e-4) if name in biases else (1e-2, 1e-4) if name in transformer_names(net) else (0.5, 0.25)), name


def test_a_step_is_one_of_sgd_and_one_of_adamw(whole_steps):
    "The transformer's first step is its decay and the sign of the gradient times its rate, whatever the rate of the others."
    data, net = next(whole_steps(0)), attentive()
    before, opt = copy.deepcopy(net.state_dict()), Optimisation(transformer_lr=1e-3, transformer_decay=0.1)
    train_step(net, optimisers_for(net, ATTENTIVE, opt), ATTENTIVE, data, 0.125, 0)
    inside, looked_at = transformer_names(net), 0
    for name, p in net.named_parameters():
        old, g = before[name], p.grad
        if name not in inside: expected, known = old - 0.125 * (g + 1e-4 * old), torch.ones_like(g, dtype=torch.bool)
        else: expected, known = old * (1 if name.endswith(".bias") else 1 - 1e-4) - 1e-3 * g.sign(), g.abs() > 1e-5
        looked_at += known.any()
        assert torch.allclose(p[known], expected[known], atol=3e-6), name
    assert looked_at > 50


def test_the_transformer_keeps_its_rate_while_the_others_follow_the_schedule(whole_steps, monkeypatch):
    made, seen, net = [], [], attentive()
    monkeypatch.setattr(training_module, "optimisers_for", lambda *args: made.append(optimisers_for(*args)) or made[-1])
    rates = lambda optimiser: {group["lr"] for group in optimiser.param_groups}
    opt = replace(SHORT, transformer_lr=3e-4)
    fit({"a": net}, {"a": ATTENTIVE}, whole_steps, opt, 0, report=lambda step, losses: seen.append([rates(o) for o in made[0]]))
    assert len(made) == 1 and seen == [[{opt.lr_at(step)}, {3e-4}] for step in range(6)] and len({opt.lr_at(step) for step in range(6)}) == 6


@pytest.mark.parametrize("still, opt", [("the others", Optimisation(3, 2, 0.0)), ("the transformer", Optimisation(3, 2, 0.01, transformer_lr=0.0))])
def test_each_rate_moves_its_own_parameters(still, opt, whole_steps):
    net = attentive()
    before = copy.deepcopy(net.state_dict())
    fit({"a": net}, {"a": ATTENTIVE}, whole_steps, opt, 0)
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == (transformer_names(net) if still == "the others" else set(before) - transformer_names(net))


# --- the same, again


def test_the_same_seed_gives_the_same_weights_and_another_does_not(steps):
    def run(seed):
        net = model()
        torch.manual_seed(np.random.default_rng().integers(1 << 30))  # whatever happened before does not matter
        return fit({"a": net}, {"a": LATENT}, steps, SHORT, seed), net.state_dict()
    (h1, s1), (h2, s2), (h3, s3) = run(0), run(0), run(1)
    assert h1 == h2 and same(s1, s2) and not same(s1, s3)


def test_side_by_side_is_alone(steps):
    together = {"PFENet": model(), "PFENet+CE": model()}
    methods = {"PFENet": METHODS["PFENet"], "PFENet+CE": LATENT}
    both = fit(together, methods, steps, SHORT, 3)
    for name in methods:
        alone = model()
        history = fit({name: alone}, {name: methods[name]}, steps, SHORT, 3)
        assert history[name] == both[name] and same(alone.state_dict(), together[name].state_dict())
    assert not same(together["PFENet"].state_dict(), together["PFENet+CE"].state_dict())


class Killed(Exception): pass


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("killed_at, every", [(3, 2), (5, 2), (1, 1)])
def test_resuming_is_the_same_to_the_bit(killed_at, every, optimiser, steps, tmp_path):
    opt = replace(SHORT, optimiser=optimiser)
    methods = {"PFENet": METHODS["PFENet"], "PFENet+CE": LATENT}
    straight = {n: model() for n in methods}
    expected = fit(straight, methods, steps, opt, 0)
    path, asked = tmp_path / "run" / "last.pt", []
    def kill(step, losses):
        if step == killed_at: raise Killed
    with pytest.raises(Killed): fit({n: model() for n in methods}, methods, steps, opt, 0, path, every, kill)
    resumed = {n: model(seed=9) for n in methods}  # its own weights do not matter
    torch.manual_seed(99)
    def noting(start):
        asked.append(start)
        return steps(start)
    history = fit(resumed, methods, noting, opt, 0, path, every)
    assert asked == [killed_at // every * every]
    assert history == expected and all(same(resumed[n].state_dict(), straight[n].state_dict()) for n in methods)
    done = {n: model(seed=9) for n in methods}  # and a run that is over is only loaded
    assert fit(done, methods, lambda start: pytest.fail("nothing is left to do"), opt, 0, path) == expected
    assert same(done["PFENet"].state_dict(), straight["PFENet"].state_dict())


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_both_optimisers_resume_to_the_bit(optimiser, whole_steps, tmp_path, monkeypatch):
    "Weights, moments, and the keys that are drawn."
    monkeypatch.setattr(cyctr, "KEYS", 10)
    made = []
    monkeypatch.setattr(training_module, "optimisers_for", lambda *args: made.append(optimisers_for(*args)) or made[-1])
    opt, methods = replace(SHORT, optimiser=optimiser), {"CyCTR+CE": ATTENTIVE, "PFENet": PLAIN}
    nets = lambda seed=0: {"CyCTR+CE": attentive(seed), "PFENet": model(seed)}
    straight, resumed, path = nets(), nets(seed=9), tmp_path / "last.pt"
    expected = fit(straight, methods, whole_steps, opt, 0)
    def kill(step, losses):
        if step == 3: raise Killed
    with pytest.raises(Killed): fit(nets(), methods, whole_steps, opt, 0, path, 2, kill)
    assert [len(own) for own in load_checkpoint(path)["optimisers"].values()] == [2, 1]
    torch.manual_seed(99)
    assert fit(resumed, methods, whole_steps, opt, 0, path, 2) == expected
    assert all(same(resumed[n].state_dict(), straight[n].state_dict()) for n in methods)
    for a, b in ((made[0], made[4]), (made[1], made[5])):
        for one, other in zip(a, b, strict=True):
            one, other = one.state_dict(), other.state_dict()
            assert one["param_groups"] == other["param_groups"] and one["state"].keys() == other["state"].keys() and one["state"]
            assert all(same(one["state"][i], other["state"][i]) for i in one["state"])


def test_online_steps_resume_at_the_same_episodes(backbone, training):
    whole, rest = list(online_steps(backbone, training, 4)), list(online_steps(backbone, training, 4, start=4))
    assert len(whole) == 6 and len(rest) == 2
    for a, b in zip(whole[4:], rest):
        assert torch.equal(a.target, b.target) and torch.equal(a.query.mid, b.query.mid) and torch.equal(a.support.high, b.support.high)


# --- what goes wrong


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(steps, tmp_path):
    path, nets = tmp_path / "last.pt", {"a": model()}
    made = list(steps(0))
    bad = made[3]._replace(query=Features(made[3].query.mid * math.nan, made[3].query.high))
    with pytest.raises(FloatingPointError, match=re.escape("step 3: the loss of a is nan; lower the learning rate (now ") + r".*last good checkpoint is .*last\.pt"):
        fit(nets, {"a": PLAIN}, lambda start: iter(made[start:3] + [bad] + made[4:]), SHORT, 0, path, every=2)
    assert all(torch.isfinite(v).all() for v in nets["a"].state_dict().values())
    saved = load_checkpoint(path)
    assert saved["step"] == 2
    clean = {"a": model()}
    assert fit(clean, {"a": PLAIN}, steps, SHORT, 0, path)["a"] == fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0)["a"]


def test_weights_and_momentum_are_untouched_by_a_bad_step(steps):
    data, net = next(steps(0)), model()
    optimisers = optimisers_for(net, PLAIN, SHORT)
    train_step(net, optimisers, PLAIN, data, 0.01, 0)
    before, momentum = copy.deepcopy(net.state_dict()), copy.deepcopy(optimisers[0].state_dict()["state"])
    with pytest.raises(FloatingPointError, match="PFENet is nan"):
        train_step(net, optimisers, PLAIN, data._replace(query=Features(data.query.mid * math.inf * 0, data.query.high)), 0.01, 1, "PFENet")
    assert same(net.state_dict(), before)
    for i, s in optimisers[0].state_dict()["state"].items(): assert torch.equal(s["momentum_buffer"], momentum[i]["momentum_buffer"])


@pytest.mark.parametrize("change", [dict(opt=Optimisation(iterations=6, batch=2, lr=0.02)), dict(seed=1), dict(methods={"a": Method(contrast=0.2)})])
def test_a_checkpoint_of_another_run_is_refused(change, steps, tmp_path):
    path, settings = tmp_path / "last.pt", dict(methods={"a": PLAIN}, steps=steps, opt=SHORT, seed=0)
    fit({"a": model()}, **settings, checkpoint=path)
    before, net = path.read_bytes(), model(seed=5)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="last.pt was written with other settings"): fit({"a": net}, **{**settings, **change}, checkpoint=path)
    assert path.read_bytes() == before and same(net.state_dict(), state)


@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"not a checkpoint", lambda b: b[:2000] + bytes(len(b) - 4000) + b[-2000:]])
def test_a_damaged_checkpoint_is_named(damage, steps, tmp_path):
    path = tmp_path / "last.pt"
    fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0, path)
    path.write_bytes(damage(path.read_bytes()))
    net = model(seed=5)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(str(path))): fit({"a": net}, {"a": PLAIN}, steps, SHORT, 0, path)
    assert same(net.state_dict(), state)


def test_a_file_that_is_no_checkpoint_is_named(steps, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(model().state_dict(), path)
    with pytest.raises(ValueError, match="weights.pth"): fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0, path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*gone.pt"): load_checkpoint(tmp_path / "gone.pt")


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, step=1, models={"a": {"w": torch.ones(3)}})
    before = path.read_bytes()
    def fails(state, file):
        file.write(b"half of it")
        raise OSError("no space left on device")
    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"): save_checkpoint(path, step=2)
    assert path.read_bytes() == before and load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_too_few_episodes(steps):
    with pytest.raises(ValueError, match="ran out after 12 of 20 steps; draw 40"): fit({"a": model()}, {"a": PLAIN}, steps, Optimisation(20, 2), 0)


def as_file(method, net, **more):
    "What a file of a trained model holds."
    return {"model": net.state_dict(), "method": method, "fold": 0, "backbone": "tiny", "weights": "", "fingerprint": "0123456789", "in_channels": 240, "width": 16,
            "bins": (1.0, 0.5), "side": SIDE, "seed": 0, **more}


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_each_method_is_read_again(method, tmp_path):
    net = attentive() if method.startswith("CyCTR") else model()
    save_checkpoint(tmp_path / "m.pt", **as_file(method, net))
    read, saved = load_model(tmp_path / "m.pt")
    assert same(read.state_dict(), net.state_dict()) and type(read.decoder) is type(net.decoder) and not read.training
    assert read.whole_support == method.startswith("CyCTR") and saved["method"] == method


def test_a_file_of_a_method_that_is_not_known(tmp_path):
    save_checkpoint(tmp_path / "m.pt", **as_file("CANet", model()))
    with pytest.raises(ValueError, match=r"m\.pt holds a model of the method 'CANet', which is none of PFENet, PFENet\+CE, CyCTR, CyCTR\+CE; train again\."): load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("says, holds", [("CyCTR", model), ("PFENet+CE", attentive)])
def test_a_file_of_another_decoder_than_it_says(says, holds, tmp_path):
    save_checkpoint(tmp_path / "m.pt", **as_file(says, holds()))
    with pytest.raises(ValueError, match=r"m\.pt holds another decoder than it says .*; train again\."): load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("method", [METHODS["CyCTR"], ATTENTIVE])
def test_steps_without_the_supports_background_are_refused(method, steps):
    net = attentive()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"compares the support's high features with their background: make them with whole=True\."): fit({"a": net}, {"a": method}, steps, SHORT, 0)
    assert same(net.state_dict(), before)


# --- cached features


def test_cached_steps_are_online_features_of_the_same_crops(backbone, training, tmp_path):
    first, second = (list(cached_steps(tmp_path, backbone, training, 2, views=2)) for _ in range(2))
    files = sorted(tmp_path.rglob("*.pt"))
    assert files
    for a, b in zip(first, second):
        assert torch.equal(a.query.mid, b.query.mid) and torch.equal(a.support.high, b.support.high) and torch.equal(a.target, b.target)
    assert sorted(tmp_path.rglob("*.pt")) == files and len(first) == 12
    for n in (0, 5, 11):
        for b in range(2):
            i, step = 2 * n + b, first[n]
            cls, query, support = (int(x[i].ravel()[0]) for x in training.episodes)
            matches = []
            for view_q in range(2):  # which of the two views was drawn is the cache's own affair, but it is one of them
                for view_s in range(2):
                    crops = [augment(read_image(training.image_set, j), training.image_set.read_mask(j), cls, RECIPE, np.random.default_rng([0, j, cls, v])) for j, v in ((query, view_q), (support, view_s))]
                    (xq, mq), (xs, ms) = crops
                    q, s = episode_features(backbone, xq[None], xs[None, None], binary_mask(ms, cls)[None, None])
                    same_masks = torch.equal(step.target[b], binary_mask(mq, cls).long()) and torch.equal(step.support_mask[b, 0], binary_mask(ms, cls)) and torch.equal(step.known[b], known_mask(mq, TRAIN_CLASSES))
                    near = lambda a, b: (a - b).abs().max() <= 2e-3 * b.abs().max()  # half precision on disk
                    matches.append(same_masks and near(step.query.mid[b], q.mid[0]) and near(step.query.high[b], q.high[0]) and near(step.support.mid[b], s.mid[0]) and near(step.support.high[b], s.high[0]))
            assert sum(matches) == 1
    rest = list(cached_steps(tmp_path, backbone, training, 2, views=2, start=10))
    assert len(rest) == 2 and torch.equal(rest[0].query.mid, first[10].query.mid) and torch.equal(rest[1].target, first[11].target)


def test_cached_steps_hold_the_whole_supports_too(backbone, training, tmp_path):
    "The same files, whether asked for or not; the same features as online, but for half precision on disk."
    without = list(cached_steps(tmp_path, backbone, training, 2, views=1))
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")}
    made = list(cached_steps(tmp_path, backbone, training, 2, views=1, whole=True))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")} == files and len(made) == len(without) == 12
    for a, b in zip(without, made):
        assert type(a.support) is Features and type(b.support) is SupportFeatures
        assert all(torch.equal(x, y) for x, y in zip(a.query + a.support + a[2:], b.query + b.support[:2] + b[2:]))
    for n in (0, 7):
        for b in range(2):
            cls, query, support = (int(x[2 * n + b].ravel()[0]) for x in training.episodes)
            (xq, mq), (xs, ms) = (augment(read_image(training.image_set, j), training.image_set.read_mask(j), cls, RECIPE, np.random.default_rng([0, j, cls, 0])) for j in (query, support))
            q, s = episode_features(backbone, xq[None], xs[None, None], binary_mask(ms, cls)[None, None], whole=True)
            assert torch.equal(made[n].target[b], binary_mask(mq, cls).long()) and torch.equal(made[n].support_mask[b, 0], binary_mask(ms, cls))
            for ours, online in zip(made[n].query + made[n].support, q + s): assert ours.dtype == torch.float32 and (ours[b] - online[0]).abs().max() <= 2e-3 * online.abs().max()
            assert (s.whole - s.high).abs().max() > 0.1 * s.whole.abs().max()  # the background matters


def test_caches_of_different_backbones_and_recipes_do_not_mix(backbone, training, scenes, tmp_path):
    torch.manual_seed(1)
    other_backbone = load_backbone("tiny", "random")
    other_recipe = TrainingEpisodes(scenes, training.episodes, TRAIN_CLASSES, Recipe(side=SIDE, reference=161, blur=3), 0)
    other_seed = TrainingEpisodes(scenes, training.episodes, TRAIN_CLASSES, RECIPE, 1)
    edited = scenes.pixels.copy()
    edited[0, 0] += 1  # a mask was painted over
    other_masks = TrainingEpisodes(replace(scenes, pixels=edited), training.episodes, TRAIN_CLASSES, RECIPE, 0)
    copies = [tmp_path / "images" / p.name for p in scenes.image_paths]
    for p, c in zip(scenes.image_paths, copies): c.parent.mkdir(exist_ok=True); shutil.copyfile(p, c)
    other_files = TrainingEpisodes(replace(scenes, image_paths=copies), training.episodes, TRAIN_CLASSES, RECIPE, 0)
    folder, cases = tmp_path / "cache", [(backbone, training), (other_backbone, training), (backbone, other_recipe), (backbone, other_seed), (backbone, other_masks), (backbone, other_files)]
    for b, t in cases: next(cached_steps(folder, b, t, 2, views=1))
    next(cached_steps(folder, backbone, training, 2, views=1, precision=torch.bfloat16))
    assert len(list(folder.iterdir())) == len(cases) + 1


def test_lower_precision_is_used_and_close(backbone, training):
    exact, lower = (next(online_steps(backbone, training, 2, precision=p)) for p in (None, torch.bfloat16))
    assert exact.query.high.dtype == torch.float32 and lower.query.high.dtype == lower.support.mid.dtype == torch.bfloat16
    for a, b in zip(exact.query + exact.support, lower.query + lower.support):
        assert 0 < (a - b).abs().max() <= 0.05 * a.abs().max()


# --- evaluation


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
    episodes, net = Episodes(np.array([3]), np.array([0]), np.array([[1, 2]])), lively(attentive())
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
        evaluate({"m": attentive().eval()}, feature_memory(backbone, data, 57), data, LIST, [1])


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
