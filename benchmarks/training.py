"""A decoder training step, forward and backward, against the same step of the official package in PyTorch, in one run.

    PYTHONPATH=tests python benchmarks/training.py    # needs the extra "parity"; prints JSON

The loss is the mean square of all logits plus that of the scores; the gradients are those of every parameter of the
mask decoder. PyTorch takes the prompt sets in groups whose activations fit the memory, and adds up gradients; so does
ours with remat, which computes a group's activations again when their gradients are due. Peak memory is that of one
step in a process of its own, beyond what it had when everything but the step was there; of ours, compilation is part of
it.
"""

import functools
import json
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import tyro
from parity.official import OfficialDecoder, random_decoder

import sam_jax
from sam_jax.batch.decode import map_groups
from sam_jax.commands.bench import in_turns, machine, peak_memory, random_features, random_prompts
from sam_jax.convert import from_torch

Step = Callable[[], tuple[Any, Any]]
"""From nothing to the loss and the gradients."""

SIDES = ("official", "absorbed", "low_rank", "low_rank remat")


def ours(official: OfficialDecoder, name: str, prompt_sets: int, group: int) -> Step:
    """Return a call of the jitted gradient step."""
    path, _, remat = name.partition(" ")
    groups = functools.partial(map_groups, size=group) if remat else lambda function, inputs: function(inputs)
    model, variables = converted(official.tensors())
    embedding, prompts = jax.device_put(inputs(model, prompt_sets))

    def loss(decoder: Any, image: Any, prompts: sam_jax.Prompts) -> jax.Array:
        changed = variables | {"params": variables["params"] | {"mask_decoder": decoder}}
        state = sam_jax.prepare_image(model, changed, image) if path == "low_rank" else image

        def decode(prompts: sam_jax.Prompts) -> sam_jax.MaskPrediction:
            return sam_jax.predict_masks(model, changed, state, prompts, path=path)  # pyright: ignore

        out = groups(jax.checkpoint(decode) if remat else decode, prompts)
        return jnp.square(out.logits).mean() + jnp.square(out.iou).mean()

    step = jax.jit(jax.value_and_grad(loss))
    return lambda: step(variables["params"]["mask_decoder"], embedding, prompts)


def theirs(official: OfficialDecoder, prompt_sets: int, group: int) -> Step:
    """Return a call of the official package's step; its gradients are converted to our layout."""
    official.mask_decoder.requires_grad_(True)
    embedding, prompts = inputs(converted(official.tensors())[0], prompt_sets)
    image = torch.from_numpy(np.moveaxis(embedding, -1, 0)[None].copy())
    # Without the slot that stands for "not a point", which the official prompt encoder adds itself.
    points, labels = (torch.tensor(np.asarray(x)[:, :1]) for x in (prompts.coordinates, prompts.labels))

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        official.mask_decoder.zero_grad()
        total = 0.0
        for start in range(0, prompt_sets, group):
            chosen = slice(start, start + group)
            with torch.no_grad():
                sparse, dense = official.prompt_encoder((points[chosen], labels[chosen]), None, None)
            position = official.prompt_encoder.get_dense_pe()
            logits, iou = official.mask_decoder.predict_masks(image, position, sparse, dense)
            loss = (logits.square().mean() + iou.square().mean()) * len(sparse) / prompt_sets
            loss.backward()
            total += loss.item()
        return total, {f"mask_decoder.{name}": p.grad for name, p in official.mask_decoder.named_parameters()}

    return step


def inputs(model: sam_jax.Sam, prompt_sets: int) -> tuple[np.ndarray, sam_jax.Prompts]:
    return random_features(model), random_prompts(model, prompt_sets)


def converted(tensors: dict[str, np.ndarray]) -> tuple[sam_jax.Sam, Any]:
    conversion = from_torch(tensors)
    return sam_jax.Sam(conversion.config), jax.tree.map(jnp.asarray, conversion.variables)


def make_side(name: str, prompt_sets: int, group: int) -> Step:
    official = random_decoder(sam_jax.SamConfig())
    return theirs(official, prompt_sets, group) if name == "official" else ours(official, name, prompt_sets, group)


def gradients_of(name: str, step: Step) -> Any:
    """Return the gradients of a side as our tree of the mask decoder."""
    gradients = step()[1]
    if name != "official":
        return gradients
    tensors = random_decoder(sam_jax.SamConfig()).tensors() | {key: x.numpy() for key, x in gradients.items()}
    return converted(tensors)[1]["params"]["mask_decoder"]


def difference(gradients: Any, wanted: Any) -> float:
    """Return the norm of the difference of all gradients, as a share of their norm.

    Parameter by parameter would not do: the gradient of a key's bias is zero but for rounding.
    """
    return float(optax.tree.norm(optax.tree.sub(gradients, wanted)) / optax.tree.norm(wanted))


def memory_of(name: str, prompt_sets: int, group: int) -> float:
    """Return the MB that one step takes at its peak, in this process."""
    step = make_side(name, prompt_sets, group)
    before = peak_memory()
    jax.block_until_ready(step())
    return peak_memory() - before


def alone(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(prompt_sets: int = 64, group: int = 8, rounds: int = 3) -> None:
    """Compare.

    Args:
      prompt_sets: of one image, one click each.
      group: prompt sets whose activations exist at one time in PyTorch, and in ours with remat.
      rounds: turns of all sides.
    """
    memory = {name: round(alone(memory_of, name, prompt_sets, group)) for name in SIDES}
    sides = {name: make_side(name, prompt_sets, group) for name in SIDES}
    turns = in_turns(sides, rounds)
    reference = gradients_of("plain", make_side("plain", prompt_sets, group))
    report = {
        "machine": machine() | {"torch": torch.__version__},
        "prompt sets": prompt_sets,
        "seconds": {name: statistics.median(seconds) for name, seconds in turns.items()},
        "times the official speed": {
            name: statistics.median(b / a for a, b in zip(seconds, turns["official"], strict=True))
            for name, seconds in turns.items()
        },
        "peak memory of a step, MB": memory,
        "largest difference of a gradient from the plain form's": {
            name: difference(gradients_of(name, side), reference) for name, side in sides.items()
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
