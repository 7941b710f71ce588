"""The notebooks as a static site.

Names become links, links lead somewhere, nothing is loaded from elsewhere, equations can be set.
"""

import base64
import io
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

names = ("page_equations", "page_heads", "page_pictures", "page_sources", "pages")
page_equations, page_heads, page_pictures, page_sources, pages = map(import_module, names)

NOTEBOOKS = page_sources.notebooks()
STEMS = {path.stem for path in NOTEBOOKS}
PAGES = page_sources.site_pages()
BLOB = "https://host/owner/repo/blob/main"
PARTS = page_sources.checked_parts(sorted(STEMS))
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.mark.parametrize("text, expected", [
    ("see *03_latent_prototypes*.", "see [03_latent_prototypes](03_latent_prototypes.ipynb)."),
    ("*05_losses* and", "[05_losses](05_losses.ipynb) and"),
    ("`A2_scenes` draws", "[A2_scenes](A2_scenes.ipynb) draws"),
    ("[04](02_similarity.ipynb) and [`02_similarity`](x)", None),
    ("*99_nothing*, **02_similarity**, 02_similarity", None),
])
def test_names_of_notebooks_become_links(text, expected):
    assert page_sources.linked(text, STEMS) == (expected or text)


# --- cells


def cells_for_reading(folder, *cells, blob=""):
    "The cells as the site shows them, after a title."
    cells = [markdown("# A title"), *cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_maps.ipynb")
    return page_sources.for_reading(folder / "01_maps.ipynb", PAGES, blob).cells[1:]


def test_directives_are_not_shown(tmp_path):
    cells = [
        code("#| default_exp x"),
        code("#| export\ndef f(): pass"),
        code("a = 1  # | no directive"),
    ]
    made = cells_for_reading(tmp_path, *cells)
    assert [cell.source for cell in made] == ["def f(): pass", "a = 1  # | no directive"]


def test_the_cell_that_installs_the_package_is_not_shown(tmp_path):
    installs = 'if True: get_ipython().run_line_magic("pip", "install -q ..")'
    made = cells_for_reading(tmp_path, code(installs), code("a = 1"))
    assert [cell.source for cell in made] == ["a = 1"]


def test_code_is_folded_by_directive_tag_or_jupyterlab(tmp_path):
    cells = [
        code("#| hide\nimport os", metadata={"tags": ["a"]}),
        code("#| hide\nimport sys", metadata={"tags": ["hide-input"]}),
        code("b = 1", metadata={"tags": ["hide-input", "b"]}),
        code("c = 1", metadata={"jupyter": {"source_hidden": True}}),
        code("d = 1", metadata={"jupyter": {"source_hidden": False}}),
    ]
    made = cells_for_reading(tmp_path, *cells)
    tags = [["a", "hide-input"], ["hide-input"], ["hide-input", "b"], ["hide-input"], None]
    assert [cell.metadata.get("tags") for cell in made] == tags


def picture_cell(source, width, alt=None):
    "A cell whose output is a PNG."
    data = Image.new("RGB", (width, 2))
    buffer = io.BytesIO()
    data.save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    metadata = {"image/png": {"alt": alt}} if alt else {}
    output = nbformat.v4.new_output("display_data", {"image/png": text}, metadata=metadata)
    return code(source, outputs=[output])


def test_figures_have_a_description_and_wide_ones_the_whole_width(tmp_path):
    cells = [
        picture_cell("#| fig-alt: A star, tinted\nshow()", 500),
        picture_cell("show()", 499, alt="of the output"),
        markdown("text\n\n## The `row` of D\n\ntext"),
        picture_cell("show()", 900),
    ]
    first, second, _, third = cells_for_reading(tmp_path, *cells)
    options = [cell.metadata["mystnb"]["image"] for cell in (first, second, third)]
    assert first.source == "show()"
    alts = ["A star, tinted", "of the output", "Figure: The row of D"]
    assert [x["alt"] for x in options] == alts
    assert [x.get("width") for x in options] == ["100%", None, "100%"]


@pytest.mark.parametrize("stem, title, expected", [
    ("20a_photographs", "# Photographs", "# 20a · Photographs"),
    ("A0_outlines", "# A0 · Outlines", "# A0 · Outlines"),
    ("02_similarity", "text\n# Similarity", "text\n# Similarity"),
])
def test_titles_are_numbered_once(stem, title, expected):
    assert page_sources.numbered(title, stem) == expected


@pytest.mark.parametrize("stem", page_sources.PANEL_IN)
def test_the_panel_stands_between_question_and_equation(stem):
    path = ROOT / "nbs" / f"{stem}.ipynb"
    cells = page_sources.for_reading(path, PAGES, "").cells
    text = "\n".join(cell.source for cell in cells)
    assert text.index("**Question.**") < text.index("\n\n<iframe") < text.index("$$")


# --- links


@pytest.mark.parametrize("text, with_address, without", [
    ("[a `b`](../results/collect.py)!", f"[a `b`]({BLOB}/results/collect.py)!", "a `b`!"),
    ("[20](20_episodes.ipynb#eq-1)", None, None),
    ("[x](https://host/y), [z](#z)", None, None),
    ("[gpu](../results/gpu/README.md#a)", *2 * ["[gpu](results/gpu/README.md#a)"]),
    ("[front](../README.md)", *2 * ["[front](index.md)"]),
    ("![p](../docs/predictions.png)", *2 * ["![p](docs/predictions.png)"]),
    ("`x[i](../j)` and\n```\nx[i](../j)\n```\n", None, None),
])
def test_links_to_other_files_lead_to_pages_or_to_the_repository(text, with_address, without):
    for blob, expected in ((BLOB, with_address), ("", without)):
        made = page_sources.relinked(text, "nbs/01_maps.ipynb", PAGES, blob)
        assert made == (expected or text)


def test_links_of_a_document_start_at_its_folder():
    text = "[o](../../nbs/00_overview.ipynb), [h](../history/README.md), [c](rows.csv)"
    made = page_sources.relinked(text, "results/gpu/README.md", PAGES, BLOB)
    assert made == (
        "[o](../../00_overview.ipynb), [h](../history/README.md), "
        f"[c]({BLOB}/results/gpu/rows.csv)"
    )


def test_a_link_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="README.md links to nowhere.md, which is not there"):
        page_sources.relinked("[x](nowhere.md)", "README.md", PAGES, "")


def test_documents_are_those_that_links_lead_to(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "docs").mkdir()
    texts = {
        "README.md": "[a](docs/a.md#b), `[no](docs/c.md)`, [p](x.py)",
        "docs/a.md": "[b](b.md), [front](../README.md)",
        "docs/b.md": "no title",
        "docs/c.md": "[b](b.md)",
        page_sources.BIBLIOGRAPHY: "# Bibliography",
    }
    for name, text in texts.items(): (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(page_sources, "ROOT", tmp_path)
    found = page_sources.documents()
    assert found == ["README.md", page_sources.BIBLIOGRAPHY, "docs/a.md", "docs/b.md"]
    page = page_sources.document_page("docs/b.md", page_sources.site_pages(), "")
    assert page == "# docs/b.md\n\nno title"


@pytest.mark.parametrize("blob", ["", BLOB])
def test_only_an_address_that_is_set_is_linked_to(blob, tmp_path):
    page_sources.write_pages(tmp_path, blob)
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.md")]
    for path in tmp_path.glob("*.ipynb"): texts += [c.source for c in nbformat.read(path, 4).cells]
    linked = [text for text in texts if f"]({BLOB}/" in text]
    assert bool(linked) == bool(blob)


def test_settings_are_the_one_home_of_the_address():
    names = subprocess.run(
        ["git", "grep", "-lIE", r"celp-nb[./]|[/.](github|gitlab)\.(com|io)/[\w-]+/celp_nb"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert set(names) <= {"settings.ini", "celp_nb/_modidx.py", "tests/test_pages.py"}, names


@pytest.mark.parametrize("address", ["github.com/a/b", "https://github.com/a", "a/b"])
def test_an_address_of_no_repository_is_refused(address, tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text(f"[DEFAULT]\ngit_url = {address}\n", encoding="utf-8")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"git_url is {address}; give https"): pages.settings()


def addresses(git_url, source):
    values = {"git_url": git_url, "branch": "main"}
    return [button["url"] for button in page_heads.repository_buttons(source, values)]


def test_buttons_lead_to_the_repository_where_there_is_one():
    url, colab = "https://github.com/a/b", "https://colab.research.google.com/github/a/b"
    notebook = "nbs/01_maps.ipynb"
    edit = f"{url}/edit/main/{notebook}"
    assert addresses("", notebook) == addresses("", "") == []
    assert addresses(url, notebook) == [url, edit, f"{colab}/blob/main/{notebook}"]
    assert addresses(url, "README.md") == [url, f"{url}/edit/main/README.md"]
    assert addresses(url, "") == [url]  # the search page
    assert len(addresses("https://gitlab.com/a/b", notebook)) == 2


# --- parts


def test_parts_are_the_headings_above_the_rows_of_an_index(tmp_path):
    text = """# Title
| 1 | [02](nbs/02_similarity.ipynb) |
### The paper: `celp_nb/*.py`
[00_overview](nbs/00_overview.ipynb) draws it.
| notebook | module |
|---|---|
| [01_maps](nbs/01_maps.ipynb) | `ops` |
| [02_similarity](./02_similarity.ipynb) | x [05_losses](05_losses.ipynb) |
## Data
| [20a_photographs](../nbs/20a_photographs.ipynb) | y |
"""
    (tmp_path / "index.md").write_text(text, encoding="utf-8")
    assert page_sources.parts(tmp_path / "index.md") == {
        "The paper": ["01_maps", "02_similarity"],
        "Data": ["20a_photographs"],
    }


@pytest.mark.parametrize("rows", [["01_maps"], ["01_maps", "05_losses", "05_losses"]])
def test_an_index_lists_each_notebook_once(rows, tmp_path, monkeypatch):
    lines = ["# Part", *[f"| [{stem}]({stem}.ipynb) |" for stem in rows]]
    (tmp_path / "index.md").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(page_sources, "INDEXES", (tmp_path / "none.md", tmp_path / "index.md"))
    with pytest.raises(ValueError, match="index.md does not list 05_losses once"):
        page_sources.checked_parts(["01_maps", "05_losses"])


def test_contents_hold_every_notebook_once_by_part():
    text = page_sources.front_page(PAGES, "")
    assert sorted(re.findall(rf"^({page_sources.STEM})$", text, re.M)) == sorted(STEMS)
    captions = re.findall(r":caption: [IVX]+ · (.+)", text)
    assert captions == [*PARTS, page_sources.DOCUMENTS]
    assert [next(iter(PARTS)), *PARTS["The paper"][:2]] == ["The paper", "00_overview", "01_maps"]


# --- equations


@pytest.mark.parametrize("text, expected", [
    ("by Eq. (5).", [("by ", None), ("Eq. (5)", "5"), (".", None)]),
    ("Eq. (99) or Eq. 5", [("Eq. (", None), ("99", None), (")", None), (" or Eq. 5", None)]),
    ("Eq. (4–6)", [("Eq. (", None), ("4", "4"), ("–", None), ("6", "6"), (")", None)]),
    ("Eq. (4, 99)", [("Eq. (", None), ("4", "4"), (", ", None), ("99", None), (")", None)]),
    ("Eq. (1) to\nEq. (2)", [("Eq. (1)", "1"), (" to\n", None), ("Eq. (2)", "2")]),
])
def test_cited_equations_are_found(text, expected):
    assert page_equations.pieces(text, {n: "x" for n in "123456789"}) == expected


def test_every_equation_of_the_paper_has_one_place():
    places = page_equations.equation_places(NOTEBOOKS)
    assert set(places) == {str(number) for number in range(1, 16)}
    assert (places["5"], places["13"]) == ("03_latent_prototypes", "08_contrast")


# --- bibliography and pictures


def test_the_bibliography_has_every_work_that_is_linked_to():
    listed = (ROOT / page_sources.BIBLIOGRAPHY).read_text(encoding="utf-8")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in page_sources.documents()]
    texts += [page_sources.in_words(nbformat.read(path, 4)) for path in NOTEBOOKS]
    works = set(re.findall(r"https?://(?:arxiv\.org|doi\.org)/[^\s)>\]]+", "\n".join(texts)))
    assert works and not (missing := works - set(re.findall(r"https://[^\s)]+", listed))), missing


def test_preview_and_icon_show_a_drawn_scene(tmp_path):
    shown = next(iter(pages.scene_images(1).values()))
    scene, marked = page_pictures.scene_and_region(shown)
    assert scene.shape == marked.shape == (161, 161, 3) and (scene != marked).any()
    page_pictures.write_pictures(tmp_path, shown, "a title")
    preview, icon = (Image.open(tmp_path / f"{name}.png") for name in ("preview", "favicon"))
    assert (preview.size, icon.size) == ((1200, 630), (64, 64))
    assert (tmp_path / "preview.png").stat().st_size < 1_000_000
    assert np.asarray(icon).std() > 20


def texts_of(cell):
    "Markdown that a cell shows: its own, or that of its outputs."
    if cell.cell_type == "markdown": return [cell.source]
    data = [output.get("data", {}) for output in cell.outputs]
    return [d["text/markdown"] for d in data if "text/markdown" in d]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_names_of_notebooks_are_names_of_notebooks(path):
    for cell in nbformat.read(path, 4).cells:
        for text in texts_of(cell):
            names = {match[1] for match in re.findall(rf"([*`])({page_sources.STEM})\1", text)}
            assert names <= STEMS, f"there is no notebook {min(names - STEMS)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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
        if not find_spec(module):
            pytest.skip(f"{module} is not installed: pip install -r tools/requirements-pages.txt")
    pages.build(folder := tmp_path_factory.mktemp("pages") / "site")
    return folder


def html_pages(site):
    "Each page but the panel's, and its text."
    for page in site.rglob("*.html"):
        if "_static" not in page.parts: yield page, page.read_text(encoding="utf-8")


def test_the_site_is_whole_and_its_links_lead_somewhere(site):
    made = {p.resolve() for p in site.rglob("*")}
    wanted = ["index.html", ".nojekyll", "_static/mathjax/tex-chtml.js", "_static/panel.html"]
    wanted += [f"{stem}.html" for stem in STEMS] + ["docs/bibliography.html"]
    assert {(site / name).resolve() for name in wanted} <= made
    ids = {}
    for page, text in html_pages(site): ids[page.resolve()] = re.findall(r'id="([^"]+)"', text)
    for page, text in html_pages(site):
        for link in re.findall(r'<a [^>]*?href="(?!https?:|mailto:)([^"]+)"', text):
            name, _, fragment = link.partition("#")
            target = (page.parent / name.split("?")[0]).resolve() if name else page.resolve()
            assert target in made, f"{page.name} links to {link}, which is not there"
            if fragment.startswith("eq-"):
                assert fragment in ids[target], f"{page.name} links to {link}, which is not there"


def test_nothing_is_loaded_from_another_host(site):
    for page, text in html_pages(site):
        tags = re.findall(r"<(?:script|img|link|iframe) [^>]*", text)
        loaded = re.findall(r' (?:src|href)="((?:https?:)?//[^"]+)"', "\n".join(tags))
        assert not loaded, f"{page.name} loads {loaded[0]}"
    fetched = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)")
    for path in site.rglob("*.css"):
        loaded = fetched.findall(path.read_text(encoding="utf-8"))
        assert not loaded, f"{path.name} loads {loaded[0]}"


def test_no_page_links_to_a_repository_without_an_address(site):
    if pages.settings()["git_url"]: pytest.skip("settings.ini names a repository")
    for page, text in html_pages(site):
        assert not re.search(r'href="[^"]*(/blob/|/edit/|colab\.research)', text), page.name


def test_pages_have_icon_preview_and_words(site):
    for page, text in html_pages(site):
        icon, picture = (
            re.search(pattern, text)[1]
            for pattern in (r'rel="icon" href="([^"]+)"', r'"og:image" content="([^"]+)"')
        )
        assert (page.parent / icon).exists() and (page.parent / picture).exists()
    text = (site / "03_latent_prototypes.html").read_text(encoding="utf-8")
    assert 'property="og:title" content="03 · Latent prototypes"' in text
    images = [image for _, text in html_pages(site) for image in re.findall(r"<img[^>]*>", text)]
    assert images and all(re.search(r'alt="(?!_images/)[^"]', image) for image in images)


def test_equations_are_cited_by_links_but_not_in_code_or_titles(site):
    text = (site / "04_conditioning.html").read_text(encoding="utf-8")
    links = re.findall(r'<a class="equation-link[^"]*" href="([^"]+)"[^>]*>([^<]+)', text)
    assert {("02_similarity.html#eq-1", "Eq. (1)"), ("#eq-7", "7")} <= set(links)
    assert re.search(r"<h2>[^<]*Eq\. \(7\) and Eq\. \(11\)", text)
    for page, text in html_pages(site):
        for quoted in re.findall(r"<(?:pre|code|h\d)[ >].*?</(?:pre|code|h\d)>", text, re.S):
            assert "equation-link" not in quoted, page.name


def test_folded_cells_say_that_they_can_be_opened(site):
    text = (site / "07_cyctr.html").read_text(encoding="utf-8")
    assert re.search(r"<details.*?<summary.*?Show code<", text, re.S)


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


#: what reaches beyond the window and lies in no box that scrolls; equations that do not begin with
#: their beginning; equations that are not set
WALK = """async () => {
  await window.MathJax?.startup?.promise
  const scrolls = element => {
    for (let box = element; box && box.tagName !== "ARTICLE"; box = box.parentElement)
      if (/auto|scroll/.test(getComputedStyle(box).overflowX)) return true
    return false
  }
  const beyond = element => element.getBoundingClientRect().right > innerWidth + 1
  const cut = [...document.querySelectorAll("article :is(table, pre, img, iframe, mjx-container)")]
    .filter(element => beyond(element) && !scrolls(element))
    .map(element => element.outerHTML.slice(0, 80))
  const left = element => element.getBoundingClientRect().left
  const late = [...document.querySelectorAll("article div.math")]
    .filter(box => left(box.querySelector("mjx-math") ?? box) < left(box) - 2)
    .map(box => box.textContent)
  const wrong = [...document.querySelectorAll("[data-mjx-error]")].map(x => x.dataset.mjxError)
  const plain = [...document.querySelectorAll("article .math")]
    .filter(x => !x.querySelector("mjx-container")).map(x => x.textContent)
  return { width: document.documentElement.scrollWidth, cut, late, wrong, plain }
}"""


def walk(browser, site, names, width):
    "Visit pages; check each."
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(300_000)  # milliseconds, for a busy machine
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    for name in names:
        page.goto((site / f"{name}.html").as_uri())
        found = page.evaluate(WALK)
        assert found["width"] <= width, f"{name} is {found['width']} pixels wide"
        assert not any(found[key] for key in ("cut", "late", "wrong", "plain")), f"{name}: {found}"
        assert not errors, f"{name}: {errors}"
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert not outside, f"{outside[0]} is fetched"
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("part", PARTS)
def test_pages_fit_the_window_and_raise_no_error(part, width, browser, site):
    walk(browser, site, PARTS[part], width)


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index", "00_overview"])
def test_the_index_of_equations_needs_no_scrolling_at_a_desk(name, browser, site):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto((site / f"{name}.html").as_uri())
    table = page.locator("article table").filter(has_text="test_equation_1").first
    shown, whole = table.evaluate("x => [x.parentElement.clientWidth, x.scrollWidth]")
    assert whole <= shown, f"{name}: {whole} pixels in a box of {shown}"
    breaks = table.locator("code:has(wbr)")
    assert "test_equations.py::test_equation_1" in breaks.all_text_contents()
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_documents_fit_the_window_and_raise_no_error(width, browser, site):
    names = [name.removesuffix(".md") for name in PAGES.values() if name.endswith(".md")]
    walk(browser, site, names, width)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_delta_dragged_moves_the_maps_in_the_site(browser, site, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((site / "03_latent_prototypes.html").as_uri())
    frame, panel = page.locator("iframe.panel"), page.frame_locator("iframe.panel")
    said, slider = panel.get_by_text("Its region covers"), panel.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    before, box = said.inner_text(), slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.65 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.35 * box["width"], y, steps=4)
    moved = said.inner_text()  # while the button is down
    page.mouse.up()
    assert moved != before and re.search(r"δ = 0\.3", moved)
    inside = panel.locator("#explorable").evaluate("el => el.scrollHeight")
    assert inside < frame.bounding_box()["height"] < inside + 60
    page.close()


@pytest.mark.browser
def test_a_cited_equation_is_one_click_away(browser, site):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto((site / "04_conditioning.html").as_uri())
    page.get_by_role("link", name="Eq. (1)", exact=True).first.click()
    page.wait_for_url("**/02_similarity.html#eq-1")
    page.evaluate("window.MathJax.startup.promise.then(() => 0)")
    assert page.locator("#eq-1 mjx-container").count() == 1
    page.close()


@pytest.mark.browser
def test_code_is_copied_and_is_at_most_88_columns_wide(browser, site):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((site / "03_latent_prototypes.html").as_uri())
    assert page.locator(".cell_output .copy-code").count() == 0
    shown = page.locator(".cell_input div.highlight:visible")
    block = shown.filter(has_text="import").first
    block.hover()
    block.get_by_role("button", name="Copy this code").click()
    block.get_by_text("copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == block.locator("pre").text_content() and "import" in copied
    columns = """pre => {
      const style = getComputedStyle(pre), probe = document.createElement("span")
      const room = pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)
      probe.textContent = "0".repeat(100)
      pre.append(probe)
      probe.style.whiteSpace = "pre"
      const letter = probe.getBoundingClientRect().width / 100
      probe.remove()
      return room / letter
    }"""
    assert 80 < block.locator("pre").evaluate(columns) < 89
    context.close()
