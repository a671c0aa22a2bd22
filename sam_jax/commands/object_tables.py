"""Objects as CSV: prompts for many images in, a table of the objects that were found out.

Both have the same columns: `image` is a file name, `object` a whole number from 1 on, `x0, y0, x1, y1` its box in
pixels of the image. So found objects can be asked for again. A prompt may also be a click, `x, y`, with `label` 0 on
the background; rows of one object belong together.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam_jax.automatic.records import Record, box_of
from sam_jax.commands.predict import CLEAR, best_of
from sam_jax.images.run_lengths import coco_run_lengths
from sam_jax.images.size import Size
from sam_jax.images.windows import Window, windows_of
from sam_jax.predictor import Predictor

BOX, CLICK = ("x0", "y0", "x1", "y1"), ("x", "y")
TOGETHER = 16
"""Objects that are decoded at once: their masks exist as pixels."""


class Asked(NamedTuple):
    """What is given for one object."""

    number: int
    points: list[tuple[float, float]]
    labels: list[int]
    boxes: list[tuple[float, ...]]  # one at most

    @property
    def is_clear(self) -> bool:
        """Whether a single mask is meant, as in `sam-jax predict`."""
        return 2 * len(self.boxes) + len(self.points) >= CLEAR


def read_prompts(path: Path) -> dict[str, list[Asked]]:
    """Return the objects that are asked for in each image, by its file name.

    Args:
      path: CSV with a header and columns as above, separated by commas, semicolons or tabs. Without `object`, each row
        is an object. Other columns do not count.

    Raises:
      ValueError: naming the file and the row that is bad.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    header = text.partition("\n")[0]
    rows = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count))
    columns = set(rows.fieldnames or ())
    if "image" not in columns or not (set(BOX) <= columns or set(CLICK) <= columns):
        raise ValueError(f"{path} must have the columns image, and x0, y0, x1, y1 or x, y; got {header.strip()!r}.")
    found: dict[str, dict[int, Asked]] = {}
    for row in rows:
        try:
            name = Path((row["image"] or "").strip().replace("\\", "/")).name
            objects = found.setdefault(name, {})
            _add(objects, row)
        except ValueError as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from None
    if not found:
        raise ValueError(f"{path} has no rows.")
    return {name: list(objects.values()) for name, objects in found.items()}


def _add(objects: dict[int, Asked], row: dict[str, str]) -> None:
    """Add what a row asks for to the objects of its image."""
    number = len(objects) + 1
    if (row.get("object") or "").strip():
        number = _whole(row["object"], "object")
    asked = objects.setdefault(number, Asked(number, [], [], []))
    box, click = _numbers(row, BOX), _numbers(row, CLICK)
    if box is None and click is None:
        raise ValueError("a row must have x0, y0, x1 and y1, or x and y.")
    if box is not None:
        if asked.boxes:
            raise ValueError(f"object {number} has two boxes.")
        asked.boxes.append(box)
    if click is not None:
        label = (row.get("label") or "").strip() or "1"
        if label not in ("0", "1"):
            raise ValueError(f"label must be 1 for the object or 0 for the background, got {label}.")
        asked.points.append((click[0], click[1]))
        asked.labels.append(int(label))


def _whole(text: str, name: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{name} must be a whole number from 1 on, got {text!r}.")
    return int(text)


def _numbers(row: dict[str, str], names: tuple[str, ...]) -> tuple[float, ...] | None:
    """The numbers of some columns; None where all are empty."""
    texts = [(row.get(name) or "").strip() for name in names]
    if not any(texts):
        return None
    numbers = tuple(float(text) for text in texts)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{', '.join(names)} must be numbers, got {', '.join(texts)}.")
    return numbers


def ask(predictor: Predictor, pixels: np.ndarray, objects: Sequence[Asked], tile: int | None = None) -> list[Record]:
    """Return a record for each object: its best mask, `predicted_iou`, and `object`, its number.

    Args:
      predictor: with a decoder and its encoder.
      pixels: the image, RGB.
      objects: what is asked for.
      tile: side in pixels of the tiles that are encoded instead of the image, those that have an object. An object
        whose prompts are in no one tile is asked for in the whole image.

    Raises:
      ValueError: for a prompt outside of the image.
    """
    size = pixels.shape[0], pixels.shape[1]
    groups: dict[Window, list[Asked]] = {}
    for asked in objects:
        groups.setdefault(_window_of(asked, size, tile), []).append(asked)
    records = {}
    for window, some in groups.items():
        predictor.set_image(pixels[window.pixels])
        for asked, mask, score in _answers(predictor, [_moved(asked, window) for asked in some]):
            whole = np.zeros(size, bool)
            whole[window.pixels] = mask
            records[asked.number] = _record(asked, whole, score)
    return [records[asked.number] | {"point_coords": [list(point) for point in asked.points]} for asked in objects]


def _window_of(asked: Asked, size: Size, tile: int | None) -> Window:
    """The tile with all prompts of an object whose middle is nearest to theirs; the image where there is none."""
    corners = np.array([*asked.points, *(point for box in asked.boxes for point in (box[:2], box[2:]))])
    low, high = corners.min(0), corners.max(0)

    def distance(window: Window) -> float:
        return float(np.abs(low + high - (window.x0 + window.x1, window.y0 + window.y1)).sum())

    inside = [w for w in windows_of(size, tile) if (low >= (w.x0, w.y0)).all() and (high <= (w.x1, w.y1)).all()]
    return min(inside, key=distance, default=windows_of(size, None)[0])


def _moved(asked: Asked, window: Window) -> Asked:
    """The prompts in pixels of a window."""
    x0, y0 = window.x0, window.y0
    points = [(x - x0, y - y0) for x, y in asked.points]
    boxes = [(box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0) for box in asked.boxes]
    return asked._replace(points=points, boxes=boxes)


def _answers(predictor: Predictor, objects: Sequence[Asked]) -> Iterator[tuple[Asked, np.ndarray, float]]:
    """Each object's best mask in the image that is set, and its score."""
    for clear in (False, True):
        some = [asked for asked in objects if asked.is_clear == clear]
        for start in range(0, len(some), TOGETHER):
            group = some[start : start + TOGETHER]
            points = _given([asked.points for asked in group])
            labels = _given([asked.labels for asked in group])
            boxes = _given([asked.boxes[0] if asked.boxes else () for asked in group])
            found = best_of(predictor.predict(points, labels, boxes, multimask=not clear))
            yield from zip(group, found.masks[:, 0], found.scores[:, 0].tolist(), strict=True)


def _given(entries: list[Any]) -> list[Any] | None:
    """What objects have, None where one has nothing; None where all have nothing."""
    return [entry or None for entry in entries] if any(entries) else None


def _record(asked: Asked, mask: np.ndarray, score: float) -> Record:
    x0, y0, x1, y1 = box_of(mask)
    return {
        "object": asked.number,
        "segmentation": coco_run_lengths(mask),
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "predicted_iou": score,
    }


def numbers_of(records: Sequence[Record]) -> list[int]:
    """Return the number of each record's object, in label images and tables: from 1 on, or as they were asked for."""
    return [record.get("object", i) for i, record in enumerate(records, 1)]


def write_table(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write one image's objects as CSV: number, box with its last pixels counted in, area, and scores."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "object", *BOX, "area", "score", "stability_score"])
        for number, record in zip(numbers_of(records), records, strict=True):
            x, y, width, height = record["bbox"]
            more = int(record["area"] > 0)
            stability = record.get("stability_score")
            scores = f"{record['predicted_iou']:.4f}", "" if stability is None else f"{stability:.4f}"
            table.writerow([file.name, number, x, y, x + width + more, y + height + more, record["area"], *scores])
