"""From tokens and image to masks and scores (`segment_anything/modeling/mask_decoder.py`).

SAM 2's decoder is this one with more flags (`sam2/modeling/sam/mask_decoder.py`), SAM-HQ's has one token and one head
more (`segment_anything_hq/modeling/mask_decoder_hq.py`). EfficientSAM's has another activation and another norm
(`efficient_sam/efficient_sam_decoder.py`).
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features, maps_of
from sam_jax.decoder.hq import HqHead
from sam_jax.decoder.layers import CONV_NORM_EPS, ConvTranspose2x2, Mlp, gelu, layer_norm
from sam_jax.decoder.two_way import TwoWayTransformer
from sam_jax.prompts import AnyArray

GROUP_NORM_EPS = 1e-5
"""Epsilon of EfficientSAM's norm between the transposed convolutions (PyTorch's default)."""


class Heads(NamedTuple):
    """What the heads make of the output tokens.

    Attributes:
      weights: what the channels of the upscaled image are multiplied with for each mask.
      iou: predicted IoU of each mask.
      object_score: how sure it is that the object is there, as a logit; None where the decoder has no such head.
      hq: what the channels of the HQ mask's features are multiplied with; None where there is no HQ mask.
    """

    weights: Float[Array, "*p m d"]
    iou: Float[Array, "*p m"]
    object_score: Float[Array, "*p"] | None
    hq: Float[Array, "*p d"] | None


class DecoderOutput(NamedTuple):
    """What the mask decoder makes of one prompt set; as in `MaskPrediction`."""

    logits: Float[Array, "m my mx"]
    iou: Float[Array, " m"]
    object_score: Float[Array, ""] | None
    hq: Float[Array, "my mx"] | None


class Upscaling(nn.Module):
    """Two transposed convolutions: 4 times the grid, an eighth of the channels.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "h w c"],
        stride_8: Float[AnyArray, "2*h 2*w c//4"] | None = None,
        stride_4: Float[AnyArray, "4*h 4*w c//8"] | None = None,
    ) -> Float[Array, "4*h 4*w c//8"]:
        """Return the upscaled image tokens.

        Args:
          image: image tokens.
          stride_8: what is added to the first convolution, before the norm.
          stride_4: what is added to the second one, before the GELU.
        """
        width, dtype = self.config.width, jnp.dtype(self.config.dtype)
        if self.config.efficient_sam:
            norm = layer_norm(GROUP_NORM_EPS, dtype, "norm", axes=(-3, -2, -1))  # `nn.GroupNorm` with one group
        else:
            norm = layer_norm(CONV_NORM_EPS, dtype, "norm")
        x = ConvTranspose2x2(width // 4, dtype, name="conv_0")(image)
        x = gelu(norm(x if stride_8 is None else x + jnp.asarray(stride_8, dtype)))
        x = ConvTranspose2x2(width // 8, dtype, name="conv_1")(x)
        return gelu(x if stride_4 is None else x + jnp.asarray(stride_4, dtype))


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
        if config.object_score:
            self.object_token = self.param("object_token", normal, (config.width,), jnp.float32)
            self.object_head = Mlp((config.width, config.width, 1), dtype)
        self.iou_token = self.param("iou_token", normal, (config.width,), jnp.float32)
        self.mask_tokens = self.param("mask_tokens", normal, (config.num_masks, config.width), jnp.float32)
        self.two_way = TwoWayTransformer(config)
        self.upscaling = Upscaling(config)
        per_mask = nn.vmap(Mlp, variable_axes={"params": 0}, split_rngs={"params": True})
        activation = gelu if config.efficient_sam else nn.relu
        self.hypernetworks = per_mask((config.width, config.width, config.width // 8), dtype, activation)
        hidden = (config.iou_head_width,) * (config.iou_head_depth - 1)
        self.iou_head = Mlp((*hidden, config.num_masks), dtype, activation)
        if config.hq:
            self.hq = HqHead(config)

    def output_tokens(self) -> Float[Array, "o c"]:
        """Return the tokens that stand before a prompt set's: of the object, IoU, masks, HQ mask; those that exist."""
        config = self.config
        tokens = [self.object_token[None]] if config.object_score else []
        tokens += [self.iou_token[None], self.mask_tokens]
        tokens += [self.hq.token[None]] if config.hq else []
        return jnp.concatenate(tokens).astype(config.dtype)

    def heads(self, tokens: Float[Array, "o c"]) -> Heads:
        """Return what the heads make of the output tokens after the transformer."""
        config = self.config
        result = jnp.promote_types(config.dtype, jnp.float32)
        rest = tokens[1:] if config.object_score else tokens
        iou = self.iou_head(rest[0]).astype(result)
        return Heads(
            weights=self.hypernetworks(rest[1 : 1 + config.num_masks]),
            iou=nn.sigmoid(iou) if config.iou_sigmoid else iou,
            object_score=self.object_head(tokens[0])[0].astype(result) if config.object_score else None,
            hq=self.hq.hypernetwork(rest[-1]) if config.hq else None,
        )

    def __call__(
        self,
        features: Features,
        dense: Float[Array, "h w c"],
        image_position: Float[Array, "h w c"],
        prompt_tokens: Float[Array, "n c"],
        token_mask: Bool[AnyArray, " n"],
    ) -> DecoderOutput:
        """Return the low-res logits and the score of every mask.

        Args:
          features: the image's.
          dense: dense embedding of the prompt set, added to the image embedding.
          image_position: positional part of the grid.
          prompt_tokens: sparse embeddings of the prompt set.
          token_mask: False for empty slots among the prompt tokens.
        """
        config, maps = self.config, maps_of(features)
        embedding = jnp.asarray(maps["embedding"], config.dtype)
        image = embedding + dense
        h, w, c = image.shape
        tokens = jnp.concatenate([self.output_tokens(), prompt_tokens])
        token_mask = jnp.concatenate([jnp.ones(config.num_tokens, bool), token_mask])
        tokens, image = self.two_way(tokens, image.reshape(h * w, c), image_position.reshape(h * w, c), token_mask)

        heads = self.heads(tokens[: config.num_tokens])
        upscaled = self.upscaling(image.reshape(h, w, c), maps.get("stride_8"), maps.get("stride_4"))
        result = jnp.promote_types(config.dtype, jnp.float32)
        logits = jnp.einsum("md,hwd->mhw", heads.weights, upscaled, preferred_element_type=result)
        hq = None
        if config.hq:
            hq_features = self.hq.mask_features(upscaled, self.hq.image_features(embedding, maps.get("early")))
            hq = jnp.einsum("d,hwd->hw", heads.hq, hq_features, preferred_element_type=result)
        return DecoderOutput(logits, heads.iou, heads.object_score, hq)
