"""A GPU computes what a CPU does: `pytest -m gpu` on a machine that has one."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import random_variables

import sam_jax
from sam_jax import Prompts, Sam, SamConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
    pytest.mark.usefixtures("optimised"),
]

CONFIG = SamConfig(grid_size=(16, 16), image_size=(256, 256))
"""The full width, heads and depth, on a quarter of the grid's sides."""
SETS = 130
"""Prompt sets: more than are decoded at once on a GPU, and no multiple of them."""


def model_of(dtype: Any = "float32") -> Sam:
    return Sam(dataclasses.replace(CONFIG, dtype=dtype))


@functools.cache
def arguments() -> tuple[Any, np.ndarray, Prompts]:
    """Variables, an embedding, and prompt sets of a click, two clicks, a box, and both."""
    rng = np.random.default_rng(0)
    points, labels = rng.uniform(0, 256, (SETS, 2, 2)), rng.integers(0, 2, (SETS, 2))
    corners = np.sort(rng.uniform(0, 256, (SETS, 2, 2)), axis=1).reshape(SETS, 4)
    number = np.arange(SETS) % 4
    prompts = Prompts.build(
        points=[None if n == 2 else points[i, : 1 + (n == 1)] for i, n in enumerate(number)],
        labels=[None if n == 2 else labels[i, : 1 + (n == 1)] for i, n in enumerate(number)],
        boxes=[corners[i] if n >= 2 else None for i, n in enumerate(number)],
    )
    embedding = rng.normal(size=(*CONFIG.grid_size, CONFIG.width)).astype(np.float32)
    return jax.tree.map(np.asarray, random_variables(model_of())), embedding, prompts


def decode_on(device: jax.Device, path: Any, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Logits and scores."""
    with jax.default_device(device):
        placed = jax.device_put(arguments(), device)
        out = sam_jax.predict_masks(model_of(dtype), *placed, path=path)
    return np.asarray(out.logits, np.float32), np.asarray(out.iou, np.float32)


@functools.cache
def wanted() -> tuple[np.ndarray, np.ndarray]:
    """What the plain modules give on the CPU."""
    return decode_on(jax.devices("cpu")[0], "plain")


def share(ours: Any, wanted: Any) -> float:
    return float(np.abs(ours - wanted).max() / np.abs(wanted).max())


def mask_iou(ours: np.ndarray, wanted: np.ndarray) -> float:
    both, either = ((ours > 0) & (wanted > 0)).sum((-2, -1)), ((ours > 0) | (wanted > 0)).sum((-2, -1))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1).mean())


@pytest.mark.parametrize("path", ["plain", "absorbed", "low_rank"])
@pytest.mark.parametrize("products", ["default", "bfloat16"])
def test_float32_is_exact(path: str, products: str) -> None:
    """Whatever JAX's own setting is."""
    with jax.default_matmul_precision(products):
        logits, iou = decode_on(jax.devices()[0], path)
    assert share(logits, wanted()[0]) < 1e-5
    assert share(iou, wanted()[1]) < 1e-5


@pytest.mark.parametrize("path", ["plain", "absorbed", "low_rank"])
def test_masks_hardly_change_with_faster_products(path: str) -> None:
    logits, _ = decode_on(jax.devices()[0], path, "bfloat16")
    assert mask_iou(logits, wanted()[0]) > 0.95


def test_coordinates_stay_exact_whatever_the_products_are() -> None:
    """A phase of 24 rad in TF32 or bfloat16 would be wrong by more than a tenth."""
    variables, _, prompts = arguments()

    def encode(variables: Any) -> jax.Array:
        encoder = model_of().bind(variables).prompt_encoder
        return jax.vmap(encoder.sparse)(jnp.asarray(prompts.coordinates), jnp.asarray(prompts.labels))

    with jax.default_device(jax.devices("cpu")[0]):
        want = np.asarray(encode(jax.device_put(variables, jax.devices("cpu")[0])))
    with jax.default_matmul_precision("default"):
        ours = np.asarray(jax.jit(encode)(jax.device_put(variables, jax.devices()[0])))
    present = np.asarray(prompts.labels) != sam_jax.prompts.EMPTY
    np.testing.assert_allclose(ours[present], want[present], atol=2e-5)


@pytest.mark.parametrize("path", ["plain", "absorbed", "low_rank"])
def test_gradients_are_those_of_the_cpu(path: str) -> None:
    def loss(variables: Any, embedding: Any) -> jax.Array:
        prompts = jax.tree.map(lambda x: jnp.asarray(x)[:6], arguments()[2])
        out = sam_jax.predict_masks(model_of(), variables, embedding, prompts, path=path)
        return jnp.square(out.logits).mean() + jnp.square(out.iou).mean()

    def gradient_on(device: jax.Device) -> Any:
        with jax.default_device(device):
            return jax.device_get(jax.jit(jax.grad(loss, argnums=1))(*jax.device_put(arguments()[:2], device)))

    assert share(gradient_on(jax.devices()[0]), gradient_on(jax.devices("cpu")[0])) < 1e-4


def test_masks_at_the_original_size() -> None:
    logits = wanted()[0][:8]
    sizes: Any = {"input_size": (171, 256), "original_size": (400, 599), "image_size": CONFIG.image_size}
    ours = np.asarray(sam_jax.binary_masks(jax.device_put(logits, jax.devices()[0]), **sizes))
    with jax.default_device(jax.devices("cpu")[0]):
        want = np.asarray(sam_jax.binary_masks(jax.device_put(logits, jax.devices("cpu")[0]), **sizes))
    assert (ours != want).mean() < 1e-5
