"""PyTorch image encoders with random weights, and their state dicts as our variables."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from parity.official import modeling

from sam_jax.convert.encoders import encoder_from_torch
from sam_jax.convert.tables.rules import Naming
from sam_jax.convert.tables.settings import OWN
from sam_jax.encoders.config import TinyViTConfig, ViTConfig, config_to_dict

Tensors = Mapping[str, Any]


def converted(config: Any, tensors: Tensors) -> Any:
    """Return our variables made of a state dict; it must be all of this encoder's."""
    return encoder_from_torch(tensors, settings={OWN: {"encoder": config_to_dict(config)}}).variables


def vit_variables(config: ViTConfig, encoder: torch.nn.Module, naming: Naming = "meta") -> Any:
    """Return our variables with the weights of an official encoder, or of Hugging Face's `SamVisionModel`."""
    prefix = {"meta": "image_encoder.", "hf": ""}[naming]
    return converted(config, {prefix + name: tensor.numpy() for name, tensor in encoder.state_dict().items()})


def tiny_vit_variables(config: TinyViTConfig, encoder: torch.nn.Module) -> Any:
    """Return our variables with the weights of a TinyViT that has MobileSAM's names."""
    return converted(config, {f"image_encoder.{name}": tensor.numpy() for name, tensor in encoder.state_dict().items()})


def official_vit(config: ViTConfig) -> torch.nn.Module:
    """Return the official encoder, built as in `build_sam.py`; where its map is not square, with positions for that."""
    encoder = modeling.ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.width,
        img_size=config.image_size[0],
        mlp_ratio=config.mlp_width / config.width,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=config.heads,
        patch_size=config.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.global_blocks,
        window_size=config.window_size,
        out_chans=config.out_width,
    )
    height, width = config.grid_size
    if height != width:
        encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, height, width, config.width))
        for i in config.global_blocks:
            offsets = torch.zeros(2 * width - 1, config.width // config.heads)
            encoder.blocks[i].attn.rel_pos_w = torch.nn.Parameter(offsets)
    return encoder.eval().requires_grad_(False)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every tensor with noise: kernels with unit gain, norm scales around 1, running variances positive."""
    generator = np.random.default_rng(seed)
    for name, tensor in module.state_dict().items():
        values = generator.standard_normal(tuple(tensor.shape), np.float32)
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.ndim > 1 and name.endswith("weight"):
            values /= np.sqrt(np.prod(tensor.shape[1:]))
        elif name.endswith("weight"):
            values = 1 + values / 4
        elif name.endswith("running_var"):
            values = np.exp(values / 4)
        else:
            values *= 0.3
        tensor.copy_(torch.tensor(values))
    return module
