"""A folder of image embeddings in, a folder of masks out: over all processes and devices, and as many runs as it takes.

An image is `NAME.npz` with the array `embedding` [h, w, c] and its prompts, named and shaped as in `Prompts.build`:
`points`, `labels`, `boxes` and `masks`, one entry per prompt set. Ragged ones go to `NAME.json` beside it instead, an
object of lists: `{"points": [[[x, y], ...], ...], "labels": [[1, ...], ...], "boxes": [[x0, y0, x1, y1], null, ...]}`.
Where the decoder takes more maps of an image, they are in `NAME.npz`, too: `early` [h, w, e] for SAM-HQ, `stride_8`
[2h, 2w, c/4] and `stride_4` [4h, 4w, c/8] for SAM 2 (`sam_jax.ImageFeatures`).

A result is `NAME.npz` with `iou` [prompt set, mask] and `logits` [prompt set, mask, 4h, 4w], all masks, mask 0 first,
and what else the decoder has, as in `sam_jax.MaskPrediction`: `object_score` and `single` [prompt set] for SAM 2, `hq`
[prompt set, 4h, 4w] for SAM-HQ. Where binary masks are asked for, there are `masks` of the same shape instead of
`logits`, and SAM-HQ's mask is added to each of them already.
"""

import functools
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sam_jax.atomic import remove_leftovers, written_whole
from sam_jax.batch.decode import Sizes, round_up
from sam_jax.batch.predict import check_inputs, predict_masks
from sam_jax.batch.sharding import IMAGE, make_mesh, replicate, shard_inputs
from sam_jax.config import SamConfig
from sam_jax.decoder.features import MAPS, Features, check_maps, features_of, map_shapes
from sam_jax.decoder.model import MaskPrediction, Sam, Variables, outputs_of
from sam_jax.errors import describe
from sam_jax.prompts import Prompts
from sam_jax.walk import read_ahead, share_of_process

ARGUMENTS = ("points", "labels", "boxes", "masks")
AT_ONCE = 64
"""Prompt sets whose results a device holds at once: 64 MiB of logits at the usual size."""


class Image(NamedTuple):
    """One file to decode: `prompts` have the axis [prompt set]."""

    name: str
    features: Features
    prompts: Prompts


def predict_folder(
    model: Sam,
    variables: Variables,
    source: str | Path,
    target: str | Path,
    *,
    binary: bool = False,
    chunk: int | None = None,
    sizes: Sizes = Sizes(),  # noqa: B008 - frozen
    mesh: Mesh | None = None,
) -> list[Path]:
    """Decode every image of a folder and return the results that this process wrote; the files are described above.

    Each process of `jax.distributed` takes its share of the images and splits it over its own devices. A result appears
    whole or not at all, and one that is there already is not made again: after an interruption, the same call finishes
    the rest. The processes share nothing but the folders, in which only one run may be at work at a time.

    Args:
      model: the decoder.
      variables: its variables.
      source: the folder with the images.
      target: the folder for the results, made where missing.
      binary: write binary masks, compressed, instead of logits.
      chunk: how many prompt sets each device decodes at once, as in `predict_masks`.
      sizes: what the numbers of tokens, prompt sets and images are rounded up to. Images that are rounded alike are
        decoded together, up to the largest of `sizes.images` for each row of devices.
      mesh: devices of this process; by default all of them, one per image.

    Raises:
      ValueError: for folders or a mesh that cannot be used; or naming every file that cannot, when the others are done.
    """
    source, target = _check_folders(Path(source), Path(target))
    mesh = _check_mesh(mesh or make_mesh(jax.local_device_count(), jax.local_devices()))
    share = share_of_process(sorted(source.glob("*.npz")))
    remove_leftovers(target, {path.name for path in share})
    todo = [path for path in share if not (target / path.name).exists()]
    variables, problems, written = replicate(variables, mesh), [], []

    def decode(batch: list[Image]) -> MaskPrediction:
        inputs = shard_inputs(*_stack(batch), mesh, sizes)  # padded here, so that no result is cut and moved
        return predict_masks(model, variables, *inputs, chunk=chunk, sizes=sizes, mesh=mesh)

    with _progress() as progress:
        task = progress.add_task("Decoding", total=len(share), completed=len(share) - len(todo))
        batches = _batches(todo, model.config, sizes, mesh, problems)
        for batch, out in _one_ahead(batches, decode):
            for path in _write(target, batch, out, binary):
                written.append(path)
                progress.advance(task)
    if problems:
        raise ValueError(f"{len(problems)} of {len(share)} images were not decoded. {' '.join(problems)}")
    return written


def read_image(path: Path, config: SamConfig) -> Image:
    """Read one image and its prompts.

    Raises:
      ValueError: naming the file, for anything that keeps the image from being decoded.
    """
    try:
        arguments = _read_arrays(path)
        features = _features(arguments, config)
        if path.with_suffix(".json").exists():
            arguments |= _read_lists(path.with_suffix(".json"), arguments)
        unknown = sorted(set(arguments) - set(ARGUMENTS))
        if unknown or not arguments:
            raise ValueError(f"prompts must be some of {', '.join(ARGUMENTS)}; got {', '.join(unknown) or 'none'}.")
        prompts = Prompts.build(**arguments, images=False)
        check_inputs(config, features, prompts)
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be decoded: {error}") from error
    return Image(path.name, features, prompts)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise ValueError("it is no .npz file, or only the beginning of one.")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _read_lists(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    lists = json.loads(path.read_text())
    if not isinstance(lists, dict) or not all(isinstance(entries, list) for entries in lists.values()):
        raise ValueError(f"{path.name} must be an object of lists, got {describe(lists)}.")
    twice = sorted(set(lists) & set(arrays))
    if twice:
        raise ValueError(f"{', '.join(twice)} must be in the .npz file or in {path.name}, not in both.")
    return lists


def _features(arrays: dict[str, Any], config: SamConfig) -> Features:
    """The image's maps, taken out of a file's arrays."""
    wanted = map_shapes(config)
    if missing := [name for name in wanted if name not in arrays]:
        raise ValueError(f"it has no array named {' or '.join(missing)}.")
    maps = {name: _floats(name, arrays.pop(name)) for name in MAPS if name in arrays}
    check_maps(maps, wanted)
    return features_of(maps)


def _floats(name: str, array: np.ndarray) -> np.ndarray:
    """As float32, so that all images fit one program. numpy stores bfloat16 as two bytes of no type."""
    if array.dtype == np.dtype("V2"):
        array = array.view(jnp.bfloat16)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats, got {describe(array)}.")
    return array.astype(np.float32)


def _batches(
    paths: list[Path], config: SamConfig, sizes: Sizes, mesh: Mesh, problems: list[str]
) -> Iterator[list[Image]]:
    """Images that one program can decode together, as they are read. Files that cannot be are told in `problems`."""
    groups = defaultdict(list)
    for _, image in read_ahead(paths, functools.partial(read_image, config=config)):
        if isinstance(image, ValueError):
            problems.append(str(image))
            continue
        prompt_sets, tokens = image.prompts.labels.shape
        prompt_sets = round_up(prompt_sets, sizes.prompt_sets)
        key = prompt_sets, round_up(tokens, sizes.tokens), image.prompts.masks is None
        groups[key].append(image)
        if len(groups[key]) == mesh.shape[IMAGE] * max(1, min(sizes.images[-1], AT_ONCE // prompt_sets)):
            yield groups.pop(key)
    yield from groups.values()


def _stack(batch: list[Image]) -> tuple[Features, Prompts]:
    prompt_sets, tokens = np.max([image.prompts.labels.shape for image in batch], axis=0).tolist()
    prompts = [image.prompts.pad(tokens, prompt_sets) for image in batch]
    features = [image.features for image in batch]
    return jax.tree.map(lambda *x: np.stack(x), *features), jax.tree.map(lambda *x: np.stack(x), *prompts)


def _one_ahead(batches: Iterator[list[Image]], decode: Any) -> Iterator[tuple[list[Image], MaskPrediction]]:
    """Batches with their results, each handed out when the devices have the next one to work on."""
    last = None
    for batch in batches:
        current = batch, decode(batch)
        if last:
            yield last
        last = current
    if last:
        yield last


def _write(target: Path, batch: list[Image], out: MaskPrediction, binary: bool) -> Iterator[Path]:
    arrays = {name: np.asarray(array) for name, array in (_binary(out) if binary else outputs_of(out)).items()}
    save: Any = np.savez_compressed if binary else np.savez
    for i, image in enumerate(batch):
        mine = {name: _float32(array[i, : len(image.prompts.valid)]) for name, array in arrays.items()}
        with written_whole(target / image.name, overwrite=True) as path:
            save(path, **mine)
        yield target / image.name


def _binary(out: MaskPrediction) -> dict[str, Any]:
    """The arrays of a prediction with binary masks in place of logits."""
    arrays = outputs_of(out)
    logits, hq = arrays.pop("logits"), arrays.pop("hq", None)
    return arrays | {"masks": (logits if hq is None else logits + hq[..., None, :, :]) > 0}


def _float32(array: np.ndarray) -> np.ndarray:
    """Floats as float32, whatever the decoder computes in."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _check_folders(source: Path, target: Path) -> tuple[Path, Path]:
    source, target = source.expanduser(), target.expanduser()
    if not source.is_dir() or not any(source.glob("*.npz")):
        raise ValueError(f"source must be a folder with .npz files, got {source}.")
    if target.exists() and (not target.is_dir() or target.samefile(source)):
        raise ValueError(f"target must be a folder other than the source, got {target}.")
    target.mkdir(parents=True, exist_ok=True)
    return source, target


def _check_mesh(mesh: Mesh) -> Mesh:
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError("The mesh must have devices of this process alone: every process decodes its own images.")
    return mesh


def _progress() -> Progress:
    """The progress of the first process, whose share is like the others'."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), disable=jax.process_index() > 0)
