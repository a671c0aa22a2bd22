"""The settings of a checkpoint's image encoder: from its names and shapes, or from a Hugging Face `config.json`."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_jax.convert.tables.encoder_rules import TINY_VIT, VIT
from sam_jax.convert.tables.families import Family
from sam_jax.convert.tables.rules import Naming, Shape, measure, slots
from sam_jax.convert.tables.settings import demand, positive, section_of
from sam_jax.encoders.config import EFFICIENT_SAM_TI, EncoderConfig, make_config
from sam_jax.errors import CheckpointError, describe

_KINDS = (
    ("vit", re.compile(r"image_encoder\.(blocks|patch_embed\.proj)\.|vision_encoder\.(layers|patch_embed)\.")),
    ("tiny_vit", re.compile(r"image_encoder\.(layers\.\d|patch_embed\.seq)\.")),
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
        mlp_ratio=found.get("f", 4 * width) // max(1, width),
        patch_size=patch,
        window_size=window,
        global_blocks=global_blocks,
        out_width=found.get("e", 256),
        image_size=(h * patch, w * patch),
    )


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
        mlp_ratio=found["f"] // max(1, width),
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
        image_size=family.image_size,
    )


def vit_from_hf(settings: Mapping[str, Any]) -> EncoderConfig:
    """Return the ViT that a `SamModel`'s `config.json` describes.

    Raises:
      CheckpointError: if it describes one that computes something else.
    """
    vision = section_of(settings, "vision_config")
    demand(vision, hidden_act="gelu", layer_norm_eps=1e-6, num_channels=3)
    demand(vision, qkv_bias=True, use_abs_pos=True, use_rel_pos=True)
    width = positive(vision, "hidden_size", 768)
    ratio = positive(vision, "mlp_dim", 1) / width if vision.get("mlp_dim") else vision.get("mlp_ratio", 4)
    if not isinstance(ratio, int | float) or ratio % 1:
        raise CheckpointError(f"config.json's mlp_ratio must be a whole number, got {describe(ratio)}.")
    given: dict[str, Any] = {field: vision[key] for key, field in _HF_VISION.items() if key in vision}
    if "global_attn_indexes" in vision:
        given["global_blocks"] = vision["global_attn_indexes"]
    size = positive(vision, "image_size", 1024)
    return _config("vit", **given, mlp_ratio=int(ratio), image_size=(size, size))


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
