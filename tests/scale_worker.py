"""What `test_scale.py` starts: FOLDER. Two actors of a Ray cluster on this machine find the masks of the images in it.

The first actor to get a second batch is killed while it works on it. What the fleet made goes to `rows.json`. Then the
code of the page is run.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import ray
from pages import blocks

from sam_jax.commands.demo import SMALL
from sam_jax.scale import Batch, MaskActor

SETTINGS = {"points_per_side": 3, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.3}


class Mortal(MaskActor):
    """Is killed at its second batch, unless another one was; rows tell who made them."""

    def __init__(self, grave: Path) -> None:
        super().__init__(SMALL, **SETTINGS)
        self.grave, self.batches = grave, 0

    def __call__(self, batch: Batch) -> Batch:
        self.batches += 1
        result = super().__call__(batch)
        if self.batches == 2 and not self.grave.exists():
            self.grave.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return result | {"process": np.full(len(result["masks"]), os.getpid())}


def main(folder: Path) -> None:
    images = ray.data.read_images(str(folder / "images"), mode="RGB", include_paths=True)
    actors = {"batch_size": 2, "num_cpus": 1, "compute": ray.data.ActorPoolStrategy(size=2)}
    done = images.map_batches(Mortal, fn_constructor_args=[folder / "killed"], **actors)
    (folder / "rows.json").write_text(json.dumps(done.take_all()))

    (code,) = blocks("docs/scale.md", "py")
    os.chdir(folder)
    exec(compile(code, "docs/scale.md", "exec"), {})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray") as workspace:  # a socket's path may have 107 characters
        ray.init(num_cpus=4, include_dashboard=False, _temp_dir=workspace)
        main(Path(sys.argv[1]))
        ray.shutdown()
