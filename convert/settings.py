"""The settings of a checkpoint's decoder: from its shapes and its family, or from a Hugging Face `config.json`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_jax.config import SamConfig
from sam_jax.convert.families import NOT_YET, Family
from sam_jax.convert.rules import Naming, Shape, measure, slots
from sam_jax.errors import CheckpointError, describe

_MOST = 1024
"""More layers or masks than any decoder has. A hostile file must not get to ask for a table that fills the memory."""

_LATER_MODEL_TYPES = ("sam_hq", "sam2", "sam3", "edgetam")

_HF_DECODER = {
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "mlp_dim": "mlp_width",
    "num_hidden_layers": "depth",
    "attention_downsample_rate": "attention_downsample",
    "num_multimask_outputs": "multimask_outputs",
    "iou_head_hidden_dim": "iou_head_width",
    "iou_head_depth": "iou_head_depth",
}
"""Hugging Face's names of what `SamConfig` has, with the same defaults."""


def config_from_shapes(shapes: Mapping[str, Shape], naming: Naming, family: Family, text: str) -> SamConfig:
    """Return the settings of a decoder: sizes from its shapes, the rest from its family.

    Args:
      shapes: plain name -> shape.
      naming: whose names they are.
      family: what to take from where shapes say nothing.
      text: the file's listing. A ViT encoder in it knows the grid better than the family.

    Raises:
      CheckpointError: if no decoder has such sizes.
    """
    usual = SamConfig()
    blocks = _count(shapes, "mask_decoder.transformer.layers.")
    iou_layers = _count(shapes, "mask_decoder.iou_prediction_head.layers.") + (2 if naming == "hf" else 0)
    # More than usual is another architecture, but less is a loss: no other tensor tells of the last layers.
    depths = {"depth": max(blocks, usual.depth), "iou_head_depth": max(iou_layers, usual.iou_head_depth)}
    found = measure(shapes, slots(_config(**depths), naming))
    width = found.get("c", usual.width)
    return _config(
        **depths,
        **frame(family, text),
        heads=family.heads,
        width=width,
        mlp_width=found.get("f", usual.mlp_width),
        attention_downsample=width // max(found.get("d", width // usual.attention_downsample), 1),
        multimask_outputs=found.get("m", usual.num_masks) - 1,
        mask_channels=found.get("k", usual.mask_channels),
        iou_head_width=found.get("i", usual.iou_head_width),
    )


def frame(family: Family, text: str) -> dict[str, Any]:
    """Return the settings that no decoder's weights tell, of a family and a listing that may hold a ViT encoder."""
    sizes = {"image_size": family.image_size, "grid_size": family.grid_size}
    grid = re.search(r"\b(image|vision)_encoder\.pos_embed \(1, (\d+), (\d+), \d+\)$", text, re.MULTILINE)
    patch = re.search(r"_encoder\.patch_embed\.proj(ection)?\.weight \(\d+, \d+, (\d+), (\d+)\)$", text, re.MULTILINE)
    if grid and patch:
        (h, w), (patch_h, patch_w) = ((int(found[2]), int(found[3])) for found in (grid, patch))
        sizes = {"image_size": (h * patch_h, w * patch_w), "grid_size": (h, w)}
    return {"block_norm_eps": family.block_norm_eps, "final_norm_eps": family.final_norm_eps, **sizes}


def config_from_hf(settings: Mapping[str, Any]) -> SamConfig:
    """Return the settings that a Hugging Face `config.json` describes.

    Raises:
      CheckpointError: if it is not of a `SamModel`, or of one that computes something else.
    """
    kind = settings.get("model_type")
    if kind != "sam":
        later = isinstance(kind, str) and kind.startswith(_LATER_MODEL_TYPES)
        raise CheckpointError(f"config.json has model_type {describe(kind)}. {NOT_YET if later else 'sam is wanted.'}")
    prompt, decoder, vision = (
        _section(settings, name) for name in ("prompt_encoder_config", "mask_decoder_config", "vision_config")
    )
    _demand(prompt, hidden_act="gelu", layer_norm_eps=1e-6, num_point_embeddings=4)
    _demand(decoder, hidden_act="relu")
    grid = _length(prompt, "image_size", 1024) // _length(prompt, "patch_size", 16)
    if grid != (seen := _length(vision, "image_size", 1024) // _length(vision, "patch_size", 16)):
        raise CheckpointError(f"config.json's prompt encoder has a grid of {grid}, its vision encoder one of {seen}.")
    return _config(
        image_size=(_length(prompt, "image_size", 1024),) * 2,
        grid_size=(grid, grid),
        mask_channels=_length(prompt, "mask_input_channels", 16),
        block_norm_eps=decoder.get("layer_norm_eps", 1e-6),
        final_norm_eps=1e-5,
        **{field: decoder[key] for key, field in _HF_DECODER.items() if key in decoder},
    )


def _count(names: Iterable[str], prefix: str) -> int:
    """Return how many of `prefix0.`, `prefix1.`, ... there are without a gap."""
    indices = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return next(n for n in range(len(indices) + 1) if str(n) not in indices)


def _config(**values: Any) -> SamConfig:
    try:
        config = SamConfig(**values)
    except ValueError as error:
        raise CheckpointError(f"No decoder can have this checkpoint's sizes: {error}") from error
    if (most := max(config.depth, config.iou_head_depth, config.num_masks)) > _MOST:
        raise CheckpointError(f"The checkpoint asks for {most} layers or masks; at most {_MOST} are supported.")
    return config


def _section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = settings.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json's {name} must be an object, got {describe(section)}.")
    return section


def _demand(section: Mapping[str, Any], **values: Any) -> None:
    for key, value in values.items():
        if section.get(key, value) != value:
            raise CheckpointError(f"config.json has {key} {describe(section[key])} where only {value!r} is supported.")


def _length(section: Mapping[str, Any], key: str, usual: int) -> int:
    value = section.get(key, usual)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json's {key} must be a positive integer, got {describe(value)}.")
    return value
