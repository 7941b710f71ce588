"""The explorer in a real browser.

Voilà shows the page of `celp explore`, JupyterLab the chapter: what the page says is compared with
Python. Slider, pen and layers alone are tried in test_latent_page.py.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from celp_nb.app.explorer import chosen_image, first_choice
from celp_nb.app.latent_answer import decoder_answer, region_at
from celp_nb.data.transforms import known_mask

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
def page(browser, tmp_path_factory):
    "The page of `celp explore`."
    port, folder, errors = free_port(), tmp_path_factory.mktemp("explore"), []
    command = [sys.executable, "-m", "celp_nb", "explore", "--port", str(port), "--no-browser"]
    for _ in serve(command, folder, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.extend(own_error(message)))
        page.goto(f"http://127.0.0.1:{port}/")
        yield Page(page, errors)
        page.close()


def own_error(message):
    "The text of a message that is an error; [] for the icons that Voilà's template asks a CDN for."
    is_own = message.type == "error" and "fontawesome" not in message.location["url"]
    return [message.text] if is_own else []


def kernels():
    "The processes of kernels that this process has started, through servers too."
    import psutil

    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            if "ipykernel_launcher" in process.cmdline() and not is_zombie: found.add(process.pid)
    return found


class Page:
    "What a reader does with the panel, and what they see."

    def __init__(self, page, errors=()):
        self.page, self.panel = page, page.locator(".celp-latent")
        self.errors = errors
        self.panel.wait_for()

    def wait(self, true, what, patience=PATIENCE):
        end = time.monotonic() + patience
        while not true():
            if time.monotonic() > end:
                self.page.screenshot(path=LAST_PAGE)
                raise AssertionError(f"{what}; the page is in {LAST_PAGE}")
            self.page.wait_for_timeout(100)

    def text(self, part):
        return self.panel.locator(f".celp-{part}").inner_text()

    def percent(self, part, before):
        "A percentage that is said after these words; None where they are not said."
        found = re.search(re.escape(before) + r" ([\d.]+) %", self.text(part))
        return found and float(found[1])

    def centre(self):
        return tuple(map(int, re.search(r"row (\d+), column (\d+)", self.text("words")).groups()))

    def delta(self):
        return float(self.panel.locator("input[data-name=delta]").input_value())

    def control(self, label):
        "A list or line above the panel."
        line = self.page.locator(".widget-dropdown, .widget-text").filter(has_text=label)
        return line.locator("select, input").first

    def chosen(self, label):
        "The entry of a list that is chosen."
        text = self.control(label).evaluate("x => x.selectedOptions[0].textContent")
        return " ".join(text.split())  # its blanks do not break

    def upload(self, path):
        self.panel.locator("input[type=file]").set_input_files(path)

    def note(self, words):
        self.panel.locator(".celp-note", has_text=words).wait_for()

    def agrees(self, shown):
        "Region and answer are those of Python for δ and centre as the page says."
        w, delta, known = shown.payload["w"], self.delta(), shown.payload["known_classes"]
        centre = self.centre()[0] * w + self.centre()[1]
        known = known_mask(shown.image.class_map, known)
        inside = float((~shown.image.padding).sum())
        region = region_at(shown.image, known, centre, delta)
        share = 100 * float((region == 1).sum()) / inside
        said = self.percent("words", "Its region covers")
        assert abs(said - share) < 0.5, (said, share)  # the page has features in bytes
        share = 100 * float(decoder_answer(shown, region).sum()) / inside
        close = lambda: abs((self.percent("hand", "The decoder marks") or -1) - share) < 0.2
        self.wait(close, f"no answer of {share:.1f} %")


@pytest.fixture(scope="module")
def start():
    "What the page begins with."
    choices, first = first_choice()
    return choices, first, chosen_image(first, choices)[1]


def test_a_page_that_is_loaded_again_or_closed_ends_its_kernel(browser, page):
    "At once; 60 seconds later kernels without a page end anyhow."
    before, other = kernels(), browser.new_page()
    load = lambda step, *to: (step(*to), other.locator(".celp-latent").wait_for())
    load(other.goto, page.page.url)
    first = kernels() - before
    load(other.reload)
    page.wait(lambda: not first & kernels(), "the kernel of a page loaded again runs on", 20)
    second = kernels() - before
    assert len(first) == len(second) == 1
    other.close(run_before_unload=True)
    page.wait(lambda: kernels() == before, "the kernel of a closed page runs on", 40)


def test_the_page_is_loaded_without_an_error(page):
    assert not page.errors


def test_the_page_follows_slider_click_and_keys(page, start):
    page.agrees(start[2])
    assert divmod(start[2].payload["centre"], 21) == page.centre()
    slider = page.panel.locator("input[data-name=delta]")
    slider.focus()
    for _ in range(10): page.page.keyboard.press("ArrowLeft")
    assert page.delta() == pytest.approx(0.55)
    page.agrees(start[2])
    canvas = page.panel.get_by_role("application")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 5 / 20, "y": box["height"] * 2 / 20})
    canvas.press("ArrowDown")
    assert page.centre() == (3, 5)
    page.agrees(start[2])


def test_uploads_are_shown_or_refused_in_a_sentence(page, start, tmp_path):
    choices, first, _ = start
    (tmp_path / "notes.png").write_text("no picture")
    (tmp_path / "huge.png").write_bytes(bytes(33 * 2**20))
    portrait = np.random.default_rng(0).integers(0, 256, (4000, 2500, 3), np.uint8)
    portrait[1000:3000, 500:2000] = (220, 200, 30)
    Image.fromarray(portrait).save(tmp_path / "portrait.png", compress_level=0)
    content = (tmp_path / "portrait.png").read_bytes()
    assert 10 * 2**20 < len(content) < 32 * 2**20  # more than servers take by themselves
    name, shown, _ = chosen_image(first._replace(source=("portrait.png", content)), choices)
    for k in (1, 2):  # the same file twice
        page.upload(tmp_path / "notes.png")
        page.note("'notes.png' cannot be read as an image")
        page.upload(tmp_path / "huge.png")
        page.note("'huge.png' is larger than 32 MB")
        page.upload(tmp_path / "portrait.png")
        page.wait(lambda k=k: page.chosen("Image") == f"portrait.png (uploaded, {k})", "no upload")
        middle = divmod(shown.payload["centre"], 21)
        page.wait(lambda middle=middle: page.centre() == middle, "the upload is not shown")
        page.note("do not trust the mask")
        page.agrees(shown)
        page.panel.get_by_role("application").press("ArrowUp")


def test_an_upload_beside_other_changes_ends_with_its_own_words(page, tmp_path):
    "Changes of the page wait while the kernel is at work, and arrive after what it says of a file."
    (tmp_path / "notes.png").write_text("no picture")
    canvas = page.panel.get_by_role("application")
    for _ in range(3):
        for key in 3 * ["ArrowUp", "ArrowDown"]: canvas.press(key)
        page.upload(tmp_path / "notes.png")
        page.note("'notes.png' cannot be read as an image")
        page.page.wait_for_timeout(1500)
        assert "cannot be read" in page.text("note")


def test_another_image_and_features_alone(page, start):
    choices, first, _ = start
    page.control("Image").select_option(label=choices.titles[4])
    page.control("Model").select_option("features of tiny")
    page.note("without a decoder")
    assert page.panel.locator("button[data-layer=answer]").is_hidden()
    page.control("Model").select_option(first.model)
    page.panel.locator("button[data-layer=answer]").wait_for()
    page.agrees(chosen_image(first._replace(source=4), choices)[1])


def test_a_narrow_page_has_one_column(page):
    page.page.set_viewport_size({"width": 390, "height": 800})
    style = "x => getComputedStyle(x).gridTemplateColumns.split(' ').length"
    page.wait(lambda: page.panel.locator(".celp-columns").evaluate(style) == 1, "two columns")
    page.page.set_viewport_size({"width": 1500, "height": 1100})


def test_the_episode_stands_beside_the_list(page):
    page.page.get_by_role("tab", name="One episode").click()
    status = page.page.locator(".widget-html p[role=status]")
    status.filter(has_text="Over all 200 episodes").wait_for()
    less = re.search(r"; (\d+) of the 200 episodes have a smaller", status.inner_text())
    assert 80 < int(less[1]) < 100  # the median; some episodes have the same difference
    assert page.page.locator("figcaption", has_text="IoU").count() == 2
    before = status.inner_text()
    page.page.get_by_role("button", name="Next episode").click()
    page.wait(lambda: status.inner_text() != before, "no next episode")
    page.page.get_by_role("tab", name="One image").click()


def test_the_chapter_shows_the_panel_in_jupyterlab(browser, start, tmp_path):
    shutil.copy(ROOT / "nbs/51_explorer.ipynb", tmp_path)
    settings = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
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
        f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.extension_manager=readonly",
    ]
    for url in serve(command, tmp_path, f"http://127.0.0.1:{port}/lab/tree/51_explorer.ipynb"):
        page = browser.new_page()
        page.goto(url)
        page.locator(".jp-Notebook").wait_for()
        wait_for_kernel(port)
        page.wait_for_timeout(2000)  # the page learns of it later; cells run before are lost
        page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
        page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
        panel = Page(page)
        panel.agrees(start[2])
        before = panel.centre()
        panel.panel.get_by_role("application").press("ArrowDown")  # moves i*, not the cell
        assert panel.centre() == (before[0] + 1, before[1])
        panel.agrees(start[2])
        page.close()
