"""`sam-jax masks` by two processes of `jax.distributed`, of which one is killed in the middle of it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from masks_worker import SETTINGS
from PIL import Image
from rich.console import Console

from sam_jax.commands import masks
from sam_jax.commands.demo import SMALL
from sam_jax.train.data.scenes import draw_scene

PATIENCE = 180  # seconds, for a machine that is busy with something else
NAMES = "abcdef"


@pytest.mark.slow
def test_a_killed_process_leaves_whole_files_and_the_same_call_does_the_rest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(NAMES):
        Image.fromarray(draw_scene(seed, (40, 60)).image).save(tmp_path / "images" / f"{name}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # halves the time to compile
    workers = []
    try:
        for process in range(2):
            command = [sys.executable, Path(__file__).parents[1] / "masks_worker.py", port, process, tmp_path]
            with (tmp_path / f"{process}.log").open("w") as output:
                pipes = {"stdin": subprocess.PIPE, "stdout": output, "stderr": subprocess.STDOUT}
                workers.append(subprocess.Popen(map(str, command), env=environment, **pipes))
        assert workers[1].wait(PATIENCE) == -signal.SIGKILL, (tmp_path / "1.log").read_text()
        workers[0].communicate(timeout=PATIENCE)
        assert workers[0].returncode == 0, (tmp_path / "0.log").read_text()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    out = tmp_path / "out"
    assert {path.stem for path in out.glob("*.json")} == {*NAMES[0::2], NAMES[1], "settings"}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    masks.run([tmp_path / "images"], str(SMALL), out, Console(), SETTINGS)
    assert sorted(path.name for path in out.iterdir()) == [*(f"{name}.json" for name in NAMES), "settings.json"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for name in NAMES:
        assert json.loads((out / f"{name}.json").read_text())["annotations"]
