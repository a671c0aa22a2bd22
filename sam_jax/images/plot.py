"""Pictures of numbers: curves with axes, drawn with Pillow alone."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from sam_jax.images.draw import COLOURS

Range = tuple[float, float]
Points = Sequence[tuple[float, float]]

_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 24, 14, 26
"""Room around the axes in pixels; the legend is above them."""


def line_plot(
    curves: Mapping[str, Points],
    x_range: Range,
    y_range: Range,
    size: tuple[int, int] = (388, 260),
    doubling: bool = False,
) -> Image.Image:
    """Return a plot of curves over common axes, with a legend.

    Args:
      curves: points (x, y) by name, in the order in which they are joined; one beyond the axes is drawn at their end.
      x_range: the smallest and the largest x of the axes.
      y_range: the smallest and the largest y.
      size: width and height of the picture in pixels.
      doubling: whether equal steps along x double it, rather than add to it; x is positive then.
    """
    if doubling:
        x_range = math.log2(x_range[0]), math.log2(x_range[1])
        curves = {name: [(math.log2(x), y) for x, y in points] for name, points in curves.items()}
    x_range, y_range = _widened(x_range), _widened(y_range)
    picture = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    box = left, top, right, bottom = _LEFT, _TOP, size[0] - _RIGHT, size[1] - _BOTTOM
    for value in ticks(y_range):
        y = _along(value, y_range, bottom, top)
        pen.line((left, y, right, y), fill=(225, 225, 225))
        pen.text((left - 6, y), f"{value:.6g}", fill="black", font=font, anchor="rm")
    for value in ticks(x_range):
        x = _along(value, x_range, left, right)
        pen.line((x, bottom, x, bottom + 4), fill="black")
        pen.text((x, bottom + 7), f"{2**value if doubling else value:.6g}", fill="black", font=font, anchor="mt")
    pen.rectangle(box, outline="black")
    legend = float(left)
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        corners = [(_along(x, x_range, left, right), _along(y, y_range, bottom, top)) for x, y in points]
        pen.line(corners, fill=colour, width=2)
        pen.text((legend, top - 6), name, fill=colour, font=font, anchor="lb")
        legend += pen.textlength(name, font) + 14
    return picture


def ticks(limits: Range, most: int = 6) -> list[float]:
    """Return round values within limits, at most so many: multiples of 1, 2 or 5 times a power of ten."""
    low, high = limits
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * k for k in (1, 2, 5, 10, 20) if (high - low) / (power * k) <= most - 1)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def stacked(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return pictures below each other."""
    width, height = max(picture.width for picture in pictures), sum(picture.height + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + gap
    return sheet


def _widened(limits: Range) -> Range:
    """Limits that are apart."""
    return limits if limits[0] < limits[1] else (limits[0], limits[0] + 1)


def _along(value: float, limits: Range, start: float, end: float) -> float:
    """Where a value is on an axis from one pixel to another."""
    share = (value - limits[0]) / (limits[1] - limits[0])
    return start + min(max(share, 0), 1) * (end - start)
