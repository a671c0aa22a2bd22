"""Programs for a TPU, looked at on a CPU: float32 is multiplied as float32, whatever JAX's own setting is."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_encoder import SMALL_EFFICIENT_VIT, SMALL_HIERA, SMALL_TINY_VIT
from random_model import FAMILIES, MODEL, family_model

from sam_jax import predict_masks, prepare_image
from sam_jax.batch.compiled import feature_shapes, prompt_shapes
from sam_jax.decoder.model import Sam
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.encoder import make_encoder

PATHS = ("plain", "absorbed", "low_rank")
ENCODERS: dict[str, Any] = {
    "vit": dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), image_size=(64, 112)),
    "vit, remat": dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), image_size=(64, 112), remat=True),
    "tiny_vit": SMALL_TINY_VIT,
    "efficient_vit": SMALL_EFFICIENT_VIT,
    "hiera": dataclasses.replace(SMALL_HIERA, position_size=(3, 5), image_size=(64, 96), out_width=16),
}


def products(function: Any, *shapes: Any) -> list[str]:
    """Return each product in the program for a TPU and in that of its gradient, as a line."""

    def loss(*arrays: Any) -> jax.Array:
        return sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(function(*arrays)))

    with jax.default_matmul_precision("bfloat16"):
        traced = jax.jit(lambda *arrays: (function(*arrays), jax.grad(loss)(*arrays))).trace(*shapes)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    return re.findall(r".*stablehlo\.(?:dot_general|convolution).*", text)


def is_highest(product: str) -> bool:
    """Return whether both operands of a product are taken as they are."""
    return product.count("HIGHEST") == 2


def shapes_of(model: Sam, masks: bool = False) -> Any:
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return variables, feature_shapes(model.config), prompt_shapes((3,), 2, model.config.mask_size if masks else None)


@pytest.mark.parametrize(("family", "path"), [("sam", path) for path in PATHS] + [(name, "auto") for name in FAMILIES])
def test_every_product_of_a_float32_decoder(family: str, path: Any) -> None:
    model = family_model(family)

    def decode(variables: Any, image: Any, prompts: Any) -> Any:
        out = predict_masks(model, variables, image, prompts, path=path)
        return out.logits, out.iou, out.hq

    found = products(decode, *shapes_of(model, masks=path in ("plain", "absorbed")))
    assert len(found) > 20
    assert all(map(is_highest, found))


def test_the_modules_themselves_and_prepared_images() -> None:
    variables, image, prompts = shapes_of(MODEL)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), prompts)
    found = products(lambda *inputs: MODEL.apply(*inputs).logits, variables, image, one)
    found += products(lambda *inputs: prepare_image(MODEL, *inputs), variables, image)
    assert all(map(is_highest, found))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_product_of_a_float32_encoder(name: str) -> None:
    encoder = make_encoder(ENCODERS[name])
    frame = jax.ShapeDtypeStruct((*encoder.config.image_size, 3), np.float32)
    found = products(encoder.apply, jax.eval_shape(encoder.init, jax.random.key(0), frame), frame)
    assert len(found) > 10
    assert all(map(is_highest, found))


def test_bfloat16_asks_for_nothing_in_the_plain_modules() -> None:
    model = Sam(dataclasses.replace(MODEL.config, dtype="bfloat16"))
    variables, image, prompts = shapes_of(model)
    found = products(lambda *inputs: predict_masks(model, *inputs, path="plain").logits, variables, image, prompts)
    rounded = [product for product in found if "bf16>" in product]
    assert len(rounded) > 20
    assert not any(map(is_highest, rounded))
