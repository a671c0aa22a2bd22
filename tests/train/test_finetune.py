import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from random_model import random_variables
from small_run import MODEL

import sam_jax
from sam_jax.encoder_config import ViTConfig
from sam_jax.image_encoder import ImageEncoder
from sam_jax.train.config import FinetuneConfig, LoopConfig, Simulation
from sam_jax.train.finetune import finetune
from sam_jax.train.state import flatten

CONFIG = FinetuneConfig(
    batch=2,
    objects=2,
    dtype="bfloat16",
    simulation=Simulation(clicks=0, refinements=False),
    loop=LoopConfig(steps=2, log_every=1, save_every=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a small encoder, and two images of a bright square each."""
    folder = tmp_path_factory.mktemp("finetune")
    config = ViTConfig(width=16, depth=1, heads=2, window_size=3, global_blocks=(0,), out_width=32, image_size=(96, 96))
    encoder, variables = ImageEncoder(config), random_variables(MODEL)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((96, 96, 3)))
    numbers = np.random.default_rng(0)
    of_encoder = jax.tree.map(lambda x: jnp.asarray(0.1 * numbers.normal(size=x.shape), jnp.float32), shapes)
    sam_jax.save(folder / "start", MODEL, variables, encoder, of_encoder)
    for name in ("images", "labels"):
        (folder / "data" / name).mkdir(parents=True)
    for i in range(2):
        label = np.zeros((96, 96), np.uint8)
        label[16 + 24 * i : 56, 8:40] = 1
        Image.fromarray(200 * np.stack([label] * 3, -1)).save(folder / "data" / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "data" / "labels" / f"{i}.png")
    return folder


def test_a_run_ends_in_a_checkpoint_that_loads_and_goes_back_to_torch(folder):
    result = finetune(str(folder / "data"), str(folder / "start"), folder / "run", CONFIG)
    assert {path.name for path in (folder / "run").iterdir()} == {
        *("model", "checkpoints", "embeddings", "finetune.json", "metrics.jsonl", "curves.png", "samples.png")
    }
    (model, trained), (_, variables) = sam_jax.load(result.model), sam_jax.load(folder / "start")
    new, old = flatten(trained)[0], flatten(variables)[0]
    assert model == MODEL  # which computes in float32 again
    assert all(x.dtype == jnp.float32 for x in new.values())
    assert all((new[path] == x).all() for path, x in old.items() if path.startswith("prompt_encoder"))
    assert any((new[path] != x).any() for path, x in old.items() if path.startswith("mask_decoder"))
    assert result.trained == sum(x.size for path, x in old.items() if path.startswith("mask_decoder"))
    assert "mask_decoder.iou_token.weight" in sam_jax.convert.to_torch(model, trained)
    sam_jax.load_encoder(result.model)
    assert json.loads((folder / "run" / "finetune.json").read_text())["config"]["batch"] == 2


def test_a_folder_is_of_one_run(folder):
    with pytest.raises(ValueError, match="has a run with another config"):
        finetune(
            str(folder / "data"), str(folder / "start"), folder / "run", dataclasses.replace(CONFIG, train="heads")
        )
