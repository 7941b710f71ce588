// What the panel paints: maps of positions and masks of pixels as colours of a picture's pixels,
// and histograms. Pure but for the canvas that a histogram is drawn on.

// Okabe and Ito's colours, as in celp_nb/viz.py.
export const VERMILLION = [213, 94, 0], GREEN = [0, 158, 115]
const BLUE = [0, 114, 178], ORANGE = [230, 159, 0]
export const PURPLE = [204, 121, 167] // what is drawn by hand
const VIRIDIS = ["440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e",
  "23888e", "1f988b", "22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b",
  "fde725"].map(hex => [0, 2, 4].map(k => parseInt(hex.slice(k, k + 2), 16)))
export const LAYERS = {
  photo: ["Photo", "What the network sees; known objects in blue"],
  row: ["Row of D", "Eq. (1): how similar each position is to i*; dark 0, bright 1"],
  count: ["N", "Eq. (2): how many unknown positions are similar to each; dark 0, bright the most"],
  candidate: ["P", "Eq. (3): the admissible centres in green, known objects in blue"],
  pseudo: ["M′", "Eq. (4–6): the pseudo-mask, 1 vermillion, 0 blue, 255 hatched"],
  prior: ["Prior", "Eq. (7–9): similarity to the latent prototype; dark 0, bright 1"],
  answer: ["Answer", "Eq. (10): what the decoder marks for the prototype, in orange"],
}

// --- colours of pixels

const pack = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0
const PADDING = pack([221, 221, 221])
const SHADES = Uint32Array.from({ length: 256 }, (_, k) => {
  const last = VIRIDIS.length - 2, place = k / 255 * (last + 1)
  const low = Math.min(Math.floor(place), last)
  return pack(VIRIDIS[low].map((c, j) => Math.round(c + (place - low) * (VIRIDIS[low + 1][j] - c))))
})
// The colour of every grey of the photograph under a tint.
const tinted = (colour, strength = 0.7) => Uint32Array.from({ length: 256 }, (_, grey) =>
  pack(colour.map(c => Math.round((1 - strength) * grey + strength * c))))
const IN_VERMILLION = tinted(VERMILLION), IN_BLUE = tinted(BLUE), IN_GREEN = tinted(GREEN)
const IN_ORANGE = tinted(ORANGE), GREY = tinted([0, 0, 0], 0)
const HATCH = tinted([255, 255, 255], 0.45)

// The nearest position of every pixel, -1 in padding.
export function nearestPositions({ mapSize: [h, w], size: [H, W], extent }) {
  return Int32Array.from({ length: H * W }, (_, p) => {
    const r = Math.floor(p / W), c = p % W
    if (r >= extent[0] || c >= extent[1]) return -1
    return Math.round(r * (h - 1) / (H - 1)) * w + Math.round(c * (w - 1) / (W - 1))
  })
}

function paintValues(pixels, nearest, values, top) {
  const shades = Uint32Array.from(values, value =>
    SHADES[Math.max(0, Math.min(255, Math.round(value / top * 255)))])
  for (let p = 0; p < pixels.length; p++) pixels[p] = nearest[p] < 0 ? PADDING : shades[nearest[p]]
}

function paintCandidates(pixels, { nearest, grey, known }, candidate) {
  for (let p = 0; p < pixels.length; p++) {
    const i = nearest[p]
    const table = known[p] === 1 ? IN_BLUE : candidate[i] ? IN_GREEN : GREY
    pixels[p] = i < 0 ? PADDING : table[grey[p]]
  }
}

// 1 on slanted lines, some 24 across the picture.
export function hatchLines([H, W]) {
  const apart = Math.max(4, Math.round(W / 24))
  return Uint8Array.from({ length: H * W }, (_, p) =>
    Number((p % W + Math.floor(p / W)) % apart < apart / 4))
}

function paintPseudo(pixels, { nearest, grey, hatch }, pseudo) {
  for (let p = 0; p < pixels.length; p++) {
    const state = pseudo[p]
    const table = state === 1 ? IN_VERMILLION : state === 0 ? IN_BLUE : hatch[p] ? HATCH : GREY
    pixels[p] = nearest[p] < 0 ? PADDING : table[grey[p]]
  }
}

// The photograph, what is known tinted.
function paintPhoto(pixels, { nearest, photo, grey, known }) {
  for (let p = 0; p < pixels.length; p++) {
    pixels[p] = nearest[p] < 0 ? PADDING : known[p] === 1 ? IN_BLUE[grey[p]] : photo[p]
  }
}

// A mask of pixels in orange; all grey where there is no answer yet.
function paintAnswer(pixels, { nearest, grey }, answer) {
  for (let p = 0; p < pixels.length; p++) {
    pixels[p] = nearest[p] < 0 ? PADDING : (answer && answer[p] ? IN_ORANGE : GREY)[grey[p]]
  }
}

export function paintLayers(pixels, image, maps, answer) {
  paintPhoto(pixels.photo, image)
  paintValues(pixels.row, image.nearest, maps.row, 1)
  paintValues(pixels.count, image.nearest, maps.count, Math.max(...maps.count, 1))
  paintCandidates(pixels.candidate, image, maps.candidate)
  paintPseudo(pixels.pseudo, image, maps.pseudo)
  paintValues(pixels.prior, image.nearest, maps.prior, 1)
  if (answer !== undefined) paintAnswer(pixels.answer, image, answer)
}

// --- histograms

// Bars of the unknown positions; those from `limit` on are coloured, and a line stands there.
export function drawHistogram(canvas, image, values, [low, high], limit, colour, name) {
  const { width, height } = canvas, context = canvas.getContext("2d"), bins = new Int32Array(64)
  const place = value => (Math.min(Math.max(value, low), high) - low) / (high - low)
  for (let i = 0; i < values.length; i++) {
    if (!image.positions[i]) bins[Math.min(63, Math.floor(64 * place(values[i])))]++
  }
  const top = Math.max(...bins, 1), step = width / 64, x = place(limit) * width
  context.clearRect(0, 0, width, height)
  bins.forEach((count, k) => {
    context.fillStyle = (k + 0.5) * step < x ? "#999" : `rgb(${colour})`
    const tall = count && Math.max(2, Math.sqrt(count / top) * (height - 24))
    context.fillRect(k * step + 1, height - tall, step - 2, tall)
  })
  context.fillStyle = getComputedStyle(canvas).color
  context.fillRect(Math.min(x, width - 2), 0, 2, height)
  context.font = "24px sans-serif"
  context.textAlign = x > width / 2 ? "right" : "left"
  context.fillText(name, x + (x > width / 2 ? -6 : 8), 20)
}
