"""Settings that are worth trying first, by the number of images.

What trains is what was best on pictures of a look that the small SAM had never seen, with 10 images as with 100
(`benchmarks/presets.py`). How long is from the literature, scaled to one machine: more images train for longer. They
are a place to begin, and were not measured on your data.
"""

import dataclasses

from sam_jax.train.config import FinetuneConfig, LoopConfig, OptimizerConfig, Preset

TRAIN: Preset = "everything"
ROWS = ((30, 300, 25), (300, 1000, 100), (1 << 62, 5000, 250))
"""For up to so many images, steps, and steps between looks at held-out images."""

LEARNING_RATE = 1e-4
HELD_OUT, PATIENCE = 0.2, 5
"""Share of the images to hold out, and looks without a new best."""


def suggested(config: FinetuneConfig, images: int) -> FinetuneConfig:
    """Return settings to try first.

    Args:
      config: how data is read and held out; that stays.
      images: how many there are.
    """
    steps, every = next((steps, every) for most, steps, every in ROWS if images <= most)
    return dataclasses.replace(
        config,
        train=TRAIN,
        batch=min(config.batch, max(1, images // 2)),
        split=config.split or (0.0 if config.validate or images < 2 else HELD_OUT),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        loop=LoopConfig(steps, every, every, patience=PATIENCE),
    )


def advice(config: FinetuneConfig, images: int) -> tuple[str, ...]:
    """Return a note on what is worth trying first, where the default trains instead; else none.

    Args:
      config: what the run is told.
      images: how many there are.
    """
    if config.train != FinetuneConfig.train:
        return ()
    first = suggested(config, images)
    return (
        f"The {config.train} alone trains. With {images} images, --train {first.train} for {first.loop.steps} steps is "
        "worth trying first, if time and memory allow; --check writes such settings.",
    )
