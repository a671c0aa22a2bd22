"""Windows cover an image, overlap by a quarter or more, and are of one size."""

import itertools

import numpy as np
import pytest

from sam_jax.images.windows import Window, windows_of


@pytest.mark.parametrize("size", [(512, 512), (513, 512), (1000, 700), (2048, 3000), (100, 2000)])
@pytest.mark.parametrize("side", [512, 300])
def test_windows_cover_an_image(size, side):
    windows = windows_of(size, side)
    covered = np.zeros(size, int)
    for window in windows:
        covered[window.pixels] += 1
        assert window.size == (min(side, size[0]), min(side, size[1]))
    assert covered.min() > 0
    for axis, length in enumerate(size):
        starts = sorted({(window.y0, window.x0)[axis] for window in windows})
        assert all(b - a <= 0.75 * side for a, b in itertools.pairwise(starts))
        assert starts[0] == 0
        assert starts[-1] == max(0, length - side)


def test_a_small_image_is_one_window():
    assert windows_of((40, 60), 512) == windows_of((40, 60), None) == [Window(0, 0, 60, 40)]
    with pytest.raises(ValueError, match="side of 1 pixel or more, got 0"):
        windows_of((40, 60), 0)
