"""The `sam-jax` command: one function per subcommand, each importing what is heavy when it runs."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import tyro
from platformdirs import user_cache_path
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sam_jax.errors import CheckpointError
from sam_jax.images.read import Reading
from sam_jax.train.config import FinetuneConfig, choose_config

Family = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Prefix = Annotated[str | None, tyro.conf.arg(metavar="PREFIX")]


def convert(
    source: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    naming: Literal["meta", "hf"] = "meta",
    family: Family = None,
    prefix: Prefix = None,
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    encoder: bool = False,
    base: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None,
    overwrite: bool = False,
) -> None:
    """Convert a checkpoint between PyTorch and JAX.

    Args:
      source: a .pth, .pt or .safetensors file, a Hugging Face folder, a folder that this command made, or the name of a
        published checkpoint such as sam_vit_b (a wrong name lists them all), or a repository of the Hugging Face Hub,
        owner/name or owner/name@revision. What is not there is downloaded once.
      out: what to write: a .safetensors or (with PyTorch installed) .pth file, else a folder that sam_jax.load reads.
      naming: whose names the tensors of a file get, Meta's or Hugging Face's.
      family: whose settings to use, where the source does not tell; a wrong name lists them all.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
      dtype: of the trainable parameters; the Gaussian matrix and batch norms' statistics are kept as they are.
      encoder: keep the image encoder, too. A folder that was made so keeps it without being told again.
      base: a PyTorch checkpoint to write back into. The output file has all of its tensors, with these weights in the
        place of its own.
      overwrite: replace what is at the output.
    """
    from sam_jax.files import conversion

    with Console(stderr=True).status(f"Converting {source}"):
        done = conversion.run(
            source,
            out,
            naming=naming,
            family=family,
            prefix=prefix,
            dtype=dtype,
            encoder=encoder,
            base=base,
            overwrite=overwrite,
        )
    origin = asdict(done.provenance)
    if not done.provenance.commit:
        del origin["commit"]  # most checkpoints are from no repository
    notes = [("note", note) for note in done.notes]
    _print_rows([("wrote", str(out)), *((name, text or "unknown") for name, text in origin.items()), *notes])


def inspect(checkpoint: Annotated[str, tyro.conf.Positional], family: Family = None, prefix: Prefix = None) -> None:
    """Say what a checkpoint is, without reading its numbers.

    The exit code is 1 if it cannot be converted.

    Args:
      checkpoint: as `sam-jax convert` takes.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
    """
    from sam_jax.commands.inspect import inspect

    found = inspect(checkpoint, family=family, prefix=prefix)
    _print_rows(found.rows)
    if found.problem:
        raise CheckpointError(found.problem)


def predict(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    point: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X,Y[,0]")] = (),
    box: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="X0,Y0,X1,Y1")] = (),
    mask: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    multimask: bool = False,
    kind: Literal["overlay", "masks", "coco"] | None = None,
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="STORE")] = None,
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading(),  # noqa: B008 - it is frozen
    family: Family = None,
    prefix: Prefix = None,
    overwrite: bool = False,
) -> None:
    """Predict masks of objects in images, from clicks, boxes or a mask in the images' pixels.

    Every image gets the same prompts. An image that cannot be predicted is named at the end, after the others are done.

    Args:
      images: image files, or folders of them.
      checkpoint: as sam-jax convert takes, with its image encoder.
      out: what to write: a .png file for the overlay of one image, a .json file for COCO's format, else a folder.
      point: a click x,y on the object, or x,y,0 on the background; several belong to one object.
      box: a box x0,y0,x1,y1; several are an object each.
      mask: a picture of the images' size that is not black where the object is.
      multimask: write the three masks for each object, not only the best.
      kind: what to write: the image with masks, prompts and scores on it, a picture of each mask, or COCO's JSON.
      embeddings: a store that sam-jax embed made, to read from instead of encoding.
      reading: how images are read.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
      overwrite: replace what is there.
    """
    from sam_jax.commands.predict import run

    run(
        images,
        checkpoint,
        out,
        Console(stderr=True),
        points=point,
        boxes=box,
        mask=mask,
        multimask=multimask,
        kind=kind,
        embeddings=embeddings,
        reading=reading,
        family=family,
        prefix=prefix,
        overwrite=overwrite,
    )


def masks(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    kind: tyro.conf.UseAppendAction[
        tuple[Literal["coco", "polygons", "labels", "tiff", "table", "picture", "packed"], ...]
    ] = (),
    prompts: Annotated[Path | None, tyro.conf.arg(metavar="TABLE")] = None,
    points_per_side: int = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
    crop_n_layers: int = 0,
    crop_nms_thresh: float = 0.7,
    crop_overlap_ratio: float = 512 / 1500,
    crop_n_points_downscale_factor: int = 1,
    tile: int | None = None,
    min_mask_region_area: int = 0,
    max_masks: int | None = None,
    use_m2m: bool = False,
    distributed: bool = False,
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading(),  # noqa: B008 - it is frozen
    family: Family = None,
    prefix: Prefix = None,
) -> None:
    """Find the masks of everything in images, or of the objects in a table, and write a file for each image.

    An image whose file is there, and that was not changed since, is left as it is. After an interruption, the same
    command does the rest. An image that cannot be read is named at the end, after the others are done.

    Args:
      images: image files, or folders of them.
      checkpoint: as sam-jax convert takes, with its image encoder.
      out: the folder to write to, made where missing.
      kind: what to write of an image, once or more: COCO's JSON with run lengths, which is written if nothing is said;
        the same with polygons, for tools that read no run lengths; a picture that numbers the masks, as 16-bit PNG
        (labels) or as TIFF of 16 or 32 bits; a CSV table with a row for each mask; the image with all masks in colours;
        or a NumPy file with the masks as bits.
      prompts: a CSV table of objects to ask for instead of everything: image, and x0, y0, x1, y1 of a box, or x, y of a
        click; rows with the same object belong together.
      points_per_side: a grid of so many points along each side is asked.
      points_per_batch: points that are decoded before their masks are filtered, a bound on memory.
      pred_iou_thresh: keep a mask if its predicted IoU is above; 0 keeps all.
      stability_score_thresh: keep a mask if its stability score is not below; 0 keeps all.
      stability_score_offset: how far the stability score moves the logits' threshold up and down.
      box_nms_thresh: of two masks whose boxes have a larger IoU, keep the one of the higher score.
      crop_n_layers: look at crops of the image, too: layer i has 2^i x 2^i of them. It finds small objects.
      crop_nms_thresh: of two masks of several crops, as box_nms_thresh; the smaller crop's is kept.
      crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's shorter side.
      crop_n_points_downscale_factor: layer i has points_per_side / factor^i points along each side.
      tile: look at tiles of so many pixels along each side, too, which overlap by a quarter. It finds small objects in
        large images. Prompts of a table are asked in the tile around them.
      min_mask_region_area: fill holes and remove islands of fewer pixels.
      max_masks: of each image, the first ones.
      use_m2m: hand each mask back as a prompt with its point, for a better one, as SAM 2's own generator may do.
      distributed: this is one of several hosts of a TPU or GPU job, which all run this command; each takes its share.
      reading: how images are read.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
    """
    from sam_jax.automatic.config import AutomaticConfig
    from sam_jax.commands.masks import run

    if distributed:
        import jax

        jax.distributed.initialize()
    settings = AutomaticConfig(
        points_per_side=points_per_side,
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        stability_score_offset=stability_score_offset,
        box_nms_thresh=box_nms_thresh,
        crop_n_layers=crop_n_layers,
        crop_nms_thresh=crop_nms_thresh,
        crop_overlap_ratio=crop_overlap_ratio,
        crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        tile=tile,
        min_mask_region_area=min_mask_region_area,
        max_masks=max_masks,
        use_m2m=use_m2m,
    )
    run(
        images,
        checkpoint,
        out,
        Console(stderr=True),
        settings,
        kinds=kind or ("coco",),
        prompts=prompts,
        reading=reading,
        family=family,
        prefix=prefix,
    )


def embed(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading(),  # noqa: B008 - it is frozen
    family: Family = None,
    prefix: Prefix = None,
) -> None:
    """Encode images and write the embeddings to a store, which sam-jax predict and training read.

    An image that is in the store, and was not changed since, is left as it is. After an interruption, the same command
    does the rest.

    Args:
      images: image files, or folders of them.
      checkpoint: as sam-jax convert takes, with its image encoder.
      out: the store, a folder, made where missing.
      dtype: of the embeddings; bfloat16 takes half the room.
      reading: how images are read.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
    """
    from sam_jax.commands.embed import run

    run(images, checkpoint, out, Console(stderr=True), dtype=dtype, reading=reading, family=family, prefix=prefix)


def demo(out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("sam_jax_demo")) -> None:
    """Convert a small checkpoint, and ask it for the objects of a drawn scene: clicks, a box and a mask in one call.

    Args:
      out: folder for the converted checkpoint and the picture.
    """
    from sam_jax.commands.demo import run

    run(out, Console())


def page(
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = (),
    checkpoint: Annotated[str | None, tyro.conf.arg(metavar="CHECKPOINT")] = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    no_browser: bool = False,
    family: Family = None,
    prefix: Prefix = None,
) -> None:
    """Open a page to click in: masks at once, of the objects that are clicked at. Programs use the same server.

    Args:
      images: image files, or folders of them; without any, drawn scenes.
      checkpoint: as sam-jax convert takes, with its image encoder; without one, the small SAM of the package.
      host: the address to listen at. Others than 127.0.0.1 can be reached from other machines, by a token.
      port: likewise; 0 takes a free one.
      no_browser: only print the page's address.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
    """
    try:
        from sam_jax.commands.page import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sam_jax"):
            raise
        raise ModuleNotFoundError(f'The page needs {error.name}: pip install "sam-jax[page]"') from error

    run(images, checkpoint, host, port, not no_browser, Console(), family=family, prefix=prefix)


def finetune(
    data: Annotated[str, tyro.conf.Positional],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    family: Family = None,
    prefix: Prefix = None,
    check: bool = False,
    settings: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = FinetuneConfig(),  # noqa: B008 - it is frozen
) -> None:
    """Fine-tune a checkpoint on images with masks. The same command goes on with a run that was stopped.

    Args:
      data: a COCO JSON file; a folder with images/ and annotations.json, labels/ or masks/, or with labels NAME_mask
        beside the images; or scenes, which are drawn.
      checkpoint: as sam-jax convert takes, with its image encoder.
      out: the folder of the run; model/ in it is the result.
      config: settings as JSON instead of flags, such as finetune.json of another run.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
      check: read all of the data, print what is in it, write a contact sheet to out/check.png and settings that are
        worth trying first to out/suggested.json, and train nothing.
      settings: everything else about the run.
    """
    from sam_jax.train.commands.check import check as check_data
    from sam_jax.train.commands.finetune import finetune

    settings = choose_config(config, settings)
    if check:
        check_data(data, checkpoint, out, settings, family=family, prefix=prefix)
        return
    result = finetune(data, checkpoint, out, settings, family=family, prefix=prefix)
    rows = [
        ("wrote", str(result.model)),
        ("trained", f"{result.trained:,} parameters"),
        ("frozen", f"{result.frozen:,}"),
    ]
    _print_rows(rows if result.heads is None else [*rows, ("heads", str(result.heads))])


def evaluate(
    data: Annotated[str, tyro.conf.Positional],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    protocol: Literal["prompts", "everything", "classes"] = "prompts",
    embeddings: Annotated[Path | None, tyro.conf.arg(metavar="STORE")] = None,
    family: Family = None,
    prefix: Prefix = None,
    images: int = 500,
    cap: int = 20,
    objects: int = 16,
    size_limits: tuple[int, int] | None = None,
    split_components: bool = False,
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading(),  # noqa: B008 - it is frozen
    tile: int | None = None,
    compare: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    overwrite: bool = False,
) -> None:
    """Measure a checkpoint on a data set: IoU after 1, 3 and 5 clicks and of boxes, clicks needed, calibration.

    With --protocol everything: the average recall of the first 10, 100 and 1,000 automatic masks. With --protocol
    classes: the IoU of each class, of a checkpoint that was trained on classes.

    Args:
      data: what finetune takes; or drawn scenes that no training has seen, scenes or new-shapes.
      checkpoint: as sam-jax convert takes, with its image encoder.
      out: the folder to make, with evaluation.json and evaluation.png.
      protocol: ask with the prompts of a simulated user, for everything in the image, or for classes, which are the
        values of label images.
      embeddings: a store that sam-jax embed made of the images; by default the checkpoint's encoder makes them.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
      images: how many to take, from the first.
      cap: clicks that an object gets at most.
      objects: how many are decoded at once; no result depends on it.
      size_limits: least area of a medium and of a large object in pixels; by default COCO's 1024 and 9216, and for
        drawn scenes as large a share of their image as these are of one of 640 x 480.
      split_components: of label images, make each connected blob of a value an object of its own.
      reading: how images are read.
      tile: side in pixels of tiles to measure on, which overlap by a quarter; an object is in the one with most of it.
      compare: the output of an earlier evaluation on the same images, to print both in one table.
      overwrite: replace what is at the output.
    """
    from sam_jax.train.commands.evaluate import run

    run(
        data,
        checkpoint,
        out,
        protocol=protocol,
        embeddings=embeddings,
        family=family,
        prefix=prefix,
        images=images,
        cap=cap,
        objects=objects,
        size_limits=size_limits,
        split_components=split_components,
        reading=reading,
        tile=tile,
        compare=compare,
        overwrite=overwrite,
    )


def export(
    source: Annotated[str, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu"),
    masks: bool = False,
    family: Family = None,
    prefix: Prefix = None,
    overwrite: bool = False,
) -> None:
    """Write the decoder as programs that need only jax to run, for any number of images and prompt sets.

    Args:
      source: a checkpoint, as sam-jax convert takes.
      out: the folder to make: the programs with their weights, and a manifest that says how to call them.
      platforms: what the programs are for.
      masks: let the programs take mask prompts.
      family: whose settings to use, where the checkpoint does not tell.
      prefix: what stands before the names of the decoder's tensors, where a file holds several decoders.
      overwrite: replace what is at the output.
    """
    from sam_jax.files.checkpoints import load
    from sam_jax.files.exported import export_decoder

    with Console(stderr=True).status(f"Exporting {source}"):
        model, variables = load(source, family=family, prefix=prefix)
        export_decoder(out, model, variables, platforms=platforms, masks=masks, overwrite=overwrite)
    _print_rows([("wrote", str(out)), ("platforms", ", ".join(platforms))])


def bench(
    checkpoint: str | None = None,
    prompt_sets: tuple[int, ...] = (1, 16, 64, 256),
    repeats: int = 5,
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Measure the decoder on this machine: prompt sets a second, latencies, the first call, memory. Prints JSON.

    Args:
      checkpoint: whose decoder to measure; by default the usual sizes with random weights.
      prompt_sets: numbers of prompt sets on one image.
      repeats: of each measurement; medians are printed.
      out: a .json file for the figures, replaced if it exists; a plot of the rates is written beside it, as .png.
    """
    from sam_jax import SamConfig
    from sam_jax.commands import bench
    from sam_jax.commands.random_weights import random_state_dict
    from sam_jax.convert import from_torch
    from sam_jax.decoder.model import Sam
    from sam_jax.files.checkpoints import load
    from sam_jax.images.plot import NO_PLOTS, can_plot

    if out and out.suffix != ".json":
        raise ValueError(f"--out must be a .json file, got {out}.")
    if checkpoint:
        model, variables = load(checkpoint)
    else:
        conversion = from_torch(random_state_dict(SamConfig()))
        model, variables = Sam(conversion.config), conversion.variables
    with Console(stderr=True).status("Measuring"):
        report = bench.run(model, variables, prompt_sets, repeats)
    text = json.dumps(report, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
        if can_plot():
            bench.plot(report).save(out.with_suffix(".png"))
        else:
            Console(stderr=True).print(NO_PLOTS, markup=False)


COMMANDS: dict[str, Callable[..., None]] = {
    "convert": convert,
    "inspect": inspect,
    "predict": predict,
    "masks": masks,
    "embed": embed,
    "page": page,
    "finetune": finetune,
    "evaluate": evaluate,
    "export": export,
    "bench": bench,
    "demo": demo,
}
"""Subcommands by name. Their arguments are the functions' own, their help is the docstrings'."""


def main() -> None:
    """Run the command line; an error is a sentence on stderr and exit code 1."""
    if sys.argv[1:] == ["--version"]:
        print(f"sam-jax {version('sam-jax')}")
        return
    _keep_programs()
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="sam-jax",
            description="Segment Anything's promptable decoder in JAX. sam-jax --version prints the version.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"sam-jax: {error}")
    except KeyboardInterrupt:
        sys.exit("sam-jax: interrupted")


def _keep_programs() -> None:
    """Let later runs find the programs that this one compiles: JAX's persistent cache, if not set up otherwise."""
    folder = user_cache_path("sam-jax", appauthor=False) / "programs"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    for label, text in rows:
        table.add_row(Text(label, "bold"), Text(text, overflow="fold"))
    Console().print(table)
