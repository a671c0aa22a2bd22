"""The small SAM that the package ships: its settings, its training on drawn scenes, and the file that it ends as.

`python -m sam_jax.train.commands.small` and one of

train RUN             # again, after it was stopped: it goes on where it was
resize RUN/model NEW  # to larger images, to go on with: train RUN2 --checkpoint NEW
grow RUN2/model NEW   # to a larger network: train RUN3 --checkpoint NEW
ship RUN RUN2 RUN3    # sam_jax/data/small.safetensors and small.json
"""

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import SamConfig
from sam_jax.decoder.model import Sam, Variables
from sam_jax.encoders.config import ViTConfig
from sam_jax.encoders.vit import ImageEncoder, resize_positions
from sam_jax.files import conversion
from sam_jax.files.checkpoints import load, load_encoder, save
from sam_jax.files.manifest import Provenance
from sam_jax.train.commands import evaluate as evaluate_command
from sam_jax.train.commands.finetune import MODEL, SETTINGS, finetune
from sam_jax.train.commands.grow import deepen_encoder, widen_decoder, widen_neck
from sam_jax.train.commands.held_out import SCENES
from sam_jax.train.config import FinetuneConfig, LoopConfig, LossConfig, OptimizerConfig, Simulation
from sam_jax.train.evaluation.report import MEANS_AFTER
from sam_jax.train.learning.lines import read_lines
from sam_jax.train.learning.loop import METRICS

IMAGE_SIZE = (128, 128)
"""What training begins with: a step takes a quarter of the time of one with `LARGER`."""
LARGER = 256
"""Side in pixels of the images that training goes on with, whose details are twice as many tokens long."""
GROUP = 4
"""Blocks of a grown encoder up to a global one, and with it."""

ENCODER = ViTConfig(
    width=96,
    depth=5,
    heads=3,
    mlp_width=384,
    patch_size=8,
    window_size=8,
    global_blocks=(2, 4),
    out_width=64,
    image_size=IMAGE_SIZE,
)
"""The image encoder: a ViT whose windows are quarters of the first images, and a sixteenth of the larger ones."""
DECODER = SamConfig(
    width=64, heads=4, mlp_width=256, iou_head_width=64, image_size=IMAGE_SIZE, grid_size=ENCODER.grid_size
)
"""The decoder: as deep as the full one, a quarter as wide."""

TRAINING = FinetuneConfig(
    train="everything",
    batch=8,
    objects=6,
    target_scale=2,
    loss=LossConfig(focal=2.0, size_aware=False),
    simulation=Simulation(clicks=1, refinements=False),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=100, weight_decay=0.05, average=0.99),
    loop=LoopConfig(steps=3000, log_every=20, save_every=100),
)
"""How it is trained: everything at once, from random numbers. More rounds of clicks leave time for fewer images."""

START = "start"
DATA = Path(str(resources.files("sam_jax"))) / "data"
"""The package's folder of the shipped checkpoint."""


def train(
    run: Annotated[Path, tyro.conf.Positional],
    checkpoint: str | None = None,
    steps: int = TRAINING.loop.steps,
    clicks: int = TRAINING.simulation.clicks,
    seed: int = TRAINING.seed,
) -> None:
    """Train the small SAM, or go on with a run that was stopped.

    Args:
      run: the run's folder.
      checkpoint: what to begin with, such as the model of another run or the shipped file; by default random numbers.
      steps: of the whole schedule; a run that is there can be given more.
      clicks: rounds after the first prompt.
      seed: of the scenes' order, the prompts and the random numbers.
    """
    if checkpoint is None and not (run / START).exists():
        start(run / START, seed)
    config = dataclasses.replace(
        TRAINING,
        seed=seed,
        simulation=dataclasses.replace(TRAINING.simulation, clicks=clicks),
        loop=dataclasses.replace(TRAINING.loop, steps=steps),
    )
    finetune(SCENES, checkpoint or str(run / START), run, config)


def start(folder: Path, seed: int = 0) -> None:
    """Write the untrained checkpoint of a seed, which `sam_jax.load` and `sam_jax.load_encoder` read.

    Args:
      folder: to make.
      seed: of the random numbers.
    """
    of_decoder, of_encoder, of_positions = jax.random.split(jax.random.key(seed), 3)
    model, encoder = Sam(DECODER), ImageEncoder(ENCODER)
    variables = _looking_at_places(model.init(of_decoder))
    encoder_variables = jax.jit(encoder.init)(of_encoder, jnp.zeros((*IMAGE_SIZE, 3)))
    # The module begins with zeros; with these, the tokens of a plain image can be told apart.
    positions = encoder_variables["params"]["position_embedding"]
    encoder_variables["params"]["position_embedding"] = 0.02 * jax.random.normal(of_positions, positions.shape)
    provenance = Provenance(source=f"random numbers of seed {seed}")
    save(folder, model, variables, encoder, encoder_variables, provenance=provenance)


def resize(
    checkpoint: Annotated[str, tyro.conf.Positional], out: Annotated[Path, tyro.conf.Positional], side: int = LARGER
) -> None:
    """Write a checkpoint for square images of another size: its positions interpolated, all else as it is.

    Args:
      checkpoint: with a ViT; what `sam_jax.load` takes.
      out: the folder to make.
      side: of the images, in pixels.

    Raises:
      ValueError: for another image encoder than a ViT.
    """
    (model, variables), (encoder, encoder_variables) = load(checkpoint), _load_vit(checkpoint)
    new = dataclasses.replace(encoder.config, image_size=(side, side))
    params = resize_positions(encoder_variables["params"], encoder.config, new)
    decoder = dataclasses.replace(model.config, image_size=new.image_size, grid_size=new.grid_size)
    provenance = Provenance(source=f"{Path(checkpoint).name}, resized to {side} pixels")
    save(out, Sam(decoder), variables, ImageEncoder(new), {"params": params}, provenance=provenance)


def grow(
    checkpoint: Annotated[str, tyro.conf.Positional], out: Annotated[Path, tyro.conf.Positional], seed: int = 0
) -> None:
    """Write a checkpoint of a larger network that computes the same: twice the decoder's width, more encoder blocks.

    Args:
      checkpoint: with a ViT; what `sam_jax.load` takes.
      out: the folder to make.
      seed: of the random numbers that let copies learn different things.

    Raises:
      ValueError: for another image encoder than a ViT.
    """
    (model, variables), (encoder, encoder_variables) = load(checkpoint), _load_vit(checkpoint)
    of_decoder, of_neck, of_blocks = jax.random.split(jax.random.key(seed), 3)
    model, variables = widen_decoder(of_decoder, model, variables)
    encoder, encoder_variables = widen_neck(of_neck, encoder, encoder_variables)
    encoder, encoder_variables = deepen_encoder(of_blocks, encoder, encoder_variables, GROUP)
    save(
        out,
        model,
        variables,
        encoder,
        encoder_variables,
        provenance=Provenance(source=f"{Path(checkpoint).name}, grown"),
    )


def _load_vit(checkpoint: str) -> tuple[ImageEncoder, Variables]:
    encoder, variables = load_encoder(checkpoint)
    if not isinstance(encoder, ImageEncoder):
        raise ValueError(f"{checkpoint} must have a ViT as its image encoder; its settings are {encoder.config}.")
    return encoder, variables


def _looking_at_places(variables: Variables) -> Variables:
    """Let prompts and image tokens begin by attending to those at their own place.

    Until training has found out that a click's place matters, the best mask is an empty one. Queries that are projected
    as keys are match best where positions are equal.
    """
    params: dict[str, Any] = flatten_dict(variables["params"], sep="/")
    for path in params:
        if "to_" in path and path.endswith("query/kernel"):
            params[path] = 1.5 * params[path.replace("query", "key")]
        elif path.endswith(("label_embedding", "not_a_point_embedding", "no_mask_embedding")):
            params[path] = 0.1 * params[path]  # beside a position, which has a norm of sqrt(width / 2)
    return variables | {"params": unflatten_dict(params, sep="/")}


def ship(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path = DATA, images: int = 300, note: str = ""
) -> None:
    """Write the last run's model in float16 with Meta's names, and beside it where it is from and how good the file is.

    Args:
      runs: in the order in which each went on from the one before.
      out: the folder to write to.
      images: of how many to measure, of held-out scenes and of held-out shapes each.
      note: what else is to be said about the runs.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "small.safetensors"
    conversion.run(str(runs[-1] / MODEL), file, dtype="float16", encoder=True, overwrite=True)
    found = {}
    for data in evaluate_command.SCENES:
        report = runs[-1] / f"evaluation-{data}"
        evaluate_command.run(data, str(file), report, images=images, cap=MEANS_AFTER[-1], overwrite=True)
        found[data] = figures(json.loads((report / "evaluation.json").read_text("utf-8")))
    about = {"note": note, "runs": [describe_run(run) for run in runs], "evaluation": found}
    (out / "small.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Return the main numbers of an evaluation: mean IoUs, and how far predicted ones are from true ones."""
    clicks, boxes = report["all"]["click_iou"], report["all"]["box_iou"]
    return {
        "images": report["images"],
        "objects": report["all"]["objects"],
        "1 click, best of three": clicks["oracle"]["1"],
        "1 click, by score": clicks["score"]["1"],
        "3 clicks": clicks["score"]["3"],
        "5 clicks": clicks["score"]["5"],
        "box, best of three": boxes["oracle"],
        "box, by score": boxes["score"],
        "box, mask 0": boxes["mask 0"],
        "error of the predicted IoU": report["calibration"]["error"],
    }


def describe_run(run: Path) -> dict[str, Any]:
    """Return what a run was told and by what command, and how far it came: steps, and hours of computing."""
    lines = read_lines(run / METRICS)
    before = [0, *(line["step"] for line in lines)]
    seconds = sum(line["seconds"] * (line["step"] - last) for line, last in zip(lines, before, strict=False))
    told = json.loads((run / SETTINGS).read_text("utf-8"))
    config, checkpoint = told["config"], Path(told["checkpoint"])
    *_, folder, name = "", *checkpoint.parts
    other = f"{folder}/{name}" if name in (START, MODEL) else name
    begun = "" if other == f"{run.name}/{START}" else f" --checkpoint {other}"
    of_config = f"--steps {config['loop']['steps']} --clicks {config['simulation']['clicks']} --seed {config['seed']}"
    return {
        "command": f"python -m sam_jax.train.commands.small train {run.name}{begun} {of_config}",
        "steps": lines[-1]["step"],
        "hours": round(seconds / 3600, 2),
        "config": config,
    }


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "resize": resize, "grow": grow, "ship": ship})
