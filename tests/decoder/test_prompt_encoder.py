"""Sparse and dense embeddings by hand, and which mask pixel belongs to which cell of the grid."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_variables

from sam_jax.config import TINY
from sam_jax.decoder.model import Sam
from sam_jax.decoder.positional import fourier_features, grid_features
from sam_jax.decoder.prompt_encoder import MaskDownscaling, PromptEncoder, six_slots
from sam_jax.prompts import Prompts

CONFIG = dataclasses.replace(TINY, mask_channels=16, image_size=(96, 160), grid_size=(6, 10))
VARIABLES = {kind: tree["prompt_encoder"] for kind, tree in random_variables(Sam(CONFIG)).items()}
PARAMS = VARIABLES["params"]
MATRIX = VARIABLES["constants"]["gaussian_matrix"]


def sparse(coordinates: Any, labels: Any) -> jax.Array:
    encoder = PromptEncoder(CONFIG)
    return encoder.apply(VARIABLES, jnp.array(coordinates, jnp.float32), jnp.array(labels), method="sparse")


@functools.cache
def jitted_dense() -> Any:
    encoder = PromptEncoder(CONFIG)
    return jax.jit(lambda mask, has_mask: encoder.apply(VARIABLES, CONFIG.grid_size, mask, has_mask, method="dense"))


def dense(mask: Any, has_mask: bool = True) -> jax.Array:
    return jitted_dense()(jnp.asarray(mask, jnp.float32), jnp.array(has_mask))


@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_a_place_is_its_position_and_its_label(label):
    """Half a pixel is added once; x is a fraction of the frame's width, y of its height."""
    x, y = 31.5, 23.5
    position = fourier_features(jnp.array([32 / 160, 24 / 96]), MATRIX)
    (embedding,) = sparse([[x, y]], [label])
    np.testing.assert_allclose(embedding, position + PARAMS["label_embedding"][label], atol=1e-5)


def test_not_a_point_has_no_position():
    embeddings = sparse([[0, 0], [120, 7]], [-1, -1])
    for embedding in embeddings:
        np.testing.assert_array_equal(embedding, PARAMS["not_a_point_embedding"])


def test_an_empty_slot_is_finite():
    assert jnp.isfinite(sparse([[0, 0]], [-2])).all()


def test_no_tokens():
    assert sparse(np.zeros((0, 2)), np.zeros(0, np.int32)).shape == (0, CONFIG.width)


def test_no_mask_is_one_embedding_everywhere():
    encoder = PromptEncoder(CONFIG)
    result = encoder.apply(VARIABLES, CONFIG.grid_size, None, None, method="dense")
    expected = np.broadcast_to(PARAMS["no_mask_embedding"], (6, 10, CONFIG.width))
    np.testing.assert_array_equal(result, expected)


def test_a_mask_that_does_not_count_is_no_mask(rng):
    result = dense(rng(24, 40), has_mask=False)
    np.testing.assert_array_equal(result, np.broadcast_to(PARAMS["no_mask_embedding"], result.shape))


def test_zeros_are_a_mask():
    """They are not the same as no mask."""
    assert jnp.abs(dense(np.zeros((24, 40))) - PARAMS["no_mask_embedding"]).max() > 0.1


def test_each_cell_sees_its_own_four_by_four_pixels(rng):
    mask = rng(24, 40)
    before = dense(mask)
    for row, column in ((0, 0), (5, 38), (23, 3), (14, 21)):
        other = mask.copy()
        other[row, column] += 3
        cells = np.argwhere(np.abs(dense(other) - before).max(-1) > 1e-3)
        np.testing.assert_array_equal(cells, [[row // 4, column // 4]])


def test_the_first_kernel_is_not_mirrored(rng):
    """Its entry (a, b) meets pixel (2i + a, 2j + b)."""
    kernel, mask = rng(2, 2, 1, CONFIG.mask_channels // 4), rng(24, 40)
    params = PARAMS["mask_downscaling"]
    params = params | {"conv_0": params["conv_0"] | {"kernel": jnp.asarray(kernel)}}
    _, state = MaskDownscaling(CONFIG).apply({"params": params}, jnp.asarray(mask), capture_intermediates=True)
    blocks = mask.reshape(12, 2, 20, 2)
    expected = np.einsum("iajb,abc->ijc", blocks, kernel[:, :, 0]) + params["conv_0"]["bias"]
    np.testing.assert_allclose(state["intermediates"]["conv_0"]["__call__"][0], expected, atol=1e-5)


def test_positions_are_those_of_the_grid():
    positions = PromptEncoder(CONFIG).apply(VARIABLES, (6, 10), method="positions")
    np.testing.assert_array_equal(positions, grid_features((6, 10), MATRIX))


def test_bfloat16_positions_are_computed_in_float32():
    """They are rounded at the end only: at most by 2^-9 of 1, where phases in bfloat16 are wrong by 0.1."""
    encoder = PromptEncoder(dataclasses.replace(CONFIG, dtype="bfloat16"))
    positions = encoder.apply(VARIABLES, (6, 10), method="positions")
    assert positions.dtype == jnp.bfloat16
    np.testing.assert_allclose(positions.astype(jnp.float32), grid_features((6, 10), MATRIX), atol=2**-9)


def test_the_gaussian_matrix_is_no_parameter():
    """An optimizer sees `params`, and weight decay would change a matrix there even without a gradient."""
    variables = jax.eval_shape(Sam(CONFIG).init, jax.random.key(0))
    assert variables["constants"]["prompt_encoder"]["gaussian_matrix"].shape == (2, CONFIG.width // 2)
    assert "gaussian" not in str(jax.tree.structure(variables["params"]))


# EfficientSAM's rules.

A, B, C = [3.0, 4.0], [50.0, 6.0], [7.0, 80.0]
NO_POINT = [-1.0, -1.0]
SLOTS = {
    "one click": ({"points": [[A]], "labels": [[1]]}, [A], [1]),
    "clicks": ({"points": [[A, B]], "labels": [[1, 0]]}, [A, B], [1, 0]),
    "what is no point keeps its place": ({"points": [[A, B]], "labels": [[-1, 1]]}, [A, B], [-1, 1]),
    "empty slots between": ({"points": [[A, B, C]], "labels": [[1, -2, 1]]}, [A, C], [1, 1]),
    "six clicks": ({"points": [[A, B, C] * 2], "labels": [[1] * 6]}, [A, B, C] * 2, [1] * 6),
    "eight clicks": ({"points": [[A] * 6 + [B, C]], "labels": [[1] * 8]}, [A] * 6, [1] * 6),
    "a box": ({"boxes": [[*A, *B]]}, [A, B], [2, 3]),
    "clicks and a box": ({"points": [[C, B]], "labels": [[1, -1]], "boxes": [[*A, *B]]}, [C, B, A, B], [1, -1, 2, 3]),
    "outside": ({"points": [[[-0.5, 9]]], "labels": [[1]]}, [[-1, 9]], [1]),
    "nothing": ({}, [], []),
}


@pytest.mark.parametrize("arrays", [False, True], ids=["lists", "arrays"])
@pytest.mark.parametrize("name", SLOTS)
def test_efficient_sam_has_six_tokens(name, arrays):
    """Those that are given, then places at (-1, -1) that are no points, whether slots are empty or not."""
    given, places, labels = SLOTS[name]
    if arrays:
        given = {key: np.array(value, np.int32 if key == "labels" else np.float32) for key, value in given.items()}
    prompts = jax.tree.map(lambda x: jnp.asarray(x[0]), Prompts.build(**given))
    for one in (prompts, jax.tree.map(lambda x: jnp.asarray(x[0]), Prompts.build(**given).pad(16, 1))):
        coordinates, got = six_slots(one.coordinates, one.labels)
        np.testing.assert_array_equal(coordinates, places + [NO_POINT] * (6 - len(places)))
        np.testing.assert_array_equal(got, labels + [-1] * (6 - len(labels)))


def test_efficient_sam_adds_nothing_to_a_background_click():
    config = dataclasses.replace(CONFIG, efficient_sam=True)
    variables = {kind: tree["prompt_encoder"] for kind, tree in random_variables(Sam(config)).items()}
    params, matrix = variables["params"], variables["constants"]["gaussian_matrix"]
    assert {name: leaf.shape for name, leaf in params.items()} == {
        "label_embedding": (3, 32),
        "not_a_point_embedding": (32,),
    }
    position = fourier_features(jnp.array([32 / 160, 24 / 96]), matrix)
    added = [params["not_a_point_embedding"], 0, *params["label_embedding"]]
    places = jnp.full((5, 2), jnp.array([31.5, 23.5]))
    got = PromptEncoder(config).apply(variables, places, jnp.arange(-1, 4), method="sparse")
    for embedding, addition in zip(got, added, strict=True):
        np.testing.assert_allclose(embedding, position + addition, atol=1e-5)


def test_efficient_sam_goes_with_no_setting_of_another_family():
    with pytest.raises(ValueError, match=r"^SamConfig\.efficient_sam does not go with hq, pad_boxes\.$"):
        dataclasses.replace(TINY, efficient_sam=True, hq=True, pad_boxes=True)
