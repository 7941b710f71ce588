"""`benchmarks/gpu.py` and `benchmarks/pack.py`, rehearsed on the CPU with tiny sizes."""

import ast
import csv
import importlib.util
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TINY = [
    *("--device", "cpu", "--backbone", "tiny", "--second-backbone", "tiny", "--side", "65"),
    *("--batches", "2", "--width", "8", "--matmul", "64", "--repeats", "2", "--warmup", "1"),
    *("--view-steps", "2", "--episodes", "6", "--no-tests"),
]


@pytest.fixture
def here(monkeypatch):
    "The scripts' own modules can be imported."
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(script, *arguments, **environment):
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    words = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=surroundings)


def read(folder):
    with (folder / "rows.csv").open(newline="") as f: return list(csv.DictReader(f))


def photographs(folder, n, side=80):
    "A folder in VOC layout: one square of a class on each photograph, four classes in turn."
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        ids = [f"{split}_{i}" for i in range(n)]
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for i, name in enumerate(ids):
            pixels = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            mask = np.zeros((side, side), np.uint8)
            mask[10:70, 10:70] = i % 4 + 1
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
            Image.fromarray(mask).save(folder / "SegmentationClass" / f"{name}.png")
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    return folder


def test_the_whole_check_runs_with_tiny_sizes(tmp_path):
    "Every measurement once: rows, page, a fold; compilation is left to machines that have one."
    data, out = photographs(tmp_path / "photographs", 32), tmp_path / "out"
    done = run(
        "gpu.py", *TINY, "--out", out, "--data", data, "--folds", 0, "--fold-weights", "random",
        "--fold-backbone", "tiny", "--fold-iterations", 2, "--fold-pairs", 2,
        "--commit", "abc", "--precisions", "bf16", "--compile-least", 1e9,
        CELP_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read(out)
    of = lambda **wanted: [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    assert {(r["commit"], r["torch"]) for r in rows} == {("abc", torch.__version__)}
    assert all(r["device"] for r in rows)
    assert [r["measurement"] for r in rows[:4]] == ["card", *["matmul"] * 3]
    assert all(float(r["per_second"]) > 0 for r in rows[1:4])
    for features in ("kept", "online"):
        for method in ("PFENet", "PFENet+CE", "CyCTR", "CyCTR+CE"):
            wanted = {"measurement": "step", "features": features, "method": method}
            row = of(status="ok", n="2", **wanted)[0]
            assert float(row["q25"]) <= float(row["seconds"]) <= float(row["q75"])
            assert float(row["per_second"]) == pytest.approx(4 / float(row["seconds"]), rel=1e-3)
            assert (row["ratio"] != "") == ("+CE" in method)
            assert row["to"] == (method[:-3] if "+CE" in method else "")
            assert ("+CE" in method) == (row["latent"] == "1.0"), "images without latent regions"
            if features == "kept": assert 0 < float(row["share"]) and float(row["tflop"]) > 0
    (views,) = of(measurement="kept views")
    assert 0 < float(views["busy"]) <= 1 and of(measurement="new views")
    assert [r["n"] for r in of(measurement="evaluation")] == ["6", "6"]
    folds = of(measurement="fold", status="ok")
    assert {"PFENet", "PFENet+CE"} <= {r["method"] for r in folds}, [r["status"] for r in rows]
    assert len(of(compiled="True", status="no time was left")) == 4
    page = (out / "README.md").read_text()
    assert page.startswith("# Rehearsal without a GPU") and "no time was left" in page
    for title in ("Targets", "Training from kept views", "Evaluation", "Folds"):
        assert f"## {title}" in page
    again = run("gpu.py", *TINY, "--out", out)
    assert again.returncode and "is there already; give another --out" in again.stderr
    assert read(out) == rows


def test_time_that_is_over_ends_it_with_rows_that_say_so(tmp_path):
    "A third of a minute is enough for some of it, and nothing begins that cannot end."
    start = time.monotonic()
    done = run("gpu.py", *TINY, "--out", tmp_path / "out", "--minutes", 0.3)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "out")
    assert rows[0]["measurement"] == "card" and float(rows[-1]["at_s"]) < 25
    assert time.monotonic() - start < 60
    said = [r["status"] for r in rows]
    assert "ok" in said and "no time was left" in said
    assert "no time was left" in (tmp_path / "out" / "README.md").read_text()


def test_what_fails_is_a_row_and_no_stop(here, tmp_path):
    import gpu
    from gpu_rows import Table

    table = Table(tmp_path / "rows.csv", {"device": "none"})
    def failing():
        yield {"measurement": "step", "method": "PFENet", "seconds": 1.0}
        raise RuntimeError("the compiler\nis not there")
    def greedy(): raise torch.OutOfMemoryError("CUDA out of memory")
    def endless():
        while True: time.sleep(0.01)
        yield
    columns = {"measurement": "step"}
    left = lambda: 100.0
    for rows in (failing, greedy): gpu.measure(table, gpu.Measurement(columns, rows), left)
    gpu.measure(table, gpu.Measurement(columns, endless, most=0.2), left)
    gpu.measure(table, gpu.Measurement(columns, failing), left, reserved=99)
    rows = read(tmp_path)
    assert [r["status"] for r in rows] == [
        "ok", "RuntimeError: the compiler", "out of memory", "out of time", "no time was left",
    ]  # fmt: skip
    assert rows[0]["device"] == "none" and rows[0]["seconds"] == "1.0"
    with pytest.raises(KeyError, match="no such column: colour"): table.add({"colour": "red"})


def test_one_variant_that_fails_does_not_take_the_others_along(here, monkeypatch):
    import gpu_measurements
    from gpu_measurements import Variant, step_rows

    real = gpu_measurements.build
    def build(args, device, backbone, variant):
        if variant.compiled: raise RuntimeError("no compiler")
        return real(args, device, backbone, variant)
    monkeypatch.setattr(gpu_measurements, "build", build)
    args = type("Args", (), {"backbone": "tiny", "side": 65, "delta": 0.3, "width": 8,
                             "warmup": 1, "repeats": 2})  # fmt: skip
    variants = [Variant("PFENet", "bf16"), Variant("PFENet", "bf16", True)]
    rows = list(step_rows(args, torch.device("cpu"), {}, 1, variants))
    assert sorted(r.get("status", "ok") for r in rows) == ["RuntimeError: no compiler", "ok"]


def test_overlaps_of_kernels_count_once(here):
    from gpu_rows import covered

    assert covered([]) == 0
    assert covered([(5, 2), (0, 4), (1, 1), (3, 3)]) == 7
    assert covered([(0, 10), (2, 3), (4, 1)]) == 10


def test_the_committed_page_is_written_from_its_rows(here):
    from gpu_page import page, read_rows

    folder = ROOT / "results" / "gpu"
    assert (folder / "README.md").read_text() == page(read_rows(folder))


def test_parts_hold_code_weights_and_as_many_photographs_as_fit(tmp_path):
    data, out = photographs(tmp_path / "photographs", 40), tmp_path / "out"
    weights = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1000)}, weights)
    done = run("pack.py", out, "--data", data, "--weights", weights, "--parts", 2,
               "--megabytes", 0.01, "--packages", "cachetools")  # fmt: skip
    assert done.returncode and "raise --megabytes, or leave it out" in done.stderr
    done = run("pack.py", out, "--data", data, "--weights", weights, "--parts", 1,
               "--packages", "cachetools")  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = sorted(out.glob("*"))
    assert [p.name for p in parts] == ["part1.tar.gz"] and parts[0].stat().st_size < 60e6
    with tarfile.open(parts[0]) as archive: archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there"
    for name in ("celp_nb/engine/steps.py", "benchmarks/gpu.py", "tests/test_cuda.py",
                 "site/cachetools/__init__.py", "weights/w.pth"):  # fmt: skip
        assert (there / name).is_file(), name
    assert not list(there.rglob("*.ipynb"))
    assert (there / "weights/w.pth").read_bytes() == weights.read_bytes()
    for split in ("train", "val"):
        lists = "ImageSets/Segmentation"
        ids = (there / "data/photographs" / lists / f"{split}.txt").read_text().split()
        assert len(ids) == 40
        for i in ids:
            for file in (f"JPEGImages/{i}.jpg", f"SegmentationClass/{i}.png"):
                copy = there / "data/photographs" / file
                assert copy.read_bytes() == (data / file).read_bytes()
    assert "1. carry" in done.stdout and "--commit" in done.stdout
    assert "--data /tmp/celp/data/photographs" in done.stdout


def test_photographs_are_thinned_evenly_and_parts_keep_to_their_limit(here, tmp_path):
    import pack

    data = photographs(tmp_path / "photographs", 40)
    entries = pack.photograph_entries(data, 200_000)
    names = [e.name for e in entries if e.name.endswith(".jpg")]
    train, val = ([n for n in names if split in n] for split in ("train_", "val_"))
    assert 5 < len(train) < 40 and abs(len(train) - len(val)) <= 1
    numbers = [int(Path(n).stem.split("_")[1]) for n in train]
    assert numbers[0] == 0 and numbers[-1] > 30 and set(np.diff(numbers)) <= {1, 2, 3, 4, 5, 6}
    assert len([n for n in (e.name for e in entries) if n.endswith(".png")]) == len(names)
    parts = pack.in_parts(entries, 60_000)
    assert [e for part in parts for e in part] == entries and len(parts) > 2
    for number, part in enumerate(parts):
        pack.write_part(tmp_path / f"{number}.tar.gz", part)
        assert (tmp_path / f"{number}.tar.gz").stat().st_size <= 60_000
    with pytest.raises(ValueError, match="a part holds 0.0; raise --megabytes"):
        pack.in_parts(entries, 1000)


def test_photographs_are_not_packed_where_git_would_see_them(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    done = run("pack.py", tmp_path / "out")
    assert done.returncode and "git does not ignore" in done.stderr
    assert "/out/ to .git/info/exclude" in done.stderr and "Traceback" not in done.stderr


def test_many_trainings_leave_the_models_of_celp_train(tmp_path):
    "A run per fold and method, each in a process of its own; together as one run of them all."
    from celp_nb.engine.checkpoints import load_checkpoint
    from celp_nb.repro.config import make_config
    from celp_nb.repro.runs import train_run

    small = dict(crop=57, width=8, iterations=2, pairs=2, folds=(0,), device="cpu", cache_views=0)
    methods = ("PFENet", "PFENet+CE contrast=1")
    train_run(make_config(**small, methods=methods), tmp_path / "together")
    out = tmp_path / "apart"
    done = run("many_trainings.py", tmp_path / "together", out, "--workers", 2, "--device", "cpu")
    assert done.returncode == 0 and "2 trainings, 4 steps" in done.stdout, done.stderr
    for method, name in zip(methods, ("together-PFENet", "together-PFENet+CE-contrast=1")):
        apart = load_checkpoint(out / f"{name}-seed-0-fold-0" / "fold0" / f"{method}.pt")["model"]
        together = load_checkpoint(tmp_path / "together" / "fold0" / f"{method}.pt")["model"]
        assert all(torch.equal(apart[k], together[k]) for k in together)
        assert not (out / f"{name}-seed-0-fold-0" / "results.csv").exists()
    scored = ["--workers", 2, "--device", "cpu", "--score"]
    done = run("many_trainings.py", tmp_path / "together", out, *scored)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*/results.csv"))) == len(list(out.glob("*/fold0/rows.csv"))) == 2


def test_many_trainings_of_several_runs_keep_them_apart(here):
    from many_trainings import jobs

    from celp_nb.repro.config import make_config

    one = make_config(folds=(0, 1), methods=("PFENet", "PFENet+CE delta=0.3"))
    found = jobs({"a": one, "b": make_config(folds=(2,), methods=("CyCTR",))}, [0, 1])
    assert len(found) == 2 * 4 + 2
    own = found["a-PFENet+CE-delta=0.3-seed-1-fold-1"]
    assert own.model.methods == ("PFENet+CE delta=0.3",) and own.data.folds == (1,)
    assert own.runtime.seed == 1 and found["b-CyCTR-seed-0-fold-2"].data.folds == (2,)


@pytest.mark.parametrize(
    ("script", "runs", "said"),
    [
        (BENCHMARKS / "many_trainings.py", ["a/x", "b/x"], "two runs are called x; rename"),
        (BENCHMARKS / "many_trainings.py", ["gone"], "gone/config.json; give a folder"),
        (ROOT / "results/collect.py", ["out", "gone"], "gone: no such folder; give what"),
    ],
)
def test_runs_that_are_not_there_are_refused_before_anything_is_written(
    tmp_path, script, runs, said
):
    places = [tmp_path / name for name in runs]
    if script.name == "many_trainings.py": places.append(tmp_path / "out")
    done = run(script, *places)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def imports(node):
    "Imports from the package; what stands in for one that fails is of another version."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and (child.module or "").startswith("celp_nb"):
            yield from ((child.module, name.name) for name in child.names)
        elif not isinstance(child, ast.ExceptHandler): yield from imports(child)


def test_scripts_import_what_there_is():
    "Of what they import from the package, without running them."
    folders = [ROOT / name for name in ("benchmarks", "results", "tools")]
    scripts = [path for folder in folders for path in folder.rglob("*.py")]
    assert len(scripts) > 10
    for script in scripts:
        for module, name in imports(ast.parse(script.read_text(encoding="utf-8"))):
            there = hasattr(importlib.import_module(module), name)
            assert there or importlib.util.find_spec(f"{module}.{name}"), f"{script}: {name}"


def test_the_swap_of_a_run_is_kept_in_a_folder_that_is_made(tmp_path):
    "`results/swap.py`: one run, then another beside it, then the first anew."
    from celp_nb.repro.config import make_config
    from celp_nb.repro.runs import run as whole_run

    small = dict(crop=57, width=8, iterations=2, pairs=2, folds=(0,), device="cpu", trivial=False)
    for name, method in ("a", "PFENet"), ("b", "CyCTR"):
        whole_run(make_config(**small, methods=(method,)), tmp_path / name)
    for names in ("a", "ab", "a"):
        runs = [tmp_path / name for name in names]
        done = run(ROOT / "results/swap.py", tmp_path / "deep/er", *runs, "--pairs", 1)
        assert done.returncode == 0 and "| PFENet" in done.stdout, done.stderr
    rows = pd.read_csv(tmp_path / "deep/er/swap.csv.gz")
    assert rows.run.value_counts().nunique() == 1 and set(rows.run) == {"a", "b"}
    done = run(ROOT / "results/swap.py", tmp_path / "no", tmp_path / "a", "--pairs", 0)
    assert "--pairs is 0; give 1 or more" in done.stderr and not (tmp_path / "no").exists()


def test_runs_in_parts_are_collected_as_one_run(tmp_path):
    "`results/collect.py --name`: the scores and counts of a run that was not in parts."
    from celp_nb.repro.config import change_config, make_config
    from celp_nb.repro.runs import run as whole_run

    small = dict(crop=57, width=8, iterations=2, pairs=2, folds=(0,), device="cpu", trivial=False)
    whole = make_config(**small, methods=("PFENet", "CyCTR"))
    whole_run(whole, tmp_path / "whole")
    parts = [tmp_path / f"part-{method}" for method in whole.model.methods]
    for part, method in zip(parts, whole.model.methods):
        whole_run(change_config(whole, methods=(method,)), part)
    for folder, given in ("a", [tmp_path / "whole"]), ("b", [*parts, "--name", "whole"]):
        done = run(ROOT / "results/collect.py", tmp_path / folder, *given, "--queries")
        assert done.returncode == 0, done.stderr
    left = ["method", "shots", "cls", "query"]
    a, b = (pd.read_csv(tmp_path / f / "rows/whole.csv.gz").sort_values(left) for f in "ab")
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True))
    a, b = (pd.read_csv(tmp_path / f / "scores.csv").sort_values(left[:2]) for f in "ab")
    same = ["run", "method", "shots", "fold", "seed", "miou", "confusion", "episodes"]
    pd.testing.assert_frame_equal(a[same].reset_index(drop=True), b[same].reset_index(drop=True))
