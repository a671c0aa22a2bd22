"""Plots: curves lie where their numbers say."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.images.draw import COLOURS
from sam_jax.images.plot import line_plot, stacked, ticks


@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ((1, 20), [5, 10, 15, 20]),
        ((0, 1000), [0, 200, 400, 600, 800, 1000]),
        ((0.0, 0.03), [0, 0.01, 0.02, 0.03]),
        ((-1, 3), [-1, 0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_and_within_the_limits(limits: tuple[float, float], wanted: list[float]) -> None:
    assert ticks(limits) == pytest.approx(wanted)


def pixels(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """(x, y) of the pixels inside the axes that have a colour."""
    found = np.argwhere((np.asarray(picture) == colour).all(-1))[:, ::-1]
    return found[found[:, 1] >= 24]


def test_curves_go_from_corner_to_corner_and_end_at_the_axes() -> None:
    plot = line_plot({"up": [(0, 0), (10, 2)], "out": [(5, 1), (5, 99)]}, (0, 10), (0, 2), size=(300, 200))
    up, out = (pixels(plot, colour) for colour in COLOURS[:2])
    assert np.abs(up[up[:, 0].argmin()] - (52, 174)).max() <= 2
    assert np.abs(up[up[:, 0].argmax()] - (286, 24)).max() <= 2
    assert np.abs(out[:, 0] - 169).max() <= 2
    assert out[:, 1].min() == 24


def test_doubling_puts_the_geometric_mean_in_the_middle() -> None:
    plot = line_plot({"at 8": [(8, 0), (8, 2)]}, (1, 64), (0, 2), size=(300, 200), doubling=True)
    assert np.abs(pixels(plot, COLOURS[0])[:, 0] - 169).max() <= 2


def test_a_single_point_needs_no_range() -> None:
    assert len(pixels(line_plot({"one": [(3, 0), (3, 0)]}, (3, 3), (0, 0)), COLOURS[0]))


def test_stacked_pictures_keep_their_pixels() -> None:
    sheet = stacked([Image.new("RGB", (3, 4), "red"), Image.new("RGB", (5, 2), "blue")], gap=1)
    assert sheet.size == (5, 7)
    assert sheet.getpixel((2, 3)) == (255, 0, 0)
    assert sheet.getpixel((4, 3)) == (255, 255, 255)
    assert sheet.getpixel((4, 5)) == (0, 0, 255)
