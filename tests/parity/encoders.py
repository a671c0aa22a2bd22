"""PyTorch image encoders with random weights, and their state dicts as our variables."""

import itertools
import string
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from flax import traverse_util
from parity.official import modeling

from sam_jax.convert.encoder_rules import (
    TINY_VIT_INDICES,
    TINY_VIT_ROWS,
    VIT_INDICES,
    VIT_ROWS,
    tiny_vit_sizes,
    vit_sizes,
)
from sam_jax.convert.rules import Naming, Row
from sam_jax.image_encoder import ViTConfig
from sam_jax.tiny_vit import TinyViTConfig

Tensors = Mapping[str, Any]


def converted(
    rows: Sequence[Row], indices: Any, sizes: Mapping[str, int], config: Any, tensors: Tensors, naming: Naming
):
    """Return our variables made of a state dict by the rows. Every tensor must be used, and have the row's shape."""
    leaves, left = {}, dict(tensors)
    for row in rows:
        fields = [field for _, field, _, _ in string.Formatter().parse(row.meta) if field]
        symbols = dict(zip(row.layout.axes, row.size.split(), strict=True))
        for values in itertools.product(*(indices[field](config) for field in fields)):
            chosen = dict(zip(fields, values, strict=True))
            name = row.name(naming).format(**{field: getattr(value, naming) for field, value in chosen.items()})
            path = row.flax.format(**{field: value.flax for field, value in chosen.items()})
            for leaf in row.layout.leaves:
                tensor = left.pop(name + leaf.torch)
                expected = (symbols[axis] for axis in leaf.torch_axes)
                assert tensor.shape == tuple(sizes.get(symbol) or int(symbol) for symbol in expected), name
                leaves[path + leaf.flax] = leaf.to_flax(tensor)
    assert not left
    return traverse_util.unflatten_dict(leaves, sep="/")


def vit_variables(config: ViTConfig, encoder: torch.nn.Module, naming: Naming = "meta") -> Any:
    """Return our variables with the weights of an official encoder, or of Hugging Face's `SamVisionModel`."""
    prefix = {"meta": "image_encoder.", "hf": ""}[naming]
    tensors = {prefix + name: tensor.numpy() for name, tensor in encoder.state_dict().items()}
    return converted(VIT_ROWS, VIT_INDICES, vit_sizes(config), config, tensors, naming)


def tiny_vit_variables(config: TinyViTConfig, encoder: torch.nn.Module) -> Any:
    """Return our variables with the weights of a TinyViT that has MobileSAM's names."""
    tensors = {
        f"image_encoder.{name}": tensor.numpy()
        for name, tensor in encoder.state_dict().items()
        if not name.startswith(("norm_head.", "head.")) and not name.endswith(".num_batches_tracked")
    }
    return converted(TINY_VIT_ROWS, TINY_VIT_INDICES, tiny_vit_sizes(config), config, tensors, "meta")


def official_vit(config: ViTConfig) -> torch.nn.Module:
    """Return the official encoder, built as in `build_sam.py`; where its map is not square, with positions for that."""
    encoder = modeling.ImageEncoderViT(
        depth=config.depth,
        embed_dim=config.width,
        img_size=config.image_size[0],
        mlp_ratio=config.mlp_ratio,
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
