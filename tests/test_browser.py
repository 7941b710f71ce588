"""The explorer in a real browser.

JupyterLab runs the notebook and Voilà shows the page of `celp explore`; sliders are dragged, points
clicked, files uploaded.
"""

import base64
import copy
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from celp_nb.app.explorer import explorer
from celp_nb.app.explorer_pictures import (
    CANDIDATE_TINT,
    KNOWN_TINT,
    nearest_upsample,
    photo_png,
    pseudo_png,
    tinted_png,
)
from celp_nb.app.explorer_state import drawn_mask
from celp_nb.bundled.scenes import samples
from celp_nb.data.images import read_image
from celp_nb.data.transforms import denormalise, fit_square, known_mask, padding_of
from celp_nb.engine.backbones import image_features, load_backbone
from celp_nb.latent import candidates, sample_latent
from celp_nb.ops import VOID
from celp_nb.similarity import known_positions, self_similarity, similar_count

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
MISSING = [
    name for name in ("playwright", "jupyterlab", "voila") if importlib.util.find_spec(name) is None
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: the page as it was when a test gave up
LAST_PAGE = str(Path(tempfile.gettempdir()) / "celp_browser.png")
PATIENCE = 400  # seconds, for a busy machine

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[dev]'"
    ),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(command, folder, url):
    "Start a server with its settings under `folder`; yield its address; end it and its children."
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env["TORCH_HOME"] = str(folder)  # no weights fetched earlier: the samples' model opens
    env |= {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}
    env |= {
        f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    env["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(url, timeout=PATIENCE).close()
                break
            except OSError:
                log_end = (folder / "server.log").read_text(errors="replace")[-2000:]
                assert server.poll() is None and time.monotonic() < end, (
                    f"{' '.join(command)} did not start: {log_end}"
                )
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


#: a cell for the tests: pictures wait while there is a file named hold
HOLD = """import time
from pathlib import Path

from celp_nb.app import explorer_choice


def held(function):
    def wait(*args):
        while Path("hold").exists(): time.sleep(0.01)
        return function(*args)
    return wait


explorer_choice.map_pictures = held(explorer_choice.map_pictures)"""


def chapter(folder):
    "The notebook, with a cell before its last code cell that lets a test hold the pictures back."
    nb = nbformat.read(ROOT / "nbs/51_explorer.ipynb", 4)
    at = max(i for i, cell in enumerate(nb.cells) if cell.cell_type == "code")
    nb.cells.insert(at, nbformat.v4.new_code_cell(HOLD))
    nbformat.write(nb, folder / "51_explorer.ipynb")


def wait_for_kernel(port):
    "Until the notebook's kernel is connected and idle."
    end = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/kernels", timeout=PATIENCE
        ) as answer:
            if any(k["execution_state"] == "idle" and k["connections"] for k in json.load(answer)):
                return
        assert time.monotonic() < end, "no kernel"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the kernel, so that sums come out the same
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1500, "height": 1100},
        )
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        context.close()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "JupyterLab with the notebook, all cells run."
    folder = tmp_path_factory.mktemp("lab")
    chapter(folder)
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip",
        "127.0.0.1",
        "--port",
        str(port),
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.extension_manager=readonly",
    ]
    for url in serve(command, folder, f"http://127.0.0.1:{port}/lab/tree/51_explorer.ipynb"):
        page = browser.new_page()
        page.goto(url)
        page.locator(".jp-Notebook").wait_for()
        wait_for_kernel(port)
        page.wait_for_timeout(2000)  # the page learns of it later; cells run before are lost
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
        figure = page.locator("figure[data-name=prediction] figcaption", has_text="prediction: ")
        try:
            figure.wait_for(state="attached")
        except Exception:
            page.screenshot(path=LAST_PAGE)
            raise
        yield Page(page, folder)
        page.close()


class Page:
    "What a reader does with the panel, and what they see."

    def __init__(self, page, folder):
        self.page, self.folder = page, folder

    def see(self, name):  # (S, S, 3) uint8
        "A picture as the browser has it."
        code = """async img => {
            const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer())
            let text = ""
            for (const b of bytes) text += String.fromCharCode(b)
            return btoa(text)
        }"""
        img = self.page.locator(f"figure[data-name='{name}'] img")
        return np.array(Image.open(io.BytesIO(base64.b64decode(img.evaluate(code)))).convert("RGB"))

    def wait(self, true, what):
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end:
                self.page.screenshot(path=LAST_PAGE)
                raise AssertionError(f"{what}; the page is in {LAST_PAGE}")
            self.page.wait_for_timeout(100)

    def keep(self, name):
        "A screenshot to look at, where CELP_SCREENSHOTS names a folder."
        if folder := os.environ.get("CELP_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def labelled(self, kind, label):
        return self.page.locator(f".{kind}", has=self.page.locator("label", has_text=label)).first

    def number(self, label):
        return int(self.text(label))

    def type(self, label, text):
        box = self.labelled("widget-text", label).locator("input")
        box.fill(str(text))
        box.press("Enter")

    def choose(self, label, option):
        self.labelled("widget-dropdown", label).locator("select").select_option(label=option)

    def press(self, words):
        self.page.locator("button", has_text=words).click()

    def click(self, row, column):
        """Click a pixel of the photograph, 161 pixels wide and high, or the one beside it.

        The mouse moves by whole points of the screen.
        """
        box = self.page.locator("figure[data-name=photograph] img").bounding_box()
        x = box["x"] + box["width"] * column / 160
        y = box["y"] + box["height"] * row / 160
        self.page.mouse.click(x, y)

    def text(self, label):
        return self.labelled("widget-text", label).locator("input").input_value()

    def corners(self):
        return [tuple(map(int, word.split(","))) for word in self.text("Corners").split()]

    def click_corners(self, *places):
        "Corners by clicks; what became of them."
        for place in places:
            self.click(*place)
        self.wait(
            lambda: len(self.corners()) == len(places),
            f"the clicks are no corners: {self.text('Corners')}",
        )
        assert np.abs(np.subtract(self.corners(), places)).max() <= 1
        return self.corners()

    def point(self):
        return self.number("Row"), self.number("Column")

    def set_point(self, point):
        self.type("Row", point[0])
        self.type("Column", point[1])

    def count_pictures(self, name):
        "From now on; read the count with `counted`."
        self.page.locator(f"figure[data-name='{name}'] img").evaluate(
            """img => {
                window.counted = 0
                const observer = new MutationObserver(changes => {
                    window.counted += changes.length
                })
                observer.observe(img, { attributeFilter: ['src'] })
            }"""
        )

    def counted(self):
        return self.page.evaluate("window.counted")

    def slider(self, label):
        return float(self.labelled("widget-slider", label).locator(".widget-readout").inner_text())

    def drag(self, label, share):
        "Drag a slider's handle to a share of its track, over several places on the way."
        self.labelled("widget-slider", label).scroll_into_view_if_needed()
        slider = self.labelled("widget-slider", label)
        track = slider.locator(".noUi-base").bounding_box()
        handle = slider.locator(".noUi-handle").bounding_box()
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        target = track["x"] + share * track["width"]
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        for k in range(1, 21):
            self.page.mouse.move(x + (target - x) * k / 20, y)
        self.page.mouse.up()

    def upload(self, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("button", has_text="Upload an image").click()
        chooser.value.set_files(path)

    def says(self, words):
        self.page.locator(".widget-html", has_text=words).first.wait_for()


def decoded(png):
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


class Bench:
    "The same image by the functions of the earlier notebooks."

    def __init__(self, image, class_map, classes):
        x, self.class_map = fit_square(image, class_map, 161)
        self.photo = denormalise(x)
        self.high = image_features(load_backbone("tiny"), x[None]).high
        self.known = known_mask(self.class_map, classes)[None]
        self.D = self_similarity(self.high)
        self.padding = padding_of(*class_map.shape, 161)

    def with_mask(self, drawn):
        "The same image with a mask, (S, S) bool, in place of what is annotated."
        bench = copy.copy(self)
        mask = torch.from_numpy(drawn).to(torch.uint8)
        bench.known = mask.masked_fill(self.class_map == VOID, VOID)[None]
        return bench

    def photograph(self):
        return decoded(photo_png(self.photo, self.known[0].numpy()))

    def P(self, delta, sigma):  # (21, 21) bool
        known = known_positions(self.known, (21, 21))
        return candidates(similar_count(self.D, known, delta), known, sigma).view(21, 21).numpy()

    def candidates(self, delta, sigma):
        P = nearest_upsample(self.P(delta, sigma), 161)
        layer = np.where(self.known[0].numpy() == 1, 2, P)
        return decoded(tinted_png(self.photo, layer, [CANDIDATE_TINT, KNOWN_TINT]))

    def pseudo(self, point, delta):
        centre = torch.tensor([point[0] * 21 + point[1]])
        pseudo, _ = sample_latent(self.high, self.known, centre=centre, delta=delta, sigma=0)
        pseudo = pseudo.masked_fill(self.padding, VOID)  # a resized region reaches over the edge
        return decoded(pseudo_png(self.photo, pseudo))


@pytest.fixture(scope="module")
def sample():
    "The image that the panel begins with."
    controls = explorer().children[0].children[0].children[0].children
    first = next(w for w in controls if w.description == "Image").value[1]
    data = samples("val")
    return Bench(read_image(data, first), data.read_mask(first), range(6, 21))


def same(page, name, expected):
    seen = page.see(name)
    return seen.shape == expected.shape and (seen == expected).all()


def shows_its_state(page, bench):
    "Wait until the pictures are those of the mask, and of point, δ and σ as the controls say."
    point, delta, sigma = page.point(), page.slider("δ"), int(page.slider("σ"))
    page.wait(
        lambda: same(page, "photograph", bench.photograph()),
        "the photograph does not show what is known",
    )
    page.wait(
        lambda: same(page, "candidates", bench.candidates(delta, sigma)),
        f"no candidates at δ = {delta}, σ = {sigma}",
    )
    page.wait(
        lambda: same(page, "pseudo-mask", bench.pseudo(point, delta)),
        f"no pseudo-mask of {point} at δ = {delta}",
    )
    return point, delta


def drag_and_click(page, bench):
    point, delta = shows_its_state(page, bench)
    before = page.see("pseudo-mask")
    page.drag("δ", 0.45)
    page.wait(lambda: page.slider("δ") < 0.5, "the slider has not moved")
    assert shows_its_state(page, bench)[0] == point
    assert not same(page, "pseudo-mask", before)
    page.click(96, 40)
    page.wait(lambda: page.point() == (12, 5), "the click has not set the point")
    shows_its_state(page, bench)


def test_slider_and_click_in_jupyterlab(lab, sample):
    lab.page.locator("figure[data-name=photograph]").scroll_into_view_if_needed()
    drag_and_click(lab, sample)
    lab.keep("lab_click")


def test_keyboard_in_jupyterlab(lab, sample):
    lab.type("Row", "3")
    lab.page.wait_for_timeout(300)
    before = lab.slider("δ")
    lab.labelled("widget-slider", "δ").locator(".noUi-handle").focus()
    for _ in range(5):
        lab.page.keyboard.press("ArrowRight")
    lab.wait(lambda: lab.slider("δ") > before, "arrow keys do not move the slider")
    assert shows_its_state(lab, sample)[0][0] == 3


def test_sigma_moves_the_candidates_in_jupyterlab(lab, sample):
    point, delta = shows_its_state(lab, sample)
    before, pseudo = lab.see("candidates"), lab.see("pseudo-mask")
    lab.drag("σ", 0.6)
    lab.wait(lambda: lab.slider("σ") > 100, "the slider has not moved")
    assert shows_its_state(lab, sample) == (point, delta)
    assert not same(lab, "candidates", before) and same(lab, "pseudo-mask", pseudo)
    lab.keep("lab_sigma")


def test_draw_again_finds_a_candidate(lab, sample):
    delta, sigma = lab.slider("δ"), int(lab.slider("σ"))
    P = sample.P(delta, sigma)
    assert 0 < P.sum() < 300  # else any position would do
    outside = tuple(int(k) for k in np.argwhere(~P)[0])
    for _ in range(4):
        lab.set_point(outside)
        assert shows_its_state(lab, sample)[0] == outside
        lab.press("Draw again")
        lab.wait(lambda: lab.point() != outside, "no other point")
        point, _ = shows_its_state(lab, sample)
        assert P[point], f"{point} is no candidate"


def test_fast_moves_do_not_stack_up(lab, sample):
    handle, hold = lab.labelled("widget-slider", "δ").locator(".noUi-handle"), lab.folder / "hold"
    lab.drag("δ", 0.3)
    shows_its_state(lab, sample)
    lab.count_pictures("pseudo-mask")
    hold.touch()
    try:
        handle.focus()
        for _ in range(30):  # one by one, each a message of its own
            lab.page.keyboard.press("ArrowRight")
            lab.page.wait_for_timeout(50)
        lab.drag("δ", 0.8)
        lab.wait(
            lambda: lab.slider("δ") > 0.7, "the slider does not move while a picture is worked on"
        )
        lab.page.wait_for_timeout(500)
    finally:
        hold.unlink()
    shows_its_state(lab, sample)
    assert lab.counted() <= 3, (
        f"{lab.counted()} pictures where only the one in work and the last are wanted"
    )


def test_a_bad_upload_is_one_sentence(lab, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    before = lab.see("photograph")
    lab.upload(tmp_path / "notes.png")
    lab.says("'notes.png' cannot be read as an image")
    lab.keep("lab_bad_upload")
    assert same(lab, "photograph", before)


@pytest.fixture(scope="module")
def square():
    image = np.full((120, 200, 3), (40, 120, 60), np.uint8)
    image[30:90, 40:110] = (220, 200, 30)
    return image


@pytest.fixture(scope="module")
def upload(lab, square):
    "An image of the reader's on the page, and on the bench."
    Image.fromarray(square).save(lab.folder / "square.png")
    lab.upload(lab.folder / "square.png")
    lab.drag("σ", 0.05)
    return Bench(square, np.zeros(square.shape[:2], np.uint8), [1])


def test_a_good_upload_is_explored(lab, upload):
    lab.wait(lambda: same(lab, "photograph", upload.photo), "the upload is not shown")
    assert not lab.page.locator(".widget-html", has_text="cannot be read").count()
    shows_its_state(lab, upload)
    lab.keep("lab_upload")


def masked(*boxes):  # of (top, left, bottom, right), all of them inside
    drawn = np.zeros((161, 161), bool)
    for top, left, bottom, right in boxes:
        drawn[top: bottom + 1, left: right + 1] = True
    return drawn


def test_a_box_on_an_upload(lab, upload):
    shows_its_state(lab, upload)
    lab.set_point((3, 15))
    before = lab.see("pseudo-mask")
    lab.choose("Known", "box")
    lab.choose("A click", "adds a corner")
    (bottom, left), (top, right) = lab.click_corners((88, 24), (16, 96))
    shows_its_state(lab, upload.with_mask(masked((top, left, bottom, right))))
    assert not same(lab, "pseudo-mask", before)
    lab.keep("lab_box")
    lab.type("Corners", "20,100 60,150")
    shows_its_state(lab, upload.with_mask(masked((20, 100, 60, 150))))


def test_a_polygon_on_an_upload(lab, upload):
    lab.choose("Known", "polygon")
    lab.type("Corners", "16,16 16,120 40,120 40,48 90,48 90,16")
    angle = upload.with_mask(masked((16, 16, 40, 120), (16, 16, 90, 48)))
    shows_its_state(lab, angle)
    lab.type("Corners", "")
    shows_its_state(lab, upload.with_mask(masked()))
    triangle = lab.click_corners((8, 40), (12, 120), (88, 60))
    drawn = drawn_mask("polygon", triangle, upload.class_map).numpy() == 1
    shows_its_state(lab, upload.with_mask(drawn))
    lab.keep("lab_polygon")
    lab.type("Corners", "8,40 8,200 88,40")
    lab.says("'8,200' is no corner")


def test_an_episode_in_jupyterlab(lab):
    lab.page.locator(".lm-TabBar-tab", has_text="One episode").click()
    lab.page.locator("figure[data-name='PFENet+CE'] figcaption", has_text="IoU").wait_for()
    before = lab.see("query")
    lab.page.locator("button", has_text="Next episode").click()
    lab.wait(
        lambda: lab.number("Episode") == 1 and not same(lab, "query", before),
        "the next episode is not shown",
    )
    lab.keep("lab_episode")


def test_models_that_are_not_there_are_one_sentence(lab):
    line = lab.page.locator(".jp-OutputArea-output .widget-html:visible")
    before, texts = lab.see("PFENet"), line.all_inner_texts()
    lab.type("Own models", "runs/none/fold0")
    lab.says("there is no checkpoint runs/none/fold0/PFENet.pt")
    lab.page.locator(
        "figure[data-name='PFENet+CE'] figcaption", has_text="no prediction"
    ).wait_for()
    assert line.count() == 1 and "Traceback" not in line.inner_text()
    lab.keep("lab_no_models")
    lab.type("Own models", "")
    lab.wait(
        lambda: same(lab, "PFENet", before) and line.all_inner_texts() == texts,
        "the bundled models do not come back",
    )


def test_celp_explore_shows_the_panel(browser, sample, tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "celp_nb",
        "explore",
        "--port",
        str(port),
        "--no-browser",
    ]
    for _ in serve(command, tmp_path, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator("figure[data-name=prediction] figcaption", has_text="prediction: ").wait_for()
        drag_and_click(Page(page, tmp_path), sample)
        Page(page, tmp_path).keep("voila")
        page.close()
