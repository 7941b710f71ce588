"""A few odd folders of each kind, always the same; `tools/fuzz.py` tries many, for minutes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from properties import PROPERTIES, run_property  # noqa: E402

KNOWN = {}  # what is known to fail → how; take a line out when it is mended


def with_marks(name):
    "A property, expected to fail where that is known."
    if name not in KNOWN: return name
    return pytest.param(name, marks=pytest.mark.xfail(reason=KNOWN[name], strict=False))


@pytest.mark.parametrize("name", map(with_marks, PROPERTIES))
def test_every_folder_is_read_or_refused_in_a_sentence(name, monkeypatch, tmp_path):
    monkeypatch.setenv("CELP_CACHE", str(tmp_path))  # set back afterwards
    run_property(name, 12)
