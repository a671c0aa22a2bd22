"""The decoder as a StableHLO artefact that needs only jax to run, on CPU, GPU and TPU, for any number of prompts."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.core import ShapedArray
from jaxtyping import Array

from sam_jax.atomic import written_whole
from sam_jax.decoder.features import features_of, map_shapes
from sam_jax.decoder.model import Sam, Variables, outputs_of
from sam_jax.prompts import Prompts

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, MANIFEST = "decoder.stablehlo", "manifest.json"


def export_decoder(
    path: str | Path,
    model: Sam,
    variables: Variables,
    *,
    platforms: Sequence[str] = PLATFORMS,
    masks: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a folder with the serialised program, weights inside, and a manifest that says how to call it.

    `jax.export.deserialize((folder / "decoder.stablehlo").read_bytes()).call(embeddings, coordinates, labels)` returns
    low-res logits [image, prompt set, mask, 4h, 4w] and scores [image, prompt set, mask] in a process that has jax
    alone. Numbers of images, prompt sets and tokens are free. All prompt sets of a call are decoded at once.

    Where the decoder takes more maps of an image, they are arguments behind `embeddings`; what else it returns, such as
    an object score, comes behind the scores. The manifest has the names, in this order.

    Args:
      path: the folder to make.
      model: the decoder.
      variables: its variables.
      platforms: what the program is lowered for: cpu, cuda, tpu.
      masks: whether the program takes mask prompts and which of them count, as two more arguments.
      overwrite: replace an artefact that is at `path` already.

    Raises:
      ValueError: for an unknown platform.
      FileExistsError: if `path` exists and `overwrite` is false.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(unknown) or 'none'}.")
    exported = trace(model, variables, platforms, masks)
    program = bytes(exported.serialize())
    maps = ["embeddings" if name == "embedding" else name for name in map_shapes(model.config)]
    arguments = [*maps, "coordinates", "labels", *(["masks", "has_mask"] if masks else [])]
    results = outputs_of(jax.eval_shape(model.apply, variables, *model.example_inputs()))
    manifest = {
        "arguments": dict(zip(arguments, map(_spec, exported.in_avals), strict=True)),
        "results": dict(zip(results, map(_spec, exported.out_avals), strict=True)),
        "labels": {"empty slot": -2, "not a point": -1, "background": 0, "foreground": 1, "box corners": [2, 3]},
        "platforms": list(platforms),
        "config": dataclasses.asdict(model.config),
        "program": {"file": PROGRAM, "bytes": len(program), "sha256": hashlib.sha256(program).hexdigest()},
        "calling_convention_version": exported.calling_convention_version,
        "made_with": {name: version(name) for name in ("sam-jax", "jax")},
    }
    with written_whole(Path(path), overwrite=overwrite) as folder:
        folder.mkdir()
        (folder / PROGRAM).write_bytes(program)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def trace(model: Sam, variables: Variables, platforms: Sequence[str], masks: bool = False) -> export.Exported:
    """Return the decoder lowered for `platforms` with symbolic numbers of images, prompt sets and tokens."""
    config = model.config

    maps = map_shapes(config)

    def decode(*arrays: Array) -> tuple[Array, ...]:
        features = features_of(dict(zip(maps, arrays, strict=False)))
        coordinates, labels, *of_masks = arrays[len(maps) :]
        mask_prompts, has_mask = of_masks or (None, None)
        prompts = Prompts(coordinates, labels, mask_prompts, has_mask, jnp.ones(labels.shape[:2], bool))
        per_set: Any = jax.vmap(functools.partial(model.apply, variables), (None, 0))
        return tuple(outputs_of(jax.vmap(per_set)(features, prompts)).values())

    images, sets, tokens = export.symbolic_shape("images, prompt_sets, tokens")
    shapes: list[Any] = [((images, *shape), "float32") for shape in maps.values()]
    shapes += [((images, sets, tokens, 2), "float32"), ((images, sets, tokens), "int32")]
    if masks:
        shapes += [((images, sets, *config.mask_size), "float32"), ((images, sets), "bool")]
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return export.export(jax.jit(decode), platforms=tuple(platforms))(*arguments)


def _spec(array: ShapedArray) -> dict[str, object]:
    return {"shape": [n if isinstance(n, int) else str(n) for n in array.shape], "dtype": array.dtype.name}
