// The pen: boxes and polygons drawn on the image with mouse, finger or keyboard.

import { PURPLE } from "./latent_paint.js"
import { addBox, addCorner, endPolygon, openCorners } from "./latent_drawing.js"

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }
const NEAR = 12 // points of the screen: a click so near to the first corner ends a polygon

// `panel` has mode(), image(), drawing(), commit(drawing) and changed(): what the pen has begun
// is { anchor, cursor }, a corner of a box and the place of pointer or keyboard, each or null.
export function connectPen(canvas, panel) {
  const pen = { anchor: null, cursor: null }

  const within = (k, n) => Math.min(Math.max(k, 0), n - 1)
  const pixelAt = event => {
    const box = canvas.getBoundingClientRect(), { size, extent } = panel.image()
    return [within(Math.floor((event.clientY - box.top) / box.height * size[0]), extent[0]),
      within(Math.floor((event.clientX - box.left) / box.width * size[1]), extent[1])]
  }
  const move = cursor => {
    pen.cursor = cursor
    panel.changed()
  }
  const boxCorner = corner => {
    const { anchor } = pen
    if (!anchor || anchor[0] === corner[0] && anchor[1] === corner[1]) {
      pen.anchor = corner
      return move(corner)
    }
    pen.anchor = null
    panel.commit(addBox(panel.drawing(), [anchor, corner]))
  }
  const polygonCorner = (corner, near) => {
    const drawing = panel.drawing(), corners = openCorners(drawing), [first] = corners
    const last = corners[corners.length - 1], apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1])
    if (corners.length > 2 && apart(first, corner) <= near) return panel.commit(endPolygon(drawing))
    if (!last || apart(last, corner)) panel.commit(addCorner(drawing, corner))
  }
  const setCorner = (corner, near) => {
    if (panel.mode() === "box") boxCorner(corner)
    else polygonCorner(corner, near)
  }
  // Drops a box that has been begun, ends an open polygon.
  const finish = () => {
    const dropped = pen.anchor
    pen.anchor = pen.cursor = null
    if (panel.drawing().open) panel.commit(endPolygon(panel.drawing()))
    else if (dropped) panel.changed()
  }

  canvas.addEventListener("pointerdown", event => {
    if (panel.mode() === "look" || event.button) return
    canvas.setPointerCapture(event.pointerId)
    if (panel.mode() === "box" && !pen.anchor) boxCorner(pixelAt(event))
  })
  canvas.addEventListener("pointermove", event => {
    if (panel.mode() !== "look" && (pen.anchor || panel.drawing().open)) move(pixelAt(event))
  })
  canvas.addEventListener("pointerup", event => {
    if (panel.mode() === "look" || event.button) return
    const scale = panel.image().size[1] / canvas.getBoundingClientRect().width
    setCorner(pixelAt(event), NEAR * scale)
  })
  canvas.addEventListener("pointercancel", () => { pen.anchor = null; panel.changed() })
  canvas.addEventListener("dblclick", () => { if (panel.mode() === "polygon") finish() })
  canvas.addEventListener("keydown", event => {
    if (panel.mode() === "look") return
    const arrow = ARROWS[event.key], { extent, size } = panel.image()
    const step = event.shiftKey ? 1 : 8, at = pen.cursor ?? extent.map(n => n >> 1)
    if (arrow) move(at.map((k, axis) => within(k + step * arrow[axis], extent[axis])))
    else if (event.key === "Enter" || event.key === " ") { pen.cursor = at; setCorner(at, 4) }
    else if (event.key === "Escape") finish()
    else return
    event.preventDefault()
    event.stopPropagation()
  })
  return { pen, finish }
}

// The mask, what is being drawn, and the place of the keyboard, over the image.
export function drawOverlay(overlay, { size: [H, W] }, mask, drawing, { anchor, cursor }) {
  if (overlay.width !== W || overlay.height !== H) Object.assign(overlay, { width: W, height: H })
  const context = overlay.getContext("2d"), frame = context.createImageData(W, H)
  const colour = `rgb(${PURPLE})`
  mask.forEach((value, p) => { if (value) frame.data.set([...PURPLE, 150], 4 * p) })
  context.putImageData(frame, 0, 0)
  context.lineWidth = Math.max(1, W / 160)
  const middle = ([r, c]) => [c + 0.5, r + 0.5]
  const trace = corners => {
    for (const [style, dash] of [["black", []], [colour, [3 * context.lineWidth]]]) {
      context.strokeStyle = style
      context.setLineDash(dash)
      context.beginPath()
      corners.forEach(corner => context.lineTo(...middle(corner)))
      context.stroke()
    }
  }
  const corners = openCorners(drawing)
  if (corners.length) trace(cursor ? [...corners, cursor] : corners)
  if (anchor) {
    const [r0, c0] = anchor, [r1, c1] = cursor ?? anchor
    trace([[r0, c0], [r0, c1], [r1, c1], [r1, c0], [r0, c0]])
  }
  for (const [r, c] of [...corners.slice(0, 1), ...(cursor ? [cursor] : [])]) {
    const arm = 3 * context.lineWidth
    trace([[r - arm, c], [r + arm, c]])
    trace([[r, c - arm], [r, c + arm]])
  }
}
