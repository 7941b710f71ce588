"""An extension of Sphinx: equations have anchors, and 'Eq. (5)' in prose leads to where it stands.

Pages also get the tags that a preview of a link is made of, and, where settings.ini names a
repository, buttons to see and edit a page's source and to run a notebook.
"""

from docutils import nodes
from page_equations import TAG, pieces
from page_heads import preview_tags, repository_buttons
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.osutil import relative_uri

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
        page = "" if place == here else relative_uri(f"{here}.html", f"{place}.html")
        address = f"{page}#eq-{number}"
        return nodes.reference("", words, refuri=address, internal=True, classes=["equation-link"])


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
