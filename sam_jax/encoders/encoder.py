"""The kinds of image encoder, behind one interface: `encoder.apply(variables, frame)` is the image embedding."""

from sam_jax.encoders.config import EncoderConfig, TinyViTConfig
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.encoders.vit import ImageEncoder

Encoder = ImageEncoder | TinyViT


def make_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of these settings."""
    return TinyViT(config) if isinstance(config, TinyViTConfig) else ImageEncoder(config)
