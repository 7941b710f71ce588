"""A simulated day of training on COCO-20i: memory growth, time to draw and to read episodes.

    python benchmarks/day.py [--episodes 20000] [--images 82081] [--augmented 1000] [--side 641]

An index of the size of COCO 2014's (82,081 images, 80 classes) is written as the project keeps its
own, and read back. Its images share 1,000 masks of seven outlines each, drawn at random and
rendered to PNG as the project renders COCO's. Then fold 0's episodes of 50 epochs are drawn at
once; of the first ones the masks are read and marked as training does, and some are read and
augmented whole, from photographs of noise. Memory is the process's resident set, printed after each
tenth, with what the allocator holds in reserve given back first (it keeps some 500 MiB of freed
images, and no more after a few hundred episodes). Exit status 1 if it grows by more than --limit
from the half to the end.
"""

import argparse
import ctypes
import json
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from celp_nb.data.coco import COCO_CLASSES, AnnotatedImage, paint_mask
from celp_nb.data.coco_outlines import run_lengths
from celp_nb.data.episodes import class_images, fold_classes, images_in_turn
from celp_nb.data.images import ImageSet, read_png_mask, write_png_mask
from celp_nb.data.training_set import TrainingEpisodes
from celp_nb.data.transforms import COCO_RECIPE, binary_mask, known_mask

HEIGHT, WIDTH, OUTLINES, MASKS = 480, 640, 7, 1000


def resident():  # MiB
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return (
        next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
        / 1024
    )


def random_outline(rng):
    "Compressed run lengths of one polygon."
    x, y = rng.integers(0, [WIDTH - 40, HEIGHT - 40])
    w, h = rng.integers(30, [WIDTH // 2, HEIGHT // 2])
    angles = np.sort(rng.uniform(0, 2 * np.pi, 24))
    xs = (x + w / 2 * (1 + np.cos(angles))).clip(0, WIDTH)
    ys = (y + h / 2 * (1 + np.sin(angles))).clip(0, HEIGHT)
    return run_lengths([np.stack([xs, ys], 1).ravel().tolist()], HEIGHT, WIDTH)


def rendered(folder, rng):
    "MASKS mask files, each of OUTLINES random outlines, and the pixels of each class in them."
    paths, counts = [], []
    for k in range(MASKS):
        values = rng.integers(1, 81, OUTLINES).tolist()
        outlines = [random_outline(rng) for _ in values]
        mask = paint_mask(AnnotatedImage(f"{k}.jpg", (HEIGHT, WIDTH), values, outlines))
        paths.append(folder / f"{k}.png")
        write_png_mask(paths[-1], mask)
        counts.append(np.bincount(mask.ravel(), minlength=256)[1:81])
    return paths, np.array(counts)


def written_and_read(pixels, folder):
    "The pixel table through a file, and the file's size in MiB."
    path = folder / "index.npz"
    np.savez(path, pixels=pixels.astype(np.int32))
    with np.load(path) as stored:
        return stored["pixels"].astype(np.int64), path.stat().st_size / 2**20


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=20000)
    parser.add_argument("--images", type=int, default=82081)
    parser.add_argument(
        "--augmented", type=int, default=1000, help="episodes that are read and augmented whole"
    )
    parser.add_argument("--side", type=int, default=641)
    parser.add_argument(
        "--limit",
        type=float,
        default=20.0,
        help="MiB of growth over the second half that are too much",
    )
    args = parser.parse_args()
    rng, folder = np.random.default_rng(0), Path(tempfile.mkdtemp())
    mask_paths, counts = rendered(folder, rng)
    pixels, size = written_and_read(counts[np.arange(args.images) % MASKS], folder)
    photos = [folder / f"{k}.jpg" for k in range(20)]
    for path in photos:
        Image.fromarray(rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)).resize(
            (WIDTH, HEIGHT)
        ).save(path)
    data = ImageSet(
        "coco-sized",
        [str(i) for i in range(args.images)],
        [photos[i % len(photos)] for i in range(args.images)],
        partial(read_png_mask, [mask_paths[i % MASKS] for i in range(args.images)]),
        list(COCO_CLASSES),
        pixels,
        True,
    )
    classes = [c for c in range(1, 81) if c not in fold_classes(80, 0, interleaved=True)]
    print(
        f"index of {args.images} images: {size:.0f} MiB in its file; resident {resident():.0f} MiB"
    )

    pool, start = (
        len(set().union(*map(set, class_images(pixels, classes).values()))),
        time.perf_counter(),
    )
    episodes = images_in_turn(pixels, classes, 50 * pool, 1, 0)
    print(
        f"{len(episodes.cls)} episodes, 50 epochs of {pool} images, "
        f"drawn in {time.perf_counter() - start:.1f} s; resident {resident():.0f} MiB"
    )
    items = TrainingEpisodes(
        data, episodes, classes, type(COCO_RECIPE)(**{**vars(COCO_RECIPE), "side": args.side}), 0
    )

    def masks(i):
        c = int(episodes.cls[i])
        for j in (int(episodes.query[i]), *episodes.support[i].tolist()):
            class_map = data.read_mask(j)
            binary_mask(class_map, c), known_mask(class_map, classes)

    growths = {}
    for name, work, n in (
        ("masks read and marked", masks, args.episodes),
        ("read and augmented", items.__getitem__, args.augmented),
    ):
        start, memory = time.perf_counter(), []
        for i in range(n):
            work(i)
            if (i + 1) % max(1, n // 10) == 0: memory.append(resident())
        growths[name] = memory[-1] - memory[len(memory) // 2]
        print(
            f"{name}: {n} episodes, {1000 * (time.perf_counter() - start) / n:.1f} ms each; "
            f"resident {' '.join(f'{m:.0f}' for m in memory)} MiB, "
            f"growth over the second half {growths[name]:.1f} MiB"
        )
    print(json.dumps({name: round(value, 1) for name, value in growths.items()}))
    if max(growths.values()) > args.limit: sys.exit(f"memory grew by more than {args.limit} MiB.")


if __name__ == "__main__": main()
