"""The page in a real browser: what people see and do, from the first click to the export."""

import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sam_jax.images.run_lengths import from_text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
pytestmark = [
    pytest.mark.skipif(not HAS_PLAYWRIGHT, reason="Playwright is not installed: pip install playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="There is no chromium: apt-get install chromium"),
]
WAIT = 60_000
"""Milliseconds for what may have to be compiled first."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Desk:
    """The page with its first scene open, and what is done on it."""

    def __init__(self, page: Any, server: Any) -> None:
        self.page, self.server = page, server
        self.complaints: list[str] = []
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(server.address)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        self.page.locator("#images [aria-current=true]").wait_for(timeout=WAIT)
        self.page.locator("#model:not(:empty)").wait_for(state="attached", timeout=WAIT)
        self.page.locator("#status").wait_for(state="hidden", timeout=WAIT)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image is on the screen: as `Stage.fit` puts it."""
        box = self.page.locator("#stage").bounding_box()
        room = min(self.page.locator("#tools").evaluate("tools => tools.offsetHeight") + 48, box["height"] / 4)
        scale = min((box["width"] - 24) / 512, (box["height"] - room - 12) / 512)
        left, top = (box["width"] - 512 * scale) / 2, max(12, (box["height"] - room - 512 * scale) / 2)
        return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale

    def click(self, x: float, y: float, **options: Any) -> None:
        self.page.mouse.click(*self.place(x, y), **options)

    def drag(self, *path: tuple[float, float]) -> None:
        self.page.mouse.move(*self.place(*path[0]))
        self.page.mouse.down()
        for place in path[1:]:
            self.page.mouse.move(*self.place(*place), steps=4)
        self.page.mouse.up()

    def objects(self) -> list[dict[str, Any]]:
        """What the server keeps of the first scene."""
        return httpx.get(f"{self.server.address}/api/images/{self.server.ids[0]}/objects").json()["objects"]

    def until(self, condition: Any) -> list[dict[str, Any]]:
        """The objects as soon as they are as they should be."""
        end = time.monotonic() + WAIT / 1000
        while not condition(objects := self.objects()):
            assert time.monotonic() < end, [{**one, "masks": len(one["masks"])} for one in objects]
            self.page.wait_for_timeout(50)
        return objects


@contextlib.contextmanager
def opened(browser: Any, server: Any, width: int, height: int, **screen: Any) -> Iterator[Desk]:
    for image in server.ids:
        httpx.put(f"{server.address}/api/images/{image}/objects", json={"objects": []})
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **screen)
    desk = Desk(context.new_page(), server)
    yield desk
    assert desk.complaints == []
    context.close()


@pytest.fixture
def desk(browser: Any, server: Any) -> Iterator[Desk]:
    with opened(browser, server, 1280, 800) as desk:
        yield desk


@pytest.fixture
def tablet(browser: Any, server: Any) -> Iterator[Desk]:
    with opened(browser, server, 820, 1180, has_touch=True) as tablet:
        yield tablet


def chosen(one: dict[str, Any]) -> np.ndarray:
    return pixels_of(one["masks"][one["chosen"]])


def pixels_of(mask: dict[str, Any]) -> np.ndarray:
    return from_text(mask["counts"], tuple(mask["size"]))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_clicks_boxes_and_steps_back(desk: Desk, truth: np.ndarray) -> None:
    desk.click(352, 394)
    (one,) = desk.until(lambda objects: len(objects) == 1)
    np.testing.assert_allclose(one["points"], [[352.5, 394.5]], atol=1)
    assert iou(chosen(one), truth) > 0.8

    # Three masks, a key apart.
    assert desk.page.locator("#candidates [role=radio]").count() == 3
    other = "2" if one["chosen"] != 1 else "1"
    desk.page.keyboard.press(other)
    desk.until(lambda objects: objects[0]["chosen"] == int(other) - 1)
    desk.page.keyboard.press("z")
    desk.until(lambda objects: objects[0]["chosen"] == one["chosen"])

    # What does not belong to it, by the right button and by Alt.
    desk.click(352, 200, button="right")
    desk.until(lambda objects: objects[0]["labels"] == [1, 0])
    desk.page.keyboard.down("Alt")
    desk.click(100, 200)
    desk.page.keyboard.up("Alt")
    (one,) = desk.until(lambda objects: objects[0]["labels"] == [1, 0, 0])
    assert not chosen(one)[200, 100]
    assert len(one["masks"]) == 1  # three clicks are clear

    desk.page.keyboard.press("z")
    desk.page.click("#undo")
    desk.until(lambda objects: objects[0]["labels"] == [1])
    desk.page.click("#redo")
    desk.until(lambda objects: objects[0]["labels"] == [1, 0])

    # Another object, by a box, with a name.
    desk.page.click("#new")
    rows, columns = np.nonzero(truth)
    box = [columns.min(), rows.min(), columns.max(), rows.max()]
    desk.drag((box[0], box[1]), (box[2], box[3]))
    objects = desk.until(lambda objects: len(objects) == 2)
    np.testing.assert_allclose(objects[1]["box"], box, atol=2)
    assert max(iou(pixels_of(mask), truth) for mask in objects[1]["masks"]) > 0.7
    name = desk.page.get_by_label("Name of object 2")
    name.fill("ball")
    name.press("Enter")
    desk.until(lambda objects: objects[1]["name"] == "ball")

    # All is there after a reload.
    before = desk.objects()
    desk.page.reload()
    desk.wait_until_ready()
    assert desk.page.locator("#objects li").count() == 2
    assert desk.page.get_by_label("Name of object 2").input_value() == "ball"
    assert desk.objects() == before
    desk.page.get_by_label("Delete object 1").click()
    desk.until(lambda objects: [one["id"] for one in objects] == [2])


def test_a_rough_mask_is_painted(desk: Desk, truth: np.ndarray) -> None:
    desk.page.keyboard.press("b")
    desk.drag((320, 370), (380, 370), (320, 400), (390, 410), (330, 430))
    (one,) = desk.until(lambda objects: len(objects) == 1)
    rough = from_text(one["mask"]["counts"], (512, 512))
    assert rough[370, 350]
    assert 1000 < rough.sum() < 30_000
    assert one["points"] == []


def test_the_keyboard_is_enough(desk: Desk) -> None:
    desk.page.locator("#stage").focus()
    desk.page.keyboard.press("ArrowRight")
    for _ in range(6):
        desk.page.keyboard.press("Shift+ArrowDown")
    desk.page.keyboard.press("Enter")
    (one,) = desk.until(lambda objects: len(objects) == 1)
    (x, y), scale = one["points"][0], desk.place(1, 0)[0] - desk.place(0, 0)[0]
    np.testing.assert_allclose((x, y), (256, 256 + 6 * 40 / scale), atol=1)
    desk.page.keyboard.press("Shift+ArrowUp")
    desk.page.keyboard.press("Alt+Enter")
    desk.until(lambda objects: objects[0]["labels"] == [1, 0])
    desk.page.keyboard.press("Delete")
    desk.until(lambda objects: objects == [])
    desk.page.keyboard.press("?")
    assert desk.page.locator("#keys").is_visible()
    desk.page.keyboard.press("Escape")


def test_zoom_keeps_places(desk: Desk, truth: np.ndarray) -> None:
    x, y = desk.place(352, 394)
    desk.page.mouse.move(x, y)
    desk.page.mouse.wheel(0, -600)
    desk.page.mouse.click(x, y)
    (one,) = desk.until(lambda objects: len(objects) == 1)
    np.testing.assert_allclose(one["points"], [[352.5, 394.5]], atol=1)
    desk.page.keyboard.press("f")


def test_everything_and_exports(desk: Desk, tmp_path: Path) -> None:
    desk.page.select_option("#density", "8")
    desk.page.click("#everything")
    objects = desk.until(lambda objects: len(objects) > 1)
    desk.page.locator("#job").wait_for(state="hidden")

    def export(kind: str, button: str) -> Path:
        desk.page.keyboard.press("s")
        desk.page.check(f"input[name=kind][value={kind}]")
        with desk.page.expect_download() as download:
            desk.page.click(button)
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        return file

    content = json.loads(export("coco", "#export-one").read_text())
    assert content["images"][0]["file_name"] == "scene-59.png"
    for annotation, one in zip(content["annotations"], objects, strict=True):
        assert (coco.decode(annotation["segmentation"]).astype(bool) == chosen(one)).all()
    labels = pixels(export("labels", "#export-one").read_bytes())
    assert labels.shape == (512, 512)
    assert labels.max() <= len(objects)
    assert pixels(export("overlay", "#export-all").read_bytes()).shape == (512, 512, 3)


def test_images_are_added_and_changed(desk: Desk, tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    desk.page.set_input_files("#file", tmp_path / "grey.png")
    desk.page.locator("#images [aria-current=true]:has-text('grey.png')").wait_for(timeout=WAIT)
    desk.wait_until_ready()
    desk.page.keyboard.press("PageUp")
    desk.page.locator("#images [aria-current=true]:has-text('scene-7.png')").wait_for(timeout=WAIT)
    (tmp_path / "bad.png").write_bytes(b"no image")
    desk.page.set_input_files("#file", tmp_path / "bad.png")
    desk.page.locator("#message:has-text('no image')").wait_for(timeout=WAIT)
    desk.complaints = [text for text in desk.complaints if "422" not in text]  # the browser's own line
    for image in httpx.get(f"{desk.server.address}/api/images").json():
        if image["uploaded"]:
            httpx.delete(f"{desk.server.address}/api/images/{image['id']}")


def test_the_mask_is_drawn_where_it_is(desk: Desk, truth: np.ndarray) -> None:
    stage = desk.page.locator("#stage")
    before = pixels(stage.screenshot())
    desk.click(352, 394)
    (one,) = desk.until(lambda objects: len(objects) == 1)
    desk.page.wait_for_timeout(200)
    changed = np.abs(pixels(stage.screenshot()).astype(int) - before)[..., :3].sum(-1) > 12
    box = stage.bounding_box()
    (left, top), (right, bottom) = desk.place(0, 0), desk.place(511, 511)
    columns = np.linspace(left - box["x"], right - box["x"], 512).astype(int)
    rows = np.linspace(top - box["y"], bottom - box["y"], 512).astype(int)
    assert iou(changed[rows][:, columns], chosen(one)) > 0.9


Place = tuple[float, float]


def touch(tablet: Desk, *path: list[Place]) -> None:
    """Put fingers down on the screen, move them along a path, and lift them."""
    session = tablet.page.context.new_cdp_session(tablet.page)
    kinds = ["touchStart", *["touchMove"] * (len(path) - 1), "touchEnd"]
    for kind, fingers in zip(kinds, [*path, []], strict=True):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(fingers)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.detach()


def choose(tablet: Desk, tool: str) -> None:
    button = tablet.page.locator("[data-tool]", has_text=tool)
    button.tap()
    button.and_(tablet.page.locator("[aria-checked=true]")).wait_for()  # a tap takes a moment to be a click


def test_a_finger_is_enough(tablet: Desk, truth: np.ndarray) -> None:
    tablet.page.touchscreen.tap(*tablet.place(352, 394))
    (one,) = tablet.until(lambda objects: len(objects) == 1)
    np.testing.assert_allclose(one["points"], [[352.5, 394.5]], atol=1)
    assert iou(chosen(one), truth) > 0.8
    choose(tablet, "Take away")
    tablet.page.touchscreen.tap(*tablet.place(352, 200))
    tablet.until(lambda objects: objects[0]["labels"] == [1, 0])

    # A finger that is not quite still is no box; one that goes on is.
    tablet.page.locator("#new").tap()
    choose(tablet, "Add")
    x, y = tablet.place(100, 200)
    touch(tablet, [(x, y)], [(x + 7, y)])
    objects = tablet.until(lambda objects: len(objects) == 2)
    assert (len(objects[1]["points"]), objects[1]["box"]) == (1, None)
    tablet.page.locator("#new").tap()
    touch(tablet, [tablet.place(60, 70)], [tablet.place(90, 100)], [tablet.place(200, 180)])
    objects = tablet.until(lambda objects: len(objects) == 3)
    np.testing.assert_allclose(objects[2]["box"], [60.5, 70.5, 200.5, 180.5], atol=1)

    tablet.page.locator("#new").tap()
    choose(tablet, "Brush")
    touch(tablet, [tablet.place(320, 370)], [tablet.place(350, 400)], [tablet.place(380, 370)])
    objects = tablet.until(lambda objects: len(objects) == 4)
    assert from_text(objects[3]["mask"]["counts"], (512, 512))[400, 350]


@pytest.mark.parametrize("tool", ["Add", "Brush"])
def test_two_fingers_zoom_and_move(tablet: Desk, tool: str) -> None:
    choose(tablet, tool)
    scale = tablet.place(1, 0)[0] - tablet.place(0, 0)[0]
    x, y = tablet.place(256, 256)
    wide = [[(x - at, y), (x + at, y)] for at in (60, 90, 120)]  # twice as large
    there = [[(a + 50, b - 30) for a, b in wide[-1]]]
    touch(tablet, wide[0][:1], *wide, *there)
    assert tablet.objects() == []
    assert tablet.page.evaluate("[scrollX, scrollY, visualViewport.scale]") == [0, 0, 1]

    # The image has followed the fingers, and the next tap is where it is seen.
    choose(tablet, "Add")
    tablet.page.touchscreen.tap(x + 50 + 80, y - 30)
    (one,) = tablet.until(lambda objects: len(objects) == 1)
    np.testing.assert_allclose(one["points"], [[256.5 + 80 / (2 * scale), 256.5]], atol=1)
    assert one["mask"] is None

    # A single finger moves it, too, where that is wanted.
    choose(tablet, "Move")
    touch(tablet, [(x, y)], [(x - 40, y + 60)])
    choose(tablet, "Add")
    tablet.page.touchscreen.tap(x + 50 + 80 - 40, y - 30 + 60)
    (one,) = tablet.until(lambda objects: len(objects[0]["points"]) == 2)
    np.testing.assert_allclose(one["points"][1], one["points"][0], atol=1)


TOO_SMALL = """() => {
  const all = [...document.querySelectorAll("button, .button, select, [type=range], #objects input, fieldset label")];
  const boxes = all.map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()]);
  return boxes.filter(([, box]) => box.width && Math.min(box.width, box.height) < 43.9);
}"""
"""What is seen, is pressed, and has a side of less than 44 pixels."""


@pytest.mark.parametrize("width", [820, 1180])
def test_all_is_large_enough_for_fingers(tablet: Desk, width: int) -> None:
    tablet.page.set_viewport_size({"width": width, "height": 2000 - width})
    tablet.page.touchscreen.tap(*tablet.place(352, 394))
    tablet.until(lambda objects: len(objects) == 1)
    for button in (None, "#export", "#help"):
        if button:
            tablet.page.locator(button).tap()
        assert tablet.page.evaluate(TOO_SMALL) == []
        assert tablet.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tablet.page.keyboard.press("Escape")
    tools = tablet.page.locator("#tools").bounding_box()
    assert tools["y"] > tablet.place(0, 512)[1]  # the tools hide nothing of the image


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)))


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    try:
        subprocess.run(["npm", "pack", "axe-core@4.10"], cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"axe-core cannot be had from npm: {error}")
    (package,) = folder.glob("*.tgz")
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.mark.parametrize("width", [1280, 768])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(desk: Desk, axe: str, scheme: Any, width: int) -> None:
    desk.page.set_viewport_size({"width": width, "height": 900})
    desk.page.emulate_media(color_scheme=scheme)
    ground = desk.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert (red < 60) == (scheme == "dark")
    assert desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    desk.click(352, 394)
    desk.until(lambda objects: len(objects) == 1)
    desk.page.wait_for_timeout(100)
    desk.page.evaluate(axe)
    for dialog in (None, "s", "?"):
        if dialog:
            desk.page.keyboard.press(dialog)
        found = desk.page.evaluate("axe.run()")["violations"]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
        desk.page.keyboard.press("Escape")
