"""`generate_masks` and `Predictor.generate`: what they return, and that they agree."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from pycocotools import mask as coco
from random_model import family_model, random_features, random_variables
from scipy import ndimage
from test_predictor import ENCODER, ENCODER_VARIABLES, MODEL, VARIABLES, picture

import sam_jax
from sam_jax import AutomaticConfig, Predictor, Prompts, generate_masks, label_map, predict_masks, select_masks
from sam_jax.automatic.records import generate_records

SIZE = (60, 100)
GRID = {"points_per_side": 4, "points_per_batch": 10}
ALL = GRID | {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(MODEL, VARIABLES, ENCODER, ENCODER_VARIABLES)


@pytest.fixture(scope="module")
def image(predictor: Predictor) -> sam_jax.EncodedImage:
    return sam_jax.encode_image(ENCODER, ENCODER_VARIABLES, picture(SIZE))


def sizes(image: sam_jax.EncodedImage) -> dict[str, Any]:
    return {"input_size": image.input_size, "original_size": image.original_size}


def test_a_record_says_what_its_mask_is(predictor: Predictor) -> None:
    records = predictor.generate(picture(SIZE), **ALL)
    assert len(records) == 48  # three of each point
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)
    for record in records:
        mask = record["segmentation"]
        assert (mask.shape, mask.dtype, record["area"]) == (SIZE, np.dtype(bool), mask.sum())
        y, x = np.nonzero(mask) if mask.any() else ([0], [0])
        assert record["bbox"] == [min(x), min(y), max(x) - min(x), max(y) - min(y)]
        assert record["crop_box"] == [0, 0, 100, 60]
        ((x0, y0),) = record["point_coords"]
        assert (x0 / 100 * 4 % 1, y0 / 60 * 4 % 1) == pytest.approx((0.5, 0.5))


def test_a_mask_is_that_of_its_point(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    predictor.set_image(image)
    for record in predictor.generate(image, **ALL)[:5]:
        out = predictor.predict(points=record["point_coords"], labels=[1])
        best = int(np.argmin(np.abs(out.scores - record["predicted_iou"])))
        assert out.scores[best] == pytest.approx(record["predicted_iou"], abs=1e-5)
        assert (out.masks[best] != record["segmentation"]).sum() <= 1
        stability = sam_jax.stability_score(sam_jax.resize_masks(out.logits, **sizes(image)))
        assert record["stability_score"] == pytest.approx(float(stability[best]), abs=1e-3)


def test_the_function_and_the_records_agree(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    records = predictor.generate(image, **ALL)
    run = jax.jit(functools.partial(generate_masks, MODEL, settings=AutomaticConfig(**ALL, max_masks=60)))
    out = run(VARIABLES, image.embedding, **sizes(image))
    number = int(out.count)
    assert number == len(records) == out.valid.sum()
    assert out.logits.shape == (60, 32, 32)
    for name, key in (("iou", "predicted_iou"), ("stability", "stability_score"), ("area", "area")):
        np.testing.assert_allclose(getattr(out, name)[:number], [record[key] for record in records], rtol=1e-5)
        assert not np.asarray(getattr(out, name)[number:]).any()
    masks = np.asarray(sam_jax.binary_masks(out.logits[:number], **sizes(image)))
    assert (masks != np.stack([record["segmentation"] for record in records])).sum() <= 3
    prepared = run(VARIABLES, sam_jax.prepare_image(MODEL, VARIABLES, image.embedding), **sizes(image))
    np.testing.assert_allclose(prepared.iou, out.iou, atol=1e-5)
    # Another size is the same program.
    run(VARIABLES, image.embedding, input_size=(128, 70), original_size=(300, 164))
    assert run._cache_size() == 2  # an embedding and a state


POINTS = np.array([[20.0, 30], [90, 50]], np.float32)
"""In the input frame."""


def with_points(image: sam_jax.EncodedImage, **more: Any) -> AutomaticConfig:
    grid = POINTS / np.array(image.input_size[::-1])
    return AutomaticConfig(**ALL | {"points_per_side": None, "point_grids": [grid]} | more)


def test_sam_hq_has_one_mask_of_a_point_to_which_its_own_is_added() -> None:
    model = family_model("sam_hq")
    variables, features = random_variables(model), random_features(model=model)
    image = sam_jax.EncodedImage(features, (77, 128), SIZE)
    records = generate_records(model, variables, SIZE, lambda _: image, with_points(image))
    out = predict_masks(model, variables, features, Prompts.build(points=POINTS[:, None], labels=np.ones((2, 1))))
    logits, iou = select_masks(out)
    assert iou.shape == (2, 1)
    masks = np.asarray(sam_jax.binary_masks(logits[:, 0], **sizes(image), image_size=(128, 128)))
    order = np.argsort(-iou[:, 0])
    for record, i in zip(records, order, strict=True):
        assert record["predicted_iou"] == pytest.approx(float(iou[i, 0]), abs=1e-5)
        assert record["point_coords"] == [pytest.approx((POINTS[i] * np.array([100 / 128, 60 / 77])).tolist())]
        assert (record["segmentation"] != masks[i]).sum() <= 1


def test_sam_2_may_ask_for_each_mask_again() -> None:
    model = family_model("sam2")
    variables, features = random_variables(model), random_features(model=model)
    image = sam_jax.EncodedImage(features, (128, 128), SIZE)
    settings = with_points(image, use_m2m=True, max_masks=6)
    run = jax.jit(functools.partial(generate_masks, model, settings=settings))
    found = run(variables, features, **sizes(image))
    clicks = {"points": POINTS[:, None], "labels": np.ones((2, 1), int)}
    first, _ = select_masks(predict_masks(model, variables, features, Prompts.build(**clicks)))
    given = np.clip(first.reshape(6, 32, 32), -32, 32)
    clicks = {name: np.repeat(value, 3, 0) for name, value in clicks.items()}
    again = predict_masks(model, variables, features, Prompts.build(**clicks, masks=given))
    logits, iou = select_masks(again, multimask=False)
    order = np.argsort(-iou[:, 0], kind="stable")
    assert found.count == 6
    np.testing.assert_allclose(found.iou, iou[order, 0], atol=1e-5)
    np.testing.assert_allclose(found.logits, logits[order, 0], atol=2e-5 * float(np.abs(logits).max()))
    np.testing.assert_array_equal(found.points, np.repeat(POINTS, 3, 0)[order])


def test_a_family_without_mask_prompts_is_not_asked_again() -> None:
    model = family_model("efficient_sam")
    variables, features = random_variables(model), random_features(model=model)
    image = sam_jax.EncodedImage(features, (77, 128), SIZE)
    settings = with_points(image, use_m2m=True)
    with pytest.raises(ValueError, match="use_m2m hands masks back as prompts"):
        generate_masks(model, variables, features, **sizes(image), settings=settings)
    with pytest.raises(ValueError, match="use_m2m hands masks back as prompts"):
        generate_records(model, variables, SIZE, lambda _: image, settings)


def test_fewer_places_than_masks(image: sam_jax.EncodedImage) -> None:
    settings = [AutomaticConfig(**ALL, max_masks=n) for n in (60, 3)]
    every, few = (generate_masks(MODEL, VARIABLES, image.embedding, **sizes(image), settings=s) for s in settings)
    assert few.valid.tolist() == [True] * 3
    assert few.count == every.count > 3
    np.testing.assert_array_equal(few.boxes, every.boxes[:3])


def test_several_images_at_once_and_on_a_mesh(image: sam_jax.EncodedImage) -> None:
    other = sam_jax.encode_image(ENCODER, ENCODER_VARIABLES, picture((200, 150)))
    settings = AutomaticConfig(**ALL, max_masks=40)

    def one(embedding: Any, input_size: Any, original_size: Any) -> Any:
        sizes: Any = {"input_size": tuple(input_size), "original_size": tuple(original_size)}
        return generate_masks(MODEL, VARIABLES, embedding, **sizes, settings=settings)

    both = [np.stack([np.asarray(a), np.asarray(b)]) for a, b in zip(image, other, strict=True)]
    together = jax.jit(jax.vmap(one))(*both)
    mesh = sam_jax.make_mesh(images=2, devices=jax.devices()[:2])
    spec = PartitionSpec("image")
    split = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    for out in (together, jax.jit(split)(*both)):
        for i, single in enumerate((image, other)):
            want = one(single.embedding, single.input_size, single.original_size)
            mine = jax.tree.map(lambda x, i=i: x[i], out)
            assert mine.count == want.count
            np.testing.assert_array_equal(mine.boxes, want.boxes)
            np.testing.assert_allclose(mine.logits, want.logits, atol=1e-4)


def test_the_three_forms_of_a_segmentation(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    kinds = ("binary_mask", "uncompressed_rle", "coco_rle")
    masks, runs, texts = ([r["segmentation"] for r in predictor.generate(image, **ALL, output_mode=k)] for k in kinds)
    for mask, run, text in zip(masks, runs, texts, strict=True):
        np.testing.assert_array_equal(coco.decode(text), mask)
        np.testing.assert_array_equal(coco.decode(coco.frPyObjects(run, *SIZE)), mask)


def test_a_region_a_number_of_masks_and_own_points(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    every = predictor.generate(image, **ALL)
    for record in predictor.generate(image, **ALL, region=[50, 0, 100, 60]):
        assert record["point_coords"][0][0] >= 50
    mask = np.zeros(SIZE, bool)
    assert predictor.generate(image, **ALL, region=mask) == []
    few = predictor.generate(image, **ALL, max_masks=2)
    assert [record["bbox"] for record in few] == [record["bbox"] for record in every[:2]]
    own = ALL | {"points_per_side": None, "point_grids": [[[0.5, 0.25]]]}
    assert {tuple(record["point_coords"][0]) for record in predictor.generate(image, **own)} == {(50.0, 15.0)}


def areas_of(mask: np.ndarray) -> list[int]:
    regions, number = ndimage.label(mask, np.ones((3, 3)))
    return [int((regions == i).sum()) for i in range(1, number + 1)]


def test_small_regions_are_gone(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    records = predictor.generate(image, **ALL, min_mask_region_area=30)
    assert records
    for record in records:
        mask = record["segmentation"]
        assert record["area"] == mask.sum()
        islands, holes = (areas_of(regions) for regions in (mask, ~mask))
        assert min(islands) >= 30 or len(islands) == 1
        assert min(holes, default=30) >= 30


def test_thresholds_that_nothing_passes(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    assert predictor.generate(image, **GRID, pred_iou_thresh=1e9) == []
    assert predictor.generate(picture(SIZE), **GRID, pred_iou_thresh=1e9, crop_n_layers=1) == []
    assert predictor.generate(image, **GRID, pred_iou_thresh=1e9, min_mask_region_area=5) == []


def test_crops_need_pixels(predictor: Predictor, image: sam_jax.EncodedImage) -> None:
    with pytest.raises(ValueError, match="crop_n_layers needs the image's pixels, not an EncodedImage"):
        predictor.generate(image, crop_n_layers=1)
    with pytest.raises(TypeError, match="points_per_sied"):
        predictor.generate(image, points_per_sied=4)


def test_a_label_map_gives_a_pixel_to_the_smallest_mask() -> None:
    large, small = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    large[:3], small[1, 1:3] = True, True
    records = [{"segmentation": mask, "area": int(mask.sum())} for mask in (small, large)]
    labels = label_map(records, (4, 5))
    np.testing.assert_array_equal(labels, np.where(small, 1, np.where(large, 2, 0)))
    assert (labels == 0).mean() == 0.25
    assert not label_map([], (4, 5)).any()
    with pytest.raises(ValueError, match=r"Record 1 is of an image of \[4, 5\], not of \[5, 4\]"):
        label_map(records, (5, 4))
