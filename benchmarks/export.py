"""Size of the exported decoder, and how soon a process with jax alone has its first masks.

    python benchmarks/export.py

prints JSON: MB of the artefact, and medians of three processes' seconds: importing jax, reading the artefact, the first
call (compiling for one image with one click), a second call.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import sam_jax
from sam_jax.commands.random_weights import random_state_dict
from sam_jax.convert import from_torch

REPEATS = 3
RUN = """
import json, sys, time
stamps = [time.perf_counter()]
def stamp(): stamps.append(time.perf_counter())
import jax, jax.export, numpy as np
jax.devices()
stamp()
decoder = jax.export.deserialize(open(sys.argv[1], "rb").read())
stamp()
call = jax.jit(decoder.call)
inputs = np.zeros((1, 64, 64, 256), np.float32), np.full((1, 1, 2, 2), 9, np.float32), np.array([[[1, -1]]], np.int32)
for _ in range(2):
    jax.block_until_ready(call(*inputs))
    stamp()
print(json.dumps([b - a for a, b in zip(stamps, stamps[1:])]))
"""


def main() -> None:
    conversion = from_torch(random_state_dict(sam_jax.SamConfig()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder"
        sam_jax.export_decoder(path, sam_jax.Sam(conversion.config), conversion.variables)
        program = path / "decoder.stablehlo"
        command = [sys.executable, "-P", "-c", RUN, str(program)]
        runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(REPEATS)]
        seconds = [round(statistics.median(run), 2) for run in zip(*runs, strict=True)]
        names = ("importing jax", "reading", "first call", "second call")
        print(
            json.dumps(
                {"mb": round(program.stat().st_size / 1e6, 1)} | dict(zip(names, seconds, strict=True)), indent=2
            )
        )


if __name__ == "__main__":
    main()
