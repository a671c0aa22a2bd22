"""How little a mask changes with its threshold: SAM 2's decoder chooses by it, and automatic masks are filtered by it.

The official code is `calculate_stability_score` in `segment_anything/utils/amg.py`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def stability_score(
    logits: Float[Array, "*batch height width"], offset: float = 1.0, threshold: float = 0.0
) -> Float[Array, "*batch"]:
    """Return how little a mask changes with its threshold: area(logit > threshold + offset) / area(logit > threshold -
    offset).

    A mask that is empty at both thresholds scores 0.

    Args:
      logits: masks as logits.
      offset: how far the threshold moves up and down.
      threshold: where the mask ends.
    """
    inner = (logits > threshold + offset).sum((-2, -1)).astype(jnp.float32)
    outer = (logits > threshold - offset).sum((-2, -1)).astype(jnp.float32)
    return jnp.where(outer > 0, inner / jnp.maximum(outer, 1), 0.0)
