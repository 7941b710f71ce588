// From one position to a latent prototype: the front end of Eq. (1) to Eq. (9). All maps are
// computed here, by latent_equations.js; the model only holds `payloads`, `image`, `centre`,
// `delta`, `sigma`, `known` and `drawn`, and with a kernel the decoder's `answer`. The Python half
// is `LatentWidget` in celp_nb/app/latent_widget.py, which joins the files to one module;
// latent_static.js mounts it on a page without a kernel.

import { decodeRuns, latentMaps, markKnown, prepareImage, VOID } from "./latent_equations.js"
import { EMPTY_DRAWING, drawnMask, encodeRuns, markedShare, photoMask } from "./latent_drawing.js"
import {
  GREEN, LAYERS, VERMILLION, drawHistogram, hatchLines, nearestPositions, paintLayers,
} from "./latent_paint.js"
import { MODES, createElements, make, markedSentence, sentence, sum } from "./latent_elements.js"
import { connectPen, drawOverlay } from "./latent_pen.js"

// An image with all that no control changes; its photograph arrives a moment later.
function loadImage(payload, redraw) {
  const image = prepareImage(payload), [H, W] = image.size
  const pictures = {
    nearest: nearestPositions(image),
    hatch: hatchLines(image.size),
    grey: new Uint8Array(H * W).fill(128),
    photo: new Uint32Array(H * W).fill(0xff808080),
  }
  const picture = new Image()
  picture.onload = () => {
    const context = make("canvas", { width: W, height: H }).getContext("2d")
    context.drawImage(picture, 0, 0)
    const { data } = context.getImageData(0, 0, W, H)
    pictures.photo.set(new Uint32Array(data.buffer))
    pictures.grey.forEach((_, p) => {
      pictures.grey[p] =
        Math.round(0.299 * data[4 * p] + 0.587 * data[4 * p + 1] + 0.114 * data[4 * p + 2])
    })
    redraw()
  }
  picture.src = payload.picture
  return { ...image, ...pictures }
}

// The image with the pixels known that `known` names: annotated classes, what is drawn, or none.
function withKnown(image, known, runs) {
  if (known === "classes") return image
  const [H, W] = image.size, marks = known === "drawn" ? decodeRuns(runs, H * W) : null
  const mask = image.known.map((value, p) => (value === VOID ? VOID : marks ? marks[p] : 0))
  return markKnown(image, mask)
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
  const { canvas, ring, caption, layers, delta, sigma } = elements
  const { image, layer, buffers, centre, answer } = state, [h, w] = image.mapSize
  const maps = latentMaps(image, centre, state.delta, state.sigma)
  const most = Math.max(image.positions.length - sum(image.positions), 1)
  paintLayers(buffers.pixels, image, maps, answer)
  for (const name of Object.keys(layers)) {
    layers[name].canvas.getContext("2d").putImageData(buffers.frames[name], 0, 0)
    layers[name].button.setAttribute("aria-pressed", name === layer)
  }
  canvas.getContext("2d").putImageData(buffers.frames[layer], 0, 0)
  ring.style.left = `${100 * (centre % w) / Math.max(w - 1, 1)}%`
  ring.style.top = `${100 * Math.floor(centre / w) / Math.max(h - 1, 1)}%`
  const low = maps.row.some(value => value < 0) ? -1 : 0
  Object.assign(delta.input, { min: low < 0 ? -0.99 : 0, value: state.delta })
  Object.assign(sigma.input, { max: most, value: state.sigma })
  delta.output.textContent = state.delta.toFixed(2)
  sigma.output.textContent = state.sigma
  drawHistogram(delta.canvas, image, maps.row, [low, 1], state.delta, VERMILLION, "δ")
  drawHistogram(sigma.canvas, image, maps.count, [0, most], state.sigma, GREEN, "σ")
  const [label, tip] = LAYERS[layer]
  caption.textContent = `${label}. ${tip}.`
  canvas.setAttribute("aria-label", `${label}. ${tip}. ${MODES[state.mode][1]}.`)
  canvas.title = MODES[state.mode][1]
  return maps
}

const PART = 4 * 2 ** 20 // bytes of a message: servers close the connection from 10 MB on

// Sends a file of the reader's to the kernel, which says what becomes of it: words of the page's own
// would wait behind other changes, and cover the kernel's. Of one too large its size alone is sent.
async function sendFile(file, limit, model, say) {
  const { name, size } = file
  try {
    const bytes = size > limit ? new ArrayBuffer(0) : await file.arrayBuffer()
    for (let at = 0; at === 0 || at < bytes.byteLength; at += PART) {
      model.send({ upload: name, at, size }, undefined, [bytes.slice(at, at + PART)])
    }
  } catch (error) {
    say(`'${name}' cannot be read: ${error.message}`)
  }
}

function savePng(mask, [height, width], name) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d")
  const frame = context.createImageData(width, height)
  mask.forEach((value, p) => frame.data.fill(value, 4 * p, 4 * p + 3))
  for (let p = 3; p < frame.data.length; p += 4) frame.data[p] = 255
  context.putImageData(frame, 0, 0)
  canvas.toBlob(blob => {
    const link = make("a", { href: URL.createObjectURL(blob), download: `${name}_mask.png` })
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 10000)
  })
}

const TRAITS = ["delta", "sigma", "centre", "image", "known", "drawn", "payloads", "answer",
  "answer_for", "decoder", "note", "upload_limit"]

function render({ model, el }) {
  const elements = createElements(), { choice, canvas, layers, delta, sigma, tools } = elements
  const loaded = new WeakMap(), drawings = new Map()
  let layer = "pseudo", mode = "look", shown = {}, buffers = null

  const change = (name, value) => {
    model.set(name, value)
    model.save_changes()
  }
  const setting = (name, otherwise) => model.get(name) ?? otherwise // a page may know fewer
  const payload = () => model.get("payloads")[model.get("image")]
  const runsOf = name => setting("drawn", {})[name] ?? EMPTY_DRAWING.base // always the same

  // The image as it is shown now; prepared again only where another is chosen or known.
  const current = () => {
    const known = setting("known", "classes"), now = payload()
    const runs = known === "drawn" ? runsOf(model.get("image")) : null
    if (shown.payload === now && shown.known === known && shown.runs === runs) return shown.image
    if (!loaded.has(now)) loaded.set(now, loadImage(now, () => shown.payload === now && draw()))
    const image = withKnown(loaded.get(now), known, runs)
    if (shown.payload !== now) {
      ;[canvas.height, canvas.width] = image.size
      buffers = makeBuffers(layers, image.size)
    }
    shown = { payload: now, known, runs, image }
    return image
  }
  // The drawing on the image; what was set from outside begins a new one, which can be undone.
  const drawing = () => {
    const name = model.get("image"), runs = runsOf(name)
    const kept = drawings.get(name) ?? { now: EMPTY_DRAWING, past: [], runs: [] }
    drawings.set(name, kept)
    if (kept.runs !== runs && String(kept.runs) !== String(runs)) {
      kept.past.push(kept.now)
      kept.now = { ...EMPTY_DRAWING, base: runs }
    }
    kept.runs = runs
    if (kept.masked !== kept.now || kept.of !== payload()) { // else the mask is that of before
      const { size, extent } = current()
      kept.mask = drawnMask(kept.now, size, extent)
      Object.assign(kept, { masked: kept.now, of: payload() })
    }
    return kept
  }
  const keep = now => {
    const kept = drawing(), name = model.get("image"), { size, extent } = current()
    const runs = encodeRuns(drawnMask(now, size, extent))
    kept.now = now
    if (String(runs) === String(kept.runs)) return draw() // two corners are no region yet
    kept.runs = runs
    change("drawn", { ...setting("drawn", {}), [name]: runs })
  }
  const commit = now => {
    drawing().past.push(drawing().now)
    keep(now)
  }
  const answerMask = image => {
    if (!setting("decoder", "")) return undefined
    const state = [model.get("image"), model.get("centre"), model.get("delta"),
      setting("known", "classes"), setting("answer_for", "latent"), runsOf(model.get("image"))]
    const answer = setting("answer", {})
    if (JSON.stringify(answer.of) !== JSON.stringify(state)) return null
    return answer.runs && decodeRuns(answer.runs, image.size[0] * image.size[1])
  }
  // What the pen and the hand's mask change: words, buttons and what lies over the image.
  const showDrawing = () => {
    const { now, past, mask } = drawing(), { extent } = shown.image, { anchor, cursor } = pen
    const marked = mask.includes(1) ? markedShare(mask, extent) : null
    const place = cursor ? `Pen at row ${cursor[0]}, column ${cursor[1]} of the pixels.` : ""
    elements.hand.textContent = markedSentence(marked, shown.answered) + place
    tools.undo.disabled = !past.length
    tools.clear.disabled = !now.open && marked === null
    tools.download.disabled = marked === null
    const overlaid = [shown.payload, now, anchor, cursor]
    if (overlaid.every((value, k) => value === shown.overlaid?.[k])) return
    drawOverlay(elements.overlay, shown.image, mask, now, pen)
    shown.overlaid = overlaid
  }
  const draw = () => {
    const image = current(), answer = answerMask(image)
    choice.value = model.get("image")
    tools.known.value = setting("known", "classes")
    tools.source.value = setting("answer_for", "latent")
    elements.root.classList.toggle("celp-without-decoder", answer === undefined)
    tools.upload.hidden = !setting("upload_limit", 0)
    elements.note.textContent = setting("note", "")
    if (answer === undefined && layer === "answer") layer = "pseudo"
    const centre = Math.min(Math.max(model.get("centre"), 0), image.positions.length - 1)
    const values = { delta: model.get("delta"), sigma: model.get("sigma") }
    const maps = drawPanel(elements, { image, layer, mode, buffers, centre, answer, ...values })
    elements.words.textContent = sentence(image, maps, centre, values.delta, values.sigma)
    shown.candidate = maps.candidate
    shown.answered = answer ? markedShare(answer, image.extent) : null
    showDrawing()
  }
  const { pen, finish } = connectPen(canvas, {
    mode: () => mode, image: current, drawing: () => drawing().now, commit,
    changed: showDrawing,
  })

  const moveTo = (row, column) => {
    const [h, w] = current().mapSize, within = (k, n) => Math.min(Math.max(k, 0), n - 1)
    change("centre", within(row, h) * w + within(column, w))
  }
  const pointAt = event => {
    if (mode !== "look" || !(event.buttons & 1)) return
    const box = canvas.getBoundingClientRect(), [h, w] = current().mapSize
    moveTo(Math.round((event.clientY - box.top) / box.height * (h - 1)),
      Math.round((event.clientX - box.left) / box.width * (w - 1)))
  }
  const step = event => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }
    if (mode !== "look" || !moves[event.key]) return
    event.preventDefault()
    event.stopPropagation() // else a notebook of another kind moves to another cell
    const w = current().mapSize[1], centre = model.get("centre"), [down, right] = moves[event.key]
    moveTo(Math.floor(centre / w) + down, centre % w + right)
  }
  const listImages = () => {
    const images = Object.entries(model.get("payloads"))
    choice.replaceChildren(...images.map(([value, { title }]) => make("option", { value }, title)))
    choice.hidden = choice.length < 2
  }

  choice.addEventListener("change", () => {
    const name = choice.value
    finish()
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
  for (const [name, input] of Object.entries(tools.modes)) {
    input.addEventListener("change", () => { finish(); mode = name; draw() })
  }
  tools.undo.addEventListener("click", () => {
    if (drawing().past.length) keep(drawing().past.pop())
  })
  tools.clear.addEventListener("click", () => commit(EMPTY_DRAWING))
  tools.download.addEventListener("click", () => {
    const { size, extent } = current(), { mask } = drawing()
    const photoSize = payload().photo_size ?? extent
    savePng(photoMask(mask, size, extent, photoSize), photoSize, model.get("image"))
  })
  tools.drawCentre.addEventListener("click", () => {
    const places = [...shown.candidate.keys()].filter(i => shown.candidate[i])
    if (places.length) change("centre", places[Math.floor(Math.random() * places.length)])
  })
  tools.upload.addEventListener("click", () => tools.file.click())
  tools.file.addEventListener("change", () => {
    const [file] = tools.file.files
    tools.file.value = "" // so that the same file can be chosen again
    if (!file) return
    elements.note.textContent = `Reading '${file.name}' …` // until the kernel says so
    sendFile(file, setting("upload_limit", 0), model, text => change("note", text))
  })
  tools.known.addEventListener("change", () => change("known", tools.known.value))
  tools.source.addEventListener("change", () => change("answer_for", tools.source.value))
  model.on("change:payloads", listImages)
  for (const name of TRAITS) model.on(`change:${name}`, draw)
  listImages()
  el.append(elements.root)
  draw()
  return () => {
    model.off("change:payloads", listImages)
    TRAITS.forEach(name => model.off(`change:${name}`, draw))
  }
}

export default { render }
