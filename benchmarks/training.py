"""A decoder training step, forward and backward, against the same step of the official package in PyTorch, in one run.

PYTHONPATH=tests python benchmarks/training.py    # needs the extra "parity"; prints JSON

The loss is the mean square of all logits plus that of the scores; the gradients are those of every parameter of the
mask decoder. PyTorch takes the prompt sets in groups whose activations fit the memory, and adds up gradients.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from parity.official import OfficialDecoder, random_decoder

import sam_jax
from sam_jax.bench import interleaved, machine, random_embedding, random_prompts
from sam_jax.convert import from_torch


def ours(
    model: sam_jax.Sam, variables: Any, embedding: Any, prompts: sam_jax.Prompts, path: str, remat: bool
) -> Callable[[], Any]:
    """Return a call of the jitted gradient step."""

    def loss(decoder: Any, image: Any, prompts: sam_jax.Prompts) -> jax.Array:
        changed = {**variables, "params": variables["params"] | {"mask_decoder": decoder}}
        out = sam_jax.predict_masks(model, changed, image, prompts, path=path)
        return jnp.square(out.logits).mean() + jnp.square(out.iou).mean()

    step = jax.jit(jax.value_and_grad(jax.checkpoint(loss) if remat else loss))
    decoder = variables["params"]["mask_decoder"]
    return lambda: step(decoder, embedding, prompts)


def theirs(official: OfficialDecoder, embedding: np.ndarray, prompts: sam_jax.Prompts, group: int) -> Callable[[], Any]:
    """Return a call of the official package's step."""
    image = torch.from_numpy(np.moveaxis(embedding, -1, 0)[None].copy())
    points, labels = torch.from_numpy(prompts.coordinates[:, :1].copy()), torch.from_numpy(prompts.labels[:, :1].copy())
    sets, decoder = len(points), official.mask_decoder

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        decoder.zero_grad()
        total = 0.0
        for start in range(0, sets, group):
            chosen = slice(start, start + group)
            with torch.no_grad():
                sparse, dense = official.prompt_encoder((points[chosen], labels[chosen]), None, None)
            logits, iou = decoder.predict_masks(image, official.prompt_encoder.get_dense_pe(), sparse, dense)
            loss = (logits.square().mean() + iou.square().mean()) * len(sparse) / sets
            loss.backward()
            total += loss.item()
        return total, {name: p.grad for name, p in decoder.named_parameters()}

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt-sets", type=int, default=64)
    parser.add_argument("--group", type=int, default=8, help="prompt sets that PyTorch takes at once")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    official = random_decoder(sam_jax.SamConfig())
    conversion = from_torch(official.tensors())
    official.mask_decoder.requires_grad_(True)
    model, variables = sam_jax.Sam(conversion.config), jax.tree.map(jnp.asarray, conversion.variables)
    embedding, prompts = random_embedding(model), random_prompts(model, options.prompt_sets)

    sides: dict[str, Callable[[], Any]] = {"official": theirs(official, embedding, prompts, options.group)}
    for path in ("plain", "absorbed", "low_rank"):
        for remat in (False, True):
            sides[path + (" remat" if remat else "")] = ours(model, variables, embedding, prompts, path, remat)
    losses = {name: float(run()[0]) for name, run in sides.items()}
    seconds = interleaved(sides, options.repeats)
    report = {
        "machine": machine(),
        "prompt sets": options.prompt_sets,
        "seconds": seconds,
        "times the official speed": {name: seconds["official"] / value for name, value in seconds.items()},
        "loss": losses,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
