"""`sam-jax finetune --check`: what is in a data set, as a table and a contact sheet. Nothing is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sam_jax.atomic import written_whole
from sam_jax.files.checkpoints import load
from sam_jax.images.draw import draw_everything, side_by_side, stacked
from sam_jax.train.commands.held_out import classes_of
from sam_jax.train.commands.suggest import suggested
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data.examples import Example, number_of_files
from sam_jax.train.data.looks import Look, flat_sentence, look_at
from sam_jax.train.data.sources import open_source

SHEET, SUGGESTED = "check.png", "suggested.json"
SHOWN = 24
"""Images of the contact sheet."""
ACROSS = 4
SIDE = 240
"""Of an image on the sheet, in pixels."""
ROWS = 40
"""Images that the table has a row for."""
QUANTILES = (0.05, 0.5, 0.95)


def check(
    data: str,
    checkpoint: str,
    out: Path,
    config: FinetuneConfig,
    *,
    family: str | None = None,
    prefix: str | None = None,
) -> None:
    """Read a whole data set, print a table of it, and write a contact sheet and settings to try first to a folder.

    Args:
      data: a COCO JSON file or a folder (`sam_jax.train.data.sources.open_source`).
      checkpoint: whose decoder says how large masks are, as `sam_jax.load` takes.
      out: the folder, which training may take afterwards.
      config: says how data is read.
      family: of the checkpoint.
      prefix: likewise.

    Raises:
      ValueError: for bad data: one error names all that is wrong.
    """
    decoder = load(checkpoint, family=family, prefix=prefix)[0].config
    how: dict[str, Any] = {"split_components": config.split_components, "reading": config.reading, "tile": config.tile}
    source = open_source(Path(data), **how, classes=classes_of(config, decoder))
    shown = set(np.linspace(0, len(source) - 1, min(len(source), SHOWN), dtype=int).tolist())
    looks, pictures = [], []
    for index in track(range(len(source)), "Reading images", console=Console(stderr=True)):
        looks.append(look_at(source, index, decoder))
        if index in shown:
            pictures.append(thumbnail(source[index]))
    with written_whole(Path(out) / SHEET, overwrite=True) as file:
        contact_sheet(pictures).save(file, "PNG")
    screen = Console()
    screen.print(table(looks))
    screen.print(summary(looks, "images" if config.tile is None else "tiles"))
    for note in (*source.notes, *warnings(looks, config.reading.range)):
        screen.print(note)
    settings = suggested(config, number_of_files(source))
    with written_whole(Path(out) / SUGGESTED, overwrite=True) as file:
        file.write_text(settings.to_json() + "\n", "utf-8")
    screen.print(f"Wrote {Path(out) / SHEET}")
    screen.print(
        f"Worth trying first: train {settings.train} for {settings.loop.steps} steps. These settings are in "
        f"{Path(out) / SUGGESTED}; put --config {Path(out) / SUGGESTED} in the place of --check and other settings."
    )


def table(looks: Sequence[Look]) -> Table:
    """Return a row for each of the first images."""
    rows = Table("image", "size", "values", "range", "seen as", "objects", "areas")
    for look in looks[:ROWS]:
        height, width = look.size
        seen = f"{look.used[0]:.0f}..{look.used[1]:.0f}" + (" flat" if look.is_flat else "")
        values = f"{look.values[0]:.5g}..{look.values[1]:.5g}"
        areas = f"{look.areas.min()}..{look.areas.max()}" if len(look.areas) else ""
        rows.add_row(look.name, f"{height} x {width}", look.kind, values, seen, str(len(look.areas)), areas)
    rows.caption = "areas in pixels; seen as: 8-bit values of nearly all pixels"
    if len(looks) > ROWS:
        rows.caption = f"and {len(looks) - ROWS:,} more images; {rows.caption}"
    return rows


def summary(looks: Sequence[Look], kind: str) -> str:
    """Return the numbers of all images, or of all tiles, together in words."""
    areas = np.concatenate([look.areas for look in looks])
    quantiles = ", ".join(
        f"{100 * share:.0f} %: {area:,.0f}"
        for share, area in zip(QUANTILES, np.quantile(areas, QUANTILES), strict=True)
    )
    return f"{len(looks):,} {kind}, {len(areas):,} objects. Quantiles of the areas in pixels: {quantiles}."


def warnings(looks: Sequence[Look], rule: str) -> list[str]:
    """Return what is wrong with images that can be read all the same."""
    found = []
    if flat := [(look.name, look.used) for look in looks if look.is_flat]:
        found.append(flat_sentence(flat, len(looks), rule))
    if lost := sum(look.lost for look in looks):
        objects = sum(len(look.areas) for look in looks)
        found.append(
            f"Warning: {lost:,} of {objects:,} objects are too small for the decoder's masks of their images, and are "
            "not trained on."
        )
    return found


def thumbnail(example: Example) -> tuple[str, Image.Image]:
    """Return an image with its objects in colours, small, and a title for it."""
    picture = Image.fromarray(example.image)
    picture.thumbnail((SIDE, SIDE))
    largest_first = example.masks[np.argsort(-example.masks.sum((1, 2)))]
    small = (np.asarray(Image.fromarray(mask).resize(picture.size)) for mask in largest_first)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    sheet.paste(Image.fromarray(draw_everything(np.asarray(picture), small)))
    return f"{example.name[:24]}: {len(example.masks)} objects", sheet


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures with titles in rows."""
    return stacked([side_by_side(pictures[i : i + ACROSS]) for i in range(0, len(pictures), ACROSS)])
