"""The official decoder's numbers, frozen by `make_golden.py`, against ours. Needs no PyTorch."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parity.kinds import KINDS, quieten
from stages import decoder_stages, mask_stages

from sam_jax.batch.decode import Sizes
from sam_jax.batch.predict import predict_masks
from sam_jax.config import SamConfig
from sam_jax.convert.state_dict import from_torch
from sam_jax.decoder.model import Sam
from sam_jax.images.full_size import resize_masks
from sam_jax.images.resize import input_size_for
from sam_jax.prompts import Prompts

FOLDER = Path(__file__).parent
CONFIG = SamConfig.from_json((FOLDER / "config.json").read_text())
TOLERANCE = 2e-5
"""As a share of the official values' root mean square, in float32. Norms over 4 channels amplify rounding."""


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def within(folder: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(folder): array for name, array in arrays.items() if name.startswith(folder)}


def assert_same(ours: Any, official: np.ndarray, name: str, tolerance: float = TOLERANCE) -> None:
    scale = np.sqrt(np.mean(np.square(official)))
    np.testing.assert_allclose(ours, official, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.fixture(scope="module")
def predictions() -> dict[str, np.ndarray]:
    return load("predictions")


@pytest.fixture(scope="module")
def variables() -> Any:
    return from_torch(load("weights")).variables


@pytest.mark.parametrize("kind", KINDS)
def test_predictions(kind, predictions, variables):
    prompts = Prompts.build(**within(f"given/{kind}/", predictions))
    embedding, sizes = jnp.asarray(predictions["embedding"]), Sizes(tokens=(8,), prompt_sets=(2,))
    ours = predict_masks(Sam(CONFIG), variables, embedding, prompts, sizes=sizes)
    assert_same(ours.logits, predictions[f"logits/{kind}"], "logits")
    assert_same(ours.iou, predictions[f"iou/{kind}"], "iou")


@pytest.mark.parametrize("weights", ["stages", "low_variance"])
def test_stages(weights):
    """With the low-variance weights, an epsilon of 1e-6 for 1e-5 changes everything."""
    tensors = load("weights")
    params = from_torch(quieten(tensors) if weights == "low_variance" else tensors).variables["params"]
    arrays = load(weights)
    given, official = within("inputs/", arrays), within("stages/", arrays)
    image = given["image"] + given["dense"]
    ours = decoder_stages(CONFIG, params["mask_decoder"], image, given["position"], given["sparse"])
    ours |= mask_stages(CONFIG, params["prompt_encoder"]["mask_downscaling"], given["mask"])
    for path, values in official.items():
        assert_same(ours[path], values, path)


@pytest.mark.parametrize("size", [(37, 91), (100, 41), (9, 7), (64, 64)])
def test_masks_at_the_original_size(size):
    arrays = load("masks")
    input_size = input_size_for(size, (64, 64))
    ours = resize_masks(jnp.asarray(arrays["logits"]), input_size=input_size, original_size=size)
    assert_same(ours, arrays[f"masks/{size[0]}x{size[1]}"], "masks", tolerance=1e-6)
