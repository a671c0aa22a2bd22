"""Plots: curves lie where their numbers say, and can be told apart."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.images.draw import COLOURS
from sam_jax.images.plot import line_plot


def pixels(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """(x, y) of the pixels that have a colour, y upwards."""
    found = np.argwhere((np.asarray(picture) == colour).all(-1))[:, ::-1]
    return found * (1, -1) + (0, picture.height)


def test_curves_lie_where_their_numbers_say() -> None:
    plot = line_plot({"up": [(0, 0), (10, 2)], "level": [(0, 1), (10, 1)]}, "step", "loss", size=(400, 300))
    assert (plot.size, plot.mode) == ((400, 300), "RGB")
    up, level = (pixels(plot, colour) for colour in COLOURS[:2])
    left, right = up[up[:, 0] < 150], up[up[:, 0] > 300]
    assert left[:, 1].mean() < level[:, 1].mean() < right[:, 1].mean()


def test_limits_of_y_are_kept() -> None:
    low, high = (
        pixels(line_plot({"one": [(0, 0.5), (1, 0.5)]}, "x", "y", y_limits=(0, top)), COLOURS[0]) for top in (1, 5)
    )
    assert high[:, 1].min() < low[:, 1].min()


def test_doubling_puts_the_geometric_mean_in_the_middle() -> None:
    ends = [(1, 1), (64, 1)]
    place = {}
    for x in (8, 32.5):
        plot = line_plot({"ends": ends, "at": [(x, 0), (x, 2)]}, "x", "y", doubling=x == 8)
        of_ends, of_x = (np.median(pixels(plot, colour)[:, 0]) for colour in COLOURS[:2])
        place[x] = of_x - of_ends
    assert place[8] == pytest.approx(place[32.5], abs=12)


def test_a_single_point_is_drawn() -> None:
    assert len(pixels(line_plot({"one": [(3, 1)]}, "x", "y"), COLOURS[0])) > 9
