// A frame is as tall as the page in it says.
window.addEventListener("message", event => {
  for (const frame of document.querySelectorAll("iframe.panel")) {
    const height = Number(event.data?.height)
    if (frame.contentWindow === event.source && height > 0) frame.style.height = `${height}px`
  }
})

// Code has a button that copies it; what code has printed has none.
function addCopyButton(block) {
  const button = document.createElement("button")
  button.type = "button"
  button.className = "copy-code"
  button.textContent = "copy"
  button.setAttribute("aria-label", "Copy this code")
  button.addEventListener("click", async () => {
    const code = block.querySelector("pre").textContent
    button.textContent = await navigator.clipboard.writeText(code).then(() => "copied", () => "failed")
    setTimeout(() => { button.textContent = "copy" }, 1500)
  })
  block.append(button)
}

// A long name in a table may break behind a dot, a colon, a slash or an underscore.
function allowBreaks(name) {
  const parts = name.textContent.split(/(?<=[._:/])(?=\w)/)
  const broken = parts.flatMap(part => [document.createElement("wbr"), part])
  name.replaceChildren(...broken.slice(1))
}

document.addEventListener("DOMContentLoaded", () => {
  for (const name of document.querySelectorAll("article table code .pre")) allowBreaks(name)
  for (const block of document.querySelectorAll("article div.highlight")) {
    if (!block.closest(".cell_output")) addCopyButton(block)
  }
})
