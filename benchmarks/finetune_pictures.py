"""The pictures of the guide to fine-tuning.

    python -m benchmarks.finetune_pictures docs --run pictures

checks and trains on drawn pictures as of a dark-field microscope (`benchmarks.presets`), and writes to a folder
finetune_check.png, finetune_curves.png, and, of pictures that were not trained on, finetune_before.png and
finetune_after.png.
"""

import dataclasses
import functools
from pathlib import Path

import tyro
from PIL import Image

from benchmarks.presets import TEST, TRAINING, config_of, write
from sam_jax.commands.demo import SMALL
from sam_jax.files.checkpoints import load, load_encoder
from sam_jax.images.pixels import encode_image
from sam_jax.train.commands.check import SHEET, check
from sam_jax.train.commands.finetune import finetune
from sam_jax.train.config import LoopConfig
from sam_jax.train.data.sources import Encoded, open_source
from sam_jax.train.evaluation.evaluate import evaluate

WIDTH, COLOURS = 640, 96
"""Of a picture, so that it stays small."""
CHECKED = 8
"""Images of the contact sheet."""
CONFIG = dataclasses.replace(
    config_of("everything", 150), split=0.2, loop=LoopConfig(steps=150, log_every=10, save_every=30)
)


def samples(test: Path, checkpoint: Path) -> Image.Image:
    """What a model makes of the first object of each picture."""
    source = Encoded(open_source(test), functools.partial(encode_image, *load_encoder(checkpoint)))
    report = evaluate(*load(checkpoint), (source[i] for i in range(len(source))), cap=5, objects=8)
    return report.picture()


def save(picture: Image.Image, file: Path) -> None:
    """Write a picture in few colours, which need a third of the room; an octree keeps those of small clicks."""
    picture.thumbnail((WIDTH, 2 * WIDTH))
    picture.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(file, optimize=True)


def main(folder: tyro.conf.Positional[Path], run: Path) -> None:
    """Write the pictures.

    Args:
      folder: where they go.
      run: the folder for data and run; the same command goes on with it.
    """
    train, test = write(run / "train", range(TRAINING, TRAINING + 30)), write(run / "test", TEST[:3])
    check(str(write(run / "checked", range(TRAINING, TRAINING + CHECKED))), str(SMALL), run / "check", CONFIG)
    result = finetune(str(train), str(SMALL), run / "run", CONFIG)
    for name, picture in {
        "check": Image.open(run / "check" / SHEET),
        "curves": Image.open(run / "run" / "curves.png"),
        "before": samples(test, SMALL),
        "after": samples(test, result.model),
    }.items():
        save(picture, folder / f"finetune_{name}.png")


if __name__ == "__main__":
    tyro.cli(main)
