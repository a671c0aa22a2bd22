"""The tables between PyTorch's and Flax's names of the image encoders.

The Flax paths are those of the encoder's own variables; the names in PyTorch are those of a whole model.
"""

from collections.abc import Callable, Sequence

from sam_jax.convert.tables.layouts import CONV, DENSE, MAP_VECTOR, NORM, RAW, SEQUENCE, Layout, Leaf
from sam_jax.convert.tables.rules import Row, Spelling, Table, numbers, only_if, unless
from sam_jax.encoders.config import EfficientViTConfig, HieraConfig, TinyViTConfig, ViTConfig

CONV_WITHOUT_BIAS = Layout(CONV.leaves[:1])
"""`nn.Conv2d(bias=False)` and `nn.Conv(use_bias=False)`."""

STATISTICS = Layout((Leaf(".running_mean", "/mean", "c", "c"), Leaf(".running_var", "/variance", "c", "c")))
"""What `nn.BatchNorm2d` has measured."""

MAP = Layout((Leaf("", "", "nhwc", "hwc"),))
"""A map of vectors that PyTorch gives an axis of length one for the image. The row names the tensor, not a module."""


CHANNELS_FIRST_MAP = Layout((Leaf("", "", "nchw", "hwc"),))
"""A map of vectors, channels first in PyTorch. The row names the tensor, not a module."""


def _under(flax: str, meta: str, hf: str, *rows: Row) -> list[Row]:
    """Put rows below a Flax path and a module that each naming has its own name for."""
    return [
        row._replace(flax=flax + row.flax, meta=meta + row.meta, hf=hf + (row.hf or row.meta) if hf else "")
        for row in rows
    ]


VIT_ROWS: tuple[Row, ...] = (
    *_under(
        "params/",
        "image_encoder.",
        "vision_encoder.",
        Row(CONV, "c 3 p p", "patch_embedding", "patch_embed.proj", "patch_embed.projection"),
        *unless("position_side", Row(MAP, "1 h w c", "position_embedding", "pos_embed")),
        *only_if("position_side", Row(SEQUENCE, "1 n c", "position_embedding", "pos_embed")),
        Row(CONV_WITHOUT_BIAS, "e c 1 1", "neck/conv_1", "neck.0", "neck.conv1"),
        Row(NORM, "e", "neck/norm_1", "neck.1", "neck.layer_norm1"),
        Row(CONV_WITHOUT_BIAS, "e e 3 3", "neck/conv_2", "neck.2", "neck.conv2"),
        Row(NORM, "e", "neck/norm_2", "neck.3", "neck.layer_norm2"),
    ),
    *_under(
        "params/block_{block}/",
        "image_encoder.blocks.{block}.",
        "vision_encoder.layers.{block}.",
        Row(NORM, "c", "norm_1", "norm1", "layer_norm1"),
        Row(DENSE, "t c", "attention/qkv", "attn.qkv"),
        Row(DENSE, "c c", "attention/out", "attn.proj"),
        Row(NORM, "c", "norm_2", "norm2", "layer_norm2"),
        *unless(
            "position_side",
            Row(DENSE, "f c", "mlp/layer_0", "mlp.lin1"),
            Row(DENSE, "c f", "mlp/layer_1", "mlp.lin2"),
        ),
        *only_if(
            "position_side",
            Row(DENSE, "f c", "mlp/layer_0", "mlp.fc1"),
            Row(DENSE, "c f", "mlp/layer_1", "mlp.fc2"),
        ),
    ),
    *_under(
        "params/block_{windowed}/attention/",
        "image_encoder.blocks.{windowed}.attn.",
        "vision_encoder.layers.{windowed}.attn.",
        Row(RAW, "o d", "relative_height", "rel_pos_h"),
        Row(RAW, "o d", "relative_width", "rel_pos_w"),
    ),
    *_under(
        "params/block_{global}/attention/",
        "image_encoder.blocks.{global}.attn.",
        "vision_encoder.layers.{global}.attn.",
        Row(RAW, "u d", "relative_height", "rel_pos_h"),
        Row(RAW, "v d", "relative_width", "rel_pos_w"),
    ),
)
"""`ImageEncoderViT` in `segment_anything/modeling/image_encoder.py`, `SamVisionEncoder` in Hugging Face; and, with
positions of another grid, `ImageEncoderViT` in `efficient_sam/efficient_sam_encoder.py`.
"""


def _conv_norm(size: str, flax: str, meta: str, conv: str = "c", norm: str = "bn") -> list[Row]:
    """Return the rows of a convolution and its batch norm: in ours, one module in each collection."""
    width = size.split()[0]
    return [
        Row(CONV_WITHOUT_BIAS, size, f"params/{flax}", f"{meta}.{conv}"),
        Row(NORM, width, f"params/{flax}", f"{meta}.{norm}"),
        Row(STATISTICS, width, f"constants/{flax}", f"{meta}.{norm}"),
    ]


def _three_convs(width: str, between: str, out: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of a block of convolutions, or of a merge."""
    return [
        *_conv_norm(f"{between} {width} 1 1", f"{flax}/conv_1", f"{meta}.conv1"),
        *_conv_norm(f"{between} 1 3 3", f"{flax}/conv_2", f"{meta}.conv2"),
        *_conv_norm(f"{out} {between} 1 1", f"{flax}/conv_3", f"{meta}.conv3"),
    ]


def _attention_stage(stage: int, width: str) -> list[Row]:
    """Return the rows of the attention blocks of one stage, whose symbols end with its number."""
    flax, meta = f"stage_{stage}/block_{{block{stage}}}", f"image_encoder.layers.{stage}.blocks.{{block{stage}}}"
    return [
        Row(NORM, width, f"params/{flax}/attention/norm", f"{meta}.attn.norm"),
        Row(DENSE, f"t{stage} {width}", f"params/{flax}/attention/qkv", f"{meta}.attn.qkv"),
        Row(DENSE, f"{width} {width}", f"params/{flax}/attention/out", f"{meta}.attn.proj"),
        Row(RAW, f"h{stage} o{stage}", f"params/{flax}/attention/offset_bias", f"{meta}.attn.attention_biases"),
        *_conv_norm(f"{width} 1 3 3", f"{flax}/conv", f"{meta}.local_conv"),
        Row(NORM, width, f"params/{flax}/mlp_norm", f"{meta}.mlp.norm"),
        Row(DENSE, f"f{stage} {width}", f"params/{flax}/mlp/layer_0", f"{meta}.mlp.fc1"),
        Row(DENSE, f"{width} f{stage}", f"params/{flax}/mlp/layer_1", f"{meta}.mlp.fc2"),
    ]


TINY_VIT_ROWS: tuple[Row, ...] = (
    *_conv_norm("s 3 k k", "stem_0", "image_encoder.patch_embed.seq.0"),
    *_conv_norm("c0 s k k", "stem_1", "image_encoder.patch_embed.seq.2"),
    *_three_convs("c0", "f0", "c0", "stage_0/block_{block0}", "image_encoder.layers.0.blocks.{block0}"),
    *_three_convs("c0", "c1", "c1", "stage_0/merge", "image_encoder.layers.0.downsample"),
    *_attention_stage(1, "c1"),
    *_three_convs("c1", "c2", "c2", "stage_1/merge", "image_encoder.layers.1.downsample"),
    *_attention_stage(2, "c2"),
    *_three_convs("c2", "c3", "c3", "stage_2/merge", "image_encoder.layers.2.downsample"),
    *_attention_stage(3, "c3"),
    Row(CONV_WITHOUT_BIAS, "e c3 1 1", "params/neck/conv_1", "image_encoder.neck.0"),
    Row(NORM, "e", "params/neck/norm_1", "image_encoder.neck.1"),
    Row(CONV_WITHOUT_BIAS, "e e 3 3", "params/neck/conv_2", "image_encoder.neck.2"),
    Row(NORM, "e", "params/neck/norm_2", "image_encoder.neck.3"),
)
"""`TinyViT` in `mobile_sam/modeling/tiny_vit_sam.py`. It does not use `norm_head`, `head` and `num_batches_tracked`."""


def _vit_sizes(config: ViTConfig) -> dict[str, int]:
    """Return what the symbols of `VIT_ROWS` stand for in a configuration."""
    height, width = config.grid_size
    return {
        "c": config.width,
        "t": 3 * config.width,
        "d": config.width // config.heads,
        "f": config.mlp_width,
        "e": config.out_width,
        "p": config.patch_size,
        "h": height,
        "w": width,
        "n": 1 + config.position_side**2,
        "o": 2 * config.window_size - 1,
        "u": 2 * height - 1,
        "v": 2 * width - 1,
    }


VIT = Table(
    VIT_ROWS,
    {
        "block": lambda config: numbers(range(config.depth)),
        # The blocks with relative positions.
        "windowed": lambda config: numbers(
            i for i in range(config.depth) if i not in config.global_blocks and not config.position_side
        ),
        "global": lambda config: numbers(() if config.position_side else config.global_blocks),
    },
    _vit_sizes,
)
"""Meta's ViT, and EfficientSAM's."""


def _tiny_vit_sizes(config: TinyViTConfig) -> dict[str, int]:
    """Return what the symbols of `TINY_VIT_ROWS` stand for in a configuration."""
    sizes = {"s": config.widths[0] // 2, "k": 2 * config.stem_stride - 1, "e": config.out_width}
    for stage, width in enumerate(config.widths):
        sizes |= {f"c{stage}": width, f"t{stage}": 3 * width, f"f{stage}": config.ratio * width}
    for stage, (heads, side) in enumerate(zip(config.heads, config.window_sizes, strict=True), start=1):
        sizes |= {f"h{stage}": heads, f"o{stage}": side * side}
    return sizes


TINY_VIT = Table(
    TINY_VIT_ROWS,
    {f"block{stage}": lambda config, stage=stage: numbers(range(config.depths[stage])) for stage in range(4)},
    _tiny_vit_sizes,
)
"""MobileSAM's TinyViT."""


def _layer(size: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of a `ConvLayer` with a norm."""
    return _conv_norm(size, flax, meta, "conv", "norm")


def _fused(width: str, between: str, out: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of a `FusedMBConv`."""
    return [
        *_layer(f"{between} {width} 3 3", f"{flax}/conv_1", f"{meta}.spatial_conv"),
        *_layer(f"{out} {between} 1 1", f"{flax}/conv_2", f"{meta}.point_conv"),
    ]


def _inverted(width: str, between: str, out: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of an `MBConv` whose last convolution alone has a norm."""
    return [
        Row(CONV, f"{between} {width} 1 1", f"params/{flax}/conv_1", f"{meta}.inverted_conv.conv"),
        Row(CONV, f"{between} 1 3 3", f"params/{flax}/conv_2", f"{meta}.depth_conv.conv"),
        *_layer(f"{out} {between} 1 1", f"{flax}/conv_3", f"{meta}.point_conv"),
    ]


def _attention(width: str, all_heads: str, both: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of a `LiteMLA`."""
    return [
        Row(CONV_WITHOUT_BIAS, f"{all_heads} {width} 1 1", f"params/{flax}/qkv", f"{meta}.qkv.conv"),
        Row(CONV_WITHOUT_BIAS, f"{all_heads} 1 k k", f"params/{flax}/around_1", f"{meta}.aggreg.0.0"),
        Row(CONV_WITHOUT_BIAS, f"{all_heads} d 1 1", f"params/{flax}/around_2", f"{meta}.aggreg.0.1"),
        *_layer(f"{width} {both} 1 1", f"{flax}/out", f"{meta}.proj"),
    ]


_STAGES = range(1, 6)
"""The stages that an EfficientViT can have after the first one."""


def _bottleneck_stage(stage: int) -> list[Row]:
    """Return the rows of one stage of an EfficientViT, whatever its kind; its symbols end with its number.

    An index runs over the blocks of one make, which are none in a stage of another kind.
    """
    before, width, halving, hidden = f"c{stage - 1}", f"c{stage}", f"h{stage}", f"f{stage}"

    def places(index: str) -> tuple[str, str]:
        block = f"{{{index}{stage}}}"
        return f"stage_{stage}/block_{block}", f"image_encoder.backbone.stages.{stage}.op_list.{block}"

    rows = []
    for make, kind in ((_fused, "fused"), (_inverted, "inverted")):
        flax, meta = places(f"halving_{kind}")
        rows += make(before, halving, width, flax, f"{meta}.main")
        flax, meta = places(kind)
        rows += make(width, hidden, width, flax, f"{meta}.main")
    flax, meta = places("attention")
    return [
        *rows,
        *_attention(width, f"t{stage}", f"b{stage}", f"{flax}/attention", f"{meta}.context_module.main"),
        *_inverted(width, hidden, width, f"{flax}/bottleneck", f"{meta}.local_module.main"),
    ]


EFFICIENT_VIT_ROWS: tuple[Row, ...] = (
    *_layer("c0 3 3 3", "stage_0/block_0", "image_encoder.backbone.stages.0.op_list.0"),
    *_layer("c0 c0 3 3", "stage_0/block_{plain}/conv_1", "image_encoder.backbone.stages.0.op_list.{plain}.main.conv1"),
    *_layer("c0 c0 3 3", "stage_0/block_{plain}/conv_2", "image_encoder.backbone.stages.0.op_list.{plain}.main.conv2"),
    *(row for stage in _STAGES for row in _bottleneck_stage(stage)),
    *(
        row
        for stage in _STAGES
        for row in _layer(
            f"n c{stage} 1 1",
            f"neck/input_{{input{stage}}}",
            f"image_encoder.neck.input_ops.{{input{stage}}}.op_list.0",
        )
    ),
    *_fused("n", "m", "n", "neck/block_{neck}", "image_encoder.neck.middle.op_list.{neck}.main"),
    Row(CONV, "e n 1 1", "params/neck/out", "image_encoder.neck.output_ops.0.op_list.0.conv"),
    Row(NORM, "e", "params/neck/norm", "image_encoder.norm"),
)
"""`EfficientViTSamImageEncoder` in `efficientvit/models/efficientvit/sam.py`. It does not use `num_batches_tracked`."""


def _blocks(stage: int, kind: str) -> Callable[[EfficientViTConfig], Sequence[Spelling]]:
    """Return what an index runs over: the blocks of a stage of one kind, but that which halves the map."""
    return lambda config: numbers(range(1, config.depths[stage] + 1) if _kind(config, stage) == kind else ())


def _halving(stage: int, kind: str) -> Callable[[EfficientViTConfig], Sequence[Spelling]]:
    """Return what an index runs over: the block that halves the map. A stage with attention has an inverted one."""
    kinds = ("fused",) if kind == "fused" else ("inverted", "attention")
    return lambda config: numbers([0] if _kind(config, stage) in kinds else ())


def _neck_input(stage: int) -> Callable[[EfficientViTConfig], Sequence[Spelling]]:
    """Return what an index runs over: the place of a stage among the inputs of the neck, the last stage's first."""
    return lambda config: numbers({len(config.widths) - 1 - stage} & {0, 1, 2})


def _kind(config: EfficientViTConfig, stage: int) -> str | None:
    return config.kinds[stage - 1] if stage < len(config.widths) else None


def _efficient_vit_sizes(config: EfficientViTConfig) -> dict[str, int]:
    """Return what the symbols of `EFFICIENT_VIT_ROWS` stand for in a configuration."""
    sizes = {
        "c0": config.widths[0],
        "d": config.head_width,
        "k": config.neighbourhood,
        "n": config.neck_width,
        "m": config.neck_ratio * config.neck_width,
        "e": config.out_width,
    }
    for stage, width in list(enumerate(config.widths))[1:]:
        sizes |= {f"c{stage}": width, f"t{stage}": 3 * width, f"b{stage}": 2 * width}
        sizes |= {f"f{stage}": config.hidden(stage), f"h{stage}": config.halving_hidden(stage)}
    return sizes


EFFICIENT_VIT = Table(
    EFFICIENT_VIT_ROWS,
    {
        "plain": lambda config: numbers(range(1, config.depths[0] + 1)),
        "neck": lambda config: numbers(range(config.neck_depth)),
        **{f"input{stage}": _neck_input(stage) for stage in _STAGES},
        **{f"{kind}{stage}": _blocks(stage, kind) for stage in _STAGES for kind in ("fused", "inverted", "attention")},
        **{f"halving_{kind}{stage}": _halving(stage, kind) for stage in _STAGES for kind in ("fused", "inverted")},
    },
    _efficient_vit_sizes,
)
"""EfficientViT-SAM's."""


HIERA_ROWS: tuple[Row, ...] = (
    *_under(
        "params/",
        "image_encoder.trunk.",
        "vision_encoder.backbone.",
        Row(CONV, "c0 3 7 7", "patch_embedding", "patch_embed.proj", "patch_embed.projection"),
        Row(CHANNELS_FIRST_MAP, "1 c0 p q", "position_embedding", "pos_embed"),
        Row(CHANNELS_FIRST_MAP, "1 c0 w0 w0", "window_position", "pos_embed_window"),
    ),
    *(
        row
        for stage in range(4)
        for row in _under(
            f"params/block_{{block{stage}}}/",
            f"image_encoder.trunk.blocks.{{block{stage}}}.",
            f"vision_encoder.backbone.blocks.{{block{stage}}}.",
            Row(NORM, f"c{stage}", "norm_2", "norm2", "layer_norm2"),
            Row(DENSE, f"c{stage} c{stage}", "out", "attn.proj"),
            Row(DENSE, f"f{stage} c{stage}", "mlp/layer_0", "mlp.layers.0", "mlp.proj_in"),
            Row(DENSE, f"c{stage} f{stage}", "mlp/layer_1", "mlp.layers.1", "mlp.proj_out"),
        )
    ),
    *(
        row
        for stage, before in enumerate((0, 0, 1, 2))
        for index, width in ((f"first{stage}", f"c{before}"), (f"other{stage}", f"c{stage}"))
        for row in _under(
            f"params/block_{{{index}}}/",
            f"image_encoder.trunk.blocks.{{{index}}}.",
            f"vision_encoder.backbone.blocks.{{{index}}}.",
            Row(NORM, width, "norm_1", "norm1", "layer_norm1"),
            Row(DENSE, f"t{stage} {width}", "qkv", "attn.qkv"),
        )
    ),
    *(
        row
        for stage in (1, 2, 3)
        for row in _under(
            f"params/block_{{first{stage}}}/",
            f"image_encoder.trunk.blocks.{{first{stage}}}.",
            f"vision_encoder.backbone.blocks.{{first{stage}}}.",
            Row(DENSE, f"c{stage} c{stage - 1}", "shortcut", "proj"),
        )
    ),
    # The neck counts from the coarsest map.
    *(
        Row(
            CONV,
            f"e c{stage} 1 1",
            f"params/level_{stage}",
            f"image_encoder.neck.convs.{3 - stage}.conv",
            f"vision_encoder.neck.convs.{3 - stage}",
        )
        for stage in range(4)
    ),
    Row(MAP_VECTOR, "1 1 e", "params/no_memory", "no_mem_embed", "no_memory_embedding"),
    Row(CONV, "e/4 e 1 1", "params/stride_8", "mask_decoder.conv_s1"),
    Row(CONV, "e/8 e 1 1", "params/stride_4", "mask_decoder.conv_s0"),
)
"""`Hiera` in `sam2/modeling/backbones/hieradet.py`, its neck, and what of the mask decoder works once per image."""


def _hiera_blocks(stage: int, kind: str) -> Callable[[HieraConfig], Sequence[Spelling]]:
    """Return the indices of a stage's blocks: of all, of the first, or of the others."""

    def indices(config: HieraConfig) -> Sequence[Spelling]:
        start = sum(config.depths[:stage])
        blocks = range(start, start + config.depths[stage])
        return numbers({"block": blocks, "first": blocks[:1], "other": blocks[1:]}[kind])

    return indices


def hiera_sizes(config: HieraConfig) -> dict[str, int]:
    """Return what the symbols of `HIERA_ROWS` stand for in a configuration."""
    by_stage = {"c": 1, "t": 3, "f": 4}
    return {
        "p": config.position_size[0],
        "q": config.position_size[1],
        "w0": config.window_sizes[0],
        "e": config.out_width,
        **{f"{symbol}{i}": by * width for symbol, by in by_stage.items() for i, width in enumerate(config.widths)},
    }


HIERA = Table(
    HIERA_ROWS,
    {f"{kind}{stage}": _hiera_blocks(stage, kind) for kind in ("block", "first", "other") for stage in range(4)},
    hiera_sizes,
)
"""SAM 2's Hiera, its neck and its projections."""
