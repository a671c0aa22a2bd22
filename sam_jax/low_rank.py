"""Image tokens that are never formed: a table that belongs to the image, plus an update of low rank per prompt set.

Without a mask prompt, the image tokens before the first block, `K` (hw x c), belong to the image alone. A block adds
to them what they gather from the tokens, and normalises. With the attention `A` (hw x heads n) of image tokens to
tokens, the tokens' values times the output projection, `V` (heads n x c), and that projection's bias b',

    Y = K + A V + 1 b',        LN(Y) = d (Y - mean over channels of Y) w + 1 b,

where w and b are the norm's and d is one number per pixel. Taking the mean away, written as an index c, is linear:

    LN(Y) = d (Kc w) + (d A) (Vc w) + d 1 (b'c w) + 1 b.

That is a *gain* per pixel times a matrix of the image, plus *factors*, maps, times *rows* of c channels; the factors
of the two constants are d and one. The next block does the same to it. So before every block

    X = g K + F' U,        g: hw,   K: hw x c, of the image,   F: r x hw,   U: r x c.

Every linear map of X is `g (K W) + F' (U W)`: the *table* K W is computed once per image, U W from few rows. And

    1 / d^2 = eps + mean over channels of (g Kc + F' Uc)^2
            = eps + g^2 mean(Kc^2) + sum over factors of F * (G F + g O),        G = Uc Uc' / c,   O = 2 Uc Kc' / c,

where O comes from a table, too: rows are values times an output projection P, so O is values times (2/c Pc Kc').
Nothing with c channels is formed per pixel and prompt set before the upscaling, which begins with a linear map.

A block adds few factors. In each head a pixel's attention to all tokens sums to one, so the first token's is what the
others leave: it joins b' and the last norm's b in one constant, and heads (n - 1) factors remain. Where that is more
than the `inner` channels of all heads, the factors are the gathered values A v instead, and the rows P itself.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from sam_jax.fast_decoder import (
    Features,
    Params,
    centred_kernel,
    channels_first,
    decode,
    decoder_params,
    grid_positions,
    heads_of,
    linear,
    product,
    token_weights,
    unfused,
)
from sam_jax.model import MaskPrediction, Sam
from sam_jax.prompts import Prompts


class Values(NamedTuple):
    """The values that the rows of a block are made of.

    Attributes:
      contrasts: the tokens' values less the first token's.
      first: the first token's values, all heads.
    """

    contrasts: Float[Array, "heads n-1 d"]
    first: Float[Array, " inner"]


@struct.dataclass
class LowRankTokens:
    """The image tokens of one prompt set: `g K + F' U`, with K in the tables.

    Attributes:
      gain: g; None before block 0, where it is one and U is zero.
      factors: F; the last is one everywhere.
      rows: U.
      values: of each block; None where its factors are the gathered values.
    """

    gain: Float[Array, " hw"] | None
    factors: Float[Array, "r hw"]
    rows: Float[Array, "r c"]
    values: tuple[Values | None, ...]

    def gains(self) -> Float[Array, " hw"]:
        """Return g, also where it is one."""
        return jnp.ones_like(self.factors[-1]) if self.gain is None else self.gain


@struct.dataclass
class Projection:
    """Table of the image tokens' keys or queries.

    Attributes:
      image: K W.
      position: the positional part's projection and the bias; None before block 0, where the gain is one and `image`
        has them.
    """

    image: Float[Array, "*image heads d hw"]
    position: Float[Array, "*image heads d hw"] | None


@struct.dataclass
class GatherTables:
    """Tables of a token-to-image attention: keys, and values without their bias."""

    key: Projection
    value: Float[Array, "*image heads d hw"]


@struct.dataclass
class UpdateTables:
    """Tables of an image-to-token attention and of the norm after it.

    Attributes:
      query: the image tokens' queries.
      overlap: for each block up to this one, 2/c of its output projection, as norms have scaled it since, times Kc'.
      offset: for each block up to this one, the same for the constant that it adds: the biases of its output
        projection and of the norm before it.
      energy: mean over channels of Kc^2.
    """

    query: Projection
    overlap: tuple[Float[Array, "*image heads d hw"], ...]
    offset: tuple[Float[Array, "*image hw"], ...]
    energy: Float[Array, "*image hw"]


@struct.dataclass
class ImageState:
    """Everything that depends on the image and the weights alone. It is the `ImageForm` of `LowRankTokens`.

    `*image` is empty, or one axis of images.

    Attributes:
      embedding: the image encoder's output.
      gathers: tables of the blocks' token-to-image attentions and of the final one.
      updates: tables of the blocks' image-to-token attentions.
      upscaled: table of the first transposed convolution.
      epsilon: that of the blocks' norms.
    """

    embedding: Float[Array, "*image h w c"]
    gathers: tuple[GatherTables, ...]
    updates: tuple[UpdateTables, ...]
    upscaled: Float[Array, "*image c hw"]
    epsilon: float = struct.field(pytree_node=False)

    def gather(
        self, block: int, params: Params, image: LowRankTokens, query: Float[Array, "heads n d"]
    ) -> Float[Array, "heads n d"]:
        """Return the gathered values: the table's and, through their rows, the factors'; see `ImageForm`."""
        tables, value = self.gathers[block], params["value"]
        logits = products(image, query, tables.key, params["key"]["kernel"])
        weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)
        return gathered(image, weights, tables.value, value["kernel"]) + value["bias"].reshape(len(query), 1, -1)

    def update(
        self,
        block: int,
        params: Params,
        image: LowRankTokens,
        key: Float[Array, "heads n d"],
        value: Float[Array, "heads n d"],
        token_mask: Bool[Array, " n"],
    ) -> LowRankTokens:
        """Return the image tokens with the block's factors, normalised; see `ImageForm`."""
        tables, attention = self.updates[block], params["image_to_token"]
        weights = token_weights(products(image, key, tables.query, attention["query"]["kernel"]), token_mask)
        image = with_factors(image, weights.astype(key.dtype), value, attention["out"])
        return normalised(image, tables, params["norm_image_to_token"], self.epsilon)

    def features(self, image: LowRankTokens, kernel: Float[Array, "o c"], bias: Float[Array, " o"]) -> Features:
        """Return the convolution as a table, and rows to mix the factors with; see `ImageForm`."""
        rows = (kernel @ image.rows.T).at[:, -1].add(bias)
        return Features(rows.astype(kernel.dtype), image.factors, image.gains() * self.upscaled)


def products(
    image: LowRankTokens, vectors: Float[Array, "heads n d"], table: Projection, kernel: Float[Array, "c inner"]
) -> Float[Array, "heads n hw"]:
    """Return the products of vectors with the image tokens' projection, whose kernel and table are given."""
    own = product("hnd,hdx->hnx", vectors, table.image)
    if image.gain is None or table.position is None:
        return own
    rows = heads_of(image.rows @ kernel, len(vectors)).astype(vectors.dtype)
    position = product("hnd,hdx->hnx", vectors, table.position)
    return unfused(image.gain * own + position + product("hnd,rx,hrd->hnx", vectors, image.factors, rows))


def gathered(
    image: LowRankTokens,
    weights: Float[Array, "heads n hw"],
    table: Float[Array, "heads d hw"],
    kernel: Float[Array, "c inner"],
) -> Float[Array, "heads n d"]:
    """Return the sums over pixels, by weight, of the image tokens' projection, whose kernel and table are given."""
    own = weights if image.gain is None else (weights * image.gain).astype(table.dtype)
    # XLA has a fast product for this order of the result only.
    own = jnp.swapaxes(product("hnx,hdx->hdn", own, table), 1, 2)
    if image.gain is None:
        return own
    rows = heads_of(image.rows @ kernel, len(weights)).astype(weights.dtype)
    return own + product("rx,hnx,hrd->hnd", image.factors, weights, rows)


def with_factors(
    image: LowRankTokens, weights: Float[Array, "heads n hw"], value: Float[Array, "heads n d"], out: Params
) -> LowRankTokens:
    """Return the image tokens plus what their attention gathers, not normalised.

    Args:
      image: image tokens.
      weights: what each pixel takes of each token; they sum to one in each head.
      value: the tokens' values.
      out: the attention's output projection.
    """
    (heads, n, pixels), d, channels = weights.shape, value.shape[-1], image.rows.shape[-1]
    if n - 1 > d:  # more tokens than channels in a head
        maps = product("hnx,hnd->hdx", weights, value).astype(weights.dtype)
        rows, constant, values = out["kernel"], out["bias"], None
    else:
        maps, values = weights[:, 1:], Values(value[:, 1:] - value[:, :1], value[:, 0].reshape(-1))
        rows = product("hnd,hdc->hnc", values.contrasts, out["kernel"].reshape(heads, d, channels))
        constant = linear(out, values.first)
    return LowRankTokens(
        gain=image.gain,
        factors=jnp.concatenate([image.factors[:-1], maps.reshape(-1, pixels), image.factors[-1:]]),
        rows=jnp.concatenate([image.rows[:-1], rows.reshape(-1, channels), image.rows[-1:] + constant]),
        values=(*image.values, values),
    )


def normalised(image: LowRankTokens, tables: UpdateTables, norm: Params, epsilon: float) -> LowRankTokens:
    """Return the LayerNorm of image tokens: a new gain, all factors and rows scaled, and a factor for the norm's bias.

    Args:
      image: image tokens as `with_factors` returns them.
      tables: those of the block.
      norm: the norm's scale and bias.
      epsilon: the norm's.
    """
    rows = image.rows - image.rows.mean(-1, keepdims=True)
    gain = image.gains()
    gram = unfused(product("rc,sc->rs", rows, rows) / rows.shape[-1])
    mixed = unfused(gram @ image.factors) + gain * overlaps(image, tables)
    variance = (image.factors * mixed).sum(0) + gain**2 * tables.energy
    inverse = lax.rsqrt(jnp.maximum(variance, 0) + epsilon)
    factors = jnp.concatenate([image.factors * inverse, jnp.ones_like(inverse)[None]])
    return dataclasses.replace(
        image,
        gain=gain * inverse,
        factors=factors.astype(image.factors.dtype),
        rows=jnp.concatenate([rows * norm["scale"], norm["bias"][None]]),
    )


def overlaps(image: LowRankTokens, tables: UpdateTables) -> Float[Array, "r hw"]:
    """Return 2/c of the products of the centred rows with Kc', from the values that the rows are made of."""
    parts = []
    for values, table, offset in zip(image.values, tables.overlap, tables.offset, strict=True):
        flat = table.reshape(-1, table.shape[-1])
        if values is None:
            parts += [flat, offset[None]]
        else:
            parts.append(product("hnd,hdx->hnx", values.contrasts, table).reshape(-1, flat.shape[-1]))
            parts.append(values.first[None] @ flat + offset)
    return jnp.concatenate(parts)


def prepare_image(model: Sam, variables: Any, embedding: Float[Array, "h w c"]) -> ImageState:
    """Return everything about an image that prompt sets without a mask share.

    Under `vmap` over images, what depends on the weights alone is computed once.

    Args:
      model: the decoder.
      variables: its variables.
      embedding: the image encoder's output, channels last.
    """
    config, channels, (h, w, _) = model.config, model.config.width, embedding.shape
    params = decoder_params(config.dtype, variables)
    encoder = model.bind(variables).prompt_encoder
    image = channels_first(embedding.astype(config.dtype) + encoder.dense((h, w), None, None))
    position = grid_positions(encoder, (h, w))
    gathers, updates, outputs, last_bias = [], [], [], jnp.zeros(channels, image.dtype)

    def table(kernel: Float[Array, "c inner"], tokens: Float[Array, "c hw"]) -> Float[Array, "heads d hw"]:
        return jnp.einsum("chd,cx->hdx", kernel.reshape(channels, config.heads, -1), tokens)

    def projection(params: Params) -> Projection:
        kernel, bias = params["kernel"], params["bias"].reshape(config.heads, -1, 1)
        if not updates:
            return Projection(table(kernel, image + position) + bias, None)
        return Projection(table(kernel, image), table(kernel, position) + bias)

    def gather_tables(attention: Params) -> GatherTables:
        return GatherTables(projection(attention["key"]), table(attention["value"]["kernel"], image))

    for i in range(config.depth):
        block = params["two_way"][f"block_{i}"]
        gathers.append(gather_tables(block["token_to_image"]))
        query, out = projection(block["image_to_token"]["query"]), block["image_to_token"]["out"]
        outputs.append((out["kernel"], out["bias"] + last_bias))

        image = image - image.mean(0)
        outputs = [
            (kernel - kernel.mean(-1, keepdims=True), constant - constant.mean()) for kernel, constant in outputs
        ]
        overlap = tuple(table(kernel.T, image) * (2 / channels) for kernel, _ in outputs)
        offset = tuple(constant @ image * (2 / channels) for _, constant in outputs)
        updates.append(UpdateTables(query, overlap, offset, jnp.square(image).mean(0)))

        norm = block["norm_image_to_token"]
        image = image * norm["scale"][:, None]
        outputs = [(kernel * norm["scale"], constant * norm["scale"]) for kernel, constant in outputs]
        last_bias = norm["bias"]
    gathers.append(gather_tables(params["two_way"]["final_token_to_image"]))
    kernel, _ = centred_kernel(params["upscaling"]["conv_0"])
    return ImageState(embedding, tuple(gathers), tuple(updates), kernel @ image, config.block_norm_eps)


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
    (h, w, channels), sets, dtype = state.embedding.shape, len(prompts.valid), model.config.dtype
    image = LowRankTokens(None, jnp.ones((sets, 1, h * w), dtype), jnp.zeros((sets, 1, channels), dtype), ())
    return decode(model, variables, state, image, (h, w), prompts)
