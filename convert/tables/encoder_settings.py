"""The settings of a checkpoint's image encoder: from its names and shapes, or from a Hugging Face `config.json`."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_jax.convert.tables.encoder_rules import EFFICIENT_VIT, TINY_VIT, VIT
from sam_jax.convert.tables.families import Family
from sam_jax.convert.tables.rules import Naming, Shape, measure, slots
from sam_jax.convert.tables.settings import demand, positive, section_of
from sam_jax.encoders.config import (
    EFFICIENT_SAM_TI,
    EFFICIENT_VIT_L0,
    EFFICIENT_VIT_XL0,
    HIERA_BASE_PLUS,
    HIERA_LARGE,
    HIERA_SMALL,
    HIERA_TINY,
    EfficientViTConfig,
    EncoderConfig,
    HieraConfig,
    TinyViTConfig,
    make_config,
)
from sam_jax.errors import CheckpointError, describe

_KINDS = (
    ("vit", re.compile(r"image_encoder\.(blocks|patch_embed\.proj)\.|vision_encoder\.(layers|patch_embed)\.")),
    ("tiny_vit", re.compile(r"image_encoder\.(layers\.\d|patch_embed\.seq)\.")),
    ("efficient_vit", re.compile(r"image_encoder\.backbone\.stages\.")),
    ("hiera", re.compile(r"(image_encoder\.trunk|vision_encoder\.backbone)\.blocks\.")),
)
"""How to tell the kinds by the start of a tensor's name."""

_BLOCKS = {"meta": "image_encoder.blocks.", "hf": "vision_encoder.layers."}
_POSITIONS = {"meta": "image_encoder.pos_embed", "hf": "vision_encoder.pos_embed"}
_DEPTHS = {768: 12, 1024: 24, 1280: 32}
"""Blocks of the official ViTs by width."""

_HF_VISION = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "patch_size": "patch_size",
    "window_size": "window_size",
    "output_channels": "out_width",
}
"""Hugging Face's names of what `ViTConfig` has, with the same defaults."""


_HF_HIERA = {
    "embed_dim_per_stage": "widths",
    "blocks_per_stage": "depths",
    "num_attention_heads_per_stage": "heads",
    "window_size_per_stage": "window_sizes",
    "global_attention_blocks": "global_blocks",
    "window_positional_embedding_background_size": "position_size",
}
"""Hugging Face's names of what `HieraConfig` has, with the same defaults."""


def encoder_kind(names: Iterable[str]) -> str | None:
    """Return the kind of encoder that most of the plain names speak of; None if it is none of `sam_jax.encoders`."""
    votes = collections.Counter(kind for name in names for kind, pattern in _KINDS if pattern.match(name))
    return votes.most_common(1)[0][0] if votes else None


def vit_from_shapes(shapes: Mapping[str, Shape], naming: Naming) -> EncoderConfig:
    """Return the settings of a ViT.

    Raises:
      CheckpointError: if no ViT has such sizes; or if the windows are as large as the grid, so that which blocks are
        global cannot be told.
    """
    positions = shapes.get(_POSITIONS[naming], ())
    _, *grid, width = positions if len(positions) == 4 else (1, 0, 0, 0)
    # Less than usual is a loss: no other tensor tells of the last blocks.
    depth = max(_count(shapes, _BLOCKS[naming]), _DEPTHS.get(width, 1))
    lengths = [_lengths(shapes, f"{_BLOCKS[naming]}{block}.attn.rel_pos_") for block in range(depth)]
    window, global_blocks = _windows(lengths, grid)
    votes = zip(grid, *([(length + 1) // 2 for length in lengths[block]] for block in global_blocks), strict=True)
    h, w = ((*_by_votes(sides), 1)[0] for sides in votes)
    found = measure(shapes, slots(_config("vit", depth=depth, global_blocks=global_blocks), naming, VIT))
    width, patch = found.get("c", width), found.get("p", 16)
    return _config(
        "vit",
        width=width,
        depth=depth,
        heads=width // max(1, found.get("d", width)),
        mlp_width=found.get("f", 4 * width),
        patch_size=patch,
        window_size=window,
        global_blocks=global_blocks,
        out_width=found.get("e", 256),
        image_size=(h * patch, w * patch),
    )


def frames_of(config: EncoderConfig, family: Family) -> dict[str, Any]:
    """Return the settings of an encoder that a family tells, and no tensor: the sizes of its frames and of its grid."""
    if isinstance(config, TinyViTConfig | HieraConfig):
        return {"image_size": family.image_size}
    if isinstance(config, EfficientViTConfig):
        # The finest of the three maps that make the embedding has the size of the grid.
        image_size = tuple(2 ** (len(config.widths) - 2) * side for side in family.grid_size)
        return {"grid_size": family.grid_size, "image_size": image_size, "prompt_frame": family.image_size}
    return {}


def is_plain(names: Iterable[str]) -> bool:
    """Whether plain names are those of EfficientSAM's ViT, which has other names in its MLPs."""
    return any(re.match(r"image_encoder\.blocks\.\d+\.mlp\.fc[12]\.", name) for name in names)


def plain_vit_from_shapes(shapes: Mapping[str, Shape], family: Family) -> EncoderConfig:
    """Return the settings of EfficientSAM's ViT; the size of its images, of which no tensor tells, is the family's.

    Raises:
      CheckpointError: if no such ViT has these sizes.
    """
    # Less than usual is a loss: no other tensor tells of the last blocks.
    depth = max(_count(shapes, _BLOCKS["meta"]), EFFICIENT_SAM_TI.depth)
    usual = dataclasses.replace(EFFICIENT_SAM_TI, depth=depth, global_blocks=tuple(range(depth)))
    found = {**VIT.sizes(usual), **measure(shapes, slots(usual, "meta", VIT))}
    width = found["c"]
    return _config(
        "vit",
        width=width,
        depth=depth,
        heads=max(1, width // (usual.width // usual.heads)),
        mlp_width=found["f"],
        patch_size=found["p"],
        global_blocks=usual.global_blocks,
        out_width=found["e"],
        position_side=math.isqrt(max(found["n"], 2) - 1),
        image_size=family.image_size,
    )


def tiny_vit_from_shapes(shapes: Mapping[str, Shape], family: Family) -> EncoderConfig:
    """Return the settings of a TinyViT; the size of its images, of which no tensor tells, is the family's.

    Raises:
      CheckpointError: if no TinyViT has such sizes.
    """
    depths = tuple(max(1, _count(shapes, f"image_encoder.layers.{stage}.blocks.")) for stage in range(4))
    usual = _config("tiny_vit", depths=depths)
    measured = measure(shapes, slots(usual, "meta", TINY_VIT))
    found = {**TINY_VIT.sizes(usual), **measured}
    return _config(
        "tiny_vit",
        widths=tuple(found[f"c{stage}"] for stage in range(4)),
        depths=depths,
        # Where the one tensor that tells is lost, some number of heads that is possible.
        heads=tuple(measured.get(f"h{stage}") or math.gcd(found[f"c{stage}"], 8) for stage in (1, 2, 3)),
        window_sizes=tuple(math.isqrt(found[f"o{stage}"]) for stage in (1, 2, 3)),
        ratio=found["f0"] // max(1, found["c0"]),
        stem_stride=(found["k"] + 1) // 2,
        out_width=found["e"],
        **frames_of(usual, family),
    )


def efficient_vit_from_shapes(shapes: Mapping[str, Shape], family: Family) -> EncoderConfig:
    """Return the settings of an EfficientViT; those of which no tensor tells are the family's, as `frames_of` says.

    Raises:
      CheckpointError: if no EfficientViT has such sizes.
    """
    start = "image_encoder.backbone.stages."
    usual = EFFICIENT_VIT_XL0 if _count(shapes, start) > len(EFFICIENT_VIT_L0.widths) else EFFICIENT_VIT_L0
    stages = range(len(usual.widths))
    depths = tuple(max(0, _count(shapes, f"{start}{stage}.op_list.") - 1) for stage in stages)
    kinds = tuple(_stage_kind(shapes, f"{start}{stage}.op_list.") for stage in stages[1:])
    neck_depth = _count(shapes, "image_encoder.neck.middle.op_list.")
    usual = _config(
        "efficient_vit", widths=usual.widths, depths=depths, kinds=kinds, ratios=usual.ratios, neck_depth=neck_depth
    )
    found = {**EFFICIENT_VIT.sizes(usual), **measure(shapes, slots(usual, "meta", EFFICIENT_VIT))}
    return _config(
        "efficient_vit",
        widths=tuple(found[f"c{stage}"] for stage in stages),
        depths=depths,
        kinds=kinds,
        ratios=tuple(found[f"h{stage}"] // max(1, 4 * found[f"c{stage - 1}"]) for stage in stages[1:]),
        head_width=found["d"],
        neighbourhood=found["k"],
        neck_width=found["n"],
        neck_depth=neck_depth,
        neck_ratio=found["m"] // max(1, found["n"]),
        out_width=found["e"],
        **frames_of(usual, family),
    )


def _stage_kind(names: Iterable[str], prefix: str) -> str:
    """Return the kind of a stage of an EfficientViT; one with attention begins with an inverted bottleneck."""
    patterns = {"attention": r"\d+\.context_module\.", "inverted": r"\d+\.main\.(inverted|depth)_conv\."}
    parts = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return next((kind for kind, pattern in patterns.items() if any(re.match(pattern, part) for part in parts)), "fused")


_HIERAS = (HIERA_TINY, HIERA_SMALL, HIERA_BASE_PLUS, HIERA_LARGE)
_TRUNKS = {"meta": "image_encoder.trunk.", "hf": "vision_encoder.backbone."}


def hiera_from_shapes(shapes: Mapping[str, Shape], naming: Naming, family: Family) -> EncoderConfig:
    """Return the settings of one of SAM 2's four Hieras: heads, windows and global blocks are in no shape.

    Raises:
      CheckpointError: if it is none of these.
    """
    trunk = _TRUNKS[naming]
    patch = "patch_embed.proj.weight" if naming == "meta" else "patch_embed.projection.weight"
    width = next(iter(shapes.get(trunk + patch, ())), 0)
    blocks = _count(shapes, f"{trunk}blocks.")
    for known in _HIERAS:
        if (known.widths[0], sum(known.depths)) == (width, blocks):
            return dataclasses.replace(known, **frames_of(known, family))
    sizes = ", ".join(f"{known.widths[0]} and {sum(known.depths)}" for known in _HIERAS)
    raise CheckpointError(
        f"The Hiera has width {width} and {blocks} blocks; SAM 2's have {sizes}. No shape tells the windows of "
        "another: a Hugging Face folder with its config.json does."
    )


def hiera_from_hf(settings: Mapping[str, Any]) -> EncoderConfig:
    """Return the Hiera that the `config.json` of a `Sam2Model` or a `Sam2VideoModel` describes.

    Raises:
      CheckpointError: if it computes something else.
    """
    vision = section_of(settings, "vision_config")
    trunk = section_of(vision, "backbone_config")
    demand(vision, fpn_kernel_size=1, fpn_stride=1, fpn_padding=0, fpn_top_down_levels=[2, 3], num_feature_levels=3)
    demand(trunk, hidden_act="gelu", layer_norm_eps=1e-6, num_channels=3, mlp_ratio=4, num_query_pool_stages=3)
    demand(trunk, query_stride=[2, 2], patch_kernel_size=[7, 7], patch_stride=[4, 4], patch_padding=[3, 3])
    given = {field: trunk[key] for key, field in _HF_HIERA.items() if key in trunk}
    size = positive(section_of(settings, "prompt_encoder_config"), "image_size", 1024)
    return _config("hiera", **given, out_width=positive(vision, "fpn_hidden_size", 256), image_size=(size, size))


def vit_from_hf(settings: Mapping[str, Any]) -> EncoderConfig:
    """Return the ViT that a `SamModel`'s `config.json` describes.

    Raises:
      CheckpointError: if it describes one that computes something else.
    """
    vision = section_of(settings, "vision_config")
    demand(vision, hidden_act="gelu", layer_norm_eps=1e-6, num_channels=3)
    demand(vision, qkv_bias=True, use_abs_pos=True, use_rel_pos=True)
    given: dict[str, Any] = {field: vision[key] for key, field in _HF_VISION.items() if key in vision}
    if "global_attn_indexes" in vision:
        given["global_blocks"] = vision["global_attn_indexes"]
    size = positive(vision, "image_size", 1024)
    return _config("vit", **given, mlp_width=_hf_mlp_width(vision), image_size=(size, size))


def _hf_mlp_width(vision: Mapping[str, Any]) -> int:
    """Return `mlp_dim` where it is given, else `mlp_ratio` times the width, as `SamVisionConfig` does."""
    if vision.get("mlp_dim") is not None:
        return positive(vision, "mlp_dim", 1)
    ratio = vision.get("mlp_ratio", 4)
    if not isinstance(ratio, int | float) or not math.isfinite(ratio):
        raise CheckpointError(f"config.json's mlp_ratio must be a number, got {describe(ratio)}.")
    return int(positive(vision, "hidden_size", 768) * ratio)


def _count(names: Iterable[str], prefix: str) -> int:
    """Return one more than the highest index of `prefix0.`, `prefix1.`, ..."""
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if re.fullmatch("[0-9]{1,4}", number)), default=0)


def _lengths(shapes: Mapping[str, Shape], prefix: str) -> list[int]:
    """Return how many relative positions a block has along the height and the width; 0 where they are missing."""
    return [(shapes.get(prefix + axis) or (0,))[0] for axis in "hw"]


def _by_votes(values: Iterable[int]) -> list[int]:
    """Return the different values but zero, the most frequent ones first."""
    return [value for value, _ in collections.Counter(filter(None, values)).most_common()]


def _windows(lengths: list[list[int]], grid: list[int]) -> tuple[int, tuple[int, ...]]:
    """Return the window size, and which blocks are global: those whose relative positions span the grid."""
    whole = [2 * side - 1 for side in grid]
    votes = _by_votes(length for pair in lengths if pair != whole for length in pair)
    if not votes:
        raise CheckpointError(
            f"The image encoder's windows are as large as its grid of {' x '.join(map(str, grid))}, so that its shapes"
            " do not tell which blocks are global. Only settings beside the weights can: a Hugging Face config.json, or"
            " those in what sam-jax wrote."
        )
    return (votes[0] + 1) // 2, tuple(i for i, pair in enumerate(lengths) if pair == whole or votes[0] not in pair)


def _config(kind: str, **values: Any) -> EncoderConfig:
    try:
        return make_config(kind, **values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"No image encoder can have this checkpoint's sizes: {error}") from error
