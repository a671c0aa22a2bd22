"""SAM 2's image encoder: Hiera and its neck (`sam2/modeling/backbones/hieradet.py` and `image_encoder.py`).

The first block of each stage halves the map and doubles the channels, and the decoder takes three maps. What SAM 2 does
with them once per image is done here: the projections by the mask decoder's `conv_s0` and `conv_s1`, and the embedding
of no memory.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from sam_jax.decoder.features import ImageFeatures
from sam_jax.decoder.layers import layer_norm
from sam_jax.encoders.bicubic import resize_bicubic
from sam_jax.encoders.config import HIERA_TINY, HieraConfig
from sam_jax.encoders.frame import check_frame
from sam_jax.encoders.vit import BLOCK_NORM_EPS, CHUNK_LOGITS, GeluMlp, WindowDense, merge_windows
from sam_jax.precision import precise


def max_pool(x: Float[Array, "*n a b c"]) -> Float[Array, "*n a//2 b//2 c"]:
    """Return the largest value of each 2 x 2 pixels."""
    *n, a, b, c = x.shape
    return x.reshape(*n, a // 2, 2, b // 2, 2, c).max((-4, -2))


def attend(
    query: Float[Array, "n q heads d"], key: Float[Array, "n k heads d"], value: Float[Array, "n k heads d"]
) -> Float[Array, "n q heads d"]:
    """Attend within each window, for a head and as many windows, or rows of a window, at a time as fit the caches.

    The softmax is float32 at least; its division comes after the sum over the values.
    """
    (n, q, heads, d), k = query.shape, key.shape[1]
    windows = _divisor(n, CHUNK_LOGITS // (q * k))
    rows = _divisor(q, CHUNK_LOGITS // k) if windows == 1 else q
    query, key, value = (jnp.moveaxis(x, 2, 0).reshape(-1, windows, x.shape[1], d) for x in (query, key, value))

    def attend_windows(inputs: tuple[Array, Array, Array]) -> Array:
        query, key, value = inputs
        chunks = jnp.moveaxis(query.reshape(windows, q // rows, rows, d), 1, 0)
        out = jax.lax.map(jax.checkpoint(lambda chunk: attend_rows(chunk, key, value)), chunks)
        return jnp.moveaxis(out, 0, 1).reshape(windows, q, d)

    out = jax.lax.map(attend_windows, (query, key, value))
    return jnp.moveaxis(out.reshape(heads, n, q, d), 0, 2)


def attend_rows(
    query: Float[Array, "n q d"], key: Float[Array, "n k d"], value: Float[Array, "n k d"]
) -> Float[Array, "n q d"]:
    """Attend from some tokens of each window to all of them, for one head."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("nqd,nkd->nqk", query * query.shape[-1] ** -0.5, key, preferred_element_type=dtype)
    # The largest logit cancels out of the result; its gradient could be NaN (see `sam_jax.encoders.vit`).
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    gathered = jnp.einsum("nqk,nkd->nqd", weights.astype(value.dtype), value, preferred_element_type=dtype)
    return (gathered / weights.sum(-1, keepdims=True)).astype(value.dtype)


def _divisor(number: int, most: int) -> int:
    """The largest divisor that is at most `most`, and at least 1."""
    return max(i for i in range(1, number + 1) if number % i == 0 and (i == 1 or i <= most))


class HieraBlock(nn.Module):
    """Attention within windows, and an MLP.

    The tokens that fill up windows are zeros after the norm, and are attended to, as in the official code.

    Attributes:
      width: output channels.
      heads: attention heads.
      window: height and width in tokens of the windows of the input; the whole map for global attention.
      pooling: whether the block halves the map: queries and the residual are the largest of 2 x 2.
      dtype: compute dtype; the softmax is float32 at least.
    """

    width: int
    heads: int
    window: tuple[int, int]
    pooling: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b {self.width}"]:
        """Return the tokens after the block."""
        (a, b), d = self.window, self.width // self.heads
        normed = layer_norm(BLOCK_NORM_EPS, self.dtype, name="norm_1")(x)
        if self.pooling:
            x = max_pool(nn.Dense(self.width, dtype=self.dtype, name="shortcut")(normed))
        qkv = WindowDense(3 * self.width, self.window, self.dtype, name="qkv")(normed)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        if self.pooling:
            query, a, b = max_pool(query), a // 2, b // 2
        heads = (x.reshape(len(x), -1, self.heads, d) for x in (query, key, value))
        gathered = merge_windows(attend(*heads).reshape(-1, a, b, self.width), (x.shape[0], x.shape[1]))
        x = x + nn.Dense(self.width, dtype=self.dtype, name="out")(gathered)
        normed = layer_norm(BLOCK_NORM_EPS, self.dtype, name="norm_2")(x)
        return x + GeluMlp(4 * self.width, self.dtype, name="mlp")(normed)


class Projection(nn.Module):
    """The kernel and the bias of a linear layer on pixels, in the layout of a convolution of one pixel.

    Attributes:
      inputs: input channels.
      features: output channels.
      dtype: compute dtype.
    """

    inputs: int
    features: int
    dtype: jnp.dtype

    def setup(self) -> None:
        """Make the parameters."""
        init = nn.initializers.lecun_normal()
        self.kernel = self.param("kernel", init, (1, 1, self.inputs, self.features), jnp.float32)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)

    def __call__(self, x: Float[Array, "h w c"], after: "Projection | None" = None) -> Float[Array, "h w o"]:
        """Return the mapped pixels, or what `after` makes of them: of two linear layers one, with fewer operations."""
        kernel, bias = self.kernel[0, 0], self.bias
        if after is not None:
            kernel, bias = kernel @ after.kernel[0, 0], bias @ after.kernel[0, 0] + after.bias
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel + bias[None, None]


class Hiera(nn.Module):
    """SAM 2's encoder: one normalised image to its three maps; `vmap` adds the image axis.

    Attributes:
      config: settings of the encoder.
    """

    config: HieraConfig = HIERA_TINY

    def setup(self) -> None:
        """Make the parts."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        zeros = nn.initializers.zeros
        width, side = config.widths[0], config.window_sizes[0]
        self.patch_embedding = nn.Conv(width, (7, 7), strides=4, padding=3, dtype=dtype)
        self.position_embedding = self.param("position_embedding", zeros, (*config.position_size, width), jnp.float32)
        self.window_position = self.param("window_position", zeros, (side, side, width), jnp.float32)
        self.block = [
            HieraBlock(config.widths[stage], config.heads[stage], config.window(i), config.is_pooling(i), dtype)
            for i, stage in enumerate(config.stages)
        ]
        self.level = [Projection(width, config.out_width, dtype) for width in config.widths]
        self.no_memory = self.param("no_memory", zeros, (config.out_width,), jnp.float32)
        self.stride_8 = Projection(config.out_width, config.out_width // 4, dtype)
        self.stride_4 = Projection(config.out_width, config.out_width // 8, dtype)

    @precise
    def __call__(self, image: Float[Array, "height width 3"]) -> ImageFeatures:
        """Return the maps that SAM 2's decoder takes.

        Args:
          image: RGB, stretched to `config.image_size` and normalised.

        Raises:
          ValueError: for an image of another size.
        """
        check_frame(image, self.config.image_size)
        *finer, third, last = self.stage_maps(image)
        top = self.level[3](last)
        coarse = self.level[2](third) + jnp.repeat(jnp.repeat(top, 2, axis=0), 2, axis=1)
        return ImageFeatures(
            embedding=coarse + self.no_memory.astype(coarse.dtype)[None, None],
            stride_8=self.level[1](finer[1], after=self.stride_8),
            stride_4=self.level[0](finer[0], after=self.stride_4),
        )

    def stage_maps(self, image: Float[Array, "height width 3"]) -> list[Float[Array, "_h _w _c"]]:
        """Return the map after each stage, the finest first."""
        stages = self.config.stages
        x = self.patch_embedding(image)
        h, w, _ = x.shape
        repeats = h // len(self.window_position), w // len(self.window_position), 1
        position = resize_bicubic(self.position_embedding, (h, w)) + jnp.tile(self.window_position, repeats)
        x, maps = x + position.astype(x.dtype), []
        for i, block in enumerate(self.block):
            x = block(x)
            if i + 1 == len(stages) or stages[i + 1] != stages[i]:
                maps.append(x)
        return maps
