"""How fast the decoder is here: what `sam-jax bench` measures and prints."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sam_jax.low_rank import prepare_image
from sam_jax.model import Sam, Variables
from sam_jax.predict import Path, decode, default_chunk, predict_masks
from sam_jax.prompts import Prompts


def random_prompts(model: Sam, prompt_sets: int, clicks: int = 1, kind: str = "clicks", seed: int = 0) -> Prompts:
    """Return random clicks, boxes, or masks with a click each, for one image.

    Args:
      model: its config says what the frame and the masks are like.
      prompt_sets: how many.
      clicks: of each prompt set.
      kind: "clicks", "boxes" or "masks".
      seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    height, width = model.config.image_size
    corners = np.sort(rng.uniform(0, (width, height), (prompt_sets, 2, 2)), axis=1)
    if kind == "boxes":
        return Prompts.build(boxes=corners.reshape(prompt_sets, 4))
    points, labels = (
        rng.uniform(0, (width, height), (prompt_sets, clicks, 2)),
        rng.integers(0, 2, (prompt_sets, clicks)),
    )
    masks = rng.normal(size=(prompt_sets, *model.config.mask_size)) * 5 if kind == "masks" else None
    return Prompts.build(points=points, labels=labels, masks=masks)


def random_embedding(model: Sam, seed: int = 0) -> np.ndarray:
    """Return an image embedding [h, w, c] of standard normal numbers."""
    shape = (*model.config.grid_size, model.config.width)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def interleaved(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side, measured in turns so that all see the same machine.

    Each is called once before, to compile.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        jax.block_until_ready(run())
    for _ in range(repeats):
        for name, run in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def first_call(model: Sam, variables: Variables, prompts: Prompts, path: Path = "auto") -> dict[str, float]:
    """Return the seconds that a first call spends on tracing and on compiling."""
    jax.clear_caches()
    start = time.perf_counter()
    lowered = decode.lower(model, variables, random_embedding(model), prompts, default_chunk(), path)
    traced = time.perf_counter()
    lowered.compile()
    return {"trace": traced - start, "compile": time.perf_counter() - traced}


def run(model: Sam, variables: Variables, prompt_sets: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure the decoder on random inputs, through the public functions.

    Args:
      model: the decoder.
      variables: its variables.
      prompt_sets: numbers of prompt sets on one image.
      repeats: of each measurement; medians are reported.
    """
    embedding = jax.device_put(random_embedding(model))
    state = jax.jit(prepare_image, static_argnums=0)(model, variables, embedding)
    one = random_prompts(model, 1)

    def call(image: Any, prompts: Prompts) -> Callable[[], Any]:
        return lambda: predict_masks(model, variables, image, prompts)

    many = {f"{n} prompt sets": call(embedding, random_prompts(model, n)) for n in prompt_sets}
    kinds = {
        "one click, prepared image": call(state, one),
        "one click, new image": call(embedding, one),
        "16 clicks": call(embedding, random_prompts(model, 1, clicks=16)),
        "a box": call(embedding, random_prompts(model, 1, kind="boxes")),
        "a mask and a click": call(embedding, random_prompts(model, 1, kind="masks")),
    }
    seconds = interleaved(many | kinds, repeats)
    return {
        "machine": machine(),
        "prompt sets a second": {n: n / seconds[f"{n} prompt sets"] for n in prompt_sets},
        "milliseconds": {name: 1000 * seconds[name] for name in kinds},
        "first call, seconds": first_call(model, variables, one),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
