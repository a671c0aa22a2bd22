"""MobileSAM's image encoder: TinyViT, behind the same interface as SAM's (`mobile_sam/modeling/tiny_vit_sam.py`)."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from sam_jax.decoder.features import Features, ImageFeatures
from sam_jax.decoder.layers import gelu, layer_norm
from sam_jax.encoders.config import TINY_VIT, TinyViTConfig
from sam_jax.encoders.convolution import ConvNorm
from sam_jax.encoders.frame import check_frame
from sam_jax.encoders.vit import GeluMlp, Neck, merge_windows, split_windows
from sam_jax.precision import precise

NORM_EPS = 1e-5
"""Epsilon of the norms of tokens; that of the batch norms is the same."""


def offset_index(size: int) -> Int[np.ndarray, "{size*size} {size*size}"]:
    """Return the number of the offset between each two tokens of a window: `size` * rows apart + columns apart."""
    rows, columns = np.divmod(np.arange(size * size), size)
    return size * np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)


class ConvBlock(nn.Module):
    """Inverted bottleneck: wider, a depthwise convolution, narrower again; added to the input (`MBConv`).

    Attributes:
      hidden: channels between.
      dtype: compute dtype.
    """

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return the map after the block."""
        y = gelu(ConvNorm(self.hidden, self.dtype, name="conv_1")(x))
        y = gelu(ConvNorm(self.hidden, self.dtype, side=3, depthwise=True, name="conv_2")(y))
        return gelu(x + ConvNorm(x.shape[-1], self.dtype, name="conv_3")(y))


class Merge(nn.Module):
    """From one stage to the next: other channels, and with stride 2 half the height and width (`PatchMerging`).

    Attributes:
      width: output channels.
      stride: 1 or 2.
      dtype: compute dtype.
    """

    width: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b {self.width}"]:
        """Return the merged map."""
        x = gelu(ConvNorm(self.width, self.dtype, name="conv_1")(x))
        x = gelu(ConvNorm(self.width, self.dtype, side=3, stride=self.stride, depthwise=True, name="conv_2")(x))
        return ConvNorm(self.width, self.dtype, name="conv_3")(x)


class WindowAttention(nn.Module):
    """Norm and multi-head self-attention of the tokens of each window, with a bias for each offset between two tokens.

    Attributes:
      heads: attention heads; each has its query, key and value side by side.
      dtype: compute dtype; the softmax is float32 at least.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, windows: Float[Array, "n a a c"]) -> Float[Array, "n a a c"]:
        """Return what each token gathers from its window."""
        n, a, _, c = windows.shape
        biases = self.param("offset_bias", nn.initializers.zeros, (self.heads, a * a), jnp.float32)[:, offset_index(a)]
        x = layer_norm(NORM_EPS, self.dtype, name="norm")(windows)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(x).reshape(n, a * a, self.heads, 3, c // self.heads)
        query, key, value = jnp.moveaxis(qkv, 3, 0)
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        products = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=dtype)
        weights = nn.softmax(products * (c // self.heads) ** -0.5 + biases[None]).astype(self.dtype)
        out = jnp.einsum("nhqk,nkhd->nqhd", weights, value)
        return nn.Dense(c, dtype=self.dtype, name="out")(out.reshape(n, a, a, c))


class AttentionBlock(nn.Module):
    """Attention within windows, a depthwise convolution across them, an MLP (`TinyViTBlock`).

    The padding of the windows is zeros before the norm, which makes the norm's bias of them; it is attended to.

    Attributes:
      heads: attention heads.
      window_size: side in tokens of the windows.
      hidden: hidden channels of the MLP.
      dtype: compute dtype.
    """

    heads: int
    window_size: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return the map after the block."""
        h, w, c = x.shape
        windows = split_windows(x, (self.window_size, self.window_size))
        windows = WindowAttention(self.heads, self.dtype, name="attention")(windows)
        x = x + merge_windows(windows, (h, w))
        x = ConvNorm(c, self.dtype, side=3, depthwise=True, name="conv")(x)
        return x + GeluMlp(self.hidden, self.dtype, name="mlp")(layer_norm(NORM_EPS, self.dtype, name="mlp_norm")(x))


class Stage(nn.Module):
    """The blocks of one stage, and the merge after it.

    Attributes:
      config: settings of the encoder.
      index: which stage.
    """

    config: TinyViTConfig
    index: int

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b d"]:
        """Return the map after the stage."""
        config, i, dtype = self.config, self.index, jnp.dtype(self.config.dtype)
        hidden = config.ratio * config.widths[i]
        for block in range(config.depths[i]):
            name = f"block_{block}"
            if i == 0:
                x = ConvBlock(hidden, dtype, name=name)(x)
            else:
                x = AttentionBlock(config.heads[i - 1], config.window_sizes[i - 1], hidden, dtype, name=name)(x)
        if i < 3:
            x = Merge(config.widths[i + 1], 2 if i < 2 else 1, dtype, name="merge")(x)
        return x


class TinyViT(nn.Module):
    """MobileSAM's encoder: one normalised and padded image to one image embedding; `vmap` adds the image axis.

    Attributes:
      config: settings of the encoder.
    """

    config: TinyViTConfig = TINY_VIT

    def setup(self) -> None:
        """Make the parts."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        side = 3 if config.stem_stride == 2 else 1
        widths = config.widths[0] // 2, config.widths[0]
        self.stem = [ConvNorm(width, dtype, side=side, stride=config.stem_stride) for width in widths]
        self.stage = [Stage(config, i) for i in range(4)]
        self.neck = Neck(config.out_width, dtype)

    def __call__(self, image: Float[Array, "height width 3"]) -> Features:
        """Return the image embedding, with the early feature where the settings ask for it.

        Args:
          image: RGB, normalised, then padded with zeros at the bottom and the right to `config.image_size`.

        Raises:
          ValueError: for an image of another size.
        """
        embedding, early = self.encode_with_early_feature(image)
        return ImageFeatures(embedding, early=early) if self.config.early_feature else embedding

    @precise
    def encode_with_early_feature(
        self, image: Float[Array, "height width 3"]
    ) -> tuple[Float[Array, "h w c"], Float[Array, "h w d"]]:
        """Return the image embedding, and the output of stage 1, which SAM-HQ's decoder takes, too."""
        check_frame(image, self.config.image_size)
        x = self.stem[1](gelu(self.stem[0](image)))
        features = []
        for stage in self.stage:
            x = stage(x)
            features.append(x)
        return self.neck(x), features[1]
