"""The whole decoder: what it is made of, its dtypes, and what does and does not change its results."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_model import MODEL, random_embedding, random_variables

from sam_jax.config import SamConfig
from sam_jax.decoder.model import MaskPrediction, Sam
from sam_jax.prompts import Prompts

VARIABLES = random_variables()
EMBEDDING = random_embedding()
MASK = 8 * np.random.default_rng(4).standard_normal(MODEL.config.mask_size, np.float32) - 4


@functools.cache
def jitted(model: Sam) -> Any:
    return jax.jit(model.apply)


def decode(
    prompts: Prompts, embedding: Any = EMBEDDING, variables: Any = VARIABLES, model: Sam = MODEL
) -> MaskPrediction:
    """Decode the only prompt set. Empty slots up to 4 tokens let the tests share a program."""
    return jitted(model)(variables, embedding, jax.tree.map(lambda x: jnp.asarray(x[0]), prompts.pad(4, 1)))


# For what is run once and whose digits do not matter: compiling takes most of the time.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CLICK = Prompts.build(points=[[[20, 30]]], labels=[[1]])


def difference(a: Any, b: Any) -> float:
    """Largest difference, in standard deviations of `b`."""
    return float(jnp.abs(a - b).max() / b.std())


def test_parameters_of_the_full_size():
    """As many as the official prompt encoder and mask decoder have: 6,220 and 4,058,340, and a matrix of 256."""
    shapes = jax.eval_shape(Sam().init, jax.random.key(0))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in shapes["params"].items()}
    assert count == {"prompt_encoder": 6_220, "mask_decoder": 4_058_340}
    assert [leaf.shape for leaf in jax.tree.leaves(shapes["constants"])] == [(2, 128)]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_variables_do_not_depend_on_the_frame_or_the_dtype():
    wide = Sam(dataclasses.replace(MODEL.config, image_size=(96, 160), grid_size=(6, 10), dtype="bfloat16"))
    shapes = [jax.eval_shape(model.init, jax.random.key(0)) for model in (MODEL, wide)]
    assert shapes[0] == shapes[1]


def test_a_fresh_model_predicts_finite_masks():
    variables = jax.jit(MODEL.init, compiler_options=UNOPTIMISED)(jax.random.key(0))
    out = decode(CLICK, variables=variables)
    assert out.logits.shape == (4, 32, 32)
    assert jnp.isfinite(out.logits).all()
    assert 1e-3 < out.logits.std() < 1e3


def test_a_model_is_its_settings():
    assert Sam(SamConfig()) == Sam()
    assert hash(Sam(SamConfig())) == hash(Sam())
    assert Sam() != MODEL


def test_not_a_point_is_attended_to():
    """It is a token of its own: without it, the masks of a click are others."""
    without = CLICK.replace(coordinates=CLICK.coordinates[:, :1], labels=CLICK.labels[:, :1])
    assert difference(decode(without).logits, decode(CLICK).logits) > 0.05


def test_a_prompt_set_that_is_padding_has_no_score():
    out = decode(CLICK.replace(valid=np.array([False])))
    assert (out.iou == -jnp.inf).all()
    assert not out.valid
    assert jnp.isfinite(out.logits).all()


def test_nothing_of_an_image_is_kept():
    """The embedding is an argument: a second image is not answered with the first one's masks."""
    first, second = decode(CLICK), decode(CLICK, random_embedding(seed=7))
    assert difference(second.logits, first.logits) > 0.1
    np.testing.assert_array_equal(decode(CLICK).logits, first.logits)


def test_clicks_have_no_order():
    points, labels = np.array([[[5, 90], [70, 20], [100, 120]]]), np.array([[1, 0, 1]])
    order = [2, 0, 1]
    one, other = (decode(Prompts.build(points=points[:, i], labels=labels[:, i])) for i in ([0, 1, 2], order))
    assert difference(one.logits, other.logits) < 1e-5


def test_x_is_not_y():
    one, other = (decode(Prompts.build(points=[[xy]], labels=[[1]])) for xy in ([20, 90], [90, 20]))
    assert difference(one.logits, other.logits) > 0.1


def test_bfloat16_is_close_and_its_results_are_float32():
    model = Sam(dataclasses.replace(MODEL.config, dtype="bfloat16"))
    expected, result = decode(CLICK), decode(CLICK, model=model)
    assert result.logits.dtype == result.iou.dtype == jnp.float32
    assert difference(result.logits, expected.logits) < 0.2
    inside, expected_inside = result.logits > 0, expected.logits > 0
    assert (inside & expected_inside).sum() / (inside | expected_inside).sum() > 0.95


def test_float64_agrees_with_float32():
    expected = decode(CLICK)
    with jax.enable_x64(True):
        model = Sam(dataclasses.replace(MODEL.config, dtype="float64"))
        variables, embedding = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (VARIABLES, EMBEDDING))
        result = decode(CLICK, embedding, variables, model)
        assert result.logits.dtype == result.iou.dtype == jnp.float64
        assert difference(expected.logits, result.logits) < 2e-5


def test_no_dtype_is_promoted_silently():
    prompts = jax.tree.map(lambda x: x[0], Prompts.build(points=[[[20, 30]]], labels=[[1]], masks=[MASK]))
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(MODEL.apply, VARIABLES, EMBEDDING, prompts)


def test_every_parameter_has_a_gradient():
    """Clicks of both kinds, "not a point" and a box, with and without a mask, use all of them."""
    tokens = np.array([[20, 30], [90, 70], [0, 0], [10, 20], [90, 110]], np.float32), np.array([1, 0, -1, 2, 3])

    @functools.partial(jax.jit, compiler_options=UNOPTIMISED)
    @jax.grad
    def gradient(params):
        def loss(has_mask):
            prompts = Prompts(*tokens, masks=MASK, has_mask=has_mask, valid=np.array(True))
            out = MODEL.apply(VARIABLES | {"params": params}, EMBEDDING, prompts)
            return (out.logits**2).mean() + (out.iou**2).mean()

        return jax.vmap(loss)(jnp.array([True, False])).sum()

    gradients = jax.tree_util.tree_leaves_with_path(gradient(VARIABLES["params"]))
    # A bias of the keys adds the same to all products of a query: the softmax does not see it.
    seen = {path: leaf for path, leaf in gradients if [key.key for key in path[-2:]] != ["key", "bias"]}
    assert [jax.tree_util.keystr(path) for path, leaf in seen.items() if not jnp.isfinite(leaf).all()] == []
    assert [jax.tree_util.keystr(path) for path, leaf in seen.items() if not (jnp.abs(leaf) > 0).any()] == []
