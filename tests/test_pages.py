"""The notebooks as a static site.

Names become links, links lead somewhere, nothing is loaded from elsewhere, equations can be set.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("pages", ROOT / "tools" / "pages.py")
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)

STEMS = {path.stem for path in pages.notebooks()}


@pytest.mark.parametrize("text, expected", [
    ("see *03_latent_prototypes*.", "see [03_latent_prototypes](03_latent_prototypes.ipynb)."),
    ("*05_losses* and", "[05_losses](05_losses.ipynb) and"),
    ("`A2_scenes` draws", "[A2_scenes](A2_scenes.ipynb) draws"),
    ("[04](02_similarity.ipynb) and [`02_similarity`](x)", None),
    ("*99_nothing*, **02_similarity**, 02_similarity", None),
])
def test_names_of_notebooks_become_links(text, expected):
    assert pages.linked(text, STEMS) == (expected or text)


def test_directives_are_not_shown(tmp_path):
    code = nbformat.v4.new_code_cell
    cells = [
        code("#| default_exp x"),
        code("#| export\ndef f(): pass"),
        code("#| hide\nimport os"),
        code("a = 1  # | no directive"),
        code("#| hide\n#| fig-alt: A star, and its map\nplot()"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_x.ipynb")
    made = pages.for_reading(tmp_path / "01_x.ipynb", STEMS, "https://host/repo", "main").cells
    assert [cell.source for cell in made] == [
        "def f(): pass",
        "import os",
        "a = 1  # | no directive",
        "plot()",
    ]
    folded = ["hide-input"]
    assert [cell.metadata.get("tags") for cell in made] == [None, folded, None, folded]
    assert made[3].metadata["mystnb"] == {"image": {"alt": "A star, and its map"}}


def test_links_to_other_files_lead_to_the_repository(tmp_path):
    text = "[pilot](../results/pilot.py), [20](20_episodes.ipynb)"
    cells = [nbformat.v4.new_markdown_cell(text)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_x.ipynb")
    [made] = pages.for_reading(tmp_path / "01_x.ipynb", STEMS, "https://host/repo", "main").cells
    assert made.source == text.replace("../", "https://host/repo/blob/main/")


@pytest.mark.parametrize("stem", pages.PANEL_IN)
def test_the_panel_stands_between_question_and_equation(stem):
    path = ROOT / "nbs" / f"{stem}.ipynb"
    made = pages.for_reading(path, STEMS, "https://host/repo", "main").cells
    text = "\n".join(cell.source for cell in made)
    assert text.index("**Question.**") < text.index("\n\n<iframe") < text.index("$$")


def test_front_page_links_to_the_site_and_else_to_the_repository():
    text = pages.front_page(sorted(STEMS), "https://host/repo", "main")
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
    notebooks = {target.removesuffix(".ipynb") for target in targets if target.endswith(".ipynb")}
    assert {"20_episodes", "A2_scenes"} <= notebooks <= STEMS
    assert all(t.endswith(".ipynb") or t.startswith(("https://", "#")) for t in targets)
    assert "[51_explorer](51_explorer.ipynb) in a browser" in " ".join(text.split())


def test_contents_hold_every_notebook_once_by_wing():
    text = pages.contents(sorted(STEMS))
    assert re.findall(rf"^({pages.STEM})$", text, re.M) == sorted(STEMS)
    assert re.findall(r":caption: (.+)", text) == list(pages.WINGS)


def texts_of(cell):
    "Markdown that a cell shows: its own, or that of its outputs."
    if cell.cell_type == "markdown": return [cell.source]
    data = [output.get("data", {}) for output in cell.outputs]
    return [d["text/markdown"] for d in data if "text/markdown" in d]


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for cell in nbformat.read(path, 4).cells:
        for text in texts_of(cell):
            for stem in re.findall(r"\]\((\w+)\.ipynb[)#]", text):
                assert stem in STEMS, f"a link leads to {stem}.ipynb, which is not there"
            for target in re.findall(r"\]\((?!https?:|#|\w+\.ipynb[)#])([^)]+)\)", text):
                is_file = target.startswith("../") and (path.parent / target).exists()
                assert cell.cell_type == "markdown" and is_file, (
                    f"a link leads to {target}: write it as ../ and the path of a file of the "
                    "repository, in a markdown cell"
                )


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda path: path.stem)
def test_names_of_notebooks_are_names_of_notebooks(path):
    for cell in nbformat.read(path, 4).cells:
        for text in texts_of(cell):
            names = {match[1] for match in re.findall(rf"([*`])({pages.STEM})\1", text)}
            assert names <= STEMS, f"there is no notebook {min(names - STEMS)}"


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda path: path.stem)
def test_equations_have_one_number(path):
    for cell in nbformat.read(path, 4).cells:
        for text in texts_of(cell):
            for equation in re.findall(r"\$\$(.+?)\$\$", text, re.S):
                assert equation.count(r"\tag") <= 1, (
                    f"MathJax sets no equation with two numbers: {equation.strip()[:60]}"
                )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for module in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline"):
        if not importlib.util.find_spec(module):
            pytest.skip(f"{module} is not installed: pip install -r tools/requirements-pages.txt")
    pages.build(folder := tmp_path_factory.mktemp("pages") / "site")
    return folder


def test_the_site_is_whole_and_needs_no_other_host(site):
    made = {p.relative_to(site).as_posix() for p in site.rglob("*")}
    wanted = {"index.html", ".nojekyll", "_static/mathjax/tex-chtml.js", "_static/panel.html"}
    assert wanted | {f"{stem}.html" for stem in STEMS} <= made
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?:[^"]+)"', text)
        assert not loaded, f"{page.name} loads {loaded[0]}"
        links = re.findall(r'<a [^>]*?href="(?!https?:|mailto:)([^"]+)"', text)
        local = {link.split("#")[0].split("?")[0] for link in links} - {""}
        assert local <= made, f"{page.name} links to {min(local - made)}, which is not there"


def has_equations(path):
    cells = nbformat.read(path, 4).cells
    return any(cell.cell_type == "markdown" and "$$" in cell.source for cell in cells)


@pytest.mark.browser
@pytest.mark.parametrize("stem", [path.stem for path in pages.notebooks() if has_equations(path)])
def test_equations_are_set_in_a_browser(stem, site, tmp_path):
    chromium = shutil.which("chromium")
    if not chromium: pytest.skip("there is no chromium: apt-get install chromium")
    page = site / f"{stem}.html"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=60000",
        f"--user-data-dir={tmp_path}",
    ]
    command = [chromium, *flags, "--dump-dom", page.as_uri()]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    written = re.findall(r'<(?:span|div) class="math', page.read_text(encoding="utf-8"))
    assert written and rendered.count("<mjx-container") >= len(written)
    assert not (wrong := re.findall(r'data-mjx-error="([^"]*)"', rendered)), wrong[0]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_delta_moves_the_maps_in_the_site(site, width):
    chromium = shutil.which("chromium")
    if not chromium: pytest.skip("there is no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto((site / "03_latent_prototypes.html").as_uri())
        frame = page.locator("iframe.panel")
        frame.scroll_into_view_if_needed()
        panel = page.frame_locator("iframe.panel")
        said = panel.get_by_text("Its region covers")
        before = said.inner_text()
        panel.get_by_role("slider").first.fill("0.3")
        playwright.expect(said).not_to_have_text(before)
        assert "δ = 0.3" in said.inner_text()
        inside = panel.locator("#explorable").evaluate("el => el.scrollHeight")
        assert inside < frame.bounding_box()["height"] < inside + 60
        browser.close()
