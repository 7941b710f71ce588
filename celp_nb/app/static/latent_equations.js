// Eq. (1) to Eq. (9) for one image at one centre, as pure functions of typed arrays: no document,
// no framework, no random numbers. Python is the reference: each function names the one whose
// rules it follows, in celp_nb/ops.py, similarity.py, latent.py, conditioning.py and
// data/transforms.py; tests/test_latent_equations.py compares every map. Sums are in double
// precision, results and comparisons in float32, as of torch.
//
// A map of positions has h·w values, row by row; a mask of pixels has H·W. Features are
// position-major: the C values of position i begin at i·C.

export const VOID = 255
const EPS = 1e-7
const KNOWN_FROM = 0.25 // separates yes from no in a resized mask

// --- ops

// Source places and weights along one axis, corners on corners; float32, as of torch.
function axisWeights(from, to) {
  const scale = to > 1 ? Math.fround((from - 1) / (to - 1)) : 0
  const first = new Int32Array(to), second = new Int32Array(to), share = new Float32Array(to)
  for (let k = 0; k < to; k++) {
    const place = Math.fround(scale * k)
    first[k] = Math.min(Math.floor(place), from - 1)
    second[k] = Math.min(first[k] + 1, from - 1)
    share[k] = place - first[k]
  }
  return { first, second, share }
}

// `resize`: bilinear, with aligned corners.
export function resize(map, [h, w], [H, W]) {
  const out = new Float32Array(H * W), stretched = new Float32Array(h * W)
  const across = axisWeights(w, W), down = axisWeights(h, H)
  for (let r = 0; r < h; r++) {
    for (let c = 0; c < W; c++) {
      const a = map[r * w + across.first[c]], b = map[r * w + across.second[c]]
      stretched[r * W + c] = a * (1 - across.share[c]) + b * across.share[c]
    }
  }
  for (let r = 0; r < H; r++) {
    const top = down.first[r] * W, bottom = down.second[r] * W, share = down.share[r]
    for (let c = 0; c < W; c++) {
      out[r * W + c] = stretched[top + c] * (1 - share) + stretched[bottom + c] * share
    }
  }
  return out
}

// `soft_mask`: the foreground of a mask at the size of a feature map.
export function softMask(mask, size, mapSize) {
  return resize(mask.map(value => Number(value === 1)), size, mapSize)
}

function dot(a, i, b, j, channels) {
  let sum = 0
  for (let c = 0; c < channels; c++) sum += a[i + c] * b[j + c]
  return sum
}

// The length of each position's vector.
export function vectorLengths(features, channels) {
  const lengths = new Float32Array(features.length / channels)
  for (let i = 0; i < lengths.length; i++) {
    const at = i * channels
    lengths[i] = Math.sqrt(dot(features, at, features, at, channels))
  }
  return lengths
}

// `min_max`, Eq. (9): a map stretched to 0 … 1; a constant map becomes 0.
export function minMax(map) {
  const low = map.reduce((a, b) => Math.min(a, b)), high = map.reduce((a, b) => Math.max(a, b))
  return map.map(value => (value - low) / (high - low + EPS))
}

// --- similarity: Eq. (1) and Eq. (2)

// `self_similarity`, D of Eq. (1): Float32Array of hw·hw; row i: the cosine of i with all others.
// Where channels of directions were left out (`page_features`), each keeps its length: 1, or 0.
export function selfSimilarity(features, channels, shortened = false) {
  const own = vectorLengths(features, channels), n = own.length
  const lengths = shortened ? own.map(length => Number(length > 0)) : own
  const D = new Float32Array(n * n)
  for (let i = 0; i < n; i++) {
    for (let j = i; j < n; j++) {
      const product = shortened && j === i ? lengths[i] :
        dot(features, i * channels, features, j * channels, channels)
      D[i * n + j] = D[j * n + i] = product / (Math.fround(lengths[i] * lengths[j]) + EPS)
    }
  }
  return D
}

// `similarity_rows`: the row of D of one position; -1 throughout where there is none (centre -1).
export function similarityRow(D, centre) {
  const n = Math.sqrt(D.length)
  return centre < 0 ? new Float32Array(n).fill(-1) : D.subarray(centre * n, (centre + 1) * n)
}

// `known_mask`: per pixel 1 for the known classes, 255 for void (padding is void), 0 for the rest.
export function knownMask(classMap, classes, voidValue) {
  const known = new Set(classes)
  return Uint8Array.from(classMap, c => (c === voidValue ? VOID : Number(known.has(c))))
}

// `known_positions`: 1 where a position touches annotated foreground or void.
export function knownPositions(known, size, mapSize) {
  return Uint8Array.from(resize(known, size, mapSize), value => Number(value > KNOWN_FROM))
}

// `check_delta`.
export function checkDelta(delta) {
  if (Math.abs(delta) < 1) return
  throw new RangeError(
    `delta is ${delta}, but a cosine lies between -1 and 1; ` +
    "choose a value inside (0.65 in the paper).")
}

// `rank_similarities`: each row of D in ascending order, known columns as -2.
export function rankSimilarities(D, positions) {
  const n = positions.length, ranked = new Float32Array(D)
  for (let i = 0; i < n; i++) {
    const row = ranked.subarray(i * n, (i + 1) * n)
    for (let j = 0; j < n; j++) if (positions[j]) row[j] = -2
    row.sort()
  }
  return ranked
}

// `similar_count` by bisection, N of Eq. (2): the unknown positions with D > δ, per position.
export function similarCount(ranked, delta) {
  checkDelta(delta)
  const n = Math.sqrt(ranked.length), threshold = Math.fround(delta), N = new Int32Array(n)
  for (let i = 0; i < n; i++) {
    let low = 0, high = n
    while (low < high) {
      const middle = (low + high) >> 1
      if (ranked[i * n + middle] > threshold) high = middle
      else low = middle + 1
    }
    N[i] = n - low
  }
  return N
}

// --- latent: Eq. (3) to Eq. (6)

// `candidates`, P of Eq. (3): the unknown positions with N ≥ σ, the admissible centres.
export function candidates(N, positions, sigma) {
  return Uint8Array.from(N, (count, i) => Number(count >= sigma && !positions[i]))
}

// `similar_region`, M¹ of Eq. (4): the unknown positions more similar to the centre than δ.
export function similarRegion(row, positions, delta) {
  checkDelta(delta)
  const threshold = Math.fround(delta)
  return Uint8Array.from(row, (value, j) => Number(value > threshold && !positions[j]))
}

// `pseudo_mask`, M′ of Eq. (5–6): 1 on the region, 0 on annotated foreground, 255 elsewhere.
// `extent` is [rows, columns] of the image in its square: a resized region ends at its edge.
export function pseudoMask(region, mapSize, known, size, extent) {
  const share = resize(region, mapSize, size), out = new Uint8Array(known.length).fill(VOID)
  for (let r = 0; r < extent[0]; r++) {
    for (let c = 0; c < extent[1]; c++) {
      const p = r * size[1] + c
      if (known[p] === 1) out[p] = 0
      else if (share[p] >= KNOWN_FROM) out[p] = 1
    }
  }
  return out
}

// --- conditioning: Eq. (7) to Eq. (9)

// `prototype`, v_l of Eq. (7): the average of the features, weighted with the mask's foreground.
export function prototype(features, channels, weight) {
  const sum = new Float64Array(channels)
  let total = 0.0005
  for (let i = 0; i < weight.length; i++) {
    if (!weight[i]) continue
    total += weight[i]
    for (let c = 0; c < channels; c++) sum[c] += weight[i] * features[i * channels + c]
  }
  return Float32Array.from(sum, value => value / total)
}

// `latent_prior`, H′ of Eq. (8) and Eq. (9): of the whole map, as published.
export function latentPrior(v, features, channels, lengths) {
  const length = vectorLengths(v, channels)[0], cosines = new Float32Array(lengths.length)
  for (let i = 0; i < cosines.length; i++) {
    const product = dot(features, i * channels, v, 0, channels)
    cosines[i] = product / (Math.fround(lengths[i] * length) + EPS)
  }
  return minMax(cosines)
}

// --- a payload, as celp_nb/app/latent_payload.py writes it

function decodeBytes(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length)
  for (let k = 0; k < bytes.length; k++) bytes[k] = letters.charCodeAt(k)
  return bytes
}

// Features from bytes: value = low + step · byte, with one low and one step per position.
export function decodeFeatures({ channels, low, step, values }) {
  const bytes = decodeBytes(values), out = new Float32Array(bytes.length)
  const lows = new Float32Array(decodeBytes(low).buffer)
  const steps = new Float32Array(decodeBytes(step).buffer)
  for (let k = 0; k < out.length; k++) {
    const i = Math.floor(k / channels)
    out[k] = lows[i] + Math.fround(steps[i] * bytes[k])
  }
  return out
}

// A map of pixels from runs: value, length, value, length, …; all 0 where there are none.
export function decodeRuns(runs, length) {
  const out = new Int32Array(length)
  for (let k = 0, at = 0; k < runs.length; k += 2) out.fill(runs[k], at, at += runs[k + 1])
  return out
}

// All of an image that no slider changes.
export function prepareImage(payload) {
  const mapSize = [payload.h, payload.w], size = [payload.side, payload.side]
  const classMap = decodeRuns(payload.class_map, size[0] * size[1])
  const { channels: count, shortened } = payload.high
  const D = selfSimilarity(decodeFeatures(payload.high), count, shortened)
  const mid = decodeFeatures(payload.mid), channels = payload.mid.channels
  const lengths = vectorLengths(mid, channels)
  const image = { mapSize, size, extent: payload.extent, classMap, D, mid, channels, lengths }
  return markKnown(image, knownMask(classMap, payload.known_classes, payload.void))
}

// The same image with other pixels known: 1 known, 255 void and padding, 0 the rest.
export function markKnown(image, known) {
  const positions = knownPositions(known, image.size, image.mapSize)
  return { ...image, known, positions, ranked: rankSimilarities(image.D, positions) }
}

// `slider_maps`: Eq. (2) to Eq. (9) at one centre, a position in 0 … hw-1.
export function latentMaps(image, centre, delta, sigma) {
  const { mapSize, size, extent, known, positions, D, ranked, mid, channels, lengths } = image
  const row = similarityRow(D, centre), count = similarCount(ranked, delta)
  const candidate = candidates(count, positions, sigma)
  const region = similarRegion(row, positions, delta)
  const pseudo = pseudoMask(region, mapSize, known, size, extent)
  const v = prototype(mid, channels, softMask(pseudo, size, mapSize))
  return { row, count, candidate, region, pseudo, v, prior: latentPrior(v, mid, channels, lengths) }
}
