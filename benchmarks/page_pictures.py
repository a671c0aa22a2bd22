"""The pictures of the page in the docs.

    python -m benchmarks.page_pictures docs

serves the small SAM and drawn scenes, clicks in Chromium, and writes page.png and page_dark.png to a folder.
"""

import io
import shutil
import tempfile
from pathlib import Path

import tyro
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from benchmarks.page import served


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of a scene of 512 x 512 is on the screen: as `Stage.fit` puts it."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    room = min(page.locator("#tools").evaluate("tools => tools.offsetHeight") + 48, box["height"] / 4)
    scale = min((box["width"] - 24) / 512, (box["height"] - room - 12) / 512)
    left = box["x"] + (box["width"] - 512 * scale) / 2
    top = box["y"] + max(12, (box["height"] - room - 512 * scale) / 2)
    return left + x * scale, top + y * scale


def click(page: Page, objects: int, x: float, y: float, name: str) -> None:
    """Make an object by a click, and give it a name."""
    page.locator("#new").click()
    page.mouse.click(*place(page, x, y))
    page.locator("#objects li").nth(objects).locator(".score:not(:has-text('…'))").wait_for(timeout=120_000)
    field = page.get_by_label(f"Name of object {objects + 1}")
    field.fill(name)
    field.press("Enter")


def save(page: Page, file: Path) -> None:
    """Write what is seen in 256 colours, which need a third of the room."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256).save(file, optimize=True)


def main(folder: tyro.conf.Positional[Path]) -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as kept, served(Path(kept)) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 760})
        page.goto(server.address)
        page.locator("#images [aria-current=true]").wait_for()
        page.locator("#status").wait_for(state="hidden", timeout=120_000)
        click(page, 0, 352, 394, "ball")
        click(page, 1, 344, 266, "stick")
        click(page, 2, 368, 69, "shell")
        page.wait_for_timeout(500)
        save(page, folder / "page.png")
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(300)
        save(page, folder / "page_dark.png")
        browser.close()


if __name__ == "__main__":
    tyro.cli(main)
