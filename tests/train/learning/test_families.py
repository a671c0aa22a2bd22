"""The decoders of other families are trained on all maps of an image: a few steps, and what trains in them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_model import FAMILIES, random_variables
from small_run import MODEL, OPTIMIZER, SIMULATION, random_batch

from sam_jax import MaskPrediction, Sam, make_mesh
from sam_jax.batch.decode import decode_batch
from sam_jax.images.pixels import EncodedImage
from sam_jax.train.config import LossConfig, Preset
from sam_jax.train.data.batches import make_item
from sam_jax.train.data.sources import DrawnScenes
from sam_jax.train.learning import step as step_module
from sam_jax.train.learning.losses import dice_loss, focal_loss, object_losses, total_loss
from sam_jax.train.learning.optimizer import PRESETS, learning_rate_scales, make_optimizer
from sam_jax.train.learning.rounds import given_on
from sam_jax.train.learning.state import flatten, init_state
from sam_jax.train.learning.step import make_step, shard_batch

STEPS = 12


def of_family(family: str) -> Sam:
    return Sam(dataclasses.replace(MODEL.config, **FAMILIES[family]))


@pytest.mark.parametrize(
    ("family", "preset"),
    [("sam_hq", "hq"), ("hq_sam2", "hq"), ("sam2", "decoder"), ("efficient_sam", "decoder")],
)
def test_a_short_run_lowers_the_loss(family: str, preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "decode_batch", functools.partial(decode_batch, path="plain"))
    model = of_family(family)
    params, constants = flatten(random_variables(model))
    scales = learning_rate_scales(params, PRESETS[preset])
    optimizer = make_optimizer(OPTIMIZER, scales, 100)
    state, batch = init_state(params, constants, scales, optimizer), random_batch(model=model)
    step, losses = make_step(model, optimizer, simulation=SIMULATION), []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics.get("hq", metrics["loss"])))  # in HQ-SAM 2, every mask has that of HQ
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert all((x == params[path]).all() for path, x in state.frozen.items())
    assert all((x != params[path]).any() for path, x in state.params.items())


@pytest.mark.parametrize("family", ["sam_hq", "hq_sam2"])
def test_what_trains_of_sam_hq(family: str) -> None:
    params, _ = flatten(random_variables(of_family(family)))

    def trained(preset: Preset) -> set[str]:
        return {path for path, scale in learning_rate_scales(params, PRESETS[preset]).items() if scale}

    hq = {path for path in params if "/hq/" in path}
    assert trained("hq") == hq
    assert {path.split("/")[2] for path in hq} >= {"token", "hypernetwork", "mask_feature"}
    assert hq < trained("heads")
    not_taught = {path for path in params if "object_head" in path}
    assert trained("everything") == params.keys() - not_taught
    assert bool(not_taught) == (family == "hq_sam2")


def test_sam_hqs_mask_is_taught_by_itself_and_used_with_another(rng: Any) -> None:
    logits, hq = jnp.asarray(rng(2, 3, 4, 6, 6)), jnp.asarray(rng(2, 3, 6, 6))
    out = MaskPrediction(logits, jnp.asarray(rng(2, 3, 4)), jnp.ones((2, 3), bool), hq=hq)
    targets, weight = (rng(2, 3, 6, 6) > 0).astype(np.float32), np.ones((2, 1, 6, 6), np.float32)
    config = LossConfig(size_aware=False, hq=2.0)
    for ambiguous in (True, False):
        losses = jax.jit(functools.partial(object_losses, ambiguous=ambiguous, config=config))
        terms, plain = losses(out, targets, weight), losses(dataclasses.replace(out, hq=None), targets, weight)
        want = 20 * focal_loss(hq, targets, weight) + dice_loss(hq, targets, weight)
        np.testing.assert_allclose(terms["hq"], want, rtol=1e-5)
        for name in ("focal", "dice", "iou"):
            np.testing.assert_allclose(terms[name], plain[name], rtol=1e-6)
        chosen = 1 + np.argmax(out.iou[..., 1:], -1) if ambiguous else np.zeros((2, 3), int)
        used = np.take_along_axis(np.asarray(logits), chosen[..., None, None, None], 2)[:, :, 0] + hq
        np.testing.assert_allclose(given_on(out, ambiguous), used, rtol=1e-6)
        both, either = ((used > 0) & (targets > 0)).sum((2, 3)), ((used > 0) | (targets > 0)).sum((2, 3))
        np.testing.assert_allclose(terms["overlap"], both / either, rtol=1e-6)
        total, _ = total_loss(terms, out.valid, 6, 1.0, config)
        without, _ = total_loss(plain, out.valid, 6, 1.0, config)
        np.testing.assert_allclose(total - without, 2 * want.mean(), rtol=1e-4)


def test_all_maps_of_a_batch_are_split_over_devices() -> None:
    batch, mesh = random_batch(model=of_family("sam2")), make_mesh(images=2, devices=jax.devices()[:2])
    for whole, split in zip(jax.tree.leaves(batch), jax.tree.leaves(shard_batch(batch, mesh)), strict=True):
        assert [shard.data.shape for shard in split.addressable_shards] == 2 * [(1, *whole.shape[1:])]


def test_all_maps_of_an_encoded_image_are_in_its_batch() -> None:
    model, scene = of_family("sam2"), DrawnScenes(1, size=(64, 96))[0]
    features = jax.tree.map(lambda x: x[0].astype("bfloat16"), random_batch(model=model).embeddings)
    example = dataclasses.replace(scene, encoded=EncodedImage(features, (64, 96), (64, 96)))
    item = make_item(example, np.random.default_rng(0), config=model.config, objects=1)
    assert {x.dtype for x in jax.tree.leaves(item.embeddings)} == {np.dtype(np.float32)}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)), item.embeddings, features)
