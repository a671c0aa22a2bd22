"""The `sam-jax masks` command: image files in, the masks of everything in them out, a file for each image."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sam_jax.atomic import remove_leftovers, written_whole
from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.labels import label_map
from sam_jax.automatic.records import Record
from sam_jax.files.checkpoints import provenance_of
from sam_jax.images.draw import draw_everything
from sam_jax.images.image_files import image_files
from sam_jax.images.outlines import mask_polygons
from sam_jax.images.read import read_image
from sam_jax.images.run_lengths import decoded
from sam_jax.predictor import Predictor
from sam_jax.walk import read_ahead, share_of_process

Kind = Literal["coco", "polygons", "labels", "picture", "packed"]
"""What is written of an image: COCO's JSON with run lengths, or with polygons; a picture of numbers, one for each mask;
the image with all masks in colours; or a NumPy file with a bit for each pixel of each mask."""

SETTINGS = "settings.json"
"""Says what the files of a folder were made with."""


def run(
    paths: Sequence[Path],
    checkpoint: str,
    out: Path,
    console: Console,
    settings: AutomaticConfig,
    *,
    kind: Kind = "coco",
    family: str | None = None,
    prefix: str | None = None,
) -> None:
    """Write the masks of the images whose file is not there yet, or that were changed since.

    Each process of `jax.distributed` takes its share of the images. The processes share nothing but the folders: any of
    them may die, and the same call finishes the rest.

    Args:
      paths: image files, and folders of them.
      checkpoint: what `Predictor.load` takes.
      out: the folder, made where missing.
      console: where to say how it goes.
      settings: how masks are found and filtered.
      kind: what is written of each image.
      family: as in `sam_jax.load`.
      prefix: likewise.

    Raises:
      ValueError: for images or a checkpoint that cannot be used, or a folder that was made with other settings; or
        naming every image that cannot be read, when the others are done.
    """
    files = image_files(paths)
    write, suffix = WRITERS[kind]
    targets = {file: out / f"{file.stem}{suffix}" for file in files}
    twice = [str(path) for path, times in Counter(targets.values()).items() if times > 1]
    if twice or len(targets) < len(files):
        raise ValueError(f"Several of the images would be written to {', '.join(twice) or out}: give them other names.")
    made = {"kind": kind, "checkpoint": provenance_of(checkpoint, family, prefix).sha256}
    _keep_settings(out, made | dataclasses.asdict(settings))
    share = share_of_process(files)
    remove_leftovers(out, {targets[file].name for file in share})
    todo = [file for file in share if not _is_done(file, targets[file])]
    problems: list[str] = []
    masks = 0
    if todo:
        with console.status(f"Loading {checkpoint}"):
            predictor = Predictor.load(checkpoint, family=family, prefix=prefix)
        settings = dataclasses.replace(settings, output_mode="coco_rle")  # of bools, large images would fill memory
        with _progress(console) as progress:
            task = progress.add_task("Finding masks", total=len(todo), rate="")
            for file, pixels in read_ahead(todo, read_image):
                if isinstance(pixels, ValueError):
                    problems.append(str(pixels))
                else:
                    records = predictor.generate(pixels, **vars(settings))
                    masks += len(records)
                    with written_whole(targets[file], overwrite=True) as path:
                        write(path, file, pixels, records)
                _advance(progress, task)
    there = f"; {len(share) - len(todo)} were there" if len(todo) < len(share) else ""
    console.print(f"Wrote {masks:,} masks to {out}, for {len(todo) - len(problems)} of {len(share)} images{there}")
    if problems:
        raise ValueError(f"{len(problems)} of {len(share)} images were not read. {' '.join(problems)}")


def _keep_settings(out: Path, made: dict[str, Any]) -> None:
    """Write down what a folder is made with, or raise where it was made with something else."""
    file = out / SETTINGS
    if file.exists():
        before = json.loads(file.read_text("utf-8"))
        other = [f"{name} {before.get(name)}, now {value}" for name, value in made.items() if before.get(name) != value]
        if other:
            raise ValueError(f"{out} was made with other settings ({'; '.join(other)}): name another folder.")
        return
    with written_whole(file, overwrite=True) as path:  # another process may write the same at the same time
        path.write_text(json.dumps(made, indent=2) + "\n", "utf-8")


def _is_done(file: Path, target: Path) -> bool:
    return target.exists() and target.stat().st_mtime >= file.stat().st_mtime


def _progress(console: Console) -> Progress:
    rate = TextColumn("{task.fields[rate]}")
    text = TextColumn("{task.description}")
    columns = text, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()
    return Progress(*columns, console=console, disable=jax.process_index() > 0)  # the others' shares are alike


def _advance(progress: Progress, task: TaskID) -> None:
    progress.advance(task)
    seconds = progress.tasks[task].elapsed or 0.0
    rate = progress.tasks[task].completed / seconds if seconds else 0.0
    progress.update(task, rate=f"{rate:.1f} images/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s an image")


def write_coco(
    path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record], outline: Callable[[Any], Any] = lambda x: x
) -> None:
    """Write one image's masks in COCO's format for object detection, with `score` and `stability_score` for each.

    `outline` makes what is written of a record's run lengths.
    """
    height, width = pixels.shape[:2]
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": outline(record["segmentation"]),
            "area": record["area"],
            "bbox": _pixel_box(record["bbox"]),
            "iscrowd": 0,
            "score": record["predicted_iou"],
            "stability_score": record["stability_score"],
            "point_coords": record["point_coords"],
        }
        for i, record in enumerate(records)
    ]
    content = {
        "images": [{"id": 1, "file_name": file.name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    path.write_text(json.dumps(content), "utf-8")


def write_polygons(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write COCO's format with polygons, for tools that read no run lengths; holes are filled in them."""
    write_coco(path, file, pixels, records, lambda runs: mask_polygons(decoded(runs)))


def _pixel_box(bbox: Sequence[int]) -> list[int]:
    """COCO's box counts pixels; the official generator's is one less."""
    x, y, width, height = bbox
    return [x, y, width + 1, height + 1]


def write_labels(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write a 16-bit PNG of `label_map`."""
    labels = label_map(records, pixels.shape[:2])
    if labels.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"{file} has {len(records)} masks, more than the 65,535 that a 16-bit PNG can number.")
    Image.fromarray(labels.astype(np.uint16)).save(path, "PNG")


def write_picture(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write the image with all masks on it."""
    largest_first = sorted(records, key=lambda record: -record["area"])
    Image.fromarray(draw_everything(pixels, (decoded(record["segmentation"]) for record in largest_first))).save(
        path, "PNG"
    )


def write_packed(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write the masks as bits, `numpy.unpackbits(masks, axis=-1, count=width)`, and their numbers."""
    height, width = pixels.shape[:2]
    masks = np.zeros((len(records), height, -(-width // 8)), np.uint8)
    for mask, record in zip(masks, records, strict=True):
        mask[:] = np.packbits(decoded(record["segmentation"]), axis=-1)
    columns: Any = {
        name: np.array([record[name] for record in records])
        for name in ("area", "bbox", "predicted_iou", "stability_score", "point_coords")
    }
    with path.open("wb") as stream:
        np.savez_compressed(stream, masks=masks, size=np.array([height, width]), **columns)


Writer = Callable[[Path, Path, np.ndarray, Sequence[Record]], None]

WRITERS: dict[Kind, tuple[Writer, str]] = {
    "coco": (write_coco, ".json"),
    "polygons": (write_polygons, ".json"),
    "labels": (write_labels, ".png"),
    "picture": (write_picture, ".png"),
    "packed": (write_packed, ".npz"),
}
"""How the file of an image is written, and how it ends."""
