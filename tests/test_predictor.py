"""`Predictor` equals the pure functions it is made of, and says what is wrong with images and prompts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from random_model import SEVERAL_MAPS, family_model, random_features, random_variables

from sam_jax import Predictor, Prompts, Sam, binary_masks, predict_masks, prepare_image, select_masks
from sam_jax.batch.select import masks_selected
from sam_jax.config import TINY
from sam_jax.encoders.config import VIT_TINY, EfficientViTConfig, ViTConfig
from sam_jax.encoders.efficient_vit import EfficientViT
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.images.pixels import EncodedImage, check_fit, encode_image, predict_batch, predict_image
from sam_jax.images.preprocess import prepare
from sam_jax.images.resize import mask_to_prompt, to_input_frame

MODEL = Sam(dataclasses.replace(TINY, depth=1))  # compiles faster, and is no other matter here
VARIABLES = random_variables(MODEL)
SIZES = (60, 100), (200, 150)


class Mean(ImageEncoder):
    """An encoder that compiles at once: each patch's mean colour, spread over the channels by random weights."""

    config: ViTConfig = VIT_TINY

    def setup(self) -> None:
        self.spread = nn.Dense(32)

    def __call__(self, frame: Any) -> Any:
        return self.spread(frame.reshape(8, 16, 8, 16, 3).mean((1, 3)))


class Constant(EfficientViT):
    """An encoder whose frame is smaller than the decoder's."""

    def setup(self) -> None:
        pass

    def __call__(self, frame: Any) -> Any:
        assert frame.shape == (64, 64, 3)
        return jnp.zeros((8, 8, 32))


ENCODER = Mean()
ENCODER_VARIABLES = ENCODER.init(jax.random.key(0), np.zeros((128, 128, 3), np.float32))


def picture(size: tuple[int, int]) -> np.ndarray:
    coarse = np.random.default_rng(size[0]).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(MODEL, VARIABLES, ENCODER, ENCODER_VARIABLES)


@pytest.fixture
def on_image(predictor) -> Predictor:
    predictor.set_image(picture(SIZES[0]))
    return predictor


def assert_same(actual: Any, expected: Any) -> None:
    assert actual.masks.dtype == bool
    np.testing.assert_array_equal(actual.masks, expected.masks)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-4)


def test_one_object_is_the_pure_functions_one_after_the_other(on_image):
    frame, input_size = prepare(picture(SIZES[0]), MODEL.config.image_size)
    embedding = ENCODER.apply(ENCODER_VARIABLES, frame)
    sizes = {"original_size": SIZES[0], "input_size": input_size}
    prompts = Prompts.build(points=[to_input_frame([[30, 20], [90, 50]], **sizes)], labels=[[1, 0]])
    out = predict_masks(MODEL, VARIABLES, embedding, prompts)
    for multimask, number in ((True, 3), (False, 1)):
        logits, scores = select_masks(out, multimask)
        result = on_image.predict([[30, 20], [90, 50]], [1, 0], multimask=multimask)
        assert result.masks.shape == (number, *SIZES[0])
        np.testing.assert_allclose(result.logits, logits[0], atol=1e-4)
        np.testing.assert_allclose(result.scores, scores[0], atol=1e-5)
        np.testing.assert_array_equal(result.masks, binary_masks(result.logits, **sizes))


def test_an_image_is_prepared_as_its_encoder_wants_it():
    """MedSAM's images fill the frame, so that each axis of a click has a scale of its own."""
    encoder = Mean(dataclasses.replace(ENCODER.config, preprocessing="medsam"))
    image = Predictor(MODEL, VARIABLES, encoder, ENCODER_VARIABLES).set_image(picture(SIZES[0]))
    assert (image.input_size, image.original_size) == (MODEL.config.image_size, SIZES[0])
    frame, _ = prepare(picture(SIZES[0]), MODEL.config.image_size, "medsam")
    np.testing.assert_allclose(image.embedding, ENCODER.apply(ENCODER_VARIABLES, frame), atol=1e-5)


def test_prompts_may_live_in_a_larger_frame_than_the_encoder_s():
    """The image's size in that frame is rounded there."""
    config = EfficientViTConfig(grid_size=(8, 8), out_width=32, image_size=(64, 64), prompt_frame=(128, 128))
    image = encode_image(Constant(config), {}, picture((100, 150)))
    assert (image.input_size, image.original_size) == ((85, 128), (100, 150))
    check_fit(MODEL.config, Constant(config))
    config = dataclasses.replace(config, prompt_frame=(64, 64))
    with pytest.raises(ValueError, match=r"frames \[128, 128\], but the encoder makes \[8, 8, 32\] of \[64, 64\]"):
        check_fit(MODEL.config, Constant(config))


def test_it_unpacks_in_the_official_order(on_image):
    masks, scores, logits = on_image.predict(boxes=[10, 10, 50, 50])
    assert (masks.shape, scores.shape, logits.shape) == ((3, *SIZES[0]), (3,), (3, 32, 32))


def test_a_result_is_the_next_rounds_mask(on_image):
    click = {"points": [[30, 20]], "labels": [1]}
    first = on_image.predict(**click)
    best = first.logits[first.scores.argmax()]
    second = on_image.predict(**click, mask=best)
    assert np.abs(second.logits - first.logits).max() > 0.1
    assert_same(on_image.predict(**click, mask=best[None]), second)  # as officially


def test_a_mask_of_bools_is_in_the_images_pixels(on_image):
    mask = np.zeros(SIZES[0], bool)
    mask[10:40, 20:70] = True
    logits = mask_to_prompt(mask, input_size=on_image.images[0].input_size, mask_size=MODEL.config.mask_size)
    assert_same(on_image.predict(mask=mask), on_image.predict(mask=np.asarray(logits)))
    several = on_image.predict(mask=np.stack([mask, ~mask]))
    assert several.masks.shape == (2, 3, *SIZES[0])
    assert_same(jax.tree.map(lambda x: x[0], several), on_image.predict(mask=mask))


def test_several_objects_are_each_object_alone(on_image):
    boxes = [[10, 10, 50, 50], [0, 0, 100, 60], [70.5, 20, 90, 30]]
    together = on_image.predict(boxes=boxes, multimask=False)
    assert together.masks.shape == (3, 1, *SIZES[0])
    for i, box in enumerate(boxes):
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), on_image.predict(boxes=box, multimask=False))


def test_objects_may_be_ragged(on_image):
    points, labels = [[[30, 20]], [[5, 5], [80, 30], [90, 9]], None], [[1], [1, 1, 0], None]
    together = on_image.predict(points, labels, boxes=[None, None, [10, 10, 50, 50]])
    assert_same(jax.tree.map(lambda x: x[1], together), on_image.predict(points[1], labels[1]))
    assert_same(jax.tree.map(lambda x: x[2], together), on_image.predict(boxes=[10, 10, 50, 50]))


def test_a_batch_is_each_image_alone(predictor):
    predictor.set_images([picture(size) for size in SIZES])
    mask = np.zeros(SIZES[1], bool)
    mask[50:90, 20:70] = True
    points, labels = [[[30, 20]], None], [[1], None]
    together = predictor.predict_batch(points, labels, boxes=[None, [[10, 10, 50, 50]]], mask=[None, [mask]])
    assert [x.masks.shape for x in together] == [(3, *SIZES[0]), (1, 3, *SIZES[1])]
    predictor.set_image(picture(SIZES[0]))
    assert_same(together[0], predictor.predict(points[0], labels[0]))
    predictor.set_image(picture(SIZES[1]))
    assert_same(together[1], predictor.predict(boxes=[[10, 10, 50, 50]], mask=[mask]))


@pytest.mark.parametrize("family", SEVERAL_MAPS)
def test_images_with_several_maps_go_together(family):
    model = family_model(family)
    variables = random_variables(model)
    images = [EncodedImage(random_features(model=model, seed=i), (128, 100), (64, 50)) for i in range(2)]
    prompts = {"points": [[[30, 20]], [[10, 40]]], "labels": [[1], [1]]}
    together = predict_batch(model, variables, images, **prompts)
    for i, image in enumerate(images):
        mine = {name: values[i] for name, values in prompts.items()}
        assert_same(together[i], predict_image(model, variables, image, **mine))
    assert len(together[0].masks) == masks_selected(model.config)
    clear = predict_image(model, variables, images[0], boxes=[10, 10, 40, 60], multimask=False)
    assert_same(predict_batch(model, variables, images[:1], boxes=[[10, 10, 40, 60]], multimask=False)[0], clear)


def test_sam2_hands_back_clamped_logits_and_masks_of_what_they_were():
    model = family_model("sam2")
    larger = lambda path, x: 100 * x if "hypernetworks" in str(path) and "layer_2" in str(path) else x  # noqa: E731
    variables = jax.tree_util.tree_map_with_path(larger, random_variables(model))
    image = EncodedImage(random_features(model=model), (128, 128), (64, 50))
    out = predict_image(model, variables, image, [[30, 20]], [1])
    prompts = Prompts.build(
        points=to_input_frame([[[30, 20]]], original_size=(64, 50), input_size=(128, 128)), labels=[[1]]
    )
    logits, _ = select_masks(predict_masks(model, variables, image.embedding, prompts))
    assert np.abs(logits).max() > 100
    np.testing.assert_allclose(out.logits, np.clip(logits[0], -32, 32), atol=1e-4)
    sizes = {"input_size": (128, 128), "original_size": (64, 50), "postprocessing": "sam2"}
    np.testing.assert_array_equal(out.masks, binary_masks(logits[0], **sizes))
    assert (np.asarray(binary_masks(out.logits, **sizes)) != out.masks).any()


def test_an_encoded_image_can_be_kept_and_prepared(predictor):
    kept = [predictor.set_image(picture(size)) for size in SIZES]
    before = predictor.predict([[30, 20]], [1])
    predictor.set_image(kept[0])
    assert predictor.predict([[30, 20]], [1]).masks.shape[1:] == SIZES[0]
    prepared = kept[1]._replace(embedding=prepare_image(MODEL, VARIABLES, kept[1].embedding))
    assert_same(predict_image(MODEL, VARIABLES, prepared, [[30, 20]], [1]), before)


def test_a_file_is_read_and_a_compiled_encoder_is_used_again(tmp_path):
    traces = []

    class Counting(Mean):
        def apply(self, *args: Any, **kwargs: Any) -> Any:
            traces.append(args)
            return super().apply(*args, **kwargs)

    for i, size in enumerate(SIZES):
        Image.fromarray(picture(size)).save(tmp_path / f"{i}.png")
        read, given = (encode_image(Counting(), ENCODER_VARIABLES, x) for x in (tmp_path / f"{i}.png", picture(size)))
        jax.tree.map(np.testing.assert_array_equal, read, given)
        assert read.original_size == size
    assert len(traces) == 1


def test_it_wants_an_image_first(predictor):
    with pytest.raises(RuntimeError, match="0 are set: call set_image first"):
        predictor.predict([[1, 2]], [1])
    with pytest.raises(RuntimeError, match="No image is set"):
        predictor.predict_batch([[[1, 2]]], [[1]])
    predictor.set_images([picture(size) for size in SIZES])
    with pytest.raises(RuntimeError, match="2 are set"):
        predictor.predict([[1, 2]], [1])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [1, 2], "labels": [1]}, "points with 1 axes"),
        ({"points": [[1, 2]], "labels": [1], "boxes": [[1, 2, 3, 4]]}, "several have one more axis .* boxes with 2"),
        ({"boxes": [[[1, 2, 3, 4]]]}, "boxes with 3 axes"),
        ({"points": [[1, 2]]}, "points and labels come together"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "one label per click"),
        ({"points": [[101, 61.5]], "labels": [1]}, r"\(101, 61.5\) is outside the image, .* 100 pixels wide and 60"),
        ({"boxes": [10, 10, 50, 99]}, r"\(50, 99\) is outside the image"),
        ({"mask": np.zeros((32, 31), np.float32)}, r"Mask prompts must be \[32, 32\] logits"),
        ({"mask": np.zeros((32, 32), bool)}, r"height and width \(60, 100\)"),
        ({"mask": np.eye(32)}, "must be logits"),
    ],
)
def test_prompts_that_do_not_fit(prompts, message, on_image):
    with pytest.raises(ValueError, match=message):
        on_image.predict(**prompts)


@pytest.mark.parametrize("kind", [Image.fromarray, jnp.asarray, lambda pixels: Image.fromarray(pixels).convert("RGBA")])
def test_images_of_other_libraries(kind, predictor):
    pixels = picture(SIZES[0])
    want, got = predictor.set_image(pixels), predictor.set_image(kind(pixels))
    np.testing.assert_array_equal(got.embedding, want.embedding)
    assert got[1:] == want[1:]


def test_a_grey_pil_image_is_as_its_file(predictor, tmp_path):
    grey = Image.fromarray(picture(SIZES[0])).convert("L")
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        predictor.set_image(grey).embedding, predictor.set_image(tmp_path / "grey.png").embedding
    )


class Unreadable:
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("it is on another planet")


@pytest.mark.parametrize("image", [None, Unreadable(), [[1, 2], [3]], {"pixels": 3}, jnp.zeros((5, 5, 3))])
def test_what_is_no_image_at_all_is_a_sentence(image, on_image, untyped):
    with pytest.raises(ValueError, match=r"The image must be "):
        on_image.set_image(image)


@pytest.mark.parametrize("image", [np.zeros((5, 5, 3)), np.zeros((5, 5), np.uint8), np.zeros((0, 5, 3), np.uint8)])
def test_an_array_that_is_no_image(image, on_image, untyped):
    before = on_image.images
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
        on_image.set_image(image)
    assert on_image.images is before


def test_entries_of_a_batch_are_counted(predictor):
    predictor.set_images([picture(size) for size in SIZES])
    with pytest.raises(ValueError, match="boxes must have one entry for each of 2 images, got 1"):
        predictor.predict_batch(boxes=[[1, 2, 3, 4]])


def test_encoder_and_decoder_must_fit():
    encoder = ImageEncoder(dataclasses.replace(VIT_TINY, out_width=64))
    with pytest.raises(ValueError, match=r"takes embeddings \[8, 8, 32\] .* makes \[8, 8, 64\]"):
        Predictor(MODEL, VARIABLES, encoder, {})


def test_an_encoded_image_is_a_pytree():
    image = EncodedImage(np.zeros((2, 2, 3)), (1, 2), (3, 4))
    assert jax.tree.leaves(image)[1:] == [1, 2, 3, 4]
