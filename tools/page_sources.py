"""What Sphinx reads: the notebooks, the README and the documents they link to, as pages of a site.

Links are turned from the repository to the site. Links to other files need the repository's
address, `git_url` in settings.ini; while it is empty, only their words stay.
"""

import base64
import os
import re
import shutil
import struct
from pathlib import Path, PurePosixPath

import nbformat

ROOT = Path(__file__).resolve().parent.parent
STEM = r"(?:\d\d|A\d)[a-z]?_\w+"  # of a notebook's file, such as 05_losses or A2_scenes
#: files that may hold the index of the notebooks, in parts; the first that does is read
INDEXES = (ROOT / "nbs" / "README.md", ROOT / "README.md")
BIBLIOGRAPHY = "docs/bibliography.md"
DOCUMENTS = "Results and documents"  # caption of the last part of the side bar
WIDE = 500  # pixels; a wider figure gets the page's whole width
#: notebooks that begin with the panel in which Eq. (1) to Eq. (9) are computed
PANEL_IN = ("02_similarity", "03_latent_prototypes", "04_conditioning")
PANEL = """<iframe class="panel" src="_static/panel.html" loading="lazy"
title="From one position to a latent prototype: sliders for δ and σ, and a centre to move"></iframe>

Move δ, σ or the centre i\\*: everything is computed in this page, by Eq. (1) to Eq. (9).
(<a href="_static/panel.html">The panel alone</a>;
[50e_latent_widget](50e_latent_widget.ipynb) says how.)"""
INSTALLS = 'run_line_magic("pip"'  # in a cell that installs the package: nothing to read
DIRECTIVE = re.compile(r"^#\|\s*(\w+).*\n?", re.M)
ALT = re.compile(r"^#\|\s*fig-alt:\s*(.+)$", re.M)  # what a figure shows, for those who hear it
CODE = r"^```.*?^```|`[^`\n]+`"
LINK = re.compile(
    rf"(?P<code>{CODE})|(?P<link>!?\[(?P<words>[^\]]*)\]\((?P<to>[^)\s]+)\))", re.M | re.S
)
PICTURE = re.compile(r'<img[^>]*?\ssrc="(?!https?:|data:)([^"]+)"')


def notebooks() -> list[Path]:
    "Reading order: numbered notebooks, then the appendices."
    return sorted((ROOT / "nbs").glob("*.ipynb"))


# --- parts


def parts(index: Path) -> dict[str, list[str]]:
    """The parts of an index of notebooks: heading, up to its colon → stems.

    A notebook belongs to the heading above the table row that begins with a link to it.
    """
    found, heading = {}, ""
    for line in index.read_text(encoding="utf-8").splitlines():
        if title := re.match(r"#+ ([^:\n]+)", line): heading = title[1].strip()
        row = re.match(rf"\| \[[^\]]+\]\((?:[\w./]*/)?({STEM})\.ipynb\)", line)
        if row: found.setdefault(heading, []).append(row[1])
    return found


def checked_parts(stems: list[str]) -> dict[str, list[str]]:
    "The parts of the index. Raises ValueError where it lacks a notebook or lists one twice."
    index = next(path for path in INDEXES if path.exists() and parts(path))
    found = parts(index)
    listed = sum(found.values(), [])
    wrong = set(listed) ^ set(stems) or {stem for stem in listed if listed.count(stem) > 1}
    if wrong:
        raise ValueError(
            f"{index.name} does not list {min(wrong)} once: give each notebook one row in the "
            "tables of the index, and remove rows without a notebook."
        )
    return found


def contents(groups: dict[str, list[str]]) -> str:
    "The table of contents for the side bar, one numbered group per part."
    numerals = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X")
    toctrees = []
    for numeral, (caption, members) in zip(numerals, groups.items()):
        options = [":hidden:", f":caption: {numeral} · {caption}", ""]
        toctrees.append("\n".join(["", "```{toctree}", *options, *members, "```", ""]))
    return "".join(toctrees)


# --- links


def linked(text: str, stems: set[str], up: str = "") -> str:
    """Turn names of notebooks, as `05_losses` or *05_losses*, into links.

    What is a link already stays. `up` leads from the page to the folder of the notebooks.
    """

    def link(match):
        stem = match[2]
        return f"[{stem}]({up}{stem}.ipynb)" if stem in stems else match[0]

    return re.sub(rf"(?<![\[*`])([*`])({STEM})\1(?![\]*`])", link, text)


def in_repository(target: str, source: str) -> str:
    "The path of a link's target in the repository, of a file `source` in it."
    return os.path.normpath((PurePosixPath(source).parent / target.split("#")[0]).as_posix())


def is_local(target: str) -> bool:
    return not re.match(r"[a-z]+:|#", target)


def targets(text: str) -> list[str]:
    "Where the links and pictures of a text lead that lead to files."
    found = [match["to"] for match in LINK.finditer(text) if match["link"]]
    return [target for target in found + PICTURE.findall(text) if is_local(target)]


def relinked(
    text: str,  # Markdown
    source: str,  # the text's file in the repository
    pages: dict[str, str],  # file in the repository → file of the site's source
    blob: str,  # address of the repository's files; empty where there is none
) -> str:
    """Turn links to files into links to pages, or to the repository, or into their words.

    Raises ValueError where a link leads to no file.
    """

    def link(match):
        if match["code"] or not is_local(match["to"]): return match[0]
        path = in_repository(match["to"], source)
        if not (ROOT / path).exists():
            raise ValueError(f"{source} links to {match['to']}, which is not there; mend the link.")
        if match[0].startswith("!") or path in pages:
            here = PurePosixPath(pages[source]).parent.as_posix()
            fragment = match["to"].partition("#")[1:]
            to = os.path.relpath(pages.get(path, path), here) + "".join(fragment)
            return match[0].replace(f"]({match['to']})", f"]({to})")
        return f"[{match['words']}]({blob}/{path})" if blob else match["words"]

    return LINK.sub(link, text)


# --- pages


def in_words(nb: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")


def documents() -> list[str]:
    "Markdown files of the repository that the README, a notebook or another of them links to."
    found = ["README.md", BIBLIOGRAPHY]
    texts = [(f"nbs/{path.name}", in_words(nbformat.read(path, 4))) for path in notebooks()]
    texts += [(name, (ROOT / name).read_text(encoding="utf-8")) for name in found]
    while texts:
        source, text = texts.pop(0)
        for target in targets(text):
            name = in_repository(target, source)
            if name.endswith(".md") and name not in found and (ROOT / name).exists():
                found.append(name)
                texts.append((name, (ROOT / name).read_text(encoding="utf-8")))
    return found


def site_pages() -> dict[str, str]:
    "Each file of the repository that becomes a page, and its place in what Sphinx reads."
    pages = {f"nbs/{path.name}": path.name for path in notebooks()}
    return pages | {name: name for name in documents()} | {"README.md": "index.md"}


def is_wide(data: dict) -> bool:
    "Whether the picture among an output's data has more than `WIDE` pixels in a row."
    head = base64.b64decode(data.get("image/png", "")[:64])
    return len(head) >= 20 and struct.unpack(">I", head[16:20])[0] >= WIDE


def picture_options(cell: nbformat.NotebookNode, section: str) -> dict[str, str]:
    "Width and description of a cell's figures; where it has no description, its section's name."
    outputs = cell.get("outputs", [])
    described = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in outputs]
    written = ALT.search(cell.source)
    alt = written[1] if written else " ".join(filter(None, described)) or f"Figure: {section}"
    wide = any(is_wide(output.get("data", {})) for output in outputs)
    return {"alt": alt} | ({"width": "100%"} if wide else {})


def prepare_code(cell: nbformat.NotebookNode, section: str) -> None:
    "Give a code cell what MyST-NB is to know, and take nbdev's directives out of it."
    names = set(DIRECTIVE.findall(cell.source))
    cell.metadata["mystnb"] = {"image": picture_options(cell, section)}
    cell.source = DIRECTIVE.sub("", cell.source)
    folded = "hide" in names or cell.metadata.get("jupyter", {}).get("source_hidden")
    tags = cell.metadata.get("tags", [])
    if folded and "hide-input" not in tags: cell.metadata["tags"] = [*tags, "hide-input"]


def numbered(text: str, stem: str) -> str:
    "A notebook's first cell, its title with the notebook's number before it."
    number = stem.split("_")[0]
    return re.sub(rf"^# (?!{number}\b)", f"# {number} · ", text, count=1)


def for_reading(path: Path, pages: dict[str, str], blob: str) -> nbformat.NotebookNode:
    """A notebook as the site shows it.

    nbdev's directives are removed and what they hide is folded away; names of notebooks are links;
    links to other files lead to the repository, where that has an address.
    """
    nb = nbformat.read(path, 4)
    stems = {Path(name).stem for name in pages if name.endswith(".ipynb")}
    section = path.stem
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+ (.+)$", cell.source, re.M)
            section = titles[-1].replace("`", "") if titles else section
            cell.source = linked(relinked(cell.source, f"nbs/{path.name}", pages, blob), stems)
        if cell.cell_type == "code": prepare_code(cell, section)
    nb.cells = [c for c in nb.cells if c.source.strip() and INSTALLS not in c.source]
    nb.cells[0].source = numbered(nb.cells[0].source, path.stem)
    if path.stem in PANEL_IN:
        question, equation, rest = nb.cells[0].source.partition("$$")
        nb.cells[0].source = f"{question.rstrip()}\n\n{PANEL}\n\n{equation}{rest}"
    return nb


def document_page(name: str, pages: dict[str, str], blob: str) -> str:
    "A Markdown file of the repository as a page."
    text = (ROOT / name).read_text(encoding="utf-8")
    if not re.search(r"^# ", text, re.M): text = f"# {name}\n\n{text}"
    stems = {Path(page).stem for page in pages if page.endswith(".ipynb")}
    return linked(relinked(text, name, pages, blob), stems, "../" * name.count("/"))


def front_page(pages: dict[str, str], blob: str) -> str:
    "The README as a page, and the table of contents."
    stems = [Path(name).stem for name in pages if name.endswith(".ipynb")]
    others = [name.removesuffix(".md") for name in pages if name.endswith(".md")]
    others.remove("README")
    groups = checked_parts(stems) | {DOCUMENTS: others}
    return document_page("README.md", pages, blob) + contents(groups)


def write_pages(folder: Path, blob: str) -> None:
    "Write what Sphinx reads: the front page, notebooks, documents, and their pictures."
    pages = site_pages()
    for path in notebooks():
        nbformat.write(for_reading(path, pages, blob), folder / path.name)
    for name in pages:
        if not name.endswith(".md"): continue
        front = name == "README.md"
        text = front_page(pages, blob) if front else document_page(name, pages, blob)
        (folder / pages[name]).parent.mkdir(parents=True, exist_ok=True)
        (folder / pages[name]).write_text(text, encoding="utf-8")
        for target in targets((ROOT / name).read_text(encoding="utf-8")):
            copy_picture(in_repository(target, name), folder)


def copy_picture(name: str, folder: Path) -> None:
    "Copy a file of the repository into what Sphinx reads, where it is a picture."
    if Path(name).suffix.lower() not in (".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"): return
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, folder / name)
