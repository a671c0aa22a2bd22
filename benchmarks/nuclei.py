"""Fine-tuning on a real microscopy image: the pair of an image and its labels that the stardist wheel has.

    pip download stardist --no-deps -d wheels
    python -m benchmarks.nuclei --wheel wheels/stardist-*.whl --out nuclei

trains the small SAM on the left half, in tiles of 128 pixels, and prints JSON: the mean IoU of the right half's nuclei
after one click and of boxes, as the image is, in tiles, and in tiles after training; and the seconds that training
took. The small SAM has seen drawn scenes alone.
"""

import functools
import io
import json
import time
import zipfile
from pathlib import Path

import tifffile
import tyro

from sam_jax.commands.demo import SMALL
from sam_jax.files.checkpoints import load, load_encoder
from sam_jax.images.pixels import encode_image
from sam_jax.train.commands.finetune import finetune
from sam_jax.train.config import FinetuneConfig, LoopConfig, OptimizerConfig, Preset, Simulation
from sam_jax.train.data.sources import Encoded, open_source
from sam_jax.train.evaluation.evaluate import first_answers

TILE = 128


def halves(wheel: Path, out: Path) -> None:
    """Write `train` and `test`, folders with an image and its label each."""
    with zipfile.ZipFile(wheel) as content:
        for place, name in (("images", "img2d"), ("masks", "mask2d")):
            pixels = tifffile.imread(io.BytesIO(content.read(f"stardist/data/images/{name}.tif")))
            middle = pixels.shape[1] // 2
            for half, part in (("train", pixels[:, :middle]), ("test", pixels[:, middle:])):
                (out / half / place).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(out / half / place / "nuclei.tif", part)


def measure(test: Path, checkpoint: Path, tile: int | None) -> dict[str, float]:
    """Mean IoUs after one click and of boxes, of masks by their score."""
    encode = functools.partial(encode_image, *load_encoder(checkpoint))
    source = Encoded(open_source(test, tile=tile, once=True), encode)
    return first_answers(*load(checkpoint), (source[i] for i in range(len(source))))


def main(wheel: Path, out: Path, train: Preset = "decoder", steps: int = 100, learning_rate: float = 3e-4) -> None:
    """Train and measure.

    Args:
      wheel: of stardist, a file.
      out: the folder for data and run; the same command goes on with it.
      train: what trains.
      steps: batches of 4 tiles.
      learning_rate: the highest.
    """
    halves(wheel, out)
    config = FinetuneConfig(
        train=train,
        tile=TILE,
        simulation=Simulation(clicks=2, refinements=False),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        loop=LoopConfig(steps=steps, log_every=10, save_every=50),
    )
    figures = {"image": measure(out / "test", SMALL, None), "tiles": measure(out / "test", SMALL, TILE)}
    print(json.dumps(figures), flush=True)
    begun = time.monotonic()
    result = finetune(str(out / "train"), str(SMALL), out / "run", config)
    seconds = time.monotonic() - begun
    figures["tiles, trained"] = measure(out / "test", result.model, TILE)
    print(json.dumps(figures | {"seconds": round(seconds), "trained": result.trained}, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
