"""What the decoder is measured with: numbers and kinds of prompts."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompt sets on images.

    Attributes:
      sets: how many prompt sets on each image.
      clicks: clicks in each.
      box: whether each has a box instead of clicks.
      mask: whether each has a mask prompt, too.
      prepared: whether the images are prepared.
      images: how many images.
    """

    sets: int
    clicks: int = 1
    box: bool = False
    mask: bool = False
    prepared: bool = False
    images: int = 1

    def prompts(self) -> dict[str, np.ndarray]:
        """Return the arguments of `Prompts.build`, with axes [image, prompt set, ...]."""
        rng, batch = np.random.default_rng(0), (self.images, self.sets)
        given = {}
        if self.box:
            corners = rng.uniform(0, 512, (*batch, 2))
            given["boxes"] = np.concatenate([corners, corners + rng.uniform(50, 500, (*batch, 2))], -1)
        else:
            given["points"] = rng.uniform(0, 1024, (*batch, self.clicks, 2))
            given["labels"] = rng.integers(0, 2, (*batch, self.clicks))
        if self.mask:
            given["masks"] = rng.normal(0, 5, (*batch, 256, 256))
        return {name: value.astype(np.float32) for name, value in given.items()}


CASES = {
    "1 click, new image": Case(1),
    "1 click, prepared image": Case(1, prepared=True),
    **{f"{n} x 1 click": Case(n) for n in (16, 64, 256, 1024)},
    **{f"{n} clicks, new image": Case(1, clicks=n) for n in (4, 8, 16, 32)},
    **{f"{n} clicks, prepared image": Case(1, clicks=n, prepared=True) for n in (4, 8, 16, 32)},
    **{f"16 x {n} clicks": Case(16, clicks=n) for n in (4, 8, 16, 32)},
    "box, new image": Case(1, box=True),
    "box, prepared image": Case(1, box=True, prepared=True),
    **{f"{n} x box": Case(n, box=True) for n in (16, 64)},
    "click and mask, new image": Case(1, mask=True),
    "click and mask, prepared image": Case(1, mask=True, prepared=True),
    **{f"{n} x click and mask": Case(n, mask=True) for n in (16, 64)},
    **{f"{n} images, 16 x 1 click each": Case(16, images=n) for n in (2, 4, 8)},
}
