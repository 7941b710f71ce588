"""The explorer without a browser.

Its pictures are those of the equations, its controls are connected, and mistakes become sentences.
"""

import io
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.app import cli as app_cli
from celp_nb.app.episode_panel import (
    MODEL_FILES,
    episode_panel,
    episode_text,
    find_model_files,
    list_scores,
    load_fold_models,
    median_episode,
)
from celp_nb.app.explorer import chosen_image, explorer, first_choice, image_panel, show_image
from celp_nb.app.explorer_pictures import episode_pictures, nearest_upsample
from celp_nb.app.explorer_state import (
    decode_upload,
    latent_prediction,
    panel_model,
    prepare_image,
    rank_similarities,
    ranked_count,
    scenes_model,
    slider_maps,
)
from celp_nb.app.latent_answer import panel_state
from celp_nb.app.latent_payload import equal_runs, page_features, run_values, scene_classes
from celp_nb.app.latent_widget import LatentWidget
from celp_nb.app.latest_only import LatestOnly
from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import known_mask
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.checkpoints import BUNDLED, load_checkpoint, save_checkpoint
from celp_nb.engine.pretrained import PRETRAINED, first_offered
from celp_nb.latent import DELTA, SIGMA, candidates, sample_latent
from celp_nb.ops import VOID
from celp_nb.similarity import self_similarity, similar_count

VAL = samples("val")
NOVEL, TRAINING = scene_classes(VAL, panel_model(scenes_model(), "").trained)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def image():
    return prepare_image(load_backbone("tiny"), read_image(VAL, 0), VAL.read_mask(0), 161)


def pixels(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def png_file(size=(40, 30), colour=(200, 30, 30), exif=None):
    out, image = io.BytesIO(), Image.new("RGB", size, colour)
    if exif:
        image.save(out, "JPEG", exif=exif)
    else:
        image.save(out, "PNG")
    return out.getvalue()


# --- functions


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.integers(0, 10_000), st.floats(-0.99, 0.99))
def test_counting_by_bisection_is_equation_2(h, w, seed, delta):
    rng = torch.Generator().manual_seed(seed)
    few_values = torch.randint(-1, 2, (1, 3, h, w), generator=rng)  # so that there are many ties
    D = self_similarity(few_values.float())
    mask = torch.randint(0, 2, (h * 3, w * 3), generator=rng).to(torch.uint8)
    known = rank_similarities(D, mask, (h, w))
    entry = float(D.flatten()[seed % D.numel()].clamp(-0.99, 0.99))
    for at in (delta, entry):
        assert torch.equal(ranked_count(known.ranked, at), similar_count(D, known.positions, at))


@pytest.mark.parametrize("delta, sigma, i", [(0.65, 11, 230), (-0.5, 0, 3), (0.95, 300, 100)])
def test_maps_are_those_of_the_equations(image, delta, sigma, i):
    size = tuple(image.features.high.shape[-2:])
    known = rank_similarities(image.D, known_mask(image.class_map, TRAINING), size)
    maps = slider_maps(image, known, image.features.mid, i, delta, sigma)
    assert torch.equal(maps.row.flatten(), image.D[0, i])
    N = similar_count(image.D, known.positions, delta)
    assert torch.equal(maps.candidate.flatten(), candidates(N, known.positions, sigma)[0])
    pseudo, _ = sample_latent(
        image.features.high, known.mask, centre=torch.tensor([i]), delta=delta, sigma=sigma
    )
    assert torch.equal(maps.pseudo, pseudo)


def test_padding_is_neither_candidate_nor_region_nor_answer():
    "An image of 161×75 pixels: its edge lies between two columns of positions."
    noise = np.random.default_rng(0).integers(0, 256, (161, 75, 3), dtype=np.uint8)
    wide = prepare_image(load_backbone("tiny"), noise, np.zeros((161, 75), np.uint8), 161)
    padding, size = wide.padding[0], tuple(wide.features.mid.shape[-2:])
    columns = int((~padding[0]).sum())
    assert 60 < columns < 76 and padding[:, columns:].all() and not padding[:, :columns].any()
    known = rank_similarities(wide.D, known_mask(wide.class_map, []), size)
    last = (columns - 1) // 8  # column of positions, the last inside of the image
    seen = []
    def decoder(cond):
        seen.append(cond.padding)
        return torch.stack([cond.prior[:, 0] * 0, cond.prior[:, 0] + 1], 1), None  # all foreground
    maps = slider_maps(wide, known, wide.features.mid, last, -0.99, 0)
    assert maps.candidate[:, : last + 1].any() and not maps.candidate[:, last + 1 :].any()
    assert (maps.pseudo[0] == 1)[:, columns - 1].any() and (maps.pseudo[0][padding] == VOID).all()
    answer = latent_prediction(SimpleNamespace(decoder=decoder), maps.latent, wide.padding)
    assert torch.equal(answer, ~padding) and (seen[0] & wide.padding).sum() == padding.sum()


def test_a_threshold_that_no_cosine_reaches_is_refused(image):
    known = rank_similarities(image.D, image.class_map * 0, (21, 21))
    with pytest.raises(ValueError, match="delta is 1.0"):
        slider_maps(image, known, image.features.mid, 0, 1.0, 0)


def test_every_pixel_gets_its_nearest_position():
    values = np.arange(9).reshape(3, 3)
    big = nearest_upsample(values, 17)
    assert big.shape == (17, 17) and (big[::8, ::8] == values).all()
    assert set(big[:, 0][:4]) == {0} and set(big[:, 0][5:12]) == {3}


def test_uploads():
    image = decode_upload("a.png", png_file())
    assert image.shape == (30, 40, 3) and (image == (200, 30, 30)).all()
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode_upload("phone.jpg", png_file(exif=turned)).shape == (40, 30, 3)
    bad = {"notes.txt": b"no picture", "cut.png": png_file()[:60], "empty.png": b""}
    for name, content in bad.items():
        with pytest.raises(ValueError, match=f"'{name}' cannot be read as an image"):
            decode_upload(name, content)
    with pytest.raises(ValueError, match="'dot.png' has 3×4 pixels"):
        decode_upload("dot.png", png_file((4, 3)))


def test_page_features_keep_the_cosines():
    "Features of rank 20, with a position of zeros, in 40 channels: 20 are enough."
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(40, 20, generator=rng) @ torch.randn(20, 54, generator=rng)
    features[:, 7] = 0
    features = features.unflatten(1, (6, 9))
    few = page_features(features, 20)
    assert few.shape == (20, 6, 9) and not few[:, 0, 7].abs().max() > 1e-6
    before, after = self_similarity(features[None]), self_similarity(few[None])
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
    assert page_features(features, 40) is features


def test_an_episode_says_each_score_and_shows_each_picture():
    fold = load_fold_models("", VAL)
    episodes = pairs_per_class(VAL.pixels, NOVEL, 1, 1, seed=0)
    pictures = episode_pictures(fold.memory, fold.models, VAL, episodes, 2, TRAINING)
    assert list(pictures) == ["support", "query", "prior", *BUNDLED[0]]
    for method in fold.models:
        png, caption = pictures[method]
        assert re.fullmatch(rf"{re.escape(method)}: prediction .*, IoU \d+\.\d %", caption)
        assert pixels(png).shape == read_image(VAL, int(episodes.query[2])).shape


def fold_folder(folder, names):
    "A fold's folder with these files, each saying the method of its name."
    folder.mkdir()
    for name in names:
        method = name.removesuffix(".pt")
        bundled = BUNDLED[0]["PFENet" if method == "PFENet" else "PFENet+CE contrast=1"]
        save_checkpoint(folder / name, **load_checkpoint(bundled) | {"method": method})
    return str(folder)


BOTH_CE = ("PFENet+CE.pt", "PFENet+CE contrast=1.pt")


@pytest.mark.parametrize("of_ce, shown", [(BOTH_CE, BOTH_CE[1]), (BOTH_CE[:1], BOTH_CE[0]),
                                          (BOTH_CE[1:], BOTH_CE[1])])
def test_a_folder_shows_ce_with_weight_1_where_it_is_there(tmp_path, of_ce, shown):
    folder = fold_folder(tmp_path / "fold0", ("PFENet.pt", *of_ce))
    assert find_model_files(folder) == [Path(folder, "PFENet.pt"), Path(folder, shown)]
    fold = load_fold_models(folder, VAL)
    assert list(fold.models) == ["PFENet", shown.removesuffix(".pt")]
    assert f"Models of {folder}, on tiny." == fold.words


@pytest.mark.parametrize(
    "names, lacks",
    [
        (("PFENet.pt",), "PFENet+CE contrast=1.pt and no PFENet+CE.pt"),
        (BOTH_CE, "PFENet.pt"),
        ((), "PFENet.pt"),
    ],
)
def test_a_folder_that_lacks_a_model_is_one_sentence(tmp_path, names, lacks):
    folder = fold_folder(tmp_path / "fold0", names)
    with pytest.raises(FileNotFoundError) as refused:
        load_fold_models(folder, VAL)
    assert str(refused.value).startswith(f"there is no {lacks} in {folder}; give the folder of a")
    assert "\n" not in str(refused.value)


def test_two_files_of_one_method_are_refused(tmp_path):
    folder = fold_folder(tmp_path / "fold0", ("PFENet.pt", "PFENet+CE.pt"))
    Path(folder, "PFENet+CE.pt").write_bytes(Path(folder, "PFENet.pt").read_bytes())
    with pytest.raises(ValueError, match="are both of PFENet; train again"):
        load_fold_models(folder, VAL)


def test_each_checkpoint_is_read_once(monkeypatch):
    read = []

    def counted(path, *args, **options):
        read.append(Path(path))
        return torch_load(path, *args, **options)

    torch_load = torch.load
    monkeypatch.setattr(torch, "load", counted)
    panel_model.cache_clear()
    load_fold_models("", VAL)
    assert sorted(p for p in read if p.suffix == ".pt") == sorted(BUNDLED[0].values())
    read.clear()
    tab = explorer()
    Panel(tab).wait(lambda: Panel(tab).widget.answer, "no answer")
    assert [p for p in read if p.suffix == ".pt"] == [PRETRAINED[scenes_model()]]


# --- the newest state alone


def test_old_states_are_dropped():
    done, gate, started = [], threading.Event(), threading.Event()

    def job(state, is_outdated):
        started.set()
        gate.wait(10)
        done.append((state, is_outdated()))

    worker = LatestOnly(job)
    worker.submit("first")
    assert started.wait(10)
    for k in range(50):
        worker.submit(k)
    assert not done  # submit has not waited
    gate.set()
    worker.join()
    assert done == [("first", True), (49, False)]


def test_an_exception_in_one_state_does_not_stop_the_next(capsys):
    done = []

    def job(state, is_outdated):
        if state == "bad":
            raise KeyError("a defect")
        done.append(state)

    worker = LatestOnly(job)
    worker.submit("bad")
    worker.join()
    assert "KeyError: 'a defect'" in capsys.readouterr().err
    worker.submit("good")
    worker.join()
    assert done == ["good"]


def test_a_state_that_waits_behind_an_exception_is_done():
    done, gate, started = [], threading.Event(), threading.Event()

    def job(state, is_outdated):
        started.set()
        gate.wait(10)
        done.append(1 / state)

    worker = LatestOnly(job)
    worker.submit(0)
    assert started.wait(10)
    worker.submit(2)
    gate.set()
    worker.join()
    assert done == [0.5]


# --- the panel of one image


class Panel:
    "A panel's controls by label, and its widget."

    def __init__(self, panel):
        widgets = list(widgets_in(panel))
        self.widget = next(w for w in widgets if isinstance(w, LatentWidget))
        self.control = {w.description: w for w in widgets if getattr(w, "description", "")}

    def wait(self, true, what):
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, f"{what}; the panel says: {self.widget.note}"
            time.sleep(0.02)

    def upload(self, name, content):
        "As the page sends it, in two parts."
        half = len(content) // 2
        for at, part in {0: content[:half], half: content[half:]}.items():
            message = {"upload": name, "at": at, "size": len(content)}
            self.widget._handle_custom_msg(message, [memoryview(part)])

    def answered(self):
        "Wait for the decoder's answer for what is shown now."
        self.wait(lambda: self.widget.answer.get("of") == panel_state(self.widget), "no answer")
        return run_values(self.widget.answer["runs"], self.shown["side"])

    @property
    def shown(self):
        return self.widget.payloads[self.widget.image]


def widgets_in(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_in(child)


@pytest.fixture
def panel():
    return Panel(image_panel(*first_choice()))


def test_every_control_has_a_label_and_a_tip(panel):
    assert list(panel.control) == ["Image", "Model", "File", "Weights"]
    assert all(control.tooltip for control in panel.control.values())
    assert len(panel.control["Image"].options) == len(VAL.ids)


def test_it_begins_with_a_hidden_object_and_an_answer(panel):
    assert "(not annotated)" in panel.control["Image"].label
    i, row_column = panel.control["Image"].value, divmod(panel.shown["centre"], 21)
    hidden = np.isin(VAL.read_mask(i), NOVEL)
    assert hidden[row_column[0] * 8, row_column[1] * 8] and 0 < panel.answered().mean() < 1
    assert panel.widget.upload_limit == 32 * 2**20 and "21×21 positions" in panel.widget.note


def test_another_image_is_shown_from_its_own_centre(panel):
    panel.control["Image"].value = 7
    panel.wait(lambda: panel.widget.image.startswith(VAL.ids[7]), "no other image")
    panel.answered()
    assert panel.widget.centre == panel.shown["centre"] and len(panel.widget.payloads) == 1


def test_the_decoder_is_asked_about_the_image_that_is_shown_alone():
    choices, first = first_choice()
    widget, images, seen = image_panel(choices, first).children[1], {"before": None}, []
    name, shown, _ = chosen_image(first._replace(source=9), choices)
    widget.observe(lambda _: seen.append(dict(images)), ["payloads", "image", "centre"])
    show_image(widget, images, name, shown)
    assert seen and not any(seen) and images == {name: shown}


def test_features_alone_have_no_answer_and_a_mistake_is_a_sentence(panel, tmp_path):
    panel.control["Model"].value = "features of tiny"
    panel.wait(lambda: "without a decoder" in panel.widget.note, "no features")
    assert panel.widget.decoder == "" and panel.shown["mid"]["channels"] == 240
    before = panel.widget.image, panel.widget.payloads
    panel.control["Model"].value = "another file"
    assert "in the line 'File'" in panel.widget.note
    panel.control["File"].value = str(tmp_path / "gone.pt")
    panel.wait(lambda: "gone.pt" in panel.widget.note, "no sentence")
    assert (panel.widget.image, panel.widget.payloads) == before
    panel.control["File"].value = str(PRETRAINED[scenes_model()])
    panel.wait(lambda: panel.widget.decoder, "no model")
    panel.answered()


def test_a_model_begins_with_the_thresholds_of_its_training(tmp_path):
    saved = load_checkpoint(PRETRAINED[scenes_model()])
    for name in ("delta", "sigma"): del saved[name]  # an older file has none

    def trained_with(name, **facts):
        save_checkpoint(tmp_path / name, **saved | facts)
        return str(tmp_path / name)

    low = trained_with("low.pt", method="PFENet+CE delta=0.25", delta=0.25, sigma=4)
    choices, first = first_choice(model=low)
    panel = Panel(image_panel(choices, first))

    def says(words):
        panel.wait(lambda: words in panel.widget.note, f"not {words}")
        return panel.widget.delta, panel.widget.sigma

    def show_file(path, words):
        panel.control["File"].value = path
        return says(words)

    assert says("tiny, trained with δ = 0.25 and σ = 4; 161 pixels") == (0.25, 4)
    panel.widget.delta, panel.widget.sigma = 0.4, 7
    panel.control["Image"].value = 7
    panel.wait(lambda: panel.widget.image.startswith(VAL.ids[7]), "no other image")
    assert (panel.widget.delta, panel.widget.sigma) == (0.4, 7)  # the same model
    older = trained_with("older.pt", method="PFENet+CE delta=0.5 sigma=3")  # its name says it
    assert show_file(older, "trained with δ = 0.5 and σ = 3") == (0.5, 3)
    without = trained_with("without.pt", method="PFENet")
    assert show_file(without, "trained without δ and σ") == (DELTA, SIGMA)
    share = trained_with("share.pt", method="PFENet+CE share=0.1")
    assert "a δ for each image and σ = 11" in panel_model(share, "").words
    show_file(low, "trained with δ = 0.25 and σ = 4")
    show_file(trained_with("wrong.pt", delta=3.0), "wrong.pt: delta is 3.0")
    assert panel.widget.delta == 0.25
    show_file(trained_with("minus.pt", sigma=-1), "minus.pt holds no trained model ('sigma' is -1")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("notes.png", b"no picture", "'notes.png' cannot be read as an image"),
        ("cut.png", png_file()[:60], "'cut.png' cannot be read as an image"),
        ("empty.png", b"", "'empty.png' cannot be read as an image"),
        ("dot.png", png_file((4, 3)), "'dot.png' has 3×4 pixels"),
        ("huge.png", bytes(32 * 2**20 + 1), "'huge.png' is larger than 32 MB"),
    ],
)
def test_a_refused_upload_is_a_sentence_and_the_panel_goes_on(panel, name, content, words):
    before = panel.widget.image, panel.widget.payloads, panel.control["Image"].options
    panel.upload(name, content)
    assert words in panel.widget.note and "\n" not in panel.widget.note
    after = panel.widget.image, panel.widget.payloads, panel.control["Image"].options
    assert before == after
    panel.upload("red.png", png_file())
    panel.wait(lambda: panel.widget.image.startswith("red_1"), "the upload is not shown")


def test_an_upload_that_stopped_half_way_is_begun_again(panel):
    content = png_file()
    message = {"upload": "red.png", "at": 0, "size": len(content)}
    panel.widget._handle_custom_msg(message, [memoryview(content[:50])])
    assert panel.control["Image"].value >= 0  # nothing yet
    panel.upload("red.png", content)
    panel.wait(lambda: panel.widget.image.startswith("red_1"), "the upload is not shown")


def test_an_upload_is_shown_without_its_padding_and_the_same_file_twice(panel):
    portrait = png_file((60, 120))
    for k in (1, 2):
        panel.upload("red.i.png", portrait)
        panel.wait(lambda k=k: panel.widget.image == f"red.i_{k}_161", "the upload is not shown")
        assert panel.control["Image"].label == f"red.i.png (uploaded, {k})"
        assert panel.shown["photo_size"] == [120, 60] and panel.shown["known_classes"] == []
        rows, columns = panel.shown["extent"]
        assert rows == 161 and columns < 100 and panel.shown["centre"] % 21 * 8 < columns
        assert not panel.answered()[:, columns:].any()
        assert "do not trust the mask" in panel.widget.note  # of a photograph, by a model of scenes


def test_a_larger_square_keeps_no_drawing_of_a_smaller_one(panel, tmp_path):
    panel.widget.drawn = {panel.widget.image: equal_runs(np.ones((161, 161), int))}
    panel.widget.known = "drawn"
    save_checkpoint(tmp_path / "large.pt", **load_checkpoint(PRETRAINED[scenes_model()])
                    | {"side": 169})
    panel.control["File"].value = str(tmp_path / "large.pt")
    panel.control["Model"].value = "another file"
    panel.wait(lambda: panel.shown["side"] == 169, "no larger square")
    assert panel.answered().shape == (169, 169) and not panel.widget.drawn_mask().any()


# --- which images


def test_a_folder_of_photographs_and_a_data_set(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("b.png", "a.png"): (tmp_path / "photos" / name).write_bytes(png_file())
    choices, first = first_choice(str(tmp_path / "photos"))
    assert choices.titles == ["a.png", "b.png"] and choices.known == []
    assert first.source == 0 and first.model == first_offered()
    name, shown, _ = chosen_image(first._replace(model=scenes_model()), choices)
    assert name == "a.png_161" and set(shown.image.class_map.unique().tolist()) <= {0, VOID}
    voc_folder(tmp_path / "scenes")
    choices, _ = first_choice(str(tmp_path / "scenes"))
    assert choices.known == list(range(6, 21))  # fold 0 tests the others
    assert "(not annotated)" in choices.titles[choices.first]
    with pytest.raises(FileNotFoundError, match="gone: no such folder"):
        first_choice(str(tmp_path / "gone"))
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no photograph"):
        first_choice(str(tmp_path / "none"))


def voc_folder(root):
    "Four scenes in VOC layout."
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(read_image(VAL, i)).save(root / "JPEGImages" / f"{VAL.ids[i]}.jpg")
        mask = Image.fromarray(VAL.read_mask(i).astype(np.uint8))
        mask.save(root / "SegmentationClass" / f"{VAL.ids[i]}.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n".join(VAL.ids[:4]))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(VAL.ids[:4]))
    (root / "classes.txt").write_text("\n".join(VAL.class_names))


# --- the panel of one episode


def table_of(gains):
    "Counts of two methods: episode e gains `gains[e]` of 100 points."
    rows = []
    for e, gain in enumerate(gains):
        for method, inter in (("A", 50), ("B", 50 + gain)):
            rows.append({"method": method, "shots": 1, "episode": e, "cls": 1 + e % 2, "query": e,
                         "inter_fg": inter, "union_fg": 100, "inter_bg": 900, "union_bg": 950,
                         "predicted": 80, "on_known": 10, "valid": 1000})
    return pd.DataFrame(rows)


def test_the_median_episode_stands_in_the_middle():
    found = list_scores(table_of([40, -30, 5, 6, -2, 7]))
    assert median_episode(found.gain) == 2 and found.iou.loc[0].tolist() == [50, 90]
    text = episode_text(found, 2)
    assert "Over all 6 episodes: A 50.0 %, B 54.3 % mIoU, a difference of +4.3 points" in text
    assert "This episode: 50.0 % and 55.0 %, +5.0 points; 2 of the 6 episodes" in text
    assert median_episode(found.gain[::-1]) == 2  # whatever their order


def test_the_episode_panel_begins_with_the_median_and_says_both_scores(tmp_path):
    panel = episode_panel(VAL, NOVEL, TRAINING, per_class=2)
    control = {w.description: w for w in widgets_in(panel) if getattr(w, "description", "")}
    message = panel.children[1]

    def says(words):
        end = time.monotonic() + 60
        while words not in message.value:
            assert time.monotonic() < end, message.value
            time.sleep(0.02)
        return message.value

    first = says("Over all 10 episodes")
    assert re.search("; [3456] of the 10 episodes have a smaller difference", first)  # not its ends
    shown = control["Class"].value, control["Episode"].value

    def captions():
        "What stands below the pictures, by their names."
        return {
            re.search('data-name="(.*?)"', w.value)[1]: re.search('alt="(.*?)"', w.value)[1]
            for w in panel.children[2].children
        }

    def methods():
        assert list(captions()) == ["support", "query", "prior", *MODEL_FILES]
        return [captions()[name].split(":")[0] for name in MODEL_FILES]

    assert methods() == [*BUNDLED[0]] and "IoU" in captions()["with CE"]
    control["Next episode"].click()
    control["Own models"].value = "runs/none/fold0"
    says("there is no PFENet.pt in runs/none/fold0;")
    assert [captions()[name] for name in MODEL_FILES] == [
        "without CE: no prediction", "with CE: no prediction"
    ]
    folder = fold_folder(tmp_path / "fold0", ("PFENet.pt", "PFENet+CE.pt"))
    control["Own models"].value = folder
    assert ": PFENet 3" in says(f"Models of {folder}")
    assert methods() == ["PFENet", "PFENet+CE"]
    control["Own models"].value = ""
    says("Models of the package")
    assert methods() == [*BUNDLED[0]]
    assert (control["Class"].value, control["Episode"].value) == shown


# --- celp explore


def installed(monkeypatch, *names):
    monkeypatch.setattr(
        app_cli.importlib.util, "find_spec", lambda name: name if name in names else None
    )


def test_explore_prefers_voila_then_jupyterlab(monkeypatch, tmp_path):
    installed(monkeypatch, "voila", "jupyterlab")
    command = app_cli.page_server(tmp_path, 8901, browser=True)
    page = tmp_path / "explorer.ipynb"
    assert command[2:4] == ["voila", str(page)] and "--no-browser" not in command
    assert "--MappingKernelManager.cull_idle_timeout=60" in command  # a closed page's kernel ends
    assert not any("cull_connected" in option for option in command)  # an open page's does not
    assert "--Voila.tornado_settings={'disable_check_xsrf': True}" in command  # ends it at once
    source = json.loads(page.read_text())["cells"][0]["source"]
    assert "explorer(*())" in source and f"os.chdir({str(Path.cwd())!r})" in source
    installed(monkeypatch, "jupyterlab")
    command = app_cli.page_server(tmp_path, 8901, browser=False)
    assert command[2] == "jupyterlab" and command[-1] == "--no-browser"
    assert command[3].endswith("51_explorer.ipynb")
    assert not any("cull" in option for option in command)  # a reload finds its kernel again
    command = app_cli.page_server(tmp_path, 8901, False, "photos", "", "")  # not the chapter
    assert command[3] == str(page) and "('photos', '', '')" in page.read_text()


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_cannot_be_is_refused(capsys, port):
    assert app_cli.main(["explore", "--port", port]) == 1
    assert f"port is {port}; give a number from 0 to 65535" in capsys.readouterr().err


def test_explore_without_either_names_the_extra(monkeypatch, capsys):
    installed(monkeypatch)
    assert app_cli.main(["explore"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "celp_nb[explore]" in error


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "gone"], "gone: no such folder"),
        (["--model", "gone.pt"], "there is no checkpoint gone.pt"),
        (["--weights", "gone.pth"], "gone.pth"),
    ],
)
def test_a_mistake_of_explore_starts_no_server(monkeypatch, tmp_path, capsys, options, words):
    installed(monkeypatch, "voila")
    monkeypatch.setattr(app_cli.subprocess, "run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.chdir(tmp_path)
    assert app_cli.main(["explore", *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
