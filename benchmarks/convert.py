"""Time and memory of `sam-jax convert` and `sam-jax inspect` on a file laid out as ViT-H's official checkpoint.

    python benchmarks/convert.py

writes 2.5 GB of zeros beside a random decoder with PyTorch into a temporary folder, runs each command once to fill the
caches and three times for the figures, and prints JSON: medians of seconds, and peak resident memory in MB (pages of
mapped files included) beside that of a process that only imports JAX, Flax and orbax.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sam_jax.config import SamConfig
from sam_jax.convert.tables.rules import torch_shapes
from sam_jax.files.manifest import sha256

WIDTH, BLOCKS, HEADS, GRID, WINDOW = 1280, 32, 16, 64, 14
GLOBAL_BLOCKS = (7, 15, 23, 31)
IMPORTS = ("-P", "-c", "import jax, flax.linen, orbax.checkpoint; jax.devices()")
COMMAND = ("-P", "-c", "from sam_jax.commands.cli import main; main()")
REPEATS = 3


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of ViT-H's image encoder."""
    shapes = {
        "pos_embed": (1, GRID, GRID, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        "neck.0.weight": (256, WIDTH, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
        **{f"neck.{norm}.{leaf}": (256,) for norm in (1, 3) for leaf in ("weight", "bias")},
    }
    for block in range(BLOCKS):
        span = 2 * (GRID if block in GLOBAL_BLOCKS else WINDOW) - 1
        layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.lin1": (4, 1), "mlp.lin2": (1, 4)}
        of_block = {f"{norm}.{leaf}": (WIDTH,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")}
        of_block |= {f"attn.rel_pos_{axis}": (span, WIDTH // HEADS) for axis in "hw"}
        of_block |= {f"{layer}.weight": (rows * WIDTH, columns * WIDTH) for layer, (rows, columns) in layers.items()}
        of_block |= {f"{layer}.bias": (rows * WIDTH,) for layer, (rows, _) in layers.items()}
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in of_block.items()}
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


def write_checkpoint(path: Path) -> None:
    import torch  # here, because a process that is started counts the memory of the one that starts it

    encoder = {name: torch.zeros(shape) for name, shape in encoder_shapes().items()}
    torch.save(encoder | {name: torch.randn(shape) for name, shape in torch_shapes(SamConfig()).items()}, path)


def measure(*arguments: str | Path, folder: Path) -> tuple[float, float]:
    """Run Python once; return seconds and peak resident memory in MB."""
    # Modules are compiled once, as on any installation, wherever this one may write.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with exit code {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def median(*arguments: str | Path, folder: Path) -> tuple[float, float]:
    measure(*arguments, folder=folder)
    runs = [measure(*arguments, folder=folder) for _ in range(REPEATS)]
    return tuple(round(statistics.median(values), 2) for values in zip(*runs, strict=True))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "sam_vit_h.pth"
        writer = multiprocessing.get_context("spawn").Process(target=write_checkpoint, args=(source,))
        writer.start()
        writer.join()
        begin = time.perf_counter()
        sha256(source)
        hashing = time.perf_counter() - begin
        import_seconds, import_memory = median(*IMPORTS, folder=folder)
        inspect_seconds, inspect_memory = median(*COMMAND, "inspect", source, folder=folder)
        convert = (*COMMAND, "convert", source, "-o", folder / "out", "--overwrite")
        convert_seconds, convert_memory = median(*convert, folder=folder)
        figures = {
            "file_bytes": source.stat().st_size,
            "sha256_seconds": round(hashing, 2),
            "imports_seconds": import_seconds,
            "imports_peak_mb": import_memory,
            "convert_seconds": convert_seconds,
            "convert_peak_mb": convert_memory,
            "convert_peak_beyond_imports_mb": round(convert_memory - import_memory, 2),
            "inspect_seconds": inspect_seconds,
            "inspect_peak_mb": inspect_memory,
        }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
