"""Programs for accelerators, made without one, and what they move. libtpu compiles for a TPU on any x86-64 machine."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

import sam_jax
from sam_jax import Prompts, Sam
from sam_jax.decoder.features import features_of, map_shapes

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
WIDTHS = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "f16": 2, "s16": 2, "u16": 2, "pred": 1, "u8": 1, "s8": 1}
"""Bytes of the types in a compiled program."""

FIELDS = [field.name for field in dataclasses.fields(AbstractDevice)]
"""What JAX knows of a device that is not there."""

FREE = ("parameter", "bitcast", "get-tuple-element", "tuple", "constant")
"""Instructions that move nothing."""


@functools.cache
def tpu(topology: str = "v5e:2x2") -> SingleDeviceSharding:
    """Return a TPU core to compile for."""
    # Several processes may compile at once, and none asks the cloud what machine this is.
    os.environ.update(
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-4",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    return SingleDeviceSharding(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0])


def gpu(description: Path) -> SingleDeviceSharding:
    """Return a GPU to compile for, of a description as XLA writes it; needs `jax[cuda12]`, and no driver."""
    settings = {"target_config": description.read_text(), "topology": "1x1x1"}
    return SingleDeviceSharding(topologies.get_topology_desc(platform="cuda", topology_name="", **settings).devices[0])


@contextlib.contextmanager
def lowering_for(kind: str) -> Iterator[None]:
    """Let kernels be lowered for a GPU of some kind, as JAX names it: from 0.12 on it asks which one."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="cuda") if "platform" in FIELDS else None
    mesh = AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh) if device else contextlib.nullcontext():
        yield


def compiled(
    device: SingleDeviceSharding,
    model: Sam,
    prompt_sets: int,
    *,
    path: Any = "auto",
    masks: bool = False,
    prepared: bool = False,
) -> jax.stages.Compiled:
    """Return `predict_masks` of one click for each prompt set, on one image, compiled for a device."""
    config = model.config
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    image: Any = features_of(
        {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in map_shapes(config).items()}
    )
    if prepared:
        image = jax.eval_shape(functools.partial(sam_jax.prepare_image, model), variables, image)
    prompts = Prompts(
        coordinates=jax.ShapeDtypeStruct((prompt_sets, 2, 2), jnp.float32),
        labels=jax.ShapeDtypeStruct((prompt_sets, 2), jnp.int32),
        masks=jax.ShapeDtypeStruct((prompt_sets, *config.mask_size), jnp.float32) if masks else None,
        has_mask=jax.ShapeDtypeStruct((prompt_sets,), bool) if masks else None,
        valid=jax.ShapeDtypeStruct((prompt_sets,), bool),
    )

    def decode(variables: Any, image: Any, prompts: Prompts) -> Any:
        return sam_jax.predict_masks(model, variables, image, prompts, path=path, chunk=64)

    [of_device] = device.device_set
    with lowering_for(of_device.device_kind) if of_device.platform == "gpu" else contextlib.nullcontext():
        lowered = jax.jit(decode, in_shardings=device, out_shardings=device).lower(variables, image, prompts)
    return lowered.compile()


def bytes_moved(program: str, turns: int = 1) -> int:
    """Return what the instructions of a compiled program read and write in all, kernels included.

    Args:
      program: its text.
      turns: how often its loop runs.
    """
    total = _moved(program[program.index("\nENTRY") :])
    for body in re.findall(r" while\(.*body=(%[\w.\-]+)", program):
        total += turns * _moved(program[program.index(f"\n{body} (") :])
    return total


def _moved(computation: str) -> int:
    """What the instructions of the first computation of a text move."""
    sizes: dict[str, int] = {}
    total = 0
    for line in computation[: computation.index("\n}")].splitlines():
        found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([a-z\-]+)\((.*)", line)
        if not found:
            continue
        name, types, kind, operands = found.groups()
        sizes[name] = _bytes(types)
        if kind in (*FREE, "while") or kind.endswith(("-start", "-done")) or "AllocateBuffer" in line:
            continue
        read = [sizes.get(operand, 0) for operand in re.findall(r"%([\w.\-]+)", operands.split("), ")[0])]
        if "dynamic-update-slice" in f"{kind} {name}":  # in place: the array that is changed stays where it is
            total += 2 * (sum(read) - sizes[name])
        else:
            total += sizes[name] + sum(read)
    return total


def _bytes(types: str) -> int:
    """The bytes of an array, or of all arrays of a tuple."""
    arrays = re.findall(r"\b(" + "|".join(WIDTHS) + r")\[([\d,]*)\]", types)
    return sum(
        WIDTHS[dtype] * functools.reduce(lambda n, axis: n * int(axis), filter(None, shape.split(",")), 1)
        for dtype, shape in arrays
    )
