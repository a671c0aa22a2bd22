"""COCO JSON: images with polygons and run-length encoded masks, as the tools of this world write it."""

import collections
import functools
import json
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from sam_jax.errors import describe, in_words
from sam_jax.images.read import Header, Reading, read_header, read_image
from sam_jax.images.size import Size
from sam_jax.images.windows import Window, windows_of
from sam_jax.train.data.examples import Example, Problems, check_room, range_note
from sam_jax.train.data.outlines import Outline, draw_outline, has_pixels, read_outline
from sam_jax.train.data.tiles import objects_of_tiles, tile_name

MANY = 2000
"""Annotations from which on checking shows its progress."""

Entry = dict[str, Any]


class _Place(NamedTuple):
    """Where an image of the JSON is, what it says of itself, and what height and width the JSON says, if any."""

    path: Path
    header: Header
    told_size: Size | None


class _Part(NamedTuple):
    """An image of the file, or a tile of it, that has objects."""

    path: Path
    size: Size
    window: Window
    outlines: list[Outline]


class CocoImages:
    """The images and annotations of COCO JSON files: polygons and RLE.

    Left out, and told in `notes`: crowds, annotations without an outline or without a pixel in their image, and images
    without objects. RLE with `iscrowd` is an object where CVAT wrote it, which marks its brush masks so.

    Attributes:
      notes: what was left out, and what else is worth knowing: a sentence each.
    """

    def __init__(
        self,
        annotations: Path | Sequence[Path],
        images: Path,
        *,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        tile: int | None = None,
        once: bool = False,
    ) -> None:
        """Read and check everything but the pixels of the images.

        Args:
          annotations: the JSON file, or several; also SA-1B's, one for each image.
          images: the folder that the file names are in.
          reading: how images are read.
          tile: side in pixels of the tiles that become the examples; by default they are the images.
          once: give each object to one tile alone.

        Raises:
          ValueError: naming every file, image and annotation that is bad, or for no object at all.
        """
        files = [Path(annotations)] if isinstance(annotations, (str, Path)) else list(annotations)
        self.json, self.folder = files[0] if len(files) == 1 else files[0].parent, images
        self.reading = reading
        problems, left_out = Problems(), collections.Counter[str]()
        known: dict[str, Entry] = {}
        of_image: dict[str, list[tuple[str, Entry]]] = collections.defaultdict(list)
        for file in files:
            content = _read_json(file)
            for image in content["images"]:
                if _id(image["id"]) in known:
                    raise ValueError(f"{file} has two images with the id {_id(image['id'])}.")
                known[_id(image["id"])] = image
            for entry in content["annotations"]:
                of_image[_id(entry.get("image_id"))].append((f"{file}: annotation {entry.get('id')}", entry))
        for number in of_image.keys() - known.keys():
            for where, _ in of_image.pop(number):
                problems.add(f"{where} is of image {number}, which is not in the file.")
        places = {number: self._place(known[number], problems) for number in of_image}
        self.turned = _are_turned([place for place in places.values() if place])
        self.parts: list[_Part] = []
        many = sum(map(len, of_image.values())) >= MANY
        steps = track(of_image.items(), "Checking annotations", console=Console(stderr=True), disable=not many)
        for number, entries in steps:
            if place := places[number]:
                size = self._size(place, problems)
                outlines = [_outline(entry, size, where, problems, left_out) for where, entry in entries]
                present = [outline for outline in outlines if outline]
                parts = _parts(place.path, size, present, tile, once)
                try:
                    for part in parts:
                        check_room(len(part.outlines), part.window.size, f"{self.json}: image {number}")
                except ValueError as error:
                    problems.add(str(error))
                self.parts += parts
        problems.raise_all()
        told = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        if not self.parts:
            raise ValueError(f"{self.json} has no objects: {told or 'it has no annotations'}.")
        wide = [place.path.name for place in places.values() if place and place.header.wide]
        self.notes = (f"{self.json}: left out {told}.",) if told else ()
        self.notes += range_note(wide, len(places), reading)

    def _place(self, image: Entry, problems: Problems) -> "_Place | None":
        """Find an image's file, and read its header; a problem where that cannot be done."""
        try:
            path = self._locate(image)
            return _Place(path, read_header(path), _told_size(image))
        except ValueError as error:
            problems.add(str(error))
            return None

    def _locate(self, image: Entry) -> Path:
        """The one file that a file name can mean: as it says, below `images/`, or by its last part."""
        where, name = f"{self.json}: image {image['id']}", image["file_name"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} must have a text as file_name, got {describe(name)}.")
        parts = PurePosixPath(_path_of(name).replace("\\", "/")).parts
        named = self.folder.joinpath(*parts)
        found = [named] if self._is_inside(named) else []
        if parts and ".." not in parts:
            below = self.folder.joinpath("images", *parts), self.folder.joinpath(*parts[1:] or parts)
            found = found or [path for path in below if self._is_inside(path)][:1]
            found = found or self._by_name.get(parts[-1], [])
        if len(found) != 1:
            several = f"; {len(found)} files have this name." if found else "."
            raise ValueError(f"{where} must be a file in {self.folder}, got {describe(name)}{several}")
        return found[0]

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

    def _size(self, place: "_Place", problems: Problems) -> Size:
        """Height and width of an image as it will be read; a problem where the JSON says something else."""
        size = place.header.turned_size if self.turned else place.header.size
        if place.told_size not in (None, size):
            problems.add(f"{place.path} is {in_words(size)}, but {self.json} says {in_words(place.told_size)}.")
        return size

    def __len__(self) -> int:
        return len(self.parts)

    def file(self, index: int) -> Path:
        """Return the file of an example's image."""
        return self.parts[index].path

    def __getitem__(self, index: int) -> Example:
        part = self.parts[index]
        masks = np.stack([draw_outline(outline, part.size)[part.window.pixels] for outline in part.outlines])
        name = str(part.path.relative_to(self.folder)).replace("/", "__")
        if part.window.size != part.size:
            name = tile_name(name, part.window.x0, part.window.y0)
        image = read_image(part.path, self.reading, turned=self.turned)
        return Example(image[part.window.pixels], masks, name)


def _parts(path: Path, size: Size, outlines: Sequence[Outline], tile: int | None, once: bool) -> list[_Part]:
    """The tiles of an image that have objects; without tiles, the image."""
    windows = windows_of(size, tile)
    if len(windows) == 1:
        return [_Part(path, size, windows[0], list(outlines))] if outlines else []
    counts, areas = np.zeros((len(windows), len(outlines)), int), np.zeros(len(outlines), int)
    for i, outline in enumerate(outlines):
        mask = draw_outline(outline, size)
        areas[i] = mask.sum()
        counts[:, i] = [mask[window.pixels].sum() for window in windows]
    chosen = zip(windows, objects_of_tiles(counts, areas, once=once), strict=True)
    return [_Part(path, size, window, [outlines[i] for i in some]) for window, some in chosen if some]


def _are_turned(places: Sequence[_Place]) -> bool:
    """Whether the JSON's sizes are those of the images as EXIF turns them: no if all images that could tell say so."""
    telling = [place for place in places if place.told_size and place.header.size != place.header.turned_size]
    return not telling or any(place.told_size != place.header.size for place in telling)


def _path_of(name: str) -> str:
    """A file name as it is, or the path in a URL."""
    try:
        return urllib.parse.unquote(urllib.parse.urlsplit(name).path) if "://" in name else name
    except ValueError:  # no URL after all
        return name


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
    if isinstance(content, dict) and isinstance(content.get("image"), dict) and "annotations" in content:
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


def _objects(content: Entry, name: str, path: Path) -> list[Entry]:
    entries = content[name]
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not COCO JSON: its {name} must be a list, got {describe(entries)}.")
    if wrong := [entry for entry in entries if not isinstance(entry, dict)]:
        raise ValueError(f"{path} is not COCO JSON: its {name} must be objects, got {describe(wrong[0])}.")
    return entries
