"""Training: one small truth each about the loop, checkpoints, resuming and caches."""
import copy
import math
import os
import re
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from celp_nb import cyctr
from celp_nb.bundled.scenes import samples
from celp_nb.conditioning import Features, SupportFeatures
from celp_nb.contrast import FewShotModel, two_path_losses
from celp_nb.data.episodes import fold_classes, images_in_turn
from celp_nb.data.images import UnreadableImage, read_image
from celp_nb.data.training_set import Batch, TrainingEpisodes
from celp_nb.data.transforms import Recipe, augment, binary_mask, known_mask
from celp_nb.engine import training as engine_training
from celp_nb.engine import views as engine_views
from celp_nb.engine.backbones import autocast, episode_features, load_backbone
from celp_nb.engine.checkpoints import load_checkpoint, load_model, save_checkpoint
from celp_nb.engine.methods import (
    DECODERS,
    METHODS,
    Method,
    Step,
    build_model,
    find_method,
)
from celp_nb.engine.steps import draw_pseudo_masks, online_steps, own_episodes
from celp_nb.engine.training import (
    Objective,
    Optimisation,
    accelerator_for,
    fit,
    optimisers_for,
    train_step,
)
from celp_nb.engine.views import cached_steps, views_folder
from celp_nb.pfenet import PFENet

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
    return TrainingEpisodes(
        scenes,
        images_in_turn(scenes.pixels, TRAIN_CLASSES, 24, 1, 0, min_pixels=1000),
        TRAIN_CLASSES,
        RECIPE,
        0,
    )


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
    return build_model(channels, width, (1.0,), method=METHODS["CyCTR"])


def one_step(net, optimisers, method, *rest, **more):
    "`train_step` on the CPU."
    data, lr, number, *name = rest
    return train_step(
        Objective(net, DECODERS[method.decoder].loss),
        optimisers,
        method,
        data,
        lr,
        number,
        accelerator_for(),
        *name,
        **more,
    )


PLAIN = METHODS["PFENet"]
LATENT = Method(delta=0.3, sigma=3)  # a region in nearly every image, whatever the weights
ATTENTIVE = replace(LATENT, decoder="CyCTR")
SHORT = Optimisation(iterations=6, batch=2, lr=0.01)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- methods


def test_a_name_says_what_is_otherwise():
    assert find_method("CyCTR+CE") == METHODS["CyCTR+CE"]
    assert find_method(
        "PFENet+CE delta=0.4 separate=yes known=objects", delta=0.9, sigma=5
    ) == replace(METHODS["PFENet+CE"], delta=0.4, sigma=5, separate=True, known="objects")


@pytest.mark.parametrize(
    "name, said",
    [
        ("CANet", "there is no method 'CANet'; choose one of PFENet"),
        ("", "there is no method ''"),
        ("PFENet+CE gamma=2", "gamma=2 is no setting of it; give one of contrast"),
        ("PFENet+CE delta", "delta= is no setting"),
        ("PFENet+CE delta=x", "delta=x is no setting"),
        ("PFENet+CE separate=maybe", "separate=maybe"),
        ("PFENet+CE known=dogs", "there is no known 'dogs'; choose one of all, class, objects"),
        ("PFENet+CE delta=2", "delta is 2.0"),
        ("PFENet+CE share=1", "share is 1.0"),
        ("PFENet+CE decoder=CyCTR", "decoder=CyCTR is no setting"),
        ("PFENet rate=0", "rate is 0.0; give a factor"),
        ("PFENet rate=nan", "rate is nan"),
        ("PFENet attention=published", "attention is CyCTR's, and PFENet has none"),
        ("CyCTR attention=old", "there is no attention 'old'"),
    ],
)
def test_a_name_that_is_no_method_is_refused(name, said):
    with pytest.raises(ValueError, match=re.escape(said)): find_method(name)


def test_a_methods_rate_is_a_factor_on_the_schedule(steps):
    of_method, of_run = {"m": model()}, {"m": model()}
    fit(of_method, {"m": replace(LATENT, rate=0.5)}, steps, SHORT, 5)
    fit(of_run, {"m": LATENT}, steps, replace(SHORT, lr=SHORT.lr / 2), 5)
    assert same(of_method["m"].state_dict(), of_run["m"].state_dict())


def test_what_is_annotated_decides_where_centres_may_be(steps):
    "All training classes and void; the episode's class and void; all classes without void."
    data = next(steps(0))
    known = torch.zeros_like(data.known)
    known[:, :40], known[:, 40:60] = 1, 255
    target = torch.zeros_like(data.target)
    target[:, :20], target[:, 40:60] = 1, 255
    data = data._replace(known=known, target=target)
    rows = {
        k: (draw_pseudo_masks(replace(LATENT, known=k, delta=-0.9, sigma=0), data, 3, 0) == 1).any(
            2
        )[0]
        for k in ("all", "class", "objects")
    }  # rows of the image that a pseudo-mask reaches
    assert not rows["all"][:55].any() and rows["all"][70:].all()
    assert (
        not rows["class"][:18].any()
        and rows["class"][24:36].all()
        and not rows["class"][45:55].any()
    )
    assert not rows["objects"][:36].any() and rows["objects"][45:55].all()


def test_models_that_share_a_steps_priors_and_pseudo_masks_learn_as_they_would_alone(steps):
    methods = {
        "plain": PLAIN,
        "CE": LATENT,
        "other": replace(LATENT, delta=0.5),
        "own": replace(LATENT, share=0.2),
        "masked": replace(LATENT, latent_prior="masked"),
    }
    together = {n: model() for n in methods}
    fit(together, methods, steps, SHORT, 5)
    for n in methods:
        alone = {n: model()}
        fit(alone, methods, steps, SHORT, 5)
        assert same(alone[n].state_dict(), together[n].state_dict())
    assert not any(
        same(together["CE"].state_dict(), together[n].state_dict()) for n in methods if n != "CE"
    )


# --- learning


def test_overfitting_four_episodes(backbone, scenes):
    "A few seconds of training on four episodes: the loss falls and the masks are right."
    episodes = images_in_turn(scenes.pixels, TRAIN_CLASSES, 4, 1, 1, min_pixels=3000)
    still = Recipe(
        121, 161, (1.0, 1.0), rotation_probability=0, blur_probability=0, flip_probability=0
    )
    rows = Batch(
        *(torch.stack(x) for x in zip(*TrainingEpisodes(scenes, episodes, TRAIN_CLASSES, still, 0)))
    )
    query, support = episode_features(backbone, rows.query, rows.support, rows.support_mask)
    step = Step(query, support, rows.support_mask, rows.target.long(), rows.known)
    torch.manual_seed(0)
    net = FewShotModel(query.mid.shape[1], PFENet(48, (1.0,), dropout=0.0), 48, dropout=0.0)
    history = fit(
        {"CE": net},
        {"CE": Method()},
        lambda start: (step for _ in range(140)),
        Optimisation(140, 4, 0.2),
        0,
    ).history["CE"]
    assert (
        history[-1]["main"] < 0.1 * history[0]["main"]
        and history[-1]["auxiliary"] < 0.1 * history[0]["auxiliary"]
        and history[0]["latent"] > 0
    )
    with torch.no_grad(): logits = net(query, support, rows.support_mask)
    found = torch.nn.functional.interpolate(
        logits, rows.target.shape[-2:], mode="bilinear", align_corners=True
    ).argmax(1)
    ious = [
        ((f == 1) & (t == 1)).sum() / (((f == 1) | (t == 1)) & (t != 255)).sum()
        for f, t in zip(found, rows.target)
    ]
    assert sum(ious) / 4 > 0.9


def test_schedule():
    "lr (1 - step / iterations)^0.9: whole at first, next to nothing in the last step."
    opt = Optimisation(iterations=1000, lr=0.025)
    assert opt.lr_at(0) == 0.025 and opt.lr_at(1000) == 0
    for step in (1, 250, 500, 999):
        assert opt.lr_at(step) == pytest.approx(0.025 * math.exp(0.9 * math.log(1 - step / 1000)))
    assert (
        Optimisation().lr == pytest.approx(10 * 2.5e-3)
        and Optimisation().power == 0.9
        and Optimisation().momentum == 0.9
        and Optimisation().weight_decay == 1e-4
    )


def test_a_step_is_one_step_of_sgd_at_its_rate(steps):
    data, ours = next(steps(0)), model()
    plain, optimisers = copy.deepcopy(ours), optimisers_for(ours, PLAIN, SHORT)
    one_step(ours, optimisers, PLAIN, data, 0.125, 7)
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
    one_step(net, optimisers_for(net, PLAIN, opt), PLAIN, data, 1e-3, 0)
    for name, value in net.named_parameters():
        moved = value.grad.abs() > 1e-5
        assert torch.allclose(
            value[moved], (before[name] - 1e-3 * value.grad.sign())[moved], atol=2e-6
        ), name


def test_fit_follows_the_schedule_and_reports_every_step(steps):
    seen, net = [], model()
    before = copy.deepcopy(net.state_dict())
    history = fit(
        {"a": net},
        {"a": LATENT},
        steps,
        SHORT,
        0,
        report=lambda step, losses: seen.append((step, losses["a"])),
    ).history
    assert [s for s, _ in seen] == list(range(6)) and [h for _, h in seen] == history["a"]
    assert all(
        set(h) == {"main", "auxiliary", "contrast", "latent"} and 0 <= h["latent"] <= 1
        for h in history["a"]
    )
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
    net = build_model(240, 16, (1.0, 0.5), method=METHODS[method])
    optimisers = optimisers_for(net, METHODS[method], Optimisation(optimiser=first))
    owned, names = (
        [names_in(net, o.param_groups) for o in optimisers],
        {n for n, _ in net.named_parameters()},
    )
    assert sorted(sum(owned, [])) == sorted(names)
    assert type(optimisers[0]) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[first]
    if METHODS[method].decoder == "PFENet":
        assert len(optimisers) == 1
    else:
        assert len(optimisers) == 2 and type(optimisers[1]) is torch.optim.AdamW
        assert set(owned[1]) == transformer_names(net) and {
            "reduce.0.weight",
            "decoder.qry_merge_feat.0.weight",
            "decoder.supp_cls.3.bias",
        } <= set(owned[0])


def test_biases_of_the_transformer_do_not_decay():
    net = attentive()
    groups = [
        group
        for o in optimisers_for(net, ATTENTIVE, Optimisation(weight_decay=0.5, lr=0.25))
        for group in o.param_groups
    ]
    decay = {
        name: (group["weight_decay"], group["lr"])
        for group in groups
        for name in names_in(net, [group])
    }
    biases = {n for n in transformer_names(net) if n.endswith(".bias")}
    assert len(biases) == 2 * 6 and len(decay) == len(
        list(net.parameters())
    )  # of offsets, shares and four normalisations in each of two layers
    for name, settings in decay.items():
        assert settings == (
            (0.0, 1e-4)
            if name in biases
            else (1e-2, 1e-4)
            if name in transformer_names(net)
            else (0.5, 0.25)
        ), name


def test_a_step_is_one_of_sgd_and_one_of_adamw(whole_steps):
    "The transformer's first step is its decay and the sign of the gradient times its own rate."
    data, net = next(whole_steps(0)), attentive()
    before, opt = (
        copy.deepcopy(net.state_dict()),
        Optimisation(transformer_lr=1e-3, transformer_decay=0.1),
    )
    one_step(net, optimisers_for(net, ATTENTIVE, opt), ATTENTIVE, data, 0.125, 0)
    inside, looked_at = transformer_names(net), 0
    for name, p in net.named_parameters():
        old, g = before[name], p.grad
        if name not in inside:
            expected, known = old - 0.125 * (g + 1e-4 * old), torch.ones_like(g, dtype=torch.bool)
        else:
            expected, known = (
                old * (1 if name.endswith(".bias") else 1 - 1e-4) - 1e-3 * g.sign(),
                g.abs() > 1e-5,
            )
        looked_at += known.any()
        assert torch.allclose(p[known], expected[known], atol=3e-6), name
    assert looked_at > 50


def test_the_transformer_keeps_its_rate_while_the_others_follow_the_schedule(
    whole_steps, monkeypatch
):
    made, seen, net = [], [], attentive()
    noted = lambda *args: made.append(optimisers_for(*args)) or made[-1]
    monkeypatch.setattr(engine_training, "optimisers_for", noted)
    rates = lambda optimiser: {group["lr"] for group in optimiser.param_groups}
    opt = replace(SHORT, transformer_lr=3e-4)
    fit(
        {"a": net},
        {"a": ATTENTIVE},
        whole_steps,
        opt,
        0,
        report=lambda step, losses: seen.append([rates(o) for o in made[0]]),
    )
    assert (
        len(made) == 1
        and seen == [[{opt.lr_at(step)}, {3e-4}] for step in range(6)]
        and len({opt.lr_at(step) for step in range(6)}) == 6
    )


@pytest.mark.parametrize(
    "still, opt",
    [
        ("the others", Optimisation(3, 2, 0.0)),
        ("the transformer", Optimisation(3, 2, 0.01, transformer_lr=0.0)),
    ],
)
def test_each_rate_moves_its_own_parameters(still, opt, whole_steps):
    net = attentive()
    before = copy.deepcopy(net.state_dict())
    fit({"a": net}, {"a": ATTENTIVE}, whole_steps, opt, 0)
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == (
        transformer_names(net) if still == "the others" else set(before) - transformer_names(net)
    )


# --- the same, again


def test_the_same_seed_gives_the_same_weights_and_another_does_not(steps):
    def run(seed):
        net = model()
        torch.manual_seed(
            np.random.default_rng().integers(1 << 30)
        )  # whatever happened before does not matter
        return fit({"a": net}, {"a": LATENT}, steps, SHORT, seed), net.state_dict()
    (h1, s1), (h2, s2), (_, s3) = run(0), run(0), run(1)
    assert h1 == h2 and same(s1, s2) and not same(s1, s3)


def test_side_by_side_is_alone(steps):
    together = {"PFENet": model(), "PFENet+CE": model()}
    methods = {"PFENet": METHODS["PFENet"], "PFENet+CE": LATENT}
    both = fit(together, methods, steps, SHORT, 3).history
    for name in methods:
        alone = model()
        history = fit({name: alone}, {name: methods[name]}, steps, SHORT, 3).history
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

    with pytest.raises(Killed):
        fit({n: model() for n in methods}, methods, steps, opt, 0, path, every, kill)
    resumed = {n: model(seed=9) for n in methods}  # its own weights do not matter
    torch.manual_seed(99)
    def noting(start):
        asked.append(start)
        return steps(start)
    history = fit(resumed, methods, noting, opt, 0, path, every)
    assert asked == [killed_at // every * every]
    assert history == expected and all(
        same(resumed[n].state_dict(), straight[n].state_dict()) for n in methods
    )
    done = {n: model(seed=9) for n in methods}  # and a run that is over is only loaded
    assert (
        fit(done, methods, lambda start: pytest.fail("nothing is left to do"), opt, 0, path)
        == expected
    )
    assert same(done["PFENet"].state_dict(), straight["PFENet"].state_dict())


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_both_optimisers_resume_to_the_bit(optimiser, whole_steps, tmp_path, monkeypatch):
    "Weights, moments, and the keys that are drawn."
    monkeypatch.setattr(cyctr, "KEYS", 10)
    made = []
    monkeypatch.setattr(
        engine_training,
        "optimisers_for",
        lambda *args: made.append(optimisers_for(*args)) or made[-1],
    )
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
            assert (
                one["param_groups"] == other["param_groups"]
                and one["state"].keys() == other["state"].keys()
                and one["state"]
            )
            assert all(same(one["state"][i], other["state"][i]) for i in one["state"])


def test_online_steps_resume_at_the_same_episodes(backbone, training):
    whole, rest = (
        list(online_steps(backbone, training, 4)),
        list(online_steps(backbone, training, 4, start=4)),
    )
    assert len(whole) == 6 and len(rest) == 2
    for a, b in zip(whole[4:], rest):
        assert (
            torch.equal(a.target, b.target)
            and torch.equal(a.query.mid, b.query.mid)
            and torch.equal(a.support.high, b.support.high)
        )


# --- what goes wrong


class Dying(TrainingEpisodes):
    "Its process ends in the third episode, as one does that the system kills for memory."
    def __getitem__(self, i):
        if i == 2: os._exit(9)
        return super().__getitem__(i)


def test_a_reading_process_that_dies_is_named(backbone, training):
    items = Dying(training.image_set, training.episodes, training.train_classes, training.recipe, 0)
    with pytest.raises(
        RuntimeError,
        match=r"a process that reads and augments images died .*"
        "use fewer --workers and go on with --resume",
    ):
        list(online_steps(backbone, items, 2, workers=1))


def test_an_unreadable_image_is_named_in_one_line_from_a_reading_process_too(
    backbone, training, tmp_path
):
    "Without the traceback of the other process."
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    data = replace(
        training.image_set, image_paths=[tmp_path / "broken.jpg"] * len(training.image_set.ids)
    )
    items = TrainingEpisodes(data, training.episodes, training.train_classes, training.recipe, 0)
    said = []
    for workers in (0, 1):
        with pytest.raises(UnreadableImage) as e:
            list(online_steps(backbone, items, 2, workers=workers))
        said.append(str(e.value))
    assert said[0] == said[1] and "broken.jpg" in said[0]


def test_reading_processes_change_nothing(backbone, training):
    a, b = (
        next(online_steps(backbone, training, 2, start=3, workers=workers)) for workers in (0, 2)
    )
    assert all(
        torch.equal(x, y)
        for x, y in zip((*a.query, *a.support, *a[2:]), (*b.query, *b.support, *b[2:]))
    )


def ask_view(file, *args):
    "A view as it is read from the file."
    return engine_views.read_view(file, engine_views.place_of_view(file, *args))


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    "All files of views that a test opens; they are closed after it."
    files, real = [], engine_views.open_views
    def noted(folder):
        files.append(real(folder))
        return files[-1]
    monkeypatch.setattr(engine_views, "open_views", noted)
    yield files
    for file in files: file.data.close(), file.index.close()


def test_a_file_of_views_is_closed_where_its_steps_end(backbone, training, tmp_path, opened):
    "Also where they are left before their end."
    steps = cached_steps(tmp_path, backbone, training, 2, views=1)
    next(steps)
    (file,) = opened
    assert not file.data.closed and not file.index.closed
    steps.close()
    list(cached_steps(tmp_path, backbone, training, 2, views=1, start=10))
    assert len(opened) == 2 and all(file.data.closed and file.index.closed for file in opened)


def test_a_damaged_view_is_made_anew_once(backbone, training, tmp_path, monkeypatch):
    "And read after that, in the same process too."
    shown = (0, int(training.episodes.cls[0]), 0)
    ask = lambda file: ask_view(file, backbone, training, shown)
    made, path = ask(engine_views.open_views(tmp_path)), tmp_path / "views.bin"
    path.write_bytes(path.read_bytes()[:1000])
    written, make = [], engine_views.make_view
    monkeypatch.setattr(
        engine_views, "make_view", lambda *args: written.append(args) or make(*args)
    )
    file = engine_views.open_views(tmp_path)
    with pytest.warns(UserWarning, match="is damaged and is made anew"):
        again = [ask(file)]
    again += [ask(file), ask(file), ask(engine_views.open_views(tmp_path))]
    assert len(written) == 1
    assert all(torch.equal(x, y) for view in again for x, y in zip(made, view))


@pytest.mark.parametrize("damage", ["flipped", "torn", "swapped", "unfinished"])
def test_a_damaged_line_of_the_index_costs_its_view_alone(damage, backbone, training, tmp_path):
    "The views that it does not name are read; a view is never taken for another."
    cls, path = int(training.episodes.cls[0]), tmp_path / "views.jsonl"
    ask = lambda file, view: ask_view(file, backbone, training, (0, cls, view))
    file = engine_views.open_views(tmp_path)
    made = [ask(file, view) for view in range(3)]
    lines = path.read_bytes().split(b"\n")[1::2]
    assert len(lines) == 3
    lines = [line + b"\n" for line in lines]
    if damage == "flipped": lines[1] = lines[1].replace(b"1, ", b"2, ", 1)
    if damage == "torn": lines[1] = lines[1][:20]
    if damage == "unfinished": lines[2] = lines[2][:20]  # the process died while it wrote
    if damage == "swapped": lines[1] = lines[1].replace(b"-1\"", b"-0\"")
    path.write_bytes(b"".join(lines))
    with pytest.warns(UserWarning, match=r"a line of .*views\.jsonl is damaged"):
        file = engine_views.open_views(tmp_path)
        again = [ask(file, view) for view in range(3)]
    for a, b in zip(made, again): assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert {f"{training.image_set.ids[0]}-{cls}-{view}" for view in range(3)} == set(file.places)


def test_two_processes_write_views_into_one_file(backbone, training, tmp_path):
    "What one has made the other reads; both may make the same view at once."
    cls = int(training.episodes.cls[0])
    ask = lambda file, view: ask_view(file, backbone, training, (0, cls, view))
    one, two = (engine_views.open_views(tmp_path) for _ in range(2))
    a, b = ask(one, 0), ask(two, 1)
    size = (tmp_path / "views.bin").stat().st_size
    assert all(torch.equal(x, y) for x, y in zip(ask(two, 0), a))
    assert all(torch.equal(x, y) for x, y in zip(ask(one, 1), b))
    assert (tmp_path / "views.bin").stat().st_size == size
    engine_views.append_view(one, "again", a)
    engine_views.append_view(two, "again", a)
    third = engine_views.open_views(tmp_path)
    engine_views.read_index(third)
    kept = engine_views.read_view(third, third.places["again"])
    assert engine_views.is_whole(third, third.places["again"])
    assert all(torch.equal(x, y) for x, y in zip(kept, a))


def test_a_view_for_which_there_is_no_room_is_said_and_harms_no_other(
    backbone, training, tmp_path
):
    cls, file = int(training.episodes.cls[0]), engine_views.open_views(tmp_path)
    ask = lambda file, view: ask_view(file, backbone, training, (0, cls, view))
    first = ask(file, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "views.bin").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + size // 2, hard))
    try:
        with pytest.raises(OSError, match="could not be written into .* make room and go on"):
            ask(file, 1)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file = engine_views.open_views(tmp_path)
    second = ask(file, 1)
    for view, made in ((0, first), (1, second)):
        assert all(torch.equal(x, y) for x, y in zip(ask(file, view), made))


def test_views_of_a_backbone_in_bfloat16_are_kept_as_they_are(backbone, training, tmp_path):
    "Not rounded a second time; and a field is read alone."
    shown = (0, int(training.episodes.cls[0]), 0)
    file = engine_views.open_views(tmp_path)
    made = ask_view(file, backbone, training, shown, torch.bfloat16)
    x, class_map = engine_views.fixed_view(training, *shown)
    with autocast(torch.device("cpu"), torch.bfloat16): online = backbone(x[None])[0][0]
    assert online.dtype == made.mid.dtype == torch.bfloat16
    assert torch.equal(made.mid.movedim(-1, 0), online)
    (place,) = file.places.values()
    twice = engine_views.read_field(file, [place, place], "high")
    assert twice.dtype == torch.bfloat16 and torch.equal(twice, torch.stack(2 * [made.high]))
    assert torch.equal(engine_views.read_field(file, [place], "class_map")[0], class_map)


def test_views_of_more_than_254_classes_keep_their_class_maps(tmp_path):
    "int32 maps take four times the bytes, and what lies behind them is read all the same."
    maps = [torch.randn(2, 2, channels) for channels in (3, 4, 4)]
    view = engine_views.View(torch.tensor([[300, 65535], [0, 7]], dtype=torch.int32), *maps)
    file = engine_views.open_views(tmp_path)
    for name in ("a", "b"): engine_views.append_view(file, name, view)
    engine_views.read_index(file)
    for place in file.places.values():
        kept = engine_views.read_view(file, place)
        assert kept.class_map.dtype == torch.int32 and engine_views.is_whole(file, place)
        assert all(torch.equal(x, y) for x, y in zip(kept, view))


@pytest.mark.parametrize("step", [0, 3])
def test_shares_of_a_step_are_the_step(step):
    assert [i for rank in range(3) for i in own_episodes(step, 6, (rank, 3))] == list(
        range(6 * step, 6 * step + 6)
    )
    with pytest.raises(ValueError, match="4 processes cannot share a batch of 6 episodes equally"):
        own_episodes(step, 6, (0, 4))


@pytest.mark.parametrize(
    "source",
    [online_steps, lambda *args, **more: cached_steps(more.pop("folder"), *args, 1, **more)],
)
def test_processes_get_their_part_of_every_step(source, backbone, training, tmp_path):
    more = {} if source is online_steps else {"folder": tmp_path}
    whole = list(source(backbone, training, 4, **dict(more)))
    parts = [
        list(source(backbone, training, 4, share=(rank, 2), **dict(more))) for rank in range(2)
    ]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 6
    for w, a, b in zip(whole, *parts):
        assert torch.equal(w.target, torch.cat([a.target, b.target])) and torch.equal(
            w.known, torch.cat([a.known, b.known])
        )
        torch.testing.assert_close(w.query.high, torch.cat([a.query.high, b.query.high]))


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(steps, tmp_path):
    "A write beyond a size limit: the message names file and step, nothing half-written stays."
    path, before = tmp_path / "last.pt", []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    def report(step, losses):
        if step == 3:
            before.append(path.read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) // 2, hard))
    try:
        with pytest.raises(
            OSError,
            match=r"last\.pt could not be written after step 4 .*"
            "the one before it is whole: make room and go on with --resume",
        ):
            fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0, path, 2, report)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before[0] and [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    resumed, straight = model(seed=3), model()
    assert fit({"a": resumed}, {"a": PLAIN}, steps, SHORT, 0, path, 2) == fit(
        {"a": straight}, {"a": PLAIN}, steps, SHORT, 0
    )
    assert same(resumed.state_dict(), straight.state_dict())


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(steps, tmp_path):
    path, nets = tmp_path / "last.pt", {"a": model()}
    made = list(steps(0))
    bad = made[3]._replace(query=Features(made[3].query.mid * math.nan, made[3].query.high))
    with pytest.raises(
        FloatingPointError,
        match=re.escape("step 3: the loss of a is nan; lower the learning rate (now ")
        + r".*last good checkpoint is .*last\.pt",
    ):
        fit(
            nets,
            {"a": PLAIN},
            lambda start: iter(made[start:3] + [bad] + made[4:]),
            SHORT,
            0,
            path,
            every=2,
        )
    assert all(torch.isfinite(v).all() for v in nets["a"].state_dict().values())
    saved = load_checkpoint(path)
    assert saved["step"] == 2
    clean = {"a": model()}
    assert fit(clean, {"a": PLAIN}, steps, SHORT, 0, path) == fit(
        {"a": model()}, {"a": PLAIN}, steps, SHORT, 0
    )


def test_weights_and_momentum_are_untouched_by_a_bad_step(steps):
    data, net = next(steps(0)), model()
    optimisers = optimisers_for(net, PLAIN, SHORT)
    one_step(net, optimisers, PLAIN, data, 0.01, 0)
    before, momentum = (
        copy.deepcopy(net.state_dict()),
        copy.deepcopy(optimisers[0].state_dict()["state"]),
    )
    with pytest.raises(FloatingPointError, match="PFENet is nan"):
        one_step(
            net,
            optimisers,
            PLAIN,
            data._replace(query=Features(data.query.mid * math.inf * 0, data.query.high)),
            0.01,
            1,
            "PFENet",
        )
    assert same(net.state_dict(), before)
    for i, s in optimisers[0].state_dict()["state"].items():
        assert torch.equal(s["momentum_buffer"], momentum[i]["momentum_buffer"])


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(opt=Optimisation(iterations=6, batch=2, lr=0.02)), "lr = 0.01 then and 0.02 now"),
        (
            dict(seed=1, opt=replace(SHORT, batch=4)),
            "batch = 2 then and 4 now, seed = 0 then and 1 now",
        ),
        (dict(methods={"a": Method(contrast=0.2)}), "contrast of a = 0.0 then and 0.2 now"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, said, steps, tmp_path):
    path, settings = (
        tmp_path / "last.pt",
        dict(methods={"a": PLAIN}, steps=steps, opt=SHORT, seed=0),
    )
    fit({"a": model()}, **settings, checkpoint=path)
    before, net = path.read_bytes(), model(seed=5)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=rf"last.pt was written with other settings \({said}\)"):
        fit({"a": net}, **{**settings, **change}, checkpoint=path)
    assert path.read_bytes() == before and same(net.state_dict(), state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: b"not a checkpoint",
        lambda b: b[:2000] + bytes(len(b) - 4000) + b[-2000:],
        lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 1]) + b[len(b) // 2 + 1 :],
    ],
)
def test_a_damaged_checkpoint_is_named(damage, steps, tmp_path):
    path = tmp_path / "last.pt"
    fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0, path)
    path.write_bytes(damage(path.read_bytes()))
    net = model(seed=5)
    state = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=re.escape(str(path))):
        fit({"a": net}, {"a": PLAIN}, steps, SHORT, 0, path)
    assert same(net.state_dict(), state)


def test_a_file_that_is_no_checkpoint_is_named(steps, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(model().state_dict(), path)
    with pytest.raises(ValueError, match="weights.pth"):
        fit({"a": model()}, {"a": PLAIN}, steps, SHORT, 0, path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint .*gone.pt"):
        load_checkpoint(tmp_path / "gone.pt")


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
    with pytest.raises(ValueError, match="ran out after 12 of 20 steps; draw 40"):
        fit({"a": model()}, {"a": PLAIN}, steps, Optimisation(20, 2), 0)


def as_file(method, net, **more):
    "What a file of a trained model holds."
    return {
        "model": net.state_dict(),
        "method": method,
        "fold": 0,
        "backbone": "tiny",
        "weights": "",
        "fingerprint": "0123456789",
        "in_channels": 240,
        "width": 16,
        "bins": (1.0, 0.5),
        "side": SIDE,
        "seed": 0,
        **more,
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_each_method_is_read_again(method, tmp_path):
    net = attentive() if method.startswith("CyCTR") else model()
    save_checkpoint(tmp_path / "m.pt", **as_file(method, net))
    read, saved = load_model(tmp_path / "m.pt")
    assert (
        same(read.state_dict(), net.state_dict())
        and type(read.decoder) is type(net.decoder)
        and not read.training
    )
    assert read.whole_support == method.startswith("CyCTR") and saved["method"] == method


@pytest.mark.parametrize("name", ["PFENet separate=yes", "CyCTR attention=published"])
def test_what_is_otherwise_about_a_model_is_read_again(name, tmp_path):
    net = build_model(240, 16, (1.0, 0.5), method=find_method(name))
    save_checkpoint(tmp_path / "m.pt", **as_file(name, net))
    read, _ = load_model(tmp_path / "m.pt")
    assert (
        same(read.state_dict(), net.state_dict())
        and (read.reduce_support is not None) == name.endswith("yes")
        and (not name.startswith("CyCTR") or read.decoder.transformer._published)
    )


def test_a_file_of_a_method_that_is_not_known(tmp_path):
    save_checkpoint(tmp_path / "m.pt", **as_file("CANet", model()))
    with pytest.raises(
        ValueError,
        match=r"m\.pt was trained with a method that is not known here "
        r".there is no method 'CANet'; choose one of PFENet, .*; register its decoder first, ",
    ):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", None),
        ("model", {"reduce.0.weight": 3}),
        ("model", {1: torch.zeros(1)}),
        ("method", None),
        ("fold", "x"),
        ("backbone", ["tiny"]),
        ("weights", 3),
        ("fingerprint", None),
        ("in_channels", -1),
        ("in_channels", torch.zeros(2)),
        ("width", -8),
        ("width", 2**40),
        ("width", True),
        ("bins", None),
        ("bins", (1.0, "x")),
        ("bins", (0.0,)),
        ("side", "a text"),
        ("seed", 1.5),
        ("plugin", 3),
        ("train_classes", None),
    ],
)
def test_a_file_with_a_field_of_another_type_is_refused_by_name(field, value, tmp_path):
    save_checkpoint(tmp_path / "m.pt", **(as_file("PFENet", model()) | {field: value}))
    with pytest.raises(ValueError, match=rf"m\.pt .*'?{field}'?.*train again\.") as refusal:
        load_model(tmp_path / "m.pt")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("says, holds", [("CyCTR", model), ("PFENet+CE", attentive)])
def test_a_file_of_another_decoder_than_it_says(says, holds, tmp_path):
    save_checkpoint(tmp_path / "m.pt", **as_file(says, holds()))
    with pytest.raises(
        ValueError, match=r"m\.pt holds another decoder than it says .*; train again\."
    ):
        load_model(tmp_path / "m.pt")


@pytest.mark.parametrize("method", [METHODS["CyCTR"], ATTENTIVE])
def test_steps_without_the_supports_background_are_refused(method, steps):
    net = attentive()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ValueError,
        match=r"compares the support's high features with their background: "
        r"make them with whole=True\.",
    ):
        fit({"a": net}, {"a": method}, steps, SHORT, 0)
    assert same(net.state_dict(), before)


class MixedLayouts(TorchDispatchMode):
    "Collects operations on maps of which some have rows, others channels next to each other."
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        maps = [x for x in args if isinstance(x, torch.Tensor) and x.ndim == 4]
        maps = [x for x in maps if x.shape[1] > 2 and min(x.shape[2:]) > 1]
        last = {x.stride(1) == 1 for x in maps}
        if len(last) > 1: self.found.append(str(op))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE"])
def test_a_step_has_channels_next_to_each_other_throughout(name, backbone, training):
    "A sum or threshold of two layouts takes 6 to 30 times as long."
    method = find_method(name, delta=0.3, sigma=3)
    net = build_model(240, 16, (1.0, 0.5), method=method)
    data = next(online_steps(backbone, training, 2, whole=True))
    objective, accelerator = Objective(net, DECODERS[method.decoder].loss), accelerator_for()
    optimisers = optimisers_for(net, method, SHORT)
    with MixedLayouts() as layouts:
        losses = train_step(objective, optimisers, method, data, 1e-3, 0, accelerator)
    assert layouts.found == [] and (losses["contrast"] > 0) == ("CE" in name)


# --- the device


def test_a_process_that_trained_elsewhere_trains_on_the_device_that_it_is_given(monkeypatch):
    assert accelerator_for("cpu").device.type == "cpu"
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # in the place of a card
    assert accelerator_for("cuda").device.type == "meta"
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE")
    assert accelerator_for("cpu").device.type == "cpu"


# --- cached features


def test_cached_steps_are_online_features_of_the_same_crops(backbone, training, tmp_path):
    first, second = (list(cached_steps(tmp_path, backbone, training, 2, views=2)) for _ in range(2))
    size = sum(p.stat().st_size for p in tmp_path.rglob("views.bin"))
    assert size
    for a, b in zip(first, second):
        assert (
            torch.equal(a.query.mid, b.query.mid)
            and torch.equal(a.support.high, b.support.high)
            and torch.equal(a.target, b.target)
        )
    assert sum(p.stat().st_size for p in tmp_path.rglob("views.bin")) == size
    assert len(first) == 12
    for n in (0, 5, 11):
        for b in range(2):
            i, step = 2 * n + b, first[n]
            cls, query, support = (int(x[i].ravel()[0]) for x in training.episodes)
            matches = []
            for view_q in range(
                2
            ):  # which of the two views was drawn is the cache's own affair, but it is one of them
                for view_s in range(2):
                    crops = [
                        augment(
                            read_image(training.image_set, j),
                            training.image_set.read_mask(j),
                            cls,
                            RECIPE,
                            np.random.default_rng([0, j, cls, v]),
                        )
                        for j, v in ((query, view_q), (support, view_s))
                    ]
                    (xq, mq), (xs, ms) = crops
                    q, s = episode_features(
                        backbone, xq[None], xs[None, None], binary_mask(ms, cls)[None, None]
                    )
                    same_masks = (
                        torch.equal(step.target[b], binary_mask(mq, cls).long())
                        and torch.equal(step.support_mask[b, 0], binary_mask(ms, cls))
                        and torch.equal(step.known[b], known_mask(mq, TRAIN_CLASSES))
                    )
                    near = lambda a, b: (
                        (a - b).abs().max() <= 2e-3 * b.abs().max()
                    )  # half precision on disk
                    matches.append(
                        same_masks
                        and near(step.query.mid[b], q.mid[0])
                        and near(step.query.high[b], q.high[0])
                        and near(step.support.mid[b], s.mid[0])
                        and near(step.support.high[b], s.high[0])
                    )
            assert sum(matches) == 1
    rest = list(cached_steps(tmp_path, backbone, training, 2, views=2, start=10))
    assert (
        len(rest) == 2
        and torch.equal(rest[0].query.mid, first[10].query.mid)
        and torch.equal(rest[1].target, first[11].target)
    )


def test_views_of_masks_that_have_changed_are_not_used(backbone, training, tmp_path):
    "The counts of the classes are the same; a mask is not."
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths: path.touch()
    with_files = copy.copy(training)
    with_files.image_set = replace(training.image_set, mask_paths=paths)
    now = views_folder(tmp_path, backbone, with_files, None)
    assert views_folder(tmp_path, backbone, with_files, None) == now
    os.utime(paths[1], (1, 1))
    assert views_folder(tmp_path, backbone, with_files, None) != now


def test_views_of_photographs_that_were_read_otherwise_are_not_used(
    backbone, training, tmp_path, monkeypatch
):
    now = views_folder(tmp_path, backbone, training, None)
    assert views_folder(tmp_path, backbone, training, None) == now
    monkeypatch.setattr("celp_nb.engine.views.READER_FORMAT", 1)
    assert views_folder(tmp_path, backbone, training, None) != now


def test_cached_steps_hold_the_whole_supports_too(backbone, training, tmp_path):
    "The same files with whole supports and without; online features, but for half precision."
    without = list(cached_steps(tmp_path, backbone, training, 2, views=1))
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("views.*")}
    made = list(cached_steps(tmp_path, backbone, training, 2, views=1, whole=True))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("views.*")} == files
    assert len(made) == len(
        without
    ) == 12
    for a, b in zip(without, made):
        assert type(a.support) is Features and type(b.support) is SupportFeatures
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.query + a.support + a[2:], b.query + b.support[:2] + b[2:])
        )
    for n in (0, 7):
        for b in range(2):
            cls, query, support = (int(x[2 * n + b].ravel()[0]) for x in training.episodes)
            (xq, mq), (xs, ms) = (
                augment(
                    read_image(training.image_set, j),
                    training.image_set.read_mask(j),
                    cls,
                    RECIPE,
                    np.random.default_rng([0, j, cls, 0]),
                )
                for j in (query, support)
            )
            q, s = episode_features(
                backbone, xq[None], xs[None, None], binary_mask(ms, cls)[None, None], whole=True
            )
            assert torch.equal(made[n].target[b], binary_mask(mq, cls).long()) and torch.equal(
                made[n].support_mask[b, 0], binary_mask(ms, cls)
            )
            for ours, online in zip(made[n].query + made[n].support, q + s):
                assert (
                    ours.dtype == torch.float32
                    and (ours[b] - online[0]).abs().max() <= 2e-3 * online.abs().max()
                )
            assert (
                s.whole - s.high
            ).abs().max() > 0.1 * s.whole.abs().max()  # the background matters


def test_caches_of_different_backbones_and_recipes_do_not_mix(backbone, training, scenes, tmp_path):
    torch.manual_seed(1)
    other_backbone = load_backbone("tiny", "random")
    other_recipe = TrainingEpisodes(
        scenes, training.episodes, TRAIN_CLASSES, Recipe(side=SIDE, reference=161, blur=3), 0
    )
    other_seed = TrainingEpisodes(scenes, training.episodes, TRAIN_CLASSES, RECIPE, 1)
    edited = scenes.pixels.copy()
    edited[0, 0] += 1  # a mask was painted over
    other_masks = TrainingEpisodes(
        replace(scenes, pixels=edited), training.episodes, TRAIN_CLASSES, RECIPE, 0
    )
    copies = [tmp_path / "images" / p.name for p in scenes.image_paths]
    for p, c in zip(scenes.image_paths, copies):
        c.parent.mkdir(exist_ok=True)
        shutil.copyfile(p, c)
    other_files = TrainingEpisodes(
        replace(scenes, image_paths=copies), training.episodes, TRAIN_CLASSES, RECIPE, 0
    )
    folder, cases = (
        tmp_path / "cache",
        [
            (backbone, training),
            (other_backbone, training),
            (backbone, other_recipe),
            (backbone, other_seed),
            (backbone, other_masks),
            (backbone, other_files),
        ],
    )
    for b, t in cases: next(cached_steps(folder, b, t, 2, views=1))
    next(cached_steps(folder, backbone, training, 2, views=1, precision=torch.bfloat16))
    assert len(list(folder.iterdir())) == len(cases)  # the other seed reads the same views


def test_lower_precision_is_used_and_close(backbone, training):
    exact, lower = (
        next(online_steps(backbone, training, 2, precision=p)) for p in (None, torch.bfloat16)
    )
    assert (
        exact.query.high.dtype == torch.float32
        and lower.query.high.dtype == lower.support.mid.dtype == torch.bfloat16
    )
    for a, b in zip(exact.query + exact.support, lower.query + lower.support):
        assert 0 < (a - b).abs().max() <= 0.05 * a.abs().max()
