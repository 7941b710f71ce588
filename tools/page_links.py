"""An extension of Sphinx: equations have anchors, and 'Eq. (5)' in prose leads to where it stands.

Pages also get the tags that a preview of a link is made of, and, where settings.ini names a
repository, buttons to see and edit a page's source and to run a notebook.
"""

import re
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

TAG = re.compile(r"\\tag\{?(\d+)\}?")
CITED = re.compile(r"Eq\.\s\((\d+(?:(?:[–-]|,\s|\sand\s|\sto\s)\d+)*)\)")
#: what is inside of these is no prose, or a link already
NO_PROSE = (
    nodes.literal,
    nodes.literal_block,
    nodes.math,
    nodes.math_block,
    nodes.raw,
    nodes.reference,
    nodes.title,
    nodes.comment,
)


def equation_places(paths: list[Path]) -> dict[str, str]:
    "Number of an equation → stem of the notebook, the first in order, that defines it."
    places = {}
    for path in paths:
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "markdown": continue
            for equation in re.findall(r"\$\$(.+?)\$\$", cell.source, re.S):
                for number in TAG.findall(equation): places.setdefault(number, path.stem)
    return places


def pieces(text: str, places: dict[str, str]) -> list[tuple[str, str | None]]:
    """A text cut where equations are cited: words, and the number of the equation they cite.

    'Eq. (5)' is one piece; of 'Eq. (4–6)' each number is.
    """
    found, end = [], 0
    for match in CITED.finditer(text):
        if match[1] in places:
            found += [(text[end : match.start()], None), (match[0], match[1])]
        else:
            found.append((text[end : match.start(1)], None))
            for words in re.split(r"(\d+)", match[1]):
                found.append((words, words if words in places else None))
            found.append((text[match.end(1) : match.end()], None))
        end = match.end()
    found.append((text[end:], None))
    return [piece for piece in found if piece[0]]


def has_ancestor(node: nodes.Node, kinds: tuple) -> bool:
    while node := node.parent:
        if isinstance(node, kinds): return True
    return False


class Equations(SphinxPostTransform):
    "Anchors for equations, links for their citations."

    default_priority = 210  # MyST-NB has chosen what is shown, at 4, and folded cells, at 199
    formats = ("html",)

    def run(self, **kwargs):
        self.mark()
        places = self.config.equation_places
        for text in list(self.document.findall(nodes.Text)):
            if "Eq." not in text or has_ancestor(text, NO_PROSE): continue
            new = [self.link(*piece) for piece in pieces(text.astext(), places)]
            text.parent.replace(text, new)

    def mark(self):
        "Put each equation that this page defines into a box with an anchor."
        here, seen = self.env.docname, set()
        for block in list(self.document.findall(nodes.math_block)):
            number = TAG.search(block.astext())
            if not number or self.config.equation_places.get(number[1]) != here: continue
            if number[1] in seen: continue
            seen.add(number[1])
            anchor = f"eq-{number[1]}"
            sign = f'<a class="headerlink" href="#{anchor}" title="Link to this equation">#</a>'
            box = nodes.container(classes=["equation"], ids=[anchor])
            block.parent.replace(block, box)
            box += [block, nodes.raw("", sign, format="html")]

    def link(self, words: str, number: str | None) -> nodes.Node:
        if number is None: return nodes.Text(words)
        place, here = self.config.equation_places[number], self.env.docname
        page = "" if place == here else self.app.builder.get_relative_uri(here, place)
        address = f"{page}#eq-{number}"
        return nodes.reference("", words, refuri=address, internal=True, classes=["equation-link"])


def preview_tags(pagename: str, context: dict, values: dict[str, str]) -> str:
    "What a preview of a link to the page shows. Its picture has a whole address with `doc_host`."
    site = (values["doc_host"] + values["doc_baseurl"]).rstrip("/") if values["doc_host"] else ""
    picture = "_static/preview.png"
    title = re.sub(r"<[^>]+>", "", context.get("title") or values["title"])
    tags = {
        "og:type": "website",
        "og:site_name": values["title"],
        "og:title": title,
        "og:description": values["description"],
        "og:image": f"{site}/{picture}" if site else context["pathto"](picture, 1),
        "og:image:alt": "A drawn scene, and the same scene with its latent region marked",
    }
    if site: tags["og:url"] = f"{site}/{pagename}.html"
    lines = [f'<meta property="{name}" content="{escaped(text)}">' for name, text in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    return "\n".join(lines)


def escaped(text: str) -> str:
    return text.replace("&amp;", "&").replace("&", "&amp;").replace('"', "&quot;")


def repository_buttons(source: str, values: dict[str, str]) -> list[dict]:
    "Buttons of a page made of a file of the repository; none while `git_url` is empty."
    url, branch = values["git_url"].rstrip("/"), values["branch"]
    if not url: return []

    def button(address, words, icon):
        label = words.lower().replace(" ", "-")
        return dict(type="link", url=address, tooltip=words, text="", icon=icon, label=label)

    buttons = [button(url, "Source repository", "fas fa-code-branch")]
    if not source: return buttons
    buttons.append(button(f"{url}/edit/{branch}/{source}", "Edit this page", "fas fa-pencil-alt"))
    if url.startswith("https://github.com/") and source.endswith(".ipynb"):
        colab = url.replace("https://github.com", "https://colab.research.google.com/github")
        notebook = f"{colab}/blob/{branch}/{source}"
        buttons.append(button(notebook, "Launch in Colab", "fas fa-rocket"))
    return buttons


def complete_page(app, pagename, templatename, context, doctree) -> None:
    "Add tags and buttons to a page before it is written."
    values = app.config.project_values
    context["metatags"] = context.get("metatags", "") + preview_tags(pagename, context, values)
    source = app.config.page_sources.get(pagename, "")
    context.setdefault("header_buttons", []).extend(repository_buttons(source, values))


def setup(app):
    app.add_config_value("equation_places", {}, "env")  # number → docname
    app.add_config_value("page_sources", {}, "html")  # docname → file in the repository
    app.add_config_value("project_values", {}, "html")  # of settings.ini
    app.add_post_transform(Equations)
    app.connect("html-page-context", complete_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
