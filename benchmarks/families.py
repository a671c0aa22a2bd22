"""Prompt sets per second of SAM 2's and SAM-HQ's decoders beside their own packages, in one run.

    PYTHONPATH=tests python -m benchmarks.families --rounds 5

gives both sides the same full-size decoder with random weights and 64 one-click prompt sets on one image, and runs them
in turns. It prints JSON: medians of prompt sets a second, the median ratio, and the largest difference of the logits as
a share of the largest logit. Our image is prepared (`prepare_image`); theirs has no such step. Compilation is not in
the figures.
"""

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import tyro
from parity.relatives import HqDecoder, Sam2Decoder, random_relative, tensors_of
from random_model import FAMILIES, random_features

import sam_jax
from sam_jax import Prompts, Sam, SamConfig
from sam_jax.convert import from_torch

CLICKS = 64
CONFIGS = {
    "sam2": dataclasses.replace(SamConfig(), **FAMILIES["sam2"]),
    "sam_hq": SamConfig(hq=True, early_width=768),
}


def both_sides(name: str) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    """Return a function for each side, the package's first, that decodes all clicks and returns all low-res logits."""
    config = CONFIGS[name]
    theirs = random_relative(HqDecoder if config.hq else Sam2Decoder, config)
    model, variables = Sam(config), jax.device_put(from_torch(tensors_of(theirs)).variables)
    features = random_features(model=model)
    rng = np.random.default_rng(0)
    given = {"points": rng.uniform(0, 1024, (CLICKS, 1, 2)), "labels": np.ones((CLICKS, 1), int)}
    prompts = Prompts.build(**given)
    state = jax.jit(lambda variables, features: sam_jax.prepare_image(model, variables, features))(variables, features)

    @torch.inference_mode()
    def decode_theirs() -> np.ndarray:
        if config.hq:
            return theirs(features, False, False, **given)[0]
        return theirs(features, None, **given)[0][:, :1]

    def decode_ours() -> np.ndarray:
        out = sam_jax.predict_masks(model, variables, state, prompts)
        out = jax.tree.map(np.asarray, out)
        return out.logits[:, :1] + out.hq[:, None] if config.hq else out.logits[:, :1]

    return decode_theirs, decode_ours


def seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main(rounds: int = 5) -> None:
    """Compare both sides.

    Args:
      rounds: turns of each side.
    """
    figures: dict[str, Any] = {}
    for name in CONFIGS:
        sides = both_sides(name)
        theirs, ours = (side() for side in sides)
        turns = [[seconds(side) for side in sides] for _ in range(rounds)]
        torch_times, jax_times = (statistics.median(times) for times in zip(*turns, strict=True))
        figures[name] = {
            "package_per_second": round(CLICKS / torch_times, 1),
            "sam_jax_per_second": round(CLICKS / jax_times, 1),
            "times": round(statistics.median(a / b for a, b in turns), 2),
            "difference": float(f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.1e}"),
        }
    figures["load_average"] = os.getloadavg()[0]
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
