"""SAM 2's encoder, and the way from pixels to masks, against the model and the predictor of `rf-sam-2`."""

import copy
import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity.official import difference
from parity.official_sam2 import random_sam2, sam2_predictor
from parity.relatives import tensors_of
from parity.stand_ins import import_package
from parity.test_automatic import assert_same_records
from PIL import Image
from torch.nn import functional

from sam_jax.convert.encoders import encoder_from_torch, encoder_to_torch
from sam_jax.convert.state_dict import from_torch
from sam_jax.convert.tables.settings import own_metadata
from sam_jax.decoder.model import Sam
from sam_jax.encoders import bicubic, hiera, vit
from sam_jax.encoders.bicubic import bicubic_matrix
from sam_jax.encoders.config import HieraConfig
from sam_jax.encoders.hiera import Hiera
from sam_jax.images.preprocess import prepare
from sam_jax.predictor import Predictor

sam2_generator = import_package("sam2.automatic_mask_generator")

TOLERANCE = 1e-5
"""As a share of the root mean square of the official values, in float32."""
IN_FLOAT64 = 1e-9

# Windows of 14 on 16 tokens and of 7 on 8 are padded; a global block is inside the third stage.
TINY = HieraConfig(
    widths=(16, 32, 64, 128), heads=(1, 2, 4, 8), depths=(1, 2, 3, 2), global_blocks=(4,), image_size=(256, 256)
)
# The even windows of the large model, which are never padded, and its heads.
LARGE = dataclasses.replace(TINY, heads=(2, 4, 8, 16), window_sizes=(8, 4, 16, 8), position_size=(14, 14))
CONFIGS = {"tiny": TINY, "large": LARGE, "1024": dataclasses.replace(TINY, image_size=(1024, 1024))}


class Pair(NamedTuple):
    """SAM 2 twice, with the same weights."""

    official: Any
    predictor: Predictor


@pytest.fixture(scope="session")
def sam2(request: pytest.FixtureRequest) -> Pair:
    """The pair of a name in `CONFIGS`."""
    config = CONFIGS[request.param]
    official = random_sam2(config)
    tensors = tensors_of(official)
    decoder = from_torch(tensors)
    settings = {name: json.loads(text) for name, text in own_metadata(decoder.config, config, "sam2.1").items()}
    encoder = encoder_from_torch(tensors, settings=settings)
    assert encoder.config == config
    sizes = {"image_size": config.image_size, "grid_size": config.grid_size}
    model = Sam(dataclasses.replace(decoder.config, **sizes))
    return Pair(official, Predictor(model, decoder.variables, Hiera(config), encoder.variables))


def of(*names: str) -> Any:
    return pytest.mark.parametrize("sam2", names, indirect=True, scope="session")


def encoded(pair: Pair, frame: Any, config: HieraConfig | None = None) -> tuple[list[Any], Any]:
    """The maps after each stage, and the features."""
    config, dtype = config or pair.predictor.encoder.config, str(frame.dtype)
    encoder = Hiera(dataclasses.replace(config, dtype=dtype))
    variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), pair.predictor.encoder_variables)
    stages = jax.jit(lambda variables, frame: encoder.apply(variables, frame, method=Hiera.stage_maps))
    return stages(variables, frame), jax.jit(encoder.apply)(variables, frame)


def official_encoded(pair: Pair, frame: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same of the official model: features as its predictor keeps them, the finest first."""
    image = torch.tensor(np.moveaxis(frame, -1, 0))[None]
    model = copy.deepcopy(pair.official).to(image.dtype)
    stages = [stage[0].permute(1, 2, 0).numpy() for stage in model.image_encoder.trunk(image)]
    *finer, coarse = (level[0].permute(1, 2, 0).numpy() for level in model.forward_image(image)["backbone_fpn"])
    return stages, [*finer, coarse + model.no_mem_embed[0].numpy()]


@of("tiny", "large")
@pytest.mark.parametrize("size", [(256, 256), (256, 384)])
def test_every_stage_and_feature(sam2, size, dtype, rng):
    config = dataclasses.replace(sam2.predictor.encoder.config, image_size=size)
    frame = rng(*size, 3).astype(dtype)
    stages, features = encoded(sam2, frame, config)
    official_stages, official = official_encoded(sam2, frame)
    ours = [*stages, features.stride_4, features.stride_8, features.embedding]
    *differences, of_embedding = [difference(a, b) for a, b in zip(ours, [*official_stages, *official], strict=True)]
    assert max(differences) < {"float32": TOLERANCE, "float64": IN_FLOAT64}[dtype]
    assert of_embedding < TOLERANCE  # the official neck enlarges the coarsest map in float32


def bilinear_along(x: Any, axis: int) -> Any:
    """A map twice as long along an axis."""
    shape = [2 * n if i == axis else n for i, n in enumerate(x.shape)]
    return jax.image.resize(x, shape, "linear")


MISTAKES = {
    "average for max pooling": (
        hiera,
        "max_pool",
        lambda x: x.reshape(*x.shape[:-3], x.shape[-3] // 2, 2, x.shape[-2] // 2, 2, x.shape[-1]).mean((-4, -2)),
        1e-1,
    ),
    "another epsilon": (hiera, "BLOCK_NORM_EPS", 1e-5, 1e-5),
    "tanh for erf": (vit, "gelu", jax.nn.gelu, 1e-5),
    "another cubic kernel": (bicubic, "SHARPNESS", -0.5, 1e-3),
    "bilinear for nearest": (jnp, "repeat", lambda x, n, axis: bilinear_along(x, axis), 1e-2),
    "positions repeated": (jnp, "tile", lambda x, n: jnp.repeat(jnp.repeat(x, n[0], 0), n[1], 1), 1e-1),
}


@of("tiny")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_seen(sam2, mistake, rng, monkeypatch):
    module, name, value, least = MISTAKES[mistake]
    frame = rng(256, 256, 3)
    monkeypatch.setattr(module, name, value)
    _, features = encoded(sam2, frame)
    assert difference(features.embedding, official_encoded(sam2, frame)[1][2]) > least


@pytest.mark.parametrize(("size", "new_size"), [(7, 64), (14, 64), (14, 256), (7, 128)])
def test_positions_are_resized_as_in_pytorch(size, new_size, rng):
    values = rng(size, size)
    matrix = bicubic_matrix(size, new_size)
    want = functional.interpolate(torch.tensor(values)[None, None], (new_size, new_size), mode="bicubic")[0, 0]
    np.testing.assert_allclose(matrix @ values @ matrix.T, want, atol=2e-6)


@pytest.mark.parametrize("size", [(1500, 700), (90, 1400), (300, 200)])
def test_preprocessing(size, rng):
    """Stretched to a square, as floats and with antialiasing, also where one side grows and the other shrinks."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    predictor = sam2_predictor.SAM2Transforms(resolution=1024, mask_threshold=0.0, disable_torch_jit=True)
    want = predictor(image).permute(1, 2, 0).numpy()
    frame, input_size = prepare(image, (1024, 1024), "sam2")
    assert input_size == (1024, 1024)
    np.testing.assert_allclose(frame, want, atol=1e-5)


@of("tiny")
def test_there_and_back(sam2):
    """Encoder and decoder together are the official names, shapes and bits of the image path."""
    predictor, tensors = sam2.predictor, tensors_of(sam2.official)
    back = encoder_to_torch(predictor.encoder, predictor.encoder_variables)
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)
    assert {name for name in tensors if name.startswith("image_encoder.")} < set(back)


@of("1024")
@pytest.mark.parametrize("size", [(150, 200), (700, 1500)])
def test_from_pixels_to_masks(sam2, size):
    """As the official predictor: smaller than the low-res masks and larger than the frame, every kind of prompt."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((width, height)))
    official, predictor = sam2_predictor.SAM2ImagePredictor(sam2.official, disable_torch_jit=True), sam2.predictor
    official.set_image(image)
    predictor.set_image(image)
    scale = np.array([width, height])
    box, click, clicks = [0.1, 0.2, 0.8, 0.7], [[0.4, 0.6]], [[0.4, 0.6], [0.05, 0.01]]
    mask = 40 * np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    box, click, clicks = np.array(box) * np.tile(scale, 2), np.array(click) * scale, np.array(clicks) * scale
    cases = [
        ({"points": click, "labels": [1]}, True),
        ({"points": click, "labels": [1]}, False),
        ({"boxes": box}, False),
        ({"points": clicks, "labels": [1, 0], "boxes": box}, True),
        ({"mask": mask}, True),
        ({}, True),
        ({"points": click, "labels": [1], "mask": mask}, False),
    ]
    for given, multimask in cases:
        masks, scores, logits = official.predict(
            point_coords=given.get("points"),
            point_labels=np.array(given["labels"]) if "labels" in given else None,
            box=given.get("boxes"),
            mask_input=given["mask"][None] if "mask" in given else None,
            multimask_output=multimask,
        )
        ours = predictor.predict(**given, multimask=multimask)
        np.testing.assert_allclose(ours.scores, scores, atol=1e-5)
        assert difference(ours.logits, logits) < TOLERANCE
        assert np.mean(ours.masks != masks.astype(bool)) < 3e-5


@of("1024")
@pytest.mark.parametrize("use_m2m", [False, True])
def test_every_object(sam2, use_m2m, monkeypatch):
    """The official generator's masks, and those of its second look."""
    monkeypatch.setattr(torch.jit, "script", lambda module: module)
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((200, 150)))
    settings = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
    settings["use_m2m"] = use_m2m
    theirs = sam2_generator.SAM2AutomaticMaskGenerator(sam2.official, **settings).generate(image)
    assert_same_records(sam2.predictor.generate(image, **settings), theirs, image, 12)
