"""Pictures of masks and prompts, for people to look at."""

import colorsys
import math
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from sam_jax.prompts import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND

BLUE, VERMILION, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (230, 159, 0), (0, 158, 115)
COLOURS = (BLUE, VERMILION, ORANGE, GREEN, (204, 121, 167), (86, 180, 233))
"""Of Okabe and Ito, "Color universal design" (2008): who is colour-blind can tell them apart, too."""
CLICK_COLOURS = {FOREGROUND: GREEN, BACKGROUND: VERMILION}


def line_width(height: int, width: int) -> int:
    """Return how many pixels wide a line has to be to be seen on a picture of this size."""
    return max(1, round(max(height, width) / 400))


def contour(mask: Bool[np.ndarray, "height width"], width: int = 1) -> Bool[np.ndarray, "height width"]:
    """Return the pixels of a mask that are at most `width` steps (left, right, up, down) from a pixel outside.

    Beyond the edges of the picture is outside.
    """
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inner


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
    colour: tuple[int, int, int],
    width: int = 1,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with a mask laid over it: half transparent, its contour in the full colour.

    Args:
      image: RGB, 0 to 255.
      mask: True in the object.
      colour: RGB of the mask.
      width: of the contour, in pixels.
    """
    result = image.copy()
    result[mask] = (0.5 * image[mask] + 0.5 * np.array(colour)).astype(np.uint8)
    result[contour(mask, width)] = colour
    return result


def draw_everything(
    image: UInt8[np.ndarray, "height width 3"], masks: Iterable[Bool[np.ndarray, "height width"]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with many masks laid over it in colours of their own, one upon the other.

    Args:
      image: RGB, 0 to 255.
      masks: True in an object; the largest first, so that none hides another.
    """
    width = line_width(*image.shape[:2])
    for i, mask in enumerate(masks):
        image = overlay(image, mask, distinct_colour(i), width)
    return image


def distinct_colour(index: int) -> tuple[int, int, int]:
    """Return the RGB of the colour with this number: its hue is far from those of the numbers just before it."""
    hue = index * (math.sqrt(5) - 1) / 2 % 1  # the golden ratio: no hue comes back
    lightness = (0.5, 0.62, 0.4)[index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_tokens(
    picture: Image.Image, coordinates: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"], radius: int = 6
) -> None:
    """Draw clicks (green foreground, vermilion background) and boxes onto a picture.

    Args:
      picture: what to draw on.
      coordinates: (x, y) of each token in the picture's pixels.
      labels: what each token is, as in `sam_jax.Prompts`.
      radius: of a click, in pixels.
    """
    pen = ImageDraw.Draw(picture)
    for (x, y), label in zip(coordinates.tolist(), labels.tolist(), strict=True):
        if label in CLICK_COLOURS:
            box = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(box, fill=CLICK_COLOURS[label], outline="white", width=max(1, radius // 3))
    starts, ends = coordinates[labels == BOX_TOP_LEFT].tolist(), coordinates[labels == BOX_BOTTOM_RIGHT].tolist()
    for start, end in zip(starts, ends, strict=True):
        pen.rectangle((*start, *end), outline="white", width=max(1, radius // 2))


def draw_score(
    picture: Image.Image, mask: Bool[np.ndarray, "height width"], score: float, colour: tuple[int, int, int]
) -> None:
    """Write a mask's score onto a picture, where the mask begins at the top.

    Args:
      picture: what to draw on.
      mask: True in the object; for an empty one, the score is in the picture's corner.
      score: the predicted IoU.
      colour: RGB of the mask, behind the text.
    """
    pen, size = ImageDraw.Draw(picture), 9 + 3 * line_width(*mask.shape)
    font = ImageFont.load_default(size)
    y, x = np.argwhere(mask)[0].tolist() if mask.any() else (0, 0)
    text = f"{score:.3f}"
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    x, y = max(0, min(x, picture.width - right)), max(0, min(y, picture.height - bottom))
    pen.rectangle((x + left - 1, y + top - 1, x + right + 1, y + bottom + 1), fill=colour)
    pen.text((x, y), text, fill="white", font=font)


def stacked(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return pictures below each other."""
    width, height = max(picture.width for picture in pictures), sum(picture.height + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def side_by_side(panels: Sequence[tuple[str, Image.Image]], gap: int = 8) -> Image.Image:
    """Return pictures of one size in a row, each with its title above."""
    width, height = panels[0][1].size
    bar = 22
    sheet = Image.new("RGB", ((width + gap) * len(panels) - gap, height + bar), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (title, picture) in enumerate(panels):
        pen.text(((width + gap) * i + 4, 4), title, fill="black", font=font)
        sheet.paste(picture, ((width + gap) * i, bar))
    return sheet
