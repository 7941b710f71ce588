"""Build the notebooks, as they are committed with their outputs, into a static site.

    pip install -r tools/requirements-pages.txt
    python tools/pages.py                # writes _docs/index.html and one page per notebook
    python tools/pages.py --out DIR

Nothing is executed and nothing of the site is loaded from elsewhere: MathJax comes with it, so
equations render offline. A link that leads nowhere, or another warning of Sphinx, stops the build.
"""

import argparse
import re
import shutil
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

import nbformat

from celp_nb.app.latent_payload import scene_payloads
from celp_nb.app.latent_widget import static_page

ROOT = Path(__file__).resolve().parent.parent
STEM = r"(?:\d\d|A\d)[a-z]?_\w+"  # of a notebook's file, such as 05_losses or A2_scenes
#: wings of the table of contents: caption → beginnings of stems
WINGS = {
    "The paper": ("0", "1"),
    "Data": ("2",),
    "Engine": ("3",),
    "Reproduction": ("4",),
    "Application": ("5",),
    "Appendix": ("A",),
}
CSS = """.bd-page-width { max-width: 110rem; }
.bd-main .bd-content .bd-article-container { max-width: 75rem; }
div.cell pre { font-size: 78%; }
div.cell_output pre { white-space: pre-wrap; }
p.rubric { display: block; }
iframe.panel { width: 100%; height: 60rem; border: 1px solid #ccc; }
"""
#: a frame is as tall as the page in it says
SCRIPT = """window.addEventListener("message", event => {
  for (const frame of document.querySelectorAll("iframe.panel")) {
    const height = Number(event.data?.height)
    if (frame.contentWindow === event.source && height > 0) frame.style.height = `${height}px`
  }
})
"""
#: notebooks that begin with the panel in which Eq. (1) to Eq. (9) are computed
PANEL_IN = ("02_similarity", "03_latent_prototypes", "04_conditioning")
PANEL = """<iframe class="panel" src="_static/panel.html" loading="lazy"
title="From one position to a latent prototype: sliders for δ and σ, and a centre to move"></iframe>

Move δ, σ or the centre i\\*: everything is computed in this page, by Eq. (1) to Eq. (9).
([The panel alone](_static/panel.html); [50e_latent_widget](50e_latent_widget.ipynb) says how.)"""
DIRECTIVE = re.compile(r"^#\|\s*(\w+).*\n?", re.M)
ALT = re.compile(r"^#\|\s*fig-alt:\s*(.+)$", re.M)  # what a figure shows, for those who hear it


def notebooks() -> list[Path]:
    "Reading order: numbered notebooks, then the appendices."
    return sorted((ROOT / "nbs").glob("*.ipynb"))


def settings() -> dict[str, str]:
    "The values of settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def linked(text: str, stems: set[str]) -> str:
    """Turn names of notebooks, as `05_losses` or *05_losses*, into links.

    What is a link already stays.
    """

    def link(match):
        stem = match[2]
        return f"[{stem}]({stem}.ipynb)" if stem in stems else match[0]

    return re.sub(rf"(?<![\[*`])([*`])({STEM})\1(?![\]*`])", link, text)


def for_reading(path: Path, stems: set[str], git_url: str, branch: str) -> nbformat.NotebookNode:
    """A notebook as the site shows it.

    nbdev's directives are removed and what they hide is folded away; names of notebooks are links;
    links to other files lead to the repository.
    """
    nb = nbformat.read(path, 4)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, stems).replace("](../", f"]({git_url}/blob/{branch}/")
        if cell.cell_type == "code":
            names = set(DIRECTIVE.findall(cell.source))
            if alt := ALT.search(cell.source): cell.metadata["mystnb"] = {"image": {"alt": alt[1]}}
            cell.source = DIRECTIVE.sub("", cell.source)
            if "hide" in names: cell.metadata["tags"] = ["hide-input"]
    nb.cells = [cell for cell in nb.cells if cell.source.strip()]
    if path.stem in PANEL_IN:
        nb.cells[0].source += f"\n\n{PANEL}"  # the question; equations follow
    return nb


def contents(stems: list[str]) -> str:
    "The table of contents for the side bar, one group per wing."
    groups = []
    for caption, beginnings in WINGS.items():
        members = [stem for stem in stems if stem.startswith(beginnings)]
        if members:
            options = [":hidden:", f":caption: {caption}", ""]
            groups.append("\n".join(["", "```{toctree}", *options, *members, "```", ""]))
    return "".join(groups)


def front_page(stems: list[str], git_url: str, branch: str) -> str:
    "The README with its links turned from the repository to the site, and the table of contents."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?:\./)?nbs/(\w+\.ipynb)\)", r"](\1)", text)
    text = linked(text, set(stems))
    text = re.sub(
        r"(?<!!)(\[[^\]]*\])\((?!https?:|#|\w+\.ipynb\))([^)]+)\)",
        rf"\1({git_url}/blob/{branch}/\2)",
        text,
    )
    return text + contents(stems)


def write_sources(folder: Path, git_url: str, branch: str) -> None:
    "Write what Sphinx reads: the front page, its pictures, and the notebooks."
    stems = [path.stem for path in notebooks()]
    for path in notebooks():
        nbformat.write(for_reading(path, set(stems), git_url, branch), folder / path.name)
    front = front_page(stems, git_url, branch)
    (folder / "index.md").write_text(front, encoding="utf-8")
    (folder / "_static").mkdir()
    (folder / "_static" / "pages.css").write_text(CSS, encoding="utf-8")
    (folder / "_static" / "pages.js").write_text(SCRIPT, encoding="utf-8")
    panel = static_page(scene_payloads())
    (folder / "_static" / "panel.html").write_text(panel, encoding="utf-8")
    for picture in re.findall(r"!\[[^\]]*\]\((?!https?:)([^)]+)\)", front):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / picture, folder / picture)


def sphinx_options(source: Path) -> dict:
    "What Sphinx's conf.py would hold."
    values = settings()
    return {
        "project": values["title"],
        "author": values["author"],
        "copyright": values["copyright"],
        "language": "en",
        "extensions": ["myst_nb", "sphinx-mathjax-offline"],
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_render_markdown_format": "myst",
        # Would come from a CDN; without it a widget shows its picture or text.
        "nb_ipywidgets_js": {},
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "myst_heading_anchors": 3,
        "html_theme": "sphinx_book_theme",
        "html_title": values["title"],
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_static_path": [str(source / "_static")],
        "html_css_files": ["pages.css"],
        "html_js_files": ["pages.js"],
        "html_theme_options": {
            "repository_url": values["git_url"],
            "use_repository_button": True,
            "use_download_button": False,
            "show_toc_level": 2,
            "navbar_persistent": [],  # the side bar has a search field already
        },
    }


def build(out: Path) -> None:
    "Write the site to `out`; where Sphinx warns, leave `out` as it is and exit."
    from sphinx.application import Sphinx  # here: the rest works and is tested without it

    values = settings()
    with tempfile.TemporaryDirectory() as tmp:
        source, site, trees = (Path(tmp) / name for name in ("source", "site", "doctrees"))
        source.mkdir()
        write_sources(source, values["git_url"], values["branch"])
        options = sphinx_options(source)
        app = Sphinx(source, None, site, trees, "html", options, status=None, warningiserror=True)
        app.build()
        if app.statuscode: sys.exit("the site was not built: mend what is warned of above.")
        (site / ".nojekyll").touch()  # or Pages leaves out folders that begin with _
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(site, out)
    print(f"{len(notebooks())} notebooks and the front page: {out / 'index.html'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / settings()["doc_path"],
        help="folder of the site; replaced (default: _docs)",
    )
    build(parser.parse_args().out.resolve())
