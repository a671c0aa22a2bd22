"""What can be said of a checkpoint without reading its numbers, in rows for people."""

import collections
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sam_jax.config import SamConfig
from sam_jax.convert.download import Source, locate
from sam_jax.convert.encoders import identify_encoder
from sam_jax.convert.reader import open_checkpoint
from sam_jax.convert.reading.stored_tensor import Checkpoint
from sam_jax.convert.state_dict import identify, mixed_leaves, notes_on
from sam_jax.convert.tables.families import listing, version_of
from sam_jax.convert.tables.gaps import Described
from sam_jax.convert.tables.names import is_video
from sam_jax.convert.tables.rules import DECODER
from sam_jax.encoders.config import EncoderConfig, size_of, title_of
from sam_jax.errors import CheckpointError
from sam_jax.files.manifest import ENCODER, Manifest, is_saved

Row = tuple[str, str]
"""A label and a text."""


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a checkpoint is.

    Attributes:
      rows: everything that there is to say.
      problem: why it cannot be loaded; None if it can.
    """

    rows: tuple[Row, ...]
    problem: str | None = None


def inspect(checkpoint: str | os.PathLike[str], *, family: str | None = None, prefix: str | None = None) -> Inspection:
    """Look at a checkpoint.

    Args:
      checkpoint: what `sam_jax.load` takes.
      family: as in `sam_jax.load`; a folder has its own.
      prefix: likewise.

    Raises:
      CheckpointError: if it is not there, or cannot be opened at all.
    """
    source = locate(checkpoint)
    if is_saved(source.path):
        return _inspect_saved(source.path)
    return _inspect_torch(source, {"family": family, "prefix": prefix})


def _inspect_saved(folder: Path) -> Inspection:
    manifest = Manifest.read(folder)
    manifest.check_files(folder, "")
    manifest.check_files(folder, ENCODER)
    origin = manifest.provenance
    rows = [
        ("container", f"checkpoint folder of sam-jax {manifest.version}"),
        ("arrays", _summary(manifest.arrays_of("").values())),
        ("image encoder", _encoder(manifest.encoder, manifest.arrays_of(ENCODER).values())),
        *((label, text) for label, text in dataclasses.asdict(origin).items() if text),
        *_settings(manifest.config),
    ]
    return Inspection(tuple(rows))


def _inspect_torch(source: Source, choice: dict[str, str | None]) -> Inspection:
    checkpoint = open_checkpoint(source.path)
    rows = [("source", source.name), ("commit", source.commit)] if source.commit else []
    rows += [("container", checkpoint.container), ("tensors", _summary(checkpoint.tensors.values()))]
    rows += [("note", note) for note in checkpoint.notes]
    try:
        found = identify(checkpoint.tensors, settings=checkpoint.settings, **choice)
    except CheckpointError as error:
        return Inspection(tuple(rows), str(error))
    encoder, of_encoder, size = _inspect_encoder(checkpoint, choice)
    version = version_of(found.family, listing({name: tuple(x.shape) for name, x in checkpoint.tensors.items()}))
    ignored = {name: checkpoint.tensors[name] for name in found.ignored if name not in of_encoder}
    video = {name: tensor for name, tensor in ignored.items() if is_video(name)}
    rows += [
        ("family", f"{found.family.title} ({found.family.name})"),
        *([("size", size)] if size else []),
        *([("version", version)] if version else []),
        ("licence", found.family.licence),
        ("names", {"meta": "Meta's", "hf": "Hugging Face's"}[found.naming]),
        ("decoder", _summary(checkpoint.tensors[name] for name in found.sources.values())),
        ("image encoder", encoder),
        *([("for video only", _summary(video.values()))] if video else []),
        ("ignored", _summary(tensor for name, tensor in ignored.items() if name not in video)),
        *_settings(found.config),
    ]
    if not found.gaps:
        mixed = mixed_leaves(checkpoint.tensors, found, DECODER)
        rows += [("note", note) for note in notes_on(found.family, mixed, choice["family"])]
    return Inspection(tuple(rows), f"The decoder is not whole.\n{found.gaps}" if found.gaps else None)


def _inspect_encoder(checkpoint: Checkpoint, choice: dict[str, str | None]) -> tuple[str, set[str], str | None]:
    """Return what there is to say of a checkpoint's image encoder, and what is known: its tensors' names, its size."""
    try:
        found = identify_encoder(checkpoint.tensors, settings=checkpoint.settings, **choice)
    except CheckpointError as error:
        return str(error), set(), None
    size = size_of(found.config)
    if found.gaps:
        return f"It is not whole.\n{found.gaps}", set(), size
    own = [*found.sources.values()]
    return _encoder(found.config, [checkpoint.tensors[name] for name in own]), set(own), size


def _encoder(config: EncoderConfig | None, tensors: Iterable[Described]) -> str:
    if config is None:
        return "none"
    height, width = config.image_size
    return f"{title_of(config)} of {height} x {width} pixels, {_summary(tensors)}"


def _settings(config: SamConfig) -> Iterator[Row]:
    for name, value in dataclasses.asdict(config).items():
        yield name, " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _summary(tensors: Iterable[Described]) -> str:
    """Count tensors, and their numbers by dtype."""
    count, numbers = 0, collections.Counter[str]()
    for tensor in tensors:
        count += 1
        numbers[str(tensor.dtype)] += math.prod(tensor.shape)
    by_dtype = ", ".join(f"{number:,} {dtype}" for dtype, number in numbers.most_common())
    return f"{count}: {by_dtype}" if count else "none"
