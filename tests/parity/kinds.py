"""Every kind of prompt, and quiet weights, for tests against the official decoder. Needs no PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sam_jax.config import SamConfig

# Coordinates are fractions of the frame; masks are how many.
CLICK = {"points": [[[0.3, 0.4]]], "labels": [[1]]}
CLICKS = {
    "points": [
        [[0.1, 0.2], [0.9, 0.8], [0, 0], [1, 1], [0.5, 0.31]],
        [[0.7, 0.2], [0.4, 0.4], [0.2, 0.9], [0, 1], [1, 0]],
    ],
    "labels": [[1, 0, 1, 0, 1], [0, 0, 1, -1, 1]],
}
BOX = {"boxes": [[0.1, 0.2, 0.6, 0.9]]}
BOXES = {"boxes": [[0.1, 0.2, 0.6, 0.9], [0.5, 0.5, 0.75, 0.6]]}
KINDS = {
    "one click": CLICK,
    "background click": CLICK | {"labels": [[0]]},
    "many mixed clicks": CLICKS,
    "box": BOX,
    "several boxes": BOXES,
    "boxes and clicks": BOXES | CLICKS,
    "mask": {"masks": 1},
    "several masks": {"masks": 2},
    "masks and clicks": CLICKS | {"masks": 2},
    "mask and box": BOX | {"masks": 1},
    "nothing": {},
}


def prompts_in_pixels(kind: str, config: SamConfig, rng: Callable[..., np.ndarray]) -> dict[str, Any]:
    """Return the arguments of `Prompts.build` for one kind of prompt; they are those of the official decoder too."""
    height, width = config.image_size
    given = {}
    for name, value in KINDS[kind].items():
        if name == "masks":
            given[name] = 8 * rng(value, *config.mask_size) - 4
        elif name == "labels":
            given[name] = np.array(value)
        else:
            fractions = np.array(value, np.float32)
            given[name] = fractions * np.array([width, height] * (fractions.shape[-1] // 2), np.float32)
    return given


QUIET = 3e-3


def quieten(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the state dict of a decoder that adds up small things only: its norms see a variance of about 1e-5.

    Then an epsilon of 1e-6 for 1e-5 changes everything, where it is lost in rounding otherwise.
    """
    return {
        name: tensor * np.float32(QUIET if tensor.ndim == 1 or "token" in name else 1)
        for name, tensor in tensors.items()
    }
