"""Draw another world of the samples' generator: the same scenes of twenty other classes.

    python tools/another_world.py FOLDER [WORLD]

FOLDER becomes a data set in VOC layout (600 training and 300 validation scenes, classes.txt) that
`celp run --data FOLDER --backbone tiny` reads. Settings of the samples are chosen here, so that no
score on the bundled scenes is chosen by. WORLD is a number from 1 on (default 1): world w has the
w-th twenty classes after the 96 that the tiny backbone was pre-trained on, and its own seed. Their
outlines differ from all earlier ones and from the bundled twenty; the families that outlines and
textures are drawn from are those of the pre-training, which the bundled classes are not.
"""

import sys
from functools import partial
from pathlib import Path

from celp_nb.bundled.catalogue import ObjectClass, other_classes
from celp_nb.bundled.scenes import SEED, write_samples
from celp_nb.bundled.tiny import N_OTHER

N_CLASSES = 20


def world_classes(world: int) -> tuple[ObjectClass, ...]:
    "The twenty classes of a world. None is bundled, none was seen in pre-training."
    last = N_OTHER + N_CLASSES * world
    return other_classes(last)[last - N_CLASSES:]


def write_world(folder: Path, world: int = 1, **how) -> None:
    "Draw a world; further arguments as of `write_samples`. Raises FileExistsError for a folder."
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; delete it or name another folder.")
    catalogue = partial(world_classes, world)
    write_samples(folder, seed=SEED + world, catalogue=catalogue, **how)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    world = arguments[1] if len(arguments) == 2 else "1"
    if len(arguments) not in (1, 2) or not world.isdigit() or world == "0": sys.exit(__doc__)
    try: write_world(Path(arguments[0]), int(world))
    except OSError as error: sys.exit(str(error))
