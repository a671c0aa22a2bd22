"""Outlines of drawn objects: closed curves around the origin, about 2 across, one function for each class.

An outline is drawn as a filled polygon, so a ring goes around, crosses over, and comes back on the inside.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Outline = Float[np.ndarray, "k 2"]
"""Corners (x, y) of a closed curve."""


def circle(corners: int) -> Outline:
    """Return the unit circle with so many corners."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def ellipse(rng: np.random.Generator) -> Outline:
    """Return an ellipse, up to three times as long as wide."""
    return circle(48) * (1, rng.uniform(0.35, 1))


def polygon(rng: np.random.Generator) -> Outline:
    """Return a polygon of 3 to 7 corners, somewhat irregular."""
    corners = int(rng.integers(3, 8))
    angle = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * np.pi / corners)
    radius = rng.uniform(0.75, 1, corners)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1) * (1, rng.uniform(0.5, 1))


def blob(rng: np.random.Generator) -> Outline:
    """Return a smooth closed curve: a circle whose radius has a few random waves."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.arange(2, 6)
    size, phase = rng.normal(size=4) * 0.3 / waves**0.7, rng.uniform(0, 2 * np.pi, 4)
    radius = np.exp((size[:, None] * np.cos(waves[:, None] * angle + phase[:, None])).sum(0))
    return (radius / radius.max())[:, None] * circle(64)


def stroke(rng: np.random.Generator) -> Outline:
    """Return a bent line of a certain width; it turns by less than a circle, so that it does not meet itself."""
    bend = rng.uniform(-1, 1, 2)
    along = np.linspace(-1, 1, 24)
    heading = bend[0] * along * 1.2 + bend[1] * np.sin(2 * along) * 0.6
    line = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), 0) / 12
    side = np.stack([-np.sin(heading), np.cos(heading)], -1) * rng.uniform(0.1, 0.28) * (1 - 0.4 * along[:, None] ** 8)
    outline = np.concatenate([line + side, (line - side)[::-1]])
    return outline - (outline.min(0) + outline.max(0)) / 2


def star(rng: np.random.Generator) -> Outline:
    """Return a star of 4 to 8 points."""
    corners = 2 * int(rng.integers(4, 9))
    return np.where(np.arange(corners) % 2, rng.uniform(0.35, 0.65), 1)[:, None] * circle(corners)


def ring(rng: np.random.Generator) -> Outline:
    """Return an ellipse with a hole."""
    outer = np.concatenate([circle(48), [(1, 0)]])
    return np.concatenate([outer, rng.uniform(0.45, 0.7) * outer[::-1]]) * (1, rng.uniform(0.6, 1))


OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "ellipse": ellipse,
    "polygon": polygon,
    "blob": blob,
    "stroke": stroke,
    "star": star,
    "ring": ring,
}
"""The classes of drawn objects."""

TRAINING_CLASSES = ("ellipse", "polygon", "blob", "stroke")
HELD_OUT_CLASSES = ("star", "ring")
"""Classes that no training scene has."""


def place(outline: Outline, centre: tuple[float, float], radius: float, angle: float) -> Outline:
    """Return an outline turned, scaled and moved.

    Args:
      outline: around the origin.
      centre: (x, y) where the origin goes.
      radius: what a length of 1 becomes.
      angle: of the turn, in radians.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    return radius * outline @ np.array([[cos, sin], [-sin, cos]]) + centre
