"""Image tokens that are never formed: a table that belongs to the image, plus an update of low rank per prompt set.

Without a mask prompt, the image tokens before the first block, `K` (hw x c), belong to the image alone. A block adds to
them what they gather from the tokens, and normalises. With the attention `A` (hw x heads n) of image tokens to tokens,
the tokens' values `V` (heads n x inner, each row zero outside its head), the output projection `O` (inner x c) and its
bias o',

    Y = K + A V O + 1 o',        LN(Y) = d (Y - mean over channels of Y) w + 1 b',

where w and b are the norm's and d, the *gain*, is one number per pixel. Taking the mean away and multiplying by w is
linear, and can be done to K, O and o once and for all. So after some blocks the image tokens are

    X = d (L0 K + sum over blocks j of Lj (Aj Vj Oj + 1 oj')) + 1 b',

where the *level* Lj of a block is the product of the gains of the norms after it but for the last, d; L0 is that of K,
too; and b has joined the o of the next block. Every linear map of X is

    X W = d (L0 (K W) + F' (V (O W)) + sum of Lj (oj' W)) + b' W,        F = the *factors* Lj Aj of all blocks,

where the *table* K W is computed once per image, the *composed* kernels O W once per checkpoint. And

    1 / d^2 = eps + mean over channels of (L0 K + F' V O + sum of Lj oj')^2

is a quadratic form of the factors and the levels, but for the products of K with O and o, which are tables as well.
Nothing with c channels is formed per pixel and prompt set before the upscaling, which begins with a linear map.

A block adds few factors. In each head a pixel's attention to all tokens sums to one, so the first token's is what the
others leave: its values join the constant, the others' are less them, and heads (n - 1) factors remain. Where that is
more than the `inner` channels of all heads, the factors are the gathered values A V instead.

All prompt sets go through a step together: a product with a table reads it once for all of them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from sam_jax.decoder.features import Features, maps_of
from sam_jax.decoder.model import MaskPrediction, Sam
from sam_jax.fast.image_form import (
    MaskHead,
    Params,
    WrittenImage,
    channels_first,
    decode_form,
    decoder_params,
    first_convolution,
    forgetful,
    linear,
    masks_in_turn,
    product,
    token_weights,
    unfused,
    written_image,
)
from sam_jax.precision import precise
from sam_jax.prompts import Prompts


class Added(NamedTuple):
    """What a block adds to the image tokens of prompt sets, in front of its output projection.

    Attributes:
      maps: A, or the gathered values where these are fewer.
      values: of each map: the tokens' values less the first token's. None where the maps are values already.
      rows: V: the values of the maps that are factors, each in its head's channels.
      first: what every pixel gets: the first token's values, or nothing.
    """

    maps: Float[Array, "heads p n hw"]
    values: Float[Array, "p heads n d"] | None
    rows: Float[Array, "p r inner"]
    first: Float[Array, "p inner"]


class LowRankTokens(NamedTuple):
    """The image tokens of prompt sets after at least one block.

    Attributes:
      gain: d.
      levels: L, of each block.
      factors: F, of all blocks.
      added: what each block added.
    """

    gain: Float[Array, "p hw"]
    levels: Float[Array, "p blocks hw"]
    factors: Float[Array, "p r hw"]
    added: tuple[Added, ...]


@struct.dataclass
class LinearMap:
    """Tables of a linear map of the image tokens.

    Attributes:
      image: K W.
      composed: O W and o' W, of each block before.
      constant: what is added in the end: b' W, the map's bias, and of keys and queries the positional part. Zero before
        the first block, where `image` has these parts of keys and queries.
    """

    image: Float[Array, "*image heads d hw"]
    composed: tuple[Params, ...]
    constant: Float[Array, "*image heads d #hw"]


@struct.dataclass
class GatherTables:
    """Tables of a token-to-image attention."""

    key: LinearMap
    value: LinearMap


@struct.dataclass
class UpdateTables:
    """Tables of an image-to-token attention, and of the norm after it.

    Attributes:
      query: of the attention.
      overlap: for each block up to this one, 2/c O K'.
      offset: for each block up to this one, 2/c o' K'.
      gram: for each pair of these blocks, 1/c of the products of their O, with o' as another row.
      energy: mean over channels of K^2.
    """

    query: LinearMap
    overlap: tuple[Float[Array, "*image heads d hw"], ...]
    offset: tuple[Float[Array, "*image hw"], ...]
    gram: tuple[tuple[Float[Array, "*image inner+1 inner+1"], ...], ...]
    energy: Float[Array, "*image hw"]


@struct.dataclass
class ImageState:
    """Everything that depends on the image and the weights alone. It is the `ImageForm` of `LowRankTokens`.

    `*image` is empty, or one axis of images.

    Attributes:
      written: the image for the forms that write image tokens out, and what it gives to the mask head.
      gathers: tables of the blocks' token-to-image attentions and of the final one.
      updates: tables of the blocks' image-to-token attentions and norms.
      upscaled: tables of `first_convolution`; its channels are those of one head.
      epsilon: that of the blocks' norms.
    """

    written: WrittenImage
    gathers: tuple[GatherTables, ...]
    updates: tuple[UpdateTables, ...]
    upscaled: LinearMap
    epsilon: float = struct.field(pytree_node=False)

    def gather(
        self, block: int, params: Params, image: LowRankTokens | None, query: Float[Array, "p heads n d"]
    ) -> tuple[Float[Array, "p heads n d"], LowRankTokens | None]:
        """Return the gathered values, and the image tokens as they are; see `ImageForm`."""
        return forgetful(gather)(self.gathers[block], image, query), image

    def update(
        self,
        block: int,
        params: Params,
        image: LowRankTokens | None,
        key: Float[Array, "p heads n d"],
        value: Float[Array, "p heads n d"],
        token_mask: Bool[Array, "p n"],
    ) -> LowRankTokens:
        """Return the image tokens with the block's factors, normalised; see `ImageForm`."""
        return forgetful(functools.partial(updated, self.epsilon))(self.updates[block], image, key, value, token_mask)

    def masks(
        self, image: LowRankTokens, head: MaskHead
    ) -> tuple[Float[Array, "p m my mx"], Float[Array, "p my mx"] | None]:
        """Return the low-res logits; see `ImageForm`."""
        return masks_in_turn(head, *self.convolution(image))

    def convolution(self, image: LowRankTokens) -> tuple[Callable[..., Float[Array, "o hw"]], tuple[Array, ...]]:
        """Return the first transposed convolution of one prompt set, and what it takes of all prompt sets."""
        table, dtype = self.upscaled, image.factors.dtype
        rows = jnp.swapaxes(jnp.concatenate(coefficients(image, table.composed), 1), 1, 2).astype(dtype)

        def convolve(
            factors: Float[Array, "r hw"],
            levels: Float[Array, "blocks hw"],
            gain: Float[Array, " hw"],
            rows: Float[Array, "o r+blocks"],
        ) -> Float[Array, "o hw"]:
            maps = unfused(jnp.concatenate([factors, levels.astype(dtype)]))
            low_rank = unfused(product("or,rx->ox", rows, maps))
            return gain[None] * (low_rank + levels[:1] * table.image[0]) + table.constant[0]

        return convolve, (image.factors, image.levels, image.gain, unfused(rows))


def gather(
    tables: GatherTables, image: LowRankTokens | None, query: Float[Array, "p heads n d"]
) -> Float[Array, "p heads n d"]:
    """Return the values that scaled queries gather: sums over pixels, divided by the sums of the weights in the end."""
    logits = unfused(products(image, query, tables.key))
    # The largest logit cancels out; its gradient could be NaN (see `attend_rows`).
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = jnp.swapaxes(weights.sum(-1), 0, 1)[..., None]
    values = gathered(image, weights, tables.value) / total + tables.value.constant[..., 0][None, :, None]
    return values.astype(query.dtype)


def updated(
    epsilon: float,
    tables: UpdateTables,
    image: LowRankTokens | None,
    key: Float[Array, "p heads n d"],
    value: Float[Array, "p heads n d"],
    token_mask: Bool[Array, "p n"],
) -> LowRankTokens:
    """Return the image tokens after an image-to-token attention with scaled keys, and the norm after it."""
    weights = token_weights(products(image, key, tables.query), token_mask)
    return normalised(with_added(image, weights, value), tables, epsilon)


def products(
    image: LowRankTokens | None, vectors: Float[Array, "p heads n d"], table: LinearMap
) -> Float[Array, "heads p n hw"]:
    """Return the products of vectors with a linear map of the image tokens."""
    own = product("phnd,hdx->hpnx", vectors, table.image)
    if image is None:
        return own
    (p, heads, n, d), levels = vectors.shape, image.levels
    rows, constants = (x.reshape(p, -1, heads, d) for x in coefficients(image, table.composed))
    of_factors = product("phnd,prhd->phnr", vectors, rows).astype(vectors.dtype)
    low_rank = product("pkr,prx->pkx", of_factors.reshape(p, heads * n, -1), image.factors)
    low_rank = jnp.swapaxes(low_rank.reshape(p, heads, n, -1), 0, 1)
    of_levels = product("phnd,pbhd->hpnb", vectors, constants)
    inner = levels[None, :, None, 0] * own + low_rank
    for i in range(levels.shape[1]):  # a product with so few rows is a few additions
        inner += of_levels[..., i, None] * levels[None, :, None, i]
    return image.gain[None, :, None] * inner + product("phnd,hdx->hpnx", vectors, table.constant)


def gathered(
    image: LowRankTokens | None, weights: Float[Array, "heads p n hw"], table: LinearMap
) -> Float[Array, "p heads n d"]:
    """Return the sums over pixels, by weight, of a linear map of the image tokens without its constant."""
    heads, p, n, pixels = weights.shape
    dtype = table.image.dtype
    if image is not None:
        weights = weights * image.gain[None, :, None]
    own = weights if image is None else weights * image.levels[None, :, None, 0]
    own = product("hkx,hdx->hkd", own.reshape(heads, p * n, pixels).astype(dtype), table.image)
    own = jnp.swapaxes(own.reshape(heads, p, n, -1), 0, 1)
    if image is None:
        return own
    weights = jnp.swapaxes(weights, 0, 1).reshape(p, heads * n, pixels)
    of_factors = product("pkx,prx->pkr", weights.astype(dtype), image.factors)
    of_levels = product("pkx,pbx->pkb", weights, image.levels)
    of_maps = jnp.concatenate([of_factors, of_levels], -1).reshape(p, heads, n, -1)
    rows = jnp.concatenate(coefficients(image, table.composed), 1).reshape(p, -1, heads, own.shape[-1])
    return own + product("phnr,prhd->phnd", of_maps.astype(dtype), rows.astype(dtype))


def coefficients(
    image: LowRankTokens, composed: tuple[Params, ...]
) -> tuple[Float[Array, "p r out"], Float[Array, "p blocks out"]]:
    """Return what each factor and each level is multiplied with in a linear map whose composed kernels are given."""
    pairs = list(zip(image.added, composed, strict=True))
    rows = [added.rows @ params["kernel"] for added, params in pairs]
    constants = [linear(params, added.first) for added, params in pairs]
    return jnp.concatenate(rows, 1), jnp.stack(constants, 1)


def with_added(
    image: LowRankTokens | None, weights: Float[Array, "heads p n hw"], value: Float[Array, "p heads n d"]
) -> LowRankTokens:
    """Return the image tokens plus what a block adds, not yet normalised: with the gain of the norm before.

    Args:
      image: the image tokens.
      weights: what each pixel takes of each token; they sum to one in each head.
      value: the tokens' values.
    """
    (p, heads, n, d), pixels = value.shape, weights.shape[-1]
    eye = functools.partial(jnp.eye, dtype=value.dtype)
    if n - 1 > d:  # more tokens than channels in a head
        factors = maps = product("hpnx,phnd->hpdx", weights, value).astype(weights.dtype)
        rows, values, first = jnp.broadcast_to(eye(d), (p, heads, d, d)), None, jnp.zeros((p, heads * d), value.dtype)
    else:
        maps, values, first = weights, value - value[:, :, :1], value[:, :, 0].reshape(p, -1)
        factors, rows = maps[:, :, 1:], values[:, :, 1:]
    rank = heads * rows.shape[2]
    rows = (rows[..., None, :] * eye(heads)[None, :, None, :, None]).reshape(p, rank, heads * d)
    factors = jnp.swapaxes(factors, 0, 1).reshape(p, rank, pixels)
    added, ones = Added(maps, values, rows, first), jnp.ones((p, 1, pixels), maps.dtype)
    if image is None:
        return LowRankTokens(ones[:, 0], ones, factors, (added,))
    gain = image.gain[:, None]
    return LowRankTokens(
        gain=image.gain,
        levels=jnp.concatenate([gain * image.levels, ones], 1),
        factors=jnp.concatenate([(gain * image.factors).astype(factors.dtype), factors], 1),
        added=(*image.added, added),
    )


def normalised(image: LowRankTokens, tables: UpdateTables, epsilon: float) -> LowRankTokens:
    """Return the image tokens with the gain of their LayerNorm, whose scale and bias later tables have.

    Args:
      image: the image tokens as `with_added` returns them.
      tables: those of the block.
      epsilon: the norm's.
    """
    of_factors, of_both, of_levels = gram(image, tables)
    levels = [image.levels[:, i] for i in range(image.levels.shape[1])]
    # On its own, because XLA sums up slowly what it fuses with operands that differ in an axis of one.
    squares = unfused(image.factors * unfused(product("prs,psx->prx", of_factors, image.factors)))
    variance = squares.sum(1) + jnp.square(levels[0]) * tables.energy[None]
    with_level = unfused(product("pbr,prx->pbx", 2 * of_both, image.factors))
    for i, level in enumerate(levels):
        added, table = image.added[i], tables.overlap[i]
        overlap = table[:, None] if added.values is None else unfused(product("phnd,hdx->hpnx", added.values, table))
        with_image = product("pk,kx->px", added.first, table.reshape(-1, table.shape[-1])) + tables.offset[i][None]
        with_image += unfused((added.maps * overlap).sum((0, 2)))
        among_levels = sum(of_levels[:, i, j, None] * other for j, other in enumerate(levels))
        variance += level * (levels[0] * with_image + with_level[:, i] + among_levels)
    return image._replace(gain=lax.rsqrt(jnp.maximum(variance, 0) + epsilon))


def gram(
    image: LowRankTokens, tables: UpdateTables
) -> tuple[Float[Array, "p r r"], Float[Array, "p blocks r"], Float[Array, "p blocks blocks"]]:
    """Return 1/c of the products of what factors and levels are multiplied with: V O and o, all centred.

    Returns:
      those of factors with factors, of levels with factors, and of levels with levels.
    """
    rows = []
    for added in image.added:
        constant = jnp.pad(added.first, ((0, 0), (0, 1)), constant_values=1)  # o once
        all_rows = jnp.concatenate([jnp.pad(added.rows, ((0, 0), (0, 0), (0, 1))), constant[:, None]], 1)
        rows.append(all_rows.astype(jnp.promote_types(all_rows.dtype, jnp.float32)))
    pairs = [
        [product("prk,kl,psl->prs", a, table, b) for table, b in zip(tables_of_row, rows, strict=True)]
        for tables_of_row, a in zip(tables.gram, rows, strict=True)
    ]
    factor, level = slice(-1), slice(-1, None)

    def put_together(one: slice, other: slice) -> Array:
        return jnp.block([[x[:, one, other] for x in row] for row in pairs])

    return put_together(factor, factor), put_together(level, factor), put_together(level, level)


@precise
def prepare_image(model: Sam, variables: Any, features: Features) -> ImageState:
    """Return everything about an image that prompt sets without a mask share.

    Under `vmap` over images, what depends on the weights alone is computed once. Tables are float32 at least, as the
    factors are: the gain is a small difference of their products.

    Args:
      model: the decoder.
      variables: its variables.
      features: the image encoder's output, channels last.
    """
    config, channels = model.config, model.config.width
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    params = decoder_params(dtype, variables)
    written = written_image(model, variables, features)
    position = written.position.astype(dtype)
    no_mask = model.bind(variables).prompt_encoder.dense((1, 1), None, None).reshape(-1, 1)
    image = channels_first(jnp.asarray(maps_of(features)["embedding"], dtype)) + no_mask.astype(dtype)
    gathers, updates, outputs, last_bias = [], [], [], jnp.zeros(channels, image.dtype)

    def table(kernel: Float[Array, "c out"], tokens: Float[Array, "c hw"], heads: int) -> Float[Array, "heads d hw"]:
        return product("chd,cx->hdx", kernel.reshape(channels, heads, -1), tokens)

    def linear_map(params: Params, placed: bool, heads: int = config.heads) -> LinearMap:
        """Tables of a dense layer of the image tokens, `placed` where their positional part is added first."""
        kernel = params["kernel"]
        bias = (last_bias @ kernel + params["bias"]).reshape(heads, -1, 1)
        if placed and not updates:
            return LinearMap(table(kernel, image + position, heads) + bias, (), jnp.zeros_like(bias))
        composed = tuple({"kernel": out @ kernel, "bias": constant @ kernel} for out, constant in outputs)
        return LinearMap(
            table(kernel, image, heads), composed, table(kernel, position, heads) + bias if placed else bias
        )

    def gather_tables(attention: Params) -> GatherTables:
        return GatherTables(linear_map(attention["key"], placed=True), linear_map(attention["value"], placed=False))

    for i in range(config.depth):
        block = params["two_way"][f"block_{i}"]
        gathers.append(gather_tables(block["token_to_image"]))
        query, out = linear_map(block["image_to_token"]["query"], placed=True), block["image_to_token"]["out"]
        outputs.append((out["kernel"], out["bias"] + last_bias))

        image = image - image.mean(0, keepdims=True)
        outputs = [(kernel - kernel.mean(-1, keepdims=True), bias - bias.mean()) for kernel, bias in outputs]
        both = [jnp.concatenate([kernel, bias[None]]) for kernel, bias in outputs]
        updates.append(
            UpdateTables(
                query=query,
                overlap=tuple(table(kernel.T, image, config.heads) * (2 / channels) for kernel, _ in outputs),
                offset=tuple(bias @ image * (2 / channels) for _, bias in outputs),
                gram=tuple(tuple(a @ b.T / channels for b in both) for a in both),
                energy=jnp.square(image).mean(0),
            )
        )
        norm = block["norm_image_to_token"]
        image = image * norm["scale"][:, None]
        outputs = [(kernel * norm["scale"][None], bias * norm["scale"]) for kernel, bias in outputs]
        last_bias = norm["bias"]
    gathers.append(gather_tables(params["two_way"]["final_token_to_image"]))
    kernel, bias = first_convolution(config, params["upscaling"]["conv_0"])
    upscaled = linear_map({"kernel": kernel.T, "bias": bias}, placed=False, heads=1)
    return ImageState(written, tuple(gathers), tuple(updates), upscaled, config.block_norm_eps)


@precise
def decode_low_rank(model: Sam, variables: Any, state: ImageState, prompts: Prompts) -> MaskPrediction:
    """Return the masks of prompt sets on one prepared image: those of `Sam`, to rounding.

    All prompt sets are decoded at once, so that the weights are read once; on a CPU about four at a time are fastest.

    Args:
      model: the decoder.
      variables: its variables.
      state: what `prepare_image` returned for the same model and variables.
      prompts: prompts with axis [prompt set].

    Raises:
      ValueError: for mask prompts, with which the image tokens are no longer the image's.
    """
    if prompts.masks is not None:
        raise ValueError(
            "decode_low_rank takes no mask prompts: with one, nothing is the image's alone. decode_absorbed takes them."
        )
    return decode_form(model, variables, state, None, state.written.head, prompts)
