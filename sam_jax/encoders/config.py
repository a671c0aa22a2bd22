"""Settings of the image encoders: frozen dataclasses, to and from JSON. Importing this does not import JAX."""

import dataclasses
from typing import Any, Literal, get_args

from sam_jax.config import DTYPES, DType, check_known, check_positive
from sam_jax.errors import describe

Preprocessing = Literal["sam", "medsam", "lite_medsam", "micro_sam", "efficient_sam"]
"""What becomes of an image's pixels before the encoder: see `sam_jax.images.preprocess.prepare`. No weights tell it."""


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def _check_choices(config: Any) -> None:
    """Raise a ValueError where a setting is none of those that it can be."""
    for name, choices in (("preprocessing", get_args(Preprocessing)), ("dtype", DTYPES)):
        if (value := getattr(config, name)) not in choices:
            raise ValueError(
                f"{type(config).__name__}.{name} must be one of {', '.join(choices)}, got {describe(value)}."
            )


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything about the image encoder that its weights are built or read with.

    The defaults are those of ViT-B in `segment_anything/build_sam.py`.

    Attributes:
      width: channels inside the encoder.
      depth: number of blocks.
      heads: attention heads of every block.
      mlp_ratio: hidden width of each block's MLP as a multiple of `width`.
      patch_size: side in pixels of the square that becomes one token.
      window_size: side in tokens of the windows that most blocks attend within.
      global_blocks: indices, in rising order, of the blocks that attend to the whole image.
      out_width: channels `c` of the image embedding.
      position_side: side in tokens of the square map that the positions were trained on. They are resized to the grid,
        those of pairs of tokens do not exist, and the first position is a class token's, which is not used. 0: the
        positions are those of the grid, and of pairs.
      image_size: height and width in pixels of the padded input frame.
      preprocessing: what becomes of an image's pixels before.
      dtype: compute dtype. Norms and softmaxes stay in float32 (float64 where that is the compute dtype).
      remat: keep only the blocks' inputs for the backward pass and compute the rest a second time. Of one image's
        gradient with ViT-H it leaves 7 of 19 GB, with ViT-B 1.4 of 4.6. Global blocks must end groups of one length.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    patch_size: int = 16
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    out_width: int = 256
    position_side: int = 0
    image_size: tuple[int, int] = (1024, 1024)
    preprocessing: Preprocessing = "sam"
    dtype: DType = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        for name in ("width", "depth", "heads", "mlp_ratio", "patch_size", "window_size", "out_width"):
            check_positive(self, name)
        if type(self.position_side) is not int or self.position_side < 0:
            raise ValueError(f"ViTConfig.position_side must be an integer from 0, got {describe(self.position_side)}.")
        if self.width % self.heads:
            raise ValueError(f"ViTConfig.width must be divisible by heads = {self.heads}, got {self.width}.")
        if not self.global_blocks or sorted(set(self.global_blocks) & set(range(self.depth))) != [*self.global_blocks]:
            raise ValueError(
                f"ViTConfig.global_blocks must be rising indices of the {self.depth} blocks, at least one, "
                f"got {describe(self.global_blocks)}."
            )
        sizes = range(self.patch_size, 1 << 16, self.patch_size)
        if len(self.image_size) != 2 or not all(type(size) is int and size in sizes for size in self.image_size):
            raise ValueError(
                f"ViTConfig.image_size must be (height, width), two multiples of patch_size = {self.patch_size}, "
                f"got {describe(self.image_size)}."
            )
        length = self.global_blocks[0] + 1
        if self.remat and self.global_blocks != tuple(range(length - 1, self.depth + length - 1, length)):
            raise ValueError(
                "ViTConfig.remat needs global blocks at the ends of groups of one length, "
                f"got {self.global_blocks} of {self.depth} blocks."
            )
        _check_choices(self)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width `h w` of the image embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def window(self, block: int) -> tuple[int, int]:
        """Return the height and width in tokens that one block attends within."""
        return self.grid_size if block in self.global_blocks else (self.window_size, self.window_size)


VIT_B = ViTConfig()
"""`vit_b` of the official package."""
VIT_L = ViTConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
"""`vit_l` of the official package."""
VIT_H = ViTConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
"""`vit_h` of the official package."""
EFFICIENT_SAM_TI = ViTConfig(
    width=192, heads=3, global_blocks=tuple(range(12)), position_side=14, preprocessing="efficient_sam"
)
"""The encoder of EfficientSAM-Ti (`efficient_sam/build_efficient_sam.py`)."""
EFFICIENT_SAM_S = dataclasses.replace(EFFICIENT_SAM_TI, width=384, heads=6)
"""The encoder of EfficientSAM-S."""
VIT_TINY = ViTConfig(
    width=32, depth=4, heads=2, window_size=3, global_blocks=(1, 3), out_width=32, image_size=(128, 128)
)
"""An encoder small enough for tests and first steps; its windows do not divide its grid, as in the full ones."""


@dataclasses.dataclass(frozen=True)
class TinyViTConfig:
    """Everything about a TinyViT that its weights are built or read with.

    The defaults are MobileSAM's (`vit_t` in `mobile_sam/build_sam.py`). There are four stages: one of convolutions,
    three of attention. A merge after each of the first three changes the channels; the first two also halve the map.

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage.
      heads: attention heads of the last three stages.
      window_sizes: side in tokens of the windows that the last three stages attend within.
      ratio: hidden channels of a block as a multiple of its stage's.
      stem_stride: stride of both convolutions before the first stage. LiteMedSAM has 1, and then they are 1x1, not 3x3.
      out_width: channels `c` of the image embedding.
      image_size: height and width in pixels of the padded input frame.
      preprocessing: what becomes of an image's pixels before.
      dtype: compute dtype. Norms and softmaxes stay in float32 (float64 where that is the compute dtype).
    """

    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int] = (4, 5, 10)
    window_sizes: tuple[int, int, int] = (7, 14, 7)
    ratio: int = 4
    stem_stride: int = 2
    out_width: int = 256
    image_size: tuple[int, int] = (1024, 1024)
    preprocessing: Preprocessing = "sam"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name, length in (("widths", 4), ("depths", 4), ("heads", 3), ("window_sizes", 3), ("image_size", 2)):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != length or not all(map(_positive, getattr(self, name))):
                raise ValueError(
                    f"TinyViTConfig.{name} must be {length} positive integers, got {describe(getattr(self, name))}."
                )
        for name in ("ratio", "out_width"):
            check_positive(self, name)
        if self.stem_stride not in (1, 2):
            raise ValueError(f"TinyViTConfig.stem_stride must be 1 or 2, got {self.stem_stride!r}.")
        if any(width % heads for width, heads in zip(self.widths[1:], self.heads, strict=True)):
            raise ValueError(f"TinyViTConfig.widths must be divisible by heads = {self.heads}, got {self.widths}.")
        if any(size % self.stride for size in self.image_size):
            raise ValueError(
                f"TinyViTConfig.image_size must be two multiples of {self.stride} pixels, got {self.image_size}."
            )
        _check_choices(self)

    @property
    def stride(self) -> int:
        """Side in pixels of what one vector of the embedding stands for."""
        return 4 * self.stem_stride**2

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width `h w` of the image embedding."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


TINY_VIT = TinyViTConfig()
"""`vit_t` of MobileSAM, and the encoder of SAM-HQ's light model."""
LITE_MEDSAM = TinyViTConfig(stem_stride=1, image_size=(256, 256), preprocessing="lite_medsam")
"""The encoder of LiteMedSAM."""

EncoderConfig = ViTConfig | TinyViTConfig

KINDS: dict[str, type[EncoderConfig]] = {"vit": ViTConfig, "tiny_vit": TinyViTConfig}
"""The kinds of encoder: Meta's ViT, and MobileSAM's TinyViT."""


_MOST_BLOCKS = 1024
"""More than any encoder has. A hostile file must not get to ask for settings that fill the memory."""


def kind_of(config: EncoderConfig) -> str:
    """Return the kind of encoder that settings are for."""
    return next(kind for kind, config_class in KINDS.items() if isinstance(config, config_class))


def make_config(kind: str, **values: Any) -> EncoderConfig:
    """Return settings of a kind of encoder.

    Raises:
      ValueError: for a kind or setting that there is not, or a value that a setting cannot take.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind of an encoder must be one of {', '.join(KINDS)}, got {describe(kind)}.")
    config_class = KINDS[kind]
    check_known(config_class, values)
    for count in (values.get("depth"), *values.get("depths", ())):
        if isinstance(count, int) and count > _MOST_BLOCKS:
            raise ValueError(f"{count} blocks are asked for; at most {_MOST_BLOCKS} are supported.")
    return config_class(**values)


def config_to_dict(config: EncoderConfig) -> dict[str, Any]:
    """Return the settings with their kind, ready for JSON."""
    return {"kind": kind_of(config)} | dataclasses.asdict(config)


def config_from_dict(values: Any) -> EncoderConfig:
    """Return the settings that `config_to_dict` wrote. A missing setting takes its default.

    Raises:
      ValueError: if that is not what they are.
    """
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError(f"An encoder's settings must be a JSON object with a kind, got {describe(values)}.")
    try:
        return make_config(**values)
    except TypeError as error:
        raise ValueError(f"An encoder's settings have a value of a wrong type: {error}.") from error
