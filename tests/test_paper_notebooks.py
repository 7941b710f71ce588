"""Notebooks as a reader meets them: what is folded, said of figures, and (00 to 10) installed."""

import importlib.util
import itertools
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PAPER = [path for path in NOTEBOOKS if path.stem < "11"]
spec = importlib.util.spec_from_file_location("nb", ROOT / "tools" / "nb.py")
tools = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tools)

paper_notebook = pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_what_is_hidden_is_folded_in_jupyterlab():
    code = nbformat.v4.new_code_cell
    cells = [code("#| hide\na = 1"), code("b = 2"), code("c = 3", metadata={"jupyter": {}})]
    nb = nbformat.v4.new_notebook(cells=cells)
    tools.fold(nb)
    assert [cell.metadata for cell in nb.cells] == [{"jupyter": {"source_hidden": True}}, {}, {}]


@every_notebook
def test_hidden_cells_are_folded_and_others_are_not(path):
    for cell in code_of(path):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert folded == cell.source.startswith("#| hide"), f"build {path.stem}: {cell.source[:60]}"


@every_notebook
def test_every_figure_says_what_it_shows(path):
    for cell in code_of(path):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert "#| fig-alt: " in cell.source, f"no fig-alt in {cell.source[:80]}"
        if "#| fig-alt: " in cell.source:
            assert cell.outputs, f"no figure: build {path.stem}, whose cell has changed"


def figure(source, *words):
    "A cell with a picture, after which these words were written."
    output = nbformat.v4.new_output
    outputs = [output("stream", text="first"), output("display_data", {"image/png": "data"})]
    outputs += [output("display_data", {"text/markdown": text}) for text in words]
    return nbformat.v4.new_code_cell(source, outputs=outputs)


def shown(cell):
    "What a cell shows, in order: the words of its output, or its picture's data."
    return [o.get("text") or next(iter(o["data"].values())) for o in cell.outputs]


def test_captions_are_written_once_below_figures_and_numbered():
    cells = [
        figure("#| fig-alt: A star\nshow()", "**Figure 07.3:** A moon."),
        nbformat.v4.new_code_cell("a = 1"),
        figure("#| hide\n#| fig-alt: Two maps\n#| fig-cap: The maps of $D$\nshow()", "said"),
        figure("show()"),
    ]
    nb = nbformat.v4.new_notebook(cells=cells)
    for _ in range(2): tools.write_captions(nb, "07")
    assert shown(cells[0]) == ["first", "data", "**Figure 07.1:** A star."]
    assert shown(cells[2]) == ["first", "data", "**Figure 07.2:** The maps of $D$.", "said"]
    assert not cells[1].outputs and len(cells[3].outputs) == 2


def test_another_caption_keeps_the_picture(tmp_path, monkeypatch):
    (tmp_path / "nbs").mkdir()
    path = tmp_path / "nbs" / "07_x.ipynb"
    cells = [figure("#| fig-alt: A star\nshow()"), figure("other()")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    text = "# %%\n#| fig-alt: A star\n#| fig-cap: A moon\nshow()\n\n# %%\nchanged()\n"
    (tmp_path / "07_x.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "nbdev_clean", lambda *args: None)
    monkeypatch.setattr(tools, "nb_export", lambda *args, **options: None)
    tools.export(tmp_path / "07_x.py")
    first, second = nbformat.read(path, 4).cells
    assert shown(first) == ["first", "data", "**Figure 07.1:** A moon."] and not second.outputs


def test_a_slider_leaves_its_picture_and_other_widgets_stay():
    output = nbformat.v4.new_output
    picture, view, words = (
        output("display_data", data)
        for data in ({"image/png": "data"}, {tools.WIDGET: {}}, {"text/plain": "said"})
    )
    assert tools.without_views([words, picture, view]) == [words, picture]
    assert tools.without_views([words, view]) == [words, view]
    both = output("display_data", {"image/png": "data", tools.WIDGET: {}})
    assert tools.without_views([both]) == [both]


def test_building_sends_no_message_to_widgets(tmp_path, monkeypatch):
    clients = []

    class Client:
        def __init__(self, nb, **options):
            self.comm_open_handlers = {"jupyter.widget": lambda message: "an output widget"}
            clients.append(self)

        def execute(self): self.at_start = self.comm_open_handlers["jupyter.widget"]({})

    (tmp_path / "nbs").mkdir()
    (tmp_path / "07_x.py").write_text("# %%\na = 1\n", encoding="utf-8")
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "NotebookClient", Client)
    monkeypatch.setattr(tools, "nbdev_clean", lambda *args: None)
    monkeypatch.setattr(tools, "nb_export", lambda *args, **options: None)
    tools.build(tmp_path / "07_x.py")
    assert clients[0].at_start is None


@every_notebook
def test_every_figure_has_a_caption_and_they_are_numbered_in_order(path):
    number, captions = path.stem.split("_")[0], []
    for cell in code_of(path):
        data = [output.get("data", {}) for output in cell.outputs]
        texts = [d.get("text/markdown", "") for d in data]
        found = [t for t in texts if t.startswith(tools.CAPTION)]
        pictures = sum("image/png" in d for d in data)
        assert len(found) == pictures, f"no caption: build or export {path.stem}"
        captions += found
    wanted = [f"**Figure {number}.{k + 1}:** " for k in range(len(captions))]
    assert captions or path not in PAPER, f"{path.stem} shows nothing: is MPLBACKEND set?"
    assert [re.match(r"\S+ \S+ ", text)[0] for text in captions] == wanted


@paper_notebook
def test_no_three_folded_cells_stand_in_a_row_before_the_exercises(path):
    cells = nbformat.read(path, 4).cells
    last = next(k for k, cell in enumerate(cells) if "\n## Exercises" in f"\n{cell.source}")
    folded = [cell.source.startswith("#| hide") for cell in cells[:last]]
    rows = [len(list(row)) for hidden, row in itertools.groupby(folded) if hidden]
    assert max(rows) <= 2, f"put helpers of {path.stem} into the cell of the picture they draw"


def test_a_slider_of_five_lines_has_run():
    path = next(path for path in PAPER if path.stem.startswith("03"))
    cell = next(cell for cell in code_of(path) if "@interact(" in cell.source)
    lines = [line for line in cell.source.splitlines() if line and not line.startswith("#|")]
    assert len(lines) == 5 and any("image/png" in o.get("data", {}) for o in cell.outputs)


@paper_notebook
def test_a_notebook_ends_with_exercises_and_a_card(path):
    texts = [cell.source for cell in nbformat.read(path, 4).cells]
    text = "\n".join(texts)
    assert text.index("\n## Exercises") < text.index("\n## Card")
    for row in ("Idea", "Equation", "Number", "Caveat"): assert f"| **{row}** |" in text
    number = text[text.index("\n## Exercises") : text.index("\n## Card")].count("#| hide")
    assert number >= 3, "an answer of each exercise is a folded cell"


@paper_notebook
@pytest.mark.parametrize("missing", [False, True])
def test_the_first_cell_installs_the_package_where_it_is_missing(path, missing, monkeypatch):
    source, asked = code_of(path)[0].source, []
    assert source == code_of(PAPER[0])[0].source

    class Shell:
        def run_line_magic(self, name, line): asked.append((name, line))

    if missing: monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {"get_ipython": Shell})
    assert asked == [("pip", "install -q ..")] * missing
