"""The image encoder of a state dict, to its Flax tree and back; its settings are found from names and shapes."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from sam_jax.convert.state_dict import Conversion, Identification, choose_family, read_variables, write_variables
from sam_jax.convert.tables.encoder_rules import EFFICIENT_VIT, HIERA, TINY_VIT, VIT
from sam_jax.convert.tables.encoder_settings import (
    efficient_vit_from_shapes,
    encoder_kind,
    frames_of,
    hiera_from_hf,
    hiera_from_shapes,
    is_plain,
    plain_vit_from_shapes,
    tiny_vit_from_shapes,
    vit_from_hf,
    vit_from_shapes,
)
from sam_jax.convert.tables.families import Family, listing
from sam_jax.convert.tables.gaps import Described, compare
from sam_jax.convert.tables.names import WRAPPERS, decoder_prefix, plain
from sam_jax.convert.tables.rules import Naming, Shape, torch_shapes
from sam_jax.convert.tables.settings import OWN, own_encoder_config
from sam_jax.encoders.config import EncoderConfig, kind_of, title_of
from sam_jax.errors import CheckpointError

TABLES = {"vit": VIT, "tiny_vit": TINY_VIT, "efficient_vit": EFFICIENT_VIT, "hiera": HIERA}
"""The table of each kind in `sam_jax.encoders.encoder`."""

IMAGE_ENCODER = re.compile(r"\b(image_encoder|vision_encoder)\.")
"""In the name of a tensor of an image encoder, known or not."""
_ENCODER = re.compile(
    r"(image_encoder|vision_encoder)\..*|no_mem_embed|no_memory_embedding|mask_decoder\.conv_s[01]\..*"
)
"""Tensors of an image encoder; the last ones belong to SAM 2's decoder, and are used once per image."""
_SAM3 = re.compile(r"(?:.*\.)?detector(_model)?\.(.*\.)?(vision_encoder|vision_backbone)\.")
"""SAM 3's image encoder, which its detector and its tracker share."""
_UNUSED = re.compile(r"image_encoder\.(norm_head|head)\..*|.*\.num_batches_tracked")
"""What TinyViT keeps of its time as a classifier, and batch norms of training."""


def identify_encoder(
    tensors: Mapping[str, Described],
    *,
    family: str | None = None,
    prefix: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Identification[EncoderConfig]:
    """Say what a checkpoint's image encoder is without reading any data. Gaps are reported, not raised.

    Args:
      tensors: name in the file -> anything with a shape and a dtype.
      family: a name of `FAMILIES`, whose settings to use whatever the names and `settings` say.
      prefix: what stands before the names of the decoder and its encoder, where a file has several.
      settings: what `open_checkpoint` found beside the weights.

    Raises:
      CheckpointError: if there is none, or one of a kind that cannot be converted, or two tensors claim the same name.
      ValueError: if there is no such family.
    """
    sources = _sources(tensors, prefix)
    if not sources:
        if shared := [name for name in tensors if _SAM3.match(name)]:
            raise _cannot_be_converted("SAM 3", {name: tuple(tensors[name].shape) for name in shared})
        raise CheckpointError("The checkpoint holds no image encoder.")
    naming: Naming = "hf" if any(name.startswith("vision_encoder.") for name in sources) else "meta"
    text = listing({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    chosen = choose_family(family, settings, text, naming)
    found = {name: tensors[source] for name, source in sources.items()}
    config = _settings({name: tuple(found[name].shape) for name in found}, naming, chosen, family is not None, settings)
    gaps = compare(found, torch_shapes(config, naming, TABLES[kind_of(config)]), sources)
    own = set(sources.values())
    return Identification(chosen, naming, config, sources, tuple(name for name in tensors if name not in own), gaps)


def encoder_from_torch(
    tensors: Mapping[str, Any],
    *,
    family: str | None = None,
    prefix: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Conversion[EncoderConfig]:
    """Convert a checkpoint's image encoder to Flax variables. Only its tensors are read.

    Args:
      tensors: name in the file -> array, or anything with `shape`, `dtype` and `read()`.
      family: a name of `FAMILIES`. It tells what weights do not: preprocessing, and the size of a TinyViT's images.
      prefix: what stands before the names of the decoder and its encoder, where a file has several.
      settings: what `open_checkpoint` found beside the weights.

    Raises:
      CheckpointError: if there is none, or one of a kind that cannot be converted; or listing every tensor that is
        missing, unexpected, misshapen or of another dtype than a float's.
      ValueError: if there is no such family.
    """
    found = identify_encoder(tensors, family=family, prefix=prefix, settings=settings)
    if found.gaps:
        raise CheckpointError(
            f"The checkpoint does not fit the image encoder {title_of(found.config)} ({found.naming} names)."
            f"\n{found.gaps}"
        )
    return read_variables(tensors, found, TABLES[kind_of(found.config)])


def encoder_to_torch(encoder: Any, variables: Mapping[str, Any], naming: Naming = "meta") -> dict[str, np.ndarray]:
    """Return the state dict that `encoder_from_torch` makes these variables of: its exact inverse, dtypes kept.

    Args:
      encoder: anything whose `config` is an encoder's.
      variables: its variables, nested mappings of arrays.
      naming: "meta", or "hf" for the names in a `SamModel`.

    Raises:
      CheckpointError: listing every leaf that is missing, unexpected, misshapen or of another dtype than a float's.
      ValueError: if there is no such naming, or Hugging Face has no names for this encoder.
    """
    kind = kind_of(encoder.config)
    if naming == "hf" and kind not in ("vit", "hiera"):
        raise ValueError(f"Hugging Face has no names for {title_of(encoder.config)}: only the naming meta has.")
    if naming == "hf" and kind == "vit" and encoder.config.position_side:
        raise ValueError("Hugging Face has no names for EfficientSAM's ViT: only the naming meta has.")
    return write_variables(encoder.config, variables, naming, TABLES[kind])


def _sources(names: Collection[str], prefix: str | None) -> dict[str, str]:
    """Return plain name -> name in the file, of an encoder below the prefix of the decoder, or in a usual wrapping."""
    beside = decoder_prefix(names, prefix)
    usual = ("", *(f"{wrapper}." for wrapper in WRAPPERS)) if prefix is None else ()
    for start in (beside, *usual):
        found: dict[str, str] = {}
        for name in names:
            target = plain(name.removeprefix(start)) if name.startswith(start) else ""
            if not _ENCODER.fullmatch(target) or _UNUSED.fullmatch(target):
                continue
            if target in found:
                raise CheckpointError(f"Several tensors claim the name {target}: {found[target]}, {name}.")
            found[target] = name
        if any(map(IMAGE_ENCODER.match, found)):
            return found
    return {}


def _settings(
    shapes: Mapping[str, Shape], naming: Naming, chosen: Family, asked: bool, settings: Mapping[str, Any] | None
) -> EncoderConfig:
    """Return an encoder's settings: of our own, of a `config.json`, else of its shapes; and the family's."""
    own = own_encoder_config(settings)
    if own and not asked:
        return own
    kind = encoder_kind(shapes)
    if own:
        config = dataclasses.replace(own, **frames_of(own, chosen))
    elif kind is None:
        raise _cannot_be_converted(chosen.title, shapes)
    elif settings and OWN not in settings and naming == "hf":
        config = hiera_from_hf(settings) if kind == "hiera" else vit_from_hf(settings)
    else:
        config = _settings_of_shapes(kind, shapes, naming, chosen)
    early = {"early_feature": True} if chosen.early_feature and hasattr(config, "early_feature") else {}
    return dataclasses.replace(config, preprocessing=chosen.preprocessing, **early)


def _cannot_be_converted(title: str, shapes: Mapping[str, Shape]) -> CheckpointError:
    first = ", ".join([f"{name} {shape}" for name, shape in shapes.items()][:3])
    return CheckpointError(
        f"The checkpoint's image encoder ({title}) cannot be converted. Those of SAM (ViT), MobileSAM (TinyViT),"
        f" EfficientViT-SAM and SAM 2 (Hiera) can. Of its {len(shapes)} tensors, the first are {first}."
    )


def _settings_of_shapes(kind: str, shapes: Mapping[str, Shape], naming: Naming, chosen: Family) -> EncoderConfig:
    if kind == "hiera":
        return hiera_from_shapes(shapes, naming, chosen)
    if kind == "vit":
        return plain_vit_from_shapes(shapes, chosen) if is_plain(shapes) else vit_from_shapes(shapes, naming)
    return {"tiny_vit": tiny_vit_from_shapes, "efficient_vit": efficient_vit_from_shapes}[kind](shapes, chosen)
