"""COCO JSON: images with polygons and run-length encoded masks, as the tools of this world write it."""

import collections
import dataclasses
import functools
import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from sam_jax.errors import describe, in_words
from sam_jax.images.read import read_image, stored_size
from sam_jax.images.resize import Size
from sam_jax.train.data.examples import Example, Problems, of_wide_images
from sam_jax.train.data.outlines import Outline, draw_outline, has_pixels, read_outline

MANY = 2000
"""Annotations from which on checking shows its progress."""

Entry = dict[str, Any]


@dataclasses.dataclass
class _Image:
    """An image of the file that has objects."""

    number: str
    path: Path
    size: Size
    outlines: list[Outline]


class CocoImages:
    """The images and annotations of COCO JSON files: polygons and RLE.

    Left out, and told in `notes`: crowds, annotations without an outline or without a pixel in their image, and images
    without objects. RLE with `iscrowd` is an object where CVAT wrote it, which marks its brush masks so.

    Attributes:
      notes: what was left out, and what else is worth knowing: a sentence each.
    """

    def __init__(self, annotations: Path | Sequence[Path], images: Path) -> None:
        """Read and check everything but the pixels of the images.

        Args:
          annotations: the JSON file, or several; also SA-1B's, one for each image.
          images: the folder that the file names are in.

        Raises:
          ValueError: naming every file, image and annotation that is bad, or for no object at all.
        """
        files = [Path(annotations)] if isinstance(annotations, (str, Path)) else list(annotations)
        self.file, self.folder = files[0] if len(files) == 1 else files[0].parent, images
        problems, left_out = Problems(), collections.Counter[str]()
        entries, known = [], {}
        for file in files:
            content = _read_json(file)
            entries += [(file, entry) for entry in content["annotations"]]
            for image in content["images"]:
                number = _id(image["id"])
                if number in known:
                    raise ValueError(f"{file} has two images with the id {number}.")
                known[number] = image
        of_image = collections.defaultdict(list)
        for file, entry in entries:
            if _id(entry.get("image_id")) in known:
                of_image[_id(entry["image_id"])].append(entry)
            else:
                where = f"{file}: annotation {entry.get('id')}"
                problems.add(f"{where} is of image {entry.get('image_id')}, which is not in the file.")
        named = {number: self._locate(known[number], problems) for number in of_image}
        self.turned = _are_turned([(known[number], path) for number, path in named.items() if path])
        self.images: list[_Image] = []
        steps = track(
            of_image.items(), "Checking annotations", console=Console(stderr=True), disable=len(entries) < MANY
        )
        for number, annotations_of in steps:
            path = named[number]
            if path is None:
                continue
            size = self._size(known[number], path, problems)
            outlines = [
                outline
                for entry in annotations_of
                if (outline := _outline(entry, size, f"{self.file}: annotation {entry.get('id')}", problems, left_out))
            ]
            if outlines:
                self.images.append(_Image(number, path, size, outlines))
        problems.raise_all()
        told = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        if not self.images:
            raise ValueError(f"{self.file} has no objects: {told or 'it has no annotations'}.")
        self.notes = (f"{self.file}: left out {told}.",) if told else ()
        self.notes += of_wide_images([image.path for image in self.images])

    def _locate(self, image: Entry, problems: Problems) -> Path | None:
        """The one file that a file name can mean: as it says, below `images/`, or by its last part."""
        name = image["file_name"]
        if not isinstance(name, str) or not name:
            problems.add(f"{self.file}: image {image['id']} must have a text as file_name, got {describe(name)}.")
            return None
        name = urllib.parse.unquote(urllib.parse.urlsplit(name).path) if "://" in name else name
        parts = PurePosixPath(name.replace("\\", "/")).parts
        named = self.folder.joinpath(*parts)
        found = [named] if self._is_inside(named) else []
        if ".." not in parts:
            below = self.folder.joinpath("images", *parts), self.folder.joinpath(*parts[1:] or parts)
            found = found or [path for path in below if self._is_inside(path)][:1]
            found = found or self._by_name.get(parts[-1], [])
        if len(found) == 1:
            return found[0]
        problems.add(
            f"{self.file}: image {image['id']} must be a file in {self.folder}, got {named}"
            + (f"; {len(found)} files have this name." if found else ".")
        )
        return None

    def _is_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.folder.resolve()) and path.is_file()
        except (OSError, ValueError):  # a name that no file can have
            return False

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        files = collections.defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                files[path.name].append(path)
        return files

    def _size(self, image: Entry, path: Path, problems: Problems) -> Size:
        """Height and width of an image file as it will be read; a problem where the JSON says something else."""
        (height, width), swaps = stored_size(path)
        size = (width, height) if swaps and self.turned else (height, width)
        told = _told_size(image)
        if told not in (None, size):
            problems.add(f"{path} is {in_words(size)}, but {self.file} says {in_words(told)}.")
        return size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        image = self.images[index]
        masks = np.stack([draw_outline(outline, image.size) for outline in image.outlines])
        name = str(image.path.relative_to(self.folder)).replace("/", "__")
        return Example(read_image(image.path, turned=self.turned), masks, name)


def _are_turned(images: Sequence[tuple[Entry, Path]]) -> bool:
    """Whether the JSON's sizes are those of the images as EXIF turns them: no if all images that could tell say so."""
    as_stored = []
    for image, path in images:
        size, swaps = stored_size(path)
        if swaps and size[0] != size[1] and _told_size(image) is not None:
            as_stored.append(_told_size(image) == size)
    return not (as_stored and all(as_stored))


def _told_size(image: Entry) -> Size | None:
    """Height and width as the JSON has them: numbers, or numbers as texts; None where one is missing."""
    sides: list[Any] = [image.get("height"), image.get("width")]
    try:
        height, width = (int(float(side)) for side in sides)
    except (TypeError, ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _outline(
    entry: Entry, size: Size, where: str, problems: Problems, left_out: collections.Counter[str]
) -> Outline | None:
    """An annotation's outline; None, with a count or a problem, where it has none to train on."""
    if _is_crowd(entry, where, problems):
        left_out["crowds (iscrowd is 1)"] += 1
        return None
    try:
        outline = read_outline(entry.get("segmentation"), size)
    except ValueError as error:
        problems.add(f"{where} {error}.")
        return None
    if outline is None:
        left_out["annotations without an outline"] += 1
    elif not has_pixels(outline, size):
        left_out["annotations without a pixel in their image"] += 1
    else:
        return outline
    return None


def _is_crowd(entry: Entry, where: str, problems: Problems) -> bool:
    """Whether an annotation is of many objects at once."""
    value = entry.get("iscrowd") or 0
    flags = {"0": False, "false": False, "1": True, "true": True}
    crowd = flags.get(str(value).strip().lower())
    if crowd is None:
        problems.add(f"{where} must have iscrowd 0 or 1, got {describe(value)}.")
    attributes = entry.get("attributes")
    by_cvat = isinstance(attributes, dict) and "occluded" in attributes
    return bool(crowd) and not by_cvat


def _id(value: Any) -> str:
    """An id as one text, whether it was written as a number or as a text."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_json(path: Path) -> Entry:
    """A COCO file's content, with what is needed of it there; SA-1B's, of one image, in the same form."""
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if is_sa1b(content):
        number = content["image"].get("image_id")
        content = {
            "images": [content["image"] | {"id": number}],
            "annotations": [entry | {"image_id": number} for entry in _objects(content, "annotations", path)],
        }
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{path} is not COCO JSON: it must be an object with images and annotations.")
    for image in _objects(content, "images", path):
        missing = {"id", "file_name"} - image.keys()
        if missing:
            raise ValueError(f"{path}: image {image.get('id')} has no {', '.join(sorted(missing))}.")
    _objects(content, "annotations", path)
    return content


def is_sa1b(content: Any) -> bool:
    """Return whether a JSON file's content is that of SA-1B: one image and its masks."""
    return isinstance(content, dict) and isinstance(content.get("image"), dict) and "annotations" in content


def _objects(content: Entry, name: str, path: Path) -> list[Entry]:
    entries = content[name]
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not COCO JSON: its {name} must be a list, got {describe(entries)}.")
    wrong = next((entry for entry in entries if not isinstance(entry, dict)), None)
    if wrong is not None or None in entries:
        raise ValueError(f"{path} is not COCO JSON: its {name} must be objects, got {describe(wrong)}.")
    return entries
