"""A decoder, a batch and a step that are small enough to train in a test. Everything that compiles is kept."""

import dataclasses
import functools
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from random_model import MODEL as TINY_MODEL
from random_model import random_features, random_variables

from sam_jax import Sam, replicate, save
from sam_jax.batch.decode import decode_batch
from sam_jax.encoders.config import ViTConfig
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.files.manifest import Provenance
from sam_jax.train.config import OptimizerConfig, Simulation
from sam_jax.train.data.batches import Batch
from sam_jax.train.learning import step as step_module
from sam_jax.train.learning.optimizer import PRESETS, learning_rate_scales, make_optimizer
from sam_jax.train.learning.state import TrainState, flatten, init_state
from sam_jax.train.learning.step import Step, make_step

MODEL = Sam(
    dataclasses.replace(
        TINY_MODEL.config, depth=1, mlp_width=32, iou_head_depth=2, grid_size=(6, 6), image_size=(96, 96)
    )
)
ENCODER = ImageEncoder(
    ViTConfig(
        width=16, depth=1, heads=2, mlp_width=64, window_size=3, global_blocks=(0,), out_width=32, image_size=(96, 96)
    )
)
SIMULATION = Simulation(clicks=1, refinements=False)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup=5, weight_decay=0.0)
STEPS = 300
PARAMS, CONSTANTS = flatten(random_variables(MODEL))
SCALES = learning_rate_scales(PARAMS, PRESETS["decoder"])


def random_batch(images: int = 2, objects: int = 2, seed: int = 0, model: Sam = MODEL) -> Batch:
    """Discs side by side on random features; the lowest quarter of each image is padding."""
    rng = np.random.default_rng(seed)
    height, width = MODEL.config.mask_size
    rows, columns = np.mgrid[:height, :width]
    centres = rng.uniform((5, 5), (13, 7), (images, objects, 2))[..., None, None]
    centres[:, :, 1] += width / objects * np.arange(objects)[:, None, None]
    targets = np.hypot(rows - centres[:, :, 0], columns - centres[:, :, 1]) < 4.6
    weight = np.broadcast_to(rows < 18, (images, height, width))
    return Batch(
        images=None,
        embeddings=jax.tree.map(np.asarray, random_features(images, model=model)),
        targets=(targets & weight[:, None]).astype(np.float32),
        weight=weight.astype(np.float32),
        valid=np.ones((images, objects), bool),
        input_size=np.full((images, 2), (72, 96), np.int32),
    )


def save_checkpoint(folder: Path) -> None:
    """Write the decoder and an image encoder, both with random weights."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(ENCODER.init, jax.random.key(0), jnp.zeros((96, 96, 3)))
    of_encoder = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)
    provenance = Provenance("sam", "small.pth", "0" * 64, "Apache-2.0")
    save(folder, MODEL, random_variables(MODEL), ENCODER, of_encoder, provenance=provenance)


@functools.cache
def optimizer() -> optax.GradientTransformation:
    """The optimizer of the decoder's parameters."""
    return make_optimizer(OPTIMIZER, SCALES, STEPS)


@functools.cache
def step(mesh: Mesh | None = None) -> Step:
    """The jitted step, compiled. It decodes as the modules do, which compile in half the time of the fast paths."""
    with mock.patch.object(step_module, "decode_batch", functools.partial(decode_batch, path="plain")):
        step = make_step(MODEL, optimizer(), simulation=SIMULATION, mesh=mesh)
        state = fresh_state()
        step(state if mesh is None else replicate(state, mesh), random_batch())
    return step


def fresh_state() -> TrainState:
    """The state before the first step, placed as a restored one is, for which another program would be compiled."""
    return jax.device_put(init_state(PARAMS, CONSTANTS, SCALES, optimizer()), jax.devices()[0])
