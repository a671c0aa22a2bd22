"""The `sam-jax page` command: a model, images, and an address to click at."""

import contextlib
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from platformdirs import user_cache_path, user_data_path
from rich.console import Console

from sam_jax.atomic import written_whole
from sam_jax.commands.demo import SMALL
from sam_jax.images.image_files import image_files
from sam_jax.page.app import create_app
from sam_jax.page.guard import LOOPBACK
from sam_jax.page.serve import listen, serve
from sam_jax.predictor import Predictor
from sam_jax.train.data.scenes import draw_scene

SCENES = (59, 7, 11, 23, 31, 42)
"""Seeds of the scenes that are shown where no image is given; training sees none of them."""

SIZE = (512, 512)

ANYWHERE = ("0.0.0.0", "::")
"""Stand for all addresses of this machine."""


def run(
    images: Sequence[Path],
    checkpoint: str | None,
    host: str,
    port: int,
    browser: bool,
    console: Console,
    *,
    family: str | None = None,
    prefix: str | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
      images: image files, and folders of them; without any, drawn scenes.
      checkpoint: what `Predictor.load` takes; None for the small SAM of the package.
      host: the address to listen at.
      port: likewise.
      browser: open the page.
      console: where to say what to open.
      family: as in `sam_jax.load`.
      prefix: likewise.

    Raises:
      ValueError: for images or a checkpoint that cannot be used.
      OSError: for an address that cannot.
    """
    files = image_files(images) if images else drawn_scenes(user_cache_path("sam-jax", appauthor=False) / "scenes")
    with contextlib.closing(listen(host, port)) as bound:
        with console.status(f"Loading {checkpoint or 'the small SAM'}"):
            predictor = Predictor.load(checkpoint or SMALL, family=family, prefix=prefix)
        token = None if host in LOOPBACK else secrets.token_urlsafe(24)
        name = Path(checkpoint).name if checkpoint else "the small SAM, trained on drawn scenes"
        objects = user_data_path("sam-jax", appauthor=False) / "objects"
        app = create_app(predictor, files, name=name, objects=objects, host=host, token=token)
        named = socket.gethostname() if host in ANYWHERE else f"[{host}]" if ":" in host else host
        shown = f"http://{named}:{bound.getsockname()[1]}/" + (f"?token={token}" if token else "")
        console.print(f"The page is at {shown}  (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        if token is not None:
            console.print("Everybody who has this address can use it, over a connection that is not encrypted.")
        serve(app, bound, shown if browser else None)


def drawn_scenes(folder: Path) -> list[Path]:
    """Return image files of scenes, which are drawn where they are missing."""
    files = [folder / f"scene-{seed}.png" for seed in SCENES]
    for seed, file in zip(SCENES, files, strict=True):
        if not file.exists():
            with written_whole(file, overwrite=True) as path:
                Image.fromarray(draw_scene(seed, SIZE).image).save(path, "PNG")
    return files
