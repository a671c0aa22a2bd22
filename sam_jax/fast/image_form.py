"""The decoder in fewer operations: the plain modules' sums, in an order that depends on how image tokens are held.

The plain form projects all `hw` image tokens ten times per prompt set, to compare them with only a few tokens. Here the
image tokens are behind `ImageForm`, whose two implementations do not project them: `sam_jax.fast.absorbed` writes them
out, for any prompt; `sam_jax.fast.low_rank` never forms them, where prompt sets share an image. `decode_form` is the
rest of the decoder, the same for both.

All prompt sets go through the tokens' side together, so that weights are read once; whether the image's side takes them
together or in turn is the form's choice, and the upscaling is in turn. On the image's side, pixels are the last axis:
softmaxes over tokens, norms and GELUs run along contiguous memory, and products read their operands in the order in
which these are stored.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features, maps_of
from sam_jax.decoder.layers import CONV_NORM_EPS, gelu, layer_norm
from sam_jax.decoder.mask_decoder import GROUP_NORM_EPS, DecoderOutput
from sam_jax.decoder.model import MaskPrediction, Sam, prediction_of
from sam_jax.decoder.prompt_encoder import PromptEncoder
from sam_jax.decoder.two_way import TwoWayBlock
from sam_jax.fast.platforms import on_cpu
from sam_jax.precision import precise
from sam_jax.prompts import Prompts

Params = Any
"""The parameters of a module: nested dicts."""


@runtime_checkable
class ImageForm(Protocol):
    """How image tokens are held and multiplied. `image` is the form's own type: the image tokens of all prompt sets."""

    def gather(
        self, block: int, params: Params, image: Any, query: Float[Array, "p heads n d"]
    ) -> tuple[Float[Array, "p heads n d"], Any]:
        """Return the values that scaled queries gather in a block's token-to-image attention, or in the final one.

        Returns:
          the values, and the image tokens as they are read from then on.
        """
        ...

    def update(
        self,
        block: int,
        params: Params,
        image: Any,
        key: Float[Array, "p heads n d"],
        value: Float[Array, "p heads n d"],
        token_mask: Bool[Array, "p n"],
    ) -> Any:
        """Return the image tokens after a block's image-to-token attention, its keys scaled, and the norm after it."""
        ...

    def masks(self, image: Any, head: "MaskHead") -> tuple[Float[Array, "p m my mx"], Float[Array, "p my mx"] | None]:
        """Return the low-res logits of every mask, and those of the HQ mask where there is one."""
        ...


@struct.dataclass
class HeadMaps:
    """What the image alone gives to the mask head, in the order of its readers; None where a family has no such map.

    Attributes:
      stride_8: SAM 2's map at twice the resolution, centred over its channels, by sub-pixel and channel.
      stride_4: its map at four times the resolution, by sub-pixel.
      hq: the image's part of the HQ mask's features.
    """

    stride_8: Float[Array, "*image o hw"] | None = None
    stride_4: Float[Array, "*image 16 d hw"] | None = None
    hq: Float[Array, "*image my mx d"] | None = None


@struct.dataclass
class WrittenImage:
    """An image for the forms that write image tokens out, in the compute dtype, with pixels last.

    Attributes:
      embedding: the image embedding.
      position: the positional part of image tokens.
      head: what the mask head takes.
    """

    embedding: Float[Array, "*image c hw"]
    position: Float[Array, "*image c hw"]
    head: HeadMaps


class MaskHead(NamedTuple):
    """What makes masks of the image tokens.

    Attributes:
      config: settings of the decoder.
      params: the mask decoder's.
      maps: what the image alone gives.
      weights: what the upscaled tokens are multiplied with, for every mask.
      hq_weights: what the HQ mask's features are multiplied with; None without one.
    """

    config: SamConfig
    params: Params
    maps: HeadMaps
    weights: Float[Array, "p m d"]
    hq_weights: Float[Array, "p d"] | None


@precise
def head_maps(model: Sam, variables: Any, features: Features) -> HeadMaps:
    """Return the head's maps of one image."""
    dtype, maps = model.config.dtype, maps_of(features)
    h, w, _ = maps["embedding"].shape
    stride_8 = stride_4 = hq = None
    if "stride_8" in maps:
        x = jnp.asarray(maps["stride_8"], dtype)
        x = (x - x.mean(-1, keepdims=True)).reshape(h, 2, w, 2, -1)
        stride_8 = x.transpose(1, 3, 4, 0, 2).reshape(-1, h * w)
    if "stride_4" in maps:
        x = jnp.asarray(maps["stride_4"], dtype).reshape(h, 2, 2, w, 2, 2, -1)
        stride_4 = x.transpose(1, 4, 2, 5, 6, 0, 3).reshape(16, -1, h * w)
    if "early" in maps:
        head = model.bind(variables).mask_decoder.hq
        hq = head.image_features(jnp.asarray(maps["embedding"], dtype), jnp.asarray(maps["early"], dtype))
    return HeadMaps(stride_8, stride_4, hq)


def forgetful(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function be computed a second time for gradients: to keep its arrays would take longer.

    Outside of a loop XLA merges both times, and keeps them.
    """
    return jax.checkpoint(function, prevent_cse=False)


def in_turn(function: Callable[..., Any], *inputs: Any) -> Any:
    """Map over the leading axis: on a CPU one entry after the other, so that its arrays stay in the caches."""

    def one_by_one(*inputs: Any) -> Any:
        return lax.map(lambda entry: forgetful(function)(*entry), inputs)

    # Forgetful as a whole, too: gradients would keep the arrays of both.
    return forgetful(functools.partial(on_cpu, one_by_one, jax.vmap(function)))(*inputs)


def product(subscripts: str, *operands: Array) -> Array:
    """Return an einsum, in float32 at least. Of several operands, the cheapest pair is multiplied first.

    Where an operand is float32, the product is, also on a device that multiplies in less.
    """
    given = jnp.result_type(*operands)
    dtype = jnp.promote_types(given, jnp.float32)
    precision = lax.Precision.HIGHEST if given == dtype else None
    return jnp.einsum(subscripts, *operands, preferred_element_type=dtype, precision=precision)


def unfused(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return `x` as it is, computed on its own.

    XLA's CPU backend fuses a product with what is before and after it. A chain of products, or of a product and a
    reduction, then takes up to twice as long. It does not see that rounding to the type's own precision does nothing.
    Others fuse what is worth it.
    """
    info = jnp.finfo(x.dtype)
    return on_cpu(lambda x: lax.reduce_precision(x, info.nexp, info.nmant), lambda x: x, x)


def channels_first(x: Float[Array, "h w c"]) -> Float[Array, "c hw"]:
    """Return a map with its pixels as the last axis.

    Row by row: XLA would fuse a transposition of the whole into every reader, which would read with large strides.
    """
    rows = in_turn(jnp.transpose, x)
    return jnp.swapaxes(rows, 0, 1).reshape(x.shape[-1], -1)


def grid_positions(encoder: PromptEncoder, grid_size: tuple[int, int]) -> Float[Array, "c hw"]:
    """Return the positional part of the image tokens. It is made in this order, so that nothing is transposed."""
    positions = jnp.moveaxis(encoder.positions(grid_size), -1, 0)
    return positions.reshape(len(positions), -1)


@precise
def written_image(model: Sam, variables: Any, features: Features) -> WrittenImage:
    """Return an image for the forms that write image tokens out."""
    encoder, embedding = model.bind(variables).prompt_encoder, jnp.asarray(maps_of(features)["embedding"])
    h, w, _ = embedding.shape
    position = grid_positions(encoder, (h, w))
    embedding = channels_first(embedding.astype(model.config.dtype))
    return WrittenImage(embedding, position, head_maps(model, variables, features))


def image_tokens(
    encoder: PromptEncoder, image: WrittenImage, grid_size: tuple[int, int], prompts: Prompts
) -> Float[Array, "#p c hw"]:
    """Return the image tokens before the first block: of each prompt set where some have a mask, or of all."""
    if prompts.masks is None:
        return (image.embedding + encoder.dense((1, 1), None, None).reshape(-1, 1))[None]
    dense = jax.vmap(functools.partial(encoder.dense, grid_size))(prompts.masks, prompts.has_mask)
    return image.embedding[None] + jax.vmap(channels_first)(dense)


def decoder_params(dtype: Any, variables: Any) -> Params:
    """Return the mask decoder's parameters in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), variables["params"]["mask_decoder"])


def linear(params: Params, x: Float[Array, "*n channels"]) -> Float[Array, "*n out"]:
    """Return what `nn.Dense` of these parameters makes of the last axis."""
    bias = jnp.expand_dims(params["bias"], tuple(range(x.ndim - 1)))
    return x.astype(params["kernel"].dtype) @ params["kernel"] + bias


def heads_of(x: Float[Array, "*batch n channels"], heads: int) -> Float[Array, "*batch heads n d"]:
    """Return the channels split by head."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], heads, -1), -2, -3)


def joined(x: Float[Array, "*batch heads n d"]) -> Float[Array, "*batch n channels"]:
    """Return the channels of all heads: the inverse of `heads_of`."""
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*x.shape[:-2], -1)


def scaled(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Return vectors for which the products with others are attention logits."""
    return x * x.shape[-1] ** -0.5


def token_weights(
    logits: Float[Array, "heads *p n hw"], token_mask: Bool[Array, "*p n"]
) -> Float[Array, "heads *p n hw"]:
    """Return the softmax over tokens: what each pixel takes of each token's value."""
    logits = jnp.where(token_mask[None, ..., None], logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(unfused(logits), axis=-2)


def decode_form(
    model: Sam,
    variables: Any,
    form: ImageForm,
    image: Any,
    head: HeadMaps,
    prompts: Prompts,
) -> MaskPrediction:
    """Return the masks of prompt sets on one image: what `Sam` computes, with the image tokens in another form.

    Args:
      model: the decoder.
      variables: its variables.
      form: how the image tokens are held.
      image: the image tokens before the first block.
      head: what the image alone gives to the mask head.
      prompts: prompts with axis [prompt set]; mask prompts are in `image` already.
    """
    sam = model.bind(variables)
    decoder = sam.mask_decoder
    params = decoder_params(model.config.dtype, variables)
    outputs = decoder.output_tokens()
    sets = prompts.valid.shape[0]
    sparse, token_mask = jax.vmap(sam.prompt_encoder.tokens)(prompts)
    tokens = jnp.concatenate([jnp.broadcast_to(outputs, (sets, *outputs.shape)), sparse], axis=1)
    token_mask = jnp.concatenate([jnp.ones((sets, len(outputs)), bool), token_mask], axis=1)

    tokens, image = two_way(model, params["two_way"], form, tokens, image, token_mask, len(outputs))
    heads = jax.vmap(decoder.heads)(tokens)
    logits, hq = form.masks(image, MaskHead(model.config, params, head, heads.weights, heads.hq))
    return prediction_of(model.config, DecoderOutput(logits, heads.iou, heads.object_score, hq), prompts.valid)


def masks_in_turn(
    head: MaskHead, convolve: Callable[..., Float[Array, "o hw"]], parts: tuple[Array, ...]
) -> tuple[Float[Array, "p m my mx"], Float[Array, "p my mx"] | None]:
    """Return the low-res logits, as `ImageForm.masks`, one prompt set after the other.

    Args:
      head: what makes masks.
      convolve: the first transposed convolution of one prompt set, as `first_convolution` has it.
      parts: what it takes, for all prompt sets.
    """
    params, maps, grid_size = head.params, head.maps, head.config.grid_size

    def logits_of(parts: tuple[Array, ...], weights: Array, hq_weights: Array | None) -> tuple[Array, Array | None]:
        upscaled = upscale(params["upscaling"], convolve(*parts), maps, whole_map=head.config.efficient_sam)
        logits = in_order(product("kmd,kdx->kmx", jnp.broadcast_to(weights, (16, *weights.shape)), upscaled), grid_size)
        if hq_weights is None:
            return logits, None
        return logits, hq_logits(params["hq"]["mask_feature"], upscaled, grid_size, hq_weights, maps.hq)

    return in_turn(logits_of, parts, head.weights, head.hq_weights)


def two_way(
    model: Sam,
    params: Params,
    form: ImageForm,
    tokens: Float[Array, "p n c"],
    image: Any,
    token_mask: Bool[Array, "p n"],
    outputs: int,
) -> tuple[Float[Array, "p {outputs} c"], Any]:
    """Return output tokens and image tokens after all blocks and the final attention (`TwoWayTransformer`).

    The arguments are as there. Only the `outputs` tokens in front take part in the final attention: nothing reads the
    others.
    """
    config = model.config
    position = tokens

    def gather(block: int, attention: Params, tokens: Array) -> tuple[Array, Any]:
        query = scaled(heads_of(linear(attention["query"], tokens), config.heads))
        values, read = form.gather(block, attention, image, query)
        return linear(attention["out"], joined(values)), read

    for i in range(config.depth):
        weights = params[f"block_{i}"]
        block = TwoWayBlock(config, first=i == 0).bind({"params": weights})
        tokens = jax.vmap(block.among_tokens)(tokens, position, token_mask)
        gathered, image = gather(i, weights["token_to_image"], tokens + position)
        tokens = block.norm_token_to_image(tokens + gathered)
        tokens = block.norm_mlp(tokens + block.mlp(tokens))

        attention = weights["image_to_token"]
        key = scaled(heads_of(linear(attention["key"], tokens + position), config.heads))
        value = heads_of(linear(attention["value"], tokens), config.heads)
        image = form.update(i, weights, image, key, value, token_mask)
    tokens, position = tokens[:, :outputs], position[:, :outputs]
    gathered, image = gather(config.depth, params["final_token_to_image"], tokens + position)
    norm = layer_norm(config.final_norm_eps, jnp.dtype(config.dtype)).bind({"params": params["final_norm"]})
    return norm(tokens + gathered), image


def upscale(
    params: Params, convolved: Float[Array, "o hw"], head: HeadMaps, whole_map: bool = False
) -> Float[Array, "16 d hw"]:
    """Return the upscaled image tokens of one prompt set, by sub-pixel (`Upscaling`).

    A transposed convolution with kernel 2 and stride 2 is a matrix product with one row per sub-pixel and channel.
    Sub-pixels stay apart up to the masks, which are few.

    Args:
      params: the upscaling's.
      convolved: the first transposed convolution, centred: the norm after it has no mean to subtract, only a variance
        to divide by.
      head: what the image adds.
      whole_map: whether the norm is over the whole map, as EfficientSAM's. Then it does subtract the mean.
    """
    norm, second = params["norm"], params["conv_1"]
    x = unfused(convolved if head.stride_8 is None else convolved + head.stride_8).reshape(4, len(norm["scale"]), -1)
    if whole_map:
        x = x - x.mean()
        x = x * lax.rsqrt(jnp.square(x).mean() + GROUP_NORM_EPS)
    else:
        x = x * unfused(lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + CONV_NORM_EPS))
    x = gelu(x * norm["scale"][None, :, None] + norm["bias"][None, :, None]).astype(second["kernel"].dtype)
    rows = second["kernel"].reshape(-1, x.shape[1])
    # One product per sub-pixel: on a CPU, XLA would make sub-pixels and pixels one axis, and transpose operand and
    # result for it.
    rows = on_cpu(lax.optimization_barrier, lambda rows: rows, jnp.broadcast_to(rows, (4, *rows.shape)))
    x = jnp.einsum("kor,krx->kox", rows, x).reshape(16, len(second["bias"]), -1) + second["bias"][None, :, None]
    return gelu(x if head.stride_4 is None else x + head.stride_4)


def hq_logits(
    params: Params,
    upscaled: Float[Array, "16 d hw"],
    grid_size: tuple[int, int],
    weights: Float[Array, " d"],
    of_image: Float[Array, "my mx d"] | None,
) -> Float[Array, "my mx"]:
    """Return the logits of one prompt set's HQ mask.

    What follows the last GELU is linear, so the weights are taken into the last convolution, which then has one output:
    for each place of its kernel a product over the channels, before that place's shift.

    Args:
      params: those of `MaskFeatures`.
      upscaled: the upscaled image tokens, by sub-pixel.
      grid_size: rows and columns of image tokens.
      weights: what the features are multiplied with.
      of_image: the image's part of the features.
    """
    first, norm, last = params["conv_0"], params["norm"], params["conv_1"]
    kernel, bias = (x - x.mean(-1, keepdims=True) for x in (first["kernel"], first["bias"]))
    second = product("yxio,o->yxi", last["kernel"], weights).reshape(9, -1).astype(upscaled.dtype)

    def places(convolved: Float[Array, "o x"]) -> Float[Array, "9 x"]:
        x = convolved + bias[:, None]
        x = x * unfused(lax.rsqrt(jnp.square(x).mean(0, keepdims=True) + CONV_NORM_EPS))
        x = gelu(x * norm["scale"][:, None] + norm["bias"][:, None]).astype(upscaled.dtype)
        return product("ko,ox->kx", second, x)

    def by_sub_pixel(upscaled: Float[Array, "16 d hw"]) -> Float[Array, "9 my mx"]:
        return in_order(by_neighbours(places, kernel, upscaled, grid_size), grid_size)

    def as_map(upscaled: Float[Array, "16 d hw"]) -> Float[Array, "9 my mx"]:
        convolved = convolve3x3(in_order(upscaled, grid_size), kernel)
        return places(convolved.reshape(len(convolved), -1)).reshape(9, *convolved.shape[1:])

    logits = sum_of_places(on_cpu(by_sub_pixel, as_map, upscaled)) + product("o,o->", last["bias"], weights)
    return logits if of_image is None else logits + product("yxd,d->yx", of_image, weights)


def by_neighbours(
    function: Callable[[Float[Array, "o hw"]], Float[Array, "k hw"]],
    kernel: Float[Array, "3 3 d o"],
    maps: Float[Array, "16 d hw"],
    grid_size: tuple[int, int],
) -> Float[Array, "16 k hw"]:
    """Return what a function makes of a convolution by 3 x 3 pixels with zeros around, a sub-pixel after the other.

    A sub-pixel's neighbours are other sub-pixels, of its image token or of the next one. So the convolution is a
    product with nine whole maps, and what is made of it stays in the caches. In a loop, XLA's own convolution on a CPU
    takes a hundred times as long.
    """
    (_, depth, pixels), outputs = maps.shape, kernel.shape[-1]
    weights = jnp.moveaxis(kernel, -1, 0).reshape(outputs, -1)
    neighbours = with_neighbours(maps, grid_size)
    first_row, first_column, row, column = np.unravel_index(np.arange(16), (2, 2, 2, 2))

    def one(place: tuple[Array, Array]) -> Float[Array, "k hw"]:
        around = lax.dynamic_slice(neighbours, (*place, 0, 0), (3, 3, depth, pixels))
        return function(product("oi,ix->ox", weights, around.reshape(-1, pixels)))

    return lax.map(forgetful(one), (2 * first_row + row, 2 * first_column + column))


def with_neighbours(maps: Float[Array, "16 d hw"], grid_size: tuple[int, int]) -> Float[Array, "6 6 d hw"]:
    """Return the 4 x 4 sub-pixels of each image token and those around them, with zeros around the map."""
    number, (h, w) = maps.shape[1], grid_size
    x = maps.reshape(2, 2, 2, 2, number, h, w).transpose(0, 2, 1, 3, 4, 5, 6).reshape(4, 4, number, h, w)
    for axis, of_tokens in ((0, 3), (1, 4)):
        last, first = lax.slice_in_dim(x, 3, 4, axis=axis), lax.slice_in_dim(x, 0, 1, axis=axis)
        x = jnp.concatenate([moved(last, 1, of_tokens), x, moved(first, -1, of_tokens)], axis)
    return x.reshape(6, 6, number, h * w)


def moved(x: Float[Array, "*shape"], by: int, axis: int) -> Float[Array, "*shape"]:
    """Return an array moved along an axis, with zeros where nothing comes from."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(by, -by, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])


def convolve3x3(x: Float[Array, "i my mx"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "o my mx"]:
    """Return XLA's convolution with zeros around the map, in float32 at least."""
    dtype = jnp.promote_types(jnp.result_type(x, kernel), jnp.float32)
    layout = ("NCHW", "HWIO", "NCHW")
    out = lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)
    return out[0].astype(dtype)


def sum_of_places(maps: Float[Array, "9 my mx"]) -> Float[Array, "my mx"]:
    """Return the sum of nine maps, each as the pixel of a 3 x 3 kernel sees it that has its place, row by row."""
    places = itertools.product((1, 0, -1), repeat=2)
    return functools.reduce(jnp.add, (moved(moved(x, dy, 0), dx, 1) for x, (dy, dx) in zip(maps, places, strict=True)))


def in_order(maps: Float[Array, "16 m hw"], grid_size: tuple[int, int]) -> Float[Array, "m my mx"]:
    """Return maps from their sub-pixels: axes (row, column) of the first convolution, of the second, map, pixel."""
    number, (h, w) = maps.shape[1], grid_size
    maps = maps.reshape(2, 2, 2, 2, number, h, w).transpose(4, 5, 0, 2, 6, 1, 3)
    return maps.reshape(number, 4 * h, 4 * w)


def first_convolution(config: SamConfig, params: Params) -> tuple[Float[Array, "o c"], Float[Array, " o"]]:
    """Return the first transposed convolution's kernel and bias as the norm after it wants them.

    Centred, but where the norm is over the whole map: its mean is not that of a pixel.
    """
    if not config.efficient_sam:
        return centred_kernel(params)
    kernel = params["kernel"]
    return kernel.reshape(-1, kernel.shape[-1]), jnp.tile(params["bias"], 4)


def centred_kernel(params: Params) -> tuple[Float[Array, "o c"], Float[Array, " o"]]:
    """Return a transposed convolution's kernel and bias by sub-pixel and channel, less their mean over channels."""
    kernel = params["kernel"]
    kernel = kernel - kernel.mean(2, keepdims=True)
    bias = params["bias"] - params["bias"].mean()
    return kernel.reshape(-1, kernel.shape[-1]), jnp.tile(bias, 4)
