"""All of JAX's strict settings at once: nothing is promoted silently, nothing leaks, nothing is NaN."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_encoder import SMALL_EFFICIENT_VIT, SMALL_TINY_VIT
from random_model import MODEL, random_embedding, random_variables
from small_run import CONSTANTS, PARAMS, SCALES, SIMULATION, random_batch
from small_run import MODEL as MODEL_THAT_LEARNS

import sam_jax
from sam_jax import Prompts
from sam_jax.encoders.config import EncoderConfig, ViTConfig
from sam_jax.encoders.encoder import make_encoder
from sam_jax.images.pixels import EncodedImage, predict_image
from sam_jax.images.preprocess import prepare_on_device
from sam_jax.train.config import LossConfig
from sam_jax.train.learning.state import init_state
from sam_jax.train.learning.step import make_step

EMBEDDING = random_embedding()
VARIABLES = random_variables()
CLICK = {"points": np.array([[[20.0, 30.0]]], np.float32), "labels": np.array([[1]], np.int32)}
BOX = {"boxes": np.array([[10.0, 10.0, 90.0, 80.0]], np.float32)}
MASK = {"masks": np.full((1, *MODEL.config.mask_size), 3.5, np.float32)}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.enable_x64(True),
        jax.debug_nans(True),
        jax.checking_leaks(),
    ):
        yield


@pytest.mark.parametrize("path", ["plain", "absorbed", "low_rank", "fused"])
@pytest.mark.parametrize("kind", ["click", "box", "mask"])
def test_every_path_decodes_every_kind_of_prompt(path: str, kind: str) -> None:
    if path == "low_rank" and kind == "mask":
        path = "auto"  # low_rank takes no masks
    prompts = Prompts.build(**{"click": CLICK, "box": BOX, "mask": CLICK | MASK}[kind])
    out = sam_jax.predict_masks(MODEL, VARIABLES, EMBEDDING, prompts, path=path)
    assert (out.logits.dtype, out.iou.dtype) == (jnp.float32, jnp.float32)


@pytest.mark.slow
def test_gradients_vmap_prepared_images_and_selection() -> None:
    prompts = Prompts.build(**CLICK)

    def loss(params):
        out = sam_jax.predict_masks(MODEL, VARIABLES | {"params": params}, EMBEDDING, prompts)
        logits, iou = sam_jax.select_masks(out)
        return sam_jax.stability_score(logits).sum() + jnp.square(logits).mean() + iou.sum()

    gradients = jax.jit(jax.grad(loss))(VARIABLES["params"])
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradients))
    image = sam_jax.prepare_image(MODEL, VARIABLES, EMBEDDING)
    out = sam_jax.predict_masks(MODEL, VARIABLES, image, prompts)
    masks, scores = sam_jax.best_masks(out, prompts)
    assert sam_jax.mask_boxes(masks > 0).dtype == jnp.float32
    assert sam_jax.mask_nms(masks > 0, scores).tolist() == [True]


def test_clicks_one_after_another_and_a_mesh() -> None:
    state = sam_jax.start_clicks(MODEL.config, (2,), clicks=1)
    points, labels = np.array([[20.0, 30.0], [50.0, 60.0]], np.float32), np.array([1, 0], np.int32)
    out, state = sam_jax.click(MODEL, VARIABLES, EMBEDDING, state, points, labels)
    mesh = sam_jax.make_mesh(devices=jax.devices()[:2])
    split = sam_jax.predict_masks(MODEL, VARIABLES, EMBEDDING, state, mesh=mesh)
    assert split.logits.dtype == out.logits.dtype == jnp.float32


@pytest.mark.parametrize(
    "config",
    [
        ViTConfig(
            width=16,
            depth=2,
            heads=2,
            mlp_width=64,
            window_size=3,
            global_blocks=(1,),
            out_width=32,
            image_size=(128, 128),
        ),
        dataclasses.replace(SMALL_TINY_VIT, out_width=32),
        dataclasses.replace(SMALL_EFFICIENT_VIT, out_width=32, prompt_frame=(128, 128), image_size=(128, 128)),
    ],
    ids=["vit", "tiny_vit", "efficient_vit"],
)
def test_encoders(config: EncoderConfig) -> None:
    encoder = make_encoder(dataclasses.replace(config, image_size=(128, 128)))
    frame = jnp.zeros((128, 128, 3), jnp.float32)
    variables = jax.jit(encoder.init)(jax.random.key(0), frame)
    assert jax.jit(encoder.apply)(variables, frame).dtype == jnp.float32
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3)), jnp.uint8)
    assert prepare_on_device(pixels, (128, 128)).dtype == jnp.float32


def test_prompts_and_masks_in_pixels() -> None:
    image = EncodedImage(EMBEDDING, (80, 128), (400, 640))
    mask = np.zeros((400, 640), bool)
    mask[100:200, 100:300] = True
    out = predict_image(MODEL, VARIABLES, image, [[200, 150]], [1], [100, 100, 300, 200], mask)
    assert out.masks.shape == (3, 400, 640)
    sizes = {"input_size": (80, 128), "original_size": (400, 640)}
    assert sam_jax.resize_masks(out.logits, **sizes).dtype == jnp.float32
    assert len(list(sam_jax.rle_masks(out.logits, **sizes))) == 3


@pytest.mark.slow
def test_a_training_step() -> None:
    """With plain descent: optax's own Adam promotes dtypes."""
    optimizer = optax.sgd(0.1)
    update = make_step(MODEL_THAT_LEARNS, optimizer, simulation=SIMULATION, loss=LossConfig(), seed=0)
    state, metrics = update(init_state(PARAMS, CONSTANTS, SCALES, optimizer), random_batch())
    assert all(x.dtype == jnp.float32 for x in state.params.values())
    assert np.isfinite(metrics["loss"])
