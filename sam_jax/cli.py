"""The `sam-jax` command: one function per subcommand, each importing what is heavy when it runs."""

import json
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sam_jax.convert import from_torch, open_checkpoint, to_torch
from sam_jax.convert.writer import SUFFIXES, write_tensors
from sam_jax.errors import CheckpointError
from sam_jax.manifest import Provenance, is_saved, sha256

if TYPE_CHECKING:
    from sam_jax.checkpoints import Variables
    from sam_jax.model import Sam


def convert(
    source: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    naming: Literal["meta", "hf"] = "meta",
    family: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    overwrite: bool = False,
) -> None:
    """Convert a checkpoint between PyTorch and JAX.

    Args:
      source: a .pth, .pt or .safetensors file, a Hugging Face folder, a folder that this command made, or the name of a
        published checkpoint: sam_vit_b, sam_vit_l, sam_vit_h, mobile_sam.
      out: what to write: a .safetensors or (with PyTorch installed) .pth file, else a folder that sam_jax.load reads.
      naming: whose names the tensors of a file get, Meta's or Hugging Face's.
      family: whose settings to use, where the source does not tell; a wrong name lists them all.
      dtype: of the trainable parameters; the Gaussian matrix is kept as it is.
      overwrite: replace what is at the output.
    """
    from sam_jax.convert.download import locate

    to_file = out.suffix in SUFFIXES
    if naming != "meta" and not to_file:
        raise ValueError(f"--naming is for files that end in {', '.join(SUFFIXES)}: {out} becomes a folder.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists already. To replace it, add --overwrite.")
    path = locate(source)
    with Console(stderr=True).status(f"Converting {path.name}"):
        model, variables, provenance = _restored(path, family) if is_saved(path) else _converted(path, family)
        variables = variables | {"params": _cast(variables["params"], dtype)}
        if to_file:
            known = {name: text for name, text in asdict(provenance).items() if text}
            write_tensors(out, to_torch(model, variables, naming), metadata=known, overwrite=overwrite)
        else:
            from sam_jax.checkpoints import save

            save(out, model, variables, provenance=provenance, overwrite=overwrite)
    _print_rows([("wrote", str(out)), *((name, text or "unknown") for name, text in asdict(provenance).items())])


def inspect(file: Annotated[Path, tyro.conf.Positional]) -> None:
    """Say what a checkpoint is, without reading its numbers.

    The exit code is 1 if it cannot be converted.

    Args:
      file: a file or folder, as `sam-jax convert` takes.
    """
    from sam_jax.convert import inspection

    found = inspection.inspect(file)
    _print_rows(found.rows)
    if found.problem:
        raise CheckpointError(found.problem)


def demo(out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("sam_jax_demo")) -> None:
    """Make a checkpoint of random weights, convert it, decode a click, a box and a mask, and draw the masks.

    Args:
      out: folder for the checkpoint and the picture.
    """
    from sam_jax.demo import run

    run(out, Console())


def export(
    source: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu"),
    masks: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the decoder as a program that needs only jax to run, for any number of images and prompt sets.

    Args:
      source: a checkpoint, as sam-jax convert takes.
      out: the folder to make: the program with its weights, and a manifest that says how to call it.
      platforms: what the program is for.
      masks: let the program take mask prompts.
      overwrite: replace what is at the output.
    """
    from sam_jax.checkpoints import load
    from sam_jax.exported import export_decoder

    with Console(stderr=True).status(f"Exporting {source}"):
        model, variables = load(source)
        export_decoder(out, model, variables, platforms=platforms, masks=masks, overwrite=overwrite)
    _print_rows([("wrote", str(out)), ("platforms", ", ".join(platforms))])


def bench(checkpoint: str | None = None, prompt_sets: tuple[int, ...] = (1, 16, 64, 256), repeats: int = 5) -> None:
    """Measure the decoder on this machine: prompt sets a second, latencies, and the first call. Prints JSON.

    Args:
      checkpoint: whose decoder to measure; by default the usual sizes with random weights.
      prompt_sets: numbers of prompt sets on one image.
      repeats: of each measurement; medians are printed.
    """
    from sam_jax import SamConfig, bench, demo
    from sam_jax.checkpoints import load
    from sam_jax.model import Sam

    if checkpoint:
        model, variables = load(checkpoint)
    else:
        conversion = from_torch(demo.random_state_dict(SamConfig()))
        model, variables = Sam(conversion.config), conversion.variables
    with Console(stderr=True).status("Measuring"):
        report = bench.run(model, variables, prompt_sets, repeats)
    print(json.dumps(report, indent=2))


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "inspect": inspect,
    "export": export,
    "bench": bench,
    "demo": demo,
}
"""Subcommands by name. Their arguments are the functions' own, their help is the docstrings'."""


def main() -> None:
    """Run the command line; an error is a sentence on stderr and exit code 1."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="sam-jax",
            description="Segment Anything's promptable decoder in JAX.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"sam-jax: {error}")
    except KeyboardInterrupt:
        sys.exit("sam-jax: interrupted")


def _restored(folder: Path, family: str | None) -> "tuple[Sam, Variables, Provenance]":
    from sam_jax.checkpoints import restore

    return restore(folder, family=family)


def _converted(path: Path, family: str | None) -> "tuple[Sam, Variables, Provenance]":
    checkpoint = open_checkpoint(path)
    files = sorted({tensor.region.file.path for tensor in checkpoint.tensors.values()})
    digest = _in_background(sha256, *files)
    conversion = from_torch(checkpoint.tensors, family=family, settings=checkpoint.settings)

    from sam_jax.model import Sam  # here, because importing JAX takes about as long as the hash

    found = conversion.family
    provenance = Provenance(found.name, path.resolve().name, digest.result(), found.licence)
    return Sam(conversion.config), conversion.variables, provenance


def _in_background(function: Callable[..., Any], *arguments: Any) -> Future:
    """Call a function in a thread that does not keep the process alive, as an executor's would after an error."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _cast(tree: Any, dtype: str) -> Any:
    import jax

    return tree if dtype == "stored" else jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        table.add_row(Text(label, "bold"), Text(text, overflow="fold"))
    Console().print(table)
