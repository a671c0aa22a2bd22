"""Four masks each, of which mask 0 is stable or not: what SAM 2 asks before it takes mask 0 for a clear prompt."""

import numpy as np

SIDE = 60
IOU = np.float32([0.9, 0.2, 0.7, 0.5])
"""Mask 2 is the best of those beside mask 0."""


def logits(sure: int, unsure: int, edge: float = 0.0) -> np.ndarray:
    """Four masks. Of mask 0, some pixels are above both thresholds, some between them, the rest below both."""
    first = np.full(SIDE * SIDE, -1, np.float32)
    first[:sure], first[sure : sure + unsure] = 1, edge
    masks = np.random.default_rng(0).normal(size=(4, SIDE * SIDE)).astype(np.float32)
    masks[0] = first
    return masks.reshape(4, SIDE, SIDE)


CASES: dict[str, tuple[np.ndarray, int]] = {
    "stable": (logits(1000, 10), 0),
    "unstable": (logits(1000, 100), 2),
    "nothing sure": (logits(0, 1), 2),
    "all negative": (logits(0, 0), 0),
    "all positive": (logits(SIDE * SIDE, 0), 0),
    "0.98 exactly": (logits(49, 1), 0),
    "0.98 of many pixels": (logits(49 * 71, 71), 0),
    "a pixel less than 0.98": (logits(49 * 71 - 1, 72), 2),
    "a pixel more than 0.98": (logits(49 * 71 + 1, 70), 0),
    "on the upper threshold, which is not above it": (logits(100, 100, np.float32(0.05)), 2),
    "on the lower threshold, which is not above it": (logits(100, 100, np.float32(-0.05)), 0),
}
"""What is said of mask 0, the masks, and the index of the one that is taken."""

ALL = np.stack([masks for masks, _ in CASES.values()])
TAKEN = np.array([index for _, index in CASES.values()])
