"""Jobs on folds that a process of its own can import."""

import os
import time

from celp_nb.data.images import UnreadableImage


def mistaken(setup, fold, folder, watch, callbacks):
    "Fold 1 fails, the others wait for longer than a test may."
    if fold.number == 1: raise UnreadableImage("photo.jpg is no image; replace it.")
    watch("waits", 600)(1)
    (folder / f"{os.getpid()}").touch()
    time.sleep(600)


def lost(setup, fold, folder, watch, callbacks):
    "The process of fold 1 ends without a word."
    if fold.number == 1: os._exit(7)
    return fold.number


def heard(setup, fold, folder, watch, callbacks):
    "Values and progress of a fold, then a result."
    tick = watch(f"fold {fold.number} train", 2)
    for step in (1, 2):
        tick(step)
        for callback in callbacks: callback(fold.number, step, {"threads": 1.0})
    return [fold.number, setup.config.runtime.cache_gb, [f.number for f in setup.folds]]
