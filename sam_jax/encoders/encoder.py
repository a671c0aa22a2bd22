"""The kinds of image encoder, behind one interface: `encoder.apply(variables, frame)` is what the decoder takes."""

from typing import Any

from sam_jax.encoders.config import EncoderConfig, kind_of
from sam_jax.encoders.efficient_vit import EfficientViT
from sam_jax.encoders.hiera import Hiera
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.encoders.vit import ImageEncoder

Encoder = ImageEncoder | TinyViT | EfficientViT | Hiera

MODULES: dict[str, Any] = {"vit": ImageEncoder, "tiny_vit": TinyViT, "efficient_vit": EfficientViT, "hiera": Hiera}
"""The module of each kind of encoder."""


def make_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of these settings."""
    return MODULES[kind_of(config)](config)
