"""Names and shapes of all tensors of SAM 2, frozen: what whole checkpoints hold, for tests that need no PyTorch.

`golden/sam2_names.json.gz` has one list for each size of SAM 2 and SAM 2.1, as `sam2` 1.1.0 builds them from its
released settings, for each size of `Sam2Model` of transformers 5.24, and for its usual `Sam2VideoModel`. No weights.
"""

import gzip
import json
from pathlib import Path

import numpy as np

SIZES = ("tiny", "small", "base_plus", "large")
FAMILIES = ("sam2", "sam2.1")
"""In Meta's names."""

_FILE = Path(__file__).parent / "golden" / "sam2_names.json.gz"
LISTS: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(_FILE.read_bytes()))
"""Family or class and size, such as `sam2.1 tiny` -> name -> shape."""


def checkpoint(name: str) -> dict[str, np.ndarray]:
    """Return tensors of these names and shapes that take no memory."""
    return {tensor: np.broadcast_to(np.float32(0), shape) for tensor, shape in LISTS[name].items()}
