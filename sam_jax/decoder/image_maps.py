"""What SAM 2 makes of its encoder's maps, once per image (`SAM2Base.forward_image` in `sam2/modeling/sam2_base.py`)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features, ImageFeatures
from sam_jax.precision import precise
from sam_jax.prompts import AnyArray


class FixedProjection(nn.Module):
    """A linear layer on pixels that is not trained: its weights are constants.

    Attributes:
      features: output channels.
      dtype: compute dtype.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[AnyArray, "y x c"]) -> Float[Array, "y x {self.features}"]:
        """Return the mapped pixels."""
        kernel = self.variable("constants", "kernel", jnp.zeros, (1, 1, x.shape[-1], self.features), jnp.float32).value
        bias = self.variable("constants", "bias", jnp.zeros, (self.features,), jnp.float32).value
        return jnp.asarray(x, self.dtype) @ kernel[0, 0].astype(self.dtype) + bias.astype(self.dtype)[None, None]


class ImageMaps(nn.Module):
    """From the maps of an image encoder that is not in the house to those that the decoder takes.

    `sam_jax.load_encoder`'s encoders have done this already. The weights are here because a decoder's file has them.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    def setup(self) -> None:
        """Make the parts."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.no_memory = self.variable("constants", "no_memory", jnp.zeros, (config.width,), jnp.float32)
        if config.high_resolution:
            self.stride_8 = FixedProjection(config.width // 4, dtype)
            self.stride_4 = FixedProjection(config.width // 8, dtype)

    @precise
    def __call__(
        self,
        embedding: Float[AnyArray, "h w c"],
        stride_8: Float[AnyArray, "2*h 2*w c"] | None = None,
        stride_4: Float[AnyArray, "4*h 4*w c"] | None = None,
    ) -> Features:
        """Return what the decoder takes of an image.

        Args:
          embedding: the neck's coarsest map.
          stride_8: its map at twice the resolution, where the decoder takes finer maps.
          stride_4: its map at four times the resolution.

        Raises:
          ValueError: if one of them is missing.
        """
        embedding = jnp.asarray(embedding, self.config.dtype) + self.no_memory.value.astype(self.config.dtype)
        if not self.config.high_resolution:
            return embedding
        if stride_8 is None or stride_4 is None:
            raise ValueError("The decoder takes finer maps: image_maps needs the neck's maps of all three resolutions.")
        return ImageFeatures(embedding, stride_8=self.stride_8(stride_8), stride_4=self.stride_4(stride_4))
