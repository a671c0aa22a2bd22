"""What is drawn onto pictures, and where."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.images.draw import CLICK_COLOURS, contour, draw_score, draw_tokens, line_width, overlay, stacked

BLUE = (30, 136, 229)


def square(size: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


@pytest.mark.parametrize("width", [1, 2])
def test_a_contour_is_the_mask_without_its_inside(width):
    expected = square(9, 1, 8) & ~square(9, 1 + width, 8 - width)
    np.testing.assert_array_equal(contour(square(9, 1, 8), width), expected)


def test_a_contour_follows_holes_and_the_pictures_edge():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    expected = ~square(5, 1, 4)
    expected[[1, 3, 2, 2], [2, 2, 1, 3]] = True
    np.testing.assert_array_equal(contour(mask), expected)
    assert not contour(np.zeros((5, 5), bool)).any()


def test_an_overlay_is_half_transparent_inside_and_leaves_the_rest():
    image = np.full((9, 9, 3), 100, np.uint8)
    result = overlay(image, square(9, 2, 7), BLUE)
    assert result[2, 2].tolist() == list(BLUE)
    assert result[4, 4].tolist() == [65, 118, 164]
    assert (result[~square(9, 2, 7)] == 100).all()
    assert (image == 100).all()


def test_lines_grow_with_the_picture():
    assert [line_width(10, 20), line_width(1200, 1800), line_width(4000, 1000)] == [1, 4, 10]


@pytest.mark.parametrize(("start", "stop"), [(20, 40), (95, 100), (0, 0)])
def test_a_score_begins_where_the_mask_does_and_stays_in_the_picture(start, stop):
    picture = Image.new("RGB", (100, 100), "black")
    draw_score(picture, square(100, start, stop), 0.5, BLUE)
    y, x = np.nonzero((np.asarray(picture) == BLUE).all(-1))
    assert len(y) > 50
    if start < 95:
        assert abs(y.min() - start) <= 5
        assert abs(x.min() - start) <= 5
    assert (np.asarray(picture) == 255).all(-1).any()  # the text, white
    assert max(y.max(), x.max()) <= 99


def test_clicks_and_boxes_are_drawn_and_empty_slots_are_not():
    picture = Image.new("RGB", (100, 100), "black")
    coordinates = np.array([[20, 30], [70, 30], [10, 50], [90, 90], [50, 10], [0, 0]], np.float32)
    draw_tokens(picture, coordinates, np.array([1, 0, 2, 3, -2, -1]))
    pixels = np.asarray(picture)
    assert pixels[30, 20].tolist() == list(CLICK_COLOURS[1])
    assert pixels[30, 70].tolist() == list(CLICK_COLOURS[0])
    assert (pixels[[50, 90, 70, 70], [40, 40, 10, 90]] == 255).all()
    assert not pixels[:20].any()


def test_stacked_pictures_keep_their_pixels():
    sheet = stacked([Image.new("RGB", (3, 4), "red"), Image.new("RGB", (5, 2), "blue")], gap=1)
    assert sheet.size == (5, 7)
    assert sheet.getpixel((2, 3)) == (255, 0, 0)
    assert sheet.getpixel((4, 3)) == (255, 255, 255)
    assert sheet.getpixel((4, 5)) == (0, 0, 255)
