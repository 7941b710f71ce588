"""Several processes, and processes that are killed: the same training as one that is left alone."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from celp_nb.bundled.scenes import samples
from celp_nb.data.episodes import images_in_turn
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import Recipe
from celp_nb.engine.backbones import load_backbone
from celp_nb.engine.checkpoints import load_checkpoint
from celp_nb.engine.methods import METHODS, build_model
from celp_nb.engine.steps import online_steps
from celp_nb.engine.training import Optimisation, accelerator_for, fit
from celp_nb.repro.runs import evaluate_run

CLASSES = list(range(6, 21))
NAMES = ("PFENet+CE", "CyCTR+CE")
ROOT = Path(__file__).resolve().parent.parent


def train(place: Path, parts: int = 1) -> None:
    """Six steps of four episodes with both decoders, dropout off, by one process or several.

    Losses and weights go to `place`."""
    data, accelerator = samples("train"), accelerator_for()
    items = TrainingEpisodes(
        data, images_in_turn(data.pixels, CLASSES, 24, 1, 0), CLASSES, Recipe(81, 161), 0
    )
    models, methods = {}, {n: replace(METHODS[n], delta=0.3, sigma=3) for n in NAMES}
    for n in NAMES:
        torch.manual_seed(0)
        models[n] = build_model(240, 16, (1.0, 0.5), 0.0, methods[n])
        for m in models[n].modules():
            if isinstance(m, (nn.Dropout, nn.Dropout2d)): m.p = 0.0
    backbone = load_backbone("tiny")
    share = (accelerator.process_index, accelerator.num_processes)
    trained = fit(
        models,
        methods,
        lambda start: online_steps(backbone, items, 4, start, whole=True, share=share),
        Optimisation(6, 4, 0.05),
        0,
        place / "last.pt",
        3,
        accelerator=accelerator,
        parts=parts,
    )
    if accelerator.is_main_process:
        (place / "history.json").write_text(json.dumps(trained.history))
        torch.save({n: m.state_dict() for n, m in models.items()}, place / "weights.pt")


def command(*arguments, processes: int) -> list[str]:
    "A command line that starts so many processes."
    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(port),
        *map(str, arguments),
    ]


def launch(*arguments, processes: int, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments, processes=processes),
        cwd=cwd,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )


ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def test_two_processes_descend_the_losses_of_one(tmp_path):
    "Same batch, same losses and weights, although void and latent regions are spread unevenly."
    one, two = tmp_path / "one", tmp_path / "two"
    for place in (one, two): place.mkdir()
    train(one)
    done = launch(__file__, two, processes=2, cwd=tmp_path)
    assert not done.returncode, done.stderr
    expected, found = (json.loads((place / "history.json").read_text()) for place in (one, two))
    for name in NAMES:
        assert len(expected[name]) == len(found[name]) == 6
        for a, b in zip(expected[name], found[name]):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
        assert expected[name][0]["contrast"] > 0
        a, b = (torch.load(place / "weights.pt", weights_only=True)[name] for place in (one, two))
        for k in a: torch.testing.assert_close(a[k], b[k], rtol=1e-3, atol=1e-5)
    assert load_checkpoint(two / "last.pt")["step"] == 6


SMALL = [
    "--data",
    "samples",
    "--fold",
    "0",
    "--crop",
    "57",
    "--width",
    "16",
    "--side",
    "97",
    "--pairs",
    "2",
    "--shots",
    "1",
    "2",
    "--methods",
    "PFENet+CE",
    "CyCTR",
    "--device",
    "cpu",
    "--cache-views",
    "0",
]


def test_a_run_of_two_processes_scores_every_episode_once(tmp_path):
    done = launch("-m", "celp_nb", "run", *SMALL, "--iterations", "3", processes=2, cwd=tmp_path)
    assert not done.returncode, done.stderr
    run = tmp_path / "runs/samples"
    rows = re.findall(r"\| PFENet\+CE +\| +1 \|", done.stdout)
    assert done.stdout.count("fold 0 train: 3/3") == len(rows) == 1  # one process speaks
    assert done.stdout.count("fold 0 evaluate: 10/10") == 1  # and says when all are done
    assert not (run / "lock.json").exists()
    together = pd.read_csv(run / "fold0" / "rows.csv")
    assert (
        together.groupby(["method", "shots"])
        .episode.apply(list)
        .map(lambda e: sorted(e) == list(range(10)))
        .all()
    )
    results = pd.read_csv(run / "results.csv")
    line = "evaluate runs/samples --fold 0 --episodes runs/samples/fold0/episodes.csv"
    again = launch("-m", "celp_nb", *line.split(), processes=2, cwd=tmp_path)
    assert again.stdout.count("evaluate: 10/10") == 1, again.stderr
    assert len(re.findall(r"\| PFENet\+CE +\| +1 \|", again.stdout)) == 1
    evaluate_run(run)
    alone = pd.read_csv(run / "fold0" / "rows.csv")
    order = ["method", "shots", "episode"]
    pd.testing.assert_frame_equal(
        together.sort_values(order, ignore_index=True), alone.sort_values(order, ignore_index=True)
    )
    assert results.miou.tolist() == pd.read_csv(run / "results.csv").miou.tolist()


def test_more_processes_than_episodes_are_refused_in_a_sentence(tmp_path):
    done = launch(
        "-m",
        "celp_nb",
        "run",
        *SMALL,
        "--iterations",
        "3",
        "--batch",
        "1",
        processes=2,
        cwd=tmp_path,
    )
    assert (
        done.returncode
        and "celp: 2 processes cannot share a batch of 1 episodes equally; start 1 "
        "(torchrun --nproc_per_node 1), or take --batch 2, which is another training."
        in done.stderr
    )
    assert not list(tmp_path.rglob("*.pt"))


LONG = ["train", *SMALL, "--iterations", "110"]


def start(place: Path, *more: str) -> subprocess.Popen:
    "The command in a process of its own, its output lines as they come."
    return subprocess.Popen(
        [sys.executable, "-m", "celp_nb", *LONG, *more],
        cwd=place,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen, line: str) -> None:
    "Read its output up to a line that begins so."
    for said in process.stdout:
        if said.startswith(line): return
    pytest.fail(f"{line!r} was never said: {process.stderr.read()}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A training that nothing happened to."
    place = tmp_path_factory.mktemp("undisturbed")
    process = start(place)
    _, said = process.communicate(timeout=300)
    assert not process.returncode, said
    return place / "runs/samples/fold0"


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_training_that_is_killed_goes_on_to_the_same_weights(blow, undisturbed, tmp_path):
    process = start(tmp_path)
    until(process, "fold 0 train: 66/110")
    process.send_signal(blow)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if blow == signal.SIGKILL else 143), said
    place = tmp_path / "runs/samples/fold0"
    assert load_checkpoint(place / "last.pt")["step"] == 50 and not list(place.glob("PFENet*"))
    assert blow == signal.SIGKILL or "--resume" in said
    again = start(tmp_path, "--resume")
    out, said = again.communicate(timeout=300)
    assert not again.returncode, said
    assert "fold 0 train: 55/110" in out and "fold 0 train: 44/110" not in out  # from step 50 on
    for name in ("PFENet+CE", "CyCTR"):
        a, b = (load_checkpoint(p / f"{name}.pt")["model"] for p in (undisturbed, place))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (place / "losses.csv").read_text() == (undisturbed / "losses.csv").read_text()
    assert not list(place.glob(".*.part"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
