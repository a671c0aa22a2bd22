"""Image embeddings on disk, made once and read by as many processes as like to.

A store is a folder, in Zarr's terms a group: its `zarr.json` says in `attributes` which encoder the embeddings are of.
Each image is in it as `NAME/`, whose attributes are the sizes that masks and prompts need: an array of one chunk
[h, w, c], or where an image has several maps a group of such arrays, by the maps' names. An image appears whole or not
at all, by a rename, so that a run may be interrupted at any time and any number of processes may write different
images. Any reader of Zarr 3 reads a store.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
import tensorstore
from jaxtyping import Int, UInt8

from sam_jax.atomic import remove_leftovers, written_whole
from sam_jax.decoder.features import Features, features_of, maps_of
from sam_jax.errors import describe, in_words
from sam_jax.fast.low_rank import ImageState
from sam_jax.files.manifest import Provenance
from sam_jax.images.pixels import EncodedImage
from sam_jax.images.read import Reading
from sam_jax.images.size import Size

StoredDType = Literal["bfloat16", "float32"]
Shape = tuple[int, int, int]
NAME = "zarr.json"
_FORMAT = "sam-jax embeddings"


class EmbeddingBatch(NamedTuple):
    """Embeddings of several images, in the order that was asked for.

    Attributes:
      embeddings: as they are stored, channels last; with the axis of images, `n`.
      input_sizes: height and width of each resized image in the input frame, before padding.
      original_sizes: height and width of each image.
    """

    embeddings: Features
    input_sizes: Int[np.ndarray, "n 2"]
    original_sizes: Int[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True)
class EmbeddingStore:
    """A folder of embeddings that one encoder made.

    Attributes:
      path: the folder.
      shapes: height, width and channels of each map of an image, by name; of most families there is `embedding` alone.
      image_size: height and width of the padded input frame.
      dtype: what the embeddings are stored as.
      provenance: where the encoder's weights come from.
    """

    path: Path
    shapes: dict[str, Shape]
    image_size: Size
    dtype: StoredDType
    provenance: Provenance

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        shapes: dict[str, Shape],
        image_size: Size,
        dtype: StoredDType,
        provenance: Provenance,
    ) -> "EmbeddingStore":
        """Make a store, or open the one that an earlier call with the same settings made.

        Args:
          path: the folder.
          shapes: height, width and channels of each map of an image, by name.
          image_size: height and width of the padded input frame.
          dtype: what to store them as; bfloat16 takes half the room.
          provenance: where the encoder's weights come from.

        Raises:
          ValueError: for another dtype, or if the store that is there has other settings.
          FileExistsError: if something else is at `path`.
        """
        if dtype not in get_args(StoredDType):
            raise ValueError(f"dtype must be one of {', '.join(get_args(StoredDType))}, got {describe(dtype)}.")
        store = cls(Path(path).expanduser(), shapes, image_size, dtype, provenance)
        if (store.path / NAME).is_file():
            store._check_same(cls.open(path))
            return store
        if store.path.exists() and not (store.path.is_dir() and all(p.name[0] == "." for p in store.path.iterdir())):
            raise FileExistsError(f"{store.path} is something else than a store of embeddings and is left alone.")
        store.path.mkdir(parents=True, exist_ok=True)
        with written_whole(store.path / NAME, overwrite=True) as file:
            file.write_text(_group(store._description()), "utf-8")
        return store

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "EmbeddingStore":
        """Open a store to read from, or to write more images to.

        Raises:
          ValueError: if there is no store, or its description is damaged.
        """
        path = Path(path).expanduser()
        try:
            values = json.loads((path / NAME).read_bytes())["attributes"]
            if values.pop("format") != _FORMAT:
                raise ValueError("its format is another")
            shapes = values.pop("shapes", None) or {"embedding": values.pop("shape")}  # which older stores have
            values["shapes"] = {name: tuple(shape) for name, shape in shapes.items()}
            values["image_size"] = tuple(values["image_size"])
            return cls(path, **values | {"provenance": Provenance(**values["provenance"])})
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no store of embeddings, as sam-jax embed makes it: {error!r}.") from error

    def names(self) -> list[str]:
        """Return the names of the images that are there, sorted."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{NAME}") if not path.parent.name.startswith("."))

    def __contains__(self, name: str) -> bool:
        """Return whether the image is there, and whole."""
        return (self.path / _checked(name) / NAME).is_file()

    def has(self, name: str, digest: str) -> bool:
        """Return whether the image is there, whole, and of the same pixels. One without a digest counts as such."""
        try:
            return name in self and self._attributes(name).get("pixels", digest) == digest
        except (KeyError, ValueError):
            return False

    def written_after(self, name: str, file: Path, reading: Reading = Reading()) -> bool:  # noqa: B008 - frozen
        """Return whether the image is there, read in this way, and was written after its file was changed last."""
        if name not in self or (self.path / name / NAME).stat().st_mtime_ns <= file.stat().st_mtime_ns:
            return False
        try:
            return self._attributes(name).get("reading", {}) == reading.told
        except (KeyError, ValueError):
            return False

    def write(
        self,
        name: str,
        image: EncodedImage,
        digest: str | None = None,
        reading: Reading = Reading(),  # noqa: B008 - frozen
    ) -> None:
        """Write one image; it replaces an image of that name.

        Args:
          name: usually the image file's name; a single part of a path.
          image: what `encode_image` returned.
          digest: of the pixels that it was made of (`digest_of`), by which a reader tells an image that was edited.
          reading: how its file was read.

        Raises:
          ValueError: for maps of other names or shapes than the store's or that are no floats, or a name that is none.
        """
        if isinstance(image.embedding, ImageState):
            raise ValueError(f"{name} must be what encode_image returned, got what prepare_image made of it.")
        maps = {what: np.asarray(value) for what, value in maps_of(image.embedding).items()}
        self._check_maps(name, maps)
        attributes = {"input_size": list(image.input_size), "original_size": list(image.original_size)}
        attributes |= {} if digest is None else {"pixels": digest}
        attributes |= {"reading": reading.told} if reading.told else {}
        with written_whole(self.path / _checked(name), overwrite=True) as folder:
            for what, place in self._places(folder).items():
                self._write_array(place, maps[what], attributes if place == folder else {})
            if len(maps) > 1:
                (folder / NAME).write_text(_group(attributes), "utf-8")

    def read(self, name: str, original_size: Size | None = None, digest: str | None = None) -> EncodedImage:
        """Return one image.

        Args:
          name: as it was written.
          original_size: height and width of the image that is meant, if they are known.
          digest: of the pixels of the image that is meant (`digest_of`), if they are known.

        Raises:
          ValueError: if it is not there, is damaged, or is of an image of another size or of other pixels.
        """
        batch = self.read_many([name])
        (height, width), (original_height, original_width) = batch.input_sizes[0], batch.original_sizes[0]
        there = int(original_height), int(original_width)
        if original_size not in (None, there):
            raise ValueError(
                f"{name} is {in_words(original_size)}, but the embedding of that name in {self.path} is of an image "
                f"{in_words(there)}."
            )
        if digest is not None and not self.has(name, digest):
            raise ValueError(
                f"{name} has been changed since its embedding in {self.path} was made, or is now read in another "
                "way (range, channels, page). sam-jax embed makes it anew."
            )
        features = features_of({what: value[0] for what, value in maps_of(batch.embeddings).items()})
        return EncodedImage(features, (int(height), int(width)), there)

    def read_many(self, names: Sequence[str]) -> EmbeddingBatch:
        """Return several images, read side by side.

        Raises:
          ValueError: naming those that are not there, or are damaged.
        """
        missing = [name for name in names if name not in self]
        if missing:
            raise ValueError(f"{self.path} has no embedding of {', '.join(missing)}.")
        maps = {what: np.empty((len(names), *shape), self.dtype) for what, shape in self.shapes.items()}
        sizes = np.empty((2, len(names), 2), int)
        opened = [self._opened(name) for name in names]
        for i, (name, arrays) in enumerate(zip(names, opened, strict=True)):
            try:
                pending = {what: array.result().read() for what, array in arrays.items()}
                attributes = self._attributes(name)
                sizes[:, i] = attributes["input_size"], attributes["original_size"]
                for what, values in pending.items():
                    maps[what][i] = values.result()
            except (KeyError, ValueError) as error:
                raise ValueError(f"The embedding of {name} in {self.path} is damaged: {error}") from error
        return EmbeddingBatch(features_of(maps), *sizes)

    def remove_leftovers(self, names: Sequence[str]) -> None:
        """Remove what a killed process was writing of the given images; no other process may be writing these."""
        remove_leftovers(self.path, names)

    def _attributes(self, name: str) -> dict[str, Any]:
        return json.loads((self.path / name / NAME).read_bytes())["attributes"]

    def _places(self, folder: Path) -> dict[str, Path]:
        """Where the maps of an image lie: one alone in the image's folder itself."""
        return {what: folder / what for what in self.shapes} if len(self.shapes) > 1 else {"embedding": folder}

    def _opened(self, name: str) -> dict[str, Any]:
        """Futures of the arrays of an image, which must be of the store's dtype and shapes."""
        return {
            what: tensorstore.open(_location(place), open=True, read=True, dtype=self.dtype, shape=self.shapes[what])
            for what, place in self._places(self.path / name).items()
        }

    def _check_maps(self, name: str, maps: dict[str, np.ndarray]) -> None:
        got = {what: value.shape for what, value in maps.items()}
        if got != self.shapes:
            raise ValueError(
                f"The store {self.path} has of each image {_in_list(self.shapes)}, got {_in_list(got)} for {name}."
            )
        for what, value in maps.items():
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise ValueError(f"{what} must be floats, got {describe(value)} for {name}.")

    def _write_array(self, folder: Path, values: np.ndarray, attributes: dict[str, Any]) -> None:
        metadata = {
            "shape": values.shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": values.shape}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
            "attributes": attributes,
            "dimension_names": ["h", "w", "c"],
        }
        array = tensorstore.open(_location(folder) | {"metadata": metadata}, create=True).result()
        array.write(values.astype(self.dtype)).result()

    def _description(self) -> dict[str, Any]:
        attributes = dataclasses.asdict(self) | {"format": _FORMAT}
        del attributes["path"]
        return attributes

    def _check_same(self, other: "EmbeddingStore") -> None:
        for field in ("provenance", "dtype", "shapes", "image_size"):
            there, asked = getattr(other, field), getattr(self, field)
            if there != asked:
                what = field.removesuffix("s")
                raise ValueError(f"{self.path} has embeddings of another {what}: {there}, and {asked} is asked for.")


def digest_of(pixels: UInt8[np.ndarray, "height width 3"]) -> str:
    """Return the SHA-256 of an image's size and pixels."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _group(attributes: dict[str, Any]) -> str:
    """The `zarr.json` of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2) + "\n"


def _in_list(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{what} {list(shape)}" for what, shape in shapes.items())


def _location(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder.resolve())}}


def _checked(name: str) -> str:
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"An image's name must be a single part of a path that begins with no dot, got {name!r}.")
    return name
