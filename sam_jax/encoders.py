"""The kinds of image encoder, behind one interface: `encoder.apply(variables, frame)` is the image embedding."""

from sam_jax.encoder_config import EncoderConfig, TinyViTConfig
from sam_jax.image_encoder import ImageEncoder
from sam_jax.tiny_vit import TinyViT

Encoder = ImageEncoder | TinyViT


def make_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of these settings."""
    return TinyViT(config) if isinstance(config, TinyViTConfig) else ImageEncoder(config)
