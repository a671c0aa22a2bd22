"""Image tokens that are written out, and never projected: for any prompt, also with a mask.

A product of matrices may be formed in any order. With image tokens X (hw x c), and in each head queries q, keys k,
values v of n tokens and their attention A, the projections are absorbed into the tokens, which are few:

- token to image, logits: `(q Wk') X'` for `q (X Wk)'`; the key's bias adds the same to a whole softmax row and drops;
- token to image, values: `(A X) Wv` for `A (X Wv)`;
- image to token, logits: `X (Wq k')` for `(X Wq) k'`;
- image to token, values: `A (v Wo)` for `(A v) Wo`.

These are products of X with heads n rows, instead of projections of X followed by products with n rows. Where there are
so many tokens that projecting is cheaper, the einsums below do project: they multiply the cheapest pair first.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from sam_jax.decoder.model import MaskPrediction, Sam
from sam_jax.fast.image_form import (
    MaskHead,
    Params,
    WrittenImage,
    decode_form,
    first_convolution,
    image_tokens,
    in_turn,
    masks_in_turn,
    product,
    token_weights,
    unfused,
)
from sam_jax.precision import precise
from sam_jax.prompts import Prompts


class Written(NamedTuple):
    """Image tokens, and the same with the positional part."""

    tokens: Float[Array, "*p c hw"]
    placed: Float[Array, "*p c hw"]


@struct.dataclass
class WrittenForm:
    """The `ImageForm` of `Written` image tokens.

    Attributes:
      position: positional part of the image tokens.
      epsilon: that of the blocks' norms.
    """

    position: Float[Array, "c hw"]
    epsilon: float = struct.field(pytree_node=False)

    def gather(
        self, block: int, params: Params, image: Written, query: Float[Array, "p heads n d"]
    ) -> tuple[Float[Array, "p heads n d"], Written]:
        """Return the gathered values, and the image tokens as they are; see `ImageForm`."""
        return in_turn(functools.partial(gather, params), image, query), image

    def update(
        self,
        block: int,
        params: Params,
        image: Written,
        key: Float[Array, "p heads n d"],
        value: Float[Array, "p heads n d"],
        token_mask: Bool[Array, "p n"],
    ) -> Written:
        """Return the image tokens after attention and norm; see `ImageForm`."""
        return in_turn(lambda *one: self.written(updated(params, self.epsilon, *one)), image, key, value, token_mask)

    def convolution(
        self, image: Written, kernel: Float[Array, "o c"], bias: Float[Array, " o"]
    ) -> tuple[Callable[..., Float[Array, "o hw"]], tuple[Float[Array, "p c hw"]]]:
        """Return the first transposed convolution of one prompt set, and the image tokens of all, which it takes."""
        return lambda tokens: product("oc,cx->ox", kernel, tokens) + bias[:, None], (image.tokens,)

    def masks(self, image: Written, head: MaskHead) -> tuple[Float[Array, "p m my mx"], Float[Array, "p my mx"] | None]:
        """Return the low-res logits; see `ImageForm`."""
        first = first_convolution(head.config, head.params["upscaling"]["conv_0"])
        return masks_in_turn(head, *self.convolution(image, *first))

    def written(self, tokens: Float[Array, "*p c hw"]) -> Written:
        """Return image tokens with what the blocks read of them."""
        return Written(tokens, tokens + jnp.broadcast_to(self.position, tokens.shape))


def gather(params: Params, image: Written, query: Float[Array, "heads n d"]) -> Float[Array, "heads n d"]:
    """Return the values that scaled queries of one prompt set gather."""
    key, value = params["key"]["kernel"], params["value"]
    weights = jax.nn.softmax(products(image.placed, query, key), axis=-1).astype(query.dtype)
    # The order of the three does not decide which two come first, only what is transposed for them: nothing.
    gathered = product("cx,hnx,chd->hnd", image.tokens, weights, by_head(value["kernel"], len(query)))
    return gathered + value["bias"].reshape(len(query), 1, -1)


def updated(
    params: Params,
    epsilon: float,
    image: Written,
    key: Float[Array, "heads n d"],
    value: Float[Array, "heads n d"],
    token_mask: Bool[Array, " n"],
) -> Float[Array, "c hw"]:
    """Return the image tokens of one prompt set after a block's image-to-token attention and the norm after it."""
    attention, norm = params["image_to_token"], params["norm_image_to_token"]
    query, out = attention["query"], attention["out"]
    bias = product("hnd,hd->hn", key, query["bias"].reshape(len(key), -1))
    weights = token_weights(products(image.placed, key, query["kernel"]) + bias[..., None], token_mask)
    kernel = out["kernel"].reshape(*value.shape[::2], -1)
    gathered = product("hdc,hnx,hnd->cx", kernel, weights.astype(value.dtype), value)
    x = unfused(image.tokens + gathered + out["bias"][:, None])
    x = x - x.mean(0, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(0, keepdims=True) + epsilon)
    return (x * norm["scale"][:, None] + norm["bias"][:, None]).astype(value.dtype)


def products(
    tokens: Float[Array, "c hw"], vectors: Float[Array, "heads n d"], kernel: Float[Array, "c inner"]
) -> Float[Array, "heads n hw"]:
    """Return the products of vectors with the tokens' projection by `kernel`: attention logits."""
    return unfused(product("hnd,cx,chd->hnx", vectors, tokens, by_head(kernel, len(vectors))))


def by_head(kernel: Float[Array, "c inner"], heads: int) -> Float[Array, "c heads d"]:
    """Return a projection's kernel split by head."""
    return kernel.reshape(len(kernel), heads, -1)


@precise
def decode_absorbed(model: Sam, variables: Any, image: WrittenImage, prompts: Prompts) -> MaskPrediction:
    """Return the masks of prompt sets on one image, with or without mask prompts: those of `Sam`, to rounding.

    Args:
      model: the decoder.
      variables: its variables.
      image: what `written_image` made of the image.
      prompts: prompts with axis [prompt set], decoded all at once.
    """
    config = model.config
    form = WrittenForm(image.position, config.block_norm_eps)
    tokens = image_tokens(model.bind(variables).prompt_encoder, image, config.grid_size, prompts)
    tokens = jnp.broadcast_to(tokens, (len(prompts.valid), *tokens.shape[1:]))
    return decode_form(model, variables, form, form.written(tokens), image.head, prompts)
