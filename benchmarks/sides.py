"""Who is measured: our ways to decode, and the peers, each as a call to be timed."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from cases import Case
from peers import Given, Peer, as_arrays, fastest

import sam_jax
from sam_jax import Prompts, Sam, SamConfig
from sam_jax.batch import decode as ways
from sam_jax.commands.bench import Run

CHECKED = 4
"""How many prompt sets are compared with the official package's."""

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Way:
    """How we decode: `predict_masks` with these arguments."""

    path: ways.Path = "auto"
    precision: Precision = "float32"
    chunk: int | None = None
    devices: int = 1

    @property
    def name(self) -> str:
        """What sets it apart."""
        parts = [
            "sam-jax",
            self.path if self.path != "auto" else "",
            self.precision if self.precision != "float32" else "",
            f"chunk {self.chunk}" if self.chunk else "",
            f"{self.devices} devices" if self.devices > 1 else "",
        ]
        return " ".join(part for part in parts if part)


class Side(NamedTuple):
    """One that is measured: what it runs, how many prompt sets that decodes, and what XLA counts in our program."""

    run: Run
    sets: int
    masks: slice = slice(None)
    costs: dict[str, float] = {}  # noqa: RUF012 - never changed


def ours(way: Way, variables: Any, embeddings: np.ndarray, case: Case) -> Side:
    """Compile a way to decode."""
    model, prompts = Sam(SamConfig(dtype=way.precision)), Prompts.build(**case.prompts(), images=True)
    images = embeddings if case.images > 1 else embeddings[0]
    prompts = prompts if case.images > 1 else jax.tree.map(lambda x: x[0], prompts)
    prepare = jax.jit(lambda variables, image: sam_jax.prepare_image(model, variables, image))
    mesh = sam_jax.make_mesh(devices=jax.devices()[: way.devices]) if way.devices > 1 else None

    def decode(variables: Any, images: Any, prompts: Prompts) -> jax.Array:
        return sam_jax.predict_masks(
            model, variables, images, prompts, chunk=way.chunk, mesh=mesh, path=way.path
        ).logits

    arguments = (variables, prepare(variables, images) if case.prepared else images, prompts)
    if mesh:
        arguments = sam_jax.replicate(variables, mesh), *sam_jax.shard_inputs(*arguments[1:], mesh)
    arguments = jax.device_put(arguments)
    program = jax.jit(decode).lower(*arguments).compile()
    sets = case.images * case.sets
    in_loops = jax.default_backend() == "cpu" or mesh or sets > (way.chunk or ways.CHUNK)
    counted = {} if in_loops else program.cost_analysis()
    costs = {name: counted[key] for name, key in (("flops", "flops"), ("bytes", "bytes accessed")) if key in counted}
    return Side(lambda: program(*arguments), sets, costs=costs)


def can_decode(way: Way, case: Case) -> bool:
    return not (way.path == "low_rank" and case.mask) and case.sets % way.devices == 0


def peer_side(maker: Callable[[], Peer], embeddings: np.ndarray, given: Given, most: int) -> Side | str:
    """Return a peer's side, or why it cannot be measured."""
    try:
        peer = maker()
        images, sets = next(iter(given.values())).shape[:2]
        return Side(fastest(peer, embeddings, given, most), images * min(sets, most), peer.masks)
    except Exception as error:  # whatever a peer raises is its reason
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def first_logits(side: Side) -> np.ndarray:
    logits = side.run()
    logits = as_arrays(logits) if isinstance(logits, list) else np.asarray(logits, np.float32)
    return logits.reshape(-1, *logits.shape[-3:])[:CHECKED]
