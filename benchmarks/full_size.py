"""Boolean masks at the original size: ours against the official package's postprocessing, in one run.

    python benchmarks/full_size.py

makes the three masks of 64 prompt sets at 1,200 x 1,800 and prints JSON. The official way, `Sam.postprocess_masks` and
the threshold, takes masks in batches of 8, as its automatic mask generator would not fit in memory otherwise.
"""

import json
import statistics
from typing import Any

import numpy as np
import torch
import tyro
from torch.nn.functional import interpolate

from sam_jax import binary_masks
from sam_jax.commands.bench import in_turns, machine
from sam_jax.images.resize import input_size_for

BATCH = 8


def official(logits: np.ndarray, input_size: tuple[int, int], original_size: tuple[int, int]) -> list[torch.Tensor]:
    """Return the masks of `Sam.postprocess_masks` (`segment_anything/modeling/sam.py`) above 0, in batches."""
    out = []
    for part in torch.from_numpy(logits).split(BATCH):
        frame = interpolate(part[:, None], (1024, 1024), mode="bilinear", align_corners=False)
        frame = frame[..., : input_size[0], : input_size[1]]
        out.append(interpolate(frame, original_size, mode="bilinear", align_corners=False)[:, 0] > 0)
    return out


def main(masks: int = 192, original_size: tuple[int, int] = (1200, 1800), rounds: int = 5) -> None:
    """Compare both.

    Args:
      masks: how many.
      original_size: height and width.
      rounds: turns of both.
    """
    logits = np.random.default_rng(0).standard_normal((masks, 256, 256), np.float32)
    sizes = {"input_size": input_size_for(original_size), "original_size": original_size}
    sides: dict[str, Any] = {
        "ours": lambda: binary_masks(logits, **sizes),
        "official": lambda: official(logits, **sizes),
    }
    different = np.asarray(sides["ours"]()) != torch.cat(sides["official"]()).numpy()
    turns = in_turns(sides, rounds)
    report = {
        "machine": machine() | {"torch": torch.__version__},
        "masks": masks,
        "original size": original_size,
        "milliseconds": {name: 1000 * statistics.median(seconds) for name, seconds in turns.items()},
        "times the official speed": statistics.median(
            theirs / ours for ours, theirs in zip(turns["ours"], turns["official"], strict=True)
        ),
        "share of pixels that differ": float(different.mean()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
