"""The `sam-jax masks` command: image files in, the masks of everything in them out, or of what a table asks for."""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tifffile
from jaxtyping import UInt16, UInt32
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sam_jax.atomic import remove_leftovers, written_whole
from sam_jax.automatic.config import AutomaticConfig, check_decoder
from sam_jax.automatic.labels import label_map
from sam_jax.automatic.records import Record
from sam_jax.commands.object_tables import ask, numbers_of, read_prompts, write_table
from sam_jax.files.checkpoints import provenance_of
from sam_jax.images.draw import draw_everything
from sam_jax.images.image_files import image_files
from sam_jax.images.outlines import mask_polygons
from sam_jax.images.read import Reading, read_image
from sam_jax.images.run_lengths import decoded
from sam_jax.predictor import Predictor
from sam_jax.walk import read_ahead, share_of_process

Kind = Literal["coco", "polygons", "labels", "tiff", "table", "picture", "packed"]
"""What is written of an image: COCO's JSON with run lengths, or with polygons; a picture of numbers, one for each mask,
as PNG or as TIFF; a CSV row for each mask; the image with all masks in colours; or a NumPy file with a bit for each
pixel of each mask."""

SETTINGS = "settings.json"
"""Says what the files of a folder were made with."""


def run(
    paths: Sequence[Path],
    checkpoint: str,
    out: Path,
    console: Console,
    settings: AutomaticConfig,
    *,
    kinds: Sequence[Kind] = ("coco",),
    prompts: Path | None = None,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    family: str | None = None,
    prefix: str | None = None,
) -> None:
    """Write the masks of the images whose files are not there yet, or that were changed since.

    Each process of `jax.distributed` takes its share of the images. The processes share nothing but the folders: any of
    them may die, and the same call finishes the rest.

    Args:
      paths: image files, and folders of them.
      checkpoint: what `Predictor.load` takes.
      out: the folder, made where missing.
      console: where to say how it goes.
      settings: how masks are found and filtered.
      kinds: what is written of each image.
      prompts: a table of objects to ask for (`read_prompts`) instead of everything; images without a row are left out.
      reading: how images are read.
      family: as in `sam_jax.load`.
      prefix: likewise.

    Raises:
      ValueError: for images or a checkpoint that cannot be used, or a folder that was made with other settings; or
        naming every image that cannot be read, when the others are done.
    """
    files = image_files(paths)
    asked = None if prompts is None else read_prompts(prompts)
    if asked is not None:
        files = _asked_for(files, asked, prompts, console)
    suffixes = Counter(WRITERS[kind][1] for kind in kinds)
    if both := [kind for kind in kinds if suffixes[WRITERS[kind][1]] > 1]:
        raise ValueError(f"{' and '.join(both)} are files of one name: write them to two folders.")
    targets = {file: [out / f"{file.stem}{suffix}" for suffix in suffixes] for file in files}
    twice = [str(path) for path, times in Counter(chain.from_iterable(targets.values())).items() if times > 1]
    if twice or len(targets) < len(files):
        raise ValueError(f"Several of the images would be written to {', '.join(twice) or out}: give them other names.")
    made = {"kind": "+".join(kinds), "checkpoint": provenance_of(checkpoint, family, prefix).sha256}
    made |= reading.told
    made |= {} if prompts is None else {"prompts": hashlib.sha256(prompts.read_bytes()).hexdigest()}
    made |= dataclasses.asdict(settings)
    _refuse_others(out, made)
    share = share_of_process(files)
    remove_leftovers(out, {path.name for file in share for path in targets[file]})
    todo = [file for file in share if not all(_is_done(file, path) for path in targets[file])]
    problems: list[str] = []
    masks = 0
    if todo:
        with console.status(f"Loading {checkpoint}"):
            predictor = Predictor.load(checkpoint, family=family, prefix=prefix)
        check_decoder(predictor.model.config, settings)
        _keep_settings(out, made)
        settings = dataclasses.replace(settings, output_mode="coco_rle")  # of bools, large images would fill memory
        with _progress(console) as progress:
            task = progress.add_task("Finding masks", total=len(todo), rate="")
            for file, pixels in read_ahead(todo, functools.partial(read_image, reading=reading)):
                try:
                    if isinstance(pixels, ValueError):
                        raise pixels
                    if asked is None:
                        records = predictor.generate(pixels, **vars(settings))
                    else:
                        records = ask(predictor, pixels, asked[file.name], settings.tile)
                except ValueError as error:
                    problems.append(str(error) if file.name in str(error) else f"{file}: {error}")
                else:
                    masks += len(records)
                    for kind, target in zip(kinds, targets[file], strict=True):
                        with written_whole(target, overwrite=True) as path:
                            WRITERS[kind][0](path, file, pixels, records)
                _advance(progress, task)
    there = f"; {len(share) - len(todo)} were there" if len(todo) < len(share) else ""
    console.print(f"Wrote {masks:,} masks to {out}, for {len(todo) - len(problems)} of {len(share)} images{there}")
    if problems:
        raise ValueError(f"{len(problems)} of {len(share)} images were not read. {' '.join(problems)}")


def _asked_for(files: list[Path], asked: Mapping[str, Any], table: Path | None, console: Console) -> list[Path]:
    """The images that a table has rows of; all of its images must be there."""
    missing = sorted(asked.keys() - {file.name for file in files})
    if missing:
        raise ValueError(f"{len(missing)} images of {table} are not given, such as {missing[0]}.")
    found = [file for file in files if file.name in asked]
    if len(found) < len(files):
        console.print(f"{len(files) - len(found)} of {len(files)} images have no row in {table}, and are left out.")
    return found


def _refuse_others(out: Path, made: dict[str, Any]) -> None:
    """Raise where a folder was made with something else."""
    file = out / SETTINGS
    if not file.exists():
        return
    before = json.loads(file.read_text("utf-8"))
    other = [f"{name} {before.get(name)}, now {value}" for name, value in made.items() if before.get(name) != value]
    if other:
        raise ValueError(f"{out} was made with other settings ({'; '.join(other)}): name another folder.")


def _keep_settings(out: Path, made: dict[str, Any]) -> None:
    """Write down what a folder is made with, where nothing says so yet."""
    if (out / SETTINGS).exists():
        return
    with written_whole(out / SETTINGS, overwrite=True) as path:  # another process may write the same at the same time
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
            "bbox": _pixel_box(record["bbox"]) if record["area"] else [0, 0, 0, 0],
            "iscrowd": 0,
            "score": record["predicted_iou"],
        }
        | {name: record[name] for name in ("object", "stability_score", "point_coords") if name in record}
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
    """Write a 16-bit PNG with the number of the object at each pixel, 0 where there is none."""
    labels = numbered(records, pixels)
    if labels.dtype != np.uint16:
        raise ValueError(f"{file} has numbers of objects above the 65,535 of a 16-bit PNG: write tiff instead.")
    Image.fromarray(labels).save(path, "PNG")


def write_tiff(path: Path, file: Path, pixels: np.ndarray, records: Sequence[Record]) -> None:
    """Write what `write_labels` does as TIFF, with 32 bits where 16 are too few."""
    tifffile.imwrite(path, numbered(records, pixels), compression="zlib")


def numbered(records: Sequence[Record], pixels: np.ndarray) -> UInt16[np.ndarray, "h w"] | UInt32[np.ndarray, "h w"]:
    """Return the number of the object at each pixel; where several are, that of the smallest."""
    numbers = np.array([0, *numbers_of(records)])
    dtype = np.uint16 if numbers.max() <= np.iinfo(np.uint16).max else np.uint32
    return numbers.astype(dtype)[label_map(records, pixels.shape[:2])]


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
        if all(name in record for record in records)
    }
    with path.open("wb") as stream:
        np.savez_compressed(stream, masks=masks, size=np.array([height, width]), **columns)


Writer = Callable[[Path, Path, np.ndarray, Sequence[Record]], None]

WRITERS: dict[Kind, tuple[Writer, str]] = {
    "coco": (write_coco, ".json"),
    "polygons": (write_polygons, ".json"),
    "labels": (write_labels, ".png"),
    "tiff": (write_tiff, ".tif"),
    "table": (write_table, ".csv"),
    "picture": (write_picture, ".png"),
    "packed": (write_packed, ".npz"),
}
"""How the file of an image is written, and how it ends."""
