"""Settings of the image encoders: frozen dataclasses, to and from JSON. Importing this does not import JAX."""

import dataclasses
from typing import Any, Literal, get_args

from sam_jax.config import DTYPES, DType, check_known, check_positive
from sam_jax.errors import describe

Preprocessing = Literal["sam", "medsam", "lite_medsam", "micro_sam", "sam2", "medsam2", "efficient_sam"]
"""What becomes of an image's pixels before the encoder: see `sam_jax.images.preprocess.prepare`. No weights tell it."""


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def _not_negative(value: object) -> bool:
    return type(value) is int and value >= 0


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
      mlp_width: hidden width of each block's MLP; SlimSAM's is no multiple of `width`.
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
      early_feature: whether the output of the first global block is returned as well, which SAM-HQ's decoder takes.
      remat: keep only the blocks' inputs for the backward pass and compute the rest a second time. Of one image's
        gradient with ViT-H it leaves 7 of 19 GB, with ViT-B 1.4 of 4.6. Global blocks must end groups of one length.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    patch_size: int = 16
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    out_width: int = 256
    position_side: int = 0
    image_size: tuple[int, int] = (1024, 1024)
    preprocessing: Preprocessing = "sam"
    dtype: DType = "float32"
    early_feature: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        for name in ("width", "depth", "heads", "mlp_width", "patch_size", "window_size", "out_width"):
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
    def other_maps(self) -> frozenset[str]:
        """The maps beside the embedding that the encoder makes (`sam_jax.ImageFeatures`)."""
        return frozenset({"early"} if self.early_feature else ())

    @property
    def prompt_frame(self) -> tuple[int, int]:
        """Height and width in pixels of the frame that prompts live in: the decoder's `image_size`."""
        return self.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width `h w` of the image embedding."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def window(self, block: int) -> tuple[int, int]:
        """Return the height and width in tokens that one block attends within."""
        return self.grid_size if block in self.global_blocks else (self.window_size, self.window_size)


VIT_B = ViTConfig()
"""`vit_b` of the official package."""
VIT_L = ViTConfig(width=1024, depth=24, heads=16, mlp_width=4096, global_blocks=(5, 11, 17, 23))
"""`vit_l` of the official package."""
VIT_H = ViTConfig(width=1280, depth=32, heads=16, mlp_width=5120, global_blocks=(7, 15, 23, 31))
"""`vit_h` of the official package."""
SLIM_SAM_50 = dataclasses.replace(VIT_B, width=384, mlp_width=1536)
"""The encoder of SlimSAM, half of whose channels are pruned."""
SLIM_SAM_77 = dataclasses.replace(VIT_B, width=168, mlp_width=696)
"""The same with 77 % pruned."""
EFFICIENT_SAM_TI = ViTConfig(
    width=192,
    heads=3,
    mlp_width=768,
    global_blocks=tuple(range(12)),
    position_side=14,
    preprocessing="efficient_sam",
)
"""The encoder of EfficientSAM-Ti (`efficient_sam/build_efficient_sam.py`)."""
EFFICIENT_SAM_S = dataclasses.replace(EFFICIENT_SAM_TI, width=384, heads=6, mlp_width=1536)
"""The encoder of EfficientSAM-S."""
VIT_TINY = ViTConfig(
    width=32, depth=4, heads=2, mlp_width=128, window_size=3, global_blocks=(1, 3), out_width=32, image_size=(128, 128)
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
      early_feature: whether the map that the third stage begins with is returned as well, which SAM-HQ's decoder takes.
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
    early_feature: bool = False
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
    def other_maps(self) -> frozenset[str]:
        """The maps beside the embedding that the encoder makes (`sam_jax.ImageFeatures`)."""
        return frozenset({"early"} if self.early_feature else ())

    @property
    def prompt_frame(self) -> tuple[int, int]:
        """Height and width in pixels of the frame that prompts live in: the decoder's `image_size`."""
        return self.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width `h w` of the image embedding."""
        return self.image_size[0] // self.stride, self.image_size[1] // self.stride


TINY_VIT = TinyViTConfig()
"""`vit_t` of MobileSAM, and the encoder of SAM-HQ's light model."""
LITE_MEDSAM = TinyViTConfig(stem_stride=1, image_size=(256, 256), preprocessing="lite_medsam")
"""The encoder of LiteMedSAM."""


StageKind = Literal["fused", "inverted", "attention"]
"""What a stage of an EfficientViT is made of: fused bottlenecks, inverted ones, or attention with inverted ones."""


@dataclasses.dataclass(frozen=True)
class EfficientViTConfig:
    """Everything about an EfficientViT that its weights are built or read with.

    The defaults are those of EfficientViT-SAM's l0 (`efficientvit/models/efficientvit/sam.py`). There are five or six
    stages; the first block of each halves the height and width. The embedding is made of the last three stages' maps.

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage beside the one that halves the map.
      kinds: what each stage but the first is made of; the first has plain convolutions.
      ratios: of each stage but the first, hidden channels of a block as a multiple of its input's; the block that
        halves the map has four times as many.
      head_width: channels of a head of attention.
      neighbourhood: side in pixels of what half of the heads see as one token.
      neck_width: channels of the neck.
      neck_depth: blocks of the neck.
      neck_ratio: hidden channels of the neck's blocks as a multiple of `neck_width`.
      out_width: channels `c` of the image embedding.
      grid_size: height and width `h w` of the image embedding, whatever size the image has.
      image_size: height and width in pixels of the padded frame that the encoder takes.
      prompt_frame: height and width in pixels of the frame that prompts live in: the decoder's `image_size`.
      preprocessing: what becomes of an image's pixels before.
      dtype: compute dtype. Norms and attention stay in float32 (float64 where that is the compute dtype).
    """

    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    depths: tuple[int, ...] = (1, 1, 1, 4, 4)
    kinds: tuple[StageKind, ...] = ("fused", "fused", "inverted", "attention")
    ratios: tuple[int, ...] = (4, 4, 4, 6)
    head_width: int = 32
    neighbourhood: int = 5
    neck_width: int = 256
    neck_depth: int = 4
    neck_ratio: int = 1
    out_width: int = 256
    grid_size: tuple[int, int] = (64, 64)
    image_size: tuple[int, int] = (512, 512)
    prompt_frame: tuple[int, int] = (1024, 1024)
    preprocessing: Preprocessing = "sam"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        tuples = ("widths", "depths", "kinds", "ratios", "grid_size", "image_size", "prompt_frame")
        for name in tuples:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        stages = len(self.widths)
        if stages not in (5, 6):
            raise ValueError(f"EfficientViTConfig.widths must be those of 5 or 6 stages, got {describe(self.widths)}.")
        lengths = stages, stages, stages - 1, stages - 1, 2, 2, 2
        special = {
            "depths": (_not_negative, "integers from 0"),
            "kinds": (get_args(StageKind).__contains__, f"of {', '.join(get_args(StageKind))}"),
        }
        for name, length in zip(tuples, lengths, strict=True):
            fits, what = special.get(name, (_positive, "positive integers"))
            if len(getattr(self, name)) != length or not all(map(fits, getattr(self, name))):
                raise ValueError(
                    f"EfficientViTConfig.{name} must be {length} {what}, got {describe(getattr(self, name))}."
                )
        for name in ("head_width", "neighbourhood", "neck_width", "neck_ratio", "out_width"):
            check_positive(self, name)
        if not _not_negative(self.neck_depth):
            raise ValueError(
                f"EfficientViTConfig.neck_depth must be an integer from 0, got {describe(self.neck_depth)}."
            )
        if self.neighbourhood % 2 == 0:
            raise ValueError(f"EfficientViTConfig.neighbourhood must be odd, got {self.neighbourhood}.")
        attending = [width for width, kind in zip(self.widths[1:], self.kinds, strict=True) if kind == "attention"]
        if any(width % self.head_width for width in attending):
            raise ValueError(
                f"EfficientViTConfig.widths of stages with attention must be divisible by head_width = "
                f"{self.head_width}, got {self.widths}."
            )
        if any(size % 2**stages for size in self.image_size):
            raise ValueError(
                f"EfficientViTConfig.image_size must be two multiples of {2**stages} pixels, got {self.image_size}."
            )
        if self.image_size[0] * self.prompt_frame[1] != self.image_size[1] * self.prompt_frame[0]:
            raise ValueError(
                f"EfficientViTConfig.prompt_frame must have the proportions of image_size = {self.image_size}, "
                f"got {self.prompt_frame}."
            )
        _check_choices(self)

    @property
    def other_maps(self) -> frozenset[str]:
        """The maps beside the embedding that the encoder makes (`sam_jax.ImageFeatures`)."""
        return frozenset()

    def hidden(self, stage: int) -> int:
        """Return the hidden channels of the blocks of a stage, from 1, but its first."""
        return self.ratios[stage - 1] * self.widths[stage]

    def halving_hidden(self, stage: int) -> int:
        """Return the hidden channels of the first block of a stage, from 1, which halves the map."""
        return 4 * self.ratios[stage - 1] * self.widths[stage - 1]


EFFICIENT_VIT_L0 = EfficientViTConfig()
"""`efficientvit_sam_l0` of the official package."""
EFFICIENT_VIT_L1 = EfficientViTConfig(depths=(1, 1, 1, 6, 6), neck_depth=8)
"""`efficientvit_sam_l1` of the official package."""
EFFICIENT_VIT_L2 = EfficientViTConfig(depths=(1, 2, 2, 8, 8), neck_depth=12)
"""`efficientvit_sam_l2` of the official package."""
EFFICIENT_VIT_XL0 = EfficientViTConfig(
    widths=(32, 64, 128, 256, 512, 1024),
    depths=(0, 1, 1, 2, 3, 3),
    kinds=("fused", "fused", "fused", "attention", "attention"),
    ratios=(4, 4, 4, 4, 6),
    neighbourhood=3,
    neck_depth=6,
    neck_ratio=4,
    image_size=(1024, 1024),
)
"""`efficientvit_sam_xl0` of the official package."""
EFFICIENT_VIT_XL1 = dataclasses.replace(EFFICIENT_VIT_XL0, depths=(1, 2, 2, 4, 6, 6), neck_depth=12)
"""`efficientvit_sam_xl1` of the official package."""


@dataclasses.dataclass(frozen=True)
class HieraConfig:
    """Everything about a Hiera that its weights are built or read with.

    The defaults are those of SAM 2's tiny model (`sam2/configs/sam2.1/sam2.1_hiera_t.yaml`). There are four stages; the
    first block of each but the first halves the map.

    Attributes:
      widths: channels of each stage.
      depths: blocks of each stage.
      heads: attention heads of each stage.
      window_sizes: side in tokens of the windows of each stage. The block that halves the map still has the windows of
        the stage before it.
      global_blocks: indices, in rising order, of the blocks that attend to the whole image.
      position_size: height and width of the positions, which are resized to the finest map.
      out_width: channels `c` of the image embedding.
      image_size: height and width in pixels of the input frame.
      preprocessing: what becomes of an image's pixels before.
      dtype: compute dtype. Norms and softmaxes stay in float32 (float64 where that is the compute dtype).
    """

    widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    depths: tuple[int, int, int, int] = (1, 2, 7, 2)
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    window_sizes: tuple[int, int, int, int] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    position_size: tuple[int, int] = (7, 7)
    out_width: int = 256
    image_size: tuple[int, int] = (1024, 1024)
    preprocessing: Preprocessing = "sam2"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        lengths = {"widths": 4, "depths": 4, "heads": 4, "window_sizes": 4, "position_size": 2, "image_size": 2}
        for name, length in lengths.items():
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if len(getattr(self, name)) != length or not all(map(_positive, getattr(self, name))):
                raise ValueError(
                    f"HieraConfig.{name} must be {length} positive integers, got {describe(getattr(self, name))}."
                )
        object.__setattr__(self, "global_blocks", tuple(self.global_blocks))
        check_positive(self, "out_width")
        if self.out_width % 8:
            raise ValueError(f"HieraConfig.out_width must be divisible by 8, got {self.out_width}.")
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise ValueError(f"HieraConfig.widths must be divisible by heads = {self.heads}, got {self.widths}.")
        blocks = range(sum(self.depths))
        if sorted(set(self.global_blocks) & set(blocks)) != [*self.global_blocks]:
            raise ValueError(
                f"HieraConfig.global_blocks must be rising indices of the {len(blocks)} blocks, "
                f"got {describe(self.global_blocks)}."
            )
        if any(self.is_pooling(i) for i in self.global_blocks):
            raise ValueError("HieraConfig.global_blocks must not be the first blocks of stages, which halve the map.")
        if any(size % 2 for size in self.window_sizes[:3]):
            raise ValueError(f"HieraConfig.window_sizes must be even but for the last, got {self.window_sizes}.")
        side = 4 * self.window_sizes[0]
        if any(size % side or size % 32 for size in self.image_size):
            raise ValueError(
                f"HieraConfig.image_size must be two multiples of 32 and of {side} pixels, a window of the finest map, "
                f"got {self.image_size}."
            )
        _check_choices(self)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stage of each block."""
        return tuple(stage for stage, depth in enumerate(self.depths) for _ in range(depth))

    def is_pooling(self, block: int) -> bool:
        """Whether a block halves the map: the first one of a stage, but for the first stage's."""
        return block > 0 and self.stages[block] != self.stages[block - 1]

    def window(self, block: int) -> tuple[int, int]:
        """Return the height and width in tokens of the input that one block attends within."""
        stage = self.stages[block - 1] if self.is_pooling(block) else self.stages[block]
        if block in self.global_blocks:
            height, width = self.image_size
            return height >> 2 + stage, width >> 2 + stage
        return self.window_sizes[stage], self.window_sizes[stage]

    @property
    def other_maps(self) -> frozenset[str]:
        """The maps beside the embedding that the encoder makes (`sam_jax.ImageFeatures`)."""
        return frozenset({"stride_8", "stride_4"})

    @property
    def prompt_frame(self) -> tuple[int, int]:
        """Height and width in pixels of the frame that prompts live in: the decoder's `image_size`."""
        return self.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width `h w` of the image embedding."""
        return self.image_size[0] // 16, self.image_size[1] // 16


HIERA_TINY = HieraConfig()
"""SAM 2's and SAM 2.1's tiny model."""
HIERA_SMALL = HieraConfig(depths=(1, 2, 11, 2), global_blocks=(7, 10, 13))
"""Their small model."""
HIERA_BASE_PLUS = HieraConfig(
    widths=(112, 224, 448, 896),
    depths=(2, 3, 16, 3),
    heads=(2, 4, 8, 16),
    global_blocks=(12, 16, 20),
    position_size=(14, 14),
)
"""Their base_plus model."""
HIERA_LARGE = HieraConfig(
    widths=(144, 288, 576, 1152),
    depths=(2, 6, 36, 4),
    heads=(2, 4, 8, 16),
    window_sizes=(8, 4, 16, 8),
    global_blocks=(23, 33, 43),
)
"""Their large model."""

EncoderConfig = ViTConfig | TinyViTConfig | EfficientViTConfig | HieraConfig

KINDS: dict[str, type[EncoderConfig]] = {
    "vit": ViTConfig,
    "tiny_vit": TinyViTConfig,
    "efficient_vit": EfficientViTConfig,
    "hiera": HieraConfig,
}
"""The kinds of encoder: Meta's ViT, MobileSAM's TinyViT, EfficientViT-SAM's, and SAM 2's Hiera."""

SIZES: dict[str, EncoderConfig] = {
    "ViT-B": VIT_B,
    "ViT-L": VIT_L,
    "ViT-H": VIT_H,
    "50 % pruned": SLIM_SAM_50,
    "77 % pruned": SLIM_SAM_77,
    "Ti": EFFICIENT_SAM_TI,
    "S": EFFICIENT_SAM_S,
    "l0": EFFICIENT_VIT_L0,
    "l1": EFFICIENT_VIT_L1,
    "l2": EFFICIENT_VIT_L2,
    "xl0": EFFICIENT_VIT_XL0,
    "xl1": EFFICIENT_VIT_XL1,
    "tiny": HIERA_TINY,
    "small": HIERA_SMALL,
    "base_plus": HIERA_BASE_PLUS,
    "large": HIERA_LARGE,
}
"""Published encoders of families that have several, by their sizes' names."""

_WITHOUT_TENSORS = {"image_size", "grid_size", "prompt_frame", "preprocessing", "dtype", "early_feature", "remat"}
"""Settings by which no encoder has other weights."""

_MOST_BLOCKS = 1024
"""More than any encoder has. A hostile file must not get to ask for settings that fill the memory."""


def size_of(config: EncoderConfig) -> str | None:
    """Return which of `SIZES` an encoder has, whatever the size of its images; None for another one."""

    def parts(config: EncoderConfig) -> dict[str, Any]:
        return {name: value for name, value in config_to_dict(config).items() if name not in _WITHOUT_TENSORS}

    return next((name for name, known in SIZES.items() if parts(known) == parts(config)), None)


def title_of(config: EncoderConfig) -> str:
    """Return the name in print of the kind of encoder that settings are for."""
    return type(config).__name__.removesuffix("Config")


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
    for count in (values.get("depth"), values.get("neck_depth"), *values.get("depths", ())):
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
        return make_config(**_with_mlp_width(values))
    except TypeError as error:
        raise ValueError(f"An encoder's settings have a value of a wrong type: {error}.") from error


def _with_mlp_width(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a ViT that were written with `mlp_ratio`, a multiple of the width, as they are now."""
    if values["kind"] != "vit" or "mlp_ratio" not in values:
        return values
    ratio, width = values["mlp_ratio"], values.get("width", ViTConfig.width)
    kept = {name: value for name, value in values.items() if name != "mlp_ratio"}
    return kept | {"mlp_width": ratio * width if type(ratio) is type(width) is int else ratio}
