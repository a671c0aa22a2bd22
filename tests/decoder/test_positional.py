"""Fourier features: by hand, against float64, and always in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.decoder.positional import fourier_features, grid_features


def by_numpy(coordinates, matrix):
    """The same in float64."""
    phases = 2 * np.pi * (2 * np.asarray(coordinates, np.float64) - 1) @ np.asarray(matrix, np.float64)
    return np.concatenate([np.sin(phases), np.cos(phases)], -1)


def test_by_hand():
    """The frame's right edge is 1; a quarter of a turn in x, an eighth in y: sines first, then cosines."""
    matrix = jnp.array([[0.25, 0.0], [0.0, 0.125]])
    features = fourier_features(jnp.array([[1.0, 0.5], [0.5, 1.0]]), matrix)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(features, [[1, 0, 0, 1], [0, half, 1, half]], atol=1e-7)


def test_the_centre_of_the_frame_has_no_phase():
    features = fourier_features(jnp.array([0.5, 0.5]), jnp.ones((2, 3)))
    np.testing.assert_array_equal(features, [0, 0, 0, 1, 1, 1])


def test_large_phases_are_exact_in_float32(rng):
    coordinates, matrix = jnp.asarray(rng(200, 2)), jnp.asarray(rng(2, 64))
    phases = 2 * np.pi * (2 * np.asarray(coordinates) - 1) @ np.asarray(matrix)
    assert np.abs(phases).max() > 24
    np.testing.assert_allclose(fourier_features(coordinates, matrix), by_numpy(coordinates, matrix), atol=2e-5)


def test_the_product_is_of_the_highest_precision():
    """Where the default is bfloat16 or TensorFloat-32, phases would be wrong by a tenth of a radian."""
    program = str(jax.make_jaxpr(fourier_features)(jnp.ones((5, 2)), jnp.ones((2, 4))))
    assert program.count("dot_general") == 1
    assert "Precision.HIGHEST" in program


def test_low_precision_inputs_are_computed_in_float32(rng):
    coordinates, matrix = (jnp.asarray(array, jnp.bfloat16) for array in (np.abs(rng(20, 2)), rng(2, 8)))
    features = fourier_features(coordinates, matrix)
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(features, by_numpy(coordinates, matrix), atol=2e-5)


def test_grid_cells_are_their_centres(rng):
    h, w = 3, 5
    matrix = jnp.asarray(rng(2, 8))
    grid = grid_features((h, w), matrix)
    assert grid.shape == (h, w, 16)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        centre = jnp.array([(column + 0.5) / w, (row + 0.5) / h])
        np.testing.assert_allclose(grid[row, column], fourier_features(centre, matrix), atol=3e-6)


def test_a_grid_is_as_exact_as_its_cells_one_by_one(rng):
    """Its sines are sums of products; each cell's own sine is of a phase that is rounded."""
    h, w = 64, 64
    matrix = jnp.asarray(2 * rng(2, 128))
    centres = np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), -1)
    exact = by_numpy(centres, matrix)
    one_by_one = np.abs(fourier_features(jnp.asarray(centres, jnp.float32), matrix) - exact)
    together = np.abs(grid_features((h, w), matrix) - exact)
    assert together.max() < one_by_one.max()
    assert together.mean() < one_by_one.mean()
