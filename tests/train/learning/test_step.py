import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from small_run import CONSTANTS, MODEL, OPTIMIZER, PARAMS, SCALES, STEPS, fresh_state, random_batch, step

from sam_jax import make_mesh, replicate
from sam_jax.decoder.model import MaskPrediction
from sam_jax.train.config import LossConfig, Simulation
from sam_jax.train.learning import step as step_module
from sam_jax.train.learning.optimizer import make_optimizer
from sam_jax.train.learning.state import flatten, init_state, trained_variables, unflatten
from sam_jax.train.learning.step import batch_gradients, object_keys, shard_batch


def test_one_batch_is_learned_by_heart_and_what_is_frozen_stays_bit_for_bit():
    state, batch, overlaps = fresh_state(), random_batch(), []
    for _ in range(STEPS):
        state, metrics = step()(state, batch)
        overlaps.append(metrics["last_overlap"])
    assert np.mean(overlaps[-20:]) > 0.95
    assert int(state.step) == STEPS
    assert all((x == PARAMS[path]).all() for path, x in state.frozen.items())
    assert all(x.dtype == jnp.float32 for x in state.params.values())
    variables, _ = trained_variables(state)
    before, _ = unflatten(PARAMS, CONSTANTS)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), variables["constants"], before["constants"]))


def test_the_same_steps_give_the_same_bits():
    batch = random_batch(seed=3)

    def run():
        state = fresh_state()
        for _ in range(3):
            state, _ = step()(state, batch)
        return state

    one, other = run(), run()
    assert all((one.params[path] == other.params[path]).all() for path in one.params)
    assert any((one.params[path] != PARAMS[path]).any() for path in one.params)


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does():
    """Two images and two objects on four devices; one object is padding, so that devices have different numbers."""
    mesh, batch = make_mesh(images=2, devices=jax.devices()[:4]), random_batch()
    valid = np.array([[True, True], [True, False]])
    batch = dataclasses.replace(batch, valid=valid)
    state, metrics = step()(fresh_state(), batch)
    split, split_metrics = step(mesh)(replicate(fresh_state(), mesh), batch)
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    # Adam's first update is nearly the sign of the gradient, so what is small is compared by the optimizer's mean.
    for one, other in zip(jax.tree.leaves(state.optimizer), jax.tree.leaves(split.optimizer), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=2e-5)


def test_a_batch_that_a_mesh_cannot_split_is_refused():
    with pytest.raises(ValueError, match="8 rows of devices for 2 images"):
        shard_batch(random_batch(), make_mesh(images=8))


def test_prompts_depend_on_seed_step_and_place():
    keys = {
        tuple(jax.random.key_data(key).tolist())
        for seed in (0, 1)
        for number in (0, 1)
        for key in object_keys(seed, jnp.array(number), (2, 3)).ravel()
    }
    assert len(keys) == 24


class Squares(nn.Module):
    """An image encoder for the tests: a linear map of each square of 16 pixels."""

    @nn.compact
    def __call__(self, image):
        """Return the image embedding."""
        return nn.Conv(MODEL.config.width, (16, 16), strides=16, padding="VALID", name="squares")(image)


def sum_of_embeddings(model, variables, embeddings, prompts, **how):
    """A decoder for the tests: every mask's logits are linear in the embedding and in one parameter."""
    pixels = embeddings.repeat(4, 1).repeat(4, 2).mean(-1)[:, None, None]
    tokens = variables["params"]["mask_decoder"]["mask_tokens"].mean(-1)[:, None, None]
    logits = jnp.broadcast_to(pixels * tokens, (*prompts.valid.shape, 4, 24, 24))
    return MaskPrediction(logits, jnp.zeros((*prompts.valid.shape, 4)), prompts.valid)


def gradients_with_images(monkeypatch, trained, remat=False):
    """Metrics and gradients of a step with images, and its parameters, encoder and batch."""
    monkeypatch.setattr(step_module, "decode_batch", sum_of_embeddings)
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    batch, encoder = dataclasses.replace(random_batch(), images=images, embeddings=None), Squares()
    params, constants = flatten(unflatten(PARAMS, CONSTANTS)[0], encoder.init(jax.random.key(0), images[0]))
    chosen = {path: x for path, x in params.items() if path.startswith(trained)}
    frozen = {path: x for path, x in params.items() if path not in chosen}
    run = functools.partial(
        batch_gradients,
        MODEL,
        encoder=encoder,
        simulation=Simulation(clicks=1, refinements=False),
        loss=LossConfig(),
        classes=False,
        remat=remat,
    )
    keys = object_keys(0, jnp.array(0), (2, 2))
    return jax.jit(run)(chosen, (frozen, constants), batch, keys, jnp.array(1.0)), chosen, frozen, constants, batch, run


def test_the_encoder_is_trained_through_the_embeddings_and_a_frozen_one_changes_no_other_gradient(monkeypatch):
    (metrics, gradient), chosen, frozen, constants, batch, run = gradients_with_images(
        monkeypatch, ("mask_decoder/mask_tokens", "image_encoder")
    )
    kernel, tokens = "image_encoder/squares/kernel", "mask_decoder/mask_tokens"
    assert gradient.keys() == chosen.keys()

    def loss(amount):
        moved = {path: x + amount * gradient[path] for path, x in chosen.items()}
        keys = object_keys(0, jnp.array(0), (2, 2))
        return run(moved, (frozen, constants), batch, keys, jnp.array(1.0))[0]["loss"]

    loss, squares = jax.jit(loss), sum(float(jnp.square(x).sum()) for x in gradient.values())
    size = 1e-3 / np.sqrt(squares)
    # The loss grows along the gradient as much as that is long.
    assert float(loss(size) - loss(-size)) / (2 * size) == pytest.approx(squares, rel=0.02)
    assert jnp.abs(gradient[kernel]).max() > 0
    assert jnp.abs(gradient[tokens]).max() > 0

    (frozen_metrics, alone), *_ = gradients_with_images(monkeypatch, (tokens,), remat=True)
    assert alone.keys() == {tokens}
    np.testing.assert_allclose(alone[tokens], gradient[tokens], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], frozen_metrics["loss"], rtol=1e-6)


def deep_sum(*arguments, **how):
    """`sum_of_embeddings` with activations that take far more memory than its result."""
    out = sum_of_embeddings(*arguments, **how)
    return dataclasses.replace(out, logits=jax.lax.fori_loop(0, 64, lambda _, x: jnp.sin(x), out.logits))


def test_remat_keeps_the_activations_of_one_image_alone(monkeypatch):
    monkeypatch.setattr(step_module, "decode_batch", deep_sum)
    tokens, options = "mask_decoder/mask_tokens", {"encoder": None, "loss": LossConfig()}
    frozen = {path: x for path, x in PARAMS.items() if path != tokens}
    arguments = {tokens: PARAMS[tokens]}, (frozen, CONSTANTS), random_batch(8), object_keys(0, jnp.array(0), (8, 2))

    def memory(remat):
        simulation = Simulation(clicks=0, refinements=False)
        run = functools.partial(batch_gradients, MODEL, simulation=simulation, classes=False, remat=remat, **options)
        return jax.jit(run).lower(*arguments, jnp.array(1.0)).compile().memory_analysis().temp_size_in_bytes

    assert 3 * memory(remat=True) < memory(remat=False)


def test_flat_parameters_go_back_to_variables():
    variables, encoder = unflatten(PARAMS, CONSTANTS)
    params, constants = flatten(variables)
    assert params.keys() == PARAMS.keys()
    assert constants.keys() == {"decoder"}
    assert encoder == {"params": {}}


def test_averages_are_what_is_saved():
    averaging = make_optimizer(dataclasses.replace(OPTIMIZER, average=0.9), SCALES, 10)
    state = init_state(PARAMS, CONSTANTS, SCALES, averaging)
    moved = state.replace(params={path: x + 1 for path, x in state.params.items()})
    variables, _ = trained_variables(moved)
    assert (variables["params"]["mask_decoder"]["mask_tokens"] == PARAMS["mask_decoder/mask_tokens"]).all()
