"""The protocols on models whose answers are known: always right, seeing nothing; and on one with random weights."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from PIL import Image
from random_model import FAMILIES, MODEL, random_embedding, random_features, random_variables

from sam_jax import MaskPrediction, Prompts, Sam
from sam_jax.images.pixels import EncodedImage
from sam_jax.prompts import EMPTY
from sam_jax.train.data.examples import Example
from sam_jax.train.evaluation import evaluate as module
from sam_jax.train.evaluation.evaluate import evaluate, first_answers
from sam_jax.train.evaluation.report import Report

EMBEDDING = np.asarray(random_embedding())


def stripes() -> Example:
    """Three horizontal stripes of 8, 16 and 32 rows: full-size logits can be exactly right for them."""
    masks = np.zeros((3, 128, 128), bool)
    masks[0, 4:12], masks[1, 20:36], masks[2, 40:72] = True, True, True
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    return Example(image, masks, "stripes", EncodedImage(EMBEDDING, (128, 128), (128, 128)))


@pytest.fixture
def points() -> list[np.ndarray]:
    """The clicks that `answer` saw, in the input frame."""
    return []


@pytest.fixture
def answer(
    monkeypatch: pytest.MonkeyPatch, points: list[np.ndarray]
) -> Callable[[np.ndarray, np.ndarray], list[np.ndarray]]:
    """Put answers in the model's place: logits [4, 32, 32] and scores [4] for each object. Returns the labels seen."""

    def install(logits: np.ndarray, iou: np.ndarray) -> list[np.ndarray]:
        labels: list[np.ndarray] = []

        def predict(number: int) -> MaskPrediction:
            filled = np.pad(logits, [(0, number - len(logits)), (0, 0), (0, 0), (0, 0)])
            scores = np.pad(iou, [(0, number - len(iou)), (0, 0)])
            return MaskPrediction(jnp.asarray(filled), jnp.asarray(scores), jnp.ones(number, bool))

        def click(model: Any, variables: Any, embedding: Any, state: Prompts, at: np.ndarray, new: np.ndarray) -> Any:
            labels.append(new)
            points.append(at)
            return predict(len(new)), state

        monkeypatch.setattr(module, "_click", click)
        monkeypatch.setattr(module, "predict_masks", lambda m, v, e, prompts: predict(len(prompts.valid)))
        return labels

    return install


def right_logits(example: Example) -> np.ndarray:
    """For each object, four low-res masks that are right."""
    return np.where(example.masks[:, None, 2::4, 2::4], 10.0, -10.0).repeat(4, 1).astype(np.float32)


def ask(**arguments: Any) -> Report:
    return evaluate(MODEL, {}, [stripes()], objects=4, **arguments)


def test_a_model_that_is_always_right(answer: Any) -> None:
    labels = answer(right_logits(stripes()), np.full((3, 4), 0.9, np.float32))
    report = ask()
    assert (report.images, report.all.objects) == (1, 3)
    assert report.all.click_iou == {user: {"1": 1, "3": 1, "5": 1} for user in ("score", "oracle")}
    assert report.all.box_iou == {"score": 1, "oracle": 1, "mask 0": 1}
    for user in ("score", "oracle"):
        for needed in report.clicks_needed[user].values():
            assert (needed.mean, needed.failures) == (1, 0)
        assert report.curve[user] == (1,) * 20
    assert report.calibration.error == pytest.approx(0.1, abs=1e-6)
    # The first click of each of three objects, by each of two users; then no error is left to click on.
    assert [new.tolist() for new in labels] == [[1, 1, 1, EMPTY]] * 2


def test_first_answers_are_those_of_the_whole_protocol(answer: Any) -> None:
    logits = right_logits(stripes())
    logits[0, 2], logits[1] = -1, -logits[1]
    answer(logits, np.tile(np.float32([0.9, 0.1, 0.8, 0.2]), (3, 1)))
    report = ask(cap=1)
    first = first_answers(MODEL, {}, [stripes(), stripes()], objects=4)
    assert first["click"] == pytest.approx(report.all.click_iou["score"]["1"])
    assert first["box"] == pytest.approx(report.all.box_iou["score"])
    assert 0 < first["click"] < 1
    with pytest.raises(ValueError, match="The examples to validate on have no objects"):
        first_answers(MODEL, {}, [])


def test_a_model_that_sees_nothing(answer: Any) -> None:
    labels = answer(np.full((3, 4, 32, 32), -1, np.float32), np.full((3, 4), 0.25, np.float32))
    report = ask(cap=6)
    assert report.all.click_iou["oracle"] == {"1": 0, "3": 0, "5": 0}
    for needed in report.clicks_needed["score"].values():
        assert (needed.mean, needed.failures) == (6, 3)
    assert report.calibration.error == 0.25
    assert [new.tolist() for new in labels] == [[1, 1, 1, EMPTY]] * 12


def test_score_and_oracle_take_other_masks_after_one_click_and_mask_0_after_more(answer: Any) -> None:
    logits = np.full((3, 4, 32, 32), -1, np.float32)
    logits[:, 2] = right_logits(stripes())[:, 2]  # right, but not of the highest score
    scores = np.tile(np.float32([9, 0.1, 0.2, 0.8]), (3, 1))
    answer(logits, scores)
    report = ask(cap=3)
    assert report.all.click_iou == {"score": {"1": 0, "3": 0}, "oracle": {"1": 1, "3": 1}}
    assert report.all.box_iou == {"score": 0, "oracle": 1, "mask 0": 0}
    assert report.clicks_needed["oracle"]["95"].mean == 1
    assert report.clicks_needed["score"]["95"].failures == 3
    # By score, after one click and for the box 0.8 is predicted; after more, mask 0 with 9.
    assert report.calibration.error == pytest.approx((2 * 0.8 + 2 * 9) / 4)


def test_users_stop_when_it_is_good_enough_but_not_before_the_fifth_click(answer: Any) -> None:
    example = stripes()
    masks = example.masks.copy()
    masks[:, :, 0] = False  # one column of 128 is wrong everywhere: an IoU of 0.99
    logits, scores = right_logits(example), np.ones((3, 4), np.float32)
    labels = answer(logits, scores)
    report = evaluate(MODEL, {}, [dataclasses.replace(example, masks=masks)], objects=4)
    assert len(labels) == 2 * 5
    assert report.all.click_iou["score"]["5"] == pytest.approx(127 / 128)
    assert all((new[:3] == 0).all() for new in labels[1:5])


def test_clicks_and_masks_go_between_the_image_and_its_frame(answer: Any, points: list[np.ndarray]) -> None:
    masks = np.zeros((1, 64, 96), bool)
    masks[0, 6:21] = True
    logits = np.full((1, 4, 32, 32), -1, np.float32)
    logits[:, :, 2:7] = 1  # 20 rows of the frame from the 8th, 15 of the image from the 6th
    answer(logits, np.ones((1, 4), np.float32))
    example = Example(np.zeros((64, 96, 3), np.uint8), masks, "wide", EncodedImage(EMBEDDING, (85, 128), (64, 96)))
    report = evaluate(MODEL, {}, [example], objects=1)
    assert report.all.click_iou["score"]["1"] == report.all.box_iou["score"] == 1
    height = 85 / 64  # 128 / 96, rounded to whole rows
    np.testing.assert_allclose(points[0], [[7 * 128 / 96, 13 * height]], rtol=1e-6)


def test_size_classes_are_counted_apart(answer: Any) -> None:
    logits = right_logits(stripes())
    logits[2] = -1
    answer(logits, np.ones((3, 4), np.float32))
    report = ask(cap=1, size_limits=(2048, 4096))
    assert {name: means.objects for name, means in report.by_size.items()} == {"small": 1, "medium": 1, "large": 1}
    assert report.by_size["small"].click_iou["score"]["1"] == 1
    assert report.by_size["large"].click_iou["score"]["1"] == 0


def ask_random(example: Example) -> Report:
    """Of a model with random weights, in groups of eight, which other tests ask for, too."""
    embedding = np.asarray(random_embedding(model=small_run.MODEL))
    example = dataclasses.replace(example, encoded=EncodedImage(embedding, (96, 96), (128, 128)))
    return evaluate(small_run.MODEL, random_variables(small_run.MODEL), [example], cap=5, objects=8)


@pytest.fixture(scope="module")
def report() -> Report:
    return ask_random(stripes())


def test_an_object_is_asked_for_alone(report: Report) -> None:
    example = stripes()
    other = ask_random(dataclasses.replace(example, masks=np.tile(example.masks[::-1], (3, 1, 1))))
    assert other.all.objects == 9
    assert report.all.click_iou["score"]["1"] > 0
    for user in ("score", "oracle"):
        assert other.curve[user] == pytest.approx(report.curve[user], abs=1e-6)
    assert other.all.box_iou == pytest.approx(report.all.box_iou, abs=1e-6)
    assert other.calibration.error == pytest.approx(report.calibration.error, abs=1e-5)


def test_the_masks_of_a_family_are_those_that_it_offers() -> None:
    """SAM-HQ's mask is added to all, and of a clear prompt SAM 2 says which mask it is."""
    logits, hq = np.full((1, 4, 2, 2), -1.0, np.float32), np.full((1, 2, 2), 3.0, np.float32)
    out = MaskPrediction(logits, np.zeros((1, 4), np.float32), np.ones(1, bool))
    np.testing.assert_array_equal(module._offered(dataclasses.replace(out, hq=hq)), logits + 3)
    assert module._clear(out).tolist() == [0]
    assert module._clear(dataclasses.replace(out, single=np.array([2], np.int32))).tolist() == [2]


def test_features_of_several_maps_are_evaluated() -> None:
    model = Sam(dataclasses.replace(small_run.MODEL.config, **FAMILIES["sam2"]))
    encoded = EncodedImage(random_features(model=model), (96, 96), (128, 128))
    example = dataclasses.replace(stripes(), encoded=encoded)
    found = evaluate(model, random_variables(model), [example], cap=1, objects=4)
    assert found.all.objects == 3
    assert found.all.box_iou["oracle"] >= found.all.box_iou["score"]


def test_the_oracle_is_never_worse_after_one_prompt(report: Report) -> None:
    assert report.all.click_iou["oracle"]["1"] >= report.all.click_iou["score"]["1"]
    assert report.all.box_iou["oracle"] >= report.all.box_iou["score"]


def test_a_report_is_one_json_and_one_picture(report: Report, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    report.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "evaluation.png"]
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["all"]["click_iou"] == report.all.click_iou
    assert content["clicks_needed"]["score"]["85"] == {"mean": 5.0, "failures": 3}
    assert "samples" not in content
    picture = np.asarray(Image.open(folder / "evaluation.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    with pytest.raises(FileExistsError, match="exists already"):
        report.save(folder)


def test_an_example_that_is_not_encoded_is_an_error() -> None:
    with pytest.raises(ValueError, match="stripes is not encoded"):
        evaluate(MODEL, {}, [dataclasses.replace(stripes(), encoded=None)])


def test_examples_without_objects_are_an_error() -> None:
    with pytest.raises(ValueError, match="have no objects"):
        evaluate(MODEL, {}, [dataclasses.replace(stripes(), masks=np.zeros((1, 128, 128), bool))])
