// A picture that can be clicked: an image, a ring on it, and a caption. The caption is the image's
// alternative text too. The Python half is `Picture` in celp_nb/app/explorer_widgets.py.

function createElements() {
  const figure = document.createElement("figure")
  const frame = document.createElement("div")
  const image = document.createElement("img")
  const ring = document.createElement("span")
  const caption = document.createElement("figcaption")
  figure.className = "celp-picture"
  frame.append(image, ring)
  figure.append(frame, caption)
  return { figure, frame, image, ring, caption }
}

// `at` is [x, y] of the ring in shares of width and height, or [] for no ring.
function describe({ figure, frame, image, ring, caption }, { name, text, at, clickable }) {
  figure.dataset.name = name
  image.alt = caption.textContent = text
  ring.hidden = !at.length
  if (at.length) [ring.style.left, ring.style.top] = at.map(share => `${100 * share}%`)
  frame.style.cursor = clickable ? "crosshair" : "default"
}

function render({ model, el }) {
  const elements = createElements()
  const { figure, frame, image } = elements

  const updateImage = () => {
    const previous = image.src
    image.src = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }))
    if (previous) URL.revokeObjectURL(previous)
  }
  const updateText = () => describe(elements, {
    name: model.get("name"),
    text: model.get("caption"),
    at: model.get("at"),
    clickable: model.get("clickable"),
  })
  const sendPlace = event => {
    if (!model.get("clickable")) return
    const box = image.getBoundingClientRect()
    model.send({
      x: (event.clientX - box.left) / box.width,
      y: (event.clientY - box.top) / box.height,
    })
  }

  model.on("change:png", updateImage)
  model.on("change", updateText)
  frame.addEventListener("click", sendPlace)
  updateImage()
  updateText()
  el.append(figure)
}

export default { render }
