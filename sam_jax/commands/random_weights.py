"""Random weights in the official names, to measure with and to try things on."""

import numpy as np

from sam_jax.config import SamConfig
from sam_jax.convert.tables.rules import torch_shapes


def random_state_dict(config: SamConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights under Meta's names: unit-gain matrices, norms of ones, small biases."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.normal(size=shape)
        if len(shape) > 1 and shape[0] > 1 and "gaussian" not in name and "tokens" not in name:
            values /= np.sqrt(np.prod(shape[1:]) if "upscaling" not in name else shape[0])
        elif name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = np.ones(shape)
        return values.astype(np.float32)

    return {name: draw(name, shape) for name, shape in torch_shapes(config).items()}
