"""From the names in a file to the names that a decoder's tensors have in a plain state dict.

Training scripts and larger models put SAM inside other things: dictionaries with an optimizer beside it, modules with a
prefix. This takes off what is known to be wrapping, and nothing else.
"""

import dataclasses
import re
from collections.abc import Collection

from sam_jax.convert.tables.rules import Naming
from sam_jax.errors import CheckpointError

WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")
"""Dictionaries that hold a state dict inside a file. The first one that holds a decoder is taken, whole."""

_MODULE_PREFIXES = re.compile(r"^(module\.|_orig_mod\.|sam\.|model\.)*")

_DECODER_PREFIXES = (
    ("PromtEncoder.", "prompt_encoder."),  # sic: MobileSAMv2's two state dicts
    ("MaskDecoder.", "mask_decoder."),
    ("sam_prompt_encoder.", "prompt_encoder."),
    ("sam_mask_decoder.", "mask_decoder."),
    ("tracker.sam_prompt_encoder.", "prompt_encoder."),
    ("tracker.sam_mask_decoder.", "mask_decoder."),
    ("tracker.model.interactive_sam_prompt_encoder.", "prompt_encoder."),
    ("tracker.model.interactive_sam_mask_decoder.", "mask_decoder."),
    ("inst_interactive_predictor.model.sam_prompt_encoder.", "prompt_encoder."),
    ("inst_interactive_predictor.model.sam_mask_decoder.", "mask_decoder."),
    ("tracker_model.prompt_encoder.", "prompt_encoder."),
    ("tracker_model.mask_decoder.", "mask_decoder."),
    ("tracker_model.shared_image_embedding.", "shared_image_embedding."),
    ("tracker.no_mem_embed", "no_mem_embed"),
    ("tracker.model.interactivity_no_mem_embed", "no_mem_embed"),
    ("inst_interactive_predictor.model.no_mem_embed", "no_mem_embed"),
    ("tracker_model.no_memory_embedding", "no_memory_embedding"),
)
"""Names of the decoder's parts inside larger models. The whole prefix must match: SAM 3's detector has a mask
decoder too, and SAM 3.1 a second one.
"""

_RESPELT = (
    (re.compile(r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)(layers\.0|proj_in)(\.[a-z]\w*)"), r"\1lin1\3"),
    (re.compile(r"(mask_decoder\.transformer\.layers\.\d+\.mlp\.)(layers\.1|proj_out)(\.[a-z]\w*)"), r"\1lin2\3"),
    (re.compile(r"(mask_decoder\.transformer\..*\.)o_proj(\.\w+)"), r"\1out_proj\2"),
)
"""Names of SAM 2's layers, by Meta and by Hugging Face, and SAM's names of the same layers."""

_DECODER = re.compile(r"(prompt_encoder|mask_decoder|shared_image_embedding)\..*|no_mem_embed|no_memory_embedding")

VIDEO = re.compile(
    r"(memory_attention|memory_encoder|mask_downsample|obj_ptr_proj|obj_ptr_tpos_proj|spatial_perceiver"
    r"|object_pointer_proj|temporal_positional_encoding_projection_layer)\..*"
    r"|maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
    r"|memory_temporal_positional_encoding|no_memory_positional_encoding|no_object_pointer"
    r"|occlusion_spatial_embedding_parameter"
)
"""Tensors that only follow an object through a video: SAM 2's by Meta and by Hugging Face, EdgeTAM's."""

_VIDEO_BELOW = re.compile(rf"(?:.*\.)?(?:{VIDEO.pattern})")

_IGNORED = re.compile(
    r"(image_encoder|vision_encoder|fpn|rpn_head)\..*"
    r"|(detector|detector_model|tracker|tracker_model|tracker_neck)\..*"  # what SAM 3 has beside its decoder
    r"|pixel_(mean|std)"
    r"|(w_a_|w_b_).*"
    r"|.*lora_.*"
)
"""Other tensors outside the decoder that SAM's relatives keep beside it."""

_PART = re.compile(
    r"((?:.*\.)?)(?:sam_)?"
    r"(mask_decoder\.iou_token|mask_decoder\.mask_tokens|prompt_encoder\.(?:not_a_point_embed|invalid_points))\.weight"
)
"""Tensors that every decoder has, by all names, and what stands before them."""

_BARE_DECODER = "iou_token.weight"
"""Without a parent, it tells that a mask decoder was saved alone."""


@dataclasses.dataclass(frozen=True)
class Names:
    """The names in a file, sorted out.

    Attributes:
      tensors: plain name -> name in the file, of everything that has to be accounted for.
      ignored: names in the file of tensors that are not the decoder's.
    """

    tensors: dict[str, str]
    ignored: tuple[str, ...]

    @property
    def has_decoder(self) -> bool:
        """Whether any tensor is one of a prompt encoder's or a mask decoder's."""
        return any(map(is_decoder, self.tensors))


def is_decoder(name: str) -> bool:
    """Whether a plain name is one of a prompt encoder's or a mask decoder's."""
    return _DECODER.fullmatch(name) is not None


def is_video(name: str) -> bool:
    """Whether a name in a file, below any prefix, is of a tensor that only follows an object through a video."""
    return _VIDEO_BELOW.fullmatch(name) is not None


def plain(name: str) -> str:
    """Return a name without the prefixes of modules around the decoder."""
    name = _MODULE_PREFIXES.sub("", name)
    for prefix, replacement in _DECODER_PREFIXES:
        if name.startswith(prefix):
            name = replacement + name.removeprefix(prefix)
            break
    for pattern, replacement in _RESPELT:
        name = pattern.sub(replacement, name)
    return name


def official(name: str, naming: Naming) -> str:
    """Return the name that a tensor of SAM 2's decoder has in a file, from its plain name: the inverse of `plain`."""
    if naming == "hf":
        name = re.sub(r"(transformer\.layers\.\d+\.mlp\.)lin1\.", r"\1proj_in.", name)
        name = re.sub(r"(transformer\.layers\.\d+\.mlp\.)lin2\.", r"\1proj_out.", name)
        return re.sub(r"(mask_decoder\.transformer\..*\.)out_proj\.", r"\1o_proj.", name)
    name = re.sub(r"(transformer\.layers\.\d+\.mlp\.)lin1\.", r"\1layers.0.", name)
    name = re.sub(r"(transformer\.layers\.\d+\.mlp\.)lin2\.", r"\1layers.1.", name)
    return re.sub(r"^(prompt_encoder|mask_decoder)\.", r"sam_\1.", name)


def sort_out(names: Collection[str], prefix: str | None = None) -> Names:
    """Take off the wrapping of a file's names, and set aside what is not the decoder's.

    What lies beside a wrapper (an optimizer, a second copy of the weights) is set aside too.

    Args:
      names: all names in the file.
      prefix: what stands before the names of the decoder that is meant, where there are several.

    Raises:
      CheckpointError: if two tensors end up with the same name, or as `decoder_prefix`.
    """
    prefix = decoder_prefix(names, prefix)
    places = _complete_below(names)
    others = tuple(place for place in places if place != prefix) if len(places) > 1 else ()
    plain_names = {name: plain(name.removeprefix(prefix)) for name in names}
    bare = _BARE_DECODER in plain_names.values() and not any(map(is_decoder, plain_names.values()))
    found: dict[str, list[str]] = {}
    ignored = []
    for name, target in plain_names.items():
        beside = not name.startswith(prefix)
        if others and (beside or name.startswith(tuple(place for place in others if place.startswith(prefix)))):
            ignored.append(name)
            continue
        if bare and not beside:
            target = f"mask_decoder.{target}"
        if not is_decoder(target) and (beside or _IGNORED.fullmatch(target) or VIDEO.fullmatch(target)):
            ignored.append(name)
        else:
            found.setdefault(target, []).append(name)
    _refuse_clashes(found)
    return Names({target: name for target, [name] in found.items()}, tuple(ignored))


def decoder_prefix(names: Collection[str], prefix: str | None = None) -> str:
    """Return what stands before the names of the decoder in a file; empty for nothing, or without a decoder.

    Args:
      names: all names in the file.
      prefix: the answer, where it is known.

    Raises:
      CheckpointError: if no decoder is below the given prefix, or none is given and decoders are below several.
    """
    places = _complete_below(names)
    listed = ", ".join(map(repr, places)) or "none"
    if prefix is not None:
        prefix = f"{prefix.rstrip('.')}." if prefix else ""
        if prefix not in places:
            raise CheckpointError(f"No decoder is below the prefix {prefix!r}. Prefixes of decoders: {listed}.")
        return prefix
    if len(places) > 1:
        raise CheckpointError(
            f"The checkpoint holds {len(places)} decoders, such as weights and their running mean, below the prefixes "
            f"{listed}. Choose one: --prefix on the command line, prefix= in Python."
        )
    wrapper = _wrapper(names)
    if wrapper or not places or any(is_decoder(plain(name)) for name in names):
        return wrapper
    return places[0]


def _complete_below(names: Collection[str]) -> list[str]:
    """Return the prefixes below which both parts of a decoder are, in the order of the file."""
    parts: dict[str, set[str]] = {}
    for name in names:
        if match := _PART.fullmatch(name):
            parts.setdefault(match[1], set()).add(match[2])
    return [prefix for prefix, found in parts.items() if len(found) == 3]


def _wrapper(names: Collection[str]) -> str:
    """Return the wrapper's prefix; empty if there is none."""
    for prefix in (f"{wrapper}." for wrapper in WRAPPERS):
        inside = (plain(name.removeprefix(prefix)) for name in names if name.startswith(prefix))
        if any(is_decoder(name) or name == _BARE_DECODER for name in inside):
            return prefix
    return ""


def _refuse_clashes(found: dict[str, list[str]]) -> None:
    clashes = [f"  {target}: {', '.join(names)}" for target, names in found.items() if len(names) > 1]
    if clashes:
        raise CheckpointError("Several tensors of the checkpoint claim the same name:\n" + "\n".join(clashes))
