"""The repository as a whole: notebooks complete and in step with the modules, light imports, an honest README."""
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


def cells(path, kind):
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def source(cell):
    return "".join(cell["source"])


def imported(code):
    "Dotted names that a piece of Python imports, with those inside functions; notebook magics are skipped."
    lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in code.splitlines()]
    names = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["celp_nb" if node.level else "", node.module]))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def module_of(path):
    "The module that a notebook exports, or None."
    return next(
        (
            m[1]
            for cell in cells(path, "code")
            if (m := re.search(r"^#\|\s*default_exp\s+([\w.]+)", source(cell), re.M))
        ),
        None,
    )


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
    assert NOTEBOOKS and all(re.fullmatch(r"(\d\d[a-z]?|A\d)_\w+", path.stem) for path in NOTEBOOKS)


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
    first, *_, last = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert first["cell_type"] == "markdown" and source(first).startswith("# "), (
        "the first cell must be the title"
    )
    assert last["cell_type"] == "markdown" and source(last).strip(), (
        "the last cell must say what the next notebook needs"
    )


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if not p.stem.startswith("00_")], ids=lambda p: p.stem
)  # the overview is a map of all
def test_notebook_imports_only_earlier_ones(path):
    owner = {module_of(p): p for p in NOTEBOOKS}
    names = {name for cell in cells(path, "code") for name in imported(source(cell))}
    used = {name.removeprefix("celp_nb.") for name in names} & {dotted(p) for p in MODULES}
    late = [
        module
        for module in sorted(used)
        if module not in owner or place(owner[module]) > place(path)
    ]  # its own it may look at
    assert not late, f"{path.stem} imports {late}, which no earlier notebook exports"


def test_each_module_has_one_notebook():
    names = [name for path in NOTEBOOKS if (name := module_of(path))]
    assert sorted(names) == sorted({dotted(p) for p in MODULES if not p.stem.startswith("_")})


def test_nbdev_export_leaves_no_diff(tmp_path):
    # Exported into a package of nothing but __init__.py, so that a module without a notebook shows too.
    (tmp_path / "celp_nb").mkdir()
    for name in ("settings.ini", "celp_nb/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    subprocess.run(
        [sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"],
        cwd=tmp_path,
        check=True,
    )
    made = tmp_path / "celp_nb"
    exported = {str(p.relative_to(made)): p.read_text(encoding="utf-8") for p in made.rglob("*.py")}
    written_by_hand = ("__main__.py",)
    committed = {
        str(p.relative_to(ROOT / "celp_nb")): p.read_text(encoding="utf-8")
        for p in MODULES
        if p.name not in written_by_hand
    }
    differing = [
        name for name in sorted(exported | committed) if exported.get(name) != committed.get(name)
    ]
    assert not differing, f"run nbdev_export and commit {differing}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["celp_nb", "nbs", "settings.ini"]


# --- package


def test_modules_import_only_what_an_installation_brings():
    requirements = " ".join(SETTINGS[f"{extra}requirements"] for extra in ("", "coco_", "sbd_"))
    installed = set(re.findall(r"(?:^| )([\w-]+)", requirements)) | {
        "PIL",
        "IPython",
        "celp_nb",
    }  # pillow's and ipywidgets' names
    assert "torch" in installed and "nbdev" not in installed
    for path in MODULES:
        roots = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert roots <= installed | set(sys.stdlib_module_names), path.name


def test_import_is_light():
    code = "import sys, celp_nb; print(celp_nb.__version__); sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == SETTINGS["version"], done.stderr


def test_setup_needs_nothing_but_setuptools():
    assert imported((ROOT / "setup.py").read_text(encoding="utf-8")) == {
        "configparser", "configparser.ConfigParser", "pathlib", "pathlib.Path", "setuptools", "setuptools.find_packages", "setuptools.setup"
    }  # fmt: skip


# --- README

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_quick_start_is_two_commands():
    block = re.search(r"^#+\s*Quick start\b.*?^```[a-z]*\n(.*?)^```", README, re.M | re.S)[1]
    run, test = block.splitlines()
    assert run.startswith("pip install -e ") and "celp run" in run
    assert test.startswith("pip install -e '.[dev]'") and "nbdev_test" in test and "pytest" in test


def test_links_in_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_every_notebook_is_in_the_reading_order():
    listed = re.findall(r"\(nbs/(\w+)\.ipynb\)", README)
    assert listed == [path.stem for path in NOTEBOOKS]


def test_library_example_of_the_readme_runs():
    names = {}
    exec(re.search(r"```python\n(.*?)```", README, re.S)[1], names)
    assert all(
        loss.isfinite() and loss > 0 for loss in (names["losses"].main, names["losses"].contrast)
    )
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in names["model"].parameters())
