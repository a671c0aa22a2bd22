"""From the maps of SAM 2's encoder to those that its decoder takes."""

import dataclasses

import jax
import numpy as np
import pytest
from random_model import SAM2, random_variables

from sam_jax.config import TINY
from sam_jax.decoder.model import Sam

MODEL = Sam(dataclasses.replace(TINY, **SAM2, image_size=(32, 48), grid_size=(2, 3)))
VARIABLES = random_variables(MODEL)
CONSTANTS = jax.tree.map(np.asarray, VARIABLES["constants"]["image_maps"])


def levels(rng) -> list[np.ndarray]:
    return [rng(2 << i, 3 << i, TINY.width) for i in range(3)]


def maps_of(model: Sam, *maps: np.ndarray):
    return model.apply(VARIABLES, *maps, method=lambda sam, *maps: sam.image_maps(*maps))


def test_finer_maps_are_projected_and_the_embedding_of_no_memory_is_added(rng):
    coarse, middle, fine = levels(rng)
    maps = maps_of(MODEL, coarse, middle, fine)
    np.testing.assert_allclose(maps.embedding, coarse + CONSTANTS["no_memory"], rtol=1e-6)
    for ours, level, name in ((maps.stride_8, middle, "stride_8"), (maps.stride_4, fine, "stride_4")):
        want = level @ CONSTANTS[name]["kernel"][0, 0] + CONSTANTS[name]["bias"]
        np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)


def test_a_decoder_without_finer_maps_has_the_embedding_alone(rng):
    coarse, *_ = levels(rng)
    model = Sam(dataclasses.replace(MODEL.config, high_resolution=False))
    np.testing.assert_allclose(maps_of(model, coarse), coarse + CONSTANTS["no_memory"], rtol=1e-6)


def test_a_finer_map_that_is_missing_is_told(rng):
    coarse, middle, _ = levels(rng)
    with pytest.raises(ValueError, match="image_maps needs the neck's maps of all three resolutions"):
        maps_of(MODEL, coarse, middle)
