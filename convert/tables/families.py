"""Which family a checkpoint is of: from names and shapes alone, no data is read.

Families share the decoder's code and differ in what is around it. MedSAM, MobileSAM and SAM cannot be told apart by the
decoder; the image encoder's names and shapes tell more where they are in the file.
"""

import dataclasses
import re
from collections.abc import Mapping

from sam_jax.convert.tables.rules import Naming, Shape
from sam_jax.encoders.config import Preprocessing
from sam_jax.errors import CheckpointError, describe


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints that are used alike, with the settings that no decoder's weights tell.

    Attributes:
      name: what `family=` takes.
      title: its name in print.
      licence: of the weights that its authors publish.
      block_norm_eps: as in `SamConfig`, like all below.
      final_norm_eps: epsilon of the norm after the final attention.
      image_size: height and width in pixels of the input frame.
      grid_size: height and width of the image embedding.
      heads: attention heads.
      preprocessing: as in the encoder's settings.
      early_feature: whether the decoder takes the encoder's early feature.
      linear_iou: whether the predicted IoU has no sigmoid, where the decoder has an object score.
      lookalikes: families whose files cannot be told from this one's, and which need other settings.
    """

    name: str
    title: str
    licence: str = "Apache-2.0"
    block_norm_eps: float = 1e-5
    final_norm_eps: float = 1e-5
    image_size: tuple[int, int] = (1024, 1024)
    grid_size: tuple[int, int] = (64, 64)
    heads: int = 8
    preprocessing: Preprocessing = "sam"
    early_feature: bool = False
    linear_iou: bool = False
    lookalikes: tuple[str, ...] = ()


_OF_ITS_SOURCE = "that of the model it was made from"

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # What has SAM's decoder and no sign of another family: its own weights, or a relative's with its settings.
        Family("sam", "Segment Anything", licence="Apache-2.0 (Segment Anything's own weights)"),
        Family("sam_vit_b", "Segment Anything, ViT-B", lookalikes=("medsam", "micro_sam")),
        Family("sam_vit_l", "Segment Anything, ViT-L"),
        Family("sam_vit_h", "Segment Anything, ViT-H"),
        Family("medsam", "MedSAM", preprocessing="medsam"),
        Family("lite_medsam", "LiteMedSAM", image_size=(256, 256), preprocessing="lite_medsam"),
        Family("mobile_sam", "MobileSAM"),
        Family("mobile_sam_v2", "MobileSAMv2"),
        Family("repvit_sam", "RepViT-SAM"),
        Family("tiny_sam", "TinySAM"),
        Family("edge_sam", "EdgeSAM", licence="NTU S-Lab License 1.0 (non-commercial)"),
        Family("slim_sam", "SlimSAM"),
        Family("micro_sam", "micro-sam", licence="CC-BY-4.0 (the published models)", preprocessing="micro_sam"),
        Family("efficientvit_sam", "EfficientViT-SAM", block_norm_eps=1e-6, final_norm_eps=1e-6),
        Family("sam_med2d", "SAM-Med2D", image_size=(256, 256), grid_size=(16, 16)),
        Family("samed", "SAMed", licence="MIT", image_size=(512, 512), grid_size=(32, 32)),
        Family("sam_hq", "SAM-HQ", early_feature=True),
        Family("efficient_sam", "EfficientSAM", preprocessing="efficient_sam"),
        Family("sam2", "SAM 2", preprocessing="sam2", lookalikes=("medsam2",)),
        Family("sam2.1", "SAM 2.1", preprocessing="sam2", lookalikes=("medsam2",)),
        Family("hq_sam2", "HQ-SAM 2", preprocessing="sam2"),
        Family("medsam2", "MedSAM2", image_size=(512, 512), grid_size=(32, 32), preprocessing="medsam2"),
        Family("edge_tam", "EdgeTAM", preprocessing="sam2"),
        Family("efficient_tam", "EfficientTAM", preprocessing="sam2"),
        Family(
            "efficient_tam_512",
            "EfficientTAM, 512 pixels",
            image_size=(512, 512),
            grid_size=(32, 32),
            preprocessing="sam2",
        ),
        Family("sam3_tracker", "SAM 3's tracker", "SAM License", image_size=(1008, 1008), grid_size=(72, 72)),
        Family(
            "sam3.1_tracker",
            "SAM 3.1's interactive head",
            "SAM License",
            image_size=(1008, 1008),
            grid_size=(72, 72),
            linear_iou=True,
        ),
        Family("hf_sam_hq", "Hugging Face SamHQModel", licence=_OF_ITS_SOURCE, block_norm_eps=1e-6, early_feature=True),
        Family("hf_sam", "Hugging Face SamModel", licence=_OF_ITS_SOURCE, block_norm_eps=1e-6),
    )
}
"""Every family that can be converted, by name."""

_OBJECT_SCORE = r"\bobj_score_token\.weight "
_HQ = r"\bh[fq]_token\.weight "
_CONV_S0 = r"\bconv_s0\."
_EFFICIENT_SAM = r"\bfinal_output_upscaling_layers\."
_NEW_IN_2_1 = r"\b(no_obj_embed_spatial|occlusion_spatial_embedding_parameter) "
_IN_BOTH = r"\b(maskmem_tpos_enc|memory_temporal_positional_encoding) "

Evidence = tuple[tuple[tuple[str, ...], str], ...]
"""Patterns and the family that they tell. They are looked for in a checkpoint's listing, one line per tensor, `name
(shape)`; the first entry all of whose patterns are found counts.
"""

_IN_THE_DECODER: Evidence = (
    ((_OBJECT_SCORE, _HQ), "hq_sam2"),
    ((r"\btracker\.model\.interactive_sam_mask_decoder\.",), "sam3.1_tracker"),
    ((_OBJECT_SCORE, _CONV_S0, r"\btransformer\.layers\.0\.mlp\.lin1\."), "sam3_tracker"),
    ((_OBJECT_SCORE, r"\b(tracker_model|vision_encoder\.backbone\.layers)\."), "sam3_tracker"),
    ((_OBJECT_SCORE, r"\b(image_encoder\.trunk\.body|spatial_perceiver)\."), "edge_tam"),
    ((_OBJECT_SCORE, _CONV_S0, _NEW_IN_2_1), "sam2.1"),
    ((_OBJECT_SCORE, _CONV_S0), "sam2"),
    ((_OBJECT_SCORE,), "efficient_tam"),
    ((_EFFICIENT_SAM,), "efficient_sam"),
    ((r"\bhq_token\.weight ",), "hf_sam_hq"),
    ((_HQ,), "sam_hq"),
)
_AROUND_THE_DECODER: Evidence = (
    ((r"^(model_state\.sam|decoder_state)\.",), "micro_sam"),
    ((r"^PromtEncoder\.",), "mobile_sam_v2"),
    ((r"^w_a_000 ",), "samed"),
    ((r"\bimage_encoder\.blocks\.0\.Adapter\.",), "sam_med2d"),
    ((r"\bimage_encoder\.backbone\.",), "efficientvit_sam"),
    ((r"\bimage_encoder\.(fuse_stage2|features\.\d+\.token_mixer\.0\.conv1\.c)\.",), "edge_sam"),
    ((r"\bimage_encoder\.features\.",), "repvit_sam"),
    ((r"\bimage_encoder\.blocks\.0\.mlp\.fc1\.",), "efficient_sam"),
    # TinyViT. LiteMedSAM's stem keeps the resolution, by kernels of one pixel; TinySAM's is MobileSAM's.
    ((r"\bimage_encoder\.patch_embed\.seq\.0\.c\.weight \(\d+, 3, 1, 1\)",), "lite_medsam"),
    ((r"\bimage_encoder\.patch_embed\.seq\.",), "mobile_sam"),
    ((r"\bimage_encoder\.patch_embed\.proj\.weight \((384|168), 3, 16, 16\)",), "slim_sam"),
    ((r"\bimage_encoder\.patch_embed\.proj\.weight \(768, 3, 16, 16\)",), "sam_vit_b"),
    ((r"\bimage_encoder\.patch_embed\.proj\.weight \(1024, 3, 16, 16\)",), "sam_vit_l"),
    ((r"\bimage_encoder\.patch_embed\.proj\.weight \(1280, 3, 16, 16\)",), "sam_vit_h"),
)

Kind = tuple[tuple[str, ...], str]
"""What is refused: the patterns that are all found in its listing, and what to say."""

_RELATIVES: tuple[Kind, ...] = (
    (
        (r"\biou_token\.weight \(16, ", r"\A(?![\s\S]*\binteractive_sam_mask_decoder\.)"),
        "the multiplex head of SAM 3.1. It follows sixteen objects through a video and takes no prompts. "
        "It is not supported.",
    ),
    (
        (r"\bmask_downscaling\.0\.weight \((\d+, ){4}\d+\)",),
        "a decoder for volumes, such as SAM-Med3D. Only decoders for images are supported.",
    ),
    (
        (r"\b(prompt_encoder|mask_decoder|transformer\.layers)\..*\.(lora_|w_[ab][._])",),
        "a decoder with low-rank adapters (LoRA) beside its weights. Merge them into the weights first.",
    ),
)
_STRANGERS: tuple[Kind, ...] = (
    (
        (r"\bout_conv\.", r"\b(deconv\d|deconv_out|decoder_head)\."),
        "a UNETR decoder, such as micro-sam's for automatic segmentation. It takes no prompts. It is not supported.",
    ),
    ((r"^(.*\.)?detector(_model)?\.",), "SAM 3's detector, without its tracker. It is not supported."),
    ((r"\b(image_encoder|vision_encoder|patch_embed)\.",), "an image encoder alone. There is no decoder in it."),
)


def listing(shapes: Mapping[str, Shape]) -> str:
    """Return the text that families are recognised in: one line per tensor, its name in the file and its shape."""
    return "\n".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


def find_family(name: str) -> Family:
    """Return a family by name.

    Raises:
      ValueError: if there is none of that name.
    """
    if name not in FAMILIES:
        raise ValueError(f"There is no family {describe(name)}. Families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def recognise(text: str, naming: Naming) -> Family:
    """Return the family that a listing speaks of; `sam` where it says nothing."""
    usual, around = ("hf_sam", ()) if naming == "hf" else ("sam", _AROUND_THE_DECODER)
    evidence = (*_IN_THE_DECODER, *around)
    return FAMILIES[next((name for patterns, name in evidence if _all_found(patterns, text)), usual)]


def version_of(family: Family, text: str) -> str | None:
    """Return which version of SAM 2 a listing is of; None for another family. Only tensors for video tell."""
    if family.name not in ("sam2", "sam2.1"):
        return None
    if _all_found((_NEW_IN_2_1,), text):
        return "2.1"
    return "2.0" if _all_found((_IN_BOTH,), text) else "2.0 or 2.1: only tensors for video would tell"


def refuse_relatives(text: str) -> None:
    """Refuse a listing of SAM's relatives whose decoder cannot be converted.

    Raises:
      CheckpointError: naming the family.
    """
    _refuse(_RELATIVES, text)


def refuse_strangers(text: str) -> None:
    """Refuse the listing of a checkpoint in which no tensor has a decoder's name.

    Raises:
      CheckpointError: naming what it is, or its first tensors where that is not known.
    """
    _refuse(_STRANGERS, text)
    lines = text.splitlines()
    seen = f"of its {len(lines)} tensors, the first are {', '.join(lines[:3])}" if lines else "it holds no tensors"
    raise CheckpointError(f"This checkpoint is not a SAM decoder: {seen}.")


def _refuse(kinds: tuple[Kind, ...], text: str) -> None:
    for patterns, what in kinds:
        if _all_found(patterns, text):
            raise CheckpointError(f"This checkpoint is {what}")


def _all_found(patterns: tuple[str, ...], text: str) -> bool:
    return all(re.search(pattern, text, re.MULTILINE) for pattern in patterns)
