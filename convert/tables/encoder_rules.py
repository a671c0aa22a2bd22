"""The tables between PyTorch's and Flax's names of the image encoders.

The Flax paths are those of the encoder's own variables; the names in PyTorch are those of a whole model.
"""

from sam_jax.convert.tables.layouts import CONV, DENSE, NORM, RAW, SEQUENCE, Layout, Leaf
from sam_jax.convert.tables.rules import Row, Table, numbers, only_if, unless
from sam_jax.encoders.config import TinyViTConfig, ViTConfig

CONV_WITHOUT_BIAS = Layout(CONV.leaves[:1])
"""`nn.Conv2d(bias=False)` and `nn.Conv(use_bias=False)`."""

STATISTICS = Layout((Leaf(".running_mean", "/mean", "c", "c"), Leaf(".running_var", "/variance", "c", "c")))
"""What `nn.BatchNorm2d` has measured."""

MAP = Layout((Leaf("", "", "nhwc", "hwc"),))
"""A map of vectors that PyTorch gives an axis of length one for the image. The row names the tensor, not a module."""


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


def _conv_norm(size: str, flax: str, meta: str) -> list[Row]:
    """Return the rows of a convolution and its batch norm: in ours, one module in each collection."""
    width = size.split()[0]
    return [
        Row(CONV_WITHOUT_BIAS, size, f"params/{flax}", f"{meta}.c"),
        Row(NORM, width, f"params/{flax}", f"{meta}.bn"),
        Row(STATISTICS, width, f"constants/{flax}", f"{meta}.bn"),
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
        "f": config.mlp_ratio * config.width,
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
