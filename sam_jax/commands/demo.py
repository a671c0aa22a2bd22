"""A first look without any download: a small SAM finds objects in a drawn scene that it has not seen."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image
from rich.console import Console
from rich.table import Table

from sam_jax.files import conversion
from sam_jax.images.draw import COLOURS, draw_score, draw_tokens, line_width, overlay
from sam_jax.predictor import Predictor
from sam_jax.prompts import Prompts
from sam_jax.train.data.scenes import Scene, draw_scene
from sam_jax.train.evaluation.metrics import mask_iou
from sam_jax.train.user.clicks import box_around, next_click

SMALL = Path(__file__).parents[1] / "data" / "small.safetensors"
"""A small SAM in PyTorch's names; a JSON file beside it says how it was trained, and how good it is."""

SEED = 59
"""Of the scene; training sees none of its kind of seeds."""
SIZE = (512, 512)

NEXT = (
    "sam-jax convert sam_vit_b -o sam_vit_b --encoder           # download the published ViT-B, and convert it",
    "sam-jax predict PHOTO.jpg --checkpoint sam_vit_b --point 500,375 -o overlay.png",
    "sam-jax finetune scenes --checkpoint {small} -o run --loop.steps 50",
)
"""What to try after the demo."""


class Asked(NamedTuple):
    """What the demo asks of the model for one object.

    Attributes:
      name: the kind of prompt.
      truth: the object's true mask.
      prompt: arguments of `Predictor.predict`, without the axis of objects.
    """

    name: str
    truth: Bool[np.ndarray, "height width"]
    prompt: dict[str, Any]


def run(folder: Path, console: Console) -> Path:
    """Convert the small checkpoint, encode a scene, decode all prompts in one call, and return the picture's path.

    Args:
      folder: where the converted checkpoint and the picture go; what an earlier run left there is replaced.
      console: where to say what happens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    console.print(about_small())
    converted = folder / "small"
    conversion.run(str(SMALL), converted, encoder=True, overwrite=True)
    console.print(f"converted  {SMALL} (official layout and names) to {converted}")

    predictor, scene = Predictor.load(converted), draw_scene(SEED, SIZE)
    predictor.set_image(scene.image)
    console.print(f"encoded    a drawn scene of {SIZE[1]} x {SIZE[0]} pixels with {len(scene.masks)} masks")
    asked = prompts_for(scene)
    given: Any = {name: [one.prompt.get(name) for one in asked] for name in ("points", "labels", "boxes", "mask")}
    masks, scores, logits = predictor.predict(**given)
    console.print(f"decoded    {len(asked)} prompt sets in one call: low-res logits {list(logits.shape)}")

    best = scores.argmax(-1)
    picture = Image.fromarray(scene.image)
    table = Table("asked by", "IoU with the true mask", "IoU that the model expects")
    table.caption = "IoU: 1 is the true mask to the pixel, 0 nothing of it"
    for i, one in enumerate(asked):
        mask, score = masks[i, best[i]], scores[i, best[i]]
        table.add_row(one.name, f"{float(mask_iou(mask, one.truth)):.3f}", f"{score:.3f}")
        colour = COLOURS[i % len(COLOURS)]
        picture = Image.fromarray(overlay(np.asarray(picture), mask, colour, line_width(*SIZE)))
    for i, one in enumerate(asked):
        tokens = Prompts.build(**{name: [value] for name, value in one.prompt.items() if name != "mask"}, images=False)
        draw_tokens(picture, np.asarray(tokens.coordinates[0]), np.asarray(tokens.labels[0]))
        draw_score(picture, masks[i, best[i]], float(scores[i, best[i]]), COLOURS[i % len(COLOURS)])
    picture.save(folder / "demo.png")
    console.print(table)
    console.print(f"picture    {folder / 'demo.png'}\n\nTry next:")
    for command in NEXT:
        console.print(f"  {command.format(small=converted)}", highlight=False, soft_wrap=True)
    return folder / "demo.png"


def about_small() -> str:
    """Return in a sentence what the small checkpoint is."""
    about = json.loads(SMALL.with_suffix(".json").read_text("utf-8"))
    hours, found = sum(run["hours"] for run in about["runs"]), about["evaluation"]["scenes"]
    return (
        f"A small SAM, trained for {hours:.1f} hours on two CPU cores, on drawn scenes. On {found['images']} others, "
        f"its mean IoU is {found['1 click, best of three']:.2f} after one click (best of three masks) and "
        f"{found['box, by score']:.2f} with a box."
    )


def prompts_for(scene: Scene) -> list[Asked]:
    """Return a prompt of another kind for each of a scene's four largest objects."""
    objects = [mask for mask, kind in zip(scene.masks, scene.kinds, strict=True) if kind == "object"]
    largest = sorted(objects, key=lambda mask: -int(mask.sum()))[:4]
    asked = []
    for name, truth in zip(("one click", "two clicks", "a box", "a click and a rough mask"), largest, strict=False):
        clicks = _clicks(truth, 2 if name == "two clicks" else 1)
        prompt: dict[str, Any] = {"points": clicks, "labels": [1] * len(clicks)}
        if name == "a box":
            prompt = {"boxes": box_around(truth)}
        elif name == "a click and a rough mask":
            prompt["mask"] = _rough(truth)
        asked.append(Asked(name, truth, prompt))
    return asked


def _clicks(truth: Bool[np.ndarray, "height width"], number: int) -> list[tuple[float, float]]:
    """Clicks in an object, each as deep as possible in what the earlier ones leave of it."""
    found, left = [], truth.copy()
    for _ in range(number):
        if click := next_click(left, np.zeros_like(left), np.zeros_like(left)):
            found.append((click.x, click.y))
            left[:, : click.x] = False
    return found


def _rough(truth: Bool[np.ndarray, "height width"], cell: int = 32) -> Bool[np.ndarray, "height width"]:
    """The mask in coarse squares."""
    height, width = truth.shape
    share = truth.reshape(height // cell, cell, width // cell, cell).mean((1, 3))
    return np.kron(share > 0.5, np.ones((cell, cell), bool))
