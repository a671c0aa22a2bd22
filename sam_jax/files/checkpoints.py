"""Checkpoints on disk: `save` writes one orbax folder, `load` reads that and every PyTorch file the converter knows."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.atomic import written_whole
from sam_jax.convert.download import locate
from sam_jax.convert.encoders import TABLES, encoder_from_torch, identify_encoder
from sam_jax.convert.reader import open_checkpoint
from sam_jax.convert.state_dict import from_torch
from sam_jax.convert.tables.gaps import compare
from sam_jax.convert.tables.rules import DECODER, Table, flax_shapes
from sam_jax.decoder.model import Sam
from sam_jax.encoders.config import kind_of
from sam_jax.encoders.encoder import Encoder, make_encoder
from sam_jax.errors import CheckpointError
from sam_jax.files.manifest import ENCODER, NAME, ArraySpec, Manifest, Provenance, is_saved, sha256

Variables = dict[str, Any]
"""`{"params": ..., "constants": ...}`: nested dicts of arrays."""


def save(
    path: str | os.PathLike[str],
    model: Sam,
    variables: Variables,
    encoder: Encoder | None = None,
    encoder_variables: Variables | None = None,
    *,
    provenance: Provenance | None = None,
    overwrite: bool = False,
) -> None:
    """Write model and variables as one folder that `load` reads back bit for bit, on any number of devices.

    With an image encoder, `load_encoder` reads that from the same folder.

    The folder is an orbax checkpoint of `variables` with a `config.json` beside the arrays (`sam_jax.files.manifest`).
    It appears whole or not at all, and a checkpoint that it replaces is there until then. Of several processes, one
    saves.

    Args:
      path: the folder to make.
      model: its config is kept.
      variables: what `model.apply` takes; arrays of any device, or of several that this process can read.
      encoder: an image encoder to keep in the same folder.
      encoder_variables: what `encoder.apply` takes.
      provenance: where the weights come from.
      overwrite: replace a checkpoint that is at `path` already.

    Raises:
      CheckpointError: if the variables are not those of the model, or of the encoder.
      FileExistsError: if `path` exists and `overwrite` is false, or is something else than such a folder.
    """
    target = Path(path).expanduser()
    variables, encoder_variables = map(_without_empty, jax.device_get((variables, encoder_variables or {})))
    arrays = _described(variables)
    _check_arrays(model.config, DECODER, arrays, "The variables")
    if encoder:
        of_encoder = _described(encoder_variables)
        _check_arrays(encoder.config, TABLES[kind_of(encoder.config)], of_encoder, "The encoder's variables")
        arrays |= {f"{ENCODER}/{name}": array for name, array in of_encoder.items()}
    if target.is_dir() and any(target.iterdir()) and not is_saved(target):
        raise FileExistsError(f"{target} is a folder of something else than a checkpoint and is not replaced.")
    with written_whole(target, overwrite=overwrite) as folder:
        with _checkpointer() as checkpointer:
            checkpointer.save(folder, variables)
            if encoder:
                checkpointer.save(folder / ENCODER, encoder_variables)
        of_encoder = encoder.config if encoder else None
        Manifest.of(folder, model.config, provenance or Provenance(), arrays, of_encoder).write(folder)


def load(
    path: str | os.PathLike[str], *, family: str | None = None, prefix: str | None = None, dtype: Any = None
) -> tuple[Sam, Variables]:
    """Read a checkpoint of any kind: the model, and its variables on the default device.

    Arrays keep the dtype that they are stored in, except that JAX makes float64 float32 unless `jax_enable_x64` is set.
    To train them, ask for `dtype="float32"`: steps of an optimizer are lost in 16 bits, or overflow.

    Args:
      path: a folder that `save` or `sam-jax convert` made, a `.pth`, `.pt` or `.safetensors` file, a Hugging Face
        folder, the name of a published checkpoint such as `sam_vit_b`, or a repository of the Hugging Face Hub,
        `owner/name` or `owner/name@revision`. What is not there is downloaded once.
      family: a name of `sam_jax.convert.tables.families.FAMILIES`, for settings that a file does not tell; found out by
        default.
      prefix: what stands before the names of the decoder that is meant, where a file has several.
      dtype: of the parameters, instead of the stored one.

    Raises:
      CheckpointError: if there is no such checkpoint, or it is damaged, unfinished, or of another kind.
      ValueError: if there is no such family.
    """
    found = locate(path).path
    if is_saved(found):
        _refuse_prefix(found, prefix)
        model, variables, _ = restore(found, family=family)
    else:
        checkpoint = open_checkpoint(found)
        conversion = from_torch(checkpoint.tensors, family=family, prefix=prefix, settings=checkpoint.settings)
        model, variables = Sam(conversion.config), jax.tree.map(jnp.asarray, conversion.variables)
    if dtype is not None:
        variables |= {"params": jax.tree.map(lambda x: x.astype(dtype), variables["params"])}
    return model, variables


def load_encoder(
    path: str | os.PathLike[str], *, family: str | None = None, prefix: str | None = None
) -> tuple[Encoder, Variables]:
    """Read the image encoder of a checkpoint of any kind, and its variables on the default device.

    `encoder.apply(variables, frame)` makes the image embedding [h, w, c] of a frame from
    `sam_jax.images.preprocess.prepare`.

    Args:
      path: what `load` takes; a folder must have been made with the encoder.
      family: as for `load`.
      prefix: as for `load`.

    Raises:
      CheckpointError: if there is no such checkpoint, it is damaged, or it has no image encoder that is known.
      ValueError: if there is no such family.
    """
    found = locate(path).path
    if is_saved(found):
        _refuse_prefix(found, prefix)
        return restore_encoder(found, family=family)
    checkpoint = open_checkpoint(found)
    conversion = encoder_from_torch(checkpoint.tensors, family=family, prefix=prefix, settings=checkpoint.settings)
    return make_encoder(conversion.config), jax.tree.map(jnp.asarray, conversion.variables)


def _refuse_prefix(folder: Path, prefix: str | None) -> None:
    if prefix is not None:
        raise ValueError(f"A prefix is for PyTorch's files, and {folder} is a folder that sam-jax made.")


def restore(folder: Path, *, family: str | None = None) -> tuple[Sam, Variables, Provenance]:
    """Read what `save` wrote: the model, its variables on the default device, and where they come from.

    Raises:
      CheckpointError: if the folder is unfinished, damaged, not of the family where one is given, or holds other arrays
        than its config asks for.
    """
    manifest = _manifest(folder, family)
    variables = _restore_part(folder, manifest, "", manifest.config, DECODER)
    return Sam(manifest.config), variables, manifest.provenance


def restore_encoder(folder: Path, *, family: str | None = None) -> tuple[Encoder, Variables]:
    """Read the image encoder that `save` wrote, and its variables on the default device.

    Raises:
      CheckpointError: if the folder has none, or as for `restore`.
    """
    manifest = _manifest(folder, family)
    config = manifest.encoder
    if config is None:
        raise CheckpointError(
            f"{folder} has no image encoder. To keep it, convert the original checkpoint with `sam-jax convert"
            " --encoder`, or give it to `sam_jax.save`."
        )
    return make_encoder(config), _restore_part(folder, manifest, ENCODER, config, TABLES[kind_of(config)])


def _manifest(folder: Path, family: str | None) -> Manifest:
    manifest = Manifest.read(folder)
    if family not in (None, manifest.provenance.family):
        raise CheckpointError(f"{folder} is of the family {manifest.provenance.family}, and {family} is asked for.")
    return manifest


def _restore_part(folder: Path, manifest: Manifest, part: str, config: Any, table: Table) -> Variables:
    """Read the arrays of the decoder or of the encoder. Files of the other are not looked at."""
    manifest.check_files(folder, part)
    arrays = manifest.arrays_of(part)
    _check_arrays(config, table, arrays, f"The arrays of {folder}")
    target = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    try:
        with _checkpointer() as checkpointer:
            variables = checkpointer.restore(folder.resolve() / part, unflatten_dict(target, sep="/"))
    except Exception as error:  # orbax believes its files: forged ones end in any kind
        raise CheckpointError(f"The arrays of {folder} cannot be read: {error}") from error
    return jax.tree.map(jnp.asarray, variables)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Return a checkpointer of this process alone, which does not wait for others that may not be saving."""
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"sam_jax_{here}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _without_empty(variables: Variables) -> Variables:
    """Leave out dicts that hold no array: the manifest lists arrays, so `load` would not ask for such a dict again."""
    return unflatten_dict(flatten_dict(variables))


def _described(variables: Variables) -> dict[str, ArraySpec]:
    leaves: dict[str, Any] = flatten_dict(variables, sep="/")
    return {name: ArraySpec(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}


def _check_arrays(config: Any, table: Table, arrays: dict[str, ArraySpec], whose: str) -> None:
    gaps = compare(arrays, flax_shapes(config, table), {name: name for name in arrays})
    if gaps:
        raise CheckpointError(f"{whose} do not fit the model's config.\n{gaps}")


def provenance_of(
    checkpoint: str | os.PathLike[str], family: str | None = None, prefix: str | None = None
) -> Provenance:
    """Return where a checkpoint's weights come from: as its manifest says, else by its files themselves.

    Of a folder that no digest is known of, such as a fine-tuned one, it is that of its list of files.

    Args:
      checkpoint: what `load` takes.
      family: as in `load`.
      prefix: as in `load`.
    """
    source = locate(checkpoint)
    if is_saved(source.path):
        found = Manifest.read(source.path).provenance
        return found if found.sha256 else dataclasses.replace(found, sha256=sha256(source.path / NAME))
    opened = open_checkpoint(source.path)
    found = identify_encoder(opened.tensors, family=family, prefix=prefix, settings=opened.settings).family
    return Provenance(found.name, source.name, sha256(*opened.files), found.licence, source.commit)
