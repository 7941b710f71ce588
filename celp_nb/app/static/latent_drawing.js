// Masks drawn by hand: boxes and polygons on an image, as pure functions.
//
// A drawing is { base, shapes, open }: runs of pixels that were marked before, the shapes since
// then, and whether the last of them, a polygon, takes further corners. Nothing is changed in
// place, so that undo can go back. Corners are [row, column] in pixels of the square.

import { decodeRuns } from "./latent_equations.js"

export const EMPTY_DRAWING = { base: [], shapes: [], open: false }

export function addBox({ base, shapes }, corners) {
  return { base, shapes: [...shapes, { kind: "box", corners }], open: false }
}

// A further corner of the open polygon, or the first of a new one.
export function addCorner({ base, shapes, open }, corner) {
  const corners = open ? shapes[shapes.length - 1].corners : []
  const others = open ? shapes.slice(0, -1) : shapes
  const polygon = { kind: "polygon", corners: [...corners, corner] }
  return { base, shapes: [...others, polygon], open: true }
}

export const endPolygon = drawing => ({ ...drawing, open: false })

// The corners of the polygon that is being drawn; [] where none is.
export const openCorners = ({ shapes, open }) => (open ? shapes[shapes.length - 1].corners : [])

// Two opposite corners, both of them inside.
function fillBox(mask, width, [[r0, c0], [r1, c1]]) {
  for (let r = Math.min(r0, r1); r <= Math.max(r0, r1); r++) {
    mask.fill(1, r * width + Math.min(c0, c1), r * width + Math.max(c0, c1) + 1)
  }
}

// The pixels whose middle lies inside, by the even-odd rule; nothing below three corners.
function fillPolygon(mask, width, corners) {
  const rows = corners.length < 3 ? [] : corners.map(([r]) => r)
  for (let r = Math.min(...rows); r <= Math.max(...rows); r++) {
    const crossings = []
    corners.forEach(([r0, c0], k) => {
      const [r1, c1] = corners[(k + 1) % corners.length]
      if (r0 <= r !== r1 <= r) crossings.push(c0 + (r - r0) / (r1 - r0) * (c1 - c0))
    })
    crossings.sort((a, b) => a - b)
    for (let k = 0; k + 1 < crossings.length; k += 2) {
      const first = Math.ceil(crossings[k]), last = Math.floor(crossings[k + 1])
      if (first <= last) mask.fill(1, r * width + first, r * width + last + 1)
    }
  }
}

// 1 on every pixel that is marked, 0 elsewhere; padding is never marked.
export function drawnMask({ base, shapes }, [H, W], extent) {
  const mask = Uint8Array.from(decodeRuns(base, H * W))
  for (const { kind, corners } of shapes) {
    const fill = kind === "box" ? fillBox : fillPolygon
    fill(mask, W, corners)
  }
  return mask.map((value, p) => (p % W < extent[1] && p < extent[0] * W ? value : 0))
}

// A mask as runs: value, length, value, length, …; none where nothing is marked.
export function encodeRuns(mask) {
  const runs = []
  for (let p = 0, start = 0; p < mask.length; p++) {
    if (p + 1 < mask.length && mask[p + 1] === mask[p]) continue
    runs.push(mask[p], p + 1 - start)
    start = p + 1
  }
  return runs.length === 2 && !runs[0] ? [] : runs
}

// The share of the image that is marked.
export const markedShare = (mask, extent) =>
  mask.reduce((a, b) => a + b, 0) / (extent[0] * extent[1])

// The mask at the size of the photograph: every pixel as the nearest of the square; 0 and 255.
export function photoMask(mask, [, W], extent, [height, width]) {
  return Uint8Array.from({ length: height * width }, (_, p) => {
    const r = Math.floor((Math.floor(p / width) + 0.5) * extent[0] / height)
    const c = Math.floor((p % width + 0.5) * extent[1] / width)
    return 255 * mask[r * W + c]
  })
}
