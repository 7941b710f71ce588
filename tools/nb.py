"""Edit notebooks as text and build them again.

    python tools/nb.py edit   nbs/02_similarity.ipynb  # writes .nb/02_similarity.py (jupytext)
    python tools/nb.py export .nb/02_similarity.py     # writes notebook and module, runs nothing
    python tools/nb.py build  .nb/02_similarity.py     # writes, runs, cleans and exports them

The committed source is the .ipynb with its outputs; .nb/ is only a diffable way to write it and is
not committed. `export` keeps the outputs of cells that did not change.

A figure is described by `#| fig-alt:` for those who hear it, and explained by `#| fig-cap:` where
its caption is to say something else. Captions and their numbers are written here, below figures.
"""

import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export

ROOT = Path(__file__).resolve().parent.parent
FIGURE = re.compile(r"^#\|\s*fig-(alt|cap):\s*(.+)\n", re.M)
CAPTION = "**Figure "  # how a caption begins
WIDGET = "application/vnd.jupyter.widget-view+json"


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


def is_picture(output: nbformat.NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def is_caption(output: nbformat.NotebookNode) -> bool:
    return output.get("data", {}).get("text/markdown", "").startswith(CAPTION)


def without_views(outputs: list) -> list:
    "Outputs without the sliders beside a picture, of which nothing is seen without their kernel."
    if not any(is_picture(output) for output in outputs): return outputs
    return [x for x in outputs if is_picture(x) or WIDGET not in x.get("data", {})]


def write_captions(nb: nbformat.NotebookNode, number: str) -> None:
    "Put a caption, 'Figure 03.2: …', below each described figure of the notebook of this number."
    count = 0
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [output for output in cell.outputs if not is_caption(output)]
        words = dict(FIGURE.findall(cell.source))
        if not words: continue
        count += 1
        text = f"{CAPTION}{number}.{count}:** {words.get('cap') or words['alt']}."
        caption = nbformat.v4.new_output("display_data", {"text/markdown": text})
        pictures = [k for k, output in enumerate(cell.outputs) if is_picture(output)]
        if pictures: cell.outputs.insert(pictures[-1] + 1, caption)


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
    "Write a notebook with captions, clean it and export its module."
    write_captions(nb, target.stem.split("_")[0])
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
        outputs = {FIGURE.sub("", c.source): c.outputs for c in before}  # words change no output
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs.get(FIGURE.sub("", cell.source), [])
    write(nb, target)


def build(text: Path) -> None:
    "Write a notebook and its module from the text, and run the notebook."
    nb, target, start = read_text(text), notebook_of(text), time.time()
    resources = {"metadata": {"path": str(ROOT / "nbs")}}
    nb_export_first(nb, target)
    client = NotebookClient(nb, timeout=600, resources=resources, store_widget_state=False)
    # nbclient plays the page to widgets that show output, as `interact` does: its messages can lose
    # the kernel's reply, and the notebook never ends. Without, pictures are outputs like others.
    client.comm_open_handlers = {"jupyter.widget": lambda message: None}
    client.execute()
    for cell in nb.cells:
        if cell.cell_type == "code": cell.outputs = without_views(cell.outputs)
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
