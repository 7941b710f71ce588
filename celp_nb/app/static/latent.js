// From one position to a latent prototype: the front end of Eq. (1) to Eq. (9). All maps are
// computed here, by latent_equations.js; the model only holds `payloads`, `image`, `centre`,
// `delta` and `sigma`. The Python half is `LatentWidget` in celp_nb/app/latent_widget.py, which
// joins the files to one module; latent_static.js mounts it on a page without a kernel.

import { latentMaps, prepareImage } from "./latent_equations.js"

// Okabe and Ito's colours, as in celp_nb/viz.py.
const VERMILLION = [213, 94, 0], BLUE = [0, 114, 178], GREEN = [0, 158, 115]
const VIRIDIS = ["440154", "481a6c", "472f7d", "414487", "39568c", "31688e", "2a788e",
  "23888e", "1f988b", "22a884", "35b779", "54c568", "7ad151", "a5db36", "d2e21b",
  "fde725"].map(hex => [0, 2, 4].map(k => parseInt(hex.slice(k, k + 2), 16)))
const LAYERS = {
  row: ["Row of D", "Eq. (1): how similar each position is to i*; dark 0, bright 1"],
  count: ["N", "Eq. (2): how many unknown positions are similar to each; dark 0, bright the most"],
  candidate: ["P", "Eq. (3): the admissible centres in green, known objects in blue"],
  pseudo: ["M′", "Eq. (4–6): the pseudo-mask, 1 vermillion, 0 blue, 255 hatched"],
  prior: ["Prior", "Eq. (7–9): similarity to the latent prototype; dark 0, bright 1"],
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
const GREY = tinted([0, 0, 0], 0), HATCH = tinted([255, 255, 255], 0.45)

// The nearest position of every pixel, -1 in padding.
function nearestPositions({ mapSize: [h, w], size: [H, W], extent }) {
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
function hatchLines([H, W]) {
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

function paintLayers(pixels, image, maps) {
  paintValues(pixels.row, image.nearest, maps.row, 1)
  paintValues(pixels.count, image.nearest, maps.count, Math.max(...maps.count, 1))
  paintCandidates(pixels.candidate, image, maps.candidate)
  paintPseudo(pixels.pseudo, image, maps.pseudo)
  paintValues(pixels.prior, image.nearest, maps.prior, 1)
}

// --- histograms and words

// Bars of the unknown positions; those from `limit` on are coloured, and a line stands there.
function drawHistogram(canvas, image, values, [low, high], limit, colour, name) {
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

const sum = values => values.reduce((a, b) => a + b, 0)

function sentence(image, maps, centre, delta, sigma) {
  const { mapSize: [, w], extent, positions } = image, N = maps.count[centre]
  const where = `Position i* at row ${Math.floor(centre / w)}, column ${centre % w}`
  const area = maps.pseudo.reduce((count, state) => count + (state === 1), 0)
  const percent = (100 * area / (extent[0] * extent[1])).toFixed(1)
  const total = sum(maps.candidate)
  const admissible = total ? `${total} positions are admissible centres` :
    "P is empty, so that training would skip this image"
  const reason = positions[centre] ? "touches what is known, void or padding, so it is no centre" :
    `resembles ${N} unknown positions by more than δ = ${delta.toFixed(2)}, ` +
    (N >= sigma ? `at least σ = ${sigma}: an admissible centre` : `fewer than σ = ${sigma}: no centre`)
  return `${where}, ${reason}. Its region covers ${percent} % of the image; ${admissible}.`
}

// --- elements

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  element.append(...children)
  return element
}

function makeSlider(name, symbol, label, tip, range) {
  const input = make("input", { type: "range", title: tip, ...range })
  // no <output>, which would take the label for itself
  const output = make("b"), canvas = make("canvas", { width: 640, height: 80 })
  input.dataset.name = name
  canvas.setAttribute("aria-hidden", "true")
  const line = make("span", {}, `${symbol} = `, output, `: ${label}`)
  return { input, output, canvas, element: make("label", { title: tip }, line, canvas, input) }
}

function makeLayer(name) {
  const [label, tip] = LAYERS[name], canvas = make("canvas")
  const button = make("button", { type: "button", title: tip }, canvas, make("span", {}, label))
  button.dataset.layer = name
  button.setAttribute("aria-label", `Show ${label}. ${tip}`)
  canvas.setAttribute("aria-hidden", "true")
  return { button, canvas }
}

function makeLegend() {
  const entry = (kind, text) => make("li", {}, make("i", { className: kind }), text)
  return make("ul", { className: "celp-legend" },
    entry("one", "M′ = 1: the region"), entry("zero", "M′ = 0: known objects"),
    entry("void", "M′ = 255: ignored"), entry("centres", "P: admissible centres"),
    entry("scale", "from 0 to the largest value"))
}

function createElements() {
  const choice = make("select", { title: "Image" })
  choice.setAttribute("aria-label", "Image")
  const canvas = make("canvas", { tabIndex: 0, title: "Click, or use the arrow keys, to move i*" })
  canvas.setAttribute("role", "application")
  const ring = make("span", { className: "celp-ring" }), caption = make("figcaption")
  const figure = make("figure", {}, make("div", {}, canvas, ring), caption)
  const layers = Object.fromEntries(Object.keys(LAYERS).map(name => [name, makeLayer(name)]))
  const side = make("div", { className: "celp-side" }, ...Object.values(layers).map(x => x.button))
  side.setAttribute("role", "group")
  side.setAttribute("aria-label", "Layers")
  const delta = makeSlider("delta", "δ", "the threshold, on the row of D",
    "Threshold δ of Eq. (2) and Eq. (4)", { min: 0, max: 0.99, step: 0.01 })
  const sigma = makeSlider("sigma", "σ", "the least N of a centre",
    "Least N of an admissible centre, Eq. (3)", { min: 0, max: 100, step: 1 })
  const words = make("p", { className: "celp-words" })
  words.setAttribute("role", "status")
  words.setAttribute("aria-live", "polite")
  const root = make("section", { className: "celp-latent" },
    make("header", {}, make("h3", {}, "From one position to a latent prototype"), choice), words,
    make("div", { className: "celp-columns" }, figure,
      make("div", {}, side, delta.element, sigma.element, makeLegend())))
  root.setAttribute("aria-label", "From one position to a latent prototype")
  // else JupyterLab takes arrow keys for its cells; it looks at the element in focus alone
  for (const control of root.querySelectorAll("input, button, select, [tabindex]")) {
    control.dataset.lmSuppressShortcuts = "true"
  }
  return { root, choice, canvas, ring, caption, layers, delta, sigma, words }
}

// --- the panel

function loadImage(payload, redraw) {
  const image = prepareImage(payload), [H, W] = image.size
  image.nearest = nearestPositions(image)
  image.hatch = hatchLines(image.size)
  image.grey = new Uint8Array(H * W).fill(128)
  image.most = Math.max(image.positions.length - sum(image.positions), 1)
  const picture = new Image()
  picture.onload = () => {
    const context = make("canvas", { width: W, height: H }).getContext("2d")
    context.drawImage(picture, 0, 0)
    const { data } = context.getImageData(0, 0, W, H)
    image.grey = image.grey.map((_, p) =>
      Math.round(0.299 * data[4 * p] + 0.587 * data[4 * p + 1] + 0.114 * data[4 * p + 2]))
    redraw()
  }
  picture.src = payload.picture
  return image
}

function makeBuffers(layers, [H, W]) {
  const frames = {}, pixels = {}
  for (const [name, { canvas }] of Object.entries(layers)) {
    Object.assign(canvas, { width: W, height: H })
    frames[name] = canvas.getContext("2d").createImageData(W, H)
    pixels[name] = new Uint32Array(frames[name].data.buffer)
  }
  return { frames, pixels }
}

function drawPanel(elements, state) {
  const { canvas, ring, caption, layers, delta, sigma, words } = elements
  const { image, layer, buffers } = state, [h, w] = image.mapSize, { centre } = state
  const maps = latentMaps(image, centre, state.delta, state.sigma)
  paintLayers(buffers.pixels, image, maps)
  for (const name of Object.keys(layers)) {
    layers[name].canvas.getContext("2d").putImageData(buffers.frames[name], 0, 0)
    layers[name].button.setAttribute("aria-pressed", name === layer)
  }
  canvas.getContext("2d").putImageData(buffers.frames[layer], 0, 0)
  ring.style.left = `${100 * (centre % w) / Math.max(w - 1, 1)}%`
  ring.style.top = `${100 * Math.floor(centre / w) / Math.max(h - 1, 1)}%`
  const low = maps.row.some(value => value < 0) ? -1 : 0
  Object.assign(delta.input, { min: low < 0 ? -0.99 : 0, value: state.delta })
  Object.assign(sigma.input, { max: image.most, value: state.sigma })
  delta.output.textContent = state.delta.toFixed(2)
  sigma.output.textContent = state.sigma
  drawHistogram(delta.canvas, image, maps.row, [low, 1], state.delta, VERMILLION, "δ")
  drawHistogram(sigma.canvas, image, maps.count, [0, image.most], state.sigma, GREEN, "σ")
  const [label, tip] = LAYERS[layer]
  caption.textContent = `${label}. ${tip}.`
  canvas.setAttribute("aria-label", `${label}. ${tip}. Arrow keys move i*.`)
  words.textContent = sentence(image, maps, centre, state.delta, state.sigma)
}

function render({ model, el }) {
  const elements = createElements(), { choice, canvas, layers, delta, sigma } = elements
  const loaded = new Map()
  let layer = "pseudo", shown = null, buffers = null

  const current = () => {
    const name = model.get("image")
    if (!loaded.has(name)) loaded.set(name, loadImage(model.get("payloads")[name], draw))
    return loaded.get(name)
  }
  const draw = () => {
    const image = current()
    if (image !== shown) {
      ;[canvas.height, canvas.width] = image.size
      buffers = makeBuffers(layers, image.size)
      shown = image
    }
    choice.value = model.get("image")
    const centre = Math.min(Math.max(model.get("centre"), 0), image.positions.length - 1)
    const values = { delta: model.get("delta"), sigma: model.get("sigma") }
    drawPanel(elements, { image, layer, buffers, centre, ...values })
  }
  const change = (name, value) => {
    model.set(name, value)
    model.save_changes()
  }
  const moveTo = (row, column) => {
    const [h, w] = shown.mapSize, within = (k, n) => Math.min(Math.max(k, 0), n - 1)
    change("centre", within(row, h) * w + within(column, w))
  }
  const pointAt = event => {
    if (!(event.buttons & 1)) return
    const box = canvas.getBoundingClientRect(), [h, w] = shown.mapSize
    moveTo(Math.round((event.clientY - box.top) / box.height * (h - 1)),
      Math.round((event.clientX - box.left) / box.width * (w - 1)))
  }
  const step = event => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }
    if (!moves[event.key]) return
    event.preventDefault()
    event.stopPropagation() // else a notebook of another kind moves to another cell
    const w = shown.mapSize[1], centre = model.get("centre"), [down, right] = moves[event.key]
    moveTo(Math.floor(centre / w) + down, centre % w + right)
  }

  for (const [name, payload] of Object.entries(model.get("payloads"))) {
    choice.append(make("option", { value: name }, payload.title))
  }
  choice.hidden = choice.length < 2
  choice.addEventListener("change", () => {
    const name = choice.value
    model.set("image", name)
    change("centre", model.get("payloads")[name].centre)
  })
  for (const [name, { button }] of Object.entries(layers)) {
    button.addEventListener("click", () => { layer = name; draw() })
  }
  delta.input.addEventListener("input", () => change("delta", delta.input.valueAsNumber))
  sigma.input.addEventListener("input", () => change("sigma", sigma.input.valueAsNumber))
  for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, pointAt)
  canvas.addEventListener("keydown", step)
  const traits = ["delta", "sigma", "centre", "image"]
  for (const name of traits) model.on(`change:${name}`, draw)
  el.append(elements.root)
  draw()
  return () => traits.forEach(name => model.off(`change:${name}`, draw))
}

export default { render }
