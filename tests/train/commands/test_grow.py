"""Larger networks that compute what a smaller one does."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_model import random_variables

from sam_jax import MaskPrediction, Prompts, Sam, predict_masks
from sam_jax.config import TINY
from sam_jax.encoders.config import ViTConfig
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.train.commands.grow import copies, deepen_encoder, widen_decoder, widen_neck

KEY = jax.random.key(7)
MODEL = Sam(dataclasses.replace(TINY, image_size=(64, 96), grid_size=(4, 6)))
VARIABLES = random_variables(MODEL)
ENCODER = ImageEncoder(
    ViTConfig(
        width=24,
        depth=5,
        heads=3,
        mlp_width=96,
        patch_size=16,
        window_size=3,
        global_blocks=(2, 4),
        out_width=32,
        image_size=(64, 96),
    )
)
IMAGE = jnp.asarray(np.random.default_rng(2).normal(size=(64, 96, 3)), jnp.float32)


def random_encoder() -> Any:
    rng = np.random.default_rng(3)
    zeros = ENCODER.init(KEY, IMAGE)
    return jax.tree.map(lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), zeros)


OF_ENCODER = random_encoder()
EMBEDDING = ENCODER.apply(OF_ENCODER, IMAGE)


def prompts() -> Prompts:
    mask = np.random.default_rng(4).normal(size=(16, 24)) * 5
    return Prompts.build(
        points=[[[10, 20]], [[30, 40], [50, 60]], None],
        labels=[[1], [1, 0], None],
        boxes=[None, None, [5, 6, 70, 50]],
        masks=[None, mask, None],
    )


def assert_near(ours: Any, wanted: Any, tolerance: float) -> None:
    assert float(jnp.abs(ours - wanted).max() / jnp.abs(wanted).max()) < tolerance


@pytest.mark.slow
def test_a_wider_network_computes_the_same() -> None:
    wide, variables = widen_decoder(KEY, MODEL, VARIABLES)
    encoder, of_encoder = widen_neck(KEY, ENCODER, OF_ENCODER)
    assert wide.config.width == 2 * MODEL.config.width == encoder.config.out_width
    embedding = encoder.apply(of_encoder, IMAGE)
    assert_near(embedding, EMBEDDING[..., copies(MODEL.config.width)], 1e-5)
    ours: MaskPrediction = predict_masks(wide, variables, embedding, prompts())
    want = predict_masks(MODEL, VARIABLES, EMBEDDING, prompts())
    assert_near(ours.logits, want.logits, 1e-5)
    assert_near(ours.iou, want.iou, 1e-5)


def test_copies_can_learn_different_things() -> None:
    """Copies that are read alike would have one gradient, and stay copies for ever."""
    wide, variables = widen_decoder(KEY, MODEL, VARIABLES)
    embedding = EMBEDDING[..., copies(MODEL.config.width)]

    def loss(params: Any) -> jax.Array:
        out = predict_masks(wide, {"params": params, "constants": variables["constants"]}, embedding, prompts())
        return jnp.square(out.logits).mean() + jnp.square(out.iou).mean()

    gradients = flatten_dict(jax.grad(loss)(variables["params"]), sep="/")
    before = flatten_dict(VARIABLES["params"], sep="/")
    grown = {path for path in before if path.endswith("bias") and before[path].shape != gradients[path].shape}
    assert len(grown) > 30
    for path in grown:
        # A key's bias adds the same to every logit, and the hypernetworks' outputs meet copies that are still the same.
        if path.endswith(("key/bias", "hypernetworks/layer_2/bias")):
            continue
        parts = np.asarray(gradients[path]).reshape(-1, 4, before[path].shape[-1] // 2)
        assert not np.allclose(parts[:, 0], parts[:, 1], rtol=0.05, atol=0), path


def test_a_deeper_encoder_computes_the_same_and_can_be_computed_again_in_groups() -> None:
    deep, variables = deepen_encoder(KEY, ENCODER, OF_ENCODER, 4)
    assert (deep.config.depth, deep.config.global_blocks) == (8, (3, 7))
    np.testing.assert_array_equal(deep.apply(variables, IMAGE), EMBEDDING)
    again = ImageEncoder(dataclasses.replace(deep.config, remat=True))
    assert_near(again.apply(variables, IMAGE), EMBEDDING, 1e-5)


@pytest.mark.slow
def test_new_blocks_learn() -> None:
    deep, variables = deepen_encoder(KEY, ENCODER, OF_ENCODER, 4)
    gradients = jax.grad(lambda variables: jnp.square(deep.apply(variables, IMAGE)).mean())(variables)["params"]
    for place in (0, 4, 5):
        block = gradients[f"block_{place}"]
        assert all(
            jnp.abs(block[part][last]["kernel"]).max() > 0 for part, last in (("attention", "out"), ("mlp", "layer_1"))
        )


def test_what_cannot_grow_is_refused() -> None:
    odd = Sam(dataclasses.replace(TINY, heads=1))
    with pytest.raises(ValueError, match="must have an even number of heads, got 1"):
        widen_decoder(KEY, odd, {})
    with pytest.raises(ValueError, match=r"groups of at most 2 blocks .* got depth=5 and global_blocks=\(2, 4\)"):
        deepen_encoder(KEY, ENCODER, OF_ENCODER, 2)
    open_end = ImageEncoder(dataclasses.replace(ENCODER.config, global_blocks=(2,)))
    with pytest.raises(ValueError, match=r"got depth=5 and global_blocks=\(2,\)"):
        deepen_encoder(KEY, open_end, OF_ENCODER, 4)
