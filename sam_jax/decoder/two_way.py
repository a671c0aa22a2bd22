"""The two-way transformer: tokens and image attend to each other (`segment_anything/modeling/transformer.py`)."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.attention import Attention
from sam_jax.decoder.layers import Mlp, gelu, layer_norm


class TwoWayBlock(nn.Module):
    """Token self-attention, token-to-image attention, MLP, image-to-token attention; a norm after each.

    Attributes:
      config: settings of the decoder.
      first: whether this is block 0, whose self-attention has no positional part.
    """

    config: SamConfig
    first: bool

    def setup(self) -> None:
        """Make the parts."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        cross = config.attention_downsample
        self.self_attention = Attention(config.width, config.heads, 1, dtype)
        self.token_to_image = Attention(config.width, config.heads, cross, dtype)
        self.image_to_token = Attention(config.width, config.heads, cross, dtype)
        self.mlp = Mlp((config.mlp_width, config.width), dtype, gelu if config.efficient_sam else nn.relu)
        self.norm_self_attention = layer_norm(config.block_norm_eps, dtype)
        self.norm_token_to_image = layer_norm(config.block_norm_eps, dtype)
        self.norm_mlp = layer_norm(config.block_norm_eps, dtype)
        self.norm_image_to_token = layer_norm(config.block_norm_eps, dtype)

    def __call__(
        self,
        tokens: Float[Array, "n c"],
        image: Float[Array, "hw c"],
        token_position: Float[Array, "n c"],
        image_position: Float[Array, "hw c"],
        token_mask: Bool[Array, " n"],
    ) -> tuple[Float[Array, "n c"], Float[Array, "hw c"]]:
        """Return the tokens and the image tokens after the block.

        Args:
          tokens: output and prompt tokens.
          image: image tokens, row by row.
          token_position: positional part of the tokens (the initial tokens).
          image_position: positional part of the image tokens.
          token_mask: False for empty slots, which nothing attends to.
        """
        tokens = self.among_tokens(tokens, token_position, token_mask)
        key = image + image_position
        tokens = self.norm_token_to_image(tokens + self.token_to_image(tokens + token_position, key, image))
        tokens = self.norm_mlp(tokens + self.mlp(tokens))
        gathered = self.image_to_token(key, tokens + token_position, tokens, token_mask)
        return tokens, self.norm_image_to_token(image + gathered)

    def among_tokens(
        self, tokens: Float[Array, "n c"], position: Float[Array, "n c"], mask: Bool[Array, " n"]
    ) -> Float[Array, "n c"]:
        """Return the tokens after the self-attention and its norm; the arguments are as above.

        In block 0 it replaces SAM's tokens. EfficientSAM's stay, and from block 1 on keep their positional part
        (`efficient_sam/two_way_transformer.py`).
        """
        if self.config.efficient_sam:
            tokens = tokens if self.first else tokens + position
            tokens = tokens + self.self_attention(tokens, tokens, tokens, mask)
        elif self.first:
            tokens = self.self_attention(tokens, tokens, tokens, mask)
        else:
            query = tokens + position
            tokens = tokens + self.self_attention(query, query, tokens, mask)
        return self.norm_self_attention(tokens)


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then a last attention from the tokens to the image.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "n c"],
        image: Float[Array, "hw c"],
        image_position: Float[Array, "hw c"],
        token_mask: Bool[Array, " n"],
    ) -> tuple[Float[Array, "n c"], Float[Array, "hw c"]]:
        """Return the tokens and the image tokens after all blocks.

        Args:
          tokens: output and prompt tokens; as they come in, they are their own positional part.
          image: image tokens, row by row, dense prompt added.
          image_position: positional part of the image tokens.
          token_mask: False for empty slots.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        token_position = tokens
        for i in range(config.depth):
            block = TwoWayBlock(config, first=i == 0, name=f"block_{i}")
            tokens, image = block(tokens, image, token_position, image_position, token_mask)
        attention = Attention(
            config.width, config.heads, config.attention_downsample, dtype, name="final_token_to_image"
        )
        tokens = tokens + attention(tokens + token_position, image + image_position, image)
        return layer_norm(config.final_norm_eps, dtype, name="final_norm")(tokens), image
