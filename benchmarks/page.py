"""How long a click on the page takes, and how the server bears many clients.

    python -m benchmarks.page

starts `sam-jax page` with a ViT-B of random weights and a drawn scene of 1200 x 1800 pixels, waits until the image is
prepared and every program compiled, and prints JSON:

- `browser`: seconds from a click in Chromium to the frame with the mask, one at a time;
- `one client`: seconds of a request for the masks of a click, over HTTP without a browser;
- `16 clients`: the same for 500 clicks of 16 clients at once, how many failed, and the server's largest memory.

Masks of random weights are noise, so an answer has some hundred kilobytes of run lengths; a trained model's has few.
`--model small` takes the small SAM of the package. Chromium and Playwright are needed for `browser`.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import jax
import numpy as np
import tyro
from PIL import Image

import sam_jax
from sam_jax.commands.random_weights import random_state_dict
from sam_jax.config import SamConfig
from sam_jax.convert import from_torch
from sam_jax.decoder.model import Sam
from sam_jax.encoders.config import VIT_B
from sam_jax.encoders.encoder import make_encoder
from sam_jax.train.data.scenes import draw_scene

SIZE = (1200, 1800)


class Served(NamedTuple):
    """A page that is served by the command, in a process of its own."""

    address: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Served]:
    """Run `sam-jax page` until the block ends, and keep its objects in a folder."""
    run = [sys.executable, "-c", "from sam_jax.commands.cli import main; main()"]
    process = subprocess.Popen(
        [*run, "page", *arguments, "--port", "0", "--no-browser"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "XDG_DATA_HOME": str(folder)},
    )
    try:
        assert process.stdout is not None
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        while httpx.get(f"{address}api/model").json()["waiting_for"]:
            time.sleep(1)
        yield Served(address, process)
    finally:
        process.send_signal(2)
        process.wait(30)


def random_vit_b(folder: Path) -> Path:
    """Save a ViT-B of random weights."""
    conversion = from_torch(random_state_dict(SamConfig()))
    encoder = make_encoder(VIT_B)
    frame = np.zeros((*VIT_B.image_size, 3), np.float32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), frame)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), shapes)
    sam_jax.save(folder, Sam(conversion.config), conversion.variables, encoder, variables)
    return folder


def click_in_browser(address: str, clicks: int) -> list[float]:
    """Return the seconds of each click, from the click to the frame that shows the mask."""
    from playwright.sync_api import sync_playwright

    script = """async ([x, y]) => {
      const stage = document.getElementById("stage"), list = document.getElementById("objects");
      const start = performance.now();
      const answered = new Promise((resolve) => {
        const look = () => { if (/^[0-9-]/.test(list.querySelector(".score")?.textContent ?? "")) resolve(); };
        new MutationObserver(look).observe(list, { childList: true, subtree: true, characterData: true });
      });
      const at = { clientX: x, clientY: y, pointerId: 1, bubbles: true };
      stage.setPointerCapture = () => {};
      stage.dispatchEvent(new PointerEvent("pointerdown", at));
      stage.dispatchEvent(new PointerEvent("pointerup", at));
      await answered;
      await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
      return (performance.now() - start) / 1000;
    }"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        page.locator("#images [aria-current=true]").wait_for()
        page.locator("#status").wait_for(state="hidden", timeout=300_000)
        box = page.locator("#stage").bounding_box()
        rng, taken = np.random.default_rng(0), []
        for _ in range(clicks):
            x, y = rng.uniform(0.3, 0.7, 2)
            taken.append(page.evaluate(script, [box["x"] + x * box["width"], box["y"] + y * box["height"]]))
            page.keyboard.press("Delete")
            page.wait_for_timeout(150)
        browser.close()
    return taken


def click_by_http(address: str, clients: int, clicks: int) -> tuple[list[float], int]:
    """Return the seconds of each click, and how many failed."""
    client = httpx.Client(base_url=f"{address}api", timeout=300)
    image = client.get("/images").json()[0]["id"]
    client.post(f"/images/{image}/prepare").raise_for_status()
    places = np.random.default_rng(1).uniform(0, 1, (clicks, 2)) * SIZE[::-1]

    def click(place: np.ndarray) -> tuple[float, bool]:
        start = time.perf_counter()
        asked = {"objects": [{"points": [place.tolist()], "labels": [1]}]}
        answer = client.post(f"/images/{image}/masks", json=asked)
        return time.perf_counter() - start, answer.status_code != 200

    with ThreadPoolExecutor(clients) as pool:
        taken = list(pool.map(click, places))
    return [seconds for seconds, _ in taken], sum(failed for _, failed in taken)


def summary(seconds: list[float]) -> dict[str, float]:
    p95 = float(np.quantile(seconds, 0.95))
    return {"median": round(statistics.median(seconds), 4), "p95": round(p95, 4), "clicks": len(seconds)}


def memory(process: subprocess.Popen[str]) -> dict[str, float]:
    """Gigabytes of a process now, and at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return {"now": round(sizes["VmRSS"], 2), "most": round(sizes["VmHWM"], 2)}


def main(model: Literal["vit_b", "small"] = "vit_b", browser_clicks: int = 50, clicks: int = 500) -> None:
    """Measure, and print JSON."""
    with tempfile.TemporaryDirectory() as workspace:
        folder = Path(workspace)
        Image.fromarray(draw_scene(59, SIZE).image).save(folder / "scene.png")
        chosen = ("--checkpoint", str(random_vit_b(folder / "vit_b"))) if model == "vit_b" else ()
        with served(folder / "kept", str(folder / "scene.png"), *chosen) as page:
            report: dict[str, Any] = {"model": model, "size": SIZE, "load average": os.getloadavg()[0]}
            alone, _ = click_by_http(page.address, 1, 50)
            report["one client"] = summary(alone)
            if shutil.which("chromium"):
                report["browser"] = summary(click_in_browser(page.address, browser_clicks))
            before = memory(page.process)
            many, failed = click_by_http(page.address, 16, clicks)
            report["16 clients"] = {**summary(many), "failed": failed}
            report["memory in GB"] = {"before": before, "after": memory(page.process)}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
