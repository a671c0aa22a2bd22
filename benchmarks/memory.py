"""Peak resident memory against the number of prompt sets and of full-size masks; each case in a process of its own.

python benchmarks/memory.py            # prints JSON: MB beyond an idle process, and what of it is the result itself
"""

import argparse
import json
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np

import sam_jax
from sam_jax.commands.random_weights import random_state_dict
from sam_jax.convert import from_torch

MB = 1024**2
FULL_SIZE = {"input_size": (683, 1024), "original_size": (2000, 3000)}


def peak() -> float:
    """Peak resident memory of this process in MB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / MB


def decode(prompt_sets: int) -> dict[str, float]:
    """Decode clicks on one image."""
    conversion = from_torch(random_state_dict(sam_jax.SamConfig()))
    model, variables = sam_jax.Sam(conversion.config), conversion.variables
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((64, 64, 256), np.float32)
    points = rng.uniform(0, 1024, (prompt_sets, 1, 2))
    before = peak()
    out = sam_jax.predict_masks(
        model, variables, embedding, sam_jax.Prompts.build(points=points, labels=np.ones((prompt_sets, 1)))
    )
    jax.block_until_ready(out)
    return {"beyond_mb": peak() - before, "result_mb": (out.logits.nbytes + out.iou.nbytes) / MB}


def full_size(kind: str, number: int) -> dict[str, float]:
    """Make full-size masks of random low-res logits."""
    logits = np.random.default_rng(0).standard_normal((number, 256, 256), np.float32)  # no copy: it would be a peak
    before = peak()
    if kind == "rle":
        result = sum(len(mask["counts"]) for mask in sam_jax.rle_masks(logits, **FULL_SIZE))
    else:
        result = jax.block_until_ready(sam_jax.binary_masks(logits, **FULL_SIZE, packed=kind == "packed")).nbytes
    return {"beyond_mb": peak() - before, "result_mb": result / MB}


def alone(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return {name: round(value, 1) for name, value in pool.submit(function, *arguments).result().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt-sets", type=int, nargs="*", default=[64, 1024, 4096])
    parser.add_argument("--masks", type=int, default=1000)
    options = parser.parse_args()
    report = {
        "prompt sets on one image": {n: alone(decode, n) for n in options.prompt_sets},
        f"{options.masks} masks at 2000 x 3000": {
            kind: alone(full_size, kind, options.masks) for kind in ("bool", "packed", "rle")
        },
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
