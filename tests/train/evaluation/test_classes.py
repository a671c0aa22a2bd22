"""IoUs of classes: over the pixels of all images, whatever classes an image has."""

from pathlib import Path

import numpy as np
import pytest
from small_run import MODEL

from sam_jax import EncodedImage
from sam_jax.train.data.examples import Example
from sam_jax.train.evaluation import classes as classes_module
from sam_jax.train.evaluation.classes import evaluate_classes

SIZE = (6, 10)


def example(*rows: int) -> Example:
    """An image whose classes have so many of its first rows."""
    masks = np.arange(SIZE[0])[None, :, None] < np.array(rows)[:, None, None]
    masks = np.broadcast_to(masks, (len(rows), *SIZE))
    image = np.zeros((*SIZE, 3), np.uint8)
    return Example(image, masks, "a.png", EncodedImage(np.zeros((2, 2, 4), np.float32), SIZE, SIZE))


def test_each_class_over_all_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = iter([example(2, 0, 0).masks, example(4, 1, 0).masks])
    monkeypatch.setattr(classes_module, "class_masks", lambda *_: next(found))
    report = evaluate_classes(MODEL, {}, [example(1, 0, 0), example(3, 0, 0)])
    assert report.present == (2, 0, 0)
    assert report.iou == (
        4 / 6,
        0.0,
        None,
    )  # not the mean over images; what is found in vain counts; what is not there not
    assert report.mean == (4 / 6) / 2
    report.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"evaluation.json", "evaluation.png"}


def test_what_has_no_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes_module, "class_masks", lambda *_: example(0, 0, 0).masks)
    with pytest.raises(ValueError, match=r"a\.png has 2 classes, but the decoder has 3 masks"):
        evaluate_classes(MODEL, {}, [example(1, 1)])
    with pytest.raises(ValueError, match="have no class"):
        evaluate_classes(MODEL, {}, [example(0, 0, 0)])
