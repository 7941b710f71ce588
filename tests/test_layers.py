"""Who may import what: the layers of the package, read from its imports."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "celp_nb"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not path.stem.startswith("_")
}
#: layer → the layers it may import beside itself; the paper core is what lies in no folder
MAY_IMPORT = {
    "core": (),
    "viz": ("core",),
    "data": ("core",),
    "engine": ("core", "data", "viz"),
    "bundled": ("core", "data", "engine"),
    "repro": ("core", "data", "engine", "bundled", "viz"),
    "app": ("core", "data", "engine", "bundled", "viz", "repro"),
}
CORE_MAY_IMPORT = ("celp_nb", "torch", "math", "typing", "dataclasses", "collections")
#: modules outside of repro and app that import pandas: their functions return tables
WITH_TABLES = ("engine.evaluation", "engine.feature_bank")


def layer_of(module):
    "The layer that a module belongs to."
    first, *rest = module.split(".")
    return first if rest or first == "viz" else "core"


def imports_of(module):
    "Absolute names of all that a module imports, inside of functions too."
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    package = ["celp_nb", *module.split(".")][:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *filter(None, [node.module])])
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def definitions(module):
    "Names that a module defines at its top level."
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def faults_of(module):
    "What a module imports and may not, each in words."
    layer = layer_of(module)
    for name in set(imports_of(module)):
        inside = name.removeprefix("celp_nb.")
        if inside in MODULES and inside != module:
            other = layer_of(inside)
            if other != layer and other not in MAY_IMPORT[layer]:
                yield f"{module} ({layer}) imports {inside} ({other})"
        elif layer == "core" and name.split(".")[0] not in CORE_MAY_IMPORT:
            yield f"{module} is of the paper core and imports {name}"


def test_there_are_all_layers():
    assert {layer_of(module) for module in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_upwards_or_sideways(module):
    assert not sorted(faults_of(module))


def imports_at_once(module):
    "First parts of the names that a module imports while it is imported itself."
    for node in ast.parse(MODULES[module].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) not in ("repro", "app")])
def test_tables_and_figures_are_imported_by_those_who_make_them(module):
    names = set(imports_at_once(module))
    assert "matplotlib" not in names
    assert "pandas" not in names or module in WITH_TABLES


def test_no_name_is_defined_in_two_modules():
    homes = {}
    for module in MODULES:
        for name in set(definitions(module)) - {"__all__"}:
            homes.setdefault(name, []).append(module)
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_no_two_names_differ_in_case_alone():
    homes = {}
    for module in MODULES:
        for name in set(definitions(module)) - {"__all__"}:
            if not name.isupper():
                homes.setdefault(name.lower(), set()).add(name)
    assert not [names for names in homes.values() if len(names) > 1]


def test_the_paper_core_can_be_read_in_an_evening():
    "Without blank lines and nbdev's comments it is about 900 lines, as ARCHITECTURE.md has it."
    lines = 0
    for module, path in MODULES.items():
        if layer_of(module) != "core": continue
        text = path.read_text(encoding="utf-8").splitlines()
        lines += sum(bool(line.strip()) and not line.startswith("#") for line in text)
    assert 500 < lines <= 900, f"the equations take {lines} lines; move what is no equation"
