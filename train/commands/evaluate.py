"""`sam-jax evaluate`: a checkpoint on a data set, one JSON and one picture."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam_jax.files.checkpoints import load, load_encoder
from sam_jax.files.embeddings import EmbeddingStore
from sam_jax.images.pixels import encode_image
from sam_jax.images.plot import NO_PLOTS, can_plot
from sam_jax.images.read import Reading
from sam_jax.images.size import Size
from sam_jax.train.data.examples import Source
from sam_jax.train.data.looks import flat_note
from sam_jax.train.data.shapes import HELD_OUT_CLASSES, TRAINING_CLASSES
from sam_jax.train.data.sources import DrawnScenes, Embedded, Encoded, open_source
from sam_jax.train.evaluation.classes import ClassReport, evaluate_classes
from sam_jax.train.evaluation.evaluate import evaluate
from sam_jax.train.evaluation.everything import EverythingReport, evaluate_everything
from sam_jax.train.evaluation.metrics import COCO_LIMITS
from sam_jax.train.evaluation.report import MEANS_AFTER, Report

SCENES = {"scenes": TRAINING_CLASSES, "new-shapes": HELD_OUT_CLASSES}
"""What to write instead of a path, for drawn scenes of held-out seeds, and the classes of their shapes."""

_COCO_PIXELS = 640 * 480


def run(
    data: str,
    checkpoint: str,
    out: Path,
    *,
    protocol: Literal["prompts", "everything", "classes"] = "prompts",
    embeddings: Path | None = None,
    family: str | None = None,
    prefix: str | None = None,
    images: int = 500,
    cap: int = 20,
    objects: int = 16,
    size_limits: tuple[int, int] | None = None,
    split_components: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    tile: int | None = None,
    compare: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Evaluate, print the main numbers, and write the rest; the arguments are those of the command."""
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already. To replace it, add --overwrite.")
    if protocol == "prompts" and not can_plot():
        Console(stderr=True).print(NO_PLOTS, markup=False)
    if compare is not None and protocol != "prompts":
        raise ValueError("compare is for the protocol of prompts.")
    before = None if compare is None else read_figures(compare)
    model, variables = load(checkpoint, family=family, prefix=prefix)
    source: Source
    classes = model.config.multimask_outputs if protocol == "classes" else None
    if data in SCENES and classes is None:
        source = DrawnScenes(images, model.config.image_size, SCENES[data], held_out=True)
        size_limits = size_limits or limits_for(model.config.image_size)
    else:
        how: dict[str, Any] = {"split_components": split_components, "reading": reading, "tile": tile}
        source = open_source(Path(data), **how, once=True, classes=classes)
        for note in (*source.notes, *flat_note(source)):
            Console(stderr=True).print(note)
    if embeddings is not None:
        source = Embedded(source, EmbeddingStore.open(embeddings))
    else:
        encoder, encoder_variables = load_encoder(checkpoint, family=family, prefix=prefix)
        source = Encoded(source, functools.partial(encode_image, encoder, encoder_variables))
    number = min(images, len(source))
    examples = track((source[i] for i in range(number)), "Evaluating", number, console=Console(stderr=True))
    limits = size_limits or COCO_LIMITS
    if protocol == "everything":
        found = evaluate_everything(model, variables, examples, size_limits=limits)
        found.save(out, overwrite=overwrite)
        Console().print(recall_table(found))
    elif protocol == "classes":
        of_classes = evaluate_classes(model, variables, examples)
        of_classes.save(out, overwrite=overwrite)
        Console().print(class_table(of_classes))
    else:
        report = evaluate(model, variables, examples, cap=cap, objects=objects, size_limits=limits)
        report.save(out, overwrite=overwrite)
        Console().print(table(report))
        if before is not None:
            Console().print(comparison(before, figures_of(json.loads(report.to_json()))))


def limits_for(size: Size) -> tuple[int, int]:
    """Return COCO's borders between sizes, scaled from an image of 640 x 480 to one of another size."""
    small, large = (round(limit * size[0] * size[1] / _COCO_PIXELS) for limit in COCO_LIMITS)
    return small, large


def recall_table(report: EverythingReport) -> Table:
    """Return average recalls for the terminal."""
    rows = Table("objects", "number", *(f"AR@{number:,}" for number in report.recall))
    for name, number in report.objects.items():
        recalls = [of_size[name] for of_size in report.recall.values()]
        rows.add_row(name, str(number), *("" if recall is None else f"{recall:.3f}" for recall in recalls))
    rows.caption = f"{report.masks:.0f} masks an image, {report.images} images"
    return rows


def class_table(report: ClassReport) -> Table:
    """Return the IoUs of classes for the terminal."""
    rows = Table("class", "images that have it", "IoU")
    for number, (iou, images) in enumerate(zip(report.iou, report.present, strict=True), 1):
        rows.add_row(str(number), str(images), "" if iou is None else f"{iou:.3f}")
    rows.add_row("mean", str(report.images), f"{report.mean:.3f}")
    return rows


Figures = dict[str, float]
"""Main numbers of a report by name: how many images and objects, then what a comparison shows."""


def read_figures(folder: Path) -> Figures:
    """Return the main numbers of an evaluation's folder.

    Raises:
      ValueError: if it has none, or those of another protocol.
    """
    try:
        return figures_of(json.loads((folder / "evaluation.json").read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no folder of sam-jax evaluate that can be compared: {error!r}") from error


def figures_of(report: dict[str, Any]) -> Figures:
    """Return the main numbers of what `Report.to_json` says."""
    figures = {"images": report["images"], "objects": report["all"]["objects"]}
    for name, means in {"all": report["all"], **report["by_size"]}.items():
        figures |= {
            f"{name}: IoU after {clicks} click{'s' * (int(clicks) > 1)}": iou
            for clicks, iou in means["click_iou"]["score"].items()
        }
        figures[f"{name}: IoU of boxes"] = means["box_iou"]["score"]
    figures |= {f"clicks to {goal} %": needed["mean"] for goal, needed in report["clicks_needed"]["score"].items()}
    return figures | {"error of predicted IoU": report["calibration"]["error"]}


def comparison(before: Figures, after: Figures) -> Table:
    """Return two reports on the same images side by side, and what changed.

    Raises:
      ValueError: where they are of other images or objects.
    """
    for what in ("images", "objects"):
        if before[what] != after[what]:
            raise ValueError(
                f"The evaluations to compare are of {before[what]} and of {after[what]} {what}; they must be of the "
                "same."
            )
    rows = Table("by score", "before", "after", "change")
    for name in [name for name in before if name in after and name not in ("images", "objects")]:
        rows.add_row(name, f"{before[name]:.3f}", f"{after[name]:.3f}", f"{after[name] - before[name]:+.3f}")
    return rows


def table(report: Report) -> Table:
    """Return a report's main numbers for the terminal."""
    after = (f"{k} click{'s' * (int(k) > 1)}" for k in report.all.click_iou["score"])
    rows = Table("objects", "number", *after, "box", "oracle: 1 click", "box")
    for name, means in itertools.chain([("all", report.all)], report.by_size.items()):
        score, oracle = means.click_iou["score"], means.click_iou["oracle"]
        figures = [*score.values(), means.box_iou["score"], oracle[str(MEANS_AFTER[0])], means.box_iou["oracle"]]
        rows.add_row(name, str(means.objects), *(f"{figure:.3f}" for figure in figures))
    needed = report.clicks_needed["score"]
    rows.caption = "clicks to IoU: " + ", ".join(
        f"{threshold} % {found.mean:.2f} ({found.failures} failures)" for threshold, found in needed.items()
    )
    rows.caption += f"; error of predicted IoU {report.calibration.error:.3f}"
    return rows
