"""Average recall of automatic masks: the definition, on masks made for it, and a run on drawn scenes."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import MODEL

from sam_jax import AutomaticConfig, EncodedImage, Predictor, encode_image
from sam_jax.commands import cli
from sam_jax.commands.demo import SMALL
from sam_jax.images.run_lengths import coco_run_lengths
from sam_jax.train.data.examples import Example
from sam_jax.train.data.shapes import TRAINING_CLASSES
from sam_jax.train.data.sources import DrawnScenes, Encoded
from sam_jax.train.evaluation import everything
from sam_jax.train.evaluation.everything import PROPOSALS, evaluate_everything

SIZE = (20, 30)


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def record(mask: np.ndarray, score: float) -> dict[str, Any]:
    both = {"predicted_iou": score, "stability_score": score}
    return {"segmentation": coco_run_lengths(mask), "area": int(mask.sum()), **both}


def test_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small and a large object, the small one is found exactly, the large one with an IoU of 0.75."""
    small, large = box(0, 0, 4, 4), box(10, 0, 30, 20)
    masks = [record(small, 0.9), record(box(10, 0, 30, 15), 0.8), record(large[:, ::-1], 0.7)]
    noise = [record(box(6, 6, 8, 8), 0.95)] * 12
    encoded = EncodedImage(np.zeros((2, 2, 4), np.float32), SIZE, SIZE)
    example = Example(np.zeros((*SIZE, 3), np.uint8), np.stack([small, large]), "a.png", encoded)

    def evaluated(records: list[dict[str, Any]]) -> Any:
        monkeypatch.setattr(everything, "generate_records", lambda *_: records)
        model = MODEL
        return evaluate_everything(model, {}, [example], size_limits=(20, 300))

    report = evaluated(masks)
    of_large = 6 / 10  # thresholds from 0.5 to 0.75
    assert report.recall[10] == {"all": (1 + of_large) / 2, "small": 1.0, "medium": None, "large": of_large}
    assert report.objects == {"all": 2, "small": 1, "medium": 0, "large": 1}
    report = evaluated(noise + masks)
    assert (report.recall[10]["all"], report.recall[100]["all"]) == (0.0, (1 + of_large) / 2)
    assert report.masks == 15


def test_the_small_sam_finds_drawn_objects(tmp_path: Path) -> None:
    predictor = Predictor.load(SMALL)
    encode = functools.partial(encode_image, predictor.encoder, predictor.encoder_variables)
    scenes = Encoded(DrawnScenes(2, (256, 256), TRAINING_CLASSES, held_out=True), encode)
    settings = AutomaticConfig(**{**vars(PROPOSALS), "points_per_side": 8})
    report = evaluate_everything(predictor.model, predictor.variables, [scenes[0], scenes[1]], settings=settings)
    recalls = [report.recall[number]["all"] for number in (10, 100, 1000)]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.4
    report.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["recall"]["1000"]["all"] == recalls[-1]
    assert (tmp_path / "out" / "evaluation.png").stat().st_size > 10_000


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = AutomaticConfig(**{**vars(PROPOSALS), "points_per_side": 4})
    function = functools.partial(evaluate_everything, settings=few)
    monkeypatch.setattr("sam_jax.train.commands.evaluate.evaluate_everything", function)
    arguments = ["evaluate", "scenes", "--checkpoint", SMALL, "-o", tmp_path / "out", "--images", "1"]
    monkeypatch.setattr("sys.argv", ["sam-jax", *map(str, arguments), "--protocol", "everything"])
    cli.main()
    said = capsys.readouterr().out
    assert "AR@1,000" in said
    assert "masks an image, 1 images" in said
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["images"] == 1


def test_examples_without_objects_or_embeddings() -> None:
    example = Example(np.zeros((*SIZE, 3), np.uint8), np.zeros((0, *SIZE), bool), "a.png")
    model = MODEL
    with pytest.raises(ValueError, match=r"a\.png is not encoded"):
        evaluate_everything(model, {}, [example])
    with pytest.raises(ValueError, match="have no objects"):
        evaluate_everything(model, {}, [])
