"""The package as a library: light to import, its names found when they are used, typed."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import celp_nb

ROOT = Path(__file__).resolve().parent.parent
USAGE = ROOT / "tests" / "typing" / "usage.py"


def python(code, cwd=ROOT):
    "What a fresh interpreter prints."
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names


def imported_for_checkers():
    "Public name → module, as the imports say that only type checkers read."
    tree = ast.parse((ROOT / "celp_nb" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    )
    names = [(node.module, alias) for node in block.body for alias in node.names]
    assert all(alias.asname == alias.name for _, alias in names)  # which makes them public
    return {alias.name: module for module, alias in names}


def test_both_lists_of_names_agree_and_every_name_is_what_its_module_has():
    homes = {name: f"celp_nb.{module}" for name, module in celp_nb._HOMES.items()}
    assert homes == imported_for_checkers() and list(homes) == sorted(homes, key=str)
    assert celp_nb.__all__ == ["__version__", *homes]
    for name, module in homes.items():
        value = getattr(celp_nb, name)
        assert value is getattr(sys.modules[module], name) and callable(value)
        assert celp_nb.__dict__[name] is value  # asked for once
    assert set(celp_nb.__all__) <= set(dir(celp_nb))


def test_importing_loads_nothing_and_a_name_its_own_module():
    code = (
        "import sys; before = set(sys.modules); import celp_nb; dir(celp_nb)\n"
        "print(sorted(set(sys.modules) - before))\n"
        "celp_nb.sample_latent; print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert python(code).splitlines() == ["['celp_nb']", "True False"]


def test_an_unknown_name_is_an_attribute_error_with_the_nearest():
    for wrong, near in (("Segmentor", "Segmenter"), ("pfenett", "PFENet"), ("sample", "samples")):
        with pytest.raises(AttributeError, match=f"'celp_nb' .* {wrong!r}; did you mean {near!r}"):
            getattr(celp_nb, wrong)
    with pytest.raises(AttributeError, match=r"no attribute 'zzzz'$"): getattr(celp_nb, "zz" * 2)
    assert not hasattr(celp_nb, "_homes") and not hasattr(celp_nb, "__path_of__")
    from celp_nb import data, ops  # modules are still found

    assert data.__name__ == "celp_nb.data" and ops.VOID == 255


def test_a_star_imports_the_public_names():
    code = "from celp_nb import *; print(Segmenter.__name__, run.__name__, __version__)"
    assert python(code).split() == ["Segmenter", "run", celp_nb.__version__]


def test_export_keeps_the_rest_of_the_file(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "celp_nb").mkdir()
    text = (ROOT / "celp_nb" / "__init__.py").read_text(encoding="utf-8")
    other = re.sub('__version__ = ".*"', '__version__ = "0"', text)
    (tmp_path / "celp_nb" / "__init__.py").write_text(other, encoding="utf-8")
    python("from nbdev.config import update_version; update_version('celp_nb')", tmp_path)
    assert (tmp_path / "celp_nb" / "__init__.py").read_text(encoding="utf-8") == text != other


# --- README


def test_the_ten_lines_of_the_readme_run_as_they_stand(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```python\n(.*?)^```", readme, re.M | re.S)[1]
    assert len(block.splitlines()) <= 10
    env = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    assert re.fullmatch(r"\d+\.\d% of the query is marked\.\n", python(env + block, tmp_path))
    from PIL import Image

    _, _, query = celp_nb.example_episode()
    with Image.open(tmp_path / "overlay.png") as drawn, Image.open(query) as photo:
        assert drawn.size == photo.size and drawn.mode == "RGB"


# --- types


def test_the_usage_file_uses_every_public_name():
    used = {
        node.attr
        for node in ast.walk(ast.parse(USAGE.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "celp_nb"
    }
    assert used == set(celp_nb.__all__)
    assert (ROOT / "celp_nb" / "py.typed").is_file()


def type_errors(*files):
    "What basedpyright says of files, in basic mode."
    checker = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    checker = checker or shutil.which("basedpyright")
    if not checker: pytest.skip("basedpyright is not installed")
    done = subprocess.run(
        [checker, "--level", "error", "--outputjson", *map(str, files)],
        cwd=ROOT, capture_output=True, text=True,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(files), done.stderr
    return [(Path(e["file"]).name, e["message"]) for e in found["generalDiagnostics"]]


CLEAN = [
    "__init__.py", "engine/pretrained.py", "engine/supports.py", "engine/segmenter.py",
    "app/photo_files.py", "app/predict.py",
]  # fmt: skip


def test_types_are_clean_where_a_user_meets_them():
    assert type_errors(USAGE, *(ROOT / "celp_nb" / name for name in CLEAN)) == []


def test_a_checker_knows_what_is_wrong(tmp_path):
    wrong = [
        "celp_nb.Segmentor",
        "celp_nb.Segmenter.from_pretrained('x', precision='fp8')",
        "celp_nb.Segmenter.from_pretrained('x').predict(3)",
        "celp_nb.Segmenter.from_pretrained('x').predict('y').masks",
    ]
    file = tmp_path / "wrong.py"
    file.write_text("import celp_nb\n" + "\n".join(wrong) + "\n", encoding="utf-8")
    assert len(type_errors(file)) == len(wrong)
