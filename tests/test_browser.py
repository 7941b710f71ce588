"""The explorer in a real browser: JupyterLab runs the notebook, Voilà shows the page of `celp explore`; sliders are dragged, points clicked, files uploaded."""
import base64
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

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("playwright", "jupyterlab", "voila") if importlib.util.find_spec(name) is None]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SEEN = str(Path(tempfile.gettempdir()) / "celp_browser.png")  # the page as it was when a test gave up
PATIENCE = 400  # seconds, for a busy machine

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[dev]'"),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(command, folder, url):
    "Start a server with its settings under `folder`; yield its address, end it with all it started."
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    env |= {"OMP_NUM_THREADS": "1", "IPYTHONDIR": str(folder / "ipython")}
    env |= {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(url, timeout=PATIENCE).close()
                break
            except OSError:
                said = (folder / "server.log").read_text(errors="replace")[-2000:]
                assert server.poll() is None and time.monotonic() < end, f"{' '.join(command)} did not start: {said}"
                time.sleep(0.3)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait_for_kernel(port):
    "Until the notebook's kernel is connected and idle."
    end = time.monotonic() + PATIENCE
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/kernels", timeout=PATIENCE) as answer:
            if any(k["execution_state"] == "idle" and k["connections"] for k in json.load(answer)): return
        assert time.monotonic() < end, "no kernel"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the kernel, so that sums come out the same
    with sync_playwright() as p:
        context = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, headless=True,
                                                       args=FLAGS, viewport={"width": 1500, "height": 1100})
        context.set_default_timeout(1000 * PATIENCE)
        yield context
        context.close()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "JupyterLab with the notebook, all cells run."
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(ROOT / "nbs/13_explorer.ipynb", folder)
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip", "127.0.0.1", "--port", str(port), "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               "--LabApp.extension_manager=readonly"]
    for url in serve(command, folder, f"http://127.0.0.1:{port}/lab/tree/13_explorer.ipynb"):
        page = browser.new_page()
        page.goto(url)
        page.locator(".jp-Notebook").wait_for()
        wait_for_kernel(port)
        page.wait_for_timeout(2000)  # the page learns of it a little later; cells run before that are lost
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
        figure = page.locator("figure[data-name=answer] figcaption", has_text="answer: ")
        try:
            figure.wait_for(state="attached")
        except Exception:
            page.screenshot(path=SEEN)
            raise
        yield Page(page)
        page.close()


class Page:
    "What a reader does with the panel, and what they see."

    def __init__(self, page):
        self.page = page

    def see(self, name):  # (S, S, 3) uint8
        "A picture as the browser has it."
        code = """async img => { const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer())
                                let text = ""; for (const b of bytes) text += String.fromCharCode(b); return btoa(text) }"""
        img = self.page.locator(f"figure[data-name='{name}'] img")
        return np.array(Image.open(io.BytesIO(base64.b64decode(img.evaluate(code)))).convert("RGB"))

    def wait(self, true, what):
        end = time.monotonic() + PATIENCE
        while not true():
            if time.monotonic() > end:
                self.page.screenshot(path=SEEN)
                raise AssertionError(f"{what}; the page is in {SEEN}")
            self.page.wait_for_timeout(100)

    def keep(self, name):
        "A screenshot to look at, where CELP_SCREENSHOTS names a folder."
        if folder := os.environ.get("CELP_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))

    def labelled(self, kind, label):
        return self.page.locator(f".{kind}", has=self.page.locator("label", has_text=label)).first

    def number(self, label):
        return int(self.labelled("widget-text", label).locator("input").input_value())

    def type(self, label, text):
        box = self.labelled("widget-text", label).locator("input")
        box.fill(text)
        box.press("Enter")

    def slider(self, label):
        return float(self.labelled("widget-slider", label).locator(".widget-readout").inner_text())

    def drag(self, label, share):
        "Drag a slider's handle to a share of its track, over several places on the way."
        self.labelled("widget-slider", label).scroll_into_view_if_needed()
        track, handle = (self.labelled("widget-slider", label).locator(css).bounding_box() for css in (".noUi-base", ".noUi-handle"))
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


class Bench:
    "The same image by the functions of the earlier notebooks."

    def __init__(self, image, class_map, classes):
        from celp_nb import explorer as ex
        from celp_nb.backbones import image_features, load_backbone
        from celp_nb.datasets import denormalise, fit_square, known_mask

        x, class_map = fit_square(image, class_map, 161)
        self.photo, self.high, self.known = denormalise(x), image_features(load_backbone("tiny"), x[None]).high, known_mask(class_map, classes)[None]
        self.ex = ex

    def pseudo(self, point, delta):
        from celp_nb.latent import sample_latent

        pseudo, _ = sample_latent(self.high, self.known, centre=torch.tensor([point[0] * 21 + point[1]]), delta=delta, sigma=0)
        return np.array(Image.open(io.BytesIO(self.ex.pseudo_png(self.photo, pseudo))).convert("RGB"))


@pytest.fixture(scope="module")
def sample():
    "The image that the panel begins with."
    from celp_nb import explorer as ex
    from celp_nb.datasets import read_image, samples

    first = next(w for w in ex.explorer().children[0].children[0].children[0].children if w.description == "Image").value[1]
    data = samples("val")
    return Bench(read_image(data, first), data.read_mask(first), range(6, 21))


def same(page, name, expected):
    seen = page.see(name)
    return seen.shape == expected.shape and (seen == expected).all()


def shows_its_state(page, bench):
    "The pseudo-mask on the page is that of the point and δ that its controls say."
    point, delta = (page.number("Row"), page.number("Column")), page.slider("δ")
    page.wait(lambda: same(page, "pseudo-mask", bench.pseudo(point, delta)), f"no pseudo-mask of {point} at δ = {delta}")
    return point, delta


def drag_and_click(page, bench):
    point, delta = shows_its_state(page, bench)
    before = page.see("pseudo-mask")
    page.drag("δ", 0.45)
    page.wait(lambda: page.slider("δ") < 0.5, "the slider has not moved")
    assert shows_its_state(page, bench)[0] == point
    assert not same(page, "pseudo-mask", before)
    box = page.page.locator("figure[data-name=photograph] img").bounding_box()
    page.page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.6)
    page.wait(lambda: (page.number("Row"), page.number("Column")) == (12, 5), "the click has not set the point")
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


def test_a_bad_upload_is_one_sentence(lab, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    before = lab.see("photograph")
    lab.upload(tmp_path / "notes.png")
    lab.says("'notes.png' cannot be read as an image")
    lab.keep("lab_bad_upload")
    assert same(lab, "photograph", before)


def test_a_good_upload_is_explored(lab, tmp_path):
    image = np.full((120, 200, 3), (40, 120, 60), np.uint8)
    image[30:90, 40:110] = (220, 200, 30)
    Image.fromarray(image).save(tmp_path / "square.png")
    lab.upload(tmp_path / "square.png")
    bench = Bench(image, np.zeros(image.shape[:2], np.uint8), [1])
    lab.wait(lambda: same(lab, "photograph", bench.photo), "the upload is not shown")
    assert not lab.page.locator(".widget-html", has_text="cannot be read").count()
    shows_its_state(lab, bench)
    lab.keep("lab_upload")


def test_an_episode_in_jupyterlab(lab):
    lab.page.locator(".lm-TabBar-tab", has_text="One episode").click()
    lab.page.locator("figure[data-name='PFENet+CE'] figcaption", has_text="IoU").wait_for()
    before = lab.see("query")
    lab.page.locator("button", has_text="Next episode").click()
    lab.wait(lambda: lab.number("Episode") == 1 and not same(lab, "query", before), "the next episode is not shown")
    lab.keep("lab_episode")


def test_celp_explore_shows_the_panel(browser, sample, tmp_path):
    port = free_port()
    command = [sys.executable, "-c", "import sys; from celp_nb.cli import main; sys.exit(main())", "explore", "--port", str(port), "--no-browser"]
    for url in serve(command, tmp_path, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator("figure[data-name=answer] figcaption", has_text="answer: ").wait_for()
        drag_and_click(Page(page), sample)
        Page(page).keep("voila")
        page.close()
