"""The panel of Eq. (1) to Eq. (9): its traits, its one file, and the page in a browser."""

import base64
import importlib.util
import re
import shutil
import subprocess

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image as PILImage

from celp_nb.app.explorer_pictures import VIRIDIS
from celp_nb.app.explorer_state import PanelModel
from celp_nb.app.latent_payload import (
    dequantise,
    equal_runs,
    panel_image,
    photo_mask,
    run_values,
    scene_payloads,
)
from celp_nb.app.latent_widget import joined_module, latent_widget, static_page
from celp_nb.conditioning import latent_prior, prototype
from celp_nb.data.rules import STRICT
from celp_nb.data.transforms import known_mask
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.methods import build_model
from celp_nb.engine.segmenter import object_mask
from celp_nb.latent import candidates, sample_latent
from celp_nb.ops import VOID
from celp_nb.similarity import known_positions, self_similarity, similar_count

NODE = shutil.which("node")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def payloads():
    "Two scenes; the second has fewer columns, so that it has padding."
    first, second = scene_payloads(2).values()
    second["extent"] = [161, 113]
    class_map = np.repeat(second["class_map"][::2], second["class_map"][1::2]).reshape(161, 161)
    class_map[:, 113:] = VOID
    second["class_map"] = np.stack([class_map.ravel(), np.ones(161 * 161, int)], 1).ravel().tolist()
    return {"first": first, "second": second}


# --- traits


def test_a_widget_begins_with_the_first_image_and_its_centre(payloads):
    widget = latent_widget(payloads)
    state = widget.image, widget.centre, widget.delta, widget.sigma
    assert state == ("first", payloads["first"]["centre"], 0.65, 11)
    with pytest.raises(ValueError, match="no image to show"): latent_widget({})


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("delta", 1.0, "a cosine lies between"),
        ("sigma", -1, "choose 0 or more"),
        ("image", "third", "choose of first, second"),
        ("centre", 441, "from 0 to 440"),
        ("centre", -1, "from 0 to 440"),
        ("drawn", {"first": [0, 3]}, "3 pixels does not fit a square of 161×161"),
    ],
)
def test_a_value_without_maps_is_refused(payloads, name, value, words):
    widget = latent_widget(payloads)
    before = getattr(widget, name)
    with pytest.raises(ValueError, match=words): setattr(widget, name, value)
    assert getattr(widget, name) == before


def test_a_slider_can_be_linked(payloads):
    widget, slider = latent_widget(payloads), ipywidgets.FloatSlider(min=0, max=0.99, step=0.01)
    traitlets.link((widget, "delta"), (slider, "value"))
    assert slider.value == 0.65
    slider.value = 0.8
    assert widget.delta == 0.8
    synced = set(widget.keys)
    assert {"payloads", "image", "centre", "delta", "sigma", "drawn", "known"} <= synced


def test_a_drawn_mask_has_the_size_of_the_photograph(payloads):
    widget = latent_widget(payloads)
    assert widget.drawn_mask().shape == (161, 161) and not widget.drawn_mask().any()
    mask = np.zeros((161, 161), np.uint8)
    mask[40:81] = 1
    payload = payloads["second"] | {"photo_size": [322, 226]}  # of the image's 161×113
    widget = latent_widget({"second": payload})
    widget.drawn = {"second": equal_runs(mask)}
    expected = 255 * mask[:, :113].repeat(2, 0).repeat(2, 1)
    assert (widget.drawn_mask() == expected).all()


@pytest.mark.skipif(NODE is None, reason="no node on PATH: apt-get install nodejs")
def test_the_joined_module_is_one_module_with_a_default_export(tmp_path):
    (tmp_path / "latent.mjs").write_text(joined_module(), encoding="utf-8")
    code = "import latent from './latent.mjs'; console.log(typeof latent.render)"
    command = [NODE, "--input-type=module", "-e", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "function", done.stderr
    assert not re.search(r"^import |https?:", joined_module(), re.M)


def test_no_text_of_an_image_ends_the_script(payloads):
    title = "</script><b>a title</b>"
    page = static_page({"first": payloads["first"] | {"title": title}})
    assert page.count("</script>") == 1 and "\\u003c/script>" in page


# --- the page


class Panel:
    "The page in a browser, and the same maps by Python."

    def __init__(self, page, payloads):
        self.page, self.payloads = page, payloads
        self.requests, self.errors = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.note)

    def note(self, message):
        if message.type == "error": self.errors.append(message.text)

    def state(self, name):
        return self.page.evaluate("name => window.explorable.get(name)", name)

    def slider(self, name):
        return self.page.locator(f"input[data-name={name}]")

    def words(self):
        return self.page.locator(".celp-words").inner_text()

    def hand(self):
        return self.page.locator(".celp-hand").inner_text()

    def pixels(self, selector):  # (S, S, 4) uint8
        code = """canvas => {
          const { width, height } = canvas
          const { data } = canvas.getContext('2d').getImageData(0, 0, width, height)
          return btoa(data.reduce((text, byte) => text + String.fromCharCode(byte), ''))
        }"""
        values = base64.b64decode(self.page.locator(selector).evaluate(code))
        side = self.payloads[self.state("image")]["side"]
        return np.frombuffer(values, np.uint8).reshape(side, side, 4)

    def layer(self, name):
        return self.pixels(f"button[data-layer={name}] canvas")

    def colours(self, name):  # (S, S) 1 vermillion, 0 blue, 255 neither
        seen = self.layer(name).astype(int)
        red = seen[..., 0] - seen[..., 2]  # a tint of vermillion has +149, one of blue -125
        return np.where(red > 100, 1, np.where(red < -100, 0, VOID))

    def expected(self):
        "By Python at the panel's state: M′ (S, S); P, row, N and prior (h, w)."
        payload, size = self.payloads[self.state("image")], (21, 21)
        high = dequantise(payload["high"], size)
        runs = payload["class_map"]
        class_map = torch.tensor(np.repeat(runs[::2], runs[1::2]).astype(np.uint8)).view(161, 161)
        known = known_mask(class_map, payload["known_classes"])[None]
        if self.state("known") != "classes": known = self.drawn_known(class_map)[None]
        centre, delta = torch.tensor([self.state("centre")]), self.state("delta")
        pseudo = sample_latent(high, known, centre=centre, delta=delta)[0][0].numpy().copy()
        pseudo[:, payload["extent"][1] :] = VOID
        positions = known_positions(known, size)
        N = similar_count(self_similarity(high), positions, delta)
        P = candidates(N, positions, self.state("sigma")).view(size).numpy()
        mid = dequantise(payload["mid"], size)
        prior = latent_prior(prototype(mid, torch.tensor(pseudo)[None]), mid)[0, 0]
        row = self_similarity(high)[0, centre]
        maps = {"row": row, "count": N / N.max(), "prior": prior}
        return pseudo, P, {name: x.view(size).numpy() for name, x in maps.items()}

    def drawn(self):  # (161, 161) uint8 {0, 1}
        return run_values(self.state("drawn").get(self.state("image"), []), 161)

    def drawn_known(self, class_map):
        "The known pixels where the hand's mask, or nothing, counts as annotated."
        mask = torch.from_numpy(self.drawn()) * (self.state("known") == "drawn")
        return mask.masked_fill(class_map == VOID, VOID)

    def place(self, row, column):
        "The middle of a pixel on the screen."
        box = self.page.get_by_role("application").bounding_box()
        x, y = (column + 0.5) / 161 * box["width"], (row + 0.5) / 161 * box["height"]
        return box["x"] + x, box["y"] + y

    def drag(self, start, end):
        self.page.get_by_role("application").scroll_into_view_if_needed()
        mouse, (x0, y0), (x1, y1) = self.page.mouse, self.place(*start), self.place(*end)
        mouse.move(x0, y0)
        mouse.down()
        for k in range(1, 6): mouse.move(x0 + (x1 - x0) * k / 5, y0 + (y1 - y0) * k / 5)
        mouse.up()

    def shows(self, name, values):
        "A layer has the colours of a map, (h, w) in 0 … 1."
        columns = self.payloads[self.state("image")]["extent"][1]
        nearest = np.floor(np.arange(161) / 8 + 0.5).astype(int)
        index = (values * 255).round().clip(0, 255).astype(int)
        expected = VIRIDIS[index[nearest[:, None], nearest]].astype(int)
        difference = abs(self.layer(name)[..., :3] - expected)[:, :columns]
        assert difference.max() < 12, f"{name}: colours differ by {difference.max()}"

    def agrees(self):
        "M′, and what the sentence says, are Python's."
        payload, (pseudo, P, maps) = self.payloads[self.state("image")], self.expected()
        assert (self.colours("pseudo") == pseudo).all()
        for name, values in maps.items(): self.shows(name, values)
        percent = 100 * (pseudo == 1).sum() / np.prod(payload["extent"])
        row, column = divmod(self.state("centre"), 21)
        words = self.words()
        assert f"row {row}, column {column}" in words, words
        assert f"covers {percent:.1f} % of the image" in words, words
        assert (f"{P.sum()} positions are" if P.any() else "P is empty") in words, words


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None: pytest.skip("no browser: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright not installed: pip install -e '.[dev]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def panel(browser, payloads, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(static_page(payloads), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    panel = Panel(page, payloads)
    page.goto(path.as_uri())
    page.wait_for_function("window.explorable")
    yield panel
    assert not panel.errors
    assert all(url.startswith(("file:", "data:")) for url in panel.requests), "fetched from outside"
    page.close()


browser_test = pytest.mark.browser


@browser_test
def test_the_page_starts_on_a_hidden_object(panel):
    panel.agrees()
    assert set(np.unique(panel.colours("pseudo"))) == {0, 1, VOID}
    assert "an admissible centre" in panel.words()


@browser_test
def test_delta_dragged_changes_maps_and_sentence(panel):
    before = {name: panel.layer(name) for name in ("row", "count", "candidate", "pseudo", "prior")}
    words, box = panel.words(), panel.slider("delta").bounding_box()
    y = box["y"] + box["height"] / 2
    panel.page.mouse.move(box["x"] + 0.65 * box["width"], y)
    panel.page.mouse.down()
    for share in (0.6, 0.5, 0.4, 0.35):
        panel.page.mouse.move(box["x"] + share * box["width"], y)
        assert panel.state("delta") == pytest.approx(share, abs=0.03)
        panel.agrees()  # while the button is down
    panel.page.mouse.up()
    assert panel.words() != words
    changed = {name for name in before if (panel.layer(name) != before[name]).any()}
    assert changed == {"count", "candidate", "pseudo", "prior"}


@browser_test
def test_keys_move_a_slider(panel):
    panel.slider("delta").focus()
    for _ in range(5): panel.page.keyboard.press("ArrowRight")
    assert panel.state("delta") == pytest.approx(0.7)
    panel.agrees()


@browser_test
def test_sigma_moves_the_candidates_alone(panel):
    before = {name: panel.layer(name) for name in ("candidate", "pseudo", "prior")}
    for sigma in (120, 400):
        panel.slider("sigma").fill(str(min(sigma, int(panel.slider("sigma").get_attribute("max")))))
        panel.agrees()
    changed = {name for name in before if (panel.layer(name) != before[name]).any()}
    assert changed == {"candidate"}
    assert "P is empty" in panel.words() and "no centre" in panel.words()


@browser_test
def test_the_centre_begins_in_the_middle_at_any_stride():
    "VGG's maps have a position per 16 pixels; the photograph fills half of the square."
    model = build_model(768, 8, (1.0,)).eval()
    chosen = PanelModel(model, load_backbone("vgg16_bn", "random"), 161, STRICT, (), "")
    photo = np.zeros((80, 161, 3), np.uint8)
    payload = panel_image("", photo, np.zeros((80, 161), np.uint8), [], chosen).payload
    assert divmod(payload["centre"], payload["w"]) == (2, 5) and payload["w"] == 11


def test_a_click_and_arrow_keys_move_the_centre(panel):
    canvas = panel.page.get_by_role("application")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 5 / 20, "y": box["height"] * 2 / 20})
    assert panel.state("centre") == 2 * 21 + 5
    panel.agrees()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowLeft"):
        canvas.press(key)
    assert panel.state("centre") == 1 * 21 + 6
    for _ in range(3): canvas.press("ArrowUp")
    assert panel.state("centre") == 6  # the border holds
    panel.agrees()


@browser_test
def test_a_small_picture_becomes_the_large_one(panel):
    for name in ("row", "count", "candidate", "prior", "pseudo"):
        button = panel.page.locator(f"button[data-layer={name}]")
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert panel.page.locator("[aria-pressed=true]").count() == 1
        assert (panel.pixels("canvas[role]") == panel.layer(name)).all()


@browser_test
def test_another_image_starts_at_its_own_centre_and_shows_its_padding(panel, payloads):
    panel.page.get_by_label("Image").select_option("second")
    assert panel.state("image") == "second"
    assert panel.state("centre") == payloads["second"]["centre"]
    panel.agrees()
    for name in ("row", "count", "candidate", "pseudo", "prior"):
        assert (panel.layer(name)[:, 113:] == (221, 221, 221, 255)).all(), name
    canvas = panel.page.get_by_role("application")
    for _ in range(12): canvas.press("ArrowRight")
    assert "touches what is known, void or padding" in panel.words()


@browser_test
def test_the_state_can_be_set_from_outside(panel):
    panel.page.evaluate("window.explorable.set('delta', 0.9)")
    assert panel.slider("delta").input_value() == "0.9"
    panel.agrees()


@browser_test
def test_jupyterlab_leaves_arrow_keys_to_the_panel(panel):
    # it looks for this attribute of the element that has the focus, before those above it
    for control in panel.page.locator("input, button, select, canvas[tabindex]").all():
        assert control.get_attribute("data-lm-suppress-shortcuts")


@browser_test
def test_arrow_keys_do_not_scroll_the_page(panel):
    panel.page.set_viewport_size({"width": 500, "height": 400})
    canvas = panel.page.get_by_role("application")
    canvas.focus()
    before = panel.page.evaluate("scrollY")
    for _ in range(3): panel.page.keyboard.press("ArrowDown")
    panel.page.wait_for_timeout(300)
    assert panel.page.evaluate("scrollY") == before


@browser_test
def test_every_control_has_a_name_and_a_tip(panel):
    for control in panel.page.locator("input, button, select, canvas[tabindex]").all():
        assert control.get_attribute("title")
        name = control.evaluate(
            "x => x.getAttribute('aria-label') || x.labels?.[0]?.innerText || ''"
        )
        assert len(name.strip()) > 2
    for region in panel.page.get_by_role("status").all():
        assert region.get_attribute("aria-live") == "polite"


@browser_test
@pytest.mark.parametrize("width, columns", [(1100, 2), (700, 2), (699, 1), (390, 1)])
def test_one_column_on_a_narrow_page(panel, width, columns):
    panel.page.set_viewport_size({"width": width + 16, "height": 900})  # margins of the page
    style = "x => getComputedStyle(x).gridTemplateColumns.split(' ').length"
    assert panel.page.locator(".celp-columns").evaluate(style) == columns
    assert panel.page.evaluate("document.documentElement.scrollWidth") <= width + 16


# --- drawing

BOX = [(24, 16), (71, 55)]
TRIANGLE = [(8, 40), (16, 120), (88, 60)]


def boxed(first, last):  # (161, 161) {0, 1}, both corners inside
    mask = np.zeros((161, 161), np.uint8)
    mask[first[0] : last[0] + 1, first[1] : last[1] + 1] = 1
    return mask


def inside(corners):
    "The even-odd rule at every pixel, by a formula for one."
    mask = np.zeros((161, 161), np.uint8)
    for r, c in np.ndindex(161, 161):
        for (r0, c0), (r1, c1) in zip(corners, corners[1:] + corners[:1]):
            if (r0 <= r) != (r1 <= r) and c0 + (r - r0) / (r1 - r0) * (c1 - c0) < c: mask[r, c] ^= 1
    return mask


@browser_test
@pytest.mark.parametrize("width", [1280, 390])
def test_a_box_is_dragged_taken_back_and_becomes_what_is_known(panel, width):
    panel.page.set_viewport_size({"width": width, "height": 900})
    centre, before = panel.state("centre"), panel.colours("pseudo")
    panel.page.locator("input[type=radio][value=box]").check()
    panel.drag(*reversed(BOX))
    assert (panel.drawn() == boxed(*BOX)).all() and panel.state("centre") == centre
    assert f"{100 * boxed(*BOX).mean():.1f} % of the image is marked" in panel.hand()
    panel.agrees()
    assert (panel.colours("pseudo") == before).all()  # annotated classes are known as before
    panel.page.get_by_label("What is known").select_option("drawn")
    panel.agrees()
    blue = panel.colours("pseudo") == 0
    assert blue.any() and (boxed(*BOX)[blue] == 1).all()  # less what is void
    panel.drag((100, 100), (130, 130))  # a second one joins the first
    assert (panel.drawn() == (boxed(*BOX) | boxed((100, 100), (130, 130)))).all()
    panel.agrees()
    panel.page.get_by_role("button", name="Undo").click()
    assert (panel.drawn() == boxed(*BOX)).all()
    panel.page.get_by_role("button", name="Clear").click()
    assert not panel.drawn().any() and "marked" not in panel.hand()
    panel.agrees()
    panel.page.get_by_role("button", name="Undo").click()
    assert (panel.drawn() == boxed(*BOX)).all()
    panel.page.get_by_label("What is known").select_option("nothing")
    panel.agrees()
    assert not (panel.colours("pseudo") == 0).any()
    panel.page.locator("input[type=radio][value=look]").check()
    panel.page.mouse.click(*panel.place(40, 40))
    assert panel.state("centre") == 5 * 21 + 5 and (panel.drawn() == boxed(*BOX)).all()


@browser_test
@pytest.mark.parametrize("width", [1280, 390])
def test_corners_of_a_polygon_are_clicked(panel, width):
    panel.page.set_viewport_size({"width": width, "height": 900})
    panel.page.locator("input[type=radio][value=polygon]").check()
    panel.page.get_by_role("application").scroll_into_view_if_needed()
    for corner in TRIANGLE: panel.page.mouse.click(*panel.place(*corner))
    overlap = (panel.drawn() == inside(TRIANGLE)).mean()
    assert overlap > 0.998, overlap  # a corner on the border of pixels
    panel.page.mouse.click(*panel.place(*TRIANGLE[0]))  # ends it
    panel.page.mouse.click(*panel.place(150, 150))  # begins another, which is no region yet
    assert (panel.drawn() == inside(TRIANGLE)).mean() > 0.998
    for _ in range(3): panel.page.get_by_role("button", name="Undo").click()
    assert not panel.drawn().any()  # two corners are left


@browser_test
def test_keys_draw_a_box_and_a_polygon(panel):
    canvas = panel.page.get_by_role("application")
    panel.page.locator("input[type=radio][value=box]").check()
    keys = ["Enter", *["ArrowUp"] * 5, *["Shift+ArrowLeft"] * 3, "Enter"]
    for key in keys: canvas.press(key)
    assert (panel.drawn() == boxed((40, 77), (80, 80))).all()
    assert "Pen at row 40, column 77" in panel.hand()
    panel.page.get_by_role("button", name="Clear").click()
    panel.page.locator("input[type=radio][value=polygon]").check()
    corners = [(80, 80), (80, 120), (120, 120)]
    for keys in (["Enter"], [*["ArrowRight"] * 5, "Enter"], [*["ArrowDown"] * 5, "Enter"]):
        for key in keys: canvas.press(key)
    assert (panel.drawn() == inside(corners)).mean() > 0.998 and panel.drawn().any()
    canvas.press("Escape")
    centre = panel.state("centre")
    panel.page.locator("input[type=radio][value=look]").check()
    canvas.press("ArrowLeft")
    assert panel.state("centre") == centre - 1


@browser_test
def test_a_finger_draws_a_box(panel):
    canvas = panel.page.get_by_role("application")
    panel.page.locator("input[type=radio][value=box]").check()
    code = """(canvas, [kind, x, y]) => canvas.dispatchEvent(new PointerEvent(kind, {
      pointerType: "touch", pointerId: 7, isPrimary: true, clientX: x, clientY: y, buttons: 1 }))"""
    panel.page.evaluate("Element.prototype.setPointerCapture = () => {}")  # no real finger
    steps = [("pointerdown", BOX[0]), ("pointermove", (50, 30)), ("pointerup", BOX[1])]
    for kind, pixel in steps: canvas.evaluate(code, [kind, *panel.place(*pixel)])
    assert (panel.drawn() == boxed(*BOX)).all()
    steps = [("pointerdown", (90, 90)), ("pointercancel", (99, 99)), ("pointerup", (120, 120))]
    for kind, pixel in steps[:2]: canvas.evaluate(code, [kind, *panel.place(*pixel)])
    assert (panel.drawn() == boxed(*BOX)).all()
    assert canvas.evaluate("x => getComputedStyle(x).touchAction") == "pinch-zoom"  # no scrolling


@browser_test
def test_the_mask_is_saved_as_celp_predict_takes_it(panel, payloads, tmp_path):
    panel.page.get_by_label("Image").select_option("second")
    panel.page.locator("input[type=radio][value=box]").check()
    panel.drag((24, 16), (71, 150))  # beyond the image, which has 113 columns
    assert (panel.drawn() == boxed((24, 16), (71, 112))).all()
    share = 48 * 97 / (161 * 113)
    assert f"{100 * share:.1f} % of the image is marked" in panel.hand()
    with panel.page.expect_download() as download:
        panel.page.get_by_role("button", name="Download mask").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    runs = panel.state("drawn")["second"]
    seen = np.array(PILImage.open(path).convert("L"))
    assert path.name == "second_mask.png" and set(np.unique(seen)) == {0, 255}
    assert (seen == photo_mask(payloads["second"], runs)).all()
    assert object_mask(path).sum() == (seen == 255).sum()


@browser_test
def test_a_mask_from_outside_is_shown_and_can_be_taken_back(panel):
    mask = boxed((100, 10), (140, 60))
    code = "runs => window.explorable.set('drawn', { first: runs })"
    panel.page.evaluate(code, equal_runs(mask))
    assert f"{100 * mask.mean():.1f} % of the image is marked" in panel.hand()
    overlay = panel.pixels(".celp-overlay")
    assert ((overlay[..., 3] > 0) == (mask == 1)).all()
    panel.page.get_by_role("button", name="Undo").click()
    assert not panel.drawn().any()


@browser_test
def test_the_centre_is_drawn_of_the_candidates(panel):
    panel.slider("sigma").fill("75")
    P, seen = panel.expected()[1].ravel(), set()
    assert 0 < P.sum() < 300
    for _ in range(8):
        panel.page.get_by_role("button", name="Draw i*").click()
        seen.add(panel.state("centre"))
    assert all(P[i] for i in seen) and len(seen) > 1
