"""Images that a run does not train on: which they are, and how good a state is on them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from sam_jax.config import SamConfig
from sam_jax.decoder.model import Sam
from sam_jax.encoders.encoder import Encoder
from sam_jax.images.pixels import encode_image
from sam_jax.train.commands.suggest import advice
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data.examples import Source, number_of_files
from sam_jax.train.data.looks import flat_note
from sam_jax.train.data.sources import DrawnScenes, Encoded, Part, open_source, split
from sam_jax.train.evaluation.classes import evaluate_classes
from sam_jax.train.evaluation.evaluate import first_answers
from sam_jax.train.learning.state import TrainState, trained_variables
from sam_jax.train.learning.validation import Measure

SCENES = "scenes"
"""What to write instead of a path, for drawn scenes."""
HELD_OUT_IMAGES, HELD_OUT_OBJECTS = 32, 16
"""Held-out images that a look takes, evenly over all, and objects of each."""


def open_sources(data: str, config: FinetuneConfig, decoder: SamConfig, say: Console) -> tuple[Source, Source | None]:
    """Return what to train on, and what of the held-out images a look takes, if there are any.

    Args:
      data: as `finetune` takes.
      config: says how data is read, and what is held out.
      decoder: says how large drawn scenes are, and how many classes there may be.
      say: where what is worth knowing goes.

    Raises:
      ValueError: for bad data, or data that cannot be held out.
    """
    source = _open(data, config, decoder, say)
    if config.validate is not None:
        if config.validate != SCENES and Path(config.validate).resolve() == Path(data).resolve():
            raise ValueError(f"validate must be other images than those to train on, got {data} for both.")
        held_out = _open(config.validate, config, decoder, say, held_out=True)
    elif config.split:
        if data == SCENES:
            raise ValueError(f"split is for images, not for {SCENES}: let validate be {SCENES}, which draws others.")
        source, held_out = split(source, config.split, config.seed)
        kind = "tiles" if config.tile else "images"
        say.print(f"{len(held_out)} {kind} are held out, {len(source)} are trained on.")
    else:
        return source, None
    number = min(len(held_out), HELD_OUT_IMAGES)
    objects = None if config.classes else HELD_OUT_OBJECTS
    return source, Part(held_out, np.linspace(0, len(held_out) - 1, number, dtype=int).tolist(), objects)


def _open(data: str, config: FinetuneConfig, decoder: SamConfig, say: Console, held_out: bool = False) -> Source:
    if data == SCENES and config.classes:
        raise ValueError(f"classes are the values of label images, and {SCENES} have none.")
    if data == SCENES:
        frame = decoder.image_size
        return DrawnScenes(HELD_OUT_IMAGES, frame, held_out=True) if held_out else DrawnScenes(size=frame)
    source = open_source(
        Path(data),
        split_components=config.split_components,
        reading=config.reading,
        tile=config.tile,
        once=held_out,
        classes=classes_of(config, decoder),
    )
    advised = () if held_out else advice(config, number_of_files(source))
    for note in (*source.notes, *flat_note(source), *advised):
        say.print(note)
    return source


def classes_of(config: FinetuneConfig, decoder: SamConfig) -> int | None:
    """Return how many classes a run is about: as many as its decoder has masks besides mask 0; None for objects."""
    return (config.mask_outputs or decoder.multimask_outputs) if config.classes else None


def measure_of(model: Sam, held_out: Source, encoder: Encoder | None = None, classes: bool = False) -> Measure:
    """Return a function from a state to the mean IoUs on held-out images.

    Args:
      model: the decoder.
      held_out: the images, encoded where the encoder does not train.
      encoder: the image encoder, where it trains.
      classes: measure classes, not objects.
    """

    def measure(state: TrainState) -> dict[str, float]:
        variables, encoder_variables = trained_variables(on_one_device(state))
        seen = held_out
        if encoder is not None:
            seen = Encoded(held_out, functools.partial(encode_image, encoder, encoder_variables))
        examples = (seen[i] for i in range(len(seen)))
        if classes:
            return {"class": evaluate_classes(model, variables, examples).mean}
        return first_answers(model, variables, examples, objects=HELD_OUT_OBJECTS)

    return measure


def on_one_device(state: TrainState) -> TrainState:
    """Return a state that is on one device, whatever it was on."""
    return jax.tree.map(jnp.asarray, jax.device_get(state))
