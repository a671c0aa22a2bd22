import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sam_jax.encoders import vit as image_encoder
from sam_jax.encoders.config import VIT_B, VIT_H, VIT_L, VIT_TINY, ViTConfig
from sam_jax.encoders.vit import (
    Block,
    ImageEncoder,
    WindowAttention,
    WindowDense,
    attend,
    merge_windows,
    relative_table,
    resize_positions,
    split_windows,
)

F32 = jnp.dtype("float32")
WIDE = dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), image_size=(64, 112))
SQUARE = dataclasses.replace(WIDE, image_size=(128, 128))


def randomise(variables, seed=0):
    """Fill every leaf with noise: zeros and ones would hide positions, norms and biases."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), variables)


@functools.cache
def variables_of(config):
    return randomise(jax.eval_shape(ImageEncoder(config).init, jax.random.key(0), noise(*config.image_size, 3)))


def noise(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.partial(jax.jit, static_argnames=("encoder", "method"))
def encode(encoder, variables, image, method=None):
    return encoder.apply(variables, image, method=method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"heads": 2.0}, "heads must be a positive integer, got 2.0"),
        ({"heads": 5}, "width must be divisible by heads = 5, got 32"),
        ({"global_blocks": ()}, "rising indices of the 4 blocks, at least one"),
        ({"global_blocks": (3, 1)}, "rising indices"),
        ({"global_blocks": (1, 4)}, "rising indices"),
        ({"global_blocks": (1, 2), "remat": True}, r"remat needs .* groups of one length, got \(1, 2\) of 4"),
        ({"image_size": (128, 100)}, "two multiples of patch_size = 16"),
        ({"image_size": (128,)}, "two multiples of patch_size = 16"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, float64, got 'float16'"),
        ({"preprocessing": "clip"}, "preprocessing must be one of sam, medsam, lite_medsam, micro_sam, .*, got 'clip'"),
        ({"position_side": -1}, "position_side must be an integer from 0, got -1"),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VIT_TINY, **change)


def test_config_takes_lists_and_stays_hashable():
    config = ViTConfig(global_blocks=[2, 5, 8, 11], image_size=[1024, 1024])
    assert config == VIT_B
    assert hash(config) == hash(VIT_B)


@pytest.mark.parametrize("config", [VIT_B, VIT_L, VIT_H], ids=["b", "l", "h"])
def test_presets_make_embeddings_of_the_decoder_s_shape(config):
    image = jnp.broadcast_to(jnp.zeros(()), (1024, 1024, 3))
    shape = jax.eval_shape(lambda: ImageEncoder(config).init_with_output(jax.random.key(0), image)[0])
    assert shape.shape == (64, 64, 256)
    assert config.global_blocks == tuple(range(config.depth // 4 - 1, config.depth, config.depth // 4))


def test_windows_lie_row_by_row_with_zeros_at_the_bottom_and_the_right():
    windows = split_windows(jnp.arange(1.0, 13).reshape(3, 4, 1), (2, 3))
    expected = [[[1, 2, 3], [5, 6, 7]], [[4, 0, 0], [8, 0, 0]], [[9, 10, 11], [0, 0, 0]], [[12, 0, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(windows[..., 0], expected)


@pytest.mark.parametrize(("grid", "window"), [((3, 4), (2, 3)), ((4, 4), (2, 2)), ((2, 2), (5, 3)), ((3, 7), (3, 7))])
def test_merging_windows_undoes_splitting(grid, window):
    x = noise(*grid, 2)
    np.testing.assert_array_equal(merge_windows(split_windows(x, window), grid), x)


def test_relative_table_is_indexed_by_query_minus_key():
    table = relative_table(jnp.arange(-2.0, 3)[:, None], 3)
    np.testing.assert_array_equal(table[..., 0], [[0, -1, -2], [1, 0, -1], [2, 1, 0]])


def plain_attention(qkv, table_h, table_w):
    """Attention with the relative positions written out for every pair of tokens."""
    d = qkv.shape[-1]
    query, key, value = np.moveaxis(np.asarray(qkv, np.float64), 1, 0)
    logits = np.einsum("gnabd,gnijd->gnabij", query, key) / np.sqrt(d)
    logits += np.einsum("gnabd,aid->gnabi", query, table_h)[..., :, None]
    logits += np.einsum("gnabd,bjd->gnabj", query, table_w)[..., None, :]
    weights = np.exp(logits)
    weights /= weights.sum((-2, -1), keepdims=True)
    return np.einsum("gnabij,gnijd->gnabd", weights, value)


@pytest.mark.parametrize("limit", [1, 200, 1 << 21], ids=["single rows", "some rows", "whole windows"])
def test_attention_is_the_softmax_of_products_and_relative_positions(limit, monkeypatch):
    monkeypatch.setattr(image_encoder, "CHUNK_LOGITS", limit)
    args = noise(2, 3, 2, 6, 4, 5), noise(6, 6, 5, seed=2), noise(4, 4, 5, seed=3)
    np.testing.assert_allclose(jax.jit(lambda *args: attend(*args))(*args), plain_attention(*args), rtol=0, atol=2e-6)


def test_without_relative_positions_there_are_only_products():
    qkv = noise(2, 3, 2, 6, 4, 5)
    without = plain_attention(qkv, np.zeros((6, 6, 5)), np.zeros((4, 4, 5)))
    np.testing.assert_allclose(jax.jit(attend)(qkv), without, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("optimised")  # without, XLA 0.10 makes this gradient infinite
def test_attention_has_the_same_gradient_however_it_is_cut(monkeypatch):
    args = noise(2, 3, 2, 6, 4, 5), noise(6, 6, 5, seed=2), noise(4, 4, 5, seed=3)

    def gradients(limit):
        monkeypatch.setattr(image_encoder, "CHUNK_LOGITS", limit)
        return jax.jit(jax.grad(lambda *args: jnp.square(attend(*args)).sum(), argnums=(0, 1, 2)))(*args)

    for whole, cut in zip(gradients(1 << 21), gradients(1), strict=True):
        np.testing.assert_allclose(cut, whole, rtol=0, atol=2e-6 * jnp.abs(whole).max())


def test_attention_holds_only_a_chunk_of_the_logits():
    qkv = jax.ShapeDtypeStruct((12, 3, 1, 64, 64, 64), F32)
    table = jax.ShapeDtypeStruct((64, 64, 64), F32)
    used = jax.jit(attend).lower(qkv, table, table).compile().memory_analysis().temp_size_in_bytes
    assert used < 4 * 12 * 4096 * 4096 / 8  # of 805 MB


def test_large_logits_do_not_overflow():
    out = jax.jit(attend)(100 * noise(1, 3, 1, 3, 3, 4), jnp.zeros((3, 3, 4)), jnp.zeros((3, 3, 4)))
    assert jnp.isfinite(out).all()


def test_window_dense_is_a_dense_layer_on_the_padded_windows():
    x = noise(5, 4, 3)
    layer = WindowDense(6, (3, 3), F32)
    variables = randomise(jax.eval_shape(layer.init, jax.random.key(0), x))
    expected = nn.Dense(6).apply(variables, split_windows(x, (3, 3)))
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=0, atol=1e-6)


def changed_tokens(window, at=(1, 4)):
    """Return which tokens of a 5 x 6 map an attention within windows changes when one token changes."""
    x = noise(5, 6, 8)
    attention = WindowAttention(2, window, F32)
    variables = randomise(jax.eval_shape(attention.init, jax.random.key(0), x))
    apply = jax.jit(attention.apply)
    return np.abs(apply(variables, x.at[at].add(1.0)) - apply(variables, x)).max(-1) > 1e-6


def test_windows_do_not_see_each_other():
    np.testing.assert_array_equal(changed_tokens((3, 3)), np.pad(np.ones((3, 3), bool), ((0, 2), (3, 0))))


def test_a_window_of_the_map_s_size_sees_everything():
    assert changed_tokens((5, 6)).all()


def test_parameters_have_readable_names():
    params = variables_of(SQUARE)["params"]
    assert set(params) == {"patch_embedding", "position_embedding", "block_0", "block_1", "neck"}
    block = {
        "norm_1": {"scale", "bias"},
        "norm_2": {"scale", "bias"},
        "attention": {"qkv", "out", "relative_height", "relative_width"},
        "mlp": {"layer_0", "layer_1"},
    }
    assert {name: set(part) for name, part in params["block_0"].items()} == block
    assert {name: set(part) for name, part in params["neck"].items()} == {
        "conv_1": {"kernel"},
        "norm_1": {"scale", "bias"},
        "conv_2": {"kernel"},
        "norm_2": {"scale", "bias"},
    }


def test_images_need_not_be_square():
    encoder = ImageEncoder(WIDE)
    variables = variables_of(WIDE)
    assert variables["params"]["block_1"]["attention"]["relative_height"].shape == (7, 16)
    assert variables["params"]["block_1"]["attention"]["relative_width"].shape == (13, 16)
    assert encode(encoder, variables, noise(64, 112, 3)).shape == (4, 7, 32)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"must have the shape \(64, 112, 3\), got an array of shape \(112, 64, 3\)"):
        ImageEncoder(WIDE).apply(variables_of(WIDE), noise(112, 64, 3))


def test_vmap_adds_the_image_axis():
    encoder, variables, images = ImageEncoder(WIDE), variables_of(WIDE), noise(3, 64, 112, 3)
    together = jax.jit(jax.vmap(encoder.apply, in_axes=(None, 0)))(variables, images)
    one_by_one = jnp.stack([encode(encoder, variables, image) for image in images])
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-5)


def test_the_early_feature_is_what_the_first_global_block_returns():
    encoder, variables, image = ImageEncoder(WIDE), variables_of(WIDE), noise(64, 112, 3)
    embedding, early = encode(encoder, variables, image, method="encode_with_early_feature")

    @jax.jit
    def blocks(variables, image):
        keep = lambda module, _: isinstance(module, Block)  # noqa: E731
        return encoder.apply(variables, image, capture_intermediates=keep)[1]["intermediates"]

    np.testing.assert_allclose(early, blocks(variables, image)["block_1"]["__call__"][0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedding, encode(encoder, variables, image), rtol=0, atol=1e-6)


def test_bfloat16_keeps_softmax_and_norms_in_float32():
    config = dataclasses.replace(WIDE, dtype="bfloat16")
    variables, image = variables_of(WIDE), noise(64, 112, 3)
    exact = encode(ImageEncoder(WIDE), variables, image)
    rough = encode(ImageEncoder(config), variables, image)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(F32), exact, rtol=0, atol=0.05 * jnp.abs(exact).max())
    steps = str(jax.make_jaxpr(ImageEncoder(config).apply)(variables, image)).splitlines()
    for operation in (" exp ", " rsqrt ", " reduce_sum[", " reduce_max["):
        lines = [line for line in steps if operation in line]
        assert lines
        assert all("bf16" not in line for line in lines)


@pytest.mark.parametrize("global_blocks", [(1, 3), (3,), (0, 1, 2, 3)])
def test_remat_changes_no_result_and_no_gradient(global_blocks):
    config = dataclasses.replace(VIT_TINY, global_blocks=global_blocks, image_size=(64, 112))
    encoder, remat = (ImageEncoder(dataclasses.replace(config, remat=remat)) for remat in (False, True))
    variables, image = variables_of(config), noise(64, 112, 3)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, variables_of(remat.config))

    def loss(variables, encoder):
        embedding, early = encoder.apply(variables, image, method="encode_with_early_feature")
        return jnp.sum(embedding * noise(*embedding.shape)) + jnp.sum(early * noise(*early.shape)), (embedding, early)

    expected, found = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(variables, one) for one in (encoder, remat)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.slow
def test_remat_keeps_the_blocks_inputs_alone():
    """They have 32 channels; what attention and MLP would keep has about 20 times as many."""
    config = dataclasses.replace(VIT_TINY, depth=16, global_blocks=(7, 15), image_size=(512, 512))
    image = jax.ShapeDtypeStruct((512, 512, 3), jnp.float32)

    def memory(config):
        encoder = ImageEncoder(config)
        variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
        gradient = jax.jit(jax.grad(lambda variables, image: encoder.apply(variables, image).sum()))
        return gradient.lower(variables, image).compile().memory_analysis().temp_size_in_bytes

    assert memory(dataclasses.replace(config, remat=True)) < 0.5 * memory(config)


def test_positions_resize_to_another_image_size():
    params = variables_of(SQUARE)["params"]
    resized = resize_positions(params, SQUARE, WIDE)
    assert jax.tree.map(jnp.shape, resized) == jax.tree.map(jnp.shape, variables_of(WIDE)["params"])
    for name in ("patch_embedding", "block_0", "neck"):
        jax.tree.map(np.testing.assert_array_equal, resized[name], params[name])


def test_a_ramp_of_positions_stays_a_ramp():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (8, 8, 32))
    params = {**variables_of(SQUARE)["params"], "position_embedding": ramp}
    resized = resize_positions(params, SQUARE, dataclasses.replace(SQUARE, image_size=(64, 64)))
    np.testing.assert_allclose(resized["position_embedding"][0, :, 0], [0.5, 2.5, 4.5, 6.5], rtol=0, atol=1e-6)


def test_positions_of_the_same_size_stay():
    params = variables_of(WIDE)["params"]
    jax.tree.map(np.testing.assert_array_equal, resize_positions(params, WIDE, WIDE), params)


def test_positions_of_another_model_are_refused():
    with pytest.raises(ValueError, match="to another image_size only"):
        resize_positions(variables_of(WIDE)["params"], WIDE, dataclasses.replace(WIDE, window_size=4))
