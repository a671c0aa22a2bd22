"""Many devices, here eight virtual ones: the values of one device, from an even share of the work on each."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from random_model import SEVERAL_MAPS, family_model, random_embedding, random_features, random_variables

from sam_jax import MaskPrediction, Prompts, Sam, Sizes, predict_masks
from sam_jax.batch.sharding import make_mesh, replicate, shard_inputs, split_decode
from sam_jax.config import TINY
from sam_jax.fast.low_rank import prepare_image

MODEL = Sam(dataclasses.replace(TINY, depth=1))  # compiles faster, and is split no differently
VARIABLES = random_variables(MODEL)
SIZES = Sizes(tokens=(4,), prompt_sets=(8, 16), images=(2,))
COLLECTIVE = r"\b(?:all-[a-z]+|collective-[a-z]+|reduce-scatter|ragged-all-to-all)\b"


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    devices = jax.devices("cpu")
    assert len(devices) >= 8, "the tests need 8 virtual devices: jax_num_cpu_devices, set before JAX starts"
    return make_mesh(2, devices[:8])


def inputs(*batch: int) -> tuple[jax.Array, Prompts]:
    """Two clicks and a mask prompt for each of [(image,) prompt set]."""
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 128, (*batch, 2, 2)).astype(np.float32)
    masks = rng.normal(size=(*batch, *MODEL.config.mask_size)).astype(np.float32)
    return random_embedding(*batch[:-1]), Prompts.build(points, rng.integers(0, 2, (*batch, 2)), masks=masks)


def predict(embeddings: Any, prompts: Prompts, **more: Any) -> MaskPrediction:
    return predict_masks(MODEL, VARIABLES, embeddings, prompts, chunk=1, sizes=SIZES, **more)


def assert_same(actual: MaskPrediction, expected: MaskPrediction) -> None:
    for name in ("logits", "iou", "valid"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("batch", "share"), [((16,), (2,)), ((2, 8), (1, 2))], ids=["a single image", "several images"]
)
def test_every_device_decodes_an_even_share(mesh, batch, share):
    out = predict(*inputs(*batch), mesh=mesh)
    assert_same(out, predict(*inputs(*batch)))
    for leaf in jax.tree.leaves(out):
        assert [shard.data.shape for shard in leaf.addressable_shards] == 8 * [share + leaf.shape[len(batch) :]]
        assert len({str(shard.index) for shard in leaf.addressable_shards}) == 8


def test_prepared_images_are_split_too(mesh):
    embeddings, prompts = inputs(2, 8)
    prompts = prompts.replace(masks=None, has_mask=None)
    prepared = jax.jit(jax.vmap(functools.partial(prepare_image, MODEL, VARIABLES)))(embeddings)
    out = predict(prepared, prompts, mesh=mesh)
    assert_same(out, predict(embeddings, prompts))
    assert out.logits.sharding.spec == PartitionSpec("image", "prompt_set")


@pytest.mark.parametrize("batch", [(9,), (1, 5)], ids=["a single image", "several images"])
def test_uneven_numbers_give_as_many_results(mesh, batch):
    out = predict(*inputs(*batch), mesh=mesh)
    assert out.logits.shape == (*batch, MODEL.config.num_masks, *MODEL.config.mask_size)
    assert_same(out, predict(*inputs(*batch)))


def test_what_was_padded_beforehand_is_marked_and_stays_where_it_is(mesh):
    embeddings, prompts = shard_inputs(*inputs(1, 5), mesh, SIZES)
    assert embeddings.sharding.spec == PartitionSpec("image")
    assert prompts.labels.sharding.spec == PartitionSpec("image", "prompt_set")
    out = predict(embeddings, prompts, mesh=mesh)
    assert out.logits.sharding.spec == PartitionSpec("image", "prompt_set")
    np.testing.assert_array_equal(out.valid, np.pad(np.ones((1, 5), bool), [(0, 1), (0, 3)]))
    assert_same(jax.tree.map(lambda x: x[:1, :5], out), predict(*inputs(1, 5)))


def test_variables_are_on_every_device_and_copied_once(mesh):
    everywhere = replicate(VARIABLES, mesh)
    again = replicate(everywhere, mesh)
    for leaf, same in zip(jax.tree.leaves(everywhere), jax.tree.leaves(again), strict=True):
        assert len(leaf.addressable_shards) == 8
        assert leaf.is_fully_replicated
        for shard, same_shard in zip(leaf.addressable_shards, same.addressable_shards, strict=True):
            assert shard.data.unsafe_buffer_pointer() == same_shard.data.unsafe_buffer_pointer()


def test_decoding_communicates_nothing(mesh):
    placed = shard_inputs(*inputs(2, 8), mesh, SIZES)
    program = split_decode.lower(MODEL, replicate(VARIABLES, mesh), *placed, 1, "auto", mesh).compile().as_text()
    assert "while" in program, "several chunks on each device"
    assert not re.findall(COLLECTIVE, program)


def test_the_gradient_is_the_sum_over_devices(mesh):
    embeddings, prompts = inputs(8)
    prompts = prompts.replace(masks=None, has_mask=None)

    def program(mesh: Mesh | None) -> jax.stages.Compiled:
        def loss(variables: Any) -> jax.Array:
            out = predict_masks(MODEL, variables, embeddings, prompts, chunk=8, mesh=mesh, path="plain")
            return jnp.mean(out.logits**2)

        return jax.jit(jax.grad(loss)).lower(VARIABLES).compile({"xla_backend_optimization_level": 0})

    split, whole = program(mesh), program(None)
    assert set(re.findall(COLLECTIVE, split.as_text())) == {"all-reduce"}
    for actual, expected in zip(*map(jax.tree.leaves, (split(VARIABLES), whole(VARIABLES))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_inside_jit_the_mesh_must_divide_the_prompts(mesh):
    embeddings, prompts = inputs(2, 6)
    with pytest.raises(ValueError, match=re.escape("their axes are [2, 6], the mesh's [2, 4]")):
        jax.jit(lambda variables: predict_masks(MODEL, variables, embeddings, prompts, mesh=mesh))(VARIABLES)


@pytest.mark.parametrize("images", [0, 3])
def test_a_mesh_has_equal_rows(images):
    with pytest.raises(ValueError, match=f"got 8 devices for {images} rows"):
        make_mesh(images, 8 * jax.devices("cpu")[:1])


def test_another_mesh_is_refused():
    with pytest.raises(ValueError, match=r"must have the axes 'image' and 'prompt_set', got \('data',\)"):
        predict(*inputs(8), mesh=Mesh(jax.devices("cpu")[:1], ("data",)))


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_all_maps_of_an_image_are_split(family):
    model, mesh = family_model(family), make_mesh(2, jax.devices("cpu")[:2])
    variables, features = random_variables(model), random_features(2, model=model)
    prompts = Prompts.build(boxes=np.tile([5.0, 6, 70, 80], (2, 1, 1)), images=True)
    sizes = Sizes(tokens=(2,), prompt_sets=(1,), images=(2,))
    placed = shard_inputs(features, prompts, mesh, sizes)
    assert {x.sharding.spec for x in jax.tree.leaves(placed[0])} == {PartitionSpec("image")}
    out = predict_masks(model, variables, *placed, sizes=sizes, mesh=mesh)
    want = predict_masks(model, variables, features, prompts, sizes=sizes)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4), out, want)
