"""How the tensors of one module lie in PyTorch and in Flax: their names, the order of their axes, and the way between.

Axes are letters: `o i h w` for output, input, height and width, `c` for channels, `n` for rows.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a module. Both directions are a permutation of axes: no number changes.

    Attributes:
      torch: what follows the module's name in a state dict, such as `.weight`.
      flax: what follows the module's path in the Flax tree, such as `/kernel`.
      torch_axes: one letter per axis of the PyTorch tensor.
      flax_axes: the same letters in Flax's order. A letter left out is an axis of length one.
    """

    torch: str
    flax: str
    torch_axes: str
    flax_axes: str

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Return a contiguous copy of a PyTorch tensor in Flax's layout."""
        dropped = tuple(i for i, axis in enumerate(self.torch_axes) if axis not in self.flax_axes)
        return np.array(array.squeeze(dropped).transpose(self._order()), order="C")

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Return a contiguous copy of a Flax leaf in PyTorch's layout: the inverse of `to_flax`."""
        added = tuple(i for i, axis in enumerate(self.torch_axes) if axis not in self.flax_axes)
        return np.array(np.expand_dims(array.transpose(np.argsort(self._order())), added), order="C")

    def flax_shape(self, torch_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in Flax of a tensor that has `torch_shape` in PyTorch."""
        return tuple(torch_shape[self.torch_axes.index(axis)] for axis in self.flax_axes)

    def _order(self) -> list[int]:
        kept = [axis for axis in self.torch_axes if axis in self.flax_axes]
        return [kept.index(axis) for axis in self.flax_axes]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tensors of one kind of module. The first one has every axis that the others have."""

    leaves: tuple[Leaf, ...]

    @property
    def axes(self) -> str:
        """Letters of the module's axes, in the order of its first PyTorch tensor."""
        return self.leaves[0].torch_axes


DENSE = Layout((Leaf(".weight", "/kernel", "oi", "io"), Leaf(".bias", "/bias", "o", "o")))
"""`nn.Linear` and `nn.Dense`."""

CONV = Layout((Leaf(".weight", "/kernel", "oihw", "hwio"), Leaf(".bias", "/bias", "o", "o")))
"""`nn.Conv2d` and `nn.Conv`."""

CONV_TRANSPOSE = Layout((Leaf(".weight", "/kernel", "iohw", "hwoi"), Leaf(".bias", "/bias", "o", "o")))
"""`nn.ConvTranspose2d` and `nn.ConvTranspose(transpose_kernel=True)`, which needs no flip of the kernel."""

NORM = Layout((Leaf(".weight", "/scale", "c", "c"), Leaf(".bias", "/bias", "c", "c")))
"""`nn.LayerNorm`, SAM's `LayerNorm2d`, and `nn.LayerNorm`."""

EMBEDDING = Layout((Leaf(".weight", "", "nc", "c"),))
"""An `nn.Embedding` of one row, and the vector that it is."""

RAW = Layout((Leaf("", "", "nc", "nc"),))
"""A matrix that is the same in both. The row names the tensor, not a module."""

SEQUENCE = Layout((Leaf("", "", "bnc", "nc"),))
"""A matrix that PyTorch gives an axis of length one for the image. The row names the tensor, not a module."""

MAP_VECTOR = Layout((Leaf("", "", "hwc", "c"),))
"""A vector for every pixel of a map. The row names the tensor, not a module."""
