"""What a first call costs: seconds of tracing, of compiling and in all, with a full-size decoder and a ViT encoder.

    python benchmarks/first_call.py

runs each call twice in a fresh process, without a persistent cache, and prints JSON: "programs" are those that the
first call compiled, "again" is the second call.
"""

import collections
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import sam_jax
from sam_jax.commands.bench import random_features, random_prompts
from sam_jax.commands.random_weights import random_state_dict
from sam_jax.encoders.config import VIT_B, VIT_H, VIT_L
from sam_jax.encoders.encoder import make_encoder

ENCODERS = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}
STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of the stages of a first call, of all of it, and of a second one."""
    spent, programs = collections.Counter[str](), 0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal programs
        if stage := STAGES.get(event):
            spent[stage] += seconds
            programs += stage == "compile"

    jax.monitoring.register_event_duration_secs_listener(listen)
    totals = []
    for _ in range(2):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        totals.append(time.perf_counter() - begin)
    figures = {stage: round(spent[stage], 2) for stage in STAGES.values()}
    return figures | {"first": round(totals[0], 2), "again": round(totals[1], 2), "programs": programs}


def random_decoder() -> tuple[sam_jax.Sam, Any]:
    """Return the full-size decoder with random weights."""
    config = sam_jax.SamConfig()
    return sam_jax.Sam(config), sam_jax.convert.from_torch(random_state_dict(config)).variables


def predict_masks(prompt_sets: int) -> dict[str, float]:
    """Measure `sam_jax.predict_masks` for one image."""
    model, variables = random_decoder()
    embedding, prompts = random_features(model), random_prompts(model, prompt_sets)
    return measured(lambda: sam_jax.predict_masks(model, variables, embedding, prompts))


def encode(name: str) -> dict[str, float]:
    """Measure what `Predictor.set_image` calls."""
    encoder = make_encoder(ENCODERS[name])
    frame = jnp.zeros((*encoder.config.image_size, 3))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), frame)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    image = np.zeros((600, 900, 3), np.uint8)
    return measured(lambda: sam_jax.encode_image(encoder, variables, image).embedding)


def predict() -> dict[str, float]:
    """Measure `Predictor.predict` for a click."""
    model, variables = random_decoder()
    image = sam_jax.EncodedImage(random_features(model), (683, 1024), (600, 900))
    return measured(lambda: sam_jax.predict_image(model, variables, image, [[400, 300]], [1]))


def main(encoders: tuple[Literal["vit_b", "vit_l", "vit_h"], ...] = ("vit_b",)) -> None:
    """Measure the first calls.

    Args:
      encoders: the image encoders to measure.
    """
    calls: dict[str, Any] = {f"predict_masks, {n} prompt sets": (predict_masks, n) for n in (1, 64)}
    calls |= {"Predictor.predict, a click": (predict,)}
    calls |= {f"Predictor.set_image, {name}": (encode, name) for name in encoders}
    figures = {}
    for name, (function, *arguments) in calls.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            figures[name] = pool.submit(function, *arguments).result()
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
