"""The kinds of image encoder, behind one interface: `encoder.apply(variables, frame)` is the image embedding."""

from sam_jax.encoders.config import EfficientViTConfig, EncoderConfig, TinyViTConfig
from sam_jax.encoders.efficient_vit import EfficientViT
from sam_jax.encoders.tiny_vit import TinyViT
from sam_jax.encoders.vit import ImageEncoder

Encoder = ImageEncoder | TinyViT | EfficientViT


def make_encoder(config: EncoderConfig) -> Encoder:
    """Return the encoder of these settings."""
    if isinstance(config, TinyViTConfig):
        return TinyViT(config)
    return EfficientViT(config) if isinstance(config, EfficientViTConfig) else ImageEncoder(config)
