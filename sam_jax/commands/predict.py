"""The `sam-jax predict` command: image files and prompts in, pictures or COCO's JSON out."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import track

from sam_jax.batch.select import masks_selected
from sam_jax.commands.result_files import CocoAnnotations, Kind, Result, check_free, targets, write_pictures
from sam_jax.config import SamConfig
from sam_jax.decoder.model import Variables
from sam_jax.encoders.encoder import Encoder
from sam_jax.files.checkpoints import load, load_encoder
from sam_jax.files.embeddings import EmbeddingStore, digest_of
from sam_jax.images.image_files import image_files, read_mask
from sam_jax.images.pixels import EncodedImage, Prediction, check_fit, encode_image, predict_image
from sam_jax.images.read import Reading, read_image
from sam_jax.prompts import Prompts, Ragged
from sam_jax.walk import read_ahead

Encode = Callable[[Path, UInt8[np.ndarray, "_height _width 3"]], EncodedImage]
"""An image file and its pixels to its embedding."""

CLEAR = 3
"""Clicks and box corners from which on a prompt is clear, so that mask 0 is the best, as in `best_masks`."""


def run(
    paths: Sequence[Path],
    checkpoint: str,
    out: Path,
    console: Console,
    *,
    points: Sequence[str] = (),
    boxes: Sequence[str] = (),
    mask: Path | None = None,
    multimask: bool = False,
    kind: Kind | None = None,
    embeddings: Path | None = None,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    family: str | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
) -> None:
    """Predict the same prompts on each image, write the results, and say how long it took.

    Args:
      paths: image files, and folders of them.
      checkpoint: what `sam_jax.load` takes.
      out: what to write, as `targets` says.
      console: where to say how it goes.
      points: clicks as texts `x,y` or `x,y,0`, all on one object.
      boxes: boxes as texts `x0,y0,x1,y1`, each on an object of its own.
      mask: a picture that is not black where the object is.
      multimask: keep all masks that `select_masks` returns for each object instead of the best; SAM-HQ's is one.
      kind: what to write; by default COCO's JSON where `out` ends in `.json`, else overlays.
      embeddings: a store to read embeddings from instead of encoding.
      reading: how images are read.
      family: as in `sam_jax.load`.
      prefix: likewise.
      overwrite: replace what is there.

    Raises:
      ValueError: for prompts, images, or a checkpoint that cannot be used; or naming every image that cannot, when the
        others are done.
      FileExistsError: if something is there that `overwrite` does not allow to replace.
    """
    asked = parse_prompts(points, boxes, None if mask is None else read_mask(mask))
    objects = len(next(iter(asked.values())))
    clear = 2 * bool(boxes) + len(points) >= CLEAR
    kind = kind or ("coco" if out.suffix == ".json" else "overlay")
    files = image_files(paths)

    with console.status(f"Loading {checkpoint}"):
        model, variables = load(checkpoint, family=family, prefix=prefix)
        plan = targets(kind, out, files, objects, masks_selected(model.config) if multimask else 1)
        if not overwrite:
            check_free(chain.from_iterable(plan.values()))
        if embeddings:
            encode = read_from(embeddings)
        else:
            encode = encode_with(model.config, *load_encoder(checkpoint, family=family, prefix=prefix))
    encoding, decoding, problems, coco = [], [], [], CocoAnnotations()
    read = read_ahead(files, functools.partial(read_image, reading=reading))
    for file, pixels in track(read, "Predicting", total=len(files), console=console):
        try:
            if isinstance(pixels, ValueError):
                raise pixels
            with timed(encoding):
                image = jax.block_until_ready(encode(file, pixels))
            with timed(decoding):
                prediction = predict_image(model, variables, image, **asked, multimask=multimask or not clear)
        except ValueError as error:
            problems.append(str(error) if file.name in str(error) else f"{file}: {error}")
            continue
        shown = Prompts.build(**{name: value for name, value in asked.items() if name != "mask"}, images=False)
        result = Result(file, pixels, image, shown, prediction if multimask else best_of(prediction))
        if kind == "coco":
            coco.add(result)
        else:
            write_pictures(kind, plan[file], result, overwrite)
    if coco.images:
        coco.write(out, overwrite)
    steps = {"Reading embeddings" if embeddings else "Encoding": encoding, "Decoding": decoding}
    say_times(console, {name: seconds for name, seconds in steps.items() if seconds})
    if problems:
        count = f"{len(problems)} of {len(files)} images were not predicted. " if len(files) > 1 else ""
        raise ValueError(count + " ".join(problems))
    console.print(f"Wrote {out}")


def parse_prompts(points: Sequence[str], boxes: Sequence[str], mask: np.ndarray | None) -> dict[str, Ragged]:
    """Return the arguments of `Predictor.predict` with one entry for each object.

    Raises:
      ValueError: for texts that are no clicks or boxes, nothing at all, or what belongs to no one object.
    """
    if not points and not boxes and mask is None:
        raise ValueError("Nothing is asked for: give at least one --point, --box or --mask.")
    if len(boxes) > 1 and (points or mask is not None):
        raise ValueError("Several --box are an object each: --point and --mask go with one --box at most.")
    asked: dict[str, Ragged] = {}
    if points:
        clicks = [_numbers("--point", text, "x,y or x,y,0", (2, 3)) for text in points]
        unknown = [text for text, click in zip(points, clicks, strict=True) if click[2:] not in ([], [0], [1])]
        if unknown:
            raise ValueError(f"--point ends in 0 for the background, or 1 for the object; got {unknown[0]}.")
        asked["points"] = [[click[:2] for click in clicks]]
        asked["labels"] = [[int(click[2]) if click[2:] else 1 for click in clicks]]
    if boxes:
        asked["boxes"] = [_numbers("--box", text, "x0,y0,x1,y1", (4,)) for text in boxes]
    if mask is not None:
        asked["mask"] = [mask]
    return asked


def _numbers(option: str, text: str, wanted: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise ValueError(f"{option} must be {wanted} in pixels of the image, got {text!r}.")
    return numbers


def encode_with(config: SamConfig, encoder: Encoder, variables: Variables) -> Encode:
    """Return a function that encodes images with an encoder that fits a decoder's settings."""
    check_fit(config, encoder)
    return lambda file, pixels: encode_image(encoder, variables, pixels)


def read_from(path: Path) -> Encode:
    """Return a function that reads images' embeddings from a store, by the files' names."""
    store = EmbeddingStore.open(path)

    def read(file: Path, pixels: np.ndarray) -> EncodedImage:
        return store.read(file.name, pixels.shape[:2], digest_of(pixels))

    return read


def best_of(prediction: Prediction) -> Prediction:
    """Return the best-scored mask of each object alone, as one candidate."""
    best = prediction.scores.argmax(-1)
    return Prediction(*(x[np.arange(len(x)), best][:, None] for x in prediction))


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Add how long the block took."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def say_times(console: Console, steps: dict[str, list[float]]) -> None:
    """Print how long each step took, the first image apart: it has the compilation in it."""
    for name, (first, *others) in steps.items():
        each = f": {first:.2f} s for the first image, then {np.mean(others):.3f} s for each" if others else ""
        console.print(f"{name} took {first + sum(others):.2f} s{each}")
