"""Where equations are defined, and where a text cites them."""

import re
from pathlib import Path

import nbformat

TAG = re.compile(r"\\tag\{?(\d+)\}?")
CITED = re.compile(r"Eq\.\s\((\d+(?:(?:[–-]|,\s|\sand\s|\sto\s)\d+)*)\)")


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
