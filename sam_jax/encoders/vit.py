"""SAM's image encoder: the ViT that makes image embeddings (`segment_anything/modeling/image_encoder.py`).

EfficientSAM's is a plain ViT (`efficient_sam/efficient_sam_encoder.py`).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from sam_jax.decoder.features import Features, ImageFeatures
from sam_jax.decoder.layers import CONV_NORM_EPS, PatchConv, gelu, layer_norm
from sam_jax.encoders.bicubic import resize_bicubic
from sam_jax.encoders.config import VIT_B, ViTConfig
from sam_jax.encoders.frame import check_frame
from sam_jax.precision import precise

BLOCK_NORM_EPS = 1e-6
"""Epsilon of the norms in the blocks (`segment_anything/build_sam.py`; PyTorch's default would be 1e-5)."""

CHUNK_LOGITS = 1 << 21
"""Attention logits that exist at one time for one image: 8 MB in float32, so that a CPU's cache holds them."""


def split_windows(x: Float[Array, "h w c"], window: tuple[int, int]) -> Float[Array, "n a b c"]:
    """Return the windows of a map, row by row; zeros fill up those at the bottom and the right."""
    (h, w, c), (a, b) = x.shape, window
    x = jnp.pad(x, ((0, -h % a), (0, -w % b), (0, 0)))
    return x.reshape(x.shape[0] // a, a, x.shape[1] // b, b, c).swapaxes(1, 2).reshape(-1, a, b, c)


def merge_windows(windows: Float[Array, "n a b c"], grid_size: tuple[int, int]) -> Float[Array, "h w c"]:
    """Return the map of size `grid_size` that `split_windows` made the windows of."""
    (h, w), (_, a, b, c) = grid_size, windows.shape
    x = windows.reshape(math.ceil(h / a), math.ceil(w / b), a, b, c).swapaxes(1, 2)
    return x.reshape(x.shape[0] * a, -1, c)[:h, :w]


def relative_table(relative: Float[Array, "offsets d"], size: int) -> Float[Array, "{size} {size} d"]:
    """Return a vector for each pair of query and key along one axis, from those of the offsets 1 - size to size - 1."""
    index = np.arange(size)
    return relative[index[:, None] - index[None, :] + size - 1]


def attend_rows(
    query: Float[Array, "n rows b d"],
    key: Float[Array, "n k d"],
    value: Float[Array, "n k d"],
    table_h: Float[Array, "rows a d"] | None,
    table_w: Float[Array, "b b d"] | None,
) -> Float[Array, "n rows b d"]:
    """Attend from some rows of each window to all of its `k = a * b` tokens, for one head.

    The products are scaled; what the relative positions add is not: query . table_h by the key's row, query . table_w
    by its column (`add_decomposed_rel_pos`). The softmax is float32 at least; its division comes after the sum over the
    values, on an array that is `k / d` times smaller.
    """
    n, rows, b, d = query.shape
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    products = jnp.einsum("nrwd,nkd->nrwk", query, key, preferred_element_type=dtype).reshape(n, rows, b, -1, b)
    logits = d**-0.5 * products
    if table_h is not None and table_w is not None:
        by_row = jnp.einsum("nrwd,rkd->nrwk", query, table_h, preferred_element_type=dtype)
        by_column = jnp.einsum("nrwd,wkd->nrwk", query, table_w, preferred_element_type=dtype)
        logits += by_row[..., :, None] + by_column[..., None, :]
    # The largest logit cancels out of the result. Its gradient would look for the logit that equals it and be NaN where
    # the compiler forms the logits twice, and none does.
    largest = jax.lax.stop_gradient(logits.max((-2, -1), keepdims=True))
    weights = jnp.exp(logits - largest).reshape(n, rows, b, -1)
    gathered = jnp.einsum("nrwk,nkd->nrwd", weights.astype(value.dtype), value, preferred_element_type=dtype)
    return (gathered / weights.sum(-1, keepdims=True)).astype(value.dtype)


def attend(
    qkv: Float[Array, "heads 3 n a b d"],
    table_h: Float[Array, "a a d"] | None = None,
    table_w: Float[Array, "b b d"] | None = None,
) -> Float[Array, "heads n a b d"]:
    """Attend within each window, for all heads.

    All logits of a global block are 0.8 GB at 1024 pixels. So one head and a few rows are done at a time, and the
    backward pass computes them again.

    Args:
      qkv: query, key and value of each token; `a b` are the window's rows and columns.
      table_h: vectors of the pairs of rows; None without relative positions.
      table_w: vectors of the pairs of columns; likewise.
    """
    _, _, n, a, b, d = qkv.shape
    rows = max(r for r in range(1, a + 1) if a % r == 0 and (r == 1 or n * r * b * a * b <= CHUNK_LOGITS))

    def attend_head(qkv: Float[Array, "3 n a b d"]) -> Float[Array, "n a b d"]:
        key, value = qkv[1:].reshape(2, n, a * b, d)
        queries = jnp.moveaxis(qkv[0].reshape(n, a // rows, rows, b, d), 1, 0)
        tables = None if table_h is None else table_h.reshape(a // rows, rows, a, d)
        attend_chunk = jax.checkpoint(lambda chunk: attend_rows(chunk[0], key, value, chunk[1], table_w))
        return jnp.moveaxis(jax.lax.map(attend_chunk, (queries, tables)), 0, 1).reshape(n, a, b, d)

    return jax.lax.map(attend_head, qkv)


class WindowDense(nn.Module):
    """A linear layer on the windows of a zero-padded map.

    Same as `nn.Dense` on `split_windows`, but the padding comes after the product, which thus has fewer rows.

    Attributes:
      features: output channels.
      window: height and width of the windows.
      dtype: compute dtype.
    """

    features: int
    window: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "n a b {self.features}"]:
        """Return the mapped tokens of each window."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return split_windows(x @ kernel, self.window) + bias[None, None, None]


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with decomposed relative positions (`Attention` in `image_encoder.py`).

    Padding tokens are attended to, as in the official code: in a block they are zeros after the norm.

    Attributes:
      heads: attention heads; each has a contiguous slice of the channels.
      window: height and width of the windows; the whole map for global attention.
      dtype: compute dtype; the softmax is float32 at least.
      relative: whether there are relative positions.
    """

    heads: int
    window: tuple[int, int]
    dtype: jnp.dtype
    relative: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return what each token gathers from its window."""
        (h, w, c), (a, b) = x.shape, self.window
        d = c // self.heads

        def table(name: str, size: int) -> Array:
            relative = self.param(name, nn.initializers.zeros, (2 * size - 1, d), jnp.float32)
            return relative_table(relative.astype(self.dtype), size)

        tables = (table("relative_height", a), table("relative_width", b)) if self.relative else ()
        qkv = WindowDense(3 * c, self.window, self.dtype, name="qkv")(x).reshape(-1, a, b, 3, self.heads, d)
        out = attend(qkv.transpose(4, 3, 0, 1, 2, 5), *tables)
        out = merge_windows(jnp.moveaxis(out, 0, 3).reshape(-1, a, b, c), (h, w))
        return nn.Dense(c, dtype=self.dtype, name="out")(out)


class GeluMlp(nn.Module):
    """Two linear layers with an exact GELU between them (`MLPBlock` in `segment_anything/modeling/common.py`).

    Attributes:
      hidden: channels between the layers.
      dtype: compute dtype.
    """

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        """Map the last axis through the layers."""
        hidden = gelu(nn.Dense(self.hidden, dtype=self.dtype, name="layer_0")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="layer_1")(hidden)


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to them.

    Attributes:
      config: settings of the encoder.
      window: height and width in tokens of the windows to attend within.
    """

    config: ViTConfig
    window: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Return the tokens after the block."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        relative = config.position_side == 0
        attention = WindowAttention(config.heads, self.window, dtype, relative, name="attention")
        mlp = GeluMlp(config.mlp_width, dtype, name="mlp")
        # Without barriers, XLA sums up the gradients of all later residuals once more in each block's backward pass.
        x = jax.lax.optimization_barrier(x) + attention(layer_norm(BLOCK_NORM_EPS, dtype, name="norm_1")(x))
        return jax.lax.optimization_barrier(x) + mlp(layer_norm(BLOCK_NORM_EPS, dtype, name="norm_2")(x))


class Neck(nn.Module):
    """Two convolutions, each with a norm, from the encoder's width to the embedding's.

    Attributes:
      width: output channels.
      dtype: compute dtype.
    """

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w {self.width}"]:
        """Return the image embedding."""
        x = PatchConv(self.width, 1, self.dtype, use_bias=False, name="conv_1")(x)
        x = layer_norm(CONV_NORM_EPS, self.dtype, name="norm_1")(x)
        x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype, name="conv_2")(x)
        return layer_norm(CONV_NORM_EPS, self.dtype, name="norm_2")(x)


class ImageEncoder(nn.Module):
    """SAM's ViT: one normalised and padded image to one image embedding; `vmap` adds the image axis.

    Attributes:
      config: settings of the encoder.
    """

    config: ViTConfig = VIT_B

    def setup(self) -> None:
        """Make the parts."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.patch_embedding = PatchConv(config.width, config.patch_size, dtype)
        places = (1 + config.position_side**2,) if config.position_side else config.grid_size
        self.position_embedding = self.param(
            "position_embedding", nn.initializers.zeros, (*places, config.width), jnp.float32
        )
        self.block = [Block(config, config.window(i)) for i in range(config.depth)]
        self.neck = Neck(config.out_width, dtype)

    def __call__(self, image: Float[Array, "height width 3"]) -> Features:
        """Return the image embedding, with the early feature where the settings ask for it.

        Args:
          image: RGB, normalised, then padded with zeros at the bottom and the right to `config.image_size`.

        Raises:
          ValueError: for an image of another size.
        """
        embedding, early = self.encode_with_early_feature(image)
        return ImageFeatures(embedding, early=early) if self.config.early_feature else embedding

    @precise
    def encode_with_early_feature(
        self, image: Float[Array, "height width 3"]
    ) -> tuple[Float[Array, "h w c"], Float[Array, "h w d"]]:
        """Return the image embedding, and the output of the first global block, which SAM-HQ's decoder takes, too."""
        config = self.config
        check_frame(image, config.image_size)
        x = self.patch_embedding(image) + self.positions().astype(config.dtype)
        early = x
        if config.remat and not self.is_initializing():
            x, early = scan_blocks(config, self.variables["params"], x)
        else:
            for i, block in enumerate(self.block):
                x = block(x)
                early = x if i == config.global_blocks[0] else early
        return self.neck(x), early

    def positions(self) -> Float[Array, "h w c"]:
        """Return what is added to the patches: the positions, resized where they are those of another grid."""
        side = self.config.position_side
        if not side:
            return self.position_embedding
        return resize_bicubic(self.position_embedding[1:].reshape(side, side, -1), self.config.grid_size)


def scan_blocks(
    config: ViTConfig, params: Mapping[str, Any], x: Float[Array, "h w c"]
) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"]]:
    """Return the tokens after all blocks and after the first global one, keeping only blocks' inputs for gradients.

    In a plain row of blocks, XLA for CPUs merges the second computation with the first, and nothing is saved. So it is
    a scan over groups of blocks that end with a global one, and in each over its other blocks; their parameters are
    stacked first, a copy of the weights.

    Args:
      config: settings of the encoder, whose global blocks are the last of groups of one length.
      params: the encoder's parameters.
      x: tokens.
    """
    length = config.global_blocks[0] + 1
    window, whole = (jax.checkpoint(Block(config, config.window(i), parent=None).apply) for i in (0, length - 1))

    def run_group(x: Array, params: tuple[Any, Any]) -> tuple[Array, Array]:
        inner, last = params
        x = x if inner is None else jax.lax.scan(lambda x, one: (window({"params": one}, x), None), x, inner)[0]
        end: Any = whole({"params": last}, x)
        return end, end

    blocks = [params[f"block_{i}"] for i in range(config.depth)]
    groups = [blocks[start : start + length] for start in range(0, config.depth, length)]
    inner = _stack([_stack(group[:-1]) for group in groups]) if length > 1 else None
    x, ends = jax.lax.scan(run_group, x, (inner, _stack([group[-1] for group in groups])))
    return x, ends[0]


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def resize_positions(params: dict[str, Any], config: ViTConfig, new_config: ViTConfig) -> dict[str, Any]:
    """Return parameters for another image size, the positions interpolated.

    The absolute positions bilinearly and the relative positions of the global blocks linearly, with half-pixel centres
    and no antialiasing: what SAMed does to load SAM at 224 or 512 pixels (`load_from` in its
    `segment_anything/build_sam.py`), and for the relative ones what the official `get_rel_pos` does, too. Windows keep
    their size and their positions.

    Args:
      params: the encoder's parameters for `config`.
      config: settings that the parameters were made with.
      new_config: the same settings but for `image_size` (`dtype` and `remat` may differ, too).

    Raises:
      ValueError: if another setting differs.
    """
    same = dataclasses.replace(config, image_size=new_config.image_size, dtype=new_config.dtype, remat=new_config.remat)
    if same != new_config:
        raise ValueError(f"Positions can be resized to another image_size only: got {new_config} for {config}.")
    image = jax.ShapeDtypeStruct((*new_config.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(ImageEncoder(new_config).init, jax.random.key(0), image)["params"]
    return jax.tree.map(
        lambda x, new: x if x.shape == new.shape else jax.image.resize(x, new.shape, "linear", antialias=False),
        params,
        shapes,
    )
