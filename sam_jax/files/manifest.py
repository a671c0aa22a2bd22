"""What a checkpoint folder says about itself in its `config.json`: readable without JAX, written last, read first."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import re
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes numpy know bfloat16 by name
import numpy as np

from sam_jax.config import SamConfig
from sam_jax.encoders.config import EncoderConfig, config_from_dict, config_to_dict
from sam_jax.errors import CheckpointError, describe

NAME = "config.json"
ENCODER = "encoder"
"""Of an image encoder: the folder of its files within the checkpoint, and what the paths of its arrays begin with."""

_ORBAX_FILES = ("_METADATA", "manifest.ocdbt")
_ARRAY = re.compile(r"(bfloat16|float(?:16|32|64))\[((?:[1-9]\d*(?:,[1-9]\d*)*)?)\]")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where weights come from; None for what is not known.

    Attributes:
      family: name of the family in `sam_jax.convert.tables.families`.
      source: name of the file or folder that was converted, or of the repository on the Hugging Face Hub, with the
        revision.
      sha256: of the source's weights, in hexadecimal.
      licence: of the weights.
      commit: hash of the repository's commit.
    """

    family: str | None = None
    source: str | None = None
    sha256: str | None = None
    licence: str | None = None
    commit: str | None = None


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array, written like `float32[256,128]`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def size(self) -> int:
        """How many numbers the array has."""
        return math.prod(self.shape)

    @classmethod
    def parse(cls, text: Any) -> "ArraySpec":
        """Read what `str` writes; ValueError for anything else."""
        match = _ARRAY.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"an array must be described like float32[256,128], got {describe(text)}")
        return cls(tuple(int(size) for size in match[2].split(",") if size), np.dtype(match[1]))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `config.json`.

    Attributes:
      config: settings of the decoder.
      provenance: where the weights come from.
      arrays: `/`-joined path of each leaf in the variables -> what it is.
      files: path of each other file in the folder -> its SHA-256, as the array files themselves have no checksum that
        would notice a flipped bit.
      version: of the library that wrote the folder.
      encoder: settings of the image encoder, where the folder has one.
    """

    config: SamConfig
    provenance: Provenance
    arrays: dict[str, ArraySpec]
    files: dict[str, str]
    version: str
    encoder: EncoderConfig | None = None

    @classmethod
    def of(
        cls,
        folder: Path,
        config: SamConfig,
        provenance: Provenance,
        arrays: dict[str, ArraySpec],
        encoder: EncoderConfig | None = None,
    ) -> "Manifest":
        """Describe a folder in which everything but the manifest has been written."""
        files = {name: sha256(path) for name, path in _files(folder).items()}
        return cls(config, provenance, arrays, files, importlib.metadata.version("sam-jax"), encoder)

    def arrays_of(self, part: str) -> dict[str, ArraySpec]:
        """Return the arrays of the decoder (`""`) or of the image encoder (`ENCODER`), by path in its variables."""
        return {_inner(name): array for name, array in self.arrays.items() if _part(name) == part}

    def write(self, folder: Path) -> None:
        """Write the manifest, which makes `folder` a checkpoint."""
        values = dataclasses.asdict(self) | {"arrays": {name: str(leaf) for name, leaf in self.arrays.items()}}
        del values["encoder"]
        if self.encoder:
            values["encoder"] = config_to_dict(self.encoder)
        (folder / NAME).write_text(json.dumps(values, indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read what `write` wrote.

        Raises:
          CheckpointError: if there is no manifest, or it is damaged or another program's.
        """
        try:
            return _parse(json.loads((folder / NAME).read_bytes()))
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is not a checkpoint, or not a finished one: it has no {NAME}.") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{folder / NAME} is damaged or not of sam-jax: {error}") from error

    def check_files(self, folder: Path, part: str) -> None:
        """Check the files of the decoder (`""`) or of the image encoder (`ENCODER`).

        Raises:
          CheckpointError: listing every file that is missing or not what was written.
        """
        found, wanted = _files(folder), {name: digest for name, digest in self.files.items() if _part(name) == part}
        missing = [f"{name} is missing" for name in wanted if name not in found]
        changed = [
            f"{name} is damaged" for name, digest in wanted.items() if name in found and sha256(found[name]) != digest
        ]
        if missing or changed:
            raise CheckpointError(f"The checkpoint {folder} is not whole: {'; '.join(missing + changed)}.")


def is_saved(path: Path) -> bool:
    """Whether a path is a folder that `sam_jax.save` made or began to make, rather than a file or another folder."""
    return any((path / name).is_file() for name in _ORBAX_FILES)


def sha256(*paths: Path) -> str:
    """Return the SHA-256 in hexadecimal of a file, or of several put together, reading in small pieces."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / NAME
    }


def _part(name: str) -> str:
    return ENCODER if name.startswith(f"{ENCODER}/") else ""


def _inner(name: str) -> str:
    return name.removeprefix(f"{ENCODER}/")


def _parse(values: Any) -> Manifest:
    keys = {field.name for field in dataclasses.fields(Manifest)}
    encoder = config_from_dict(values[ENCODER]) if isinstance(values, dict) and ENCODER in values else None
    values = _object("the manifest", values, keys if encoder else keys - {ENCODER})
    origin = {"commit": None} | _object("provenance", values["provenance"])  # which older folders do not have
    provenance = _object("provenance", origin, {field.name for field in dataclasses.fields(Provenance)})
    for name, value in provenance.items():
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be a text or null, got {describe(value)}")
    if not isinstance(values["version"], str):
        raise ValueError(f"version must be a text, got {describe(values['version'])}")
    return Manifest(
        config=SamConfig.from_dict(_object("config", values["config"])),
        provenance=Provenance(**provenance),
        arrays={name: ArraySpec.parse(text) for name, text in _object("arrays", values["arrays"]).items()},
        files=_object("files", values["files"]),
        version=values["version"],
        encoder=encoder,
    )


def _object(what: str, value: Any, keys: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and set(value) != keys):
        wanted = f" with the keys {', '.join(sorted(keys))}" if keys else ""
        raise ValueError(f"{what} must be a JSON object{wanted}, got {describe(value)}")
    return value
