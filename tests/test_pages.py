"""The notebooks as a static site: names become links, links lead somewhere, nothing is loaded from elsewhere, equations can be set."""
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
    ("`A0_scenes` draws", "[A0_scenes](A0_scenes.ipynb) draws"),
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
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "01_x.ipynb")
    made = pages.for_reading(tmp_path / "01_x.ipynb", STEMS, "https://host/repo", "main").cells
    assert [cell.source for cell in made] == [
        "def f(): pass",
        "import os",
        "a = 1  # | no directive",
    ]
    assert [cell.metadata.get("tags") for cell in made] == [None, ["hide-input"], None]


def test_links_to_other_files_lead_to_the_repository(tmp_path):
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_markdown_cell(
                    "[pilot](../results/pilot.py), [01](20_episodes.ipynb)"
                )
            ]
        ),
        tmp_path / "01_x.ipynb",
    )
    [made] = pages.for_reading(tmp_path / "01_x.ipynb", STEMS, "https://host/repo", "main").cells
    assert (
        made.source
        == "[pilot](https://host/repo/blob/main/results/pilot.py), [01](20_episodes.ipynb)"
    )


def test_front_page_links_to_the_site_and_else_to_the_repository():
    text = pages.front_page(sorted(STEMS), "https://host/repo", "main")
    targets = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", text)
    assert (
        {"20_episodes", "A0_scenes"}
        <= {t.removesuffix(".ipynb") for t in targets if t.endswith(".ipynb")}
        <= STEMS
    )
    assert all(t.endswith(".ipynb") or t.startswith(("https://", "#")) for t in targets)
    assert "[50_explorer](50_explorer.ipynb) in a browser" in " ".join(text.split())
    contents = re.findall(r"^(\d\w+|A\d_\w+)$", text, re.M)
    assert contents == sorted(STEMS)


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda path: path.stem)
def test_links_lead_somewhere_and_equations_have_one_number(path):
    for cell in nbformat.read(path, 4).cells:
        texts = (
            [cell.source]
            if cell.cell_type == "markdown"
            else [
                o.data["text/markdown"]
                for o in cell.outputs
                if "text/markdown" in o.get("data", {})
            ]
        )
        for text in texts:
            missing = [
                stem for stem in re.findall(r"\]\((\w+)\.ipynb[)#]", text) if stem not in STEMS
            ]
            assert not missing, f"a link leads to {missing[0]}.ipynb, which is not there"
            lost = [
                to
                for to in re.findall(r"\]\((?!https?:|#|\w+\.ipynb[)#])([^)]+)\)", text)
                if not (
                    cell.cell_type == "markdown"
                    and to.startswith("../")
                    and (path.parent / to).exists()
                )
            ]
            assert not lost, (
                f"a link leads to {lost[0]}: write it as ../ and the path of a file of the repository, in a markdown cell"
            )
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
    assert {f"{stem}.html" for stem in STEMS} | {
        "index.html",
        ".nojekyll",
        "_static/mathjax/tex-chtml.js",
    } <= made
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)[^>]*?(?:src|href)="(https?:[^"]+)"', text)
        assert not loaded, f"{page.name} loads {loaded[0]}"
        local = {
            t.split("#")[0].split("?")[0]
            for t in re.findall(r'<a [^>]*?href="(?!https?:|mailto:)([^"]+)"', text)
        } - {""}
        assert local <= made, f"{page.name} links to {sorted(local - made)[0]}, which is not there"


EQUATIONS = [
    path.stem
    for path in pages.notebooks()
    if any(
        cell.cell_type == "markdown" and "$$" in cell.source
        for cell in nbformat.read(path, 4).cells
    )
]


@pytest.mark.browser
@pytest.mark.parametrize("stem", EQUATIONS)
def test_equations_are_set_in_a_browser(stem, site, tmp_path):
    chromium = shutil.which("chromium")
    if not chromium: pytest.skip("there is no chromium: apt-get install chromium")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--virtual-time-budget=60000",
        f"--user-data-dir={tmp_path}",
    ]
    seen = subprocess.run(
        [chromium, *flags, "--dump-dom", (site / f"{stem}.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    asked = len(
        re.findall(
            r'<(?:span|div) class="math', (site / f"{stem}.html").read_text(encoding="utf-8")
        )
    )
    assert asked and seen.count("<mjx-container") >= asked
    assert not (wrong := re.findall(r'data-mjx-error="([^"]*)"', seen)), wrong[0]
