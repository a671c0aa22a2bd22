"""The kernels of a GPU, on a machine that has none. What they compute is in test_image_form.py, interpreted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from accelerators import lowering_for
from random_model import FAMILIES, TINY, random_features, random_variables

from sam_jax import Prompts, Sam, SamConfig
from sam_jax.batch.compiled import feature_shapes, prompt_shapes
from sam_jax.batch.decode import decode_batch
from sam_jax.decoder.layers import gelu
from sam_jax.fast import kernels_cuda
from sam_jax.fast.fused import decode_in_kernels
from sam_jax.fast.image_form import written_image

CALL = "__gpu$xla.gpu.triton"
WIDE = SamConfig(grid_size=(16, 16), image_size=(256, 256))


def lowered(path: Any, family: str = "sam", dtype: str = "bfloat16", masks: bool = False) -> str:
    """Return the StableHLO program of a full-size decoder on a small grid, for a GPU."""
    settings = {} if family == "sam" else FAMILIES[family]
    relative = settings | ({"early_width": 768} if "early_width" in settings else {})
    model = Sam(dataclasses.replace(WIDE, dtype=dtype, **relative))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    prompts = prompt_shapes((2,), 2, model.config.mask_size if masks else None)
    with lowering_for("NVIDIA H100 80GB HBM3"):
        traced = decode_batch.trace(model, variables, feature_shapes(model.config), prompts, path=path)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("family", ["sam", *(name for name in FAMILIES if name != "efficient_sam")])
def test_every_family_is_lowered(family: str) -> None:
    """Two blocks, the final attention, and the head."""
    assert lowered("fused", family).count(CALL) == 4


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_mask_prompts_are_lowered() -> None:
    assert lowered("fused", masks=True).count(CALL) == 4


@pytest.mark.parametrize(("path", "dtype"), [("auto", "bfloat16"), ("fused", "float32"), ("absorbed", "bfloat16")])
def test_kernels_are_taken_where_they_are_asked_for_in_bfloat16(path: str, dtype: str) -> None:
    assert CALL not in lowered(path, dtype=dtype)


def test_efficient_sam_has_none() -> None:
    assert CALL not in lowered("fused", "efficient_sam")


def test_gelu_is_exact_to_1e_7() -> None:
    x = np.linspace(-12, 12, 100_001)
    with jax.enable_x64(True):
        np.testing.assert_allclose(kernels_cuda.gelu(jnp.asarray(x)), gelu(jnp.asarray(x)), atol=3e-7)
    x = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(kernels_cuda.gelu(x), gelu(x), atol=2e-6)


@pytest.mark.parametrize("grid", [(3, 5), (8, 8)])
def test_masks_are_those_of_the_plain_modules_in_float32(grid: tuple[int, int]) -> None:
    config = dataclasses.replace(TINY, grid_size=grid, image_size=(32 * grid[0], 32 * grid[1]))
    model = Sam(config)
    variables, features = random_variables(model), random_features(model=model)
    rng = np.random.default_rng(0)
    prompts = Prompts.build(points=rng.uniform(0, 90, (3, 2, 2)), labels=np.ones((3, 2), int))
    image = written_image(model, variables, features)
    ours = decode_in_kernels(model, "cuda", True, variables, image, prompts)
    plain = jax.vmap(lambda prompts: model.apply(variables, features, prompts))(prompts)
    np.testing.assert_allclose(ours.logits, plain.logits, atol=1e-5 * float(jnp.abs(plain.logits).max()))
    np.testing.assert_allclose(ours.iou, plain.iou, atol=1e-5 * float(jnp.abs(plain.iou).max()))


@pytest.mark.parametrize(("sets", "blocks", "turns"), [(1, 64, 2), (64, 64, 16), (2, 3, 3), (1000, 64, 64), (1, 1, 1)])
def test_programs_fill_a_card(sets: int, blocks: int, turns: int) -> None:
    assert kernels_cuda.turns_of(sets, blocks) == turns
