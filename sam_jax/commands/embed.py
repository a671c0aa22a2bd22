"""The `sam-jax embed` command: image files in, a store of their embeddings out."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from sam_jax.decoder.model import Variables
from sam_jax.encoders.encoder import Encoder
from sam_jax.files.checkpoints import load_encoder, provenance_of
from sam_jax.files.embeddings import EmbeddingStore, StoredDType, digest_of
from sam_jax.images.image_files import image_files
from sam_jax.images.pixels import EncodedImage, encode_image, encoded_shapes
from sam_jax.images.read import Reading, read_image
from sam_jax.walk import read_ahead


def run(
    paths: Sequence[Path],
    checkpoint: str,
    out: Path,
    console: Console,
    *,
    dtype: StoredDType = "bfloat16",
    reading: Reading = Reading(),  # noqa: B008 - frozen
    family: str | None = None,
    prefix: str | None = None,
) -> None:
    """Encode the images that the store does not have yet, or that were changed since, and write them to it.

    Args:
      paths: image files, and folders of them.
      checkpoint: what `sam_jax.load_encoder` takes.
      out: the store's folder, made where missing.
      console: where to say how it goes.
      dtype: of a new store.
      reading: how images are read.
      family: as in `sam_jax.load_encoder`.
      prefix: likewise.

    Raises:
      ValueError: for images, a checkpoint or a store that cannot be used; or naming every image that cannot be read,
        when the others are done.
    """
    files = image_files(paths)
    twice = [name for name, times in Counter(file.name for file in files).items() if times > 1]
    if twice:
        raise ValueError(f"A store keeps images by their files' names, and there are several of {', '.join(twice)}.")
    with console.status(f"Loading {checkpoint}"):
        encoder, variables = load_encoder(checkpoint, family=family, prefix=prefix)
        provenance = provenance_of(checkpoint, family, prefix)
        shapes = encoded_shapes(encoder, variables)
        store = EmbeddingStore.create(out, shapes, encoder.config.prompt_frame, dtype, provenance)
    todo = [file for file in files if not store.written_after(file.name, file, reading)]
    store.remove_leftovers([file.name for file in todo])
    problems: list[str] = []
    before = None
    # An image is written while the device encodes the next.
    encoded = _encode(encoder, variables, todo, reading, problems)
    for current in track(encoded, "Encoding", total=len(todo), console=console):
        if before:
            store.write(*before, reading)
        before = current
    if before:
        store.write(*before, reading)
    there = f", {len(files) - len(todo)} were there" if len(todo) < len(files) else ""
    console.print(f"Wrote {len(todo) - len(problems)} embeddings to {out}{there}")
    if problems:
        raise ValueError(f"{len(problems)} of {len(files)} images were not encoded. {' '.join(problems)}")


def _encode(
    encoder: Encoder, variables: Variables, files: Sequence[Path], reading: Reading, problems: list[str]
) -> Iterator[tuple[str, EncodedImage, str]]:
    """Images as they are handed to the device. Files that cannot be read are told in `problems`."""
    for file, pixels in read_ahead(files, functools.partial(read_image, reading=reading)):
        try:
            if isinstance(pixels, ValueError):
                raise pixels
            yield file.name, encode_image(encoder, variables, pixels), digest_of(pixels)
        except ValueError as error:
            problems.append(str(error))
