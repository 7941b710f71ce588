// The explorable on a page without a kernel: a model that only remembers, with the four functions
// of a widget's model that the front end calls.

export function staticModel(state) {
  const listeners = new Map()
  const heard = name => listeners.get(name) ?? []
  return {
    get: name => state[name],
    set(name, value) {
      if (state[name] === value) return
      state[name] = value
      for (const listener of heard(`change:${name}`)) listener()
    },
    on: (name, listener) => listeners.set(name, [...heard(name), listener]),
    off: (name, listener) => listeners.set(name, heard(name).filter(x => x !== listener)),
    save_changes() {},
  }
}

// Shows a front end in an element; returns the model, so that a page can move it.
export function mount(render, el, state) {
  const model = staticModel({ ...state })
  render({ model, el })
  tellHeight(el)
  return model
}

// Tells a page that holds this one in a frame how tall it is, whenever that changes.
function tellHeight(el) {
  if (window.parent === window) return
  const tell = () => window.parent.postMessage({ height: el.scrollHeight + 24 }, "*")
  new ResizeObserver(tell).observe(el)
}
