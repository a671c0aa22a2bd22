import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import CONSTANTS, MODEL, PARAMS

import sam_jax
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


def test_qkv_of_an_encoder_gets_an_addition():
    params = {
        "image_encoder/block_0/attention/qkv/kernel": jnp.ones((4, 12)),
        "image_encoder/neck/conv_1/kernel": jnp.ones((1, 1, 4, 4)),
    }
    added = add_lora(KEY, params, 2)
    assert added["image_encoder/block_0/attention/qkv/lora_a"].shape == (4, 2)
    assert added["image_encoder/block_0/attention/qkv/lora_b"].shape == (2, 12)
    assert len(added) == 4


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
