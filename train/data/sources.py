"""Where examples come from: drawn scenes, a folder with label images, COCO JSON; with embeddings or without.

A source has a length and an index. It is checked when it is made, so that bad data ends in an error before training and
not hours into it. Its items are read when they are asked for, and are the same every time.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import track

from sam_jax.errors import in_words
from sam_jax.files.embeddings import EmbeddingStore, digest_of
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.preprocess import read_image
from sam_jax.images.resize import Size
from sam_jax.train.data.coco import CocoImages
from sam_jax.train.data.examples import Example, Source, file_size
from sam_jax.train.data.scenes import HELD_OUT_SEEDS, draw_scene
from sam_jax.train.data.shapes import TRAINING_CLASSES

Encode = Callable[[UInt8[np.ndarray, "height width 3"]], EncodedImage]
"""From RGB pixels to the encoded image: `sam_jax.images.pixels.encode_image` with an encoder and its variables."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def open_source(data: Path) -> Source:
    """Return the source that a path holds.

    Args:
      data: a COCO JSON file with its images beside it or in `images/` beside it; or a folder with `images/` and either
        `annotations.json` or `labels/`.

    Raises:
      ValueError: where the data is bad.
      FileNotFoundError: where there is none.
    """
    data = Path(data)
    if data.is_dir() and (data / "annotations.json").is_file():
        data = data / "annotations.json"
    if data.is_file():
        beside = data.parent / "images"
        return CocoImages(data, beside if beside.is_dir() else data.parent)
    if (data / "labels").is_dir():
        return LabelFolder(data)
    raise FileNotFoundError(
        f"{data} is no data set: it must be a COCO JSON file, or a folder with images/ and either annotations.json or "
        "labels/."
    )


class DrawnScenes:
    """Drawn scenes of consecutive seeds.

    Args:
      number: how many.
      size: height and width in pixels.
      classes: names in `shapes.OUTLINES` of the shapes in them.
      held_out: whether the seeds are from `HELD_OUT_SEEDS`, for evaluation, or from those after it, for training.
    """

    def __init__(
        self,
        number: int = 1_000_000,
        size: Size = (128, 128),
        classes: tuple[str, ...] = TRAINING_CLASSES,
        held_out: bool = False,
    ) -> None:
        if number < 1 or (held_out and number > len(HELD_OUT_SEEDS)):
            raise ValueError(
                f"The number of drawn scenes must be at least 1, and at most {len(HELD_OUT_SEEDS)} where they are held "
                f"out; got {number}."
            )
        self.number, self.size, self.classes = number, size, classes
        self.first_seed = HELD_OUT_SEEDS.start if held_out else HELD_OUT_SEEDS.stop

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Example:
        seed = self.first_seed + index
        scene = draw_scene(seed, self.size, self.classes)
        return Example(scene.image, scene.masks, f"scene_{seed}")


class LabelFolder:
    """A folder with `images/NAME.jpg` (or another format) and `labels/NAME.png`, where each value but 0 is an object.

    Images whose label is 0 everywhere are left out.

    Args:
      folder: what holds `images` and `labels`.

    Raises:
      ValueError: for an image without a label or the other way round, sizes that differ, or no object at all.
      FileNotFoundError: if a folder is missing.
    """

    def __init__(self, folder: Path) -> None:
        images, labels = _files(Path(folder) / "images", IMAGE_SUFFIXES), _files(Path(folder) / "labels", (".png",))
        for name in sorted(images.keys() ^ labels.keys()):
            found, wanted = (images[name], "labels") if name in images else (labels[name], "images")
            raise ValueError(f"{found} has no counterpart {name} in {Path(folder) / wanted}.")
        pairs = [(images[name], labels[name]) for name in sorted(images)]
        self.pairs = [pair for pair in pairs if _has_objects(*pair)]
        if not self.pairs:
            raise ValueError(f"{folder} has no objects: its {len(labels)} labels are 0 (background) everywhere.")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        image, label = self.pairs[index]
        values = _read_label(label)
        objects = np.unique(values[values != 0])
        return Example(read_image(image), values == objects[:, None, None], image.name)


class Embedded:
    """The examples of a source with their embeddings from a store, so that no encoder is needed.

    Args:
      source: the examples.
      store: what `embed` filled.
    """

    def __init__(self, source: Source, store: EmbeddingStore) -> None:
        self.source, self.store = source, store

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        encoded = self.store.read(example.name, example.original_size, digest_of(example.image))
        return dataclasses.replace(example, encoded=encoded)


class Encoded:
    """The examples of a source with their embeddings, computed whenever one is asked for.

    Args:
      source: the examples.
      encode: as in `embed`.
    """

    def __init__(self, source: Source, encode: Encode) -> None:
        self.source, self.encode = source, encode

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        return dataclasses.replace(example, encoded=self.encode(example.image))


def embed(source: Source, store: EmbeddingStore, encode: Encode) -> int:
    """Store the embeddings that a store has not got yet, and return how many those were.

    Args:
      source: the examples.
      store: where the embeddings go, by the examples' names.
      encode: from RGB pixels to the encoded image.
    """
    written = 0
    for index in track(range(len(source)), "Encoding images", console=Console(stderr=True)):
        example = source[index]
        digest = digest_of(example.image)
        if not store.has(example.name, digest):
            store.write(example.name, encode(example.image), digest)
            written += 1
    return written


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder by name without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            if path.stem in files:
                raise ValueError(f"{path} and {files[path.stem]} have the same name.")
            files[path.stem] = path
    return files


def _has_objects(image: Path, label: Path) -> bool:
    size, wanted = file_size(label), file_size(image)
    if size != wanted:
        raise ValueError(f"{label} is {in_words(size)}, but its image {image} is {in_words(wanted)}.")
    return bool(_read_label(label).any())


def _read_label(path: Path) -> Int[np.ndarray, "height width"]:
    with Image.open(path) as image:
        if len(image.getbands()) != 1:
            raise ValueError(f"{path} must have one channel, whose values are the objects, got mode {image.mode}.")
        return np.asarray(image, np.int32)
