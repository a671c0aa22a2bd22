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
from sam_jax.decoder.model import MaskPrediction, Sam, Variables, outputs_of
from sam_jax.fast.absorbed import decode_absorbed
from sam_jax.fast.fused import decode_fused
from sam_jax.fast.image_form import written_image
from sam_jax.fast.low_rank import decode_low_rank, prepare_image
from sam_jax.fast.platforms import on_cpu
from sam_jax.prompts import EMPTY, Prompts

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "manifest.json"

CPU_GROUPS, GROUPS = (CPU_CHUNK, 1), (CHUNK, 8)
"""How many prompt sets are decoded at once: as many times the first number as there are, and the rest by the last."""

FEW_TOKENS = (2, 8)
"""Prompt sets of so many tokens, with empty slots up to that, are decoded in the fastest form of each platform."""

Decode = Callable[[Prompts], MaskPrediction]


def export_decoder(
    path: str | Path,
    model: Sam,
    variables: Variables,
    *,
    platforms: Sequence[str] = PLATFORMS,
    masks: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a folder with serialised programs, weights inside, and a manifest that says how to call them.

    In a process that has jax alone, `read = lambda name: jax.export.deserialize((folder / name).read_bytes())` and
    `state = read("prepare.stablehlo").call(embeddings)` are what the images alone give, once per image, and
    `read("decode.stablehlo").call(*state, coordinates, labels)` returns low-res logits [image, prompt set, mask, 4h,
    4w] and scores [image, prompt set, mask]. On a TPU, `decode_tpu.stablehlo` is the second one. Numbers of images,
    prompt sets and tokens are free. Memory is bounded: beside the results, a few prompt sets exist at a time, the
    manifest's `chunk`.

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
    with written_whole(Path(path), overwrite=overwrite) as folder:
        write_programs(folder, model, variables, trace(model, variables, platforms, masks), masks)


def write_programs(
    folder: Path, model: Sam, variables: Variables, programs: dict[str, export.Exported], masks: bool
) -> None:
    """Write the programs and the manifest of an artefact."""
    maps = ["embeddings" if name == "embedding" else name for name in map_shapes(model.config)]
    state = [f"state_{i}" for i in range(len(programs["prepare"].out_avals))]
    arguments = [*state, "coordinates", "labels", *(["masks", "has_mask"] if masks else [])]
    platforms = list(programs["prepare"].platforms)
    results = list(outputs_of(jax.eval_shape(model.apply, variables, *model.example_inputs())))
    signatures = {name: (arguments, results) for name in programs} | {"prepare": (maps, state)}
    content = {name: bytes(program.serialize()) for name, program in programs.items()}
    described = {name: _described(name, content[name], programs[name], *signatures[name]) for name in programs}
    manifest = described | {
        "labels": {"empty slot": -2, "not a point": -1, "background": 0, "foreground": 1, "box corners": [2, 3]},
        "platforms": platforms,
        "precision": model.config.dtype,
        "chunk": {name: CPU_CHUNK if name == "cpu" else CHUNK for name in platforms},
        "config": dataclasses.asdict(model.config),
        "made_with": {name: version(name) for name in ("sam-jax", "jax")},
    }
    folder.mkdir()
    for name, program in content.items():
        (folder / _file(name)).write_bytes(program)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def trace(
    model: Sam, variables: Variables, platforms: Sequence[str], masks: bool = False
) -> dict[str, export.Exported]:
    """Return the programs for `platforms`, with symbolic numbers of images, prompt sets and tokens.

    JAX lowers a kernel for one platform alone, so `decode_tpu` is a program of its own.
    """
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

    def one_image(inputs: tuple[Any, Prompts]) -> tuple[Array, ...]:
        state, prompts = inputs
        run = functools.partial(in_groups, functools.partial(decode_prepared, model, variables, masks, state))
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
    programs = {"prepare": export.export(jax.jit(prepare), platforms=tuple(platforms))(*features)}
    others = [name for name in platforms if name != "tpu"]
    for name, of_name in (("decode", others), ("decode_tpu", ["tpu"] if "tpu" in platforms else [])):
        if of_name:
            programs[name] = export.export(jax.jit(decode), platforms=of_name)(*state, *of_prompts)
    return programs


def decode_prepared(model: Sam, variables: Variables, masks: bool, state: Any, prompts: Prompts) -> tuple[Array, ...]:
    """Return the outputs for prompt sets on one image, of which `prepare` made the state."""
    written = state if masks else state.written
    absorbed = functools.partial(decode_absorbed, model, variables, written)
    fused = functools.partial(decode_fused, model, variables, written, platforms=("tpu",))
    of_cpu: Decode = absorbed
    if not masks:
        of_cpu = functools.partial(by_tokens, functools.partial(decode_low_rank, model, variables, state), absorbed)
    return tuple(outputs_of(on_cpu(of_cpu, functools.partial(by_tokens, fused, absorbed), prompts)).values())


def by_tokens(few: Decode, many: Decode, prompts: Prompts) -> MaskPrediction:
    """Decode prompt sets in the form that their number of tokens asks for, which may be symbolic.

    It is known when a program is compiled, which then has that form alone.
    """

    def filled(slots: int, prompts: Prompts) -> MaskPrediction:
        labels = jnp.pad(prompts.labels, ((0, 0), (0, slots)), constant_values=EMPTY)[:, :slots]
        coordinates = jnp.pad(prompts.coordinates, ((0, 0), (0, slots), (0, 0)))[:, :slots]
        return few(dataclasses.replace(prompts, coordinates=coordinates, labels=labels))

    branches = [*(functools.partial(filled, slots) for slots in FEW_TOKENS), many]
    index = (jnp.int32(prompts.labels.shape[-1]) > jnp.array(FEW_TOKENS)).sum()
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


def _file(name: str) -> str:
    """Return the file of a program."""
    return f"{name}.stablehlo"


def _described(
    name: str, program: bytes, exported: export.Exported, arguments: list[str], results: list[str]
) -> dict[str, object]:
    """Return what the manifest says of a program."""
    return {
        "file": _file(name),
        "bytes": len(program),
        "sha256": hashlib.sha256(program).hexdigest(),
        "arguments": dict(zip(arguments, map(_spec, exported.in_avals), strict=True)),
        "results": dict(zip(results, map(_spec, exported.out_avals), strict=True)),
        "calling_convention_version": exported.calling_convention_version,
    }


def _spec(array: ShapedArray) -> dict[str, object]:
    return {"shape": [n if isinstance(n, int) else str(n) for n in array.shape], "dtype": array.dtype.name}
