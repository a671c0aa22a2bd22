"""How fast the decoder is here: what `sam-jax bench` measures and prints."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from sam_jax.batch.decode import Path, decode_batch
from sam_jax.batch.predict import predict_masks
from sam_jax.decoder.features import Features, features_of, map_shapes
from sam_jax.decoder.model import Sam, Variables
from sam_jax.fast.low_rank import prepare_image
from sam_jax.images.plot import line_plot
from sam_jax.memory import peak_memory
from sam_jax.prompts import Prompts

Run = Callable[[], Any]

PAUSE, ENOUGH = 0.1, 0.1
"""Seconds before each measurement, and seconds that one lasts at least."""

FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")
"""What of a processor's instructions decides the speed of products."""

MB = 1024**2


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


def random_features(model: Sam, seed: int = 0) -> Features:
    """Return an image of standard normal numbers: the embedding [h, w, c], or all maps that the decoder takes."""
    rng = np.random.default_rng(seed)
    shapes = map_shapes(model.config)
    return features_of({name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def seconds_of(run: Run, at_least: float) -> float:
    """Return the mean seconds of a call, which is made again until that takes `at_least` so many in all."""
    calls, begin = 0, time.perf_counter()
    while True:
        jax.block_until_ready(run())
        calls += 1
        passed = time.perf_counter() - begin
        if passed >= at_least:
            return passed / calls


def in_turns(sides: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each side in each round, one side after the other, for others may use the machine.

    A first call compiles and is not timed. What a side leaves behind must not slow the next: threads of ONNX Runtime
    keep their cores busy for a while after a call, hence the pause; caches hold the side before, hence an untimed call
    where calls are short.
    """
    last = dict.fromkeys(sides, 0.0)
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(PAUSE)
            if last[name] < 3 * ENOUGH:
                jax.block_until_ready(run())
            last[name] = seconds_of(run, ENOUGH)
            turns[name].append(last[name])
    return turns


def interleaved(sides: Mapping[str, Run], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side, measured `in_turns`."""
    return {name: statistics.median(turns) for name, turns in in_turns(sides, repeats).items()}


def first_call(model: Sam, variables: Variables, prompts: Prompts, path: Path = "auto") -> dict[str, float]:
    """Return the seconds that a first call spends on tracing, on compiling, and on reading a program compiled before.

    Programs that were compiled in this process are forgotten.
    """
    features = random_features(model)

    def stages() -> tuple[float, float]:
        jax.clear_caches()
        begin = time.perf_counter()
        lowered = decode_batch.lower(model, variables, features, prompts, path=path)
        traced = time.perf_counter()
        lowered.compile()
        return traced - begin, time.perf_counter() - traced

    with tempfile.TemporaryDirectory() as folder, cached_in(folder):
        trace, compilation = stages()
        _, reading = stages()
    return {"trace": trace, "compile": compilation, "compile, from the persistent cache": reading}


@contextmanager
def cached_in(folder: str) -> Iterator[None]:
    """Keep every compiled program in a folder, and read it from there."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_enable_compilation_cache": True,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it takes a new folder only then
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def program_memory(model: Sam, variables: Variables, prompt_sets: int) -> dict[str, float]:
    """Return the MB that decoding clicks on one image allocates: for its result, and at its peak beside that."""
    prompts = random_prompts(model, prompt_sets)
    lowered = decode_batch.lower(model, variables, random_features(model), prompts)
    memory: Any = lowered.compile().memory_analysis()
    return {"result": memory.output_size_in_bytes / MB, "beside it": memory.temp_size_in_bytes / MB}


def run(model: Sam, variables: Variables, prompt_sets: Sequence[int], repeats: int) -> dict[str, Any]:
    """Measure the decoder on random inputs, through the public functions.

    Args:
      model: the decoder.
      variables: its variables.
      prompt_sets: numbers of prompt sets on one image.
      repeats: of each measurement; medians are reported.
    """
    description = machine()
    variables, features = jax.device_put((variables, random_features(model)))
    state = jax.jit(prepare_image, static_argnums=0)(model, variables, features)
    one = random_prompts(model, 1)

    def call(image: Any, prompts: Prompts) -> Run:
        return lambda: predict_masks(model, variables, image, prompts)

    many = {f"{n} prompt sets": call(features, random_prompts(model, n)) for n in prompt_sets}
    kinds = {
        "one click, prepared image": call(state, one),
        "one click, new image": call(features, one),
        "16 clicks": call(features, random_prompts(model, 1, clicks=16)),
        "a box": call(features, random_prompts(model, 1, kind="boxes")),
        "a mask and a click": call(features, random_prompts(model, 1, kind="masks")),
    }
    seconds = interleaved(many | kinds, repeats)
    return {
        "machine": description,
        "prompt sets a second": {n: n / seconds[f"{n} prompt sets"] for n in prompt_sets},
        "milliseconds": {name: 1000 * seconds[name] for name in kinds},
        "first call, seconds": first_call(model, variables, one),
        "memory of a call, MB": {n: program_memory(model, variables, n) for n in prompt_sets},
        "peak memory of the process, MB": peak_memory() / MB,
    }


def plot(report: Mapping[str, Any]) -> Image.Image:
    """Return a plot of what `run` returned: prompt sets a second against prompt sets on one image."""
    points = [(float(n), float(rate)) for n, rate in report["prompt sets a second"].items()]
    rates = {report["machine"]["device"]: points}
    return line_plot(rates, "prompt sets on one image", "prompt sets a second", doubling=True)


def machine() -> dict[str, Any]:
    """Return what the figures depend on, a measured product of matrices included."""
    cpuinfo = FilePath("/proc/cpuinfo")
    lines = [line.split(":") for line in cpuinfo.read_text().splitlines()] if cpuinfo.exists() else []
    known = {line[0].strip(): line[1].strip() for line in lines if len(line) == 2}
    flags = (known.get("flags") or known.get("Features", "")).split()
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processor": known.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "features": [name for name in FEATURES if name in flags],
        "load average": round(os.getloadavg()[0], 2),
        "product, float32 GFLOP/s": round(product_gflops(2048 if jax.default_backend() == "cpu" else 8192)),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def product_gflops(size: int) -> float:
    """Return the GFLOP a second of the fastest of five products of square float32 matrices."""
    x = jnp.ones((size, size))
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))
    multiply(x).block_until_ready()
    return 2e-9 * size**3 / min(seconds_of(lambda: multiply(x), 0) for _ in range(5))
