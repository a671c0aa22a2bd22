import numpy as np
import pytest

from sam_jax.convert.tables import layouts
from sam_jax.convert.tables.layouts import Leaf

LEAVES = [
    pytest.param(leaf, id=f"{name}{leaf.torch}")
    for name in ("DENSE", "CONV", "CONV_TRANSPOSE", "NORM", "EMBEDDING", "RAW")
    for leaf in getattr(layouts, name).leaves
]


def tensor(leaf: Leaf) -> np.ndarray:
    """Every element another number, every axis another length, unless Flax has no such axis."""
    lengths = [5 + i if axis in leaf.flax_axes else 1 for i, axis in enumerate(leaf.torch_axes)]
    return np.arange(np.prod(lengths), dtype=np.float32).reshape(lengths)


@pytest.mark.parametrize("leaf", LEAVES)
def test_the_way_to_flax_and_back_is_the_identity(leaf):
    there = tensor(leaf)
    back = leaf.to_torch(leaf.to_flax(there))
    assert back.shape == there.shape
    np.testing.assert_array_equal(back, there)


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_axis_goes_where_its_letter_says(leaf):
    there = tensor(leaf)
    expected = np.einsum(f"{leaf.torch_axes}->{leaf.flax_axes}", there)
    np.testing.assert_array_equal(leaf.to_flax(there), expected)
    assert leaf.flax_shape(there.shape) == expected.shape


@pytest.mark.parametrize("leaf", LEAVES)
def test_results_are_contiguous_copies(leaf):
    there = tensor(leaf)
    here = leaf.to_flax(there)
    back = leaf.to_torch(here)
    assert here.flags.c_contiguous
    assert back.flags.c_contiguous
    assert not np.shares_memory(here, there)
    assert not np.shares_memory(back, here)


@pytest.mark.parametrize(
    ("layout", "torch_element", "flax_element"),
    [
        (layouts.DENSE, "weight[out, in]", "kernel[in, out]"),
        (layouts.CONV, "weight[out, in, y, x]", "kernel[y, x, in, out]"),
        (layouts.CONV_TRANSPOSE, "weight[in, out, y, x]", "kernel[y, x, out, in]"),
    ],
    ids=["dense", "conv", "conv_transpose"],
)
def test_kernels_element_by_element(layout, torch_element, flax_element):
    weight = tensor(layout.leaves[0])
    kernel = layout.leaves[0].to_flax(weight)
    names = torch_element.removeprefix("weight[").removesuffix("]").split(", ")
    order = flax_element.removeprefix("kernel[").removesuffix("]").split(", ")
    for index in np.ndindex(weight.shape):
        at = dict(zip(names, index, strict=True))
        assert kernel[tuple(at[name] for name in order)] == weight[index]


def test_an_embedding_of_two_rows_is_no_vector():
    with pytest.raises(ValueError, match="size not equal to one"):
        layouts.EMBEDDING.leaves[0].to_flax(np.zeros((2, 4)))
