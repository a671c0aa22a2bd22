"""The settings of a checkpoint's decoder: from its shapes and its family, or from a Hugging Face `config.json`; and
those that we write beside the weights ourselves.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_jax.config import SamConfig
from sam_jax.convert.tables.families import FAMILIES, Family
from sam_jax.convert.tables.rules import Naming, Shape, measure, slots
from sam_jax.encoders.config import EncoderConfig, config_from_dict, config_to_dict
from sam_jax.errors import CheckpointError, describe

OWN = "sam_jax"
"""The key of our own settings, in the metadata of a `.safetensors` file and among those of an opened checkpoint."""

_MOST = 1024
"""More layers or masks than any decoder has. A hostile file must not get to ask for a table that fills the memory."""

_SAM3_VIDEO = "sam3_video"
"""A model of two, of which one is a tracker with its own section of `config.json`."""
_OF_NAMES = ("sam", "sam_hq", "sam2", "sam2_video")
_OF_SETTINGS = {
    **dict.fromkeys(("sam3_tracker", "sam3_tracker_video", _SAM3_VIDEO), "sam3_tracker"),
    **dict.fromkeys(("edgetam", "edgetam_video"), "edge_tam"),
}
"""The families of models whose tensors may have just the names of `Sam2Model`."""
_MODEL_TYPES = (*_OF_NAMES, *_OF_SETTINGS)
"""Hugging Face's models whose decoder can be converted, as `config.json` calls them."""

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
    parts = _parts(shapes, family)
    found = measure(shapes, slots(_config(**depths, **parts | {"early_width": int(parts["hq"])}), naming))
    width = found.get("c", usual.width)
    return _config(
        **depths,
        **parts,
        **frame(family, text),
        heads=family.heads,
        width=width,
        mlp_width=found.get("f", usual.mlp_width),
        attention_downsample=width // max(found.get("d", width // usual.attention_downsample), 1),
        multimask_outputs=found.get("m", usual.num_masks) - 1,
        mask_channels=found.get("k", usual.mask_channels),
        iou_head_width=found.get("i", usual.iou_head_width),
    )


_EARLY = ("mask_decoder.compress_vit_feat.0.weight", "mask_decoder.compress_vit_conv1.weight")


def _parts(shapes: Mapping[str, Shape], family: Family) -> dict[str, Any]:
    """Return which parts a decoder has beside SAM's, as some tensor of each tells."""

    def has(*modules: str) -> bool:
        return any(name.startswith(tuple(f"mask_decoder.{module}." for module in modules)) for name in shapes)

    object_score = has("obj_score_token", "pred_obj_score_head")
    early = [shapes[name] for name in _EARLY if name in shapes]
    efficient_sam = has("final_output_upscaling_layers")
    return {
        "efficient_sam": efficient_sam,
        "hq": has("hf_token", "hq_token", "hf_mlp", "hq_mask_mlp"),
        "early_width": early[0][0] if early and early[0] else 0,
        "high_resolution": has("conv_s0", "conv_s1"),
        **_of_sam2(object_score, linear_iou=family.linear_iou),
        **({"postprocessing": "efficient_sam"} if efficient_sam else {}),
    }


def _of_sam2(object_score: bool, linear_iou: bool = False) -> dict[str, Any]:
    """Return the settings that go with an object score: its decoders are used in SAM 2's way."""
    return {
        "object_score": object_score,
        "iou_sigmoid": object_score and not linear_iou,
        "pad_boxes": object_score,
        "dynamic_multimask": object_score,
        "postprocessing": "sam2" if object_score else "sam",
    }


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
      CheckpointError: if it is not of a model with SAM's decoder, or of one that computes something else.
    """
    kind = settings.get("model_type")
    if kind == _SAM3_VIDEO:
        settings = {"model_type": "sam3_tracker_video"} | dict(section_of(settings, "tracker_config"))
        kind = settings["model_type"]
    if kind not in _MODEL_TYPES:
        raise CheckpointError(
            f"config.json has model_type {describe(kind)}. One of {', '.join(_MODEL_TYPES)} is wanted."
        )
    sam2 = kind not in ("sam", "sam_hq")
    prompt, decoder, vision = (
        section_of(settings, name) for name in ("prompt_encoder_config", "mask_decoder_config", "vision_config")
    )
    demand(prompt, hidden_act="gelu", layer_norm_eps=1e-6, num_point_embeddings=4)
    demand(decoder, hidden_act="gelu" if sam2 else "relu")
    size, patch = (1008, 14) if kind.startswith("sam3") else (1024, 16)
    size, patch = positive(prompt, "image_size", size), positive(prompt, "patch_size", patch)
    parts: dict[str, Any] = {}
    if sam2:
        demand(
            decoder,
            dynamic_multimask_via_stability=True,
            dynamic_multimask_stability_delta=0.05,
            dynamic_multimask_stability_thresh=0.98,
        )
        parts = _of_sam2(True) | {"high_resolution": True}
    else:
        seen = positive(vision, "image_size", 1024) // positive(vision, "patch_size", 16)
        if size // patch != seen:
            raise CheckpointError(
                f"config.json's prompt encoder has a grid of {size // patch}, its vision encoder one of {seen}."
            )
    if kind == "sam_hq":
        parts = {"hq": True, "early_width": positive(decoder, "vit_dim", 768)}
    return _config(
        image_size=(size, size),
        grid_size=(size // patch, size // patch),
        mask_channels=positive(prompt, "mask_input_channels", 16),
        block_norm_eps=1e-5 if sam2 else decoder.get("layer_norm_eps", 1e-6),
        final_norm_eps=1e-5,
        **parts,
        **{field: decoder[key] for key, field in _HF_DECODER.items() if key in decoder},
    )


def own_metadata(config: SamConfig, encoder: EncoderConfig | None = None, family: str | None = None) -> dict[str, str]:
    """Return what to write into the metadata of a `.safetensors` file, so that reading it needs no guess.

    Args:
      config: settings of the decoder in the file.
      encoder: settings of the image encoder, where the file has one.
      family: a name of `FAMILIES`; any other is not kept.
    """
    settings = {
        "family": family if family in FAMILIES else None,
        "decoder": dataclasses.asdict(config),
        "encoder": config_to_dict(encoder) if encoder else None,
    }
    return {OWN: json.dumps(settings)}


def family_of(settings: Mapping[str, Any] | None) -> Family | None:
    """Return the family that our own settings name, or a `config.json`; None where they do not.

    Raises:
      CheckpointError: if they are damaged.
    """
    kind = (settings or {}).get("model_type")
    if isinstance(kind, str) and kind in _OF_SETTINGS:
        return FAMILIES[_OF_SETTINGS[kind]]
    name = _own(settings).get("family")
    if name is None:
        return None
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(f"The settings beside the weights name a family {describe(name)}, which is not known.")
    return FAMILIES[name]


def own_config(settings: Mapping[str, Any]) -> SamConfig:
    """Return the decoder's settings of our own ones.

    Raises:
      CheckpointError: if they are damaged.
    """
    values = _own(settings).get("decoder")
    if not isinstance(values, Mapping):
        raise CheckpointError(f"The decoder's settings beside the weights must be an object, got {describe(values)}.")
    return _config(**values)


def own_encoder_config(settings: Mapping[str, Any] | None) -> EncoderConfig | None:
    """Return the image encoder's settings of our own ones; None where they do not have it, or are none of ours.

    Raises:
      CheckpointError: if they are damaged.
    """
    values = _own(settings).get("encoder")
    if values is None:
        return None
    try:
        return config_from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"The settings beside the weights are damaged: {error}") from error


def _own(settings: Mapping[str, Any] | None) -> Mapping[str, Any]:
    own = (settings or {}).get(OWN, {})
    if not isinstance(own, Mapping):
        raise CheckpointError(f"The settings beside the weights must be an object, got {describe(own)}.")
    return own


def _count(names: Iterable[str], prefix: str) -> int:
    """Return how many of `prefix0.`, `prefix1.`, ... there are without a gap."""
    indices = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return next(n for n in range(len(indices) + 1) if str(n) not in indices)


def _config(**values: Any) -> SamConfig:
    try:
        config = SamConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"No decoder can have this checkpoint's sizes: {error}") from error
    if (most := max(config.depth, config.iou_head_depth, config.num_masks)) > _MOST:
        raise CheckpointError(f"The checkpoint asks for {most} layers or masks; at most {_MOST} are supported.")
    return config


def section_of(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a `config.json`; an empty one where it is not there."""
    section = settings.get(name) or {}
    if not isinstance(section, Mapping):
        raise CheckpointError(f"config.json's {name} must be an object, got {describe(section)}.")
    return section


def demand(section: Mapping[str, Any], **values: Any) -> None:
    """Refuse a section of a `config.json` in which an entry has another value than these."""
    for key, value in values.items():
        if section.get(key, value) != value:
            raise CheckpointError(f"config.json has {key} {describe(section[key])} where only {value!r} is supported.")


def positive(section: Mapping[str, Any], key: str, usual: int) -> int:
    """Return an entry of a `config.json` that must be a positive integer."""
    value = section.get(key, usual)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json's {key} must be a positive integer, got {describe(value)}.")
    return value
