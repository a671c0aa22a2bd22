"""Attention: two pure functions, and the module that owns the projections.

The official class is `Attention` in `segment_anything/modeling/transformer.py`.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float


def attention_weights(
    query: Float[Array, "q heads d"], key: Float[Array, "k heads d"], key_mask: Bool[Array, " k"] | None = None
) -> Float[Array, "heads q k"]:
    """Return the softmax over keys of the scaled products, in at least float32.

    Args:
      query: projected queries.
      key: projected keys.
      key_mask: False where nothing may attend to the key.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("qhd,khd->hqk", query, key, preferred_element_type=dtype) * scale
    if key_mask is not None:
        logits = jnp.where(key_mask[None, None], logits, jnp.finfo(dtype).min)
    return nn.softmax(logits, axis=-1)


def attend(
    query: Float[Array, "q heads d"],
    key: Float[Array, "k heads d"],
    value: Float[Array, "k heads d"],
    key_mask: Bool[Array, " k"] | None = None,
) -> Float[Array, "q heads d"]:
    """Return for each query the mean of the values, weighted by its attention."""
    weights = attention_weights(query, key, key_mask).astype(value.dtype)
    return jnp.einsum("hqk,khd->qhd", weights, value)


class Attention(nn.Module):
    """Multi-head attention between two sequences, at `width // downsample` channels inside.

    Attributes:
      width: channels of the inputs and of the output.
      heads: attention heads; each has a contiguous slice of the inner channels.
      downsample: how many times narrower the inside is.
      dtype: compute dtype; the softmax is float32 at least.
    """

    width: int
    heads: int
    downsample: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "q c"],
        key: Float[Array, "k c"],
        value: Float[Array, "k c"],
        key_mask: Bool[Array, " k"] | None = None,
    ) -> Float[Array, "q c"]:
        """Attend from `query` to `key` and return what it gathers from `value`.

        Args:
          query: sequence that asks.
          key: sequence that is compared with.
          value: sequence that is gathered.
          key_mask: False where nothing may attend to the key.
        """
        inner = self.width // self.downsample

        def project(name: str, x: Array) -> Array:
            x = nn.Dense(inner, dtype=self.dtype, name=name)(x)
            return x.reshape(x.shape[0], self.heads, inner // self.heads)

        out = attend(project("query", query), project("key", key), project("value", value), key_mask)
        return nn.Dense(self.width, dtype=self.dtype, name="out")(out.reshape(-1, inner))
