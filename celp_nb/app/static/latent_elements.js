// The elements of the panel and the words in it. Every control has a name and a tip.

import { LAYERS } from "./latent_paint.js"

export const sum = values => values.reduce((a, b) => a + b, 0)

// What a reader sees, for the live region.
export function sentence(image, maps, centre, delta, sigma) {
  const { mapSize: [, w], extent, positions } = image, N = maps.count[centre]
  const where = `Position i* at row ${Math.floor(centre / w)}, column ${centre % w}`
  const area = maps.pseudo.reduce((count, state) => count + (state === 1), 0)
  const percent = (100 * area / (extent[0] * extent[1])).toFixed(1)
  const total = sum(maps.candidate)
  const admissible = total ? `${total} positions are admissible centres` :
    "P is empty, so that training would skip this image"
  const reason = positions[centre] ? "touches what is known, void or padding, so it is no centre" :
    `resembles ${N} unknown positions by more than δ = ${delta.toFixed(2)}, ` +
    (N >= sigma ? `at least σ = ${sigma}: an admissible centre` :
      `fewer than σ = ${sigma}: no centre`)
  return `${where}, ${reason}. Its region covers ${percent} % of the image; ${admissible}.`
}

const percentOf = share => `${(100 * share).toFixed(1)} % of the image`

// What is marked by hand, and by the decoder; `null` where there is no mask or no answer.
export function markedSentence(drawn, answer) {
  const hand = drawn === null ? "" : `By hand, ${percentOf(drawn)} is marked. `
  return hand + (answer === null ? "" : `The decoder marks ${percentOf(answer)}. `)
}

export function make(tag, properties = {}, ...children) {
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
  const list = make("ul", { className: "celp-legend" },
    entry("one", "M′ = 1: the region"), entry("zero", "M′ = 0: known objects"),
    entry("void", "M′ = 255: ignored"), entry("centres", "P: admissible centres"),
    entry("scale", "from 0 to the largest value"), entry("drawn", "marked by hand"),
    entry("answer", "the decoder’s answer"))
  list.lastChild.className = "celp-of-decoder"
  return list
}

function makeSelect(name, options = {}) {
  const select = make("select", { title: name })
  select.setAttribute("aria-label", name)
  const entries = Object.entries(options).map(([value, text]) => make("option", { value }, text))
  select.append(...entries)
  return select
}

function makeLiveRegion(className) {
  const region = make("p", { className })
  region.setAttribute("role", "status")
  region.setAttribute("aria-live", "polite")
  return region
}

function makeButton(text, tip) {
  const button = make("button", { type: "button", title: tip }, text)
  button.setAttribute("aria-label", `${text}: ${tip}`)
  return button
}

// What the pointer, a finger or the arrow keys do on the image.
export const MODES = {
  look: ["Look", "Click, or use the arrow keys, to move i*"],
  box: ["Box", "Drag, or set two corners: with clicks, or with arrow keys and Enter"],
  polygon: ["Polygon", "Click corners, or use arrow keys and Enter; the first corner, a double " +
    "click or Escape ends it"],
}
let panels = 0 // radio buttons of one panel share a name

function makeModes() {
  const name = `celp-mode-${panels++}`, inputs = {}
  const group = make("fieldset", {}, make("legend", {}, "Pointer"))
  for (const [value, [text, tip]] of Object.entries(MODES)) {
    inputs[value] = make("input", { type: "radio", name, value, title: tip })
    inputs[value].checked = value === "look"
    group.append(make("label", { title: tip }, inputs[value], text))
  }
  return { group, inputs }
}

function makeTools() {
  const modes = makeModes()
  const undo = makeButton("Undo", "take the last step back")
  const clear = makeButton("Clear", "mark nothing by hand")
  const download = makeButton("Download mask", "a PNG of the photograph's size, 0 and 255, as " +
    "celp predict --mask takes it")
  const drawCentre = makeButton("Draw i*", "one of the admissible centres at random")
  const known = makeSelect("What is known", {
    classes: "Known: annotated classes", drawn: "Known: what is drawn", nothing: "Known: nothing",
  })
  const source = makeSelect("What the decoder answers for", {
    latent: "Answer for the latent prototype", drawn: "Answer for what is drawn",
  })
  source.className = "celp-of-decoder"
  const upload = makeButton("Upload", "a photograph of your own, PNG or JPEG")
  const file = make("input", { type: "file", accept: "image/*", hidden: true, title: upload.title })
  file.setAttribute("aria-label", "Photograph to upload")
  const row = make("div", { className: "celp-tools" }, modes.group, undo, clear, download,
    drawCentre, known, source, upload, file)
  row.setAttribute("role", "toolbar")
  row.setAttribute("aria-label", "Drawing")
  return { row, modes: modes.inputs, undo, clear, download, drawCentre, known, source, upload, file }
}

export function createElements() {
  const choice = makeSelect("Image"), tools = makeTools()
  const canvas = make("canvas", { tabIndex: 0, title: MODES.look[1] })
  canvas.setAttribute("role", "application")
  const overlay = make("canvas", { className: "celp-overlay" })
  overlay.setAttribute("aria-hidden", "true")
  const ring = make("span", { className: "celp-ring" }), caption = make("figcaption")
  const hand = makeLiveRegion("celp-hand") // below the image, which must not move under the hand
  const figure = make("figure", {}, make("div", {}, canvas, overlay, ring), caption, hand)
  const layers = Object.fromEntries(Object.keys(LAYERS).map(name => [name, makeLayer(name)]))
  const side = make("div", { className: "celp-side" }, ...Object.values(layers).map(x => x.button))
  side.setAttribute("role", "group")
  side.setAttribute("aria-label", "Layers")
  const delta = makeSlider("delta", "δ", "the threshold, on the row of D",
    "Threshold δ of Eq. (2) and Eq. (4)", { min: 0, max: 0.99, step: 0.01 })
  const sigma = makeSlider("sigma", "σ", "the least N of a centre",
    "Least N of an admissible centre, Eq. (3)", { min: 0, max: 100, step: 1 })
  const words = makeLiveRegion("celp-words"), note = makeLiveRegion("celp-note")
  const root = make("section", { className: "celp-latent" },
    make("header", {}, make("h3", {}, "From one position to a latent prototype"), choice),
    words, tools.row, note,
    make("div", { className: "celp-columns" }, figure,
      make("div", {}, side, delta.element, sigma.element, makeLegend())))
  root.setAttribute("aria-label", "From one position to a latent prototype")
  // else JupyterLab takes arrow keys for its cells; it looks at the element in focus alone
  for (const control of root.querySelectorAll("input, button, select, [tabindex]")) {
    control.dataset.lmSuppressShortcuts = "true"
  }
  return { root, choice, canvas, overlay, ring, caption, layers, delta, sigma, words, hand, note,
    tools }
}
