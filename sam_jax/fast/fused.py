"""Image tokens that are written out, and only read and written by kernels: for accelerators.

The sums are those of `sam_jax.fast.absorbed`. There, each step of a block is a program of its own, which writes what it
makes for all pixels to memory, and an accelerator waits for memory most of the time. Here an update of the image
tokens, with the gathering after it, is one kernel, and the mask head another. Only image tokens and logits leave the
chip.
"""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float

from sam_jax.decoder.model import MaskPrediction, Sam
from sam_jax.decoder.prompt_encoder import PromptEncoder
from sam_jax.fast.absorbed import by_head, decode_absorbed
from sam_jax.fast.image_form import (
    MaskHead,
    Params,
    WrittenImage,
    centred_kernel,
    decode_form,
    hq_logits,
    image_tokens,
    product,
)
from sam_jax.fast.kernels import Blocks, Head, Update
from sam_jax.precision import precise
from sam_jax.prompts import Prompts

KERNEL_DTYPES = {"tpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
"""The devices that have kernels, and the compute dtypes that they have them for.

In float32, Triton multiplies on a GPU with both operands in registers, which they do not fit into.
"""

LEAST_TOKENS = 8
"""Tokens of a head are padded to a power of two that is at least this: the rows of a TPU's tile."""

LEAST = -1e30
"""The bias of a token that no pixel may attend to."""


class Waiting(NamedTuple):
    """Image tokens in blocks, and what waits for those who read them: a vector to add, and an update."""

    tokens: Float[Array, "#p c x"]
    shift: Float[Array, "c 1"]
    update: Update | None


@struct.dataclass
class FusedForm:
    """The `ImageForm` of `Waiting` image tokens.

    Attributes:
      position: positional part of the image tokens, in blocks.
      blocks: what the pixels are in.
      epsilon: that of the norms.
      platform: the kind of device whose kernels are taken.
      interpret: whether kernels run on any device, slowly: for tests.
    """

    position: Float[Array, "c x"]
    blocks: Blocks = struct.field(pytree_node=False)
    epsilon: float = struct.field(pytree_node=False)
    platform: str = struct.field(pytree_node=False)
    interpret: bool = struct.field(pytree_node=False)

    def gather(
        self, block: int, params: Params, image: Waiting, query: Float[Array, "p heads n d"]
    ) -> tuple[Float[Array, "p heads n d"], Waiting]:
        """Return the gathered values, and the image tokens with their update; see `ImageForm`."""
        heads, tokens = query.shape[1:3]
        key, value = (by_head(params[name]["kernel"], heads) for name in ("key", "value"))
        queries = rows(product("phnd,chd->phnc", query, key)).astype(query.dtype)
        written, gathered = kernels_of(self.platform).attend(
            self.blocks, heads, self.epsilon, *image[:2], self.position, image.update, queries, interpret=self.interpret
        )
        gathered = gathered.reshape(len(query), heads, -1, gathered.shape[-1])[:, :, :tokens]
        values = product("phnc,chd->phnd", gathered, value)
        values = values + params["value"]["bias"].reshape(1, heads, 1, -1)
        return values.astype(query.dtype), image if written is None else Waiting(
            written, jnp.zeros_like(image.shift), None
        )

    def update(
        self,
        block: int,
        params: Params,
        image: Waiting,
        key: Float[Array, "p heads n d"],
        value: Float[Array, "p heads n d"],
        token_mask: Bool[Array, "p n"],
    ) -> Waiting:
        """Return the image tokens with the update that waits; see `ImageForm`."""
        attention, norm, heads = params["image_to_token"], params["norm_image_to_token"], key.shape[1]
        query, out = attention["query"], attention["out"]
        bias = product("phnd,hd->phn", key, query["bias"].reshape(heads, -1))
        bias = rows(jnp.where(token_mask[:, None], bias, LEAST)[..., None], LEAST)
        keys = rows(product("phnd,chd->phnc", key, by_head(query["kernel"], heads)))
        values = rows(product("phnd,hdc->phnc", value, out["kernel"].reshape(heads, value.shape[-1], -1)))
        columns = [x[:, None] for x in (out["bias"], norm["scale"], norm["bias"])]
        update = Update(keys.astype(key.dtype), bias, jnp.swapaxes(values, 1, 2).astype(key.dtype), *columns)
        return image._replace(update=update)

    def masks(self, image: Waiting, head: MaskHead) -> tuple[Float[Array, "p m my mx"], Float[Array, "p my mx"] | None]:
        """Return the low-res logits; see `ImageForm`."""
        params, dtype = head.params["upscaling"], image.tokens.dtype
        (first, first_bias), norm, second = centred_kernel(params["conv_0"]), params["norm"], params["conv_1"]
        weights = Head(
            first=first,
            first_bias=first_bias[:, None],
            scale=norm["scale"][:, None],
            norm_bias=norm["bias"][:, None],
            second=second["kernel"].reshape(-1, norm["scale"].shape[0]),
            second_bias=jnp.tile(second["bias"], 4)[:, None],
            weights=head.weights.astype(dtype),
        )
        maps = [x if x is None else self.blocks.padded(x) for x in (head.maps.stride_8, head.maps.stride_4)]
        wanted = head.hq_weights is not None
        logits, upscaled = kernels_of(self.platform).upscaled_masks(
            self.blocks, weights, image.tokens, *maps, upscaled=wanted, interpret=self.interpret
        )
        if upscaled is None:
            return logits, None
        of_tokens = functools.partial(
            hq_logits, head.params["hq"]["mask_feature"], grid_size=self.blocks[:2], of_image=head.maps.hq
        )
        return logits, jax.vmap(lambda x, w: of_tokens(self.blocks.cropped(x), weights=w))(upscaled, head.hq_weights)


def kernels_of(platform: str) -> Any:
    """Return the module with a platform's kernels: `blocks_of`, `attend` and `upscaled_masks`.

    It is imported where it is wanted: Pallas's languages come and go with versions of JAX.
    """
    return importlib.import_module(f"sam_jax.fast.kernels_{platform}")


def rows(x: Float[Array, "p heads n c"], fill: float = 0) -> Float[Array, "p r c"]:
    """Return the rows of all heads, with the tokens of each padded."""
    tokens = max(LEAST_TOKENS, 1 << (x.shape[2] - 1).bit_length())
    x = jnp.pad(x, ((0, 0), (0, 0), (0, tokens - x.shape[2]), (0, 0)), constant_values=fill)
    return x.reshape(len(x), -1, x.shape[-1])


def decode_fused(
    model: Sam, variables: Any, image: WrittenImage, prompts: Prompts, platforms: Sequence[str]
) -> MaskPrediction:
    """Return the masks of prompt sets on one image: those of `decode_absorbed`, by kernels where there are some.

    Args:
      model: the decoder.
      variables: its variables.
      image: what `written_image` made of the image.
      prompts: prompts with axis [prompt set], decoded all at once.
      platforms: the kinds of device whose kernels are taken.
    """
    absorbed = functools.partial(decode_absorbed, model)
    if model.config.efficient_sam:  # a norm over the whole map, which no block of pixels can compute
        return absorbed(variables, image, prompts)
    having = [name for name in platforms if model.config.dtype in KERNEL_DTYPES[name]]
    fused = {name: functools.partial(decode_in_kernels, model, name, False) for name in having}
    return lax.platform_dependent(variables, image, prompts, **fused, default=absorbed)


@precise
def decode_in_kernels(
    model: Sam, platform: str, interpret: bool, variables: Any, image: WrittenImage, prompts: Prompts
) -> MaskPrediction:
    """Return what `decode_fused` does where there are kernels; `interpret` runs them on any device, slowly."""
    leaves, tree = jax.tree.flatten((variables, image, prompts))
    prediction: Any = _kernels(model, platform, interpret, tree, *leaves)
    return MaskPrediction(**prediction)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _kernels(model: Sam, platform: str, interpret: bool, tree: Any, *leaves: Any) -> dict[str, Array | None]:
    variables, image, prompts = tree.unflatten(leaves)
    config = model.config
    blocks = kernels_of(platform).blocks_of(config.grid_size)
    form = FusedForm(blocks.padded(image.position), blocks, config.block_norm_eps, platform, interpret)
    waiting = waiting_tokens(model.bind(variables).prompt_encoder, image, blocks, prompts)
    return vars(decode_form(model, variables, form, waiting, image.head, prompts))


def waiting_tokens(encoder: PromptEncoder, image: WrittenImage, blocks: Blocks, prompts: Prompts) -> Waiting:
    """Return what `image_tokens` does. Where no prompt set has a mask, the same vector is added to all image tokens."""
    if prompts.masks is None:
        return Waiting(blocks.padded(image.embedding)[None], encoder.dense((1, 1), None, None).reshape(-1, 1), None)
    tokens = image_tokens(encoder, image, (blocks.height, blocks.width), prompts)
    return Waiting(blocks.padded(tokens), jnp.zeros_like(tokens, shape=(tokens.shape[1], 1)), None)


def _forward(
    model: Sam, platform: str, interpret: bool, tree: Any, *leaves: Any
) -> tuple[dict[str, Array | None], Any]:
    return _kernels(model, platform, interpret, tree, *leaves), leaves


def _backward(
    model: Sam, platform: str, interpret: bool, tree: Any, leaves: Any, gradient: dict[str, Array | None]
) -> Any:
    return jax.vjp(lambda *leaves: vars(decode_absorbed(model, *tree.unflatten(leaves))), *leaves)[1](gradient)


_kernels.defvjp(_forward, _backward)
