"""Settings that are worth trying first, by the number of images.

They are recipes from the literature for data of that size, scaled to one machine: few images train little of the model
for a short time, many of them more of it for longer. They are a place to begin, and were not measured on your data.
"""

import dataclasses
from typing import Any

from sam_jax.train.config import FinetuneConfig, LoopConfig, OptimizerConfig

ROWS: tuple[tuple[int, dict[str, Any]], ...] = (
    (30, {"train": "decoder", "steps": 300, "look_every": 25}),
    (300, {"train": "decoder_and_prompt_encoder", "steps": 1000, "look_every": 100}),
    (1 << 62, {"train": "lora", "steps": 5000, "look_every": 250}),
)
"""Settings for up to so many images."""

LEARNING_RATE = 1e-4
HELD_OUT, PATIENCE = 0.2, 5
"""Share of the images to hold out, and looks without a new best."""


def suggested(config: FinetuneConfig, images: int) -> FinetuneConfig:
    """Return settings to try first.

    Args:
      config: how data is read and held out; that stays.
      images: how many there are.
    """
    row = next(row for most, row in ROWS if images <= most)
    every = row["look_every"]
    return dataclasses.replace(
        config,
        train=row["train"],
        batch=min(config.batch, max(1, images // 2)),
        split=config.split or (0.0 if config.validate or images < 2 else HELD_OUT),
        optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
        loop=LoopConfig(row["steps"], every, every, patience=PATIENCE),
    )
