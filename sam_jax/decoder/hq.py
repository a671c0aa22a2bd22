"""SAM-HQ's head: one more token, and a mask of its own from finer features.

The official class is `MaskDecoderHQ` in `segment_anything_hq/modeling/mask_decoder_hq.py`; that of HQ-SAM 2
has no early feature.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.layers import CONV_NORM_EPS, ConvTranspose2x2, Mlp, gelu, layer_norm
from sam_jax.prompts import AnyArray


class HqUpscaling(nn.Module):
    """Two transposed convolutions, without an activation after the last one.

    Attributes:
      widths: channels after each.
      dtype: compute dtype.
    """

    widths: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[AnyArray, "h w e"]) -> Float[Array, "4*h 4*w {self.widths[1]}"]:
        """Return the upscaled map."""
        x = ConvTranspose2x2(self.widths[0], self.dtype, name="conv_0")(jnp.asarray(x))
        x = gelu(layer_norm(CONV_NORM_EPS, self.dtype, "norm")(x))
        return ConvTranspose2x2(self.widths[1], self.dtype, name="conv_1")(x)


class MaskFeatures(nn.Module):
    """Two convolutions of 3 x 3 pixels on the upscaled image tokens.

    Attributes:
      width: channels of the input and of the output; there are twice as many in between.
      dtype: compute dtype.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "y x {self.width}"]) -> Float[Array, "y x {self.width}"]:
        """Return the HQ mask's features of one prompt set."""
        x = nn.Conv(2 * self.width, (3, 3), dtype=self.dtype, name="conv_0")(x)
        x = gelu(layer_norm(CONV_NORM_EPS, self.dtype, "norm")(x))
        return nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv_1")(x)


class HqHead(nn.Module):
    """The HQ token, and what makes its mask.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    def setup(self) -> None:
        """Make the parts."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        width = config.width
        self.token = self.param("token", nn.initializers.normal(1.0), (width,), jnp.float32)
        self.hypernetwork = Mlp((width, width, width // 8), dtype)
        self.mask_feature = MaskFeatures(width // 8, dtype)
        if config.early_width:
            self.of_embedding = HqUpscaling((width // 4, width // 8), dtype)
            self.of_early = HqUpscaling((width, width // 8), dtype)

    def image_features(
        self, embedding: Float[Array, "h w c"], early: Float[AnyArray, "h w e"] | None
    ) -> Float[Array, "4*h 4*w c//8"] | None:
        """Return the image's part of the HQ mask's features; None where it has none."""
        if early is None:
            return None
        return self.of_embedding(embedding) + self.of_early(early)

    def mask_features(
        self, upscaled: Float[Array, "my mx d"], of_image: Float[Array, "my mx d"] | None
    ) -> Float[Array, "my mx d"]:
        """Return the HQ mask's features of one prompt set.

        Args:
          upscaled: the image tokens after the decoder's upscaling.
          of_image: what `image_features` returned.
        """
        features = self.mask_feature(upscaled)
        return features if of_image is None else features + of_image
