"""Prompt sets per second over 1, 2, 4 and 8 virtual devices of this machine's processor.

    python benchmarks/scaling.py

decodes clicks on one image with the full-size decoder and random weights, and prints JSON: medians of five rounds.
Strong scaling splits the same prompt sets over more devices, weak scaling gives each device as many.

Virtual devices share the processor's cores, of which a single device can use several, too. So this shows what splitting
costs, not what more hardware gains: throughput that stays where it was is as good as it gets.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax import Prompts, Sam, predict_masks
from sam_jax.batch.sharding import make_mesh, replicate, shard_inputs

DEVICES = (1, 2, 4, 8)
STRONG, WEAK = 16, 4  # prompt sets in all, and on each device
CHUNK = 2  # on each device, for every number of devices
REPEATS = 5


def random_variables(model: Sam) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.05, leaf.shape), leaf.dtype), shapes)


def decoder(model: Sam, variables: Any, devices: int, prompt_sets: int) -> Callable[[], None]:
    """Compile for a number of devices, and return what decodes once."""
    rng, config = np.random.default_rng(1), model.config
    mesh = make_mesh(devices=jax.devices()[:devices])
    points = rng.uniform(0, min(config.image_size), (prompt_sets, 1, 2))
    prompts = Prompts.build(points, np.ones((prompt_sets, 1), int))
    embedding = rng.standard_normal((*config.grid_size, config.width), np.float32)
    variables, inputs = replicate(variables, mesh), shard_inputs(embedding, prompts, mesh)

    def decode() -> None:
        jax.block_until_ready(predict_masks(model, variables, *inputs, chunk=CHUNK, mesh=mesh))

    decode()
    return decode


def timed(decode: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and seconds of all cores together."""
    wall, processor = time.perf_counter(), time.process_time()
    decode()
    return time.perf_counter() - wall, time.process_time() - processor


def row(devices: int, prompt_sets: int, times: Sequence[tuple[float, float]]) -> dict[str, float]:
    wall, processor = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "devices": devices,
        "prompt_sets": prompt_sets,
        "seconds": round(wall, 3),
        "fastest_seconds": round(min(times)[0], 3),
        "processor_seconds": round(processor, 3),
        "prompt_sets_per_second": round(prompt_sets / wall, 2),
    }


def scaling(model: Sam, variables: Any, prompt_sets: Sequence[int]) -> list[dict[str, float]]:
    decoders = [decoder(model, variables, *pair) for pair in zip(DEVICES, prompt_sets, strict=True)]
    rounds = [[timed(decode) for decode in decoders] for _ in range(REPEATS)]  # in turns: others may use the machine
    return [row(*given) for given in zip(DEVICES, prompt_sets, zip(*rounds, strict=True), strict=True)]


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    model = Sam()
    variables = random_variables(model)
    figures = {
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "strong": scaling(model, variables, [STRONG for _ in DEVICES]),
        "weak": scaling(model, variables, [WEAK * devices for devices in DEVICES]),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
