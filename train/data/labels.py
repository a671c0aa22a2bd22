"""Label images: each value but 0 is an object."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from jaxtyping import Bool, Int, Shaped
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from sam_jax.errors import in_words
from sam_jax.images.read import TIFF, Reading, read_header, read_image
from sam_jax.images.size import Size
from sam_jax.images.windows import Window, windows_of
from sam_jax.train.data.examples import Example, Problems, check_room, range_note
from sam_jax.train.data.tiles import objects_of_tiles, tile_name

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".npy", ".png", ".tif", ".tiff")
LOSSY = (".jpeg", ".jpg", ".webp")
LABEL_FOLDERS = ("labels", "masks")
LABEL_ENDINGS = ("", "_mask", "_masks", "_label", "_labels")
"""What may stand behind an image's name in its label's."""

VOID = 255
"""VOC's value for pixels of no known object, in palette images."""
SPECK = 16
"""Fewer pixels than that are hardly an object."""
MANY_SPECKS = 5
"""From so many specks in a label on, they are told, if they are a fifth of its objects."""
EIGHT_NEIGHBOURS = np.ones((3, 3), bool)

Layer = Shaped[np.ndarray, "height width"]
"""A number for each pixel, 0 on the background."""
Object = tuple[int, Any]
"""The layer of an object, and its value there."""


class LabelFolder:
    """A folder with `images/NAME.jpg` (or another format) and its labels; without `images/`, images lie in it itself.

    The label of an image is `labels/NAME.png` or `masks/NAME.png`, TIFF or `.npy`, of whole numbers; its name may end
    in `_mask` or `_label`. Or it is a folder `labels/NAME/` with a file for each object. Without these folders, it is a
    file beside the image, and its name must end so. Hidden files and images without an object are left out.

    Attributes:
      reading: how images are read; of a label of several pages, its page is taken.
      notes: what is worth knowing about the labels: a sentence each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split_components: bool = False,
        reading: Reading = Reading(),  # noqa: B008 - frozen
        tile: int | None = None,
        once: bool = False,
        classes: int | None = None,
    ) -> None:
        """Read and check all labels.

        Args:
          folder: what holds images and labels.
          split_components: make each connected blob of a value an object of its own.
          reading: how images are read.
          tile: side in pixels of the tiles that become the examples; by default they are the images.
          once: give each object to one tile alone.
          classes: the values 1, 2, ... up to this one are classes. Each image has a mask of each, which may be empty.
            No image is left out.

        Raises:
          ValueError: for images without a label or the other way round, sizes that differ, labels that are none, or no
            object at all.
          FileNotFoundError: if there are no labels.
        """
        images, labels = _images_and_labels(Path(folder))
        problems, notes = Problems(), _Notes()
        for name in sorted(images.keys() ^ labels.keys()):
            found, wanted = (images[name], "label") if name in images else (labels[name], "image")
            problems.add(f"{found} has no {wanted} named {name}.")
        self.split, self.reading, wide, empty = split_components, reading, [], []
        self.parts: list[_Part] = []
        seen: list[Any] = []
        both = sorted(images.keys() & labels.keys())
        for name in track(both, "Checking labels", console=Console(stderr=True), disable=len(both) < 200):
            try:
                header = read_header(images[name])
                label = _Label(self._layers(images[name], labels[name], header.turned_size))
                window = images[name], labels[name], label, header.turned_size, tile
                parts = _parts(*window, once) if classes is None else _class_parts(*window, classes)
            except ValueError as error:
                problems.add(str(error))
                continue
            notes.look_at(labels[name], label, split_components or classes is not None)
            seen += [value for _, value in label.objects]
            self.parts += parts
            wide += [images[name].name] if parts and header.wide else []
            empty += [] if parts else [images[name].name]
        problems.raise_all()
        if not seen:
            raise ValueError(f"{folder} has no objects: its {len(labels)} labels are 0 (background) everywhere.")
        told = (f"Left out {len(empty)} images without an object, such as {empty[0]}.",) if empty else ()
        told += () if classes is None else (_class_note(seen, classes),)
        self.notes = (*told, *notes.sentences(), *range_note(wide, len(both) - len(empty), reading))

    def _layers(self, image: Path, label: Path, size: Size) -> list[Layer]:
        layers = _read_layers(label, size, image, self.reading.page)
        return list(map(split_blobs, layers)) if self.split else layers

    def __len__(self) -> int:
        return len(self.parts)

    def file(self, index: int) -> Path:
        """Return the file of an example's image."""
        return self.parts[index].image

    def __getitem__(self, index: int) -> Example:
        part = self.parts[index]
        image = read_image(part.image, self.reading)
        size = (image.shape[0], image.shape[1])
        masks = _draw(self._layers(part.image, part.label, size), part.objects, part.window)
        whole = part.window.size == size
        name = part.image.name if whole else tile_name(part.image.name, part.window.x0, part.window.y0)
        return Example(image[part.window.pixels], masks, name)


class _Part(NamedTuple):
    """An image or a tile of it, and its objects."""

    image: Path
    label: Path
    window: Window
    objects: list[Object]


class _Label:
    """The objects of a label: the values but 0 of one or more layers, which may lie over each other."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        found = [np.unique(layer, return_counts=True) for layer in layers]
        self.objects: list[Object] = [(i, value) for i, (values, _) in enumerate(found) for value in values if value]
        self.areas = np.array([count for values, counts in found for count in counts[values != 0]], int)

    def counts(self, window: Window) -> Int[np.ndarray, " n"]:
        """Pixels of each object in a window."""
        place = {key: n for n, key in enumerate(self.objects)}
        counts = np.zeros(len(self.objects), int)
        for i, layer in enumerate(self.layers):
            for value, count in zip(*np.unique(layer[window.pixels], return_counts=True), strict=True):
                if value != 0:
                    counts[place[i, value]] = count
        return counts


def _draw(layers: list[Layer], objects: list[Object], window: Window) -> Bool[np.ndarray, "n rows columns"]:
    """Masks of some objects in a window."""
    masks = np.zeros((len(objects), *window.size), bool)
    for mask, (i, value) in zip(masks, objects, strict=True):
        np.equal(layers[i][window.pixels], value, out=mask)
    return masks


def _parts(image: Path, path: Path, label: _Label, size: Size, tile: int | None, once: bool) -> list[_Part]:
    """The tiles of an image that have objects."""
    windows = windows_of(size, tile)
    counts = [label.areas] if len(windows) == 1 else [label.counts(window) for window in windows]
    places = objects_of_tiles(np.stack(counts), label.areas, once=once)
    for window, some in zip(windows, places, strict=True):
        check_room(len(some), window.size, str(path))
    chosen = zip(windows, places, strict=True)
    return [_Part(image, path, window, [label.objects[n] for n in some]) for window, some in chosen if some]


def _class_parts(image: Path, path: Path, label: _Label, size: Size, tile: int | None, classes: int) -> list[_Part]:
    """All tiles of an image, each with all classes as its objects."""
    if path.is_dir():
        raise ValueError(f"{path} must be one file whose values are classes, got a folder of masks.")
    values = [value for _, value in label.objects]
    if bad := [value for value in values if not 1 <= value <= classes]:
        raise ValueError(
            f"{path} has the value {bad[0]}, but there are {classes} classes, and their values are from 1 to {classes}."
        )
    check_room(classes, size, str(path))
    of_all: list[Object] = [(0, value) for value in range(1, classes + 1)]
    return [_Part(image, path, window, of_all) for window in windows_of(size, tile)]


def _class_note(seen: Iterable[Any], classes: int) -> str:
    """How many images have each class."""
    images = Counter(int(value) for value in seen)
    return "Images that have each class: " + ", ".join(f"{k}: {images[k]}" for k in range(1, classes + 1)) + "."


def has_labels(folder: Path) -> bool:
    """Return whether a folder has labels: in `labels/` or `masks/`, or beside their images."""
    return folder.is_dir() and (any((folder / name).is_dir() for name in LABEL_FOLDERS) or bool(_beside(folder)[1]))


def _read_layers(path: Path, size: Size, image: Path, page: int | None) -> list[Layer]:
    """The values of a label file; of a folder of files, those of each, made one object."""
    if not path.is_dir():
        return [_read_values(path, size, image, page)]
    files = [file for file in _visible(path) if file.suffix.lower() in LABEL_SUFFIXES]
    check_room(len(files), size, str(path))
    return [_read_values(file, size, image, page) != 0 for file in files]


def split_blobs(values: Layer) -> Int[np.ndarray, "height width"]:
    """Return a label in which each connected blob of a value (by eight neighbours) has a value of its own."""
    objects, places = np.unique(values, return_inverse=True)
    places = places.reshape(values.shape)
    split, number = np.zeros(values.shape, np.int32), 0
    for i, around in enumerate(ndimage.find_objects(places + 1)):
        if objects[i]:
            blobs, count = _blobs(places[around] == i)
            split[around] += np.where(blobs, blobs + number, 0)
            number += count
    return split


def _blobs(mask: Bool[np.ndarray, "height width"]) -> tuple[Int[np.ndarray, "height width"], int]:
    numbered: Any = ndimage.label(mask, EIGHT_NEIGHBOURS)
    return numbered


class _Notes:
    """What strikes the eye in labels: several blobs in the only object, and many specks."""

    def __init__(self) -> None:
        self.blobs: list[str] = []
        self.specks: list[str] = []

    def look_at(self, path: Path, label: _Label, split: bool) -> None:
        number, specks = len(label.areas), int((label.areas < SPECK).sum())
        if specks >= MANY_SPECKS and 5 * specks >= number:
            self.specks.append(f"{path.name} ({specks} of {number})")
        if number == 1 and not split:
            layer, value = label.objects[0]
            if (count := _blobs(label.layers[layer] == value)[1]) > 1:
                self.blobs.append(f"{path.name} ({count})")

    def sentences(self) -> Iterable[str]:
        if self.blobs:
            yield (
                f"{len(self.blobs)} labels have one value in several blobs, such as {self.blobs[0]}. All blobs of a "
                "value are one object; --split-components makes each an object."
            )
        if self.specks:
            yield (
                f"{len(self.specks)} labels have many objects of fewer than {SPECK} pixels, such as {self.specks[0]}. "
                "Labels look like this after they were resized, blurred or saved as JPEG."
            )


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _images(folder: Path) -> dict[str, Path]:
    """The images of a folder by name without suffix."""
    files: dict[str, Path] = {}
    for path in _visible(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            _add(files, path.stem, path)
    return files


def _images_and_labels(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by the images' names, without suffix; labels of no image by their own."""
    images = folder / "images" if (folder / "images").is_dir() else folder
    found = [folder / name for name in LABEL_FOLDERS if (folder / name).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{folder} has labels/ and masks/: only one of them can hold the labels.")
    if not found:
        return _beside(images)
    files = _images(images)
    return files, _labels(found[0], set(files))


def _beside(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and the labels beside them: files whose name is an image's and an ending."""
    if (folder / "images").is_dir():
        folder = folder / "images"
    paths = [path for path in _visible(folder) if path.suffix.lower() in (*IMAGE_SUFFIXES, *LABEL_SUFFIXES)]
    stems = {path.stem for path in paths}
    images, labels = {}, {}
    for path in paths:
        name = _image_of(path.stem, stems - {path.stem})
        if name != path.stem:
            _check_exact(path)
            _add(labels, name, path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            _add(images, name, path)
    return images, labels


def _labels(folder: Path, names: set[str]) -> dict[str, Path]:
    """The labels of a folder by the names of their images; those of no image by their own."""
    files: dict[str, Path] = {}
    for path in _visible(folder):
        _check_exact(path)
        if path.is_dir() or path.suffix.lower() in LABEL_SUFFIXES:
            _add(files, _image_of(path.name if path.is_dir() else path.stem, names), path)
    return files


def _image_of(label: str, names: set[str]) -> str:
    """The name among some that a label's name begins with, before an ending; the label's own if there is none."""
    stems = (label.removesuffix(ending) for ending in LABEL_ENDINGS)
    return next((stem for stem in stems if stem in names), label)


def _check_exact(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in LOSSY:
        raise ValueError(f"{path} is no label: {suffix[1:].upper()} changes values. Save labels as PNG or TIFF.")


def _add(files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        raise ValueError(f"{path} and {files[name]} have the same name.")
    files[name] = path


def _read_values(path: Path, size: Size, image: Path, page: int | None) -> Shaped[np.ndarray, "height width"]:
    """The values of a label file, the void of a palette image as 0."""
    try:
        if path.suffix.lower() in TIFF:
            return _read_tiff(path, size, image, page)
        return (_read_npy if path.suffix.lower() == ".npy" else _read_png)(path, size, image)
    except Exception as error:  # decoders end in any kind of error for a damaged file
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read as a label: {error}") from error


def _read_png(path: Path, size: Size, image: Path) -> Shaped[np.ndarray, "height width"]:
    _check_size(path, read_header(path).size, size, image)
    with Image.open(path) as label:
        if len(label.getbands()) != 1:
            raise ValueError(f"{path} must have one channel, whose values are the objects, got mode {label.mode}.")
        values, palette = np.asarray(label, np.int32), label.mode == "P"
    if palette and np.isin(values, (0, VOID), invert=True).any():
        values = np.where(values == VOID, 0, values)
    return values


def _read_tiff(path: Path, size: Size, image: Path, number: int | None) -> Shaped[np.ndarray, "height width"]:
    with tifffile.TiffFile(path) as file:
        pages = len(file.pages)
        if pages > 1 and number is None:
            raise ValueError(f"{path} must be one label, got {pages} pages; --page chooses one.")
        if pages > 1 and number and number > pages:
            raise ValueError(f"{path} has {pages} pages, and no page {number}.")
        page: Any = file.pages[number - 1 if number and pages > 1 else 0]
        _check_array(path, page.shape, page.dtype, size, image)
        return page.asarray().reshape(size)


def _read_npy(path: Path, size: Size, image: Path) -> Shaped[np.ndarray, "height width"]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_array(path, values.shape, values.dtype, size, image)
    return np.array(values)


def _check_array(path: Path, shape: tuple[int, ...], dtype: Any, size: Size, image: Path) -> None:
    """Refuse an array by its header, before it is read."""
    if dtype is None or np.dtype(dtype).kind not in "biu" or len(shape) != 2:
        raise ValueError(f"{path} must be a label of whole numbers [height, width], got {dtype} {list(shape)}.")
    _check_size(path, (shape[0], shape[1]), size, image)


def _check_size(path: Path, found: Size, size: Size, image: Path) -> None:
    if found != size:
        raise ValueError(f"{path} is {in_words(found)}, but its image {image} is {in_words(size)}.")
