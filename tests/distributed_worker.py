"""One of two processes with four virtual devices each, which `test_distributed.py` starts: PORT PROCESS FOLDER.

It decodes with its sibling on one mesh of all devices and writes what it saw to `PROCESS.json`. Then it takes its share
of a folder; the second process is killed while it writes its third result.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import NamedSharding, PartitionSpec
from random_model import random_variables

from sam_jax import Prompts, Sam, Sizes, predict_masks
from sam_jax.batch.folder import predict_folder
from sam_jax.batch.sharding import make_mesh, replicate
from sam_jax.config import TINY

MODEL = Sam(dataclasses.replace(TINY, depth=1))  # compiles faster
SIZES = Sizes(tokens=(4,), prompt_sets=(4,), images=(1,))


def largest_difference(actual: jax.Array, expected: np.ndarray) -> float:
    return max(float(np.abs(shard.data - expected[shard.index]).max()) for shard in actual.addressable_shards)


def decode_together(folder: Path) -> dict[str, Any]:
    """Decode two images, whose embeddings and prompts each process has one of."""
    with np.load(folder / "together.npz") as file:
        arrays = dict(file)
    mesh, one = make_mesh(images=2), slice(jax.process_index(), jax.process_index() + 1)
    variables = replicate(random_variables(MODEL), mesh)

    def joined(local: np.ndarray) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("image")), local)

    prompts = Prompts.build(arrays["points"][one], arrays["labels"][one])
    out = predict_masks(MODEL, variables, joined(arrays["embeddings"][one]), jax.tree.map(joined, prompts), mesh=mesh)
    # The same values in every process, and one prompt set less: padded to the same program, then cut.
    fewer = Prompts.build(arrays["points"][:, :-1], arrays["labels"][:, :-1])
    cut = predict_masks(MODEL, variables, arrays["embeddings"], fewer, sizes=SIZES, mesh=mesh)
    return {
        "devices": [jax.local_device_count(), jax.device_count()],
        "shards": [list(shard.data.shape[:2]) for shard in out.logits.addressable_shards],
        "difference": max(largest_difference(out.logits, arrays["logits"]), largest_difference(out.iou, arrays["iou"])),
        "cut": list(cut.logits.shape[:2]),
        "cut difference": largest_difference(cut.logits, arrays["logits"][:, :-1]),
    }


def be_killed_while_writing(count: int) -> None:
    """Leave half of the given result and no chance to clean up."""
    savez, written = np.savez, []

    def dying(path: Path, **arrays: np.ndarray) -> None:
        savez(path, **arrays)
        written.append(path)
        if len(written) == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    np.savez = dying


def main(port: str, process: int, folder: Path) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 4)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process, initialization_timeout=60)
    report = decode_together(folder)
    (folder / f"{process}.json").write_text(json.dumps(report))
    sync_global_devices("decoded together")
    if process == 1:
        be_killed_while_writing(3)
    predict_folder(MODEL, random_variables(MODEL), folder / "source", folder / "target", sizes=SIZES)
    sys.stdin.read()  # the first process serves the other one until the test has seen that one die
    os._exit(0)  # a clean end would wait for it


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
