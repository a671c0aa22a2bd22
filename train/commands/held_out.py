"""Images that a run does not train on: which they are, and how good a state is on them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from sam_jax.decoder.model import Sam
from sam_jax.encoders.encoder import Encoder
from sam_jax.images.pixels import encode_image
from sam_jax.images.size import Size
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data.examples import Source
from sam_jax.train.data.looks import flat_note
from sam_jax.train.data.sources import DrawnScenes, Encoded, Part, open_source, split
from sam_jax.train.evaluation.evaluate import first_answers
from sam_jax.train.learning.state import TrainState, trained_variables
from sam_jax.train.learning.validation import Measure

SCENES = "scenes"
"""What to write instead of a path, for drawn scenes."""
HELD_OUT_IMAGES, HELD_OUT_OBJECTS = 32, 16
"""Held-out images that a look takes, evenly over all, and objects of each."""


def open_sources(data: str, config: FinetuneConfig, frame: Size, say: Console) -> tuple[Source, Source | None]:
    """Return what to train on, and what of the held-out images a look takes, if there are any.

    Args:
      data: as `finetune` takes.
      config: says how data is read, and what is held out.
      frame: size of drawn scenes.
      say: where what is worth knowing goes.

    Raises:
      ValueError: for bad data, or data that cannot be held out.
    """
    source = _open(data, config, frame, say)
    if config.validate is not None:
        if config.validate != SCENES and Path(config.validate).resolve() == Path(data).resolve():
            raise ValueError(f"validate must be other images than those to train on, got {data} for both.")
        held_out = _open(config.validate, config, frame, say, held_out=True)
    elif config.split:
        if data == SCENES:
            raise ValueError(f"split is for images, not for {SCENES}: let validate be {SCENES}, which draws others.")
        source, held_out = split(source, config.split, config.seed)
        kind = "tiles" if config.tile else "images"
        say.print(f"{len(held_out)} {kind} are held out, {len(source)} are trained on.")
    else:
        return source, None
    number = min(len(held_out), HELD_OUT_IMAGES)
    return source, Part(held_out, np.linspace(0, len(held_out) - 1, number, dtype=int).tolist(), HELD_OUT_OBJECTS)


def _open(data: str, config: FinetuneConfig, frame: Size, say: Console, held_out: bool = False) -> Source:
    if data == SCENES:
        return DrawnScenes(HELD_OUT_IMAGES, frame, held_out=True) if held_out else DrawnScenes(size=frame)
    source = open_source(
        Path(data), split_components=config.split_components, reading=config.reading, tile=config.tile, once=held_out
    )
    for note in (*source.notes, *flat_note(source)):
        say.print(note)
    return source


def measure_of(model: Sam, held_out: Source, encoder: Encoder | None = None) -> Measure:
    """Return a function from a state to the mean IoUs on held-out images.

    Args:
      model: the decoder.
      held_out: the images, encoded where the encoder does not train.
      encoder: the image encoder, where it trains.
    """

    def measure(state: TrainState) -> dict[str, float]:
        variables, encoder_variables = trained_variables(on_one_device(state))
        seen = held_out
        if encoder is not None:
            seen = Encoded(held_out, functools.partial(encode_image, encoder, encoder_variables))
        return first_answers(model, variables, (seen[i] for i in range(len(seen))), objects=HELD_OUT_OBJECTS)

    return measure


def on_one_device(state: TrainState) -> TrainState:
    """Return a state that is on one device, whatever it was on."""
    return jax.tree.map(jnp.asarray, jax.device_get(state))
