"""Notebooks 00 to 10 as a reader meets them: what is folded, said of figures, and installed."""

import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPER = sorted([*(ROOT / "nbs").glob("0*.ipynb"), *(ROOT / "nbs").glob("10_*.ipynb")])
spec = importlib.util.spec_from_file_location("nb", ROOT / "tools" / "nb.py")
tools = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tools)

each_notebook = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)


def code_of(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_what_is_hidden_is_folded_in_jupyterlab():
    code = nbformat.v4.new_code_cell
    cells = [code("#| hide\na = 1"), code("b = 2"), code("c = 3", metadata={"jupyter": {}})]
    nb = nbformat.v4.new_notebook(cells=cells)
    tools.fold(nb)
    assert [cell.metadata for cell in nb.cells] == [{"jupyter": {"source_hidden": True}}, {}, {}]


@each_notebook
def test_hidden_cells_are_folded_and_others_are_not(path):
    for cell in code_of(path):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert folded == cell.source.startswith("#| hide"), f"build {path.stem}: {cell.source[:60]}"


@each_notebook
def test_every_figure_says_what_it_shows(path):
    for cell in code_of(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert "#| fig-alt: " in cell.source, f"no fig-alt in {cell.source[:80]}"


@each_notebook
def test_a_notebook_ends_with_exercises_and_a_card(path):
    texts = [cell.source for cell in nbformat.read(path, 4).cells]
    text = "\n".join(texts)
    assert text.index("\n## Exercises") < text.index("\n## Card")
    for row in ("Idea", "Equation", "Number", "Caveat"): assert f"| **{row}** |" in text
    number = text[text.index("\n## Exercises") : text.index("\n## Card")].count("#| hide")
    assert number >= 3, "an answer of each exercise is a folded cell"


@each_notebook
@pytest.mark.parametrize("missing", [False, True])
def test_the_first_cell_installs_the_package_where_it_is_missing(path, missing, monkeypatch):
    source, asked = code_of(path)[0].source, []
    assert source == code_of(PAPER[0])[0].source

    class Shell:
        def run_line_magic(self, name, line): asked.append((name, line))

    if missing: monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {"get_ipython": Shell})
    assert asked == [("pip", "install -q ..")] * missing
