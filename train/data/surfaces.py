"""What drawn things look like: colours, gradients, textures and smooth noise, as float images from 0 to 255."""

import colorsys

import numpy as np
from jaxtyping import Float
from PIL import Image

Colour = Float[np.ndarray, " 3"]
Surface = Float[np.ndarray, "h w 3"]


def random_colour(rng: np.random.Generator, unlike: Colour | None = None, distance: float = 80.0) -> Colour:
    """Return a colour from 0 to 255; where another is given, one that is at least so far from it, if found soon.

    Args:
      rng: random numbers.
      unlike: a colour to keep away from.
      distance: in RGB, of 442 from black to white.
    """
    colour = _any_colour(rng)
    for _ in range(5):
        if unlike is None or np.linalg.norm(colour - unlike) >= distance:
            break
        colour = _any_colour(rng)
    return colour


def _any_colour(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.uniform(size=3)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, saturation**0.8, 0.12 + 0.88 * value))


def nearby_colour(rng: np.random.Generator, colour: Colour, deviation: float) -> Colour:
    """Return a colour around another one."""
    return np.clip(colour + rng.normal(size=3) * deviation, 0, 255)


def surface(rng: np.random.Generator, size: tuple[int, int], colour: Colour) -> Surface:
    """Return a surface of about one colour: shaded, and often with a texture of a second colour beside it.

    Args:
      rng: random numbers.
      size: height and width in pixels.
      colour: its mean, about.
    """
    y, x = (np.arange(n, dtype=np.float32) for n in size)
    mixed = _texture(rng, x, y)[..., None] * (nearby_colour(rng, colour, 35) - colour).astype(np.float32)
    slope, angle = rng.uniform(0, 90) / max(size), rng.uniform(0, 2 * np.pi)
    shade = slope * ((x - size[1] / 2) * np.cos(angle) + ((y - size[0] / 2) * np.sin(angle))[:, None])
    mixed += shade[..., None].astype(np.float32)
    mixed += colour.astype(np.float32)
    return mixed


def _texture(rng: np.random.Generator, x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"]) -> np.ndarray:
    """How much of the second colour each pixel has, -1 to 1."""
    kind = rng.uniform()
    if kind < 0.35:
        return np.zeros((len(y), len(x)), np.float32)
    if kind < 0.6:
        return smooth_noise(rng, (len(y), len(x)), cell=rng.uniform(3, 16))
    period, angle = rng.uniform(4, 14), rng.uniform(0, np.pi)
    wave, turn = np.float32(2 * np.pi / period), rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    stripes = np.sin(wave * (cos * x + (sin * y)[:, None]) + np.float32(turn))
    if kind < 0.8:
        return np.clip(3 * stripes, -1, 1)
    return np.clip(3 * stripes * np.sin(wave * (cos * y[:, None] - sin * x)), -1, 1)


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], cell: float) -> Float[np.ndarray, "h w"]:
    """Return noise of deviation about 0.6 that varies over `cell` pixels."""
    height, width = size
    coarse = rng.standard_normal((2 + int(height / cell), 2 + int(width / cell)), np.float32)
    return 0.8 * np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
