"""How long a move of a slider takes in the panel of Eq. (1) to Eq. (9), in Chromium.

    python benchmarks/explorable.py [--moves 50] [--chromium FILE]

Median and 95th percentile, in ms, at 21×21 positions (a bundled scene, 161 pixels) and at 60×60
(noise, 473 pixels; 256 middle channels, and 1536 as of ResNet-50 without a decoder), on a page
without a kernel. `script` is the time until all pictures are drawn, `frame` until the browser has
painted the frame with them; it waits for the screen's clock, so it is seldom below 16 ms. Aims:
script 16 ms at 21×21 and 33 ms at 60×60.
"""
import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import sync_playwright

from celp_nb.app.explorer_state import ExplorerImage
from celp_nb.app.latent_payload import latent_payload, scene_payloads
from celp_nb.app.latent_widget import static_page
from celp_nb.conditioning import Features
from celp_nb.data.transforms import padding_of

MOVES = """async moves => {
  const frame = () => new Promise(done => requestAnimationFrame(() => {
    const channel = new MessageChannel()
    channel.port1.onmessage = done
    channel.port2.postMessage(0)
  }))
  const times = { delta: [], sigma: [] }
  for (const name of Object.keys(times)) {
    const input = document.querySelector(`input[data-name=${name}]`)
    for (let k = -5; k < moves; k++) { // the first five warm up
      const share = 0.05 + 0.9 * Math.abs(k) / moves
      await frame()
      const start = performance.now()
      input.value = Number(input.min) + share * (Number(input.max) - Number(input.min))
      input.dispatchEvent(new Event("input"))
      const drawn = performance.now()
      await frame()
      if (k >= 0) times[name].push([drawn - start, performance.now() - start])
    }
  }
  return times
}"""


def noise_payload(side=473, channels=256):
    "An image of noise with smooth features, so that regions have sizes of all kinds."
    rng, n = torch.Generator().manual_seed(0), (side - 1) // 8 + 1
    coarse = torch.randn(1, channels, 9, 9, generator=rng)
    high = torch.nn.functional.interpolate(coarse, (n, n), mode="bilinear").relu()
    mid = torch.randn(1, channels, n, n, generator=rng).relu()
    class_map = torch.zeros(side, side, dtype=torch.uint8)
    class_map[100:200, 100:300] = 1
    class_map[200:205, 100:300] = 255
    photo = np.full((side, side, 3), 128, np.uint8)
    padding = padding_of(side, side, side)
    image = ExplorerImage(photo, class_map, Features(mid, high), None, padding)
    return {"noise": latent_payload("noise", image, mid, [1], n * n // 2)}


def measure(browser, payloads, moves):
    "Times of the moves, (moves, 2) per slider, in ms."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(static_page(payloads), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(path.as_uri(), timeout=300_000)
        page.wait_for_function("window.explorable", timeout=300_000)
        times = page.evaluate(MOVES, moves)
        page.close()
    return {name: np.array(rows) for name, rows in times.items()}


def main():
    "Measure and print a table."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    pages = {"21×21": scene_payloads(1), "60×60": noise_payload()}
    pages["60×60, ResNet-50"] = noise_payload(channels=1536)
    print(f"{'positions':<18}{'slider':<8}{'':<8}{'median':>8}{'95 %':>8}")
    with sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = p.chromium.launch(executable_path=arguments.chromium, args=flags)
        for size, payloads in pages.items():
            for slider, times in measure(browser, payloads, arguments.moves).items():
                for name, column in zip(("script", "frame"), times.T):
                    median, late = np.percentile(column, (50, 95))
                    print(f"{size:<18}{slider:<8}{name:<8}{median:>8.1f}{late:>8.1f}")
        browser.close()


if __name__ == "__main__":
    main()
