"""Where a set of tensors differs from the set that is wanted."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from sam_jax.convert.tables.rules import Shape

FLOATS = tuple(np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64))
"""The dtypes that weights may have."""


@runtime_checkable
class Described(Protocol):
    """A tensor as far as it is known before it is read. An array will do too."""

    @property
    def shape(self) -> Shape:
        """Length of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the elements."""
        ...


@dataclasses.dataclass(frozen=True)
class Gaps:
    """All differences at once. Each entry is a line for people.

    Attributes:
      missing: wanted and not there.
      unexpected: there and not wanted.
      misshapen: there in another shape.
      not_float: there in a dtype that weights do not have.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    not_float: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return any(dataclasses.astuple(self))

    def __str__(self) -> str:
        """All of them, grouped and counted."""
        groups = {field.name.replace("_", " "): getattr(self, field.name) for field in dataclasses.fields(self)}
        return "\n".join("\n  ".join((f"{len(lines)} {group}:", *lines)) for group, lines in groups.items() if lines)


def compare(found: Mapping[str, Described], wanted: Mapping[str, Shape], sources: Mapping[str, str]) -> Gaps:
    """Return where `found` differs from `wanted`.

    Args:
      found: name -> tensor.
      wanted: name -> shape.
      sources: name -> what to call a found tensor.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    both = [name for name in found if name in wanted]
    return Gaps(
        missing=tuple(f"{name} {shape}" for name, shape in wanted.items() if name not in found),
        unexpected=tuple(f"{sources[name]} {shape}" for name, shape in shapes.items() if name not in wanted),
        misshapen=tuple(
            f"{sources[name]}: got {shapes[name]}, wanted {wanted[name]}"
            for name in both
            if shapes[name] != wanted[name]
        ),
        not_float=tuple(f"{sources[name]}: {found[name].dtype}" for name in both if found[name].dtype not in FLOATS),
    )
