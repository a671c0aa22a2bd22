"""One of two processes that `test_masks_distributed.py` starts: PORT PROCESS FOLDER.

It finds the masks of its share of a folder of images. The second process is killed while it writes its second file.
"""

import os
import signal
import sys
from pathlib import Path

import jax
from rich.console import Console

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.commands import masks
from sam_jax.commands.demo import SMALL

SETTINGS = AutomaticConfig(points_per_side=3, pred_iou_thresh=0.3, stability_score_thresh=0.3)


def be_killed_while_writing(count: int) -> None:
    """Leave half of the given file and no chance to clean up."""
    write, suffix = masks.WRITERS["coco"]
    written = []

    def dying(path: Path, *arguments: object) -> None:
        write(path, *arguments)
        written.append(path)
        if len(written) == count:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    masks.WRITERS["coco"] = dying, suffix


def main(port: str, process: int, folder: Path) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process, initialization_timeout=60)
    if process == 1:
        be_killed_while_writing(2)
    masks.run([folder / "images"], str(SMALL), folder / "out", Console(), SETTINGS)
    sys.stdin.read()  # the first process serves the other one until the test has seen that one die
    os._exit(0)  # a clean end would wait for it


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
