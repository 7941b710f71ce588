"""The README and the pages beside it.

The README is short and its promises hold; each page's links lead somewhere; the picture is small,
wide enough and made from bundled scenes; the citation says what settings.ini says.
"""

import importlib.util
import json
import re
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = (".", "docs", "nbs", "results", "results/*", "results/history/*")
PAGES = sorted({page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md")})
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    "A page's text; of a notebook the cells that are text."
    if page.suffix != ".ipynb": return text_of(page)
    cells = json.loads(text_of(page))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def words(markdown):
    "What a reader reads: neither comments nor the targets of links nor the rules of tables."
    shown = re.sub(r"<!--.*?-->", "", markdown, flags=re.S)
    shown = re.sub(r"\]\([^)]*\)", "]", shown)
    return [word for word in shown.split() if re.search(r"\w", word)]


def anchors(markdown):
    "The names by which GitHub links to headings."
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def python_block(markdown):
    "The first piece of Python."
    return re.search(r"^```python\n(.*?)^```", markdown, re.M | re.S)[1]


def test_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(words(README)) <= 900


def test_quick_start_is_two_commands():
    block = re.search(r"^#+\s*Quick start\b.*?^```[a-z]*\n(.*?)^```", README, re.M | re.S)[1]
    run, test = block.splitlines()
    assert run.startswith("pip install -e ") and "celp run" in run
    assert test.startswith("pip install -e '.[dev]'") and "nbdev_test" in test and "pytest" in test


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("http"): continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"a link leads to {target}"
        assert not anchor or anchor in anchors(prose_of(other)), f"{target} is no heading"


def test_pages_are_found():
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "docs/data.md", "nbs/README.md", "results/history/README.md"} <= names


def test_every_page_is_linked_from_another():
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
            if not target.startswith("http"): linked.add((page.parent / target).resolve())
    assert set(PAGES) - linked <= {ROOT / "README.md"}


def reading_order():
    "Notebook and module of each line of the list of notebooks."
    lines = text_of(ROOT / "nbs" / "README.md")
    return re.findall(r"^\| \[\w+\]\((\w+)\.ipynb\) \| (\S+) \|", lines, re.M)


def test_every_notebook_is_in_the_reading_order():
    listed = [stem for stem, _ in reading_order()]
    assert listed == [path.stem for path in sorted((ROOT / "nbs").glob("*.ipynb"))]


def test_reading_order_names_the_module_of_each_notebook():
    for stem, module in reading_order():
        exported = re.search(r'"#\|\s*default_exp ([\w.]+)', text_of(ROOT / f"nbs/{stem}.ipynb"))
        assert module == (f"`{exported[1]}`" if exported else "–"), stem


def test_library_example_runs():
    names = {}
    exec(python_block(text_of(ROOT / "docs" / "library.md")), names)
    for loss in (names["losses"].main, names["losses"].contrast):
        assert loss.isfinite() and loss > 0
    for parameter in names["model"].parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def commands_of(markdown):
    "The first words after celp at the beginnings of lines in a page's commands."
    blocks = re.findall(r"^```bash\n(.*?)^```", markdown, re.M | re.S)
    return re.findall(r"^celp (\w+)", "\n".join(blocks), re.M)


def test_commands_of_the_pages_exist():
    from celp_nb.app.cli import COMMANDS

    used = {word for page in PAGES for word in commands_of(text_of(page))}
    assert {"data", "table", "predict"} <= used <= set(COMMANDS)


def index_lines(markdown):
    "Number, notebook, and function with test of each line of an index of equations."
    line = r"^\| (\S+) \| [^|]+ \| \[\d\d\]\(\S*?(\w+)\.ipynb\) \| (.+)$"
    return re.findall(line, markdown, re.M)


def test_index_of_equations_is_that_of_00():
    notebook = text_of(ROOT / "nbs" / "00_overview.ipynb").replace('\\n",', "")
    lines = [line.strip().removeprefix('"') for line in notebook.splitlines()]
    own = index_lines(README)
    assert {number for number, *_ in own if number.isdigit()} == {str(n) for n in range(1, 16)}
    assert own == index_lines("\n".join(lines))


# --- the picture

spec = importlib.util.spec_from_file_location("picture", ROOT / "tools" / "readme_picture.py")
picture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(picture)


def test_the_picture_is_small_and_moves():
    [(alt, name)] = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README)
    assert len(alt.split()) > 20 and (ROOT / name).stat().st_size < 2_000_000
    with Image.open(ROOT / name) as gif:
        assert gif.width == 700 and gif.n_frames > 20 and gif.info["loop"] == 0


def test_the_region_of_the_picture_shrinks_to_the_star():
    segmenter = picture.Segmenter.from_pretrained("samples-pfenet-ce")
    photo, row, masks = picture.star_regions(segmenter, [0.25, 0.65, 0.9])
    areas = [int((mask == 1).sum()) for mask in masks]
    assert areas[0] > areas[1] > areas[2] > 0 and row[picture.CENTRE] > 0.99
    assert photo.shape[:2] == masks[0].shape and (masks[0] == 0).any()


def test_the_episode_of_the_picture_is_the_middle_one():
    difference = pd.Series([0.3, -0.2, 0.1, 0.0, -0.1], index=[4, 7, 1, 3, 9])
    assert picture.median_index(difference) == 3
    assert picture.median_index(difference.drop(9)) == 3  # of two in the middle the lower


def test_a_gif_keeps_frames_and_durations(tmp_path):
    frames = []
    for k in range(3):
        pixels = np.zeros((8, 12, 3), np.uint8)
        pixels[:, k] = 255
        frames.append((Image.fromarray(pixels), 100 * (k + 1)))
    picture.write_gif(frames, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3
        for k in range(3):
            gif.seek(k)
            assert gif.info["duration"] == 100 * (k + 1)
            assert (np.asarray(gif.convert("L")) > 200).nonzero()[1].tolist() == [k] * 8


# --- the citation


def test_citation_is_of_this_software_and_of_the_paper():
    values, text = SETTINGS["DEFAULT"], text_of(ROOT / "CITATION.cff")
    software, paper = text.split("preferred-citation:")
    for field, value in {
        "title": values["title"],
        "version": values["version"],
        "license": "Apache-2.0",
        "  - name": values["author"],
    }.items():
        assert f"\n{field}: {value}\n" in software
    [title] = re.findall(r"title: (.+)", paper)
    assert title == "Contrastive Enhancement Using Latent Prototype for Few-Shot Segmentation"
    flat = " ".join(README.split())
    assert f"*{title}*" in flat and re.search(r"url: (\S+)", paper)[1] in flat
    assert paper.count("family-names:") == 6
