import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_run import PARAMS

from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.train.config import OptimizerConfig
from sam_jax.train.learning.lora import add_lora
from sam_jax.train.learning.optimizer import (
    PRESETS,
    averaged,
    is_kernel,
    learning_rate,
    learning_rate_scales,
    make_optimizer,
)
from sam_jax.train.learning.state import flatten, init_state

PATHS = [*PARAMS, "image_encoder/block_0/attention/qkv/kernel", "image_encoder/neck/conv_1/kernel"]
SIMPLE = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.0, clip=1e9)


def trained(preset):
    return {path for path, scale in learning_rate_scales(PATHS, PRESETS[preset]).items() if scale}


def test_presets_train_what_they_say():
    heads, decoder, both = map(trained, ("heads", "decoder", "decoder_and_prompt_encoder"))
    assert heads < decoder < both < trained("everything") == set(PATHS)
    assert {path.split("/")[1] for path in heads} == {"iou_token", "mask_tokens", "hypernetworks", "iou_head"}
    assert decoder == {path for path in PATHS if path.startswith("mask_decoder/")}
    assert both - decoder == {path for path in PATHS if path.startswith("prompt_encoder/")}


def test_lora_trains_its_additions_alone():
    params = add_lora(jax.random.key(0), PARAMS, 2)
    scales = learning_rate_scales(params, PRESETS["lora"])
    assert {path for path, scale in scales.items() if scale} == params.keys() - PARAMS.keys()


def test_presets_cover_a_real_encoder():
    frame = jax.ShapeDtypeStruct((128, 128, 3), np.float32)
    encoder = jax.eval_shape(ImageEncoder(VIT_TINY).init, jax.random.key(0), frame)
    paths, _ = flatten({"params": {}, "constants": {}}, jax.tree.map(lambda x: jnp.zeros(x.shape), encoder))
    for table in PRESETS.values():
        assert learning_rate_scales(paths, table).keys() == paths.keys()


def test_the_first_row_that_matches_decides():
    table = ((r".*/bias", 0.0), (r"mask_decoder/two_way/.*", 0.5), (r".*", 1.0))
    scales = learning_rate_scales(PATHS, table)
    assert scales["mask_decoder/two_way/block_0/mlp/layer_0/bias"] == 0
    assert scales["mask_decoder/two_way/block_0/mlp/layer_0/kernel"] == 0.5
    assert scales["mask_decoder/mask_tokens"] == 1


def test_a_table_must_cover_every_parameter():
    with pytest.raises(ValueError, match=r"no row matches a/x, b/y\.$"):
        learning_rate_scales(["b/y", "a/x", "c"], (("c", 1.0),))
    with pytest.raises(ValueError, match="must be 0"):
        learning_rate_scales(["a"], (("a", -1.0),))


def test_cosine_after_a_warm_up():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup=10, final=0.1), 110)
    assert float(rate(0)) > 0
    assert (np.diff([float(rate(i)) for i in range(11)]) > 0).all()
    assert float(rate(10)) == pytest.approx(1)
    assert float(rate(60)) == pytest.approx(0.55)
    assert float(rate(110)) == pytest.approx(0.1)


def test_a_short_run_is_warm_after_a_tenth_of_it():
    rate = learning_rate(OptimizerConfig(learning_rate=1.0, warmup=50), 20)
    assert [float(rate(i)) for i in (0, 2)] == pytest.approx([1 / 3, 1])
    assert float(learning_rate(OptimizerConfig(learning_rate=1.0, warmup=50), 9)(0)) == pytest.approx(1)


def test_step_decay_is_that_of_sam():
    rate = learning_rate(OptimizerConfig(learning_rate=8e-4, warmup=250, schedule="step"), 90_000)
    steps = (250, 59_999, 60_001, 86_665, 86_668, 90_000)
    np.testing.assert_allclose([rate(i) for i in steps], [8e-4, 8e-4, 8e-5, 8e-5, 8e-6, 8e-6], rtol=1e-5)


def update(config, gradients, scales=None, steps=10):
    """The parameters after the updates, and the optimizer's state."""
    params = {"a/kernel": jnp.array([2.0, -2.0]), "a/bias": jnp.array([1.0])}
    optimizer = make_optimizer(config, scales or {"a/kernel": 1.0, "a/bias": 1.0}, steps)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


ZERO = {"a/kernel": jnp.zeros(2), "a/bias": jnp.zeros(1)}
UNIT = {"a/kernel": jnp.array([1.0, -1.0]), "a/bias": jnp.ones(1)}


def test_weight_decay_is_for_kernels_alone():
    params, _ = update(OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.5), [ZERO])
    np.testing.assert_allclose(params["a/kernel"], [1.9, -1.9])
    np.testing.assert_allclose(params["a/bias"], [1.0])
    assert [is_kernel(path) for path in ("x/kernel", "x/lora_a", "x/scale", "mask_tokens", "x/label_embedding")] == [
        *(True, True, False, False, False)
    ]


def test_rows_scale_the_learning_rate():
    # Adam's first update is the sign of the gradient.
    params, _ = update(SIMPLE, [UNIT], {"a/kernel": 1.0, "a/bias": 0.25})
    np.testing.assert_allclose(params["a/kernel"], [1.9, -1.9], rtol=1e-5)
    np.testing.assert_allclose(params["a/bias"], [0.975], rtol=1e-5)


def test_clipping_is_of_all_parameters_together():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0, clip=1.0)
    (_, one), (_, other) = update(config, [UNIT]), update(config, [jax.tree.map(lambda x: 7 * x, UNIT)])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), one, other)


def test_accumulated_gradients_are_averaged():
    config = dataclasses.replace(SIMPLE, accumulate=2)
    double = jax.tree.map(lambda x: 2 * x, UNIT)
    (params, _), (expected, _) = update(config, [ZERO, double]), update(SIMPLE, [UNIT])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), params, expected)
    unmoved, _ = update(config, [UNIT])
    assert unmoved["a/bias"] == 1


def test_the_average_follows_the_parameters():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.0, average=0.75)
    params, state = update(config, [UNIT, UNIT])
    # 1, 0.9, 0.8: the mean begins as the parameters.
    np.testing.assert_allclose(params["a/bias"], [0.8], rtol=1e-5)
    mean = 0.75 * (0.75 * 1 + 0.25 * 0.9) + 0.25 * 0.8
    np.testing.assert_allclose(averaged(params, state)["a/bias"], [mean], rtol=1e-5)
    assert averaged(params, update(SIMPLE, [UNIT])[1]) is params


def test_the_optimizer_has_no_memory_of_frozen_parameters():
    scales = learning_rate_scales(PARAMS, PRESETS["heads"])
    state = init_state(PARAMS, {"decoder": {}}, scales, make_optimizer(SIMPLE, scales, 10))
    numbers = sum(x.size for x in jax.tree.leaves(state.optimizer))
    trained = sum(x.size for path, x in PARAMS.items() if scales[path])
    assert 2 * trained <= numbers <= 2 * trained + 8
    assert state.params.keys() | state.frozen.keys() == PARAMS.keys()
    assert not state.params.keys() & state.frozen.keys()


@pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"average": 1.0}, {"clip": 0.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="accumulate"):
        OptimizerConfig(**wrong)
