"""EfficientViT-SAM's image encoder, behind the same interface as SAM's.

The official code is `EfficientViTSamImageEncoder` in `efficientvit/models/efficientvit/sam.py` of
`mit-han-lab/efficientvit`, with `EfficientViTLargeBackbone` in `backbone.py` and the blocks in `models/nn/ops.py`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from sam_jax.decoder.layers import PatchConv, layer_norm
from sam_jax.encoders.bicubic import resize_bicubic
from sam_jax.encoders.config import EFFICIENT_VIT_L0, EfficientViTConfig
from sam_jax.encoders.convolution import ConvNorm, depthwise
from sam_jax.encoders.frame import check_frame
from sam_jax.precision import precise

NORM_EPS = 1e-6
"""Epsilon of every norm, batch norms too (`efficientvit/sam_model_zoo.py`; PyTorch's default would be 1e-5)."""

ATTENTION_EPS = 1e-15
"""What is added to the sum of a token's attention weights (`LiteMLA`), so that weights of zero make zeros."""


def tanh_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return the approximate GELU, which this encoder alone has: SAM's is exact."""
    return jax.nn.gelu(x, approximate=True)


def linear_attention(qkv: Float[Array, "n heads 3 d"]) -> Float[Array, "n heads d"]:
    """Attend from each token to all, where the weight of a key is relu(query) . relu(key), and no softmax.

    The keys and values are summed up before any query is asked, so that the work grows with the tokens, not with their
    square. The official code forms the weights where there are no more than 32 tokens: the same sum in another order.

    Args:
      qkv: query, key and value of each token and head. All is done in float32 at least.
    """
    query, key, value = jnp.moveaxis(qkv.astype(jnp.promote_types(qkv.dtype, jnp.float32)), 2, 0)
    query, key = nn.relu(query), nn.relu(key)
    weights = jnp.einsum("nhd,hd->nh", query, key.sum(0))
    gathered = jnp.einsum("nhd,hde->nhe", query, jnp.einsum("nhd,nhe->hde", key, value))
    return (gathered / (weights[..., None] + ATTENTION_EPS)).astype(qkv.dtype)


class DepthwiseConv(nn.Module):
    """A convolution of each channel with its own kernel.

    Attributes:
      side: height and width of the kernel, whose centre is on the pixel.
      dtype: compute dtype.
      stride: step in pixels.
      use_bias: whether a bias is added.
    """

    side: int
    dtype: jnp.dtype
    stride: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b c"]:
        """Return the convolved map."""
        c = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.side, self.side, 1, c), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = depthwise(x, kernel, self.stride)
        return y if bias is None else y + bias[None, None]


class GroupDense(nn.Module):
    """A linear layer on each group of neighbouring channels (a 1x1 `nn.Conv2d` with groups, without bias).

    Attributes:
      width: channels of a group.
      dtype: compute dtype.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return the mapped channels."""
        (h, w, c), d = x.shape, self.width
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, d, c), jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return jnp.einsum("hwgi,igo->hwgo", x.reshape(h, w, c // d, d), kernel.reshape(d, c // d, d)).reshape(h, w, c)


class TwoConvs(nn.Module):
    """A 3x3 convolution and a second one: `FusedMBConv` where that is 1x1, `ResBlock` where it is 3x3, too.

    Attributes:
      features: output channels.
      hidden: channels between.
      dtype: compute dtype.
      side: height and width of the second kernel.
      stride: step of the first one in pixels.
    """

    features: int
    hidden: int
    dtype: jnp.dtype
    side: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b {self.features}"]:
        """Return the convolved map."""
        first = ConvNorm(self.hidden, self.dtype, side=3, stride=self.stride, epsilon=NORM_EPS, name="conv_1")
        return ConvNorm(self.features, self.dtype, side=self.side, epsilon=NORM_EPS, name="conv_2")(tanh_gelu(first(x)))


class InvertedBottleneck(nn.Module):
    """Wider, a depthwise convolution, narrower again, with a norm at the end alone (`MBConv` with `fewer_norm`).

    Attributes:
      features: output channels.
      hidden: channels between.
      dtype: compute dtype.
      stride: step of the depthwise convolution in pixels.
    """

    features: int
    hidden: int
    dtype: jnp.dtype
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b {self.features}"]:
        """Return the convolved map."""
        x = tanh_gelu(PatchConv(self.hidden, 1, self.dtype, name="conv_1")(x))
        x = tanh_gelu(DepthwiseConv(3, self.dtype, self.stride, name="conv_2")(x))
        return ConvNorm(self.features, self.dtype, epsilon=NORM_EPS, name="conv_3")(x)


class Attention(nn.Module):
    """Linear attention of single pixels and, in as many heads again, of their neighbourhoods (`LiteMLA`).

    Attributes:
      head_width: channels of a head; each has its query, key and value side by side.
      side: side in pixels of a neighbourhood.
      dtype: compute dtype; that of the attention itself is float32 at least.
    """

    head_width: int
    side: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return what each pixel gathers from the map."""
        (h, w, c), d = x.shape, self.head_width
        qkv = PatchConv(3 * c, 1, self.dtype, use_bias=False, name="qkv")(x)
        around = DepthwiseConv(self.side, self.dtype, use_bias=False, name="around_1")(qkv)
        around = GroupDense(d, self.dtype, name="around_2")(around)
        heads = jnp.concatenate([qkv, around], -1).reshape(h * w, 2 * c // d, 3, d)
        out = linear_attention(heads).reshape(h, w, 2 * c)
        return ConvNorm(c, self.dtype, epsilon=NORM_EPS, name="out")(out)


class AttentionBlock(nn.Module):
    """Attention, then an inverted bottleneck, each added to its input (`EfficientViTBlock`).

    Attributes:
      config: settings of the encoder.
      hidden: channels inside the bottleneck.
    """

    config: EfficientViTConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return the map after the block."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        x = x + Attention(config.head_width, config.neighbourhood, dtype, name="attention")(x)
        return x + InvertedBottleneck(x.shape[-1], self.hidden, dtype, name="bottleneck")(x)


class Stem(nn.Module):
    """Stage 0: a convolution that halves the height and width, and blocks of two 3x3 convolutions.

    Attributes:
      config: settings of the encoder.
    """

    config: EfficientViTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "height width 3"]) -> Float[Array, "h w c"]:
        """Return the map after the stage."""
        width, dtype = self.config.widths[0], jnp.dtype(self.config.dtype)
        x = tanh_gelu(ConvNorm(width, dtype, side=3, stride=2, epsilon=NORM_EPS, name="block_0")(x))
        for block in range(1, self.config.depths[0] + 1):
            x = x + TwoConvs(width, width, dtype, side=3, name=f"block_{block}")(x)
        return x


class Stage(nn.Module):
    """A block that halves the height and width, and the stage's other blocks.

    Attributes:
      config: settings of the encoder.
      index: which stage, from 1.
    """

    config: EfficientViTConfig
    index: int

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "a b d"]:
        """Return the map after the stage."""
        config, i, dtype = self.config, self.index, jnp.dtype(self.config.dtype)
        width, hidden, kind = config.widths[i], config.hidden(i), config.kinds[i - 1]
        conv = TwoConvs if kind == "fused" else InvertedBottleneck
        x = conv(width, config.halving_hidden(i), dtype, stride=2, name="block_0")(x)
        for block in range(1, config.depths[i] + 1):
            name = f"block_{block}"
            if kind == "attention":
                x = AttentionBlock(config, hidden, name=name)(x)
            else:
                x = x + conv(width, hidden, dtype, name=name)(x)
        return x


class Neck(nn.Module):
    """The last three stages' maps at one size, summed up, and more blocks (`SamNeck`, and the norm after it).

    Attributes:
      config: settings of the encoder.
    """

    config: EfficientViTConfig

    @nn.compact
    def __call__(self, maps: list[Float[Array, "_ _ _"]]) -> Float[Array, "h w {self.config.out_width}"]:
        """Return the image embedding.

        Args:
          maps: the last stage's first.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width, at_least = config.neck_width, jnp.promote_types(dtype, jnp.float32)
        inputs = [ConvNorm(width, dtype, epsilon=NORM_EPS, name=f"input_{i}")(each) for i, each in enumerate(maps)]
        resized = (resize_bicubic(each.astype(at_least), config.grid_size) for each in inputs)
        x = functools.reduce(jnp.add, resized).astype(dtype)
        for block in range(config.neck_depth):
            x = x + TwoConvs(width, config.neck_ratio * width, dtype, name=f"block_{block}")(x)
        return layer_norm(NORM_EPS, dtype, name="norm")(PatchConv(config.out_width, 1, dtype, name="out")(x))


class EfficientViT(nn.Module):
    """EfficientViT-SAM's encoder: a normalised and padded image to an embedding; `vmap` adds the image axis.

    Attributes:
      config: settings of the encoder.
    """

    config: EfficientViTConfig = EFFICIENT_VIT_L0

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        self.stage = [Stage(config, i) if i else Stem(config) for i in range(len(config.widths))]
        self.neck = Neck(config)

    @precise
    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, "h w c"]:
        """Return the image embedding.

        Args:
          image: RGB, normalised, then padded with zeros at the bottom and the right to `config.image_size`.

        Raises:
          ValueError: for an image of another size.
        """
        check_frame(image, self.config.image_size)
        maps = [image]
        for stage in self.stage:
            maps.append(stage(maps[-1]))
        return self.neck(maps[:-4:-1])
