"""The parts put together: one image embedding and one prompt set in, masks and scores out.

The official file is `segment_anything/modeling/sam.py`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features, example_features, maps_of
from sam_jax.decoder.image_maps import ImageMaps
from sam_jax.decoder.mask_decoder import DecoderOutput, MaskDecoder
from sam_jax.decoder.prompt_encoder import PromptEncoder
from sam_jax.decoder.stability import stability_score
from sam_jax.precision import precise
from sam_jax.prompts import AnyArray, Prompts

Variables = dict[str, Any]
"""`{"params": trainable arrays, "constants": the Gaussian matrix}`: nested dicts of arrays."""

STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98
"""When SAM 2 takes mask 0 for stable."""


@struct.dataclass
class MaskPrediction:
    """All masks and scores; `*batch` is that of the prompts.

    Attributes:
      logits: low-res logits of every mask, mask 0 first; a mask is where they are above 0.
      iou: predicted IoU of every mask. A linear output: it can exceed 1 or be negative. Minus infinity where `valid` is
        False.
      valid: False for a prompt set that exists only as padding.
      object_score: a logit, above 0 where the object is thought to be in the image; None where the decoder has none.
      hq: low-res logits of SAM-HQ's mask, which `select_masks` adds to one of the others; None elsewhere.
      single: index of the mask for a clear prompt, where that is not always mask 0 (SAM 2); None elsewhere.
    """

    logits: Float[AnyArray, "*batch m my mx"]
    iou: Float[AnyArray, "*batch m"]
    valid: Bool[AnyArray, "*batch"]
    object_score: Float[AnyArray, "*batch"] | None = None
    hq: Float[AnyArray, "*batch my mx"] | None = None
    single: Int[AnyArray, "*batch"] | None = None


def outputs_of(prediction: MaskPrediction) -> dict[str, Any]:
    """Return the arrays of a prediction by name: masks, scores and what else the decoder has, without `valid`."""
    names = [field.name for field in dataclasses.fields(prediction) if field.name != "valid"]
    return {name: value for name in names if (value := getattr(prediction, name)) is not None}


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
        if self.config.object_score:
            self.image_maps = ImageMaps(self.config)

    @precise
    def __call__(self, features: Features, prompts: Prompts) -> MaskPrediction:
        """Return the masks of one prompt set on one image.

        Args:
          features: the image encoder's output, channels last.
          prompts: a single prompt set (no batch axes).
        """
        encoder = self.prompt_encoder
        h, w, _ = maps_of(features)["embedding"].shape
        grid_size = h, w
        if self.is_initializing() and self.config.object_score:
            self.image_maps(*self._example_levels())
        out = self.mask_decoder(
            features,
            encoder.dense(grid_size, prompts.masks, prompts.has_mask),
            encoder.positions(grid_size),
            *encoder.tokens(prompts),
        )
        return prediction_of(self.config, out, prompts.valid)

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return random variables, as `flax.linen.Module.init`; example inputs may be left out."""
        if not args and not kwargs:
            args = self.example_inputs()
        # As one program, which leaves out the forward pass: half the time.
        return jax.jit(functools.partial(super().init, **kwargs))(rngs, *args)

    @nn.nowrap
    def _example_levels(self) -> list[Array]:
        """Zeros of the shapes that `image_maps` takes."""
        (h, w), number = self.config.grid_size, 3 if self.config.high_resolution else 1
        return [jnp.zeros((h << i, w << i, self.config.width), jnp.float32) for i in range(number)]

    @nn.nowrap
    def example_inputs(self) -> tuple[Any, Prompts]:
        """Return an image of zeros and one click, of the shapes that the model takes."""
        prompts = Prompts(
            coordinates=jnp.zeros((2, 2), jnp.float32),
            labels=jnp.array([1, -1], jnp.int32),
            masks=None,
            has_mask=None,
            valid=jnp.array(True),
        )
        return example_features(self.config), prompts


def prediction_of(config: SamConfig, out: DecoderOutput, valid: Bool[AnyArray, "*batch"]) -> MaskPrediction:
    """Return the decoder's output as a prediction, which knows what is selected of it.

    Without early features, as in HQ-SAM 2, the HQ mask belongs to every mask.
    """
    logits, hq = out.logits, out.hq
    iou = jnp.where(valid[..., None], out.iou, -jnp.inf)
    single = single_mask(logits, iou) if config.dynamic_multimask else None
    if hq is not None and not config.early_width:
        logits, hq = logits + hq[..., None, :, :], None
    return MaskPrediction(logits, iou, valid, out.object_score, hq, single)


def single_mask(logits: Float[Array, "*batch m my mx"], iou: Float[Array, "*batch m"]) -> Int[Array, "*batch"]:
    """Return the index of the mask for a clear prompt: mask 0 where it is stable, else the best of the others.

    A mask is stable where its area changes by at most 2 % when its threshold moves from -0.05 to 0.05, and where it is
    empty (`_dynamic_multimask_via_stability` in `sam2/modeling/sam/mask_decoder.py`).
    """
    first = logits[..., 0, :, :]
    empty = ~(first > -STABILITY_DELTA).any((-2, -1))
    stable = empty | (stability_score(first, STABILITY_DELTA) >= STABILITY_THRESHOLD)
    best = 1 + jnp.argmax(iou[..., 1:], -1).astype(jnp.int32)
    return jnp.where(stable, 0, best)
