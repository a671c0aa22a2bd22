"""The exported decoder: its size, how soon a process with jax alone has its first masks, and how fast it is then.

    python benchmarks/export.py

prints JSON: MB of the artefact; medians of three processes' seconds: importing jax, reading the artefact, the first
call (compiling for one image with one click), a second call; and for some numbers of prompt sets of a click each on a
prepared image, seconds per call of the artefact and of `predict_masks`, in turns in one process.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import sam_jax
from sam_jax.commands.bench import interleaved
from sam_jax.commands.random_weights import random_state_dict
from sam_jax.convert import from_torch

REPEATS, CALLS, PROMPT_SETS = 3, 9, (1, 16, 64)
RUN = """
import json, sys, time
stamps = [time.perf_counter()]
def stamp(): stamps.append(time.perf_counter())
import jax, jax.export, numpy as np
jax.devices()
stamp()
prepare, decode = (jax.export.deserialize(open(name, "rb").read()) for name in sys.argv[1:])
stamp()
prepare, decode = jax.jit(prepare.call), jax.jit(decode.call)
embedding = np.zeros((1, 64, 64, 256), np.float32)
prompts = np.full((1, 1, 2, 2), 9, np.float32), np.array([[[1, -1]]], np.int32)
for _ in range(2):
    jax.block_until_ready(decode(*prepare(embedding), *prompts))
    stamp()
print(json.dumps([b - a for a, b in zip(stamps, stamps[1:])]))
"""


def seconds_per_call(model: sam_jax.Sam, variables: object, files: list[Path]) -> dict[str, dict[str, float]]:
    """Return the seconds of the artefact and of `predict_masks`, by number of prompt sets."""
    programs = (jax.export.deserialize(bytearray(file.read_bytes())) for file in files)
    prepare, decode = (jax.jit(program.call) for program in programs)
    rng, figures = np.random.default_rng(0), {}
    embedding = rng.standard_normal((64, 64, 256), np.float32)
    ours = jax.jit(lambda *inputs: sam_jax.prepare_image(model, *inputs))(variables, embedding)
    state = prepare(embedding[None])
    for sets in PROMPT_SETS:
        points = rng.uniform(0, 1024, (sets, 1, 2))
        prompts = sam_jax.Prompts.build(points=points, labels=np.ones((sets, 1)), images=False)
        arrays = prompts.coordinates[None], prompts.labels[None]
        sides = {
            "artefact": lambda arrays=arrays: decode(*state, *arrays),
            "predict_masks": lambda prompts=prompts: sam_jax.predict_masks(model, variables, ours, prompts),
        }
        figures[str(sets)] = {name: round(seconds, 4) for name, seconds in interleaved(sides, CALLS).items()}
    return figures


def main() -> None:
    conversion = from_torch(random_state_dict(sam_jax.SamConfig()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder"
        model, variables = sam_jax.Sam(conversion.config), jax.device_put(conversion.variables)
        sam_jax.export_decoder(path, model, variables)
        files = [path / "prepare.stablehlo", path / "decode.stablehlo"]
        command = [sys.executable, "-P", "-c", RUN, *map(str, files)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(REPEATS)]
        seconds = [round(statistics.median(run), 2) for run in zip(*runs, strict=True)]
        names = ("importing jax", "reading", "first call", "second call")
        figures = {"mb": round(sum(file.stat().st_size for file in files) / 1e6, 1)}
        figures |= dict(zip(names, seconds, strict=True))
        print(json.dumps(figures | {"prompt sets": seconds_per_call(model, variables, files)}, indent=2))


if __name__ == "__main__":
    main()
