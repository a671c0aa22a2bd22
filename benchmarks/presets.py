"""What is worth training with so many images: presets, measured on drawn pictures of a look that the small SAM has
never seen.

    python -m benchmarks.presets --out presets

draws pictures as of a dark-field microscope, trains the small SAM on 10 and on 100 of them by each preset, for the same
number of steps, and prints JSON, a line each: the mean IoU of the objects of other pictures after one click and of
boxes, before and after, and the seconds that training took. The same command goes on with what is there.
"""

import json
import time
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Int, UInt8
from PIL import Image

from benchmarks.nuclei import measure
from sam_jax.commands.demo import SMALL
from sam_jax.images.draw import contour
from sam_jax.train.commands.finetune import finetune
from sam_jax.train.config import FinetuneConfig, LoopConfig, OptimizerConfig, Preset, Simulation
from sam_jax.train.data.scenes import HELD_OUT_SEEDS, draw_scene
from sam_jax.train.data.surfaces import smooth_noise

SIZE = (256, 256)
TEST, TRAINING = HELD_OUT_SEEDS[:24], HELD_OUT_SEEDS.stop
"""Seeds of the pictures to measure on, and the first of those to train on."""

RATES: dict[Preset, float] = {"decoder": 3e-4, "lora": 1e-3, "everything": 3e-4}
"""The highest learning rate of each preset."""


def dark_field(seed: int) -> tuple[UInt8[np.ndarray, "h w 3"], Int[np.ndarray, "h w"]]:
    """Return a picture and the label of its objects: a dark ground, and what lies on it hardly brighter than it, but
    with a thin bright rim that breaks off in places. Specks and noise are everywhere.
    """
    scene, rng = draw_scene(seed, SIZE), np.random.default_rng(seed)
    label, grey = np.zeros(SIZE, np.uint16), 45 + 12 * smooth_noise(rng, SIZE, cell=60)
    for i, (mask, kind) in enumerate(zip(scene.masks, scene.kinds, strict=True), 1):
        if kind == "object":
            label[mask] = i
            grey[mask] += rng.uniform(0, 8)
            rim = contour(mask, 2)
            grey[rim] += 55 * np.clip(0.8 + smooth_noise(rng, SIZE, cell=20), 0, 1)[rim]
    grey += 16 * smooth_noise(rng, SIZE, cell=4)
    grey[rng.uniform(size=SIZE) < 0.004] += 90
    grey += rng.normal(0, 14, SIZE)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, -1), label


def write(folder: Path, seeds: range) -> Path:
    """Write the pictures of some seeds and their labels, as users have them."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for place, pixels in zip(("images", "labels"), dark_field(seed), strict=True):
            Image.fromarray(pixels).save(folder / place / f"{seed}.png")
    return folder


def config_of(preset: Preset, steps: int) -> FinetuneConfig:
    """Return the settings of a run."""
    return FinetuneConfig(
        train=preset,
        batch=2,
        objects=4,
        simulation=Simulation(clicks=1, refinements=False),
        optimizer=OptimizerConfig(learning_rate=RATES[preset]),
        loop=LoopConfig(steps=steps, log_every=10, save_every=50),
    )


def main(
    out: Path,
    images: tuple[int, ...] = (10, 100),
    train: tuple[Preset, ...] = ("decoder", "lora", "everything"),
    steps: int = 150,
) -> None:
    """Train and measure.

    Args:
      out: the folder for pictures and runs.
      images: numbers of images to train on.
      train: presets.
      steps: of each run, batches of 2 images with 4 objects each.
    """
    test = write(out / "test", TEST)
    print(json.dumps({"before": measure(test, SMALL, None)}), flush=True)
    for number in images:
        data = write(out / f"train_{number}", range(TRAINING, TRAINING + number))
        for preset in train:
            begun = time.monotonic()
            result = finetune(str(data), str(SMALL), out / f"{preset}_{number}", config_of(preset, steps))
            seconds = round(time.monotonic() - begun)
            found = measure(test, result.model, None)
            print(json.dumps({"images": number, "train": preset, **found, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
