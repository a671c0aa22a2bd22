"""Low-rank additions to attention projections (LoRA, arXiv 2106.09685), as a change of the parameters alone.

A kernel `W` becomes `W + A B` before the model sees it, so that no module knows of it, and merging them for good is the
same function. The additions lie beside the kernel in the flat parameters: `.../query/lora_a`, `.../query/lora_b`. The
usual factor `alpha / rank` is left to the learning rate.
"""

import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

PROJECTIONS = r".*(attention|token_to_image|image_to_token|block_\d+)/(query|key|value|qkv|out)/kernel"
"""Paths of the attention projections of decoder and image encoder; those of SAM 2's encoder lie in its blocks."""


def add_lora(
    key: Key[Array, ""], params: Mapping[str, Array], rank: int, pattern: str = PROJECTIONS
) -> dict[str, Array]:
    """Return flat parameters with an addition of the given rank to each kernel that the pattern matches.

    `A` is random and `B` is zero, so that the model is at first what it was.

    Args:
      key: of the random numbers.
      params: flat parameters.
      rank: columns of `A`, rows of `B`.
      pattern: of the whole paths of the kernels: [in, out], or [1, 1, in, out] of a convolution of one pixel.

    Raises:
      ValueError: if no kernel matches, or one that does is no matrix, or the rank is not positive.
    """
    paths = sorted(path for path in params if re.fullmatch(pattern, path))
    odd = [path for path in paths if params[path].ndim < 2 or math.prod(params[path].shape[:-2]) != 1]
    if not paths or odd or rank < 1:
        raise ValueError(
            f"Low-rank additions need a positive rank and kernels that are matrices; got rank {rank} and the pattern "
            f"{pattern!r}, which matches {len(paths)} kernels, {', '.join(odd) or 'none'} of another shape."
        )
    added = dict(params)
    for number, path in enumerate(paths):
        inputs, outputs = params[path].shape[-2:]
        normal = jax.random.normal(jax.random.fold_in(key, number), (inputs, rank))
        added[_beside(path, "a")] = normal / jnp.sqrt(inputs)
        added[_beside(path, "b")] = jnp.zeros((rank, outputs))
    return added


def merge_lora(params: Mapping[str, Array]) -> dict[str, Array]:
    """Return flat parameters with every addition added to its kernel, and gone."""
    merged = {path: x for path, x in params.items() if not path.endswith(("/lora_a", "/lora_b"))}
    for path in merged:
        if path.endswith("/kernel") and _beside(path, "a") in params:
            a, b = params[_beside(path, "a")], params[_beside(path, "b")]
            merged[path] = merged[path] + jnp.matmul(a, b, precision="highest").reshape(merged[path].shape)
    return merged


def _beside(path: str, which: str) -> str:
    return f"{path.removesuffix('kernel')}lora_{which}"
