"""What an evaluation found: numbers for one JSON file, and one picture of them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from sam_jax.atomic import written_whole
from sam_jax.images.draw import COLOURS, draw_tokens, overlay, side_by_side, stacked
from sam_jax.images.plot import can_plot, line_plot
from sam_jax.train.evaluation.metrics import (
    SIZE_CLASSES,
    Calibration,
    ClicksNeeded,
    calibration,
    clicks_needed,
    size_classes,
)
from sam_jax.train.user.clicks import Click

User = Literal["score", "oracle"]
"""Who takes the mask of the highest score, and who the one that fits best."""
USERS: tuple[User, ...] = ("score", "oracle")

MEANS_AFTER = (1, 3, 5)
"""Numbers of clicks after which mean IoUs are reported, as far as an object gets so many."""
THRESHOLDS = (0.85, 0.90, 0.95)
"""IoUs to reach with few clicks."""


def write_evaluation(folder: Path, numbers: str, picture: Image.Image, overwrite: bool) -> None:
    """Write a folder with numbers as `evaluation.json` and a picture of them, `evaluation.png`, whole or not at all."""
    with written_whole(folder, overwrite=overwrite) as new:
        new.mkdir()
        (new / "evaluation.json").write_text(numbers + "\n", "utf-8")
        picture.save(new / "evaluation.png")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one object.

    Attributes:
      area: in pixels of the original image.
      clicks: for each user, the IoU after 1, 2, ... clicks; it stays what it was where a user ended early.
      scores: the predicted IoUs that belong to `clicks["score"]`.
      box: for each user, and for "mask 0", the IoU of the mask of the object's box.
      box_score: the predicted IoU that belongs to `box["score"]`.
    """

    area: int
    clicks: dict[User, tuple[float, ...]]
    scores: tuple[float, ...]
    box: dict[str, float]
    box_score: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """One object to look at: the masks after the first and the fifth click (or the last before) that a user took."""

    image: UInt8[np.ndarray, "height width 3"]
    target: Bool[np.ndarray, "height width"]
    first: Bool[np.ndarray, "height width"]
    last: Bool[np.ndarray, "height width"]
    first_iou: float
    last_iou: float
    clicks: tuple[Click, ...]


@dataclasses.dataclass(frozen=True)
class Means:
    """Mean IoUs over some objects.

    Attributes:
      objects: how many.
      click_iou: for each user, after so many clicks.
      box_iou: for each user, and for mask 0, of the object's box.
    """

    objects: int
    click_iou: dict[str, dict[str, float]]
    box_iou: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
      images: how many there were.
      cap: clicks that an object got at most.
      all: mean IoUs over all objects.
      by_size: mean IoUs of small, medium and large objects, where there are such.
      size_limits: the least area of a medium object, and of a large one, in pixels.
      clicks_needed: for each user, how many clicks an IoU of 0.85, 0.90 and 0.95 took.
      curve: for each user, mean IoU after 1, 2, ... clicks.
      calibration: of the scores of all masks that were taken by score: of clicks up to the fifth, and of boxes.
      samples: some objects to look at; not in the JSON.
    """

    images: int
    cap: int
    all: Means
    by_size: dict[str, Means]
    size_limits: tuple[int, int]
    clicks_needed: dict[str, dict[str, ClicksNeeded]]
    curve: dict[str, tuple[float, ...]]
    calibration: Calibration
    samples: tuple[Sample, ...] = dataclasses.field(repr=False, compare=False)

    def to_json(self) -> str:
        """Return all numbers as a JSON object."""
        values = dataclasses.asdict(dataclasses.replace(self, samples=()))
        del values["samples"]
        return json.dumps(values, indent=2)

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write a folder with `evaluation.json` and `evaluation.png`.

        Raises:
          FileExistsError: if it exists already, unless told to overwrite.
        """
        write_evaluation(folder, self.to_json(), self.picture(), overwrite)

    def picture(self) -> Image.Image:
        """Return the samples, and with matplotlib curves of IoU over clicks and of the scores' calibration above."""
        return stacked([*([self._curves()] if can_plot() else []), *map(_row, self.samples)])

    def _curves(self) -> Image.Image:
        clicks = {f"by {user}": list(enumerate(means, 1)) for user, means in self.curve.items()}
        bins = zip(self.calibration.predicted, self.calibration.true, strict=True)
        known = [(predicted, true) for predicted, true in bins if predicted is not None and true is not None]
        scores = {f"mean error {self.calibration.error:.3f}": known, "ideal": [(0, 0), (1, 1)]}
        plots = [
            ("mean IoU after so many clicks", line_plot(clicks, "clicks", "mean IoU", y_limits=(0, 1))),
            ("true IoU over predicted IoU", line_plot(scores, "predicted IoU", "true IoU", y_limits=(0, 1))),
        ]
        return side_by_side(plots)


def summarise(
    outcomes: Sequence[Outcome], samples: Sequence[Sample], *, images: int, cap: int, size_limits: tuple[int, int]
) -> Report:
    """Return the report on what became of objects, at least one.

    Args:
      outcomes: one for each object.
      samples: some objects to look at.
      images: how many images they were in.
      cap: clicks that an object got at most.
      size_limits: the least area of a medium object, and of a large one, in pixels.
    """
    sizes = size_classes(np.array([outcome.area for outcome in outcomes]), size_limits)
    groups = {name: [o for o, k in zip(outcomes, sizes, strict=True) if k == i] for i, name in enumerate(SIZE_CLASSES)}
    pairs = [pair for outcome in outcomes for pair in _scored(outcome)]
    predicted, true = np.array(pairs).T
    needed = {
        user: {
            f"{100 * threshold:.0f}": clicks_needed([o.clicks[user] for o in outcomes], threshold, cap)
            for threshold in THRESHOLDS
        }
        for user in USERS
    }
    return Report(
        images=images,
        cap=cap,
        all=_means(outcomes, cap),
        by_size={name: _means(group, cap) for name, group in groups.items() if group},
        size_limits=size_limits,
        clicks_needed=needed,
        curve={user: tuple(_iou_after(outcomes, user, k) for k in range(1, cap + 1)) for user in USERS},
        calibration=calibration(predicted, true),
        samples=tuple(samples),
    )


def _scored(outcome: Outcome) -> list[tuple[float, float]]:
    """Predicted and true IoUs of the masks that were taken by score."""
    after_clicks = list(zip(outcome.scores, outcome.clicks["score"], strict=True))[: MEANS_AFTER[-1]]
    return [*after_clicks, (outcome.box_score, outcome.box["score"])]


def _means(outcomes: Sequence[Outcome], cap: int) -> Means:
    return Means(
        objects=len(outcomes),
        click_iou={user: {str(k): _iou_after(outcomes, user, k) for k in MEANS_AFTER if k <= cap} for user in USERS},
        box_iou={name: float(np.mean([o.box[name] for o in outcomes])) for name in outcomes[0].box},
    )


def _iou_after(outcomes: Sequence[Outcome], user: User, clicks: int) -> float:
    return float(np.mean([outcome.clicks[user][:clicks][-1] for outcome in outcomes]))


def _row(sample: Sample, width: int = 256) -> Image.Image:
    """A sample's panels: the object, and the masks after the first click and the last."""
    clicks = np.array([(c.x, c.y) for c in sample.clicks], float)
    labels = np.array([c.label for c in sample.clicks])
    scale = width / sample.image.shape[1]

    def panel(mask: Bool[np.ndarray, "height width"], shown: int, colour: int) -> Image.Image:
        picture = Image.fromarray(overlay(sample.image, mask, COLOURS[colour]))
        picture = picture.resize((width, round(picture.height * scale)))
        draw_tokens(picture, (clicks[:shown] + 0.5) * scale, labels[:shown], radius=4)
        return picture

    number = len(labels)
    return side_by_side(
        [
            ("the object", panel(sample.target, 0, 0)),
            (f"1 click: IoU {sample.first_iou:.3f}", panel(sample.first, 1, 1)),
            (f"{number} clicks: IoU {sample.last_iou:.3f}", panel(sample.last, number, 1)),
        ]
    )
