"""What all image encoders have in common: the frame they take, and what they return of it."""

from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from sam_jax.errors import describe


class FrameEncoder(nn.Module):
    """One normalised and padded image to one image embedding; `vmap` adds the image axis.

    Attributes:
      config: settings of the encoder.
    """

    config: Any  # of the kind that the encoder takes

    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, "h w c"]:
        """Return the image embedding.

        Args:
          image: RGB, normalised, then padded with zeros at the bottom and the right to `config.image_size`.

        Raises:
          ValueError: for an image of another size.
        """
        return self.encode_with_early_feature(image)[0]

    def encode_with_early_feature(
        self, image: Float[Array, "height width 3"]
    ) -> tuple[Float[Array, "h w c"], Float[Array, "h w d"]]:
        """Return the image embedding, and the early feature, which SAM-HQ's decoder takes, too; see `__call__`."""
        if image.shape != (*self.config.image_size, 3):
            raise ValueError(f"The image must have the shape {(*self.config.image_size, 3)}, got {describe(image)}.")
        return self.encode(image)

    def encode(self, image: Float[Array, "height width 3"]) -> tuple[Float[Array, "h w c"], Float[Array, "h w d"]]:
        """Return both for an image of the right size."""
        raise NotImplementedError
