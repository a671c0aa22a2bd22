"""EfficientViT against the official package, and a whole EfficientViT-SAM from pixels to masks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.encoders import converted, randomise
from parity.official import difference
from parity.official_efficient_vit import efficientsam, norm, official_efficient_vit, sam
from torch.nn import functional

from sam_jax import Predictor
from sam_jax.convert.encoders import encoder_to_torch, identify_encoder
from sam_jax.decoder.layers import gelu
from sam_jax.encoders import bicubic, efficient_vit
from sam_jax.encoders.bicubic import resize_bicubic
from sam_jax.encoders.config import (
    EFFICIENT_VIT_L0,
    EFFICIENT_VIT_L1,
    EFFICIENT_VIT_L2,
    EFFICIENT_VIT_XL0,
    EFFICIENT_VIT_XL1,
    EfficientViTConfig,
)
from sam_jax.encoders.efficient_vit import EfficientViT, Stage, Stem

TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
"""In standard deviations of the official values."""

SMALL = EfficientViTConfig(
    widths=(4, 8, 8, 16, 24),
    depths=(1, 1, 1, 2, 2),
    head_width=8,
    neck_width=16,
    neck_depth=2,
    out_width=16,
    grid_size=(16, 16),
    image_size=(128, 128),
)
SMALL_XL = dataclasses.replace(
    EFFICIENT_VIT_XL0,
    widths=(4, 8, 8, 8, 16, 24),
    depths=(0, 1, 1, 1, 1, 2),
    head_width=8,
    neck_width=16,
    neck_depth=1,
    out_width=16,
    grid_size=(8, 8),
    image_size=(128, 128),
)
CONFIGS = {
    "l, wide": dataclasses.replace(SMALL, grid_size=(8, 20), image_size=(64, 160), prompt_frame=(128, 320)),
    "xl, a grid of another size": dataclasses.replace(SMALL_XL, grid_size=(11, 7)),
}
PRESETS = {
    "l0": EFFICIENT_VIT_L0,
    "l1": EFFICIENT_VIT_L1,
    "l2": EFFICIENT_VIT_L2,
    "xl0": EFFICIENT_VIT_XL0,
    "xl1": EFFICIENT_VIT_XL1,
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def variables_of(config: EfficientViTConfig, encoder: torch.nn.Module) -> Any:
    return converted(config, {f"image_encoder.{name}": tensor.numpy() for name, tensor in encoder.state_dict().items()})


def official_outputs(encoder: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    frame = torch.tensor(image).permute(2, 0, 1)[None]
    maps = {name: tensor for name, tensor in encoder.backbone(frame).items() if name[-1].isdigit()}
    maps["embedding"] = encoder(frame)
    return {f"EfficientViT {name}": tensor[0].permute(1, 2, 0).numpy() for name, tensor in maps.items()}


def our_outputs(config: EfficientViTConfig, variables: Any, image: Any) -> dict[str, jax.Array]:
    @jax.jit
    def run(variables: Any, image: Any) -> dict[str, jax.Array]:
        embedding, state = EfficientViT(config).apply(
            variables, image, capture_intermediates=lambda module, _: isinstance(module, Stem | Stage)
        )
        stages = {path.replace("_", ""): value["__call__"][0] for path, value in state["intermediates"].items()}
        return {f"EfficientViT {name}": array for name, array in (stages | {"embedding": embedding}).items()}

    return run(variables, image)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_stage_and_the_embedding(config, dtype, compare):
    """The last stages are so small that the official code forms the weights of attention there."""
    encoder = randomise(official_efficient_vit(config))
    encoder = encoder.double() if dtype == "float64" else encoder
    config = dataclasses.replace(config, dtype=dtype)
    image = noise(*config.image_size, 3).astype(dtype)
    ours = our_outputs(config, variables_of(config, encoder), image)
    compare(ours, official_outputs(encoder, image), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("module", "name", "wrong"),
    [
        (efficient_vit, "tanh_gelu", gelu),
        (efficient_vit, "NORM_EPS", 1e-5),
        (bicubic, "SHARPNESS", -0.5),
    ],
    ids=["exact GELU", "PyTorch's epsilon", "JAX's bicubic"],
)
def test_what_other_encoders_have_is_noticed(module, name, wrong, monkeypatch):
    """Each mistake moves the embedding by more than a thousand times the tolerance."""
    monkeypatch.setattr(module, name, wrong)
    with jax.enable_x64(True):
        config = dataclasses.replace(SMALL, depths=(0, 0, 0, 0, 1), neck_depth=0, dtype="float64")
        encoder, image = randomise(official_efficient_vit(config)).double(), noise(*config.image_size, 3)
        image = image.astype(np.float64)
        ours = our_outputs(config, variables_of(config, encoder), image)["EfficientViT embedding"]
        official = official_outputs(encoder, image)["EfficientViT embedding"]
    assert difference(ours, official) > 1e3 * TOLERANCE["float64"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_found_in_the_official_tensors(preset):
    with torch.device("meta"):
        model = efficientsam.create_efficientvit_sam_model(f"efficientvit-sam-{preset}", pretrained=False)
    tensors = {name: np.broadcast_to(np.float32(0), tensor.shape) for name, tensor in model.state_dict().items()}
    found = identify_encoder(tensors)
    assert found.config == PRESETS[preset]
    assert (found.config.prompt_frame[0], found.config.image_size[0]) == model.image_size
    assert not found.gaps
    assert found.family.name == "efficientvit_sam"
    encoder = {name: tensor for name, tensor in model.image_encoder.state_dict().items() if tensor.ndim}
    assert len(found.sources) == len(encoder)


@pytest.mark.parametrize(("size", "new"), [((7, 14), (64, 64)), ((16, 64), (64, 64)), ((9, 5), (4, 5))])
def test_bicubic_is_pytorch_s(size, new, compare):
    x = noise(*size, 3)
    official = functional.interpolate(torch.tensor(x).permute(2, 0, 1)[None], new, mode="bicubic")
    ours = jax.jit(resize_bicubic, static_argnums=1)(jnp.asarray(x), new)
    compare({"bicubic": ours}, {"bicubic": official[0].permute(1, 2, 0)}, 2e-6)


WHOLE = dataclasses.replace(SMALL, neck_width=32, out_width=256, grid_size=(64, 64), image_size=(512, 512))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Predictor]:
    """An official model with random weights, and what is loaded of its checkpoint, without settings."""
    torch.manual_seed(0)
    model = sam.build_efficientvit_sam(official_efficient_vit(WHOLE), WHOLE.image_size[0])
    norm.set_norm_eps(model, 1e-6)
    model = randomise(model.eval().requires_grad_(False), seed=3)
    path = tmp_path_factory.mktemp("checkpoint") / "efficientvit_sam.pt"
    torch.save(model.state_dict(), path)
    return sam.EfficientViTSamPredictor(model), Predictor.load(path)


def test_prompts_live_in_a_larger_frame_than_the_pixels(predictors, compare):
    """The encoder sees 341 rows of the image; in the frame of clicks and masks it has 683, which is not twice that."""
    official, ours = predictors
    assert ours.encoder.config == WHOLE
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    official.set_image(image)
    assert ours.set_image(image).input_size == official.input_size == (683, 1024)
    click = np.array([[40.0, 30.0]])
    first = official.predict(click, np.array([1]))
    best = first[2][:1]
    box = np.array([10.0, 20.0, 120.0, 90.0])
    second = official.predict(click, np.array([0]), box, best, multimask_output=False)
    found = {"click": ours.predict(click, [1]), "box and mask": ours.predict(click, [0], box, best, multimask=False)}
    for (name, prediction), (masks, scores, logits) in zip(found.items(), (first, second), strict=True):
        compare(
            {
                f"EfficientViT-SAM {name}: logits": prediction.logits,
                f"EfficientViT-SAM {name}: scores": prediction.scores,
            },
            {f"EfficientViT-SAM {name}: logits": logits, f"EfficientViT-SAM {name}: scores": scores},
            5e-5,
        )
        assert prediction.masks.shape == masks.shape
        assert (prediction.masks == masks).mean() > 0.999
        assert 0.02 < masks.mean() < 0.98


def test_pytorch_loads_what_is_written_back(predictors):
    official, ours = predictors
    tensors = encoder_to_torch(ours.encoder, ours.encoder_variables)
    encoder = official.model.image_encoder
    written = {f"image_encoder.{name}": tensor for name, tensor in encoder.state_dict().items() if tensor.ndim}
    assert tensors.keys() == written.keys()
    assert all(np.array_equal(tensors[name], tensor.numpy()) for name, tensor in written.items())
