"""One checkpoint made into another: what `sam-jax convert` does."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sam_jax.convert import (
    encoder_from_torch,
    encoder_to_torch,
    from_torch,
    identify,
    identify_encoder,
    open_checkpoint,
    own_metadata,
    to_torch,
)
from sam_jax.convert.download import Source, locate
from sam_jax.convert.encoders import IMAGE_ENCODER
from sam_jax.convert.state_dict import notes_on
from sam_jax.convert.tables.gaps import compare
from sam_jax.convert.tables.rules import Naming
from sam_jax.convert.writer import SUFFIXES, write_tensors
from sam_jax.errors import CheckpointError
from sam_jax.files.manifest import Manifest, Provenance, is_saved, sha256

if TYPE_CHECKING:  # importing JAX takes about as long as the hash of a file, and is done beside it
    from sam_jax.decoder.model import Sam
    from sam_jax.encoders.encoder import Encoder
    from sam_jax.files.checkpoints import Variables


def run(
    source: str,
    out: Path,
    *,
    naming: Naming = "meta",
    family: str | None = None,
    prefix: str | None = None,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    encoder: bool = False,
    base: str | None = None,
    overwrite: bool = False,
) -> "Contents":
    """Convert a checkpoint, and return what is in it.

    Args:
      source: what `sam_jax.load` takes.
      out: a .safetensors or .pth file, or the folder to make.
      naming: whose names the tensors of a file get.
      family: whose settings to use, where the source does not tell.
      dtype: of the trainable parameters.
      prefix: what stands before the names of the decoder that is meant, where the source has several.
      encoder: keep the image encoder, too.
      base: a PyTorch checkpoint whose tensors and names the file gets, with these weights in the place of its own.
      overwrite: replace what is at the output.

    Raises:
      CheckpointError: if the source is no checkpoint that can be converted.
      FileExistsError: if there is something at the output that may not be replaced.
      ValueError: if there is no such family, a naming is asked for where none is used, or a number is too large for the
        dtype.
    """
    to_file = out.suffix in SUFFIXES
    if naming != "meta" and not to_file:
        raise ValueError(f"--naming is for files that end in {', '.join(SUFFIXES)}: {out} becomes a folder.")
    if base is not None and not to_file:
        raise ValueError(f"--base is for files that end in {', '.join(SUFFIXES)}: {out} becomes a folder.")
    if base is not None and naming != "meta":
        raise ValueError("--naming and --base do not go together: the file gets the names of its base.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already. To replace it, add --overwrite.")
    located = locate(source)
    if is_saved(located.path):
        found = _restored(located.path, family, encoder)
    else:
        found = _converted(located, family, prefix, encoder)
    found = found._replace(
        variables=_cast(found.variables, dtype), encoder_variables=_cast(found.encoder_variables, dtype)
    )
    if to_file:
        _write_file(out, found, naming, base, overwrite)
    else:
        _write_folder(out, found, overwrite)
    return found


class Contents(NamedTuple):
    """What a checkpoint holds, and what its user should know. The encoder is None where none is there, or wanted."""

    model: "Sam"
    variables: "Variables"
    encoder: "Encoder | None"
    encoder_variables: "Variables | None"
    provenance: Provenance
    notes: tuple[str, ...] = ()


def _restored(folder: Path, family: str | None, encoder: bool) -> Contents:
    from sam_jax.files.checkpoints import restore, restore_encoder

    model, variables, provenance = restore(folder, family=family)
    kept = restore_encoder(folder, family=family) if encoder or Manifest.read(folder).encoder else (None, None)
    return Contents(model, variables, *kept, provenance)


def _converted(source: Source, family: str | None, prefix: str | None, encoder: bool) -> Contents:
    checkpoint = open_checkpoint(source.path)
    digest = _in_background(sha256, *checkpoint.files)
    arguments: Any = {"tensors": checkpoint.tensors, "settings": checkpoint.settings}
    arguments |= {"family": family, "prefix": prefix}
    decoder, kept = from_torch(**arguments), encoder_from_torch(**arguments) if encoder else None
    notes = [*notes_on(decoder.family, decoder.widened, family)]
    dropped = sum(IMAGE_ENCODER.search(name) is not None for name in decoder.ignored)
    if dropped and not encoder:
        notes.append(f"The image encoder ({dropped} tensors) is left out. To keep it, add --encoder.")

    from sam_jax.decoder.model import Sam  # here, because importing JAX takes about as long as the hash
    from sam_jax.encoders.encoder import make_encoder

    found = decoder.family
    provenance = Provenance(found.name, source.name, digest.result(), found.licence, source.commit)
    both = (make_encoder(kept.config), kept.variables) if kept else (None, None)
    return Contents(Sam(decoder.config), decoder.variables, *both, provenance, tuple(notes))


def _write_file(out: Path, found: Contents, naming: Naming, base: str | None, overwrite: bool) -> None:
    if base is not None:
        tensors = _written_into(base, found)
    else:
        tensors = to_torch(found.model, found.variables, naming)
        if found.encoder and found.encoder_variables:
            tensors |= encoder_to_torch(found.encoder, found.encoder_variables, naming)
    known = {name: text for name, text in asdict(found.provenance).items() if text}
    known |= own_metadata(found.model.config, found.encoder.config if found.encoder else None, found.provenance.family)
    write_tensors(out, tensors, metadata=known, overwrite=overwrite)


def _written_into(base: str, found: Contents) -> dict[str, Any]:
    """All tensors of a PyTorch checkpoint under its names, with these weights in the place of its own.

    Raises:
      CheckpointError: if its decoder, or its encoder where there is one to write, has other shapes.
    """
    checkpoint = open_checkpoint(locate(base).path)
    tensors = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    parts: list[Any] = [
        (identify(checkpoint.tensors, settings=checkpoint.settings), to_torch, found.model, found.variables)
    ]
    if found.encoder and found.encoder_variables:
        of_base = identify_encoder(checkpoint.tensors, settings=checkpoint.settings)
        parts.append((of_base, encoder_to_torch, found.encoder, found.encoder_variables))
    for place, write, model, variables in parts:
        ours = write(model, variables, place.naming)
        gaps = compare(
            {name: tensors[place.sources[name]] for name in ours if name in place.sources},
            {name: tensor.shape for name, tensor in ours.items()},
            place.sources,
        )
        if gaps:
            raise CheckpointError(f"The weights do not fit into {base}.\n{gaps}")
        tensors |= {place.sources[name]: tensor for name, tensor in ours.items()}
    return tensors


def _write_folder(out: Path, found: Contents, overwrite: bool) -> None:
    from sam_jax.files.checkpoints import save

    encoder = found.encoder, found.encoder_variables
    save(out, found.model, found.variables, *encoder, provenance=found.provenance, overwrite=overwrite)


def _in_background(function: Callable[..., Any], *arguments: Any) -> Future:
    """Call a function in a thread that does not keep the process alive, as an executor's would after an error."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _cast(variables: Any, dtype: str) -> Any:
    import jax
    import numpy as np

    def cast(path: Any, leaf: Any) -> Any:
        with np.errstate(over="ignore"):
            new = np.asarray(leaf).astype(dtype)
        if np.isfinite(leaf).all() and not np.isfinite(new).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} has numbers up to {np.abs(leaf).max():.4g}, which are too large for {dtype}.")
        return new

    if variables is None or dtype == "stored":
        return variables
    return variables | {"params": jax.tree_util.tree_map_with_path(cast, variables["params"])}
