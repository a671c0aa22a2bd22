"""The decoder as StableHLO programs that need only jax to run, on CPU, GPU and TPU, for any number of prompts."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.core import ShapedArray
from jaxtyping import Array

from sam_jax.atomic import written_whole
from sam_jax.batch.decode import CHUNK, CPU_CHUNK
from sam_jax.decoder.features import features_of, map_shapes
from sam_jax.decoder.model import Sam, Variables, outputs_of
from sam_jax.fast.absorbed import decode_absorbed
from sam_jax.fast.image_form import written_image
from sam_jax.fast.low_rank import decode_low_rank, prepare_image
from sam_jax.fast.platforms import on_cpu
from sam_jax.prompts import EMPTY, Prompts

PLATFORMS = ("cpu", "cuda", "tpu")
PREPARE, DECODE, MANIFEST = "prepare.stablehlo", "decode.stablehlo", "manifest.json"

CPU_GROUPS, GROUPS = (CPU_CHUNK, 1), (CHUNK, 8)
"""How many prompt sets are decoded at once: as many times the first number as there are, and the rest by the last."""

FEW_TOKENS = (2, 8)
"""Prompt sets of so many tokens, with empty slots up to that, are decoded in the fastest form of each platform."""


def export_decoder(
    path: str | Path,
    model: Sam,
    variables: Variables,
    *,
    platforms: Sequence[str] = PLATFORMS,
    masks: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a folder with two serialised programs, weights inside, and a manifest that says how to call them.

    In a process that has jax alone, `read = lambda name: jax.export.deserialize((folder / name).read_bytes())` and
    `state = read("prepare.stablehlo").call(embeddings)` are what the images alone give, once per image, and
    `read("decode.stablehlo").call(*state, coordinates, labels)` returns low-res logits [image, prompt set, mask, 4h,
    4w] and scores [image, prompt set, mask]. Numbers of images, prompt sets and tokens are free. Memory is bounded:
    beside the results, a few prompt sets exist at a time, the manifest's `chunk`.

    Where the decoder takes more maps of an image, they are arguments behind `embeddings`; what else it returns, such as
    an object score, comes behind the scores. The manifest has the names, in this order.

    Args:
      path: the folder to make.
      model: the decoder. In float32, every product is float32 on every platform.
      variables: its variables.
      platforms: what the programs are lowered for: cpu, cuda, tpu.
      masks: whether `decode` takes mask prompts and which of them count, as two more arguments. Without, it is faster.
      overwrite: replace an artefact that is at `path` already.

    Raises:
      ValueError: for an unknown platform.
      FileExistsError: if `path` exists and `overwrite` is false.
    """
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(unknown) or 'none'}.")
    prepare, decode = trace(model, variables, platforms, masks)
    maps = ["embeddings" if name == "embedding" else name for name in map_shapes(model.config)]
    state = [f"state_{i}" for i in range(len(prepare.out_avals))]
    arguments = [*state, "coordinates", "labels", *(["masks", "has_mask"] if masks else [])]
    results = outputs_of(jax.eval_shape(model.apply, variables, *model.example_inputs()))
    programs = {PREPARE: bytes(prepare.serialize()), DECODE: bytes(decode.serialize())}
    manifest = {
        "prepare": _described(PREPARE, programs[PREPARE], prepare, maps, state),
        "decode": _described(DECODE, programs[DECODE], decode, arguments, list(results)),
        "labels": {"empty slot": -2, "not a point": -1, "background": 0, "foreground": 1, "box corners": [2, 3]},
        "platforms": list(platforms),
        "precision": model.config.dtype,
        "chunk": {name: CPU_CHUNK if name == "cpu" else CHUNK for name in platforms},
        "config": dataclasses.asdict(model.config),
        "made_with": {name: version(name) for name in ("sam-jax", "jax")},
    }
    with written_whole(Path(path), overwrite=overwrite) as folder:
        folder.mkdir()
        for name, program in programs.items():
            (folder / name).write_bytes(program)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def trace(
    model: Sam, variables: Variables, platforms: Sequence[str], masks: bool = False
) -> tuple[export.Exported, export.Exported]:
    """Return `prepare` and `decode` lowered for `platforms` with symbolic numbers of images, prompt sets and tokens."""
    config = model.config
    maps = map_shapes(config)

    def prepared(*arrays: Array) -> Any:
        features = features_of(dict(zip(maps, arrays, strict=True)))
        if not masks:
            return prepare_image(model, variables, features)
        return written_image(model, variables, features)

    images, sets, tokens = export.symbolic_shape("images, prompt_sets, tokens")
    features = [jax.ShapeDtypeStruct((images, *shape), "float32") for shape in maps.values()]
    state, structure = jax.tree.flatten(jax.eval_shape(jax.vmap(prepared), *features))

    def prepare(*arrays: Array) -> tuple[Array, ...]:
        return tuple(jax.tree.leaves(jax.vmap(prepared)(*arrays)))

    def decode_set(state: Any, prompts: Prompts) -> tuple[Array, ...]:
        if masks:
            return tuple(outputs_of(decode_absorbed(model, variables, state, prompts)).values())
        return by_tokens(model, variables, state, prompts)

    def one_image(inputs: tuple[Any, Prompts]) -> tuple[Array, ...]:
        state, prompts = inputs
        run = functools.partial(in_groups, functools.partial(decode_set, state))
        return on_cpu(functools.partial(run, sizes=CPU_GROUPS), functools.partial(run, sizes=GROUPS), prompts)

    def decode(*arrays: Array) -> tuple[Array, ...]:
        coordinates, labels, *of_masks = arrays[len(state) :]
        mask_prompts, has_mask = of_masks or (None, None)
        prompts = Prompts(coordinates, labels, mask_prompts, has_mask, jnp.ones(labels.shape[:2], bool))
        return lax.map(one_image, (jax.tree.unflatten(structure, arrays[: len(state)]), prompts))

    shapes: list[Any] = [((images, sets, tokens, 2), "float32"), ((images, sets, tokens), "int32")]
    if masks:
        shapes += [((images, sets, *config.mask_size), "float32"), ((images, sets), "bool")]
    of_prompts = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    lower = functools.partial(export.export, platforms=tuple(platforms))
    return lower(jax.jit(prepare))(*features), lower(jax.jit(decode))(*state, *of_prompts)


def by_tokens(model: Sam, variables: Variables, state: Any, prompts: Prompts) -> tuple[Array, ...]:
    """Decode prompt sets on a prepared image in the form that their number of tokens asks for, which may be symbolic.

    It is known when a program is compiled, which then has that form alone.
    """
    tokens = prompts.labels.shape[-1]

    def few(slots: int, prompts: Prompts) -> tuple[Array, ...]:
        labels = jnp.pad(prompts.labels, ((0, 0), (0, slots)), constant_values=EMPTY)[:, :slots]
        coordinates = jnp.pad(prompts.coordinates, ((0, 0), (0, slots), (0, 0)))[:, :slots]
        prompts = dataclasses.replace(prompts, coordinates=coordinates, labels=labels)
        low_rank, absorbed = (functools.partial(form, model, variables) for form in (decode_low_rank, decode_absorbed))
        out = on_cpu(lambda p: low_rank(state, p), lambda p: absorbed(state.written, p), prompts)
        return tuple(outputs_of(out).values())

    def many(prompts: Prompts) -> tuple[Array, ...]:
        out = decode_absorbed(model, variables, state.written, prompts)
        return tuple(outputs_of(out).values())

    branches = [*(functools.partial(few, slots) for slots in FEW_TOKENS), many]
    index = (jnp.int32(tokens) > jnp.array(FEW_TOKENS)).sum()
    return lax.switch(index, branches, prompts)


def in_groups(function: Callable[[Any], Any], inputs: Any, sizes: tuple[int, int]) -> Any:
    """Map a function of a batch over groups of the leading axis, whose length may be symbolic.

    Groups are of the first size while they are full, then of the second one, the last of them filled up with zeros.
    """
    large, small = sizes
    number = jax.tree.leaves(inputs)[0].shape[0]
    inputs = jax.tree.map(lambda x: jnp.pad(x, [(0, large)] + [(0, 0)] * (x.ndim - 1)), inputs)
    whole, total = jnp.int32(number // large), jnp.int32(number)

    def run(size: int, first: Array, i: Array, out: Any) -> Any:
        start = first + i * size
        group = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), inputs)
        return jax.tree.map(lambda x, new: lax.dynamic_update_slice_in_dim(x, new, start, 0), out, function(group))

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[:large], inputs))
    out = jax.tree.map(lambda x: jnp.zeros((number + large, *x.shape[1:]), x.dtype), shapes)
    out = lax.fori_loop(0, whole, functools.partial(run, large, jnp.int32(0)), out)
    rest = -(-(total - whole * large) // small)
    out = lax.fori_loop(0, rest, functools.partial(run, small, whole * large), out)
    return jax.tree.map(lambda x: x[:number], out)


def _described(
    file: str, program: bytes, exported: export.Exported, arguments: list[str], results: list[str]
) -> dict[str, object]:
    """Return what the manifest says of a program."""
    return {
        "file": file,
        "bytes": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
        "arguments": dict(zip(arguments, map(_spec, exported.in_avals), strict=True)),
        "results": dict(zip(results, map(_spec, exported.out_avals), strict=True)),
        "calling_convention_version": exported.calling_convention_version,
    }


def _spec(array: ShapedArray) -> dict[str, object]:
    return {"shape": [n if isinstance(n, int) else str(n) for n in array.shape], "dtype": array.dtype.name}
