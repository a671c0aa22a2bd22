"""Tables between PyTorch's and Flax's names, and that of the prompt encoder and the mask decoder.

Each row names modules; its layout names their tensors. Everything else follows from the rows: the names in either
direction, the shapes that a configuration asks for, and the sizes that a file's shapes speak of.
"""

import collections
import dataclasses
import functools
import itertools
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sam_jax.config import SamConfig
from sam_jax.convert.tables.layouts import (
    CONV,
    CONV_TRANSPOSE,
    DENSE,
    EMBEDDING,
    MAP_VECTOR,
    NORM,
    RAW,
    Layout,
    Leaf,
)

Naming = Literal["meta", "hf"]
NAMINGS: tuple[Naming, ...] = ("meta", "hf")
"""Meta's names (`segment_anything`), and those of `SamModel` in Hugging Face transformers."""

Shape = tuple[int, ...]


def always(config: Any, naming: Naming) -> bool:
    """Whether a row is there that every network has in every naming."""
    return True


class Row(NamedTuple):
    """Modules of one kind.

    Attributes:
      layout: their tensors.
      size: length of each axis in PyTorch, as symbols of the table, with `/n` for a fraction.
      flax: path in the Flax tree.
      meta: Meta's name.
      hf: Hugging Face's name; Meta's where it is empty.
      when: whether a network has these modules, from its configuration and the naming.

    A name in braces is an index of the table. Tensors along an index that the Flax path lacks are stacked on a new
    first axis.
    """

    layout: Layout
    size: str
    flax: str
    meta: str
    hf: str = ""
    when: Callable[[Any, Naming], bool] = always

    def name(self, naming: Naming) -> str:
        """Return the row's name in a naming."""
        return self.hf or self.meta if naming == "hf" else self.meta


class Spelling(NamedTuple):
    """One value of an index: how each side writes it."""

    flax: str
    meta: str
    hf: str


def numbers(values: Iterable[int], hf_offset: int = 0) -> list[Spelling]:
    """Return the values of an index that counts, alike on every side but for an offset."""
    return [Spelling(str(i), str(i), str(i + hf_offset)) for i in values]


def _words(**torch: str) -> list[Spelling]:
    return [Spelling(flax, name, name) for flax, name in torch.items()]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All modules of a network.

    Attributes:
      rows: its modules.
      indices: name of an index -> what it runs over in a configuration.
      sizes: what the symbols of the rows stand for in a configuration.
    """

    rows: tuple[Row, ...]
    indices: Mapping[str, Callable[[Any], Sequence[Spelling]]]
    sizes: Callable[[Any], Mapping[str, int]]


def _under(flax: str, torch: str, *rows: Row) -> list[Row]:
    """Put rows below a Flax path and a module that both namings know by the same name."""
    return [
        row._replace(flax=flax + row.flax, meta=torch + row.meta, hf=torch + row.hf if row.hf else "") for row in rows
    ]


def only_if(setting: str, *rows: Row) -> list[Row]:
    """Let rows be those of networks in whose configuration a setting is on."""
    return [row._replace(when=lambda config, _: bool(getattr(config, setting))) for row in rows]


def unless(setting: str, *rows: Row) -> list[Row]:
    """Let rows be those of networks in whose configuration a setting is off."""
    return [
        row._replace(when=lambda config, naming, row=row: not getattr(config, setting) and row.when(config, naming))
        for row in rows
    ]


def _one_label_table(config: SamConfig, naming: Naming) -> bool:
    """Whether the labels' embeddings are one tensor: in Hugging Face's SAM 2."""
    return naming == "hf" and config.object_score


def _last_layer(config: SamConfig) -> list[Spelling]:
    """Return the index of the IoU head's last layer, for which EfficientSAM has a name."""
    number = str(config.iou_head_depth - 1)
    return [Spelling(number, "fc" if config.efficient_sam else number, number)]


def _three_layers(out: str) -> list[Row]:
    """Return the rows of a head of three linear layers, whose last has `out` channels."""
    return [
        Row(DENSE, "c c", "layer_0", "layers.0", "proj_in"),
        Row(DENSE, "c c", "layer_1", "layers.1", "layers.0"),
        Row(DENSE, f"{out} c", "layer_2", "layers.2", "proj_out"),
    ]


ROWS: tuple[Row, ...] = (
    Row(
        RAW,
        "2 c/2",
        "constants/prompt_encoder/gaussian_matrix",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    *_under(
        "params/prompt_encoder/",
        "prompt_encoder.",
        *unless(
            "efficient_sam",
            Row(
                EMBEDDING,
                "1 c",
                "label_embedding",
                "point_embeddings.{label}",
                "point_embed.{label}",
                lambda config, naming: not _one_label_table(config, naming),
            ),
            Row(RAW, "4 c", "label_embedding", "point_embeddings", "point_embed.weight", _one_label_table),
            Row(EMBEDDING, "1 c", "not_a_point_embedding", "not_a_point_embed"),
            Row(EMBEDDING, "1 c", "no_mask_embedding", "no_mask_embed"),
            Row(CONV, "k/4 1 2 2", "mask_downscaling/conv_0", "mask_downscaling.0", "mask_embed.conv1"),
            Row(NORM, "k/4", "mask_downscaling/norm_0", "mask_downscaling.1", "mask_embed.layer_norm1"),
            Row(CONV, "k k/4 2 2", "mask_downscaling/conv_1", "mask_downscaling.3", "mask_embed.conv2"),
            Row(NORM, "k", "mask_downscaling/norm_1", "mask_downscaling.4", "mask_embed.layer_norm2"),
            Row(CONV, "c k 1 1", "mask_downscaling/conv_2", "mask_downscaling.6", "mask_embed.conv3"),
        ),
    ),
    *_under(
        "params/mask_decoder/two_way/block_{block}/",
        "mask_decoder.transformer.layers.{block}.",
        Row(DENSE, "c c", "self_attention/{projection}", "self_attn.{projection}_proj"),
        Row(DENSE, "d c", "{cross}/{input}", "cross_attn_{cross}.{input}_proj"),
        Row(DENSE, "c d", "{cross}/out", "cross_attn_{cross}.out_proj"),
        Row(NORM, "c", "norm_{norm}", "norm{norm}", "layer_norm{norm}"),
        *unless(
            "efficient_sam",
            Row(DENSE, "f c", "mlp/layer_0", "mlp.lin1"),
            Row(DENSE, "c f", "mlp/layer_1", "mlp.lin2"),
        ),
    ),
    *_under(
        "params/mask_decoder/two_way/",
        "mask_decoder.transformer.",
        Row(DENSE, "d c", "final_token_to_image/{input}", "final_attn_token_to_image.{input}_proj"),
        Row(DENSE, "c d", "final_token_to_image/out", "final_attn_token_to_image.out_proj"),
        Row(NORM, "c", "final_norm", "norm_final_attn", "layer_norm_final_attn"),
    ),
    *unless(
        "efficient_sam",
        *_under(
            "params/mask_decoder/hypernetworks/",
            "mask_decoder.output_hypernetworks_mlps.{mask}.",
            *_three_layers("c/8"),
        ),
        *_under(
            "params/mask_decoder/iou_head/",
            "mask_decoder.iou_prediction_head.",
            Row(DENSE, "i c", "layer_{first}", "layers.{first}", "proj_in"),
            Row(DENSE, "i i", "layer_{middle}", "layers.{middle}", "layers.{middle}"),
            Row(DENSE, "m i", "layer_{last}", "layers.{last}", "proj_out"),
        ),
    ),
    *_under(
        "params/mask_decoder/",
        "mask_decoder.",
        *only_if("object_score", Row(EMBEDDING, "1 c", "object_token", "obj_score_token")),
        Row(EMBEDDING, "1 c", "iou_token", "iou_token"),
        Row(RAW, "m c", "mask_tokens", "mask_tokens.weight"),
        *unless(
            "efficient_sam",
            Row(CONV_TRANSPOSE, "c c/4 2 2", "upscaling/conv_0", "output_upscaling.0", "upscale_conv1"),
            Row(NORM, "c/4", "upscaling/norm", "output_upscaling.1", "upscale_layer_norm"),
            Row(CONV_TRANSPOSE, "c/4 c/8 2 2", "upscaling/conv_1", "output_upscaling.3", "upscale_conv2"),
        ),
    ),
    *only_if(
        "efficient_sam",
        *_under(
            "params/prompt_encoder/",
            "prompt_encoder.",
            Row(EMBEDDING, "1 c", "label_embedding", "{place}_embeddings"),
            Row(EMBEDDING, "1 c", "not_a_point_embedding", "invalid_points"),
        ),
        *_under(
            "params/mask_decoder/",
            "mask_decoder.",
            Row(DENSE, "f c", "two_way/block_{block}/mlp/layer_0", "transformer.layers.{block}.mlp.layers.0.0"),
            Row(DENSE, "c f", "two_way/block_{block}/mlp/layer_1", "transformer.layers.{block}.mlp.fc"),
            Row(DENSE, "c c", "hypernetworks/layer_0", "output_hypernetworks_mlps.{mask}.layers.0.0"),
            Row(DENSE, "c c", "hypernetworks/layer_1", "output_hypernetworks_mlps.{mask}.layers.1.0"),
            Row(DENSE, "c/8 c", "hypernetworks/layer_2", "output_hypernetworks_mlps.{mask}.fc"),
            Row(DENSE, "i c", "iou_head/layer_{first}", "iou_prediction_head.layers.{first}.0"),
            Row(DENSE, "i i", "iou_head/layer_{middle}", "iou_prediction_head.layers.{middle}.0"),
            Row(DENSE, "m i", "iou_head/layer_{last}", "iou_prediction_head.{last}"),
            Row(CONV_TRANSPOSE, "c c/4 2 2", "upscaling/conv_0", "final_output_upscaling_layers.0.0"),
            Row(NORM, "c/4", "upscaling/norm", "final_output_upscaling_layers.0.1"),
            Row(CONV_TRANSPOSE, "c/4 c/8 2 2", "upscaling/conv_1", "final_output_upscaling_layers.1.0"),
        ),
    ),
    *only_if(
        "object_score",
        *_under(
            "params/mask_decoder/object_head/",
            "mask_decoder.pred_obj_score_head.",
            *_three_layers("1"),
        ),
        Row(MAP_VECTOR, "1 1 c", "constants/image_maps/no_memory", "no_mem_embed", "no_memory_embedding"),
    ),
    *only_if(
        "high_resolution",
        *_under(
            "constants/image_maps/",
            "mask_decoder.",
            Row(CONV, "c/8 c 1 1", "stride_4", "conv_s0"),
            Row(CONV, "c/4 c 1 1", "stride_8", "conv_s1"),
        ),
    ),
    *only_if(
        "hq",
        *_under(
            "params/mask_decoder/hq/",
            "mask_decoder.",
            Row(EMBEDDING, "1 c", "token", "hf_token", "hq_token"),
            Row(DENSE, "c c", "hypernetwork/layer_0", "hf_mlp.layers.0", "hq_mask_mlp.proj_in"),
            Row(DENSE, "c c", "hypernetwork/layer_1", "hf_mlp.layers.1", "hq_mask_mlp.layers.0"),
            Row(DENSE, "c/8 c", "hypernetwork/layer_2", "hf_mlp.layers.2", "hq_mask_mlp.proj_out"),
            Row(CONV, "c/4 c/8 3 3", "mask_feature/conv_0", "embedding_maskfeature.0", "mask_conv1"),
            Row(NORM, "c/4", "mask_feature/norm", "embedding_maskfeature.1", "mask_norm"),
            Row(CONV, "c/8 c/4 3 3", "mask_feature/conv_1", "embedding_maskfeature.3", "mask_conv2"),
        ),
    ),
    *only_if(
        "early_width",
        *_under(
            "params/mask_decoder/hq/",
            "mask_decoder.",
            Row(CONV_TRANSPOSE, "c c/4 2 2", "of_embedding/conv_0", "embedding_encoder.0", "encoder_conv1"),
            Row(NORM, "c/4", "of_embedding/norm", "embedding_encoder.1", "encoder_norm"),
            Row(CONV_TRANSPOSE, "c/4 c/8 2 2", "of_embedding/conv_1", "embedding_encoder.3", "encoder_conv2"),
            Row(CONV_TRANSPOSE, "e c 2 2", "of_early/conv_0", "compress_vit_feat.0", "compress_vit_conv1"),
            Row(NORM, "c", "of_early/norm", "compress_vit_feat.1", "compress_vit_norm"),
            Row(CONV_TRANSPOSE, "c c/8 2 2", "of_early/conv_1", "compress_vit_feat.3", "compress_vit_conv2"),
        ),
    ),
)


INDICES: dict[str, Callable[[SamConfig], Sequence[Spelling]]] = {
    "label": lambda config: numbers(range(4)),
    "place": lambda config: _words(foreground="point", top_left="bbox_top_left", bottom_right="bbox_bottom_right"),
    "mask": lambda config: numbers(range(config.num_masks)),
    "block": lambda config: numbers(range(config.depth)),
    "projection": lambda config: _words(query="q", key="k", value="v", out="out"),
    "input": lambda config: _words(query="q", key="k", value="v"),
    "cross": lambda config: _words(token_to_image="token_to_image", image_to_token="image_to_token"),
    "norm": lambda config: _words(self_attention="1", token_to_image="2", mlp="3", image_to_token="4"),
    # Hugging Face counts the IoU head's layers from the second one.
    "first": lambda config: numbers(range(config.iou_head_depth - 1)[:1]),
    "middle": lambda config: numbers(range(1, config.iou_head_depth - 1), hf_offset=-1),
    "last": _last_layer,
}
"""What each index of `ROWS` runs over."""


def sizes(config: SamConfig) -> dict[str, int]:
    """Return what the symbols of `ROWS` stand for in a configuration."""
    return {
        "c": config.width,
        "d": config.width // config.attention_downsample,
        "f": config.mlp_width,
        "k": config.mask_channels,
        # A head of one layer has no hidden width: its input is the token.
        "i": config.iou_head_width if config.iou_head_depth > 1 else config.width,
        "m": config.num_masks,
        **({"e": config.early_width} if config.early_width else {}),
    }


DECODER = Table(ROWS, INDICES, sizes)
"""The prompt encoder and the mask decoder."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of one PyTorch tensor in the Flax tree.

    Attributes:
      name: of the tensor in a state dict.
      symbols: its shape, as symbols of the table.
      shape: its shape in PyTorch.
      path: of the leaf in the Flax tree, with slashes.
      leaf: the way between the two.
      position: where it lies along the first axis of a stacked leaf; None where it is the leaf.
      stack: how many tensors such a leaf stacks.
    """

    name: str
    symbols: tuple[str, ...]
    shape: Shape
    path: str
    leaf: Leaf
    position: int | None
    stack: int | None

    @property
    def flax_shape(self) -> Shape:
        """Shape of the leaf in the Flax tree."""
        shape = self.leaf.flax_shape(self.shape)
        return shape if self.stack is None else (self.stack, *shape)


@functools.lru_cache(maxsize=8)
def slots(config: Any, naming: Naming, table: Table = DECODER) -> tuple[Slot, ...]:
    """Return one slot for every tensor that a network of this configuration has, each exactly once."""
    rows = (row for row in table.rows if row.when(config, naming))
    return tuple(slot for row in rows for slot in _expand(row, config, naming, table))


def torch_shapes(config: Any, naming: Naming = "meta", table: Table = DECODER) -> dict[str, Shape]:
    """Return the name and shape of every tensor in a state dict of this configuration."""
    return {slot.name: slot.shape for slot in slots(config, naming, table)}


def flax_shapes(config: Any, table: Table = DECODER) -> dict[str, Shape]:
    """Return the path, with slashes, and shape of every leaf in the Flax tree of this configuration."""
    return {slot.path: slot.flax_shape for slot in slots(config, "meta", table)}


def measure(shapes: Mapping[str, Shape], places: Sequence[Slot]) -> dict[str, int]:
    """Return what a table's symbols stand for by the vote of a file's shapes.

    Every axis of every tensor has a say, so that one misshapen tensor is found to be the odd one out, instead of all
    the others. Symbols that no tensor speaks of are left out.
    """
    votes: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for slot in places:
        shape = shapes.get(slot.name, ())
        for symbol, length in zip(slot.symbols, shape, strict=False):
            letter, factor = _parse(symbol)
            if letter and len(shape) == len(slot.symbols):
                votes[letter][length * factor] += 1
    return {letter: counts.most_common(1)[0][0] for letter, counts in votes.items()}


def _expand(row: Row, config: Any, naming: Naming, table: Table) -> Iterator[Slot]:
    known = table.sizes(config)
    symbols = dict(zip(row.layout.axes, row.size.split(), strict=True))
    indices = {field: table.indices[field](config) for field in _fields(row.meta)}
    stacked = next((field for field in indices if field not in _fields(row.flax)), None)
    for values in itertools.product(*indices.values()):
        chosen = dict(zip(indices, values, strict=True))
        name = row.name(naming).format(**{field: getattr(value, naming) for field, value in chosen.items()})
        path = row.flax.format(**{field: value.flax for field, value in chosen.items()})
        for leaf in row.layout.leaves:
            of_leaf = tuple(symbols[axis] for axis in leaf.torch_axes)
            yield Slot(
                name=name + leaf.torch,
                symbols=of_leaf,
                shape=tuple(_evaluate(symbol, known) for symbol in of_leaf),
                path=path + leaf.flax,
                leaf=leaf,
                position=indices[stacked].index(chosen[stacked]) if stacked else None,
                stack=len(indices[stacked]) if stacked else None,
            )


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _parse(symbol: str) -> tuple[str, int]:
    """Return the letter and the denominator of a symbol such as `c/4`; a number has no letter."""
    letter, _, denominator = symbol.partition("/")
    return ("", int(letter)) if letter.isdigit() else (letter, int(denominator or 1))


def _evaluate(symbol: str, known: Mapping[str, int]) -> int:
    letter, number = _parse(symbol)
    return known[letter] // number if letter else number
