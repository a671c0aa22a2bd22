"""Settings of the decoder: frozen dataclasses, to and from JSON."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, Literal, get_args

from sam_jax.errors import describe

DType = Literal["float32", "bfloat16", "float64"]
DTYPES = ("float32", "bfloat16", "float64")

Postprocessing = Literal["sam", "sam2", "efficient_sam"]
"""How low-res logits become masks of the image's size; see `SamConfig.postprocessing`."""


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Everything about the prompt encoder and the mask decoder that their weights are built or read with.

    The defaults are those of `segment_anything/build_sam.py`, the same for ViT-B, ViT-L and ViT-H. `hq` and
    `early_width` are SAM-HQ's, the settings after them SAM 2's, and `efficient_sam` EfficientSAM's.

    Attributes:
      width: channels `c` of the image embedding and of every token.
      heads: attention heads of every attention.
      mlp_width: hidden width of the MLP in each two-way block.
      depth: number of two-way blocks.
      attention_downsample: the cross-attentions work at `width // attention_downsample` channels.
      multimask_outputs: masks beside mask 0; the decoder returns one more.
      mask_channels: channels before the last convolution of the mask prompt's stack.
      iou_head_width: hidden width of the IoU head.
      iou_head_depth: layers of the IoU head.
      block_norm_eps: epsilon of the four norms in each two-way block.
      final_norm_eps: epsilon of the norm after the final attention.
      image_size: height and width in pixels of the padded input frame, in which prompts live.
      grid_size: height and width `h w` of the image embedding.
      dtype: compute dtype. Coordinates, norms and softmaxes stay in float32 (float64 where that is the compute dtype).
      hq: whether there is an HQ token, with a mask of its own that is added to the others.
      early_width: channels of the encoder's early feature, which goes into the HQ mask; 0 where nothing does.
      high_resolution: whether the image has two finer maps, which are added while masks are upscaled.
      object_score: whether a token is scored that says how sure it is that the object is there at all.
      iou_sigmoid: whether the predicted IoU goes through a sigmoid.
      pad_boxes: whether the "not a point" token stands after boxes, too, and not after clicks alone.
      dynamic_multimask: whether a clear prompt gets the best multimask output where mask 0 is not stable.
      postprocessing: how low-res logits become masks of the image's size. `sam`: bilinear to the input frame, and from
        there bilinear to the image. `sam2`: bilinear in one step; logits that are handed back are clamped to 32.
        `efficient_sam`: bicubic in one step; a pixel is in the mask from 0 on, 0 included.
      efficient_sam: whether it is EfficientSAM's decoder. GELU takes the ReLU's place, and a norm over the whole map
        that over the channels while masks are upscaled; self-attention keeps the tokens, and adds their positional part
        to them for good; a prompt set has six tokens, none of which is a background click, and no mask.
    """

    width: int = 256
    heads: int = 8
    mlp_width: int = 2048
    depth: int = 2
    attention_downsample: int = 2
    multimask_outputs: int = 3
    mask_channels: int = 16
    iou_head_width: int = 256
    iou_head_depth: int = 3
    block_norm_eps: float = 1e-5
    final_norm_eps: float = 1e-5
    image_size: tuple[int, int] = (1024, 1024)
    grid_size: tuple[int, int] = (64, 64)
    dtype: DType = "float32"
    hq: bool = False
    early_width: int = 0
    high_resolution: bool = False
    object_score: bool = False
    iou_sigmoid: bool = False
    pad_boxes: bool = False
    dynamic_multimask: bool = False
    postprocessing: Postprocessing = "sam"
    efficient_sam: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "grid_size"):
            object.__setattr__(self, name, _size(name, getattr(self, name)))
        for name in (
            "width",
            "heads",
            "mlp_width",
            "depth",
            "attention_downsample",
            "multimask_outputs",
            "mask_channels",
            "iou_head_width",
            "iou_head_depth",
        ):
            check_positive(self, name)
        for name in ("block_norm_eps", "final_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, float) or not 0 < value < 1:
                raise ValueError(f"SamConfig.{name} must be a float between 0 and 1, got {describe(value)}.")
        if self.width % 8 or self.width % (self.heads * self.attention_downsample):
            raise ValueError(
                f"SamConfig.width must be divisible by 8 and by heads * attention_downsample "
                f"= {self.heads * self.attention_downsample}, got {self.width}."
            )
        if self.mask_channels % 4:
            raise ValueError(f"SamConfig.mask_channels must be divisible by 4, got {self.mask_channels}.")
        for name, choices in (("dtype", DTYPES), ("postprocessing", get_args(Postprocessing))):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"SamConfig.{name} must be one of {', '.join(choices)}, got {describe(value)}.")
        others = ("hq", "high_resolution", "object_score", "iou_sigmoid", "pad_boxes", "dynamic_multimask")
        for name in (*others, "efficient_sam"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"SamConfig.{name} must be true or false, got {describe(getattr(self, name))}.")
        if self.efficient_sam and (on := [name for name in others if getattr(self, name)]):
            raise ValueError(f"SamConfig.efficient_sam does not go with {', '.join(on)}.")
        if type(self.early_width) is not int or self.early_width < 0 or (self.early_width and not self.hq):
            wanted = "a number of channels" if self.hq else "0 without hq"
            raise ValueError(f"SamConfig.early_width must be {wanted}, got {describe(self.early_width)}.")

    @property
    def num_masks(self) -> int:
        """Masks that the decoder returns: mask 0 and the multimask outputs."""
        return self.multimask_outputs + 1

    @property
    def num_tokens(self) -> int:
        """Output tokens: object token where there is one, IoU token, mask tokens, HQ token where there is one."""
        return self.object_score + 1 + self.num_masks + self.hq

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of low-res logits and of mask prompts: 4 times the grid."""
        return 4 * self.grid_size[0], 4 * self.grid_size[1]

    def to_json(self) -> str:
        """Return the settings as a JSON object with one key per field."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "SamConfig":
        """Read what `to_json` wrote. A missing field takes its default.

        Raises:
          ValueError: for a key that is no field, or a value that a field cannot take.
        """
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SamConfig":
        """Build from a mapping of field names to values, as `from_json` does."""
        check_known(cls, values)
        return cls(**values)


def check_known(config_class: Any, values: Iterable[str]) -> None:
    """Raise a ValueError where a name is no setting of a class of settings."""
    known = {field.name for field in dataclasses.fields(config_class)}
    if unknown := ", ".join(sorted(set(values) - known)):
        raise ValueError(f"Unknown settings for {config_class.__name__}: {unknown}. Known: {', '.join(sorted(known))}.")


def check_positive(config: Any, name: str) -> None:
    """Raise a ValueError where a setting is not a positive integer."""
    value = getattr(config, name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{type(config).__name__}.{name} must be a positive integer, got {describe(value)}.")


def _size(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2 or any(type(v) is not int or v < 1 for v in value):
        raise ValueError(f"SamConfig.{name} must be two positive integers (height, width), got {describe(value)}.")
    return value[0], value[1]


TINY = SamConfig(
    width=32, heads=2, mlp_width=64, iou_head_width=32, mask_channels=8, image_size=(128, 128), grid_size=(8, 8)
)
"""A decoder small enough for tests and first steps; every part has the shape rules of the full one."""
