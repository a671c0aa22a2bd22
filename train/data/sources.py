"""Where examples come from: drawn scenes, a folder with label images, COCO JSON; with embeddings or without.

A source has a length and an index. It is checked when it is made, so that bad data ends in an error before training and
not hours into it. Its items are read when they are asked for, and are the same every time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from sam_jax.files.embeddings import EmbeddingStore, digest_of
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.read import Reading
from sam_jax.images.size import Size
from sam_jax.train.data.coco import CocoImages
from sam_jax.train.data.examples import Example, Files, Source
from sam_jax.train.data.labels import LabelFolder, has_labels
from sam_jax.train.data.scenes import HELD_OUT_SEEDS, draw_scene
from sam_jax.train.data.shapes import TRAINING_CLASSES

Encode = Callable[[UInt8[np.ndarray, "height width 3"]], EncodedImage]
"""From RGB pixels to the encoded image: `sam_jax.images.pixels.encode_image` with an encoder and its variables."""


def open_source(
    data: Path,
    *,
    split_components: bool = False,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    tile: int | None = None,
    once: bool = False,
    classes: int | None = None,
) -> CocoImages | LabelFolder:
    """Return the source that a path holds, all of it checked.

    Args:
      data: a COCO JSON file with its images beside it or in `images/` beside it; a folder with `images/` and
        `annotations.json`; a folder with label images (`LabelFolder`); or a folder of SA-1B's JSON files with their
        images.
      split_components: of label images, make each connected blob of a value an object of its own.
      reading: how images are read.
      tile: side in pixels of the tiles that become the examples (`windows_of`); by default they are the images. An
        object that a tile's edge cuts is left out of it where few pixels of it are left.
      once: give each object to one tile alone, to measure it once.
      classes: of label images, the values up to this one are classes (`LabelFolder`).

    Raises:
      ValueError: where the data is bad.
      FileNotFoundError: where there is none.
    """
    data, how = Path(data), {"reading": reading, "tile": tile, "once": once}
    if classes is not None and not has_labels(data):
        raise ValueError(
            f"Classes are the values of label images, in labels/, masks/ or beside the images; {data} has none."
        )
    if data.is_dir() and (data / "annotations.json").is_file():
        data = data / "annotations.json"
    if data.is_file():
        beside = data.parent / "images"
        return CocoImages(data, beside if beside.is_dir() else data.parent, **how)
    if has_labels(data):
        return LabelFolder(data, split_components=split_components, classes=classes, **how)
    if data.is_dir() and (files := sorted(data.glob("[!.]*.json"))):
        return CocoImages(files, data, **how)
    raise FileNotFoundError(
        f"{data} is no data set: it must be a COCO JSON file, or a folder with images/ and either annotations.json, "
        "labels/ or masks/, or with labels NAME_mask beside the images."
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


class Part:
    """Some examples of a source, and of each at most so many objects, the same every time.

    Args:
      source: the examples.
      indices: of those to take.
      objects: of each; by default all.
    """

    def __init__(self, source: Source, indices: Sequence[int], objects: int | None = None) -> None:
        self.source, self.indices, self.objects = source, tuple(indices), objects

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        example = self.source[self.indices[index]]
        if self.objects is None or len(example.masks) <= self.objects:
            return example
        chosen = np.random.default_rng(index).choice(len(example.masks), self.objects, replace=False)
        return dataclasses.replace(example, masks=example.masks[np.sort(chosen)])


def split(source: Source, share: float, seed: int) -> tuple[Part, Part]:
    """Return most of a source's images and a share of them that is held out, at least one each.

    Args:
      source: the examples.
      share: of the images to hold out, between 0 and 1.
      seed: of the choice.

    Raises:
      ValueError: for a single image.
    """
    files = [source.file(i) if isinstance(source, Files) else i for i in range(len(source))]
    images = sorted(set(files))  # the tiles of an image stay together
    if len(images) < 2:
        raise ValueError(f"There is {len(images)} image: to hold out some, there must be 2 or more.")
    number = min(max(round(share * len(images)), 1), len(images) - 1)
    held_out = {images[i] for i in np.random.default_rng(seed).permutation(len(images))[:number]}
    parts = [[i for i, file in enumerate(files) if (file in held_out) == wanted] for wanted in (False, True)]
    return Part(source, parts[0]), Part(source, parts[1])


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
