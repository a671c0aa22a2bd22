"""Drawn scenes: endless images with the masks of everything in them, from a seed.

A scene is a background, single objects, and groups of similar objects that touch; objects overlap, and many have parts
of other colours on them. So a click on a part may ask for the part, the object or the group, which is what SAM's three
masks are for. Masks are of visible pixels.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFilter

from sam_jax.images.size import Size
from sam_jax.train.data.shapes import OUTLINES, TRAINING_CLASSES, Outline, place
from sam_jax.train.data.surfaces import Colour, nearby_colour, random_colour, smooth_noise, surface

Kind = Literal["part", "object", "group"]

HELD_OUT_SEEDS = range(100_000)
"""Seeds of scenes that no training sees; training scenes have the seeds after them."""

SMALLEST, LARGEST = 0.0015, 0.9
"""Masks of a smaller or a larger share of the image are left out; the smallest is 25 pixels of 128 x 128."""

_FINE = 4  # outlines are drawn so many times finer, and a pixel takes the mean


@dataclasses.dataclass(frozen=True)
class Scene:
    """An image and what is in it.

    Attributes:
      image: RGB.
      masks: visible pixels of each part, object and group.
      kinds: what each mask is.
      classes: class of the shape of each mask, a name in `OUTLINES`; of a group, that of its objects.
      parents: for each mask, the mask that it belongs to (of a part its object, of an object its group), or -1.
    """

    image: UInt8[np.ndarray, "h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    kinds: tuple[Kind, ...]
    classes: tuple[str, ...]
    parents: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class _Thing:
    kind: Kind
    name: str
    parent: int


class _Canvas:
    """The picture while it is drawn, and which thing each pixel shows."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.colours = surface(rng, size, random_colour(rng))
        self.colours += 14 * smooth_noise(rng, size, cell=max(size) / 3)[..., None]
        self.owner = np.full(size, -1, np.int16)
        self.things: list[_Thing] = []

    def add(self, kind: Kind, name: str, parent: int = -1) -> int:
        self.things.append(_Thing(kind, name, parent))
        return len(self.things) - 1

    def colour_at(self, x: float, y: float) -> Colour:
        """The mean colour around a point."""
        row, column = int(np.clip(y, 0, self.size[0] - 1)), int(np.clip(x, 0, self.size[1] - 1))
        return self.colours[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4].mean((0, 1))

    def paint(self, thing: int, outline: Outline, colour: Colour, inside: int | None = None) -> None:
        """Fill an outline; where `inside` names another thing, only on its pixels."""
        window = _window(outline, self.size)
        if window is None:
            return
        cover = _coverage(outline, *window)
        if inside is None:
            self._shadow(outline)
        else:
            cover *= self.owner[window] == inside
        colours, owner = self.colours[window], self.owner[window]
        colours += cover[..., None] * (surface(self.rng, cover.shape, colour) - colours)
        owner[cover >= 0.5] = thing

    def _shadow(self, outline: Outline) -> None:
        """Darken what lies behind an object, a little to one side."""
        reach = max(1, min(self.size) // 32)
        moved = outline + self.rng.uniform(-reach, 2 * reach, 2)
        window = _window(moved, self.size, margin=reach)
        if window is not None and self.rng.uniform() < 0.5:
            soft = _blurred(_coverage(moved, *window), reach)
            self.colours[window] *= 1 - np.float32(self.rng.uniform(0.2, 0.6)) * soft[..., None]

    def photograph(self) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as a camera would see it: uneven light, some blur, some noise."""
        rng, colours = self.rng, self.colours
        if rng.uniform() < 0.5:
            colours = colours * (1 + 0.25 * smooth_noise(rng, self.size, cell=max(self.size)))[..., None]
        picture = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
        if rng.uniform() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
        noise = rng.standard_normal((*self.size, 3), np.float32) * np.float32(rng.uniform(0, 9))
        return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


def draw_scene(seed: int, size: Size = (128, 128), classes: tuple[str, ...] = TRAINING_CLASSES) -> Scene:
    """Return the scene of a seed; the same seed gives the same scene.

    Args:
      seed: not negative; those in `HELD_OUT_SEEDS` are for evaluation.
      size: height and width in pixels.
      classes: names in `OUTLINES` of the shapes to draw; `HELD_OUT_CLASSES` are for evaluation.

    Raises:
      ValueError: for a class that does not exist.
    """
    unknown = sorted(set(classes) - set(OUTLINES))
    if unknown or not classes:
        raise ValueError(f"classes must be some of {', '.join(OUTLINES)}, got {', '.join(unknown) or 'none'}.")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(rng, size)
    for _ in range(int(rng.integers(2, 7))):
        name = classes[rng.integers(len(classes))]
        if rng.uniform() < 0.3:
            _draw_group(canvas, name)
        else:
            centre = _random_place(rng, size)
            colour = random_colour(rng, unlike=canvas.colour_at(*centre))
            _draw_object(canvas, name, centre, _random_radius(rng, size), colour, parent=-1)
    return _scene(canvas)


def _random_place(rng: np.random.Generator, size: Size) -> tuple[float, float]:
    return rng.uniform(0, size[1]), rng.uniform(0, size[0])


def _random_radius(rng: np.random.Generator, size: Size) -> float:
    """Half an object's length; areas from tiny to large are about equally frequent."""
    return min(size) * np.exp(rng.uniform(np.log(0.12), np.log(0.45)))


def _draw_group(canvas: _Canvas, name: str) -> None:
    """Draw two to five similar objects, each touching the one before."""
    rng = canvas.rng
    group = canvas.add("group", name)
    centre, radius = _random_place(rng, canvas.size), 0.7 * _random_radius(rng, canvas.size)
    colour = random_colour(rng, unlike=canvas.colour_at(*centre))
    outline, heading = OUTLINES[name](rng), rng.uniform(0, 2 * np.pi)
    for _ in range(int(rng.integers(2, 6))):
        size = radius * rng.uniform(0.8, 1.2)
        _draw_object(canvas, name, centre, size, nearby_colour(rng, colour, 12), group, outline)
        heading += rng.normal() * 0.8
        step = 1.3 * radius
        centre = centre[0] + step * np.cos(heading), centre[1] + step * np.sin(heading)


def _draw_object(
    canvas: _Canvas,
    name: str,
    centre: tuple[float, float],
    radius: float,
    colour: Colour,
    parent: int,
    outline: Outline | None = None,
) -> None:
    """Draw an object, and often some parts on it."""
    rng = canvas.rng
    thing = canvas.add("object", name, parent)
    placed = place(OUTLINES[name](rng) if outline is None else outline, centre, radius, rng.uniform(0, 2 * np.pi))
    canvas.paint(thing, placed, colour)
    if radius < min(canvas.size) / 12 or rng.uniform() < 0.4:
        return
    for _ in range(int(rng.integers(1, 4))):
        part = canvas.add("part", name, thing)
        corner, other = placed[rng.integers(len(placed), size=2)]
        x, y = corner + rng.uniform(0.2, 0.8) * (other - corner)
        shape = place(OUTLINES[name](rng), (x, y), radius * rng.uniform(0.3, 0.6), rng.uniform(0, 2 * np.pi))
        canvas.paint(part, shape, random_colour(rng, unlike=colour), inside=thing)


def _window(outline: Outline, size: Size, margin: int = 0) -> tuple[slice, slice] | None:
    """The pixels around an outline that are in the picture: rows and columns."""
    left, top = np.maximum(np.floor(outline.min(0)).astype(int) - margin, 0).tolist()
    right, bottom = np.minimum(np.ceil(outline.max(0)).astype(int) + 1 + margin, (size[1], size[0])).tolist()
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _coverage(outline: Outline, rows: slice, columns: slice) -> Float[np.ndarray, "h w"]:
    """The share of each pixel of a window that lies inside an outline."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    fine = Image.new("L", (width * _FINE, height * _FINE))
    corners = (outline - (columns.start, rows.start)) * _FINE - 0.5
    ImageDraw.Draw(fine).polygon(corners.ravel().tolist(), fill=255)
    return np.asarray(fine.reduce(_FINE), np.float32) / 255


def _blurred(cover: Float[np.ndarray, "h w"], radius: float) -> Float[np.ndarray, "h w"]:
    image = Image.fromarray((255 * cover).astype(np.uint8)).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(image, np.float32) / 255


def _scene(canvas: _Canvas) -> Scene:
    """The image, and the masks that are worth asking for."""
    things = canvas.things
    masks = canvas.owner == np.arange(len(things))[:, None, None]
    for i in reversed(range(len(things))):  # what belongs to a thing comes after it
        if things[i].parent >= 0:
            masks[things[i].parent] |= masks[i]
    area = np.array([np.count_nonzero(mask) for mask in masks])
    usable = (area >= SMALLEST * canvas.owner.size) & (area <= LARGEST * canvas.owner.size)
    for i, thing in enumerate(things):
        if thing.kind != "object" and usable[i]:
            usable[i] = not _is_copy(i, things, area)
    kept = np.flatnonzero(usable)
    place_of = {int(old): new for new, old in enumerate(kept)} | {-1: -1}
    return Scene(
        image=canvas.photograph(),
        masks=masks[kept],
        kinds=tuple(things[i].kind for i in kept),
        classes=tuple(things[i].name for i in kept),
        parents=np.array([place_of.get(things[i].parent, -1) for i in kept], int),
    )


def _is_copy(i: int, things: list[_Thing], area: Int[np.ndarray, " n"]) -> bool:
    """Whether a part is nearly all of its object, or one object is nearly all of a group."""
    if things[i].kind == "part":
        return bool(area[i] > LARGEST * area[things[i].parent])
    return any(area[j] > LARGEST * area[i] for j, other in enumerate(things) if other.parent == i)
