"""The explorer without a browser.

Its pictures are those of the equations, its controls are connected, and mistakes become sentences.
"""

import html
import io
import json
import re
import threading
import time
from datetime import datetime
from types import SimpleNamespace

import ipywidgets as W
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from celp_nb.app import cli as app_cli
from celp_nb.app import explorer_choice
from celp_nb.app.explorer import image_panel
from celp_nb.app.explorer_choice import LatestOnly, load_fold_models, model_or_none
from celp_nb.app.explorer_pictures import (
    episode_pictures,
    map_pictures,
    nearest_upsample,
    pseudo_png,
)
from celp_nb.app.explorer_state import (
    decode_upload,
    draw_candidate,
    drawn_mask,
    latent_prediction,
    prepare_image,
    rank_similarities,
    ranked_count,
    read_corners,
    slider_maps,
)
from celp_nb.app.explorer_widgets import Picture, image_controls, place_on_picture, position_at
from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import fold_classes, pairs_per_class
from celp_nb.data.images import read_image
from celp_nb.data.transforms import known_mask
from celp_nb.engine.backbones import backbone_or_tiny, load_backbone
from celp_nb.engine.feature_bank import feature_bank
from celp_nb.latent import DELTA, candidates, sample_latent
from celp_nb.ops import VOID
from celp_nb.similarity import known_positions, self_similarity, similar_count

VAL = samples("val")
NOVEL = fold_classes(len(VAL.class_names), 0)
TRAINING = [c for c in range(1, len(VAL.class_names) + 1) if c not in NOVEL]


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
    drawn = pixels(map_pictures(image.photo, known, maps)["pseudo-mask"][0]).astype(int)
    red, blue = drawn[..., 0] - drawn[..., 2] > 100, drawn[..., 2] - drawn[..., 0] > 100
    assert (torch.from_numpy(red) == (pseudo[0] == 1)).all()
    assert (torch.from_numpy(blue) == (pseudo[0] == 0)).all()


def test_padding_is_neither_candidate_nor_region_nor_answer():
    "An image of 161×75 pixels: its edge lies between two columns of positions."
    noise = np.random.default_rng(0).integers(0, 256, (161, 75, 3), dtype=np.uint8)
    wide = prepare_image(load_backbone("tiny"), noise, np.zeros((161, 75), np.uint8), 161)
    padding, size = wide.padding[0], tuple(wide.features.mid.shape[-2:])
    columns = int((~padding[0]).sum())
    assert 60 < columns < 76 and padding[:, columns:].all() and not padding[:, :columns].any()
    known = rank_similarities(wide.D, drawn_mask("nothing", [], wide.class_map), size)
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


def test_draws_are_uniform_candidates_and_repeatable():
    P = torch.zeros(4, 5, dtype=torch.bool)
    assert draw_candidate(P, 0) is None
    P[1, 2] = P[3, 4] = P[0, 0] = True
    drawn = [draw_candidate(P, seed) for seed in range(300)]
    assert set(drawn) == {7, 19, 0} and min(drawn.count(i) for i in (7, 19, 0)) > 70
    assert drawn[:5] == [draw_candidate(P, seed) for seed in range(5)]


def test_every_pixel_gets_its_nearest_position():
    values = np.arange(9).reshape(3, 3)
    big = nearest_upsample(values, 17)
    assert big.shape == (17, 17) and (big[::8, ::8] == values).all()
    assert set(big[:, 0][:4]) == {0} and set(big[:, 0][5:12]) == {3}


@pytest.mark.parametrize("size", [(21, 21), (60, 60), (5, 9)])
def test_a_click_on_a_position_finds_it(size):
    for point in [(0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, 1)]:
        assert position_at(*place_on_picture(point, size), size) == point
    assert position_at(-0.1, 1.2, size) == (size[0] - 1, 0)


def test_a_box_and_a_polygon_become_masks():
    void = torch.zeros(20, 20, dtype=torch.uint8)
    void[15:] = 255
    box = drawn_mask("box", read_corners("2,3 10,5", 20), void)
    assert (box == 1).sum() == 9 * 3 and box[2, 3] == box[10, 5] == 1 and (box[15:] == 255).all()
    assert torch.equal(box, drawn_mask("box", [(10, 5), (2, 3)], void))
    triangle = drawn_mask("polygon", [(0, 0), (0, 10), (10, 0)], void)
    assert triangle[1, 1] == 1 and triangle[9, 9] == 0
    for shape, corners in [("nothing", []), ("box", [(1, 1)]), ("polygon", [(1, 1), (2, 2)])]:
        assert not (drawn_mask(shape, corners, void) == 1).any()


@pytest.mark.parametrize(
    "text, quoted",
    [("5", "5"), ("1,2 3;4", "3;4"), ("1,20", "1,20"), ("-1,3", "-1,3"), ("a,b", "a,b")],
)
def test_a_corner_that_is_none_is_quoted(text, quoted):
    with pytest.raises(ValueError, match=f"'{re.escape(quoted)}' is no corner"):
        read_corners(text, 20)


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


def test_a_backbone_that_is_not_to_be_had_costs_a_sentence(tmp_path):
    backbone, text = backbone_or_tiny("resnet50", str(tmp_path / "none.pth"))
    assert backbone.name == "tiny" and "instead of resnet50" in text and "none.pth" in text
    model, side, _, text = model_or_none(str(tmp_path / "none.pt"), backbone)
    assert model is None and side == 161 and "none.pt" in text


def test_an_episode_says_each_score_and_shows_each_picture():
    models, backbone, side, *_ = load_fold_models("")
    episodes = pairs_per_class(VAL.pixels, NOVEL, 1, 1, seed=0)
    memory = feature_bank(backbone, VAL, side, 0.1)
    pictures = episode_pictures(memory, models, VAL, episodes, 2, TRAINING)
    assert list(pictures) == ["support", "query", "prior", "PFENet", "PFENet+CE"]
    for method in models:
        png, caption = pictures[method]
        assert re.search(r"IoU \d+\.\d %", caption)
        assert pixels(png).shape == read_image(VAL, int(episodes.query[2])).shape


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


# --- the panel


def widgets_in(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_in(child)


class Panel:
    "A panel's controls by label and pictures by name."

    def __init__(self, panel):
        widgets = list(widgets_in(panel))
        self.lines = [w for w in widgets if isinstance(w, W.HTML)]
        self.picture = {w.name: w for w in widgets if isinstance(w, Picture)}
        labelled = [w for w in widgets if getattr(w, "description", "") and w not in self.lines]
        self.control = {w.description: w for w in labelled}

    @property
    def text(self):
        return html.unescape(" ".join(w.value for w in self.lines))

    def wait(self, true, what):
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, f"{what}; the panel says: {self.text}"
            time.sleep(0.02)

    def wait_for_pseudo_mask(self, image, delta, what, point=None, known=None):
        "Wait for the pseudo-mask of a point; without one, of the point that the controls show."

        def is_shown():
            at = point or self.point()
            shown = self.picture["pseudo-mask"].png
            return self.point() == at and shown == expected_pseudo(image, at, delta, known)

        self.wait(is_shown, what)

    def point(self):
        return self.control["Row"].value, self.control["Column"].value


@pytest.fixture
def panel():
    panel = Panel(image_panel(VAL, TRAINING, 0))

    def has_prediction():
        caption = panel.picture["prediction"].caption
        return "prediction: the" in caption or "empty" in caption

    panel.wait(has_prediction, "no first prediction")
    return panel


def expected_pseudo(image, point, delta, known=None):
    mask = known_mask(image.class_map, TRAINING) if known is None else known
    centre = torch.tensor([point[0] * 21 + point[1]])
    high = image.features.high
    pseudo, _ = sample_latent(high, mask[None], centre=centre, delta=delta, sigma=0)
    return pseudo_png(image.photo, pseudo)


def test_every_control_has_a_label_and_a_tip():
    controls = image_controls(VAL)
    assert all(c.description and c.tooltip for c in controls.values())
    assert len({c.description for c in controls.values()}) == len(controls)


def test_the_slider_moves_the_pseudo_mask(panel, image):
    point = panel.point()
    for delta in (0.3, 0.8, 0.9):
        panel.control["δ"].value = delta
        panel.wait_for_pseudo_mask(image, delta, f"no pseudo-mask for {delta}", point)
    assert panel.point() == point


def test_forty_moves_while_one_is_worked_on_are_one_more(panel, image, monkeypatch):
    gate, started, deltas = threading.Event(), threading.Event(), []

    def slow_maps(*args):
        deltas.append(args[-2])
        started.set()
        gate.wait(30)
        return slider_maps(*args)

    monkeypatch.setattr(explorer_choice, "slider_maps", slow_maps)
    moves = [k / 50 for k in range(1, 41)]
    panel.control["δ"].value = moves[0]
    assert started.wait(30)
    for delta in moves[1:]:
        panel.control["δ"].value = delta
    gate.set()
    panel.wait_for_pseudo_mask(image, moves[-1], "the last move is not shown")
    assert deltas == [moves[0], moves[-1]]


def test_sigma_moves_the_candidates_alone(panel, image):
    before = panel.picture["pseudo-mask"].png
    panel.control["σ"].value = 150
    known = known_positions(known_mask(image.class_map, TRAINING)[None], (21, 21))
    P = int(candidates(similar_count(image.D, known, DELTA), known, 150).sum())
    panel.wait(
        lambda: f"green, {P} of 441" in panel.picture["candidates"].caption,
        f"not {P} candidates",
    )
    assert panel.picture["pseudo-mask"].png == before


def test_a_click_a_row_and_a_draw_set_the_point(panel, image):
    x, y = place_on_picture((4, 9), (21, 21))
    panel.picture["photograph"]._handle_custom_msg({"x": x, "y": y}, [])
    panel.wait_for_pseudo_mask(image, DELTA, "the click", (4, 9))
    panel.control["Row"].value = 15
    panel.wait_for_pseudo_mask(image, DELTA, "the row", (15, 9))
    panel.control["Draw again"].click()
    panel.wait(lambda: panel.point() != (15, 9), "the draw")
    drawn = panel.point()
    panel.control["δ"].value = 0.4
    panel.wait_for_pseudo_mask(image, 0.4, "the drawn point stays", drawn)


def test_corners_are_clicked_or_written_and_a_wrong_one_is_a_sentence(panel, image):
    panel.control["Known"].value = "box"
    panel.control["A click"].value = "corner"
    for place in [(0.25, 0.25), (0.5, 0.75)]:
        panel.picture["photograph"]._handle_custom_msg({"x": place[0], "y": place[1]}, [])
    assert panel.control["Corners"].value == "40,40 120,80"
    box = drawn_mask("box", [(40, 40), (120, 80)], image.class_map)
    panel.wait_for_pseudo_mask(image, DELTA, "the box", known=box)
    panel.control["Corners"].value = "40,40 900,80"
    panel.wait(lambda: "'900,80' is no corner" in panel.text, "no sentence")


def upload(panel, name, content):
    file = {
        "name": name,
        "type": "image/png",
        "size": len(content),
        "content": memoryview(content),
        "last_modified": datetime.now(),
    }
    panel.control["Upload an image"].set_trait("value", (file,))


def test_a_bad_upload_is_a_sentence_and_a_good_one_an_image(panel):
    before = {name: p.png for name, p in panel.picture.items()}
    upload(panel, "<b>notes</b>.txt", b"no picture")
    assert "'<b>notes</b>.txt' cannot be read as an image" in panel.text
    assert "<b>notes" not in panel.lines[1].value
    assert {name: p.png for name, p in panel.picture.items()} == before
    upload(panel, "red.png", png_file())
    assert "cannot be read" not in panel.text
    panel.wait(
        lambda: (pixels(panel.picture["photograph"].png)[20, 20] == (200, 30, 30)).all(),
        "the upload is not shown",
    )
    assert panel.control["Image"].label == "red.png (uploaded)"


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
    assert "explorer()" in json.loads(page.read_text())["cells"][0]["source"]
    installed(monkeypatch, "jupyterlab")
    command = app_cli.page_server(tmp_path, 8901, browser=False)
    assert command[2] == "jupyterlab" and command[-1] == "--no-browser"
    assert command[3].endswith("51_explorer.ipynb")
    assert not any("cull" in option for option in command)  # a reload finds its kernel again


def test_explore_without_either_names_the_extra(monkeypatch, capsys):
    installed(monkeypatch)
    assert app_cli.main(["explore"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "celp_nb[explore]" in error
