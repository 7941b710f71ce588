"""The equations in JavaScript against those in Python: random features and bundled scenes."""

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import celp_nb
from celp_nb.app.explorer_state import ExplorerImage, prepare_image
from celp_nb.app.latent_payload import (
    dequantise,
    equal_runs,
    latent_payload,
    page_similarity,
    quantise,
    scene_payloads,
)
from celp_nb.bundled.scenes import samples
from celp_nb.conditioning import Features, latent_prior, prototype
from celp_nb.data.images import read_image
from celp_nb.data.transforms import fit_square, known_mask, padding_of
from celp_nb.engine.backbones import load_backbone
from celp_nb.latent import candidates, sample_latent, similar_region
from celp_nb.ops import VOID, min_max, resize, soft_mask
from celp_nb.similarity import known_positions, self_similarity, similar_count, similarity_rows

STATIC = Path(celp_nb.__file__).parent / "app" / "static"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node on PATH: apt-get install nodejs")
TYPES = {"Float32Array": np.float32, "Uint8Array": np.uint8, "Int32Array": np.int32}

#: reads a question from a file, writes typed arrays as base 64
DRIVER = """
import { readFileSync, writeFileSync } from "node:fs"
import * as E from "./latent_equations.mjs"
const packed = x => ArrayBuffer.isView(x)
  ? { type: x.constructor.name, data: Buffer.from(x.buffer, x.byteOffset, x.byteLength)
      .toString("base64") }
  : x
const packAll = maps => Object.fromEntries(Object.entries(maps).map(([k, x]) => [k, packed(x)]))
const [question, answer] = process.argv.slice(2)
const job = (BODY)
writeFileSync(answer, JSON.stringify(job(JSON.parse(readFileSync(question)))))
"""
#: all maps of a payload at several centres, δ and σ
MAPS = """({ payload, cases }) => {
  const image = E.prepareImage(payload)
  const maps = cases.map(([i, delta, sigma]) => packAll(E.latentMaps(image, i, delta, sigma)))
  return { image: packAll(image), maps }
}"""


def unpacked(x):
    if isinstance(x, list): return [unpacked(item) for item in x]
    if not isinstance(x, dict): return x
    if set(x) != {"type", "data"}: return {name: unpacked(item) for name, item in x.items()}
    return np.frombuffer(base64.b64decode(x["data"]), TYPES[x["type"]])


@pytest.fixture
def javascript(tmp_path):
    "Run a function of one argument in node, beside the equations as E."
    shutil.copy(STATIC / "latent_equations.js", tmp_path / "latent_equations.mjs")

    def run(body, question):
        (tmp_path / "driver.mjs").write_text(DRIVER.replace("BODY", body), encoding="utf-8")
        (tmp_path / "question.json").write_text(json.dumps(question))
        files = [tmp_path / name for name in ("driver.mjs", "question.json", "answer.json")]
        done = subprocess.run([NODE, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return unpacked(json.loads(files[-1].read_text()))

    return run


class Reference(NamedTuple):
    "What Python computes with: the features of a payload, as a page reads them."
    payload: dict
    high: torch.Tensor  # (1, C, h, w)
    mid: torch.Tensor
    known: torch.Tensor  # (1, S, S)
    padding: torch.Tensor  # (1, S, S)


def reference(payload, class_map, padding):
    size = (payload["h"], payload["w"])
    known = known_mask(class_map, payload["known_classes"])[None]
    features = [dequantise(payload[name], size) for name in ("high", "mid")]
    return Reference(payload, *features, known, padding)


def random_reference(seed, side=89, extent=(89, 89), signed=False, n=None):
    "An image of noise, with known objects, an unknown one, void and padding; n×n positions."
    rng, n = torch.Generator().manual_seed(seed), n or (side - 1) // 8 + 1
    make = lambda channels: torch.randn(1, channels, n, n, generator=rng)
    high, mid = make(12) + 0.5, make(7) + 0.2
    if not signed: high, mid = high.relu(), mid.relu()
    high[:, :, 0, 0] = mid[:, :, 0, 1] = 0  # vectors of zeros, and short ones, where EPS counts
    high[:, :, 1, 0], mid[:, :, 1, 1] = 1e-4 * high[:, :, 1, 0], 1e-5 * mid[:, :, 1, 1]
    class_map = torch.zeros(side, side, dtype=torch.uint8)
    class_map[10:33, 12:37] = 3
    class_map[30:57, 44:70] = 8
    class_map[50:60, 8:20] = 5
    class_map[torch.rand(side, side, generator=rng) < 0.03] = 3  # between positions, some of them
    class_map[33:36, 12:37] = VOID
    class_map[70:73, 60:64] = VOID
    class_map[extent[0] :] = VOID
    class_map[:, extent[1] :] = VOID
    padding = padding_of(*extent, side)
    photo = np.zeros((side, side, 3), np.uint8)
    image = ExplorerImage(photo, class_map, Features(mid, high), None, padding)
    return reference(latent_payload("noise", image, mid, [3, 5], 0), class_map, padding)


@pytest.fixture(scope="module")
def scenes():
    "Two scenes, the second cut so that it has padding at the right."
    data, backbone, references = samples("val"), load_backbone("tiny"), []
    for (name, payload), columns in zip(scene_payloads(2).items(), (161, 110)):
        i = data.ids.index(name)
        photo, mask = read_image(data, i)[:, :columns], data.read_mask(i)[:, :columns]
        image = prepare_image(backbone, photo, mask, 161)
        mid = dequantise(payload["mid"], (21, 21))
        known = payload["known_classes"]
        payload = latent_payload(name, image, mid, known, payload["centre"])
        _, class_map = fit_square(photo, mask, 161)
        references += [reference(payload, class_map, padding_of(161, columns, 161))]
    return references


def clear_of(D, delta):
    "The nearest δ that no cosine comes closer to than 2e-6: sums may differ in the last bits."
    values = D.flatten().unique()
    for k in range(1000):
        for sign in (1, -1):
            moved = float(np.float32(delta + sign * k * 1e-6))
            if (values - moved).abs().min() > 2e-6: return moved
    raise AssertionError(f"no free δ near {delta}")


def cases_of(ref, centres, deltas, sigmas):
    D = self_similarity(ref.high)
    deltas = [clear_of(D, delta) for delta in deltas]
    return [(i, delta, sigma) for i in centres for delta in deltas for sigma in sigmas]


def python_maps(ref, centre, delta, sigma):
    size, at = tuple(ref.high.shape[-2:]), torch.tensor([centre])
    positions = known_positions(ref.known, size)
    row = similarity_rows(ref.high, at[:, None])[:, 0]
    N = similar_count(self_similarity(ref.high), positions, delta)
    pseudo, _ = sample_latent(ref.high, ref.known, centre=at, delta=delta, sigma=sigma)
    pseudo = pseudo.masked_fill(ref.padding, VOID)
    v = prototype(ref.mid, pseudo)
    return {
        "row": row,
        "count": N,
        "candidate": candidates(N, positions, sigma),
        "region": similar_region(row, positions, delta),
        "pseudo": pseudo,
        "v": v,
        "prior": latent_prior(v, ref.mid),
    }


VALUES = ("row", "v", "prior")


def compare(ref, answer, cases):
    "Every map of every case: values within 1e-5, sets exactly."
    size = tuple(ref.high.shape[-2:])
    assert (answer["image"]["known"] == ref.known.flatten().numpy()).all(), "known pixels"
    positions = known_positions(ref.known, size).flatten().numpy()
    assert (answer["image"]["positions"] == positions).all(), "known positions"
    D = self_similarity(ref.high).flatten().numpy()
    np.testing.assert_allclose(answer["image"]["D"], D, rtol=0, atol=1e-5, err_msg="Eq. (1)")
    for case, maps in zip(cases, answer["maps"], strict=True):
        for name, expected in python_maps(ref, *case).items():
            expected, where = expected.flatten().numpy(), f"{name} at {case}"
            if name in VALUES:
                np.testing.assert_allclose(maps[name], expected, 1e-5, 1e-5, err_msg=where)
            else: np.testing.assert_array_equal(maps[name], expected, err_msg=where)


NOISE = {
    "whole": dict(seed=0),
    "padded below": dict(seed=1, extent=(62, 89)),
    "padded right": dict(seed=2, extent=(89, 51)),
    "signed": dict(seed=3, signed=True),
    "another square": dict(seed=4, side=97, extent=(97, 90)),
    "positions between pixels": dict(seed=5, n=10),
}


@needs_node
@pytest.mark.parametrize("which", NOISE)
def test_maps_of_noise(javascript, which):
    ref = random_reference(**NOISE[which])
    n = ref.payload["h"]
    # the second is the zero vector, the last lies in padding or on the corner, -1 is no centre
    centres = (5 * n + 1, 0, 8 * n + 5, n * n - 1, -1)
    cases = cases_of(ref, centres, (-0.4, 0.0, 0.3, 0.65, 0.97), (0, 3, 11))
    answer = javascript(MAPS, {"payload": ref.payload, "cases": cases})
    compare(ref, answer, cases)
    states = np.concatenate([maps["pseudo"] for maps in answer["maps"]])
    assert set(states) == {0, 1, VOID}
    if which == "positions between pixels":
        shares = [soft_mask(python_maps(ref, *case)["pseudo"], (n, n)) for case in cases]
        assert any(((share > 0) & (share < 0.99)).any() for share in shares)  # weights of Eq. (7)


@needs_node
@pytest.mark.parametrize("k", [0, 1])
def test_maps_of_bundled_scenes(javascript, scenes, k):
    ref = scenes[k]
    centres = (ref.payload["centre"], 3, 200, 14 * 21 + 9, 440)
    cases = cases_of(ref, centres, (0.1, 0.5, 0.65, 0.8, 0.95), (0, 11, 80))
    answer = javascript(MAPS, {"payload": ref.payload, "cases": cases})
    compare(ref, answer, cases)
    assert bool(ref.padding.any()) == (k == 1)
    sizes = [int((maps["pseudo"] == 1).sum()) for maps in answer["maps"]]
    assert 0 in sizes and max(sizes) > 2000  # an empty region and a large one are among them


@needs_node
def test_directions_with_fewer_channels_keep_their_length(javascript):
    "Divided by what is left of them, cosines would be too large."
    rng = torch.Generator().manual_seed(0)
    high = torch.randn(1, 600, 24, 24, generator=rng).relu()
    high[:, :, 0, 0] = 0
    class_map, padding = torch.zeros(185, 185, dtype=torch.uint8), padding_of(185, 185, 185)
    photo, mid = np.zeros((185, 185, 3), np.uint8), high[:, :3]
    image = ExplorerImage(photo, class_map, Features(mid, high), None, padding)
    payload = latent_payload("noise", image, mid, [], 0)
    seen = javascript("payload => packAll(E.prepareImage(payload))", payload)["D"].reshape(576, 576)
    D = self_similarity(high)[0].numpy()
    shared = page_similarity(payload["high"], (24, 24))[0].numpy()
    assert payload["high"]["channels"] == 256 and abs(seen - shared).max() < 1e-5
    assert abs(np.diag(seen) - np.diag(D)).max() < 1e-5  # 1, and 0 of zeros
    divided = self_similarity(dequantise(payload["high"], (24, 24)))[0].numpy()
    assert abs(seen - D).mean() < abs(divided - D).mean() / 2


@needs_node
def test_a_cosine_equal_to_delta_is_not_above_it(javascript):
    ref = random_reference(5)
    high = torch.zeros(1, 4, 12, 12)
    high[:, 0, :, :6], high[:, 1, :, 6:] = 1, 1  # two kinds of positions: cosines 1 and exactly 0
    ref.payload["high"] = quantise(high[0])
    ref = ref._replace(high=dequantise(ref.payload["high"], (12, 12)))
    D, cases = self_similarity(ref.high), [(60, 0.0, 1), (66, 0.0, 40), (60, -0.1, 1)]
    assert (D == 0).any()
    compare(ref, javascript(MAPS, {"payload": ref.payload, "cases": cases}), cases)


@needs_node
def test_a_count_equal_to_sigma_is_enough(javascript):
    ref = random_reference(0)
    (case,) = cases_of(ref, [0], [0.65], [0])
    N = python_maps(ref, *case)["count"].flatten()
    sigma = int(N.median())
    cases = [(0, case[1], s) for s in (sigma - 1, sigma, sigma + 1)]
    sizes = [int(python_maps(ref, *c)["candidate"].sum()) for c in cases]
    assert sizes[1] > sizes[2]
    compare(ref, javascript(MAPS, {"payload": ref.payload, "cases": cases}), cases)


@needs_node
def test_a_share_of_a_quarter_is_in_the_region_but_not_known(javascript):
    "The two comparisons with 0.25 of Eq. (2) and Eq. (5) differ at equality."
    body = "({ map, from, to }) => packAll({ share: E.resize(map, from, to) })"
    up = javascript(body, {"map": [1, 0, 0, 0], "from": [2, 2], "to": [9, 9]})["share"]
    expected = resize(torch.tensor([[[[1.0, 0], [0, 0]]]]), (9, 9)).flatten().numpy()
    assert (up == expected).all() and (up == 0.25).any()
    body = """({ share }) => packAll({
      pseudo: E.pseudoMask([1, 0, 0, 0], [2, 2], new Uint8Array(81), [9, 9], [9, 9]),
      known: E.knownPositions(share, [1, 81], [1, 81]),
    })"""
    answer = javascript(body, {"share": up.tolist()})
    assert (answer["pseudo"] == np.where(expected >= 0.25, 1, VOID)).all()
    assert (answer["known"] == (expected > 0.25)).all()


@needs_node
@pytest.mark.parametrize("sizes", [((473, 473), (60, 60)), ((60, 60), (473, 473)),
                                   ((30, 41), (7, 9)), ((7, 9), (30, 41)), ((1, 5), (3, 1))])
def test_resize(javascript, sizes):
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(sizes[0], generator=rng)
    body = "({ map, from, to }) => packAll({ out: E.resize(Float32Array.from(map), from, to) })"
    question = {"map": x.flatten().tolist(), "from": sizes[0], "to": sizes[1]}
    out = javascript(body, question)["out"]
    expected = resize(x[None, None], sizes[1]).flatten().numpy()
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-5)


@needs_node
def test_a_constant_map_becomes_zero(javascript):
    body = "({ map }) => packAll({ out: E.minMax(Float32Array.from(map)) })"
    assert (javascript(body, {"map": [0.4] * 9})["out"] == 0).all()
    assert (min_max(torch.full((1, 3, 3), 0.4)) == 0).all()


@needs_node
@pytest.mark.parametrize("delta", [1, -1, 1.5])
def test_a_delta_that_is_no_cosine_is_refused(javascript, delta):
    body = """({ delta }) => {
      const calls = [() => E.similarCount(new Float32Array(4), delta),
                     () => E.similarRegion(new Float32Array(2), new Uint8Array(2), delta)]
      return calls.map(call => { try { call(); return "" } catch (error) { return `${error}` } })
    }"""
    messages = javascript(body, {"delta": delta})
    assert all("a cosine lies between -1 and 1" in text for text in messages)


# --- the payload


def test_class_maps_are_runs():
    values = np.array([[7, 7, 0], [0, 0, 65535]])
    assert equal_runs(values) == [7, 2, 0, 3, 65535, 1]


def test_bytes_move_a_value_by_half_a_step_at_most():
    x = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0], x[:, 1, 1] = 0, 1e-6 * x[:, 1, 1]
    for features in (x, x.relu()):
        back = dequantise(quantise(features), (4, 5))[0]
        low = features.amin(0).clamp(max=0)
        step = (features.amax(0) - low) / 255
        assert ((back - features).abs() <= 0.501 * step + 1e-12).all()
        assert (back[:, 0, 0] == 0).all()
    assert (back[x.relu() == 0] == 0).all()


def test_bytes_hardly_move_the_maps_of_scenes():
    data, backbone = samples("val"), load_backbone("tiny")
    for name, payload in scene_payloads(2).items():
        i = data.ids.index(name)
        image = prepare_image(backbone, read_image(data, i), data.read_mask(i), 161)
        high = dequantise(payload["high"], (21, 21))
        assert (self_similarity(high) - image.D).abs().max() < 0.002
        known = known_mask(image.class_map, payload["known_classes"])[None]
        regions = []
        for features in (high, image.features.high):
            at = torch.tensor([payload["centre"]])
            regions += [sample_latent(features, known, centre=at)[0] == 1]
        wrong = (regions[0] ^ regions[1]).sum() / regions[1].sum()
        assert wrong < 0.02, f"{name}: {wrong:.1%} of M′ differ"


def test_a_payload_is_small_and_starts_on_a_hidden_object():
    data = samples("val")
    payloads = scene_payloads()
    assert len(payloads) == 6
    for name, payload in payloads.items():
        assert len(json.dumps(payload)) <= 300_000
        class_map = data.read_mask(data.ids.index(name))
        row, column = divmod(payload["centre"], payload["w"])
        cls = int(class_map[8 * row, 8 * column])
        assert 1 <= cls <= 5 and cls not in payload["known_classes"]
