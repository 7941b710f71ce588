"""The wheel: what is in it, what an index shows of it, and the script that tries it out.

`tools/check_wheel.py` builds and uses one (.ci/run calls it); here are the parts that take no time.
"""

import importlib.util
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
setuptools = pytest.importorskip("setuptools")
spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools" / "check_wheel.py")
check_wheel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_wheel)


@pytest.fixture
def told(monkeypatch):
    "What setup.py tells setuptools."
    arguments = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: arguments.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def test_an_index_shows_no_link_that_needs_the_repository(told):
    text = told["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links and all(link.startswith("http") for link in links)
    assert "docs/celp.gif" not in text and "answers of PFENet" not in text
    assert "[02](./nbs/02_similarity.ipynb)" not in text and "| 02 |" in text
    code = lambda readme: re.findall(r"^```.*?^```", readme, re.M | re.S)
    assert code(text) == code((ROOT / "README.md").read_text(encoding="utf-8"))


def test_only_the_package_is_packed(told):
    assert "celp_nb.bundled" in told["packages"]
    assert all(name.split(".")[0] == "celp_nb" for name in told["packages"])
    assert not told["include_package_data"]


def test_ci_tries_the_wheel_out():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "python tools/check_wheel.py" in lines


def wheel_of(tmp_path, names):
    "A file that holds these names, and the wheel's own records."
    path = tmp_path / "celp_nb-1-py3-none-any.whl"
    requirements = "Requires-Dist: attrs>=1\nRequires-Dist: voila>=0.5; extra == 'explore'\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("celp_nb-1.dist-info/METADATA", f"Name: celp_nb\n{requirements}\nText\n")
        for name in names: archive.writestr(name, "")
    return path


def test_a_wheel_holds_the_package_and_nothing_else(tmp_path):
    whole = check_wheel.package_files()
    assert "celp_nb/__main__.py" in whole and "celp_nb/weights/tiny.pth" in whole
    check_wheel.check_contents(wheel_of(tmp_path, whole))
    for more in ("tests/test_ops.py", "nbs/01_maps.ipynb", "celp_nb/notes.txt"):
        with pytest.raises(SystemExit, match=more):
            check_wheel.check_contents(wheel_of(tmp_path, [*whole, more]))
    with pytest.raises(SystemExit, match=r"missing .*bundled/example/query\.jpg"):
        left = [name for name in whole if not name.endswith("query.jpg")]
        check_wheel.check_contents(wheel_of(tmp_path, left))


def test_requirements_are_those_of_the_wheel_and_of_its_extra(tmp_path):
    texts = check_wheel.metadata_requirements(wheel_of(tmp_path, []))
    assert texts == ["attrs>=1", "voila>=0.5; extra == 'explore'"]
    assert "voila" not in check_wheel.needed_packages(texts, "")
    assert "voila" in check_wheel.needed_packages(texts, "explore")


def test_requirements_of_requirements_are_followed_and_nothing_else():
    needed = check_wheel.needed_packages(["pytest"], "")
    assert {"pytest", "pluggy", "iniconfig"} <= needed
    assert "hypothesis" not in needed and "torch" not in needed


def test_a_linked_package_comes_without_its_scripts(tmp_path):
    site = tmp_path / "lib" / "python3" / "site-packages"
    check_wheel.link_package("pytest", tmp_path, site)
    assert (site / "pytest" / "__init__.py").is_file()
    assert not (tmp_path / "bin").exists()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path = {[str(site)]}; import pluggy"],
        capture_output=True,
    )
    assert b"No module named 'pluggy'" in done.stderr  # nothing but the package itself
