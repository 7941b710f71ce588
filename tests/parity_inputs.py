"""Inputs and parameters of the parity fixtures: functions of a seed and of official names.

What is drawn here is what the published code was given, to the bit; `tools/make_fixtures.py` checks
that against the whole fixtures and then leaves it out of the bundled ones.
"""

import json
import lzma
import zlib

import numpy as np

LAYERS = {"2": 512, "3": 1024, "4": 2048}  # number of a ResNet-50's layer → its channels
REGIONS = 6  # of one image, each around a random site, and as many prototypes


def fill(name, shape, salt=0):
    "The fixtures' parameters: a function of their official names."
    g = np.random.RandomState((zlib.crc32(name.encode()) + salt) % 2**32)
    n = g.standard_normal(shape).astype("float32")
    if name.endswith("num_batches_tracked"): return np.zeros(shape, "int64")
    if name.endswith("running_var"): return 1 + 0.1 * np.abs(n)
    if name.endswith("running_mean"): return 0.1 * n
    if len(shape) == 1: return 0.5 + 0.05 * n if name.endswith("weight") else 0.1 * n
    return n * np.float32(np.sqrt(2 / np.prod(shape[1:])))


def draw_image_features(r, prototypes, side, noise):
    "Features of an image: six regions around random sites, a prototype for each, and noise."
    sites = r.rand(REGIONS, 2) * side
    grid = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 1, 2)
    region = ((grid - sites) ** 2).sum(-1).argmin(1)
    maps = []
    for prototype in prototypes:
        noisy = prototype[region] + noise * r.standard_normal((side * side, prototype.shape[1]))
        maps.append(np.maximum(noisy, 0).astype("float32").astype("float16"))
    return [m.T.reshape(-1, side, side) for m in maps]


def episode_features(settings):
    "q2 … q4 (B, C, h, w) and s2 … s4 (B, K, C, h, w), float16; the first shot is the query itself."
    batch, shot, side = (settings[k] for k in ("batch", "shot", "side"))
    r = np.random.RandomState(settings["seed"])
    prototypes = []
    for channels in LAYERS.values():
        values = np.abs(r.standard_normal((REGIONS, channels)))
        prototypes.append(values * (r.rand(REGIONS, channels) < 0.3))
    noise = settings.get("noise", 0.18)
    images = [draw_image_features(r, prototypes, side, noise) for _ in range(batch * shot)]
    features = {}
    for layer, maps in zip(LAYERS, zip(*images)):
        supports = np.stack(maps).reshape(batch, shot, -1, side, side)
        features |= {f"q{layer}": supports[:, 0], f"s{layer}": supports}
    return features


def backbone_inputs(settings):
    "x (1, 3, H, W) float32."
    side = 8 * (settings["side"] - 1) + 1
    r = np.random.RandomState(settings["seed"])
    return {"x": r.standard_normal((1, 3, side, side)).astype("float32")}


def seeded_inputs(arrays):
    "The inputs of a fixture that follow from its settings; {} for one that has no such inputs."
    settings = json.loads(str(arrays["settings"]))
    if "c" in arrays: return episode_features(settings)
    return backbone_inputs(settings) if "shapes" in arrays else {}


def read_fixture(path):
    "The arrays of a fixture, as they are stored."
    with np.load(path) as stored: return {name: stored[name] for name in stored.files}


def whole_fixture(path):
    "The arrays of a fixture and its settings; inputs that are not stored are drawn."
    arrays = read_fixture(path)
    if not {"q2", "x"} & set(arrays): arrays |= seeded_inputs(arrays)
    return arrays, json.loads(str(arrays.pop("settings")))


def read_keys(folder):
    "Names and shapes of the tensors of the published models; None where a folder has none."
    plain, packed = folder / "official_keys.json", folder / "official_keys.json.xz"
    if plain.is_file(): return json.loads(plain.read_text())
    return json.loads(lzma.decompress(packed.read_bytes())) if packed.is_file() else None
