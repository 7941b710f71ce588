"""Edit notebooks as text and build them again.

    python tools/nb.py edit   nbs/02_similarity.ipynb  # writes .nb/02_similarity.py (jupytext)
    python tools/nb.py export .nb/02_similarity.py     # writes notebook and module, runs nothing
    python tools/nb.py build  .nb/02_similarity.py     # writes, runs, cleans and exports them

The committed source is the .ipynb with its outputs; .nb/ is only a diffable way to write it and is
not committed. `export` keeps the outputs of cells that did not change.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent


def text_of(notebook: Path) -> Path:
    "Where a notebook's text lies."
    return ROOT / ".nb" / f"{notebook.stem}.py"


def notebook_of(text: Path) -> Path:
    "The notebook that a text is of."
    return ROOT / "nbs" / f"{text.stem}.ipynb"


def fold(nb: nbformat.NotebookNode) -> None:
    "Let JupyterLab fold the code of cells that begin with `#| hide`, as the site does."
    for cell in nb.cells:
        hidden = cell.cell_type == "code" and cell.source.startswith("#| hide")
        if hidden: cell.metadata["jupyter"] = {"source_hidden": True}
        else: cell.metadata.pop("jupyter", None)


def read_text(text: Path) -> nbformat.NotebookNode:
    "A notebook without outputs; the same text gives the same cell ids, and so a small diff."
    nb = jupytext.read(text, fmt="py:percent")
    fold(nb)
    seen = {}
    for cell in nb.cells:
        number = seen[cell.source] = seen.get(cell.source, 0) + 1
        cell.id = hashlib.sha1(f"{number} {cell.source}".encode()).hexdigest()[:8]
    spec = {"name": "python3", "display_name": "python3", "language": "python"}
    nb.metadata = {"kernelspec": spec}
    return nb


def write(nb: nbformat.NotebookNode, target: Path) -> None:
    "Write a notebook, clean it and export its module."
    nbformat.write(nb, target)
    nbdev_clean(str(target))
    nb_export(target, lib_path=ROOT / "celp_nb")


def edit(notebook: Path) -> None:
    "Write a notebook's text."
    text = text_of(notebook)
    text.parent.mkdir(exist_ok=True)
    nb = jupytext.read(notebook)
    for cell in nb.cells: cell.metadata.pop("jupyter", None)  # `fold` writes it
    jupytext.write(nb, text, fmt="py:percent")


def export(text: Path) -> None:
    "Write a notebook and its module from the text, with the outputs of cells that did not change."
    nb, target = read_text(text), notebook_of(text)
    outputs = {}
    if target.is_file():
        before = [c for c in nbformat.read(target, 4).cells if c.cell_type == "code"]
        outputs = {c.source: c.outputs for c in before}
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs.get(cell.source, [])
    write(nb, target)


def build(text: Path) -> None:
    "Write a notebook and its module from the text, and run the notebook."
    nb, target, start = read_text(text), notebook_of(text), time.time()
    resources = {"metadata": {"path": str(ROOT / "nbs")}}
    nb_export_first(nb, target)
    client = NotebookClient(nb, timeout=600, resources=resources, store_widget_state=False)
    client.execute()
    write(nb, target)
    seconds, size = time.time() - start, target.stat().st_size / 1e6
    print(f"{target.relative_to(ROOT)}: ran in {seconds:.0f} s, {size:.2f} MB", flush=True)


def nb_export_first(nb: nbformat.NotebookNode, target: Path) -> None:
    "Export the module before its notebook runs, so that other modules see what it says now."
    nbformat.write(nb, target)
    nb_export(target, lib_path=ROOT / "celp_nb")


if __name__ == "__main__":
    commands = {"edit": edit, "export": export, "build": build}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT)  # the kernel imports this tree, wherever it lies
    os.environ.pop("MPLBACKEND", None)  # the kernel shows figures in the notebook
    for path in sys.argv[2:]:
        commands[sys.argv[1]](Path(path))
