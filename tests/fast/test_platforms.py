"""Programs made on a CPU for other devices: what only a CPU wants is in the CPU's program alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import MODEL, family_model, random_variables

from sam_jax.batch.compiled import feature_shapes, prompt_shapes
from sam_jax.batch.decode import CHUNK, CPU_CHUNK, decode_batch
from sam_jax.decoder.model import Sam
from sam_jax.fast.platforms import on_cpu

PLATFORMS = ("cpu", "cuda", "tpu")


def program(platform: str, model: Sam = MODEL, sets: int = CPU_CHUNK, masks: bool = False, **how: Any) -> str:
    """Return the StableHLO program for a platform."""
    prompts = prompt_shapes((sets,), 2, model.config.mask_size if masks else None)
    traced = decode_batch.trace(model, random_variables(model), feature_shapes(model.config), prompts, **how)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("masks", [False, True])
def test_prompt_sets_are_in_turn_on_a_cpu_alone(masks: bool) -> None:
    loops = {name: program(name, masks=masks).count("stablehlo.while") for name in PLATFORMS}
    assert loops.pop("cpu") > 0
    assert set(loops.values()) == {0}


def test_what_stops_the_cpus_fusions_is_in_its_program_alone() -> None:
    for name in ("reduce_precision", "optimization_barrier"):
        found = {platform: f"stablehlo.{name}" in program(platform) for platform in PLATFORMS}
        assert found == {"cpu": True, "cuda": False, "tpu": False}


def test_the_chunk_is_that_of_the_device_that_will_run() -> None:
    rows = f"tensor<{CPU_CHUNK}x7x{MODEL.config.width}xf32>"  # output tokens and two of the prompt
    assert {name: rows in program(name, sets=CHUNK) for name in PLATFORMS} == {"cpu": True, "cuda": False, "tpu": False}
    loops = {name: program(name, sets=CHUNK).count("stablehlo.while") for name in PLATFORMS}
    assert loops["cpu"] > 0 == loops["cuda"] == loops["tpu"]


def test_the_hq_convolution_is_a_product_on_a_cpu_alone() -> None:
    model = family_model("hq_sam2")
    found = {name: "stablehlo.convolution" in program(name, model) for name in PLATFORMS}
    assert found == {"cpu": False, "cuda": True, "tpu": True}


@pytest.mark.parametrize("sets", [CPU_CHUNK, CPU_CHUNK + 1])
def test_gradients_are_in_turn_on_a_cpu_alone(sets: int) -> None:
    def loss(variables: Any, image: Any, prompts: Any) -> jax.Array:
        return decode_batch(MODEL, variables, image, prompts).logits.sum()

    prompts = prompt_shapes((sets,), 2, None)
    traced = jax.jit(jax.grad(loss)).trace(random_variables(), feature_shapes(MODEL.config), prompts)
    loops = {name: traced.lower(lowering_platforms=(name,)).as_text().count("stablehlo.while") for name in PLATFORMS}
    assert loops["cpu"] > 0 == loops["cuda"] == loops["tpu"]


def test_on_cpu_under_every_transformation() -> None:
    choose = functools.partial(on_cpu, jnp.sin, jnp.cos)
    x = np.linspace(0, 1, 5, dtype=np.float32)
    np.testing.assert_allclose(jax.vmap(jax.jit(choose))(x), np.sin(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.checkpoint(choose)))(x), np.cos(x), rtol=1e-6)
