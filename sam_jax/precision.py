"""What products are multiplied in: float32 means float32 on every backend."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

Function = TypeVar("Function", bound=Callable[..., Any])


def precise(function: Function) -> Function:
    """Let a function of a model, or a method of a module, multiply in no less than its `config.dtype`.

    By default, JAX multiplies float32 with operands of bfloat16 on a TPU, and of TF32 on a GPU. With float32 and
    float64 every product traced in here asks for the highest precision, whatever `jax_default_matmul_precision` is, and
    its gradients with it. With bfloat16 it asks for nothing.
    """

    @functools.wraps(function)
    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        if jnp.dtype(model.config.dtype).itemsize < 4:
            return function(model, *args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return function(model, *args, **kwargs)

    return cast(Function, run)
