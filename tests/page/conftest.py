"""One server with the small SAM and drawn scenes, which all tests of the page share."""

import importlib.util
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sam_jax.train.data.scenes import Scene, draw_scene

MISSING = [name for name in ("fastapi", "uvicorn", "httpx") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []

SEEDS = (59, 7)
SIZE = (512, 512)


class Server(NamedTuple):
    """A server that answers, and what its images show."""

    address: str
    app: Any
    predictor: Any
    ids: list[str]  # of the scenes' images
    scenes: list[Scene]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import uvicorn
    from PIL import Image

    from sam_jax.commands.demo import SMALL
    from sam_jax.page import engine
    from sam_jax.page.app import create_app
    from sam_jax.page.gallery import Gallery
    from sam_jax.page.serve import listen
    from sam_jax.predictor import Predictor

    folder: Path = tmp_path_factory.mktemp("page")
    scenes = [draw_scene(seed, SIZE) for seed in SEEDS]
    files = [folder / f"scene-{seed}.png" for seed in SEEDS]
    for scene, file in zip(scenes, files, strict=True):
        Image.fromarray(scene.image).save(file)
    kept = folder / "objects"
    patch = pytest.MonkeyPatch()
    patch.setattr(engine, "TOKENS", engine.TOKENS[-1:])  # few programs to compile
    predictor = Predictor.load(SMALL)
    app = create_app(predictor, files, name="the small SAM", objects=kept, host="127.0.0.1")
    bound: socket.socket = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=running.run, args=([bound],))
    thread.start()
    ids = [image.id for image in Gallery(files, folder).images()]
    yield Server(f"http://127.0.0.1:{bound.getsockname()[1]}", app, predictor, ids, scenes)
    running.should_exit = True
    thread.join(20)
    bound.close()
    patch.undo()


@pytest.fixture
def truth(server: Server) -> np.ndarray:
    """The mask of the first scene's largest object."""
    scene = server.scenes[0]
    objects = [mask for mask, kind in zip(scene.masks, scene.kinds, strict=True) if kind == "object"]
    return max(objects, key=np.count_nonzero)
