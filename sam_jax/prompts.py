"""Prompts: ragged clicks, boxes and masks as arrays with empty slots.

A token is a click or a box corner; its label says what it is. Shapes are made static with empty slots, which nothing
ever attends to, so that padding changes no result. An empty slot is not the official "not a point": that is a real
token, which SAM was trained to see after clicks without a box.
"""

import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer
from jaxtyping import Bool, Float, Int

from sam_jax.errors import describe

EMPTY = -2
NOT_A_POINT = -1
BACKGROUND = 0
FOREGROUND = 1
BOX_TOP_LEFT = 2
BOX_BOTTOM_RIGHT = 3
LABELS = (EMPTY, NOT_A_POINT, BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)

AnyArray = np.ndarray | jax.Array
Ragged = Sequence[Any] | AnyArray


@struct.dataclass
class Prompts:
    """Prompt sets, each asking for one object; `*batch` is `[prompt set]`, `[image, prompt set]`, or empty for a single
    set.

    Attributes:
      coordinates: (x, y) of each token in pixels of the input frame.
      labels: what each token is: -2 empty slot, -1 not a point, 0 background click, 1 foreground click, 2 and 3 the top
        left and bottom right corners of a box.
      masks: mask prompts, logits at 4 times the grid; None where no prompt set has one.
      has_mask: whether the prompt set's mask counts; None where no prompt set has one.
      valid: False for a prompt set that exists only as padding.
    """

    coordinates: Float[AnyArray, "*batch n 2"]
    labels: Int[AnyArray, "*batch n"]
    masks: Float[AnyArray, "*batch my mx"] | None
    has_mask: Bool[AnyArray, "*batch"] | None
    valid: Bool[AnyArray, "*batch"]

    @classmethod
    def build(
        cls,
        points: Ragged | None = None,
        labels: Ragged | None = None,
        boxes: Ragged | None = None,
        masks: Ragged | None = None,
        images: bool | None = None,
    ) -> "Prompts":
        """Build prompts from ragged lists or arrays with one entry per prompt set, for one image or many.

        The official rule holds for each prompt set on its own: clicks without a box are followed by one "not a point"
        token. Arrays may be traced, so this also works inside `jit`; lists may hold None where a prompt set has no such
        prompt. The result is numpy unless a JAX array was given: building compiles nothing and moves nothing to a
        device.

        Args:
          points: clicks (x, y) in pixels of the input frame: [prompt set, click, 2].
          labels: one label per click: 1 foreground, 0 background: [prompt set, click].
          boxes: (x0, y0, x1, y1) in the input frame: [prompt set, 4], or [prompt set, box, 4] for several in one set.
          masks: logits at 4 times the grid: [prompt set, 4h, 4w].
          images: whether every argument has an image axis (or list) in front of the prompt sets. By default the number
            of axes tells; only boxes alone, [image, prompt set, 4], look the same as several boxes per prompt set.

        Raises:
          ValueError: for arguments that do not fit together, or with values that no prompt has.
        """
        arguments = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
        given = {name: value for name, value in arguments.items() if value is not None}
        if ("points" in given) != ("labels" in given):
            raise ValueError(f"points and labels come together, one label per click; got only {' and '.join(given)}.")
        if images is None:
            images = any(depth_of(value) > _ENTRY_RANK[name] + 1 for name, value in given.items())
            _warn_of_boxes(given, images)
        if given and all(_is_array(value) for value in given.values()):
            return _from_arrays(given, images)
        return _from_lists(given, images)

    @property
    def token_mask(self) -> Bool[AnyArray, "*batch n"]:
        """False for empty slots."""
        return self.labels != EMPTY

    def pad(self, tokens: int, prompt_sets: int, images: int | None = None) -> "Prompts":
        """Return the same prompts with empty slots up to the given numbers; `images` if there is an image axis."""
        sizes = (prompt_sets,) if images is None else (images, prompt_sets)

        def widen(x: AnyArray, fill: float, *inner: int) -> AnyArray:
            target = (*sizes, *inner, *x.shape[len(sizes) + len(inner) :])
            xp = np if isinstance(x, np.ndarray) else jnp
            return xp.pad(x, [(0, new - old) for old, new in zip(x.shape, target, strict=True)], constant_values=fill)

        return Prompts(
            coordinates=widen(self.coordinates, 0, tokens),
            labels=widen(self.labels, EMPTY, tokens),
            masks=None if self.masks is None else widen(self.masks, 0),
            has_mask=None if self.has_mask is None else widen(self.has_mask, False),
            valid=widen(self.valid, False),
        )


_ENTRY_RANK = {"points": 2, "labels": 1, "boxes": 2, "masks": 2}
_AXES = {"points": "click, 2", "labels": "click", "boxes": "4] or [prompt set, box, 4", "masks": "4h, 4w"}


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array))


def depth_of(value: Any) -> int:
    """Axes of an array, or levels of nested lists down to the numbers."""
    if _is_array(value):
        return value.ndim
    if isinstance(value, Sequence) and not isinstance(value, str):
        return 1 + max((depth_of(item) for item in value if item is not None), default=0)
    return 0


def _warn_of_boxes(given: dict[str, Any], images: bool) -> None:
    """Tell of boxes alone, several of them in a single prompt set: most callers mean one image."""
    boxes: Any = given.get("boxes")
    if images or len(given) > 1 or not _is_array(boxes) or boxes.ndim != 3 or len(boxes) > 1 or boxes.shape[1] < 2:
        return
    warnings.warn(
        f"boxes {list(boxes.shape)} are {boxes.shape[1]} boxes of one prompt set, which asks for one object. For one "
        "object per box, give boxes [prompt set, 4], or images=True where the first axis is images. images=False says "
        "that one object is meant.",
        stacklevel=3,
    )


def _shape_error(name: str, value: Any, images: bool) -> ValueError:
    wanted = f"[prompt set, {_AXES[name]}]"
    if images:
        wanted = wanted.replace("[", "[image, ")
    got = describe(value) if _is_array(value) else f"{describe(value)}, {depth_of(value)} levels of lists"
    hint = f" One prompt set alone is {name}=[...]." if not images and depth_of(value) == _ENTRY_RANK[name] else ""
    return ValueError(f"{name} must be {wanted}, as an array or as ragged lists; got {got}.{hint}")


# Arrays: every prompt set has the same clicks and boxes, so the tokens are one concatenation, traced or not.


def _from_arrays(given: dict[str, Any], images: bool) -> Prompts:
    rank = 1 + images
    for name, value in given.items():
        if name == "boxes" and value.ndim == rank + 1:
            given = given | {"boxes": value[..., None, :]}
        elif value.ndim != rank + _ENTRY_RANK[name]:
            raise _shape_error(name, value, images)
        if value.shape[-1] != {"points": 2, "boxes": 4}.get(name, value.shape[-1]):
            raise _shape_error(name, value, images)
    batches = {name: tuple(value.shape[:rank]) for name, value in given.items()}
    if len(set(batches.values())) > 1:
        axes = "[image, prompt set]" if images else "[prompt set]"
        shown = ", ".join(f"{name} {list(batch)}" for name, batch in batches.items())
        raise ValueError(f"Every argument needs one entry per prompt set; got {axes} of {shown}.")
    if "points" in given and given["points"].shape[:-1] != given["labels"].shape:
        raise ValueError(
            f"labels must have one label per click: {list(given['points'].shape[:-1])} to fit the points, "
            f"got {describe(given['labels'])}."
        )
    for name, value in given.items():
        if not isinstance(value, Tracer):
            _check_values(name, np.asarray(value), "")
    batch = next(iter(batches.values()))
    xp = jnp if any(isinstance(value, jax.Array) for value in given.values()) else np
    coordinates, labels = _tokens_of_arrays(xp, given, batch)
    masks = given.get("masks")
    return Prompts(
        coordinates=coordinates,
        labels=labels,
        masks=None if masks is None else xp.asarray(masks, np.float32),
        has_mask=None if masks is None else xp.ones(batch, bool),
        valid=xp.ones(batch, bool),
    )


def _tokens_of_arrays(xp: ModuleType, given: dict[str, Any], batch: tuple[int, ...]) -> tuple[AnyArray, AnyArray]:
    coordinates, labels = [xp.zeros((*batch, 0, 2), np.float32)], [xp.zeros((*batch, 0), np.int32)]
    if "points" in given:
        clicks = xp.asarray(given["labels"]).astype(np.int32)
        coordinates.append(xp.asarray(given["points"], np.float32))
        labels.append(clicks)
        if "boxes" not in given:
            alone = (clicks != EMPTY).any(-1, keepdims=True) & (clicks < BOX_TOP_LEFT).all(-1, keepdims=True)
            coordinates.append(xp.zeros((*batch, 1, 2), np.float32))
            labels.append(xp.where(alone, np.int32(NOT_A_POINT), np.int32(EMPTY)))
    if "boxes" in given:
        corners = 2 * given["boxes"].shape[-2]
        coordinates.append(xp.asarray(given["boxes"], np.float32).reshape(*batch, corners, 2))
        labels.append(xp.broadcast_to(_corner_labels(corners), (*batch, corners)))
    return xp.concatenate(coordinates, -2), xp.concatenate(labels, -1)


def _corner_labels(corners: int) -> np.ndarray:
    return np.arange(corners, dtype=np.int32) % 2 + BOX_TOP_LEFT


# Lists: the tokens of each prompt set on its own, then empty slots up to the longest.


class _PromptSet(NamedTuple):
    coordinates: np.ndarray  # [n, 2]
    labels: np.ndarray  # [n]
    mask: np.ndarray | None  # [4h, 4w]


def _from_lists(given: dict[str, Any], images: bool) -> Prompts:
    if not images:
        given = {name: [value] for name, value in given.items()}
    _check_counts("images", {name: len(value) for name, value in given.items()})
    number = len(next(iter(given.values()))) if given else 1
    rows = []
    for i in range(number):
        where = f"image {i}, " if images else ""
        row = {name: value[i] if value[i] is not None else [] for name, value in given.items()}
        rows.append(list(_prompt_sets(row, where)))
    sets, tokens = max(len(row) for row in rows), max((len(s.labels) for row in rows for s in row), default=0)
    shape = (number, sets)
    mask_size = _common_mask_size(rows)
    coordinates, labels = np.zeros((*shape, tokens, 2), np.float32), np.full((*shape, tokens), EMPTY, np.int32)
    masks = None if mask_size is None else np.zeros((*shape, *mask_size), np.float32)
    has_mask, valid = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        for j, prompt_set in enumerate(row):
            n = len(prompt_set.labels)
            coordinates[i, j, :n], labels[i, j, :n], valid[i, j] = prompt_set.coordinates, prompt_set.labels, True
            if masks is not None and prompt_set.mask is not None:
                masks[i, j], has_mask[i, j] = prompt_set.mask, True
    prompts = Prompts(coordinates, labels, masks, None if masks is None else has_mask, valid)
    return prompts if images else jax.tree.map(lambda x: x[0], prompts)


def _prompt_sets(row: dict[str, Any], where: str) -> Iterator[_PromptSet]:
    """The prompt sets of one image. `where` names the image in errors."""
    _check_counts("prompt sets", {name: len(value) for name, value in row.items()}, where)
    for j in range(len(next(iter(row.values()))) if row else 1):
        place = f" of {where}prompt set {j}"
        entries = {name: _entry(name, value[j], place) for name, value in row.items() if value[j] is not None}
        clicks, labels = entries.get("points", np.zeros((0, 2))), entries.get("labels", np.zeros(0))
        if len(clicks) != len(labels):
            raise ValueError(
                f"labels must have one label per click; points{place} are {len(clicks)}, labels {len(labels)}."
            )
        corners = entries.get("boxes", np.zeros((0, 4))).reshape(-1, 2)
        not_a_point = int((labels != EMPTY).any() and (labels < BOX_TOP_LEFT).all() and not len(corners))
        yield _PromptSet(
            np.concatenate([clicks, np.zeros((not_a_point, 2)), corners]),
            np.concatenate([labels, [NOT_A_POINT] * not_a_point, _corner_labels(len(corners))]),
            entries.get("masks"),
        )


def _entry(name: str, value: Any, place: str) -> np.ndarray:
    """What one prompt set has of one argument, as an array."""
    if isinstance(value, Tracer):
        raise ValueError(f"{name}{place} is traced: inside jit, give one array for all prompt sets, not a list.")
    wanted = {"points": (-1, 2), "labels": (-1,), "boxes": (-1, 4)}.get(name)
    try:
        entry = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        raise ValueError(f"{name}{place} must be [{_AXES[name]}]; got {describe(value)}.") from None
    if wanted and entry.size == 0:
        entry = np.zeros((0, *wanted[1:]), np.float32)
    if name == "boxes":
        entry = np.atleast_2d(entry)
    if entry.ndim != _ENTRY_RANK[name] or (wanted and len(wanted) > 1 and entry.shape[-1] != wanted[-1]):
        raise ValueError(f"{name}{place} must be [{_AXES[name]}]; got {describe(value)}.")
    _check_values(name, np.asarray(value) if name == "masks" else entry, place)
    return entry


def _common_mask_size(rows: list[list[_PromptSet]]) -> tuple[int, int] | None:
    sizes = {s.mask.shape for row in rows for s in row if s.mask is not None}
    if len(sizes) > 1:
        raise ValueError(f"masks must all have the same height and width; got {sorted(sizes)}.")
    return sizes.pop() if sizes else None


def _check_counts(what: str, counts: dict[str, int], where: str = "") -> None:
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(
            f"Every argument needs the same number of {what} (None where one has none); got {where}{shown}."
        )


def _check_values(name: str, value: np.ndarray, place: str) -> None:
    """Refuse values that no prompt has. `place` names the prompt set."""
    if name == "labels":
        unknown = sorted(set(np.unique(value).tolist()) - set(LABELS))
        if unknown:
            raise ValueError(
                f"labels{place} must be 1 (foreground) or 0 (background), or one of -2 (empty slot), -1 (not a point), "
                f"2 and 3 (box corners); got {', '.join(f'{label:g}' for label in unknown)}."
            )
        return
    if name == "masks" and (value.dtype == bool or (value.any() and np.isin(value, (0, 1)).all())):
        raise ValueError(
            f"masks{place} must be logits (about -20 to 8), got a 0/1 mask; sam_jax.mask_to_prompt makes logits of it."
        )
    if not np.isfinite(value).all():
        raise ValueError(f"{name}{place} must be finite; got NaN or infinity.")
    if name == "boxes" and (value[..., :2] > value[..., 2:]).any():
        box = value.reshape(-1, 4)[(value[..., :2] > value[..., 2:]).any(-1).ravel()][0]
        raise ValueError(
            f"boxes{place} must be (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1; got {tuple(box.tolist())}."
        )
