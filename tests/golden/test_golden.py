"""The numbers of the official decoder, SAM-HQ's, SAM 2's and EfficientSAM's, frozen by `make_golden.py`, against ours.
Needs no PyTorch.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parity.kinds import KINDS, quieten
from random_model import FAMILIES
from stages import decoder_stages, mask_stages

from sam_jax.batch.decode import Sizes
from sam_jax.batch.predict import predict_masks
from sam_jax.batch.select import select_masks
from sam_jax.config import SamConfig
from sam_jax.convert.state_dict import from_torch
from sam_jax.decoder.features import features_of
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


FEW_KINDS = ("many mixed clicks", "box", "boxes and clicks", "masks and clicks", "nothing")
CLOSE = 5e-6
"""With these weights, an epsilon of 1e-6 for 1e-5 is seen in every norm."""


@pytest.fixture(scope="module")
def relative(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], Sam, Any]:
    """The frozen arrays of a family, our model, and our variables of its weights."""
    arrays = load(request.param)
    shapes = json.loads(arrays["shapes"].tobytes())
    parts = np.split(arrays["weights"].astype(np.float32), np.cumsum([math.prod(shape) for shape in shapes.values()]))
    tensors = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts[:-1], strict=True)}
    converted = from_torch(tensors)
    assert converted.family.name == request.param
    frame = {name: getattr(CONFIG, name) for name in ("heads", "image_size", "grid_size")}
    model = Sam(dataclasses.replace(converted.config, **frame))
    assert model.config == dataclasses.replace(CONFIG, **FAMILIES[request.param])
    return arrays, model, converted.variables


def predict(relative: Any, kind: str, path: str) -> Any:
    arrays, model, variables = relative
    maps = {name: jnp.asarray(value, jnp.float32) for name, value in within("maps/", arrays).items()}
    prompts, sizes = Prompts.build(**within(f"given/{kind}/", arrays)), Sizes(tokens=(8,), prompt_sets=(2,))
    return predict_masks(model, variables, features_of(maps), prompts, sizes=sizes, path=path)


@pytest.mark.parametrize("relative", ["sam_hq"], indirect=True)
@pytest.mark.parametrize("path", ["plain", "absorbed"])
@pytest.mark.parametrize("kind", FEW_KINDS)
def test_sam_hq(relative, kind, path):
    """Its selections: the HQ mask, the HQ mask with mask 0, and with the best of the others."""
    arrays, *_ = relative
    out = predict(relative, kind, path)
    for name, multimask, hq in (("hq", True, "only"), ("single", False, "add"), ("best", True, "add")):
        logits, iou = select_masks(out, multimask, hq=hq)
        assert_same(logits, arrays[f"{name}/{kind}"], name, CLOSE)
        assert_same(iou, arrays[f"{name} iou/{kind}"], f"{name} iou", CLOSE)


@pytest.mark.parametrize("relative", ["sam2"], indirect=True)
@pytest.mark.parametrize("path", ["plain", "absorbed"])
@pytest.mark.parametrize("kind", FEW_KINDS)
def test_sam2(relative, kind, path):
    """A box has a third token, and nothing has none. No mask 0 is stable here."""
    arrays, *_ = relative
    out = predict(relative, kind, path)
    for name, ours in (("logits", out.logits), ("iou", out.iou), ("object score", out.object_score)):
        assert_same(ours, arrays[f"{name}/{kind}"], name, CLOSE)
    assert_same(select_masks(out, multimask=False)[1], arrays[f"single iou/{kind}"], "single iou", CLOSE)


@pytest.mark.parametrize("relative", ["sam2"], indirect=True)
def test_image_maps_of_sam2(relative):
    arrays, model, variables = relative
    levels = [jnp.asarray(arrays[f"levels/{i}"], jnp.float32) for i in range(3)]
    ours = model.apply(variables, *levels, method=lambda sam, *maps: sam.image_maps(*maps))
    for name, values in within("maps/", arrays).items():
        assert_same(getattr(ours, name), values, name, CLOSE)


@pytest.mark.parametrize("relative", ["efficient_sam"], indirect=True)
@pytest.mark.parametrize("path", ["plain", "absorbed"])
@pytest.mark.parametrize("kind", ["many mixed clicks", "box", "boxes and clicks"])
def test_efficient_sam(relative, kind, path):
    """Six tokens, of which what comes after them is left out."""
    arrays, *_ = relative
    out = predict(relative, kind, path)
    assert_same(out.logits, arrays[f"logits/{kind}"], "logits", CLOSE)
    assert_same(out.iou, arrays[f"iou/{kind}"], "iou", CLOSE)


@pytest.mark.parametrize("relative", ["efficient_sam"], indirect=True)
@pytest.mark.parametrize("size", [(37, 91), (9, 7)])
def test_masks_of_efficient_sam_at_the_original_size(relative, size):
    arrays, model, _ = relative
    sizes = {"input_size": model.config.image_size, "original_size": size}
    ours = resize_masks(jnp.asarray(arrays["logits/box"][0, :1]), postprocessing=model.config.postprocessing, **sizes)
    assert_same(ours, arrays[f"masks/{size[0]}x{size[1]}"], "masks", tolerance=2e-6)
