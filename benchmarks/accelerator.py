"""What the decoder moves on a TPU or a GPU, counted without one: programs are compiled ahead of time.

    PYTHONPATH=tests python -m benchmarks.accelerator
    export JAX_PLATFORMS=cpu
    PYTHONPATH=tests python -m benchmarks.accelerator --device benchmarks/h100.txtpb --paths auto fused

The first wants `pip install "jax[tpu]"`, the second `"jax[cuda12]"`; neither needs the device or its driver.

Each prints a table, and JSON: for each program the megabytes that its instructions read and write for each prompt set,
the least time that the device needs for them, temporary memory, loops, kernels, and the seconds to compile. Megabytes
do not depend on this machine; an operand that a kernel reads twice counts once. "auto" is what `predict_masks` takes:
on a TPU "fused", the kernels, and on a GPU "absorbed" as long as none was measured there.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from accelerators import bytes_moved, compiled, gpu, tpu
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam_jax import Sam, SamConfig
from sam_jax.batch.decode import CHUNK

CASES: dict[str, dict[str, Any]] = {
    "64 clicks": {"prompt_sets": 64},
    "64 clicks, prepared image": {"prompt_sets": 64, "prepared": True},
    "1,024 clicks": {"prompt_sets": 1024},
    "64 clicks with masks": {"prompt_sets": 64, "masks": True},
    "1 click, prepared image": {"prompt_sets": 1, "prepared": True},
}
BANDWIDTH = {"TPU v5e": 819e9, "H100": 3.35e12}
"""Bytes a second."""

KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton")
"""What programs call kernels by."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, help="description of a GPU; by default a TPU v5e")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--paths", nargs="+", default=["auto", "absorbed", "low_rank", "plain"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    device, name = (tpu(), "TPU v5e") if options.device is None else (gpu(options.device), "H100")
    programs = [
        (case, path, dtype)
        for case in options.cases
        for path in options.paths
        for dtype in options.dtypes
        if possible(path, **CASES[case])
    ]
    console = Console(stderr=True)
    table = Table(title=f"{name}, for each prompt set")
    for column in ("case", "path", "dtype", "MB", "at least, us", "temporary MB", "loops", "kernels", "compiled in s"):
        table.add_column(column, justify="left" if column in ("case", "path", "dtype") else "right")
    rows = []
    for case, path, dtype in track(programs, "Compiling", console=console):
        start = time.perf_counter()
        program = compiled(device, Sam(SamConfig(dtype=dtype)), path=path, **CASES[case])
        seconds, text = time.perf_counter() - start, program.as_text()
        sets, memory = CASES[case]["prompt_sets"], program.memory_analysis()
        moved = bytes_moved(text, -(-sets // CHUNK)) / sets
        row = {
            "case": case,
            "path": path,
            "dtype": dtype,
            "MB": round(moved / 1e6, 1),
            "at least, us": round(moved / BANDWIDTH[name] * 1e6, 1),
            "temporary MB": round(memory.temp_size_in_bytes / 1e6),
            "loops": text.count(" while("),
            "kernels": sum(text.count(f'custom_call_target="{target}"') for target in KERNELS),
            "compiled in s": round(seconds),
        }
        rows.append(row)
        table.add_row(*map(str, row.values()))
    console.print(table)
    print(json.dumps({"device": name, "programs": rows}, indent=2))


def possible(path: str, prompt_sets: int, masks: bool = False, prepared: bool = False) -> bool:
    """Return whether a path can decode a case."""
    return not (path == "low_rank" and masks) and not (path == "plain" and prepared)


if __name__ == "__main__":
    main()
