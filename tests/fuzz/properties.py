"""What must hold for every folder: an answer, or an error of one sentence that names the file."""

import contextlib
import os
import signal
import tempfile
import warnings
from pathlib import Path

import numpy as np
import strategies as s
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from celp_nb.data.coco import coco_layout
from celp_nb.data.episodes import read_episodes
from celp_nb.data.images import ImageSet, read_image
from celp_nb.data.voc import voc_layout
from celp_nb.engine.checkpoints import load_model
from celp_nb.engine.segmenter import object_mask, photograph
from celp_nb.repro.config import read_config

SECONDS = 60  # after which a call counts as hanging


class Hang(BaseException):
    "Raised by the alarm; no `except Exception` swallows it."


def ring(*_): raise Hang(f"no answer within {SECONDS} s")


@contextlib.contextmanager
def alarm():
    "Raise `Hang` in what takes too long."
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes]:
    "Every file of a folder."
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def check_message(error: Exception, root: Path) -> None:
    "An error is one line, and names a file or the folder."
    message = str(error).strip()
    told = message and "\n" not in message and "\r" not in message
    assert told, f"{type(error).__name__} is not one line: {message[:300]!r}"
    named = [root.name, *(path.name for path in root.rglob("*"))]
    assert any(name in message for name in named), f"no file is named: {message[:300]!r}"


def answers_or_says_why(call, files) -> None:
    "Write a folder, call a function of it, and look at what it raises and leaves."
    with tempfile.TemporaryDirectory() as place:
        root, cache = Path(place) / "given", Path(place) / "cache"
        root.mkdir()
        s.write_folder(root, files)
        before = contents(root)
        os.environ["CELP_CACHE"] = str(cache)
        with alarm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try: call(root)
            except (ValueError, OSError, RuntimeError) as error: check_message(error, root)
        assert contents(root) == before, "a reader has changed what it was given"
        half = [path.name for path in Path(place).rglob("*.part")]
        assert not half, f"half-written files are left: {half}"


def read_all(data: ImageSet) -> None:
    "All photographs and masks of a data set: uint8, of one size."
    for i in range(len(data.ids)):
        image, mask = read_image(data, i), data.read_mask(i)
        assert image.dtype == mask.dtype == np.uint8 and image.shape[2] == 3
        assert image.shape[:2] == mask.shape, "a photograph and its mask have different sizes"
        assert set(np.unique(mask)) <= {*range(len(data.class_names) + 1), 255}


def open_voc(root): read_all(voc_layout(root, "train"))


def open_voc_skipping(root): read_all(voc_layout(root, "train", skip_unreadable=True))


def open_coco(root): read_all(coco_layout(root, "train2014"))


def open_episodes(root): read_episodes(root / "episodes.csv", s.IDS, ["cat", "dog"])


def open_config(root): read_config(root)


def open_model(root):
    model, saved = load_model(root / "model.pt")
    assert isinstance(model, torch.nn.Module) and isinstance(saved, dict)


def open_single(root):
    image = photograph(root / "photo.png")
    assert image.dtype == np.uint8 and image.ndim == 3
    assert set(np.unique(object_mask(root / "mask.png"))) <= {0, 1, 255}


#: name → the strategy of its folder, and what is called with the folder
PROPERTIES = {
    "voc": (s.voc_folder(), open_voc),
    "voc, skipping": (s.voc_folder(), open_voc_skipping),
    "coco": (s.coco_folder(), open_coco),
    "episodes": (s.episode_list(), open_episodes),
    "config": (s.config_folder(), open_config),
    "checkpoint": (s.checkpoint_file(), open_model),
    "single files": (s.single_files(), open_single),
}


def run_property(name: str, examples: int, number: int | None = None) -> None:
    "Try a property on some folders, always the same without a seed. Raises what it finds."
    folders, call = PROPERTIES[name]
    options = settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        phases=(Phase.generate,) if number is None else (Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )

    def trial(files): answers_or_says_why(call, files)

    trial = options(given(files=folders)(trial))
    (trial if number is None else seed(number)(trial))()
