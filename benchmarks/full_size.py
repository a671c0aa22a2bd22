"""Boolean masks at the original size: ours against the official package's postprocessing, in one run.

    python benchmarks/full_size.py

makes the three masks of 64 prompt sets at 1,200 x 1,800 and prints JSON; then the same for 50 images, each of a size of
its own. The official way, `Sam.postprocess_masks` and
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
from sam_jax.commands.bench import in_turns, machine, seconds_of
from sam_jax.images.resize import input_size_for
from sam_jax.images.tiles import PAYS

BATCH = 8


def official(logits: np.ndarray, input_size: tuple[int, int], original_size: tuple[int, int]) -> list[torch.Tensor]:
    """Return the masks of `Sam.postprocess_masks` (`segment_anything/modeling/sam.py`) above 0, in batches."""
    out = []
    for part in torch.from_numpy(logits).split(BATCH):
        frame = interpolate(part[:, None], (1024, 1024), mode="bilinear", align_corners=False)
        frame = frame[..., : input_size[0], : input_size[1]]
        out.append(interpolate(frame, original_size, mode="bilinear", align_corners=False)[:, 0] > 0)
    return out


def new_sizes(original_size: tuple[int, int], number: int) -> list[tuple[int, int]]:
    """Return sizes that are all different, of about as many pixels."""
    height, width = original_size
    heights = np.random.default_rng(0).choice(np.arange(height * 2 // 3, height * 3 // 2), number, replace=False)
    return [(int(h), round(height * width / int(h))) for h in heights]


def main(masks: int = 192, original_size: tuple[int, int] = (1200, 1800), rounds: int = 5, sizes: int = 50) -> None:
    """Compare both, for one size that comes again and again, and for images of which each has a size of its own.

    Args:
      masks: how many for each image.
      original_size: height and width.
      rounds: turns of both.
      sizes: images of sizes of their own.
    """
    logits = np.random.default_rng(0).standard_normal((masks, 256, 256), np.float32)

    def given(size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        return {"input_size": input_size_for(size), "original_size": size}

    sides: dict[str, Any] = {
        "ours": lambda: np.asarray(binary_masks(logits, **given(original_size))),
        "official": lambda: official(logits, **given(original_size)),
    }
    for _ in range(1 + PAYS // masks):  # until the size has a program of its own
        ours = sides["ours"]()
    different = ours != torch.cat(sides["official"]()).numpy()
    turns = in_turns(sides, rounds)
    for size in new_sizes(original_size, 3):
        binary_masks(logits, **given(size))
    each: dict[str, list[float]] = {"ours, one size": [], "ours, new sizes": [], "official, new sizes": []}
    for size in new_sizes(original_size, sizes + 3)[3:]:
        ways = (
            sides["ours"],
            lambda size=size: np.asarray(binary_masks(logits, **given(size))),
            lambda size=size: official(logits, **given(size)),
        )
        for name, way in zip(each, ways, strict=True):
            each[name].append(seconds_of(way, 0.0))
    report = {
        "machine": machine() | {"torch": torch.__version__},
        "masks": masks,
        "original size": original_size,
        "milliseconds": {name: 1000 * statistics.median(seconds) for name, seconds in turns.items()},
        "times the official speed": statistics.median(
            theirs / ours for ours, theirs in zip(turns["ours"], turns["official"], strict=True)
        ),
        "share of pixels that differ": float(different.mean()),
        "milliseconds per image": {name: 1000 * statistics.median(seconds) for name, seconds in each.items()},
        "new sizes take": statistics.median(
            new / one for one, new in zip(each["ours, one size"], each["ours, new sizes"], strict=True)
        ),
        "slowest new size": 1000 * max(each["ours, new sizes"]),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
