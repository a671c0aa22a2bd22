"""From tokens and image to masks and scores (`segment_anything/modeling/mask_decoder.py`)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.layers import CONV_NORM_EPS, ConvTranspose2x2, Mlp, gelu, layer_norm
from sam_jax.decoder.two_way import TwoWayTransformer
from sam_jax.prompts import AnyArray


class Upscaling(nn.Module):
    """Two transposed convolutions: 4 times the grid, an eighth of the channels.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    @nn.compact
    def __call__(self, image: Float[Array, "h w c"]) -> Float[Array, "4*h 4*w c//8"]:
        """Return the upscaled image tokens."""
        width, dtype = self.config.width, jnp.dtype(self.config.dtype)
        x = ConvTranspose2x2(width // 4, dtype, name="conv_0")(image)
        x = gelu(layer_norm(CONV_NORM_EPS, dtype, "norm")(x))
        return gelu(ConvTranspose2x2(width // 8, dtype, name="conv_1")(x))


class MaskDecoder(nn.Module):
    """Two-way transformer over output and prompt tokens, then a mask and a score for each mask token.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        normal = nn.initializers.normal(1.0)
        self.iou_token = self.param("iou_token", normal, (config.width,), jnp.float32)
        self.mask_tokens = self.param("mask_tokens", normal, (config.num_masks, config.width), jnp.float32)
        self.two_way = TwoWayTransformer(config)
        self.upscaling = Upscaling(config)
        per_mask = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True})
        self.hypernetworks = per_mask((config.width, config.width, config.width // 8), dtype)
        hidden = (config.iou_head_width,) * (config.iou_head_depth - 1)
        self.iou_head = Mlp((*hidden, config.num_masks), dtype)

    def __call__(
        self,
        image: Float[Array, "h w c"],
        image_position: Float[Array, "h w c"],
        prompt_tokens: Float[Array, "n c"],
        token_mask: Bool[AnyArray, " n"],
    ) -> tuple[Float[Array, "m 4*h 4*w"], Float[Array, " m"]]:
        """Return low-res logits and predicted IoUs of all masks, mask 0 first.

        Args:
          image: image embedding plus dense prompt embedding.
          image_position: positional part of the grid.
          prompt_tokens: sparse embeddings of the prompt set.
          token_mask: False for empty slots among the prompt tokens.
        """
        config = self.config
        h, w, c = image.shape
        output_tokens = jnp.concatenate([self.iou_token[None], self.mask_tokens]).astype(prompt_tokens.dtype)
        tokens = jnp.concatenate([output_tokens, prompt_tokens])
        token_mask = jnp.concatenate([jnp.ones(1 + config.num_masks, bool), token_mask])
        tokens, image = self.two_way(tokens, image.reshape(h * w, c), image_position.reshape(h * w, c), token_mask)

        weights = self.hypernetworks(tokens[1 : 1 + config.num_masks])
        features = self.upscaling(image.reshape(h, w, c))
        result = jnp.promote_types(config.dtype, jnp.float32)
        logits = jnp.einsum("md,hwd->mhw", weights, features, preferred_element_type=result)
        return logits, self.iou_head(tokens[0]).astype(result)
