"""How good a model is on a data set, by the protocols of interactive segmentation: clicks, boxes, scores.

Two users click, each on the errors of the masks that they took, and give these masks' logits on as mask prompts. One
takes the mask of the highest score; the other, the oracle, takes the mask that fits best. Both choose from what the
family offers: masks 1, 2, 3 after a single prompt, the one for a clear prompt after more (mask 0, of SAM 2 sometimes
another); of SAM-HQ with its own mask added.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sam_jax.batch.interactive import click, handed_back, start_clicks
from sam_jax.batch.predict import predict_masks
from sam_jax.config import SamConfig
from sam_jax.decoder.features import Features
from sam_jax.decoder.model import MaskPrediction, Sam, Variables
from sam_jax.images.full_size import binary_masks
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.resize import mask_sizes, to_input_frame
from sam_jax.prompts import EMPTY, AnyArray, Prompts
from sam_jax.train.data.examples import Example, encoded_image
from sam_jax.train.evaluation.metrics import COCO_LIMITS, mask_iou
from sam_jax.train.evaluation.report import MEANS_AFTER, Outcome, Report, Sample, User, summarise
from sam_jax.train.user.clicks import Click, box_around, next_click

ENOUGH = 0.95
"""IoU at which a user stops, once there were as many clicks as means are taken after."""

SAMPLES = 6
"""Objects that the report's picture shows."""


def evaluate(
    model: Sam,
    variables: Variables,
    examples: Iterable[Example],
    *,
    cap: int = 20,
    objects: int = 16,
    size_limits: tuple[int, int] = COCO_LIMITS,
) -> Report:
    """Return how good a model is on examples with embeddings.

    Args:
      model: the decoder.
      variables: its variables.
      examples: encoded images with their objects; every object counts the same.
      cap: clicks that an object gets at most.
      objects: how many are decoded at once; no result depends on it.
      size_limits: the least area of a medium object, and of a large one, in pixels of the original image.

    Raises:
      ValueError: for an example that is not encoded, or none with an object.
    """
    outcomes, samples, images = [], [], 0
    for example in examples:
        images += 1
        for group in _groups(encoded_image(example), example.masks, model.config, objects):
            score, oracle = (_play(model, variables, group, user, cap) for user in ("score", "oracle"))
            outcomes += _outcomes(group, score, oracle, *_ask_boxes(model, variables, group))
            if group.first and len(samples) < SAMPLES:
                samples.append(_sample(example, group, score))
    if not outcomes:
        raise ValueError("The examples to evaluate on have no objects.")
    return summarise(outcomes, samples, images=images, cap=cap, size_limits=size_limits)


def first_answers(
    model: Sam, variables: Variables, examples: Iterable[Example], *, objects: int = 16
) -> dict[str, float]:
    """Return the mean IoU after one click (`click`) and of boxes (`box`), of the masks of the highest score.

    These are two numbers of `evaluate`, in a small part of its time.

    Args:
      model: the decoder.
      variables: its variables.
      examples: encoded images with their objects; every object counts the same.
      objects: how many are decoded at once.

    Raises:
      ValueError: for no object.
    """
    found: dict[str, list[float]] = {"click": [], "box": []}
    for example in examples:
        for group in _groups(encoded_image(example), example.masks, model.config, objects):
            clicks = _play(model, variables, group, "score", cap=1).ious
            boxes, scores = _ask_boxes(model, variables, group)
            best = _taken("score", scores, boxes)
            found["click"] += [clicks[i][0] for i in range(group.number)]
            found["box"] += [float(boxes[i, best[i]]) for i in range(group.number)]
    if not found["box"]:
        raise ValueError("The examples to validate on have no objects.")
    return {name: float(np.mean(ious)) for name, ious in found.items()}


@dataclasses.dataclass(frozen=True)
class _Group:
    """Some objects of an image, filled up with empty ones to a fixed number."""

    image: EncodedImage
    targets: Bool[np.ndarray, "o height width"]
    number: int  # of objects that are not empty
    sizes: dict[str, Any]  # as functions of masks take them
    first: bool  # of its image

    def to_frame(self, coordinates: Float[np.ndarray, "*n xy"]) -> Float[np.ndarray, "*n xy"]:
        """Move clicks or boxes to the input frame."""
        sizes = {"original_size": self.image.original_size, "input_size": self.image.input_size}
        return np.asarray(to_input_frame(coordinates, **sizes))


def _groups(
    image: EncodedImage, masks: Bool[np.ndarray, "n height width"], config: SamConfig, objects: int
) -> Iterator[_Group]:
    sizes = mask_sizes(config, image.input_size) | {"original_size": image.original_size}
    image = image._replace(embedding=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), image.embedding))
    masks = masks[masks.any((1, 2))]
    for start in range(0, len(masks), objects):
        part = masks[start : start + objects]
        targets = np.pad(part, [(0, objects - len(part)), (0, 0), (0, 0)])
        yield _Group(image, targets, len(part), sizes, first=start == 0)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What one user did with a group: for each object, click by click, up to where it ended."""

    ious: list[list[float]]
    scores: list[list[float]]
    clicks: list[list[Click]]
    masks: list[Bool[np.ndarray, "height width"]]  # of the first object alone


def _play(model: Sam, variables: Variables, group: _Group, user: User, cap: int) -> _Session:
    """Let a user click until all objects are good enough, or had as many clicks as they get."""
    number = len(group.targets)
    session = _Session(*([[] for _ in range(number)] for _ in range(3)), masks=[])
    masks, clicked = np.zeros((2, *group.targets.shape), bool)
    state = start_clicks(model.config, (number,), cap)
    for k in range(cap):
        clicks = [
            None if _is_done(ious) else next_click(*pictures)
            for ious, *pictures in zip(session.ious, group.targets, masks, clicked, strict=True)
        ]
        if not any(clicks):
            break
        prediction, state = _click(model, variables, group.image.embedding, state, *_points(clicks, group))
        offered, ious = _measure(prediction, group)
        scores, logits = np.asarray(prediction.iou), np.asarray(_offered(prediction), np.float32)
        index = _taken(user, scores, ious) if k == 0 else _clear(prediction)
        if state.masks is not None:
            state = dataclasses.replace(state, masks=handed_back(model.config, logits[np.arange(number), index]))
        for i, new in enumerate(clicks):
            if new is not None:
                masks[i], clicked[i, new.y, new.x] = offered[i, index[i]], True
                session.ious[i].append(float(ious[i, index[i]]))
                session.scores[i].append(float(scores[i, index[i]]))
                session.clicks[i].append(new)
        session.masks.append(masks[0].copy())
    return session


def _points(clicks: list[Click | None], group: _Group) -> tuple[Float[np.ndarray, "o 2"], Int[np.ndarray, " o"]]:
    """Clicks as coordinates in the input frame and labels."""
    points = np.array([(0, 0) if click is None else (click.x, click.y) for click in clicks], np.float32)
    labels = np.array([EMPTY if click is None else click.label for click in clicks], np.int32)
    return group.to_frame(points), labels


@functools.partial(jax.jit, static_argnames="model")
def _click(
    model: Sam,
    variables: Variables,
    embedding: Features,
    state: Prompts,
    points: Float[Array, "o 2"],
    labels: Array,
) -> tuple[MaskPrediction, Prompts]:
    return click(model, variables, embedding, state, points, labels)


def _measure(
    prediction: MaskPrediction, group: _Group
) -> tuple[Bool[np.ndarray, "o m height width"], Float[np.ndarray, "o m"]]:
    """All masks at the original size, and their IoUs."""
    masks = binary_masks(_offered(prediction), **group.sizes)
    return np.asarray(masks), np.asarray(_ious(masks, group.targets[:, None]))


_ious = jax.jit(mask_iou)


def _offered(prediction: MaskPrediction) -> Float[AnyArray, "o m my mx"]:
    """Low-res logits of all masks, SAM-HQ's added to each."""
    return prediction.logits if prediction.hq is None else prediction.logits + prediction.hq[:, None]


def _taken(user: User, scores: Float[np.ndarray, "o m"], ious: Float[np.ndarray, "o m"]) -> Int[np.ndarray, " o"]:
    """The mask of each object that a user takes after one prompt."""
    return 1 + (scores if user == "score" else ious)[:, 1:].argmax(1)


def _clear(prediction: MaskPrediction) -> Int[np.ndarray, " o"]:
    """The mask of each object after more prompts."""
    return np.zeros(len(prediction.iou), int) if prediction.single is None else np.asarray(prediction.single)


def _is_done(ious: list[float]) -> bool:
    return len(ious) >= MEANS_AFTER[-1] and ious[-1] >= ENOUGH


def _ask_boxes(
    model: Sam, variables: Variables, group: _Group
) -> tuple[Float[np.ndarray, "o m"], Float[np.ndarray, "o m"]]:
    """IoUs and scores of all masks of each object's box."""
    boxes = [box_around(target) if target.any() else (0, 0, 0, 0) for target in group.targets]
    prompts = Prompts.build(boxes=group.to_frame(np.array(boxes, float)), images=False)
    prediction = predict_masks(model, variables, group.image.embedding, prompts)
    return _measure(prediction, group)[1], np.asarray(prediction.iou)


def _outcomes(
    group: _Group, score: _Session, oracle: _Session, box: Float[np.ndarray, "o m"], box_scores: np.ndarray
) -> list[Outcome]:
    index = {user: _taken(user, box_scores, box) for user in ("score", "oracle")}
    return [
        Outcome(
            area=int(np.count_nonzero(group.targets[i])),
            clicks={"score": tuple(score.ious[i]), "oracle": tuple(oracle.ious[i])},
            scores=tuple(score.scores[i]),
            box={user: float(box[i, taken[i]]) for user, taken in index.items()} | {"mask 0": float(box[i, 0])},
            box_score=float(box_scores[i, index["score"][i]]),
        )
        for i in range(group.number)
    ]


def _sample(example: Example, group: _Group, session: _Session) -> Sample:
    last = min(MEANS_AFTER[-1], len(session.ious[0]))
    ious, clicks = session.ious[0], tuple(session.clicks[0][:last])
    return Sample(
        example.image, group.targets[0], session.masks[0], session.masks[last - 1], ious[0], ious[last - 1], clicks
    )
