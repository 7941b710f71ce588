"Fixtures of several test files."

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def results_script(monkeypatch):
    "Imports a script of `results`, which imports its neighbours, by its name."
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "results"))
    return importlib.import_module
