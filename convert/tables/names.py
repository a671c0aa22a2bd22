"""From the names in a file to the names that a decoder's tensors have in a plain state dict.

Training scripts and larger models put SAM inside other things: dictionaries with an optimizer beside it, modules with a
prefix. This takes off what is known to be wrapping, and nothing else.
"""

import dataclasses
import re
from collections.abc import Collection

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
)
"""Names of the decoder's parts inside larger models. The whole prefix must match: SAM 3's detector has a mask
decoder too, and SAM 3.1 a second one.
"""

_DECODER = re.compile(r"(prompt_encoder|mask_decoder|shared_image_embedding)\..*")

_IGNORED = re.compile(
    r"(image_encoder|vision_encoder|mask_downsample|fpn|rpn_head)\..*"
    r"|pixel_(mean|std)"
    r"|(memory_|maskmem_|obj_ptr|no_obj|w_a_|w_b_).*"
    r"|.*lora_.*"
)
"""Tensors outside the decoder that SAM's relatives keep beside it."""

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


def plain(name: str) -> str:
    """Return a name without the prefixes of modules around the decoder."""
    name = _MODULE_PREFIXES.sub("", name)
    for prefix, replacement in _DECODER_PREFIXES:
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def sort_out(names: Collection[str]) -> Names:
    """Take off the wrapping of a file's names, and set aside what is not the decoder's.

    What lies beside a wrapper (an optimizer, a second copy of the weights) is set aside too.

    Raises:
      CheckpointError: if two tensors end up with the same name.
    """
    prefix = _wrapper(names)
    plain_names = {name: plain(name.removeprefix(prefix)) for name in names}
    bare = _BARE_DECODER in plain_names.values() and not any(map(is_decoder, plain_names.values()))
    found: dict[str, list[str]] = {}
    ignored = []
    for name, target in plain_names.items():
        beside = not name.startswith(prefix)
        if bare and not beside:
            target = f"mask_decoder.{target}"
        if not is_decoder(target) and (beside or _IGNORED.fullmatch(target)):
            ignored.append(name)
        else:
            found.setdefault(target, []).append(name)
    _refuse_clashes(found)
    return Names({target: name for target, [name] in found.items()}, tuple(ignored))


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
