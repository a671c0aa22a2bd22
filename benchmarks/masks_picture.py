"""The picture of automatic masks in the docs.

    python -m benchmarks.masks_picture docs

asks the small SAM for everything in a drawn scene, and writes masks.png to a folder: the scene, and its masks.
"""

from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import sam_jax
from sam_jax.commands.demo import SMALL
from sam_jax.images.draw import draw_everything, side_by_side
from sam_jax.train.data.scenes import draw_scene

SETTINGS = {"points_per_side": 16, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.88, "min_mask_region_area": 400}


def main(folder: tyro.conf.Positional[Path], seed: int = 0) -> None:
    """Write the picture.

    Args:
      folder: where masks.png goes.
      seed: of the scene.
    """
    image = np.asarray(draw_scene(seed, (384, 512)).image)
    records = sam_jax.Predictor.load(SMALL).generate(image, **SETTINGS)
    largest_first = sorted(records, key=lambda record: -record["area"])
    drawn = draw_everything(image, [record["segmentation"] for record in largest_first])
    panels = [("a drawn scene", Image.fromarray(image)), (f"{len(records)} masks", Image.fromarray(drawn))]
    side_by_side(panels).quantize(256).save(folder / "masks.png", optimize=True)


if __name__ == "__main__":
    tyro.cli(main)
