"""The parts put together: one image embedding and one prompt set in, masks and scores out.

The official file is `segment_anything/modeling/sam.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.mask_decoder import MaskDecoder
from sam_jax.decoder.prompt_encoder import PromptEncoder
from sam_jax.prompts import AnyArray, Prompts

Variables = dict[str, Any]
"""`{"params": trainable arrays, "constants": the Gaussian matrix}`: nested dicts of arrays."""


@struct.dataclass
class MaskPrediction:
    """All masks and scores; `*batch` is that of the prompts.

    Attributes:
      logits: low-res logits of every mask, mask 0 first; a mask is where they are above 0.
      iou: predicted IoU of every mask. A linear output: it can exceed 1 or be negative. Minus infinity where `valid` is
        False.
      valid: False for a prompt set that exists only as padding.
    """

    logits: Float[AnyArray, "*batch m my mx"]
    iou: Float[AnyArray, "*batch m"]
    valid: Bool[AnyArray, "*batch"]


class Sam(nn.Module):
    """SAM's promptable decoder for one image and one prompt set; `vmap` adds the axes, as `predict_masks` does.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig = SamConfig()

    def setup(self) -> None:
        """Make the parts."""
        self.prompt_encoder = PromptEncoder(self.config)
        self.mask_decoder = MaskDecoder(self.config)

    def __call__(self, embedding: Float[AnyArray, "h w c"], prompts: Prompts) -> MaskPrediction:
        """Return the masks of one prompt set on one image.

        Args:
          embedding: the image encoder's output, channels last.
          prompts: a single prompt set (no batch axes).
        """
        encoder = self.prompt_encoder
        h, w, _ = embedding.shape
        grid_size = h, w
        dense = encoder.dense(grid_size, prompts.masks, prompts.has_mask)
        logits, iou = self.mask_decoder(
            jnp.asarray(embedding, self.config.dtype) + dense,
            encoder.positions(grid_size),
            encoder.sparse(prompts.coordinates, prompts.labels),
            prompts.token_mask,
        )
        return MaskPrediction(logits, jnp.where(prompts.valid, iou, -jnp.inf), prompts.valid)

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return random variables, as `flax.linen.Module.init`; example inputs may be left out."""
        if not args and not kwargs:
            args = self.example_inputs()
        # As one program, which leaves out the forward pass: half the time.
        return jax.jit(functools.partial(super().init, **kwargs))(rngs, *args)

    @nn.nowrap
    def example_inputs(self) -> tuple[Array, Prompts]:
        """Return a zero embedding and one click, of the shapes that the model takes."""
        embedding = jnp.zeros((*self.config.grid_size, self.config.width), jnp.float32)
        prompts = Prompts(
            coordinates=jnp.zeros((2, 2), jnp.float32),
            labels=jnp.array([1, -1], jnp.int32),
            masks=None,
            has_mask=None,
            valid=jnp.array(True),
        )
        return embedding, prompts
