"""What is compiled for a TPU, on a machine that has none: kernels, in programs that move few bytes."""

import dataclasses

import pytest
from accelerators import HAS_LIBTPU, bytes_moved, compiled, tpu
from random_model import FAMILIES

from sam_jax import Sam, SamConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_LIBTPU, reason='libtpu is not installed: pip install "jax[tpu]"'),
]

FEW = SamConfig(grid_size=(16, 16), image_size=(256, 256))
"""The full width, heads and depth, on a quarter of the grid's sides."""


@pytest.mark.parametrize(
    ("dtype", "sets", "given", "most"),
    [
        ("float32", 64, {}, 25),
        ("bfloat16", 64, {}, 14),
        ("bfloat16", 64, {"masks": True}, 40),
        ("bfloat16", 1, {"prepared": True}, 60),
    ],
)
def test_what_a_prompt_set_moves(dtype: str, sets: int, given: dict[str, bool], most: float) -> None:
    """Megabytes for each of so many prompt sets of one click on one image, at full size."""
    program = compiled(tpu(), Sam(SamConfig(dtype=dtype)), sets, **given).as_text()
    assert "tpu_custom_call" in program
    assert " while(" not in program
    assert bytes_moved(program) / sets / 1e6 < most


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compiled(family: str) -> None:
    """EfficientSAM, which has no kernels, too."""
    relative = FAMILIES[family] | ({"early_width": 768} if "early_width" in FAMILIES[family] else {})
    program = compiled(tpu(), Sam(dataclasses.replace(FEW, **relative)), 2).as_text()
    assert ("tpu_custom_call" in program) == (family != "efficient_sam")


def test_mask_prompts_are_compiled() -> None:
    assert "tpu_custom_call" in compiled(tpu(), Sam(FEW), 2, masks=True).as_text()


def test_a_grid_that_is_no_multiple_of_a_block_is_compiled() -> None:
    grid = dataclasses.replace(FEW, grid_size=(18, 18), image_size=(288, 288))
    assert "tpu_custom_call" in compiled(tpu(), Sam(grid), 2).as_text()
