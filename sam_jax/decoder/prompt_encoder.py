"""Prompts to embeddings: sparse for tokens, dense for the mask (`segment_anything/modeling/prompt_encoder.py`).

EfficientSAM's rules are in `efficient_sam/efficient_sam.py` and `efficient_sam_decoder.py`.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from sam_jax.config import SamConfig
from sam_jax.decoder.layers import CONV_NORM_EPS, PatchConv, gelu, layer_norm
from sam_jax.decoder.positional import fourier_features, grid_features
from sam_jax.prompts import BOX_TOP_LEFT, EMPTY, NOT_A_POINT, AnyArray, Prompts

SLOTS = 6
"""The tokens that every prompt set of EfficientSAM has."""


class MaskDownscaling(nn.Module):
    """Three convolutions that bring a mask prompt to the grid and to the embedding's channels.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    @nn.compact
    def __call__(self, mask: Float[AnyArray, "my mx"]) -> Float[Array, "my//4 mx//4 c"]:
        """Return the dense embedding of a mask of logits."""
        config = self.config
        dtype = jnp.dtype(config.dtype)

        x = PatchConv(config.mask_channels // 4, 2, dtype, name="conv_0")(jnp.asarray(mask)[..., None])
        x = gelu(layer_norm(CONV_NORM_EPS, dtype, "norm_0")(x))
        x = PatchConv(config.mask_channels, 2, dtype, name="conv_1")(x)
        x = gelu(layer_norm(CONV_NORM_EPS, dtype, "norm_1")(x))
        return PatchConv(config.width, 1, dtype, name="conv_2")(x)


class PromptEncoder(nn.Module):
    """Embeds the tokens and the mask of one prompt set, and the positions of the grid.

    Attributes:
      config: settings of the decoder.
    """

    config: SamConfig

    def setup(self) -> None:
        """Make the parts."""
        width = self.config.width
        normal = nn.initializers.normal(1.0)
        labels = 3 if self.config.efficient_sam else 4  # EfficientSAM has none for background clicks
        self.label_embedding = self.param("label_embedding", normal, (labels, width), jnp.float32)
        self.not_a_point_embedding = self.param("not_a_point_embedding", normal, (width,), jnp.float32)
        if not self.config.efficient_sam:
            self.no_mask_embedding = self.param("no_mask_embedding", normal, (width,), jnp.float32)
            self.mask_downscaling = MaskDownscaling(self.config)
        self.gaussian_matrix = self.variable(
            "constants", "gaussian_matrix", lambda: normal(self.make_rng("params"), (2, width // 2), jnp.float32)
        )

    def tokens(self, prompts: Prompts) -> tuple[Float[Array, "n c"], Bool[Array, " n"]]:
        """Return the embeddings of a prompt set's tokens, and False for those that are empty slots.

        Where the decoder has the "not a point" token after boxes, too, there is one more slot. EfficientSAM has six.
        """
        coordinates, labels = jnp.asarray(prompts.coordinates), jnp.asarray(prompts.labels)
        if self.config.efficient_sam:
            coordinates, labels = six_slots(coordinates, labels)
        elif self.config.pad_boxes:
            is_box = (labels >= BOX_TOP_LEFT).any()  # clicks alone have the token already
            labels = jnp.append(labels, jnp.where(is_box, NOT_A_POINT, EMPTY).astype(labels.dtype))
            coordinates = jnp.pad(coordinates, ((0, 1), (0, 0)))
        return self.sparse(coordinates, labels), labels != EMPTY

    def sparse(self, coordinates: Float[AnyArray, "n 2"], labels: Int[AnyArray, " n"]) -> Float[Array, "n c"]:
        """Return the embeddings of tokens.

        Args:
          coordinates: (x, y) in pixels of the input frame.
          labels: what each token is; see `sam_jax.prompts`. An empty slot gets values that nothing reads.
        """
        height, width = self.config.image_size
        fractions = (jnp.asarray(coordinates, jnp.float32) + 0.5) / np.array([[width, height]], np.float32)
        position = fourier_features(fractions, self.gaussian_matrix.value)
        nothing = jnp.zeros((4 - len(self.label_embedding), self.config.width), jnp.float32)
        table = jnp.concatenate([self.not_a_point_embedding[None], nothing, self.label_embedding])
        # What is no point has no place; EfficientSAM keeps it.
        is_place = (labels > (EMPTY if self.config.efficient_sam else NOT_A_POINT))[:, None]
        embedding = table[jnp.maximum(labels, NOT_A_POINT) - NOT_A_POINT]
        return (jnp.where(is_place, position, 0) + embedding).astype(self.config.dtype)

    def dense(
        self, grid_size: tuple[int, int], mask: Float[AnyArray, "my mx"] | None, has_mask: Bool[AnyArray, ""] | None
    ) -> Float[Array, "h w c"]:
        """Return what is added to the image embedding: the mask's embedding, or that of having no mask.

        Args:
          grid_size: height and width of the embedding.
          mask: logits at 4 times the grid, or None where no prompt set has a mask.
          has_mask: whether this prompt set's mask counts.

        Raises:
          ValueError: for a mask where the decoder is EfficientSAM's, which takes none: nothing is added there.
        """
        if self.config.efficient_sam:
            if mask is not None:
                raise ValueError("EfficientSAM takes no mask prompts, only clicks and boxes.")
            return jnp.zeros((*grid_size, self.config.width), self.config.dtype)
        absent = jnp.broadcast_to(self.no_mask_embedding.astype(self.config.dtype), (*grid_size, self.config.width))
        if mask is None or has_mask is None:
            if self.is_initializing():
                self.mask_downscaling(jnp.zeros((4 * grid_size[0], 4 * grid_size[1]), jnp.float32))
            return absent
        return jnp.where(has_mask, self.mask_downscaling(mask), absent)

    def positions(self, grid_size: tuple[int, int]) -> Float[Array, "h w c"]:
        """Return the positional part of an image embedding of the given height and width."""
        return grid_features(grid_size, self.gaussian_matrix.value).astype(self.config.dtype)


def six_slots(
    coordinates: Float[Array, "n 2"], labels: Int[Array, " n"]
) -> tuple[Float[Array, "6 2"], Int[Array, " 6"]]:
    """Return the six tokens that EfficientSAM makes of a prompt set's.

    The first six clicks and corners, then places at (-1, -1) that are no points, which are attended to: the model was
    trained so. The "not a point" token that `Prompts.build` puts after clicks without a box is not one of them. A
    negative coordinate is -1.

    Args:
      coordinates: (x, y) in pixels of the input frame.
      labels: what each token is.
    """
    coordinates = jnp.pad(coordinates, ((0, SLOTS), (0, 0)))
    labels = jnp.pad(labels, (0, SLOTS), constant_values=EMPTY)
    with_box = (labels >= BOX_TOP_LEFT).any()
    built = len(labels) - 1 - jnp.argmax((labels == NOT_A_POINT)[::-1])  # the last one
    is_built = (jnp.arange(len(labels)) == built) & (labels == NOT_A_POINT) & ~with_box
    given = (labels != EMPTY) & ~is_built
    order = jnp.argsort(~given, stable=True)[:SLOTS]
    coordinates = jnp.where(given[:, None] & (coordinates >= 0), coordinates, -1)
    return coordinates[order], jnp.where(given, labels, NOT_A_POINT)[order]
