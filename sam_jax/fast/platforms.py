"""What is another sum, or another order, on a CPU than elsewhere."""

from collections.abc import Callable
from typing import Any

from jax import lax


def on_cpu(function: Callable[..., Any], otherwise: Callable[..., Any], *inputs: Any) -> Any:
    """Return what `function` makes of the inputs in a program for a CPU, and what `otherwise` does in one for another
    device.

    That is decided where a program is lowered, not where it is traced: it may be made on one machine for another, and
    for several kinds of device. Each program has only its own.
    """
    return lax.platform_dependent(*inputs, cpu=function, default=otherwise)
