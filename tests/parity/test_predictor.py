"""`Predictor` against the official `SamPredictor`: the same weights and photographs' sizes, so the same masks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from parity.encoders import official_vit, randomise
from parity.official import modeling, random_decoder, segment_anything
from PIL import Image

from sam_jax import Predictor
from sam_jax.config import TINY
from sam_jax.convert import own_metadata, write_tensors
from sam_jax.encoders.config import VIT_TINY

# At full size in pixels, and small in everything else.
DECODER = dataclasses.replace(TINY, mask_channels=16, image_size=(1024, 1024), grid_size=(64, 64))
ENCODER = dataclasses.replace(VIT_TINY, depth=2, global_blocks=(1,), window_size=14, image_size=(1024, 1024))


class Predictors(NamedTuple):
    """The same model twice, and its file."""

    official: Any
    ours: Predictor


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> Predictors:
    """An official model with random weights, and what is loaded of its checkpoint."""
    decoder = random_decoder(DECODER)
    sam = modeling.Sam(official_vit(ENCODER), decoder.prompt_encoder, decoder.mask_decoder).eval()
    randomise(sam, seed=5)  # of several seeds, one whose masks are neither empty nor full
    path = tmp_path_factory.mktemp("checkpoint") / "sam.safetensors"
    tensors = {name: tensor.numpy().copy() for name, tensor in sam.state_dict().items()}
    write_tensors(path, tensors, metadata=own_metadata(DECODER, ENCODER))
    return Predictors(segment_anything.SamPredictor(sam), Predictor.load(path))


def scene(height: int, width: int) -> np.ndarray:
    """Draw discs and bars on a gradient, with some noise."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width] / max(height, width)
    picture = np.stack([90 + 90 * y, 110 + 90 * x, 140 - 90 * y], -1)
    for _ in range(6):
        (cy, cx), radius, colour = (
            rng.uniform(size=2) * (y[-1, 0], x[0, -1]),
            rng.uniform(0.03, 0.15),
            rng.uniform(size=3),
        )
        picture[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = 255 * colour
        picture[(abs(x - cy) < radius / 4) & (abs(y - cx) < radius)] = 255 * colour[::-1]
    return np.clip(picture + rng.normal(scale=6, size=picture.shape), 0, 255).astype(np.uint8)


def rotated(path: Path, shown: np.ndarray) -> None:
    """Write what a camera held sideways writes: the picture turned, and a note to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(path, exif=exif)


def grey(shown: np.ndarray) -> np.ndarray:
    return np.repeat(shown[..., :1], 3, -1)


def write(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def with_alpha(path: Path, shown: np.ndarray) -> None:
    write(path, np.concatenate([shown, shown[..., :1]], -1))


class Photo(NamedTuple):
    """A photograph's size, what is seen, and how it is written to a file."""

    size: tuple[int, int]
    write: Callable[[Path, np.ndarray], None] = write
    see: Callable[[np.ndarray], np.ndarray] = lambda shown: shown


PHOTOS = {
    "landscape": Photo((1200, 1800)),
    "portrait": Photo((1067, 600)),
    "tiny": Photo((21, 34)),
    "a strip": Photo((3, 700)),
    "huge": Photo((2448, 3264)),
    "grey": Photo((480, 640), lambda path, shown: write(path, shown[..., 0]), grey),
    "RGBA": Photo((481, 640), with_alpha),
    "16-bit": Photo((480, 641), lambda path, shown: write(path, shown[..., 0].astype(np.uint16) * 257), grey),
    "EXIF-rotated": Photo((640, 427), rotated),
}


def assert_same(ours: Any, official: Any) -> None:
    masks, scores, logits = official
    equal = (ours.masks == masks).mean((-2, -1))
    assert ours.masks.shape == masks.shape
    assert (equal >= 0.999).all(), equal
    assert ((masks.mean((-2, -1)) > 0.05) & (masks.mean((-2, -1)) < 0.95)).all()  # not equal by being empty
    scale = np.sqrt(np.mean(logits**2))
    np.testing.assert_allclose(ours.logits, logits, atol=5e-5 * scale)
    np.testing.assert_allclose(ours.scores, scores, atol=1e-5 * np.abs(scores).max())


@pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)
def test_masks_from_a_file(photo: Photo, predictors: Predictors, tmp_path: Path) -> None:
    """A click; then the same click, another, a box and the first round's best mask."""
    shown = photo.see(scene(*photo.size))
    photo.write(tmp_path / "photo.png", shown)
    official, ours = predictors
    official.set_image(shown)
    ours.set_image(tmp_path / "photo.png")
    height, width = photo.size
    clicks = np.array([[0.4 * width, 0.3 * height], [0.9 * width, 0.8 * height]])
    first = official.predict(clicks[:1], np.array([1]))
    assert_same(ours.predict(clicks[:1], [1]), first)

    best = first[2][first[1].argmax()][None]
    box = np.array([0.1 * width, 0.1 * height, 0.7 * width, 0.9 * height])
    second = official.predict(clicks, np.array([1, 0]), box, best, multimask_output=False)
    assert_same(ours.predict(clicks, np.array([1, 0]), box, best, multimask=False), second)


def test_boxes_in_a_batch_of_images(predictors: Predictors) -> None:
    """Several images and several boxes of each, against `predict_torch` with one image after the other."""
    official, ours = predictors
    sizes = (480, 640), (1067, 600)
    boxes = [np.array([[30, 40, 300, 200], [100, 100, 500, 470], [5, 5, 90, 90]]), np.array([[0, 0, 600, 1000]])]
    ours.set_images([scene(*size) for size in sizes])
    for prediction, size, image_boxes in zip(ours.predict_batch(boxes=boxes), sizes, boxes, strict=True):
        official.set_image(scene(*size))
        in_frame = torch.tensor(official.transform.apply_boxes(image_boxes, size), dtype=torch.float)
        assert_same(prediction, [x.numpy() for x in official.predict_torch(None, None, in_frame)])
