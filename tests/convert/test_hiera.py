"""SAM 2's encoder in files: recognised, converted both ways, strictly."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_encoder import SMALL_HIERA

from sam_jax.convert.encoders import TABLES, encoder_from_torch, encoder_to_torch, identify_encoder
from sam_jax.convert.tables.rules import NAMINGS, flax_shapes, torch_shapes
from sam_jax.convert.tables.settings import OWN
from sam_jax.encoders.config import (
    HIERA_BASE_PLUS,
    HIERA_LARGE,
    HIERA_SMALL,
    HIERA_TINY,
    HieraConfig,
    config_to_dict,
)
from sam_jax.encoders.encoder import make_encoder
from sam_jax.errors import CheckpointError

OFFICIAL = {"tiny": HIERA_TINY, "small": HIERA_SMALL, "base_plus": HIERA_BASE_PLUS, "large": HIERA_LARGE}
SMALL = dataclasses.replace(SMALL_HIERA, image_size=(128, 128))


def shapes_of(config: HieraConfig, naming: Any = "meta") -> dict[str, tuple[int, ...]]:
    """The names and shapes of a checkpoint, with a tensor that tells SAM 2's decoder."""
    shapes = torch_shapes(config, naming, TABLES["hiera"])
    return shapes | {"mask_decoder.obj_score_token.weight": (1, config.out_width)}


def described(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return {name: types.SimpleNamespace(shape=shape, dtype=np.dtype(np.float32)) for name, shape in shapes.items()}


def error_of(tensors: dict[str, Any], **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        encoder_from_torch(tensors, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("naming", NAMINGS)
def test_shapes_tell_which_of_sam_2_s_it_is(name, naming):
    found = identify_encoder(described(shapes_of(OFFICIAL[name], naming)))
    assert (found.config, found.naming, found.family.name) == (OFFICIAL[name], naming, "sam2")
    assert not found.gaps
    assert found.ignored == ("mask_decoder.obj_score_token.weight",)


def test_the_family_tells_the_size_of_medsam2_s_images():
    found = identify_encoder(described(shapes_of(HIERA_TINY)), family="medsam2")
    assert found.config == dataclasses.replace(HIERA_TINY, image_size=(512, 512), preprocessing="medsam2")


def test_another_hiera_needs_settings():
    tensors = described(shapes_of(SMALL))
    assert "The Hiera has width 8 and 5 blocks; SAM 2's have 96 and 12, 96 and 16," in error_of(tensors)
    assert identify_encoder(tensors, settings={OWN: {"encoder": config_to_dict(SMALL)}}).config == SMALL


def test_hugging_face_settings():
    trunk = {
        "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "num_attention_heads_per_stage": [1, 2, 4, 4],
        "window_size_per_stage": [4, 4, 6, 3],
        "global_attention_blocks": [3],
    }
    settings = {
        "model_type": "sam2_video",
        "vision_config": {"backbone_config": trunk, "fpn_hidden_size": 32},
        "prompt_encoder_config": {"image_size": 128},
    }
    tensors = described(shapes_of(SMALL, "hf"))
    found = identify_encoder(tensors, settings=settings)
    assert found.config == SMALL
    assert not found.gaps
    settings["vision_config"]["fpn_top_down_levels"] = [1, 2, 3]
    with pytest.raises(CheckpointError, match=r"fpn_top_down_levels \[1, 2, 3\] where only \[2, 3\] is supported"):
        identify_encoder(tensors, settings=settings)


def test_the_flax_tree_is_the_one_that_the_module_makes():
    image = jax.ShapeDtypeStruct((*SMALL.image_size, 3), jnp.float32)
    made = jax.eval_shape(make_encoder(SMALL).init, jax.random.key(0), image)
    found = flax_shapes(SMALL, TABLES["hiera"])
    assert found == {path: leaf.shape for path, leaf in flatten_dict(made, sep="/").items()}


@pytest.mark.parametrize("naming", NAMINGS)
def test_there_and_back_is_the_identity_bit_for_bit(naming):
    """The projections have the names that Meta's mask decoder gives them."""
    rng = np.random.default_rng(0)
    shapes = torch_shapes(SMALL, naming, TABLES["hiera"])
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    settings = {OWN: {"encoder": config_to_dict(SMALL)}}
    back = encoder_to_torch(
        types.SimpleNamespace(config=SMALL), encoder_from_torch(tensors, settings=settings).variables, naming
    )
    prefix = "sam_" if naming == "meta" else ""
    assert {f"{prefix}mask_decoder.conv_s{i}.weight" for i in (0, 1)} < set(back)
    assert len(back) == len(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name.replace("mask_decoder.", f"{prefix}mask_decoder.")], tensor)


@pytest.mark.parametrize("lost", ["no_mem_embed", "mask_decoder.conv_s0.bias", "image_encoder.trunk.pos_embed_window"])
def test_what_is_used_once_per_image_is_not_optional(lost):
    shapes = shapes_of(HIERA_TINY)
    del shapes[lost]
    assert f"1 missing:\n  {lost}" in error_of(described(shapes))
