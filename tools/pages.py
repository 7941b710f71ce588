"""Build the notebooks, as they are committed with their outputs, into a static site.

    pip install -e . -r tools/requirements-pages.txt
    python tools/pages.py                # writes _docs/index.html and one page per notebook
    python tools/pages.py --out DIR

Nothing is executed and nothing of the site is loaded from elsewhere: MathJax comes with it, so
equations render offline. A link that leads nowhere, or another warning of Sphinx, stops the build.
Links to the repository appear when settings.ini gives its address, `git_url`.
"""

import argparse
import re
import shutil
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its neighbours, and for Sphinx

from page_equations import equation_places
from page_pictures import write_pictures
from page_sources import ROOT, notebooks, site_pages, write_pages

from celp_nb.app.latent_payload import scene_images
from celp_nb.app.latent_widget import static_page

STATIC = Path(__file__).resolve().parent / "page_static"


def settings() -> dict[str, str]:
    "The values of settings.ini. Raises ValueError where `git_url` is no address of a repository."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    values = dict(parser["DEFAULT"])
    if values["git_url"] and not re.fullmatch(r"https://[^/]+/[^/]+/.+", values["git_url"]):
        raise ValueError(
            f"settings.ini: git_url is {values['git_url']}; give https://HOST/OWNER/NAME, or leave "
            "it empty."
        )
    return values


def write_sources(folder: Path, values: dict[str, str]) -> None:
    "Write what Sphinx reads: pages, styles, scripts, the panel and pictures."
    blob = f"{values['git_url']}/blob/{values['branch']}" if values["git_url"] else ""
    write_pages(folder, blob)
    static = folder / "_static"
    shutil.copytree(STATIC, static)
    images = scene_images()
    payloads = {name: shown.payload for name, shown in images.items()}
    (static / "panel.html").write_text(static_page(payloads), encoding="utf-8")
    write_pictures(static, next(iter(images.values())), values["title"])


def sphinx_options(source: Path, values: dict[str, str]) -> dict:
    "What Sphinx's conf.py would hold."
    pages = site_pages()
    return {
        "project": values["title"],
        "author": values["author"],
        "copyright": values["copyright"],
        "language": "en",
        "extensions": ["myst_nb", "sphinx-mathjax-offline", "page_extension"],
        "equation_places": equation_places(notebooks()),
        "page_sources": {page.rsplit(".", 1)[0]: name for name, page in pages.items()},
        "project_values": values,
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_render_markdown_format": "myst",
        "nb_code_prompt_show": "Show code",
        "nb_code_prompt_hide": "Hide code",
        # Would come from a CDN; without it a widget shows its picture or text.
        "nb_ipywidgets_js": {},
        "myst_enable_extensions": ["dollarmath", "amsmath", "html_image"],
        "myst_heading_anchors": 3,
        "suppress_warnings": ["myst.header"],  # a document may begin at any level
        "html_theme": "sphinx_book_theme",
        "html_context": {"default_mode": "auto"},
        "html_title": values["title"],
        "html_favicon": str(source / "_static" / "favicon.png"),
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_static_path": [str(source / "_static")],
        "html_css_files": ["pages.css"],
        "html_js_files": ["pages.js"],
        "html_theme_options": {
            "use_download_button": False,
            "show_toc_level": 2,
            "navbar_persistent": [],  # the side bar has a search field already
        },
    }


def build(out: Path, values: dict[str, str] | None = None) -> None:
    """Write the site to `out`; where Sphinx warns, leave `out` as it is and exit.

    `values` stand in for those of settings.ini.
    """
    from sphinx.application import Sphinx  # here: the rest works and is tested without it

    values = values or settings()
    with tempfile.TemporaryDirectory() as tmp:
        source, site, trees = (Path(tmp) / name for name in ("source", "site", "doctrees"))
        source.mkdir()
        write_sources(source, values)
        options = sphinx_options(source, values)
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
