"""A first look without any download: random weights in the official layout, converted, loaded, and asked for masks."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from rich.table import Table

from sam_jax.checkpoints import load, save
from sam_jax.config import SamConfig
from sam_jax.convert import from_torch, open_checkpoint, write_tensors
from sam_jax.convert.rules import torch_shapes
from sam_jax.draw import COLOURS, draw_tokens, overlay, side_by_side
from sam_jax.full_size import binary_masks
from sam_jax.model import Sam
from sam_jax.predict import predict_masks
from sam_jax.prompts import Prompts
from sam_jax.resize import input_size_for, mask_to_prompt, to_input_frame
from sam_jax.select import best_masks

SIZE = (300, 400)
"""Height and width of the demo's picture."""


def run(folder: Path, console: Console) -> Path:
    """Make a checkpoint of random weights, convert it, decode a click, a box and a mask, and return the picture's path.

    Args:
      folder: where the checkpoint and the picture go; what an earlier run left there is replaced.
      console: where to say what happens.
    """
    console.print("[bold yellow]The weights are random[/]: the masks mean nothing. This shows the steps, not a result.")
    folder.mkdir(parents=True, exist_ok=True)
    source, converted = folder / "sam_random.safetensors", folder / "sam_random"
    write_tensors(source, random_state_dict(SamConfig()), overwrite=True)
    console.print(f"made       {source}  (official layout and names)")
    conversion = from_torch(open_checkpoint(source).tensors)
    save(converted, Sam(conversion.config), conversion.variables, overwrite=True)
    console.print(f"converted  {converted}")

    model, variables = load(converted)
    prompts = demo_prompts(model.config)
    embedding = np.random.default_rng(1).normal(size=(*model.config.grid_size, model.config.width)).astype(np.float32)
    out = jax.block_until_ready(predict_masks(model, variables, embedding, prompts))
    logits, scores = best_masks(out, prompts)
    console.print(f"decoded    {len(scores)} prompt sets: logits {list(out.logits.shape)}, iou {list(out.iou.shape)}")

    sizes = {"input_size": input_size_for(SIZE, model.config.image_size), "original_size": SIZE}
    masks = np.asarray(binary_masks(logits, **sizes))
    table = Table("prompt", "predicted IoU of masks 0 to 3", "best", "pixels in the mask")
    panels = []
    for i, name in enumerate(("one click", "a box", "a mask")):
        table.add_row(name, "  ".join(f"{x:+.3f}" for x in out.iou[i]), f"{scores[i]:+.3f}", f"{masks[i].sum():,}")
        picture = Image.fromarray(overlay(demo_picture(), masks[i], COLOURS[i]))
        scale = SIZE[0] / sizes["input_size"][0]
        draw_tokens(picture, np.asarray(prompts.coordinates[i]) * scale, np.asarray(prompts.labels[i]))
        panels.append((f"{name}: predicted IoU {scores[i]:+.3f} (random weights)", picture))
    console.print(table)
    side_by_side(panels).save(folder / "demo.png")
    console.print(f"picture    {folder / 'demo.png'}")
    return folder / "demo.png"


def random_state_dict(config: SamConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights under Meta's names: unit-gain matrices, norms of ones, small biases."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.normal(size=shape)
        if len(shape) > 1 and shape[0] > 1 and "gaussian" not in name and "tokens" not in name:
            values /= np.sqrt(np.prod(shape[1:]) if "upscaling" not in name else shape[0])
        elif name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 1:
            values = np.ones(shape)
        return values.astype(np.float32)

    return {name: draw(name, shape) for name, shape in torch_shapes(config).items()}


def demo_prompts(config: SamConfig) -> Prompts:
    """Return one click, one box and one mask on the disc of `demo_picture`."""
    sizes = {"original_size": SIZE, "input_size": input_size_for(SIZE, config.image_size)}
    click = np.asarray(to_input_frame([[150.0, 150.0]], **sizes))
    box = np.asarray(to_input_frame([70.0, 70.0, 230.0, 230.0], **sizes))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc = (x - 150) ** 2 + (y - 150) ** 2 < 70**2
    logits = mask_to_prompt(disc, input_size=sizes["input_size"], mask_size=config.mask_size)
    return Prompts.build(
        points=[click, None, None], labels=[[1], None, None], boxes=[None, box, None], masks=[None, None, logits]
    )


def demo_picture() -> UInt8[np.ndarray, "height width 3"]:
    """Draw a disc and a bar on a gradient."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    picture = np.stack([90 + y / 4, 110 + x / 8, 140 - y / 8], -1)
    picture[(x - 150) ** 2 + (y - 150) ** 2 < 70**2] = (225, 190, 150)
    picture[(abs(x - 310) < 30) & (abs(y - 160) < 100)] = (120, 160, 110)
    return picture.astype(np.uint8)
