import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from small_run import CONSTANTS, MODEL, PARAMS

import sam_jax
from sam_jax.encoders.config import EFFICIENT_VIT_L0, HIERA_TINY, TINY_VIT, VIT_TINY
from sam_jax.encoders.encoder import make_encoder
from sam_jax.train.learning.lora import add_lora, merge_lora
from sam_jax.train.learning.state import flatten, unflatten

KEY = jax.random.key(0)


def test_every_attention_projection_gets_an_addition():
    added = add_lora(KEY, PARAMS, 3).keys() - PARAMS.keys()
    attentions = {path.rpartition("/")[0] for path in PARAMS if path.endswith("/query/kernel")}
    names = {attention.rpartition("/")[0] for attention in attentions}
    assert len(names) == 4  # three of the one block, and the last
    assert added == {
        f"{name}/{part}/lora_{which}" for name in names for part in ("query", "key", "value", "out") for which in "ab"
    }


@pytest.mark.parametrize("config", [VIT_TINY, TINY_VIT, HIERA_TINY, EFFICIENT_VIT_L0], ids=lambda x: type(x).__name__)
def test_all_attentions_of_an_encoder_get_additions(config):
    encoder = make_encoder(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((*config.image_size, 3)))
    params = flatten_dict(shapes["params"], sep="/")
    added = jax.eval_shape(lambda params: add_lora(KEY, params, 2), params)
    for name in ("qkv", "out"):
        paths = [path for path in params if path.endswith(f"{name}/kernel") and "neck" not in path]
        assert paths
        for path in paths:
            assert added[path.replace("kernel", "lora_a")].shape == (params[path].shape[-2], 2)
            assert added[path.replace("kernel", "lora_b")].shape == (2, params[path].shape[-1])
    merged = jax.eval_shape(lambda params: merge_lora(add_lora(KEY, params, 2)), params)
    assert {path: x.shape for path, x in merged.items()} == {path: x.shape for path, x in params.items()}


def test_a_fresh_addition_changes_nothing():
    merged = merge_lora(add_lora(KEY, PARAMS, 3))
    assert merged.keys() == PARAMS.keys()
    assert all((merged[path] == PARAMS[path]).all() for path in PARAMS)


def test_merging_adds_the_product():
    params = {"attention/query/kernel": jnp.eye(2), "attention/query/bias": jnp.ones(2)}
    params |= {"attention/query/lora_a": jnp.array([[1.0], [2.0]]), "attention/query/lora_b": jnp.array([[3.0, 4.0]])}
    merged = merge_lora(params)
    np.testing.assert_array_equal(merged["attention/query/kernel"], [[4, 4], [6, 9]])
    assert merged.keys() == {"attention/query/kernel", "attention/query/bias"}


def test_a_merged_model_is_saved_as_any_other(tmp_path):
    params = {path: x + 0.1 if "lora" in path else x for path, x in add_lora(KEY, PARAMS, 2).items()}
    variables, _ = unflatten(params, CONSTANTS)
    sam_jax.save(tmp_path / "model", MODEL, variables)
    model, loaded = sam_jax.load(tmp_path / "model")
    assert model == MODEL
    assert flatten(loaded)[0].keys() == PARAMS.keys()
    changed = {path for path, x in flatten(loaded)[0].items() if (x != PARAMS[path]).any()}
    assert len(changed) == 16


@pytest.mark.parametrize("arguments", [(0,), (2, "nothing"), (2, "mask_decoder/upscaling/conv_0/kernel")])
def test_additions_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="positive rank and kernels that are matrices"):
        add_lora(KEY, PARAMS, *arguments)
