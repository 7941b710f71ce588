"""Edit notebooks as text and build them again.

    python tools/nb.py edit  nbs/04_similarity.ipynb   # writes .nb/04_similarity.py (jupytext percent, not committed)
    python tools/nb.py build .nb/04_similarity.py      # writes, runs, cleans and exports nbs/04_similarity.ipynb

The committed source is the .ipynb with its outputs; .nb/ is only a diffable way to write it.
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


def edit(notebook: Path) -> Path:
    text = ROOT / ".nb" / f"{notebook.stem}.py"
    text.parent.mkdir(exist_ok=True)
    jupytext.write(jupytext.read(notebook), text, fmt="py:percent")
    return text


def build(text: Path) -> Path:
    nb = jupytext.read(text, fmt="py:percent")
    for i, cell in enumerate(nb.cells):  # the same text gives the same ids, and so a small diff
        cell.id = hashlib.sha1(f"{i} {cell.source}".encode()).hexdigest()[:8]
    nb.metadata = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    target = ROOT / "nbs" / f"{text.stem}.ipynb"
    start = time.time()
    NotebookClient(nb, timeout=600, resources={"metadata": {"path": str(ROOT / "nbs")}}).execute()
    nbformat.write(nb, target)
    nbdev_clean(str(target))
    nb_export(target, lib_path=ROOT / "celp_nb")
    print(f"{target.relative_to(ROOT)}: ran in {time.time() - start:.0f} s, {target.stat().st_size / 1e6:.2f} MB")
    return target


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("edit", "build"):
        sys.exit(__doc__)
    os.chdir(ROOT)
    for path in sys.argv[2:]:
        {"edit": edit, "build": build}[sys.argv[1]](Path(path))
