"""Two processes of four virtual devices each, connected over loopback; the second is killed in the middle of it."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed_worker import MODEL, SIZES
from random_model import random_embedding, random_variables

from sam_jax import Prompts, predict_masks
from sam_jax.batch.folder import predict_folder

PATIENCE = 120  # seconds, for a machine that is busy with something else
NAMES = [f"image_{i}.npz" for i in range(9)]
TOLERANCE = 1e-4  # on logits of about 10


def prepare(folder: Path) -> dict[str, np.ndarray]:
    """Write nine images of four prompt sets each, the first two also as one file with what is expected of them."""
    rng = np.random.default_rng(5)
    points, labels = rng.uniform(0, 128, (9, 4, 3, 2)).astype(np.float32), np.ones((9, 4, 3), int)
    embeddings = np.asarray(random_embedding(9))
    out = predict_masks(MODEL, random_variables(MODEL), embeddings, Prompts.build(points, labels))
    expected = {"logits": np.asarray(out.logits), "iou": np.asarray(out.iou)}
    (folder / "source").mkdir()
    for i, name in enumerate(NAMES):
        np.savez(folder / "source" / name, embedding=embeddings[i], points=points[i], labels=labels[i])
    together = {"embeddings": embeddings, "points": points, "labels": labels} | expected
    np.savez(folder / "together.npz", **{name: array[:2] for name, array in together.items()})
    return expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, np.ndarray]:
    return prepare(folder)


@pytest.fixture(scope="module")
def reports(folder, expected) -> list[dict[str, Any]]:
    """What both processes wrote about the mesh that they shared, once the second was killed and the first was done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"{process}.log" for process in range(2)]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # halves the time to compile
    workers = []
    try:
        for process, log in enumerate(logs):
            command = [sys.executable, Path(__file__).parents[1] / "distributed_worker.py", port, process, folder]
            with log.open("w") as output:
                pipes = {"stdin": subprocess.PIPE, "stdout": output, "stderr": subprocess.STDOUT}
                workers.append(subprocess.Popen(map(str, command), env=environment, **pipes))
        assert workers[1].wait(PATIENCE) == -signal.SIGKILL, logs[1].read_text()
        workers[0].communicate(timeout=PATIENCE)
        assert workers[0].returncode == 0, logs[0].read_text()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


def test_two_processes_decode_on_one_mesh(reports):
    for report in reports:
        assert report["devices"] == [4, 8]
        assert report["shards"] == 4 * [[1, 1]]
        assert report["difference"] < TOLERANCE


def test_two_processes_cut_what_they_padded(reports):
    for report in reports:
        assert report["cut"] == [2, 3]
        assert report["cut difference"] < TOLERANCE


def test_a_killed_process_leaves_whole_results_which_the_next_run_completes(folder, expected, reports):
    source, target = folder / "source", folder / "target"
    first, second = NAMES[0::2], NAMES[1::2]
    assert {path.name for path in target.glob("*.npz")} == {*first, *second[:2]}
    assert len(list(target.iterdir())) == 8, "seven results, and what was being written"
    before = {path: path.stat().st_mtime_ns for path in target.glob("*.npz")}
    written = predict_folder(MODEL, random_variables(MODEL), source, target, sizes=SIZES)
    assert sorted(path.name for path in written) == second[2:]
    assert sorted(path.name for path in target.iterdir()) == NAMES
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    for i, name in enumerate(NAMES):
        with np.load(target / name) as result:
            np.testing.assert_allclose(result["logits"], expected["logits"][i], atol=TOLERANCE)
            np.testing.assert_allclose(result["iou"], expected["iou"][i], atol=TOLERANCE)
