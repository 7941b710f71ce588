"""The repository as a whole.

Notebooks are complete, readable and in step with the modules; imports are light.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted((ROOT / "celp_nb").rglob("*.py"))

parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]


def all_cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def cells(path, kind):
    return [cell for cell in all_cells(path) if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def parsed(code):
    "The syntax tree of a piece of Python; notebook magics are replaced."
    lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in code.splitlines()]
    return ast.parse("\n".join(lines))


def imported(code):
    "Dotted names that a piece of Python imports, with those inside functions."
    names = set()
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["celp_nb" if node.level else "", node.module]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def module_of(path):
    "The module that a notebook exports, or None."
    code = "\n".join(source(cell) for cell in cells(path, "code"))
    match = re.search(r"^#\|\s*default_exp\s+([\w.]+)", code, re.M)
    return match and match[1]


def dotted(path):
    "The name of a module inside of the package, such as data.episodes."
    return ".".join(path.relative_to(ROOT / "celp_nb").with_suffix("").parts)


def place(path):
    "Sort key of the reading order: numbered notebooks, then the appendices A0, A1."
    prefix = path.stem.split("_")[0]
    return (not prefix[0].isdigit(), prefix)


# --- notebooks

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    name = re.compile(r"(\d\d|A\d)[a-z]?_\w+")
    assert NOTEBOOKS and all(name.fullmatch(path.stem) for path in NOTEBOOKS)


@each_notebook
def test_notebook_is_committed_with_outputs_and_without_errors(path):
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert outputs, "no outputs: build it again, a reader of the repository sees nothing"
    assert not [output["ename"] for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 2_000_000


@each_notebook
def test_notebook_shows_a_picture(path):
    data = [output.get("data", {}) for cell in cells(path, "code") for output in cell["outputs"]]
    pictured = any({"image/png", "image/svg+xml"} & set(d) for d in data)
    assert pictured or path.stem.startswith("00"), "no picture among the outputs"


@each_notebook
def test_notebook_begins_and_ends_with_text(path):
    first, *_, last = all_cells(path)
    is_title = first["cell_type"] == "markdown" and source(first).startswith("# ")
    assert is_title, "the first cell must be the title"
    is_text = last["cell_type"] == "markdown" and source(last).strip()
    assert is_text, "the last cell must say what the next notebook needs"


def is_earlier(module, owner, path):
    "Whether the cells of a notebook may import a module: of the appendix, earlier, or its own."
    if module not in owner: return False
    return not owner[module].stem[0].isdigit() or place(owner[module]) <= place(path)


# 00 is a map of all; 10 asks a question of the paper with the machinery of later chapters
ORDERED = [path for path in NOTEBOOKS if not path.stem.startswith(("00_", "10_"))]


@pytest.mark.parametrize("path", ORDERED, ids=lambda path: path.stem)
def test_notebook_imports_only_earlier_ones(path):
    owner = {module_of(p): p for p in NOTEBOOKS}
    code = [source(cell) for cell in cells(path, "code") if "export" in directives(cell)]
    names = set().union(*map(imported, code))  # demonstrations may look ahead
    used = {name.removeprefix("celp_nb.") for name in names} & {dotted(p) for p in MODULES}
    late = [module for module in sorted(used) if not is_earlier(module, owner, path)]
    assert not late, f"{path.stem} imports {late}, which no earlier notebook exports"


def prose(text):
    "Lines of a markdown cell, without tables, links, HTML and displayed equations."
    in_equation = False
    for line in text.splitlines():
        is_equation = in_equation or "$$" in line
        if line.count("$$") % 2: in_equation = not in_equation
        is_link = re.search(r"\]\(|https?:", line)
        if not (is_equation or is_link or line.lstrip().startswith(("|", "<"))): yield line


@each_notebook
def test_lines_of_a_notebook_end_by_column_100(path):
    lines = [line for cell in cells(path, "markdown") for line in prose(source(cell))]
    for cell in cells(path, "code"): lines += source(cell).splitlines()
    long = [line for line in lines if len(line) > 100]
    assert not long, f"{len(long)} lines have more than 100 columns, such as: {long[0]}"


def directives(cell):
    return set(re.findall(r"^#\|\s*(\w+)", source(cell), re.M))


def is_import(node):
    if isinstance(node, ast.If): return all(map(is_import, node.body))
    return isinstance(node, ast.Import | ast.ImportFrom)


@each_notebook
def test_a_sentence_stands_between_exported_cells(path):
    before = None  # the exported cell since the last sentence or demonstration
    for cell in all_cells(path):
        if cell["cell_type"] == "markdown":
            before = None
        elif "export" in directives(cell):
            if all(map(is_import, parsed(source(cell)).body)): continue
            assert before is None, f"no sentence between {before!r} and {source(cell)[:80]!r}"
            before = source(cell)[:80]
        elif "hide" not in directives(cell):
            before = None


def test_each_module_has_one_notebook():
    names = [name for path in NOTEBOOKS if (name := module_of(path))]
    assert sorted(names) == sorted({dotted(p) for p in MODULES if not p.stem.startswith("_")})


def texts_of_modules(package):
    paths = package.rglob("*.py")
    return {str(p.relative_to(package)): p.read_text(encoding="utf-8") for p in paths}


def test_nbdev_export_leaves_no_diff(tmp_path):
    # Into a package of nothing but __init__.py, so that a module without a notebook shows too.
    (tmp_path / "celp_nb").mkdir()
    for name in ("settings.ini", "celp_nb/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    exported = texts_of_modules(tmp_path / "celp_nb")
    committed = texts_of_modules(ROOT / "celp_nb")
    del committed["__main__.py"]  # written by hand
    names = sorted(exported | committed)
    differing = [name for name in names if exported.get(name) != committed.get(name)]
    assert not differing, f"run nbdev_export and commit {differing}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["celp_nb", "nbs", "settings.ini"]


# --- package


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "_modidx"], ids=dotted)
def test_module_and_its_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 360, "aim at 350 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 48, f"{node.name} has {lines} lines; aim at 45"


def test_modules_import_only_what_an_installation_brings():
    requirements = " ".join(SETTINGS[f"{extra}requirements"] for extra in ("", "coco_", "sbd_"))
    installed = set(re.findall(r"(?:^| )([\w-]+)", requirements))
    installed |= {"PIL", "IPython", "celp_nb"}  # the first two by pillow and ipywidgets
    assert "torch" in installed and "nbdev" not in installed
    for path in MODULES:
        roots = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert roots <= installed | set(sys.stdlib_module_names), path.name


def test_import_is_light():
    code = (
        "import sys, celp_nb; print(celp_nb.__version__); "
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == SETTINGS["version"], done.stderr


def test_package_data_holds_every_file_that_is_no_module():
    package = ROOT / "celp_nb"
    patterns = SETTINGS["package_data_files"].split()
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in (".py", ".pyc")}
    assert others == packed and any(path.suffix == ".js" for path in packed)


def test_setup_needs_nothing_but_setuptools():
    names = imported((ROOT / "setup.py").read_text(encoding="utf-8"))
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) == {"setuptools"}
