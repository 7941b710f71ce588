"Text files: encodings, names, JSON and tables; every reader of text goes through them."

import ast
import math
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import celp_nb
from celp_nb.data.episodes import Episodes, read_episodes
from celp_nb.data.text_files import (
    is_background,
    read_cells,
    read_columns,
    read_json,
    read_lines,
    read_text,
)

NAMES = ["bär_01", "café 2", "zebra"]
PLAIN = "\n".join(NAMES) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        b"\xfe\xff" + PLAIN.encode("utf-16-be"),
        PLAIN.replace("\n", "\r\n").encode("utf-16"),
        PLAIN.encode("utf-32"),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace("\n", "\r\r\n").encode(),
        PLAIN.replace("\n", " \t\u00a0\n \n\n").encode() + b"\x1a",
        b"\xef\xbb\xbf\xef\xbb\xbf" + PLAIN.encode(),
        unicodedata.normalize("NFD", PLAIN).encode(),
        PLAIN.encode()[:-1],
    ],
)
def test_lists_are_read_whoever_wrote_them(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    assert [name for _, name in read_lines(tmp_path / "list.txt")] == NAMES


@pytest.mark.parametrize(
    "data, message",
    [
        (PLAIN.encode("cp1252"), "line 1: a byte 0xe4 is no UTF-8 text"),
        (b"a\r\nb\r\nc\xff\n", "line 3: a byte 0xff is no UTF-8 text"),
        (b"a\rb\r\xff", "line 3: a byte 0xff"),
        ("a\nb\n".encode("utf-16-le"), "line 1: a NUL character"),
        (b"\xff\xfea\0\n\0b", "line 2: a byte 0x62 is no UTF-16-LE text"),
        (b"a\nb\x1b[2J\n", "line 2: 'b.*2J' holds a control character"),
        ("a\u2028b".encode(), "line 1: .* holds a control character"),
    ],
)
def test_other_bytes_are_refused_with_file_and_line(tmp_path, data, message):
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        read_lines(path)
    assert str(raised.value).startswith(f"{path}, line ")
    assert len(str(raised.value).splitlines()) == 1


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_comes_back(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    text = text.lstrip("\ufeff")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes(text.encode(encoding))
        assert read_text(path) == text


@given(st.binary())
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(data)
    for read in (read_text, read_lines, read_json, read_cells, lambda p: read_columns(p, {})):
        try:
            read(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1


def test_background_is_no_class():
    yes = ["background", "_background_", "__ignore__", "0: Void", "BG", "un-labelled", "no label"]
    assert all(map(is_background, yes))
    no = ["backpack", "NA", "none", "other", "class_0", "avoid", "地"]
    assert not any(map(is_background, no))


def test_json_errors_have_a_line(tmp_path):
    path = tmp_path / "a.json"
    for text, message in [
        ('{\n"a": 1,\n}', "line 3, column 1: not a JSON file"),
        ("", "line 1, column 1: not a JSON file"),
        ("1" * 5000, "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as raised:
            read_json(path)
        assert str(path) in str(raised.value)


def test_a_table_is_text_until_numbers_are_asked_for(tmp_path):
    path, odd = tmp_path / "a.csv", ["001", "NA", "1e3", "nan", "True", "", " x ", "ä,b"]
    path.write_text("data,fold,miou,more\n" + "".join(f'"{name}",1,0.1,7\n' for name in odd))
    columns = read_columns(path, {"fold": int, "miou": float})
    assert columns["data"] == odd and columns["more"] == ["7"] * 8
    assert columns["fold"] == [1] * 8 and columns["miou"] == [0.1] * 8
    path.write_bytes("a,b\n,3.0\n".encode("utf-16"))
    columns = read_columns(path, {"a": float, "b": int})
    assert math.isnan(columns["a"][0]) and columns["b"] == [3]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n3\n", "line 3: 1 values where the header names 2 columns"),
        ("a,b\n1,2,3\n", "line 2: 3 values"),
        ("a,a\n1,2\n", "line 1: two columns are called 'a'"),
        ("a,b\nx,2\n", "line 2, column a: 'x' is no whole number"),
        ("a,b\n1.5,2\n", "line 2, column a: '1.5' is no whole number"),
        ("a,b\n,2\n", "line 2, column a: '' is no whole number"),
        ("a,b\n1,inf\n", "line 2, column b: 'inf' is no number"),
        ("a,b\n1,1_0\n", "line 2, column b: '1_0' is no number"),
        ('a,b\n1,"2\n3,4\n', "line 3: no table of comma-separated values"),
        ("a,b\n1," + "2" * 200_000, "no table of comma-separated values"),
    ],
)
def test_a_damaged_table_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_columns(path, {"a": int, "b": float})
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_episode_lists_may_have_other_letters_and_encodings(tmp_path):
    path = tmp_path / "episodes.csv"
    lines = "class,class_id,query,support_1\nnan,1,bär,café\n"
    for text in (lines, unicodedata.normalize("NFD", lines)):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(text.encode(encoding))
            for form in ("NFC", "NFD"):
                ids = [unicodedata.normalize(form, name) for name in ("bär", "café")]
                found = read_episodes(path, ids, ["nan"])
                assert isinstance(found, Episodes) and found.query.tolist() == [0]


def test_no_other_module_opens_text():
    package = Path(celp_nb.__file__).parent
    ways = {"read_text", "read_csv", "splitlines", "reader", "DictReader", "loadtxt"}
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.stem in ("text_files", "_modidx"): continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(name, ast.Attribute) and name.attr in ways:
                found.append(f"{path.stem}: {ast.unparse(node)}")
    of_ours = ("table.md", "str(e)", "plain.")  # what this run has just written, and messages
    of_ours += ("/proc/",)
    assert [call for call in found if not any(words in call for words in of_ours)] == []
