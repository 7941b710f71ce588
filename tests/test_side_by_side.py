"""Folds in processes of their own: results, mistakes, and that no process is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
from folders import TINY

from celp_nb.app.commands import SideBySide
from celp_nb.data.images import UnreadableImage
from celp_nb.repro import runs
from celp_nb.repro.config import change_config, make_config
from celp_nb.repro.defaults import resolve
from celp_nb.repro.report import progress_display
from celp_nb.repro.setup import prepare
from celp_nb.repro.side_by_side import available_cores, fold_results, folds_at_a_time


@pytest.fixture(scope="module")
def setup():
    small = dict(folds=(0, 1, 2), crop=81, width=16, iterations=2, cache_views=0)
    return prepare(resolve(make_config(**small, methods=("PFENet",))))


def is_running(pid, seconds=10):
    "Whether a process is still there after some seconds; one that was not waited for is not."
    deadline = time.time() + seconds
    while time.time() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] == "Z": return False
        time.sleep(0.1)
    return True


def test_the_help_says_that_folds_bound_the_processes():
    text = SideBySide.__metadata__[0].help
    assert "folds at a time" in text and "cores beyond the number of folds stay idle" in text


def test_every_fold_gives_its_result_and_its_values_and_memory_is_shared_out(
    setup, tmp_path, capsys
):
    told = []
    tell = [lambda fold, step, values: told.append((fold, step, values["threads"]))]
    given = setup, setup.folds, tmp_path, progress_display(6), tell
    done = list(fold_results(jobs.heard, *given, 2))
    assert {f.number: x for f, x in done} == {n: [n, 2.0, [n]] for n in range(3)}
    assert sorted(told) == [(n, step, 1.0) for n in range(3) for step in (1, 2)]
    lines = capsys.readouterr().out.splitlines()
    assert {f"fold {n} train: 2/2" for n in range(3)} <= {line.strip() for line in lines}


def test_a_mistake_in_a_fold_is_raised_and_ends_the_others(setup, tmp_path):
    folds = [setup.folds[0], setup.folds[1]]
    with pytest.raises(ValueError, match="photo.jpg is no image; replace it.") as caught:
        list(fold_results(jobs.mistaken, setup, folds, tmp_path, progress_display(4), [], 2))
    assert issubclass(UnreadableImage, ValueError) and "fold 1" in str(caught.value.__cause__)
    assert not any(is_running(int(p.name)) for p in tmp_path.iterdir())


def test_a_process_that_ends_without_a_word_is_named(setup, tmp_path):
    with pytest.raises(RuntimeError, match="fold 1 ended with status 7.*--side-by-side 1"):
        list(fold_results(jobs.lost, setup, setup.folds, tmp_path, progress_display(6), [], 3))


def test_a_run_side_by_side_has_the_results_of_one_in_turn(tmp_path):
    config, tables = change_config(TINY, folds=(1, 2), methods=("PFENet",), shots=(1, 5)), []
    for at_a_time in (1, 2):
        table = runs.run(config, tmp_path / str(at_a_time), at_a_time=at_a_time)
        tables.append(table.drop(columns="seconds"))
    assert tables[0].equals(tables[1]) and sorted(set(tables[0].fold)) == [1, 2]


def test_as_many_folds_at_a_time_as_cores_on_a_cpu_alone(monkeypatch):
    assert folds_at_a_time(make_config(device="cpu")) == available_cores()
    assert folds_at_a_time(make_config(device="cpu"), 3) == 3
    assert folds_at_a_time(make_config(device="cuda")) == 1
    assert folds_at_a_time(make_config(device="cuda"), 3) == 3
    monkeypatch.setenv("RANK", "0")
    assert folds_at_a_time(make_config(device="cpu"), 3) == 1
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match="--side-by-side is 0; give 1 or more"):
        folds_at_a_time(make_config(), 0)


def children(pid):
    "The processes that a process has started and that still run."
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_leaves_no_process_behind(tmp_path, number, status):
    options = "--folds 0 1 --side-by-side 2 --methods PFENet --iterations 100000 --crop 81 --name x"
    command = [sys.executable, "-m", "celp_nb", "run", *options.split()]
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    # a background job of a shell ignores SIGINT, and so do its children
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=where, preexec_fn=heard, **pipes) as run:
        deadline = time.time() + 120
        while len(started := children(run.pid)) < 3 and time.time() < deadline: time.sleep(0.2)
        time.sleep(2)
        run.send_signal(number)
        _, said = run.communicate(timeout=60)
    assert run.returncode == status, said
    assert re.search("--resume goes on", said)
    assert len(started) == 3 and not any(map(is_running, started))  # two folds, a tracker
    assert not (tmp_path / "runs" / "x" / "lock.json").exists()
