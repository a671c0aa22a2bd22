"""A run from data and a checkpoint to a better checkpoint: what `sam-jax finetune` does."""

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from sam_jax.batch.select import masks_selected
from sam_jax.batch.sharding import make_mesh, replicate
from sam_jax.config import SamConfig
from sam_jax.decoder.features import map_shapes
from sam_jax.decoder.model import Sam
from sam_jax.encoders.encoder import Encoder
from sam_jax.files.checkpoints import Variables, load, load_encoder, provenance_of, save
from sam_jax.files.embeddings import EmbeddingStore, StoredDType
from sam_jax.files.manifest import Provenance
from sam_jax.images.pixels import encode_image
from sam_jax.images.plot import NO_PLOTS, can_plot
from sam_jax.train.commands.held_out import SCENES, measure_of, on_one_device, open_sources
from sam_jax.train.commands.run_report import write_report
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data.batches import batches
from sam_jax.train.data.examples import Source
from sam_jax.train.data.sources import DrawnScenes, Embedded, Encoded, embed
from sam_jax.train.evaluation.classes import evaluate_classes
from sam_jax.train.evaluation.evaluate import evaluate
from sam_jax.train.learning.heads import HeadReport, change_masks
from sam_jax.train.learning.lines import read_lines
from sam_jax.train.learning.loop import METRICS, curves, train
from sam_jax.train.learning.lora import add_lora
from sam_jax.train.learning.optimizer import PRESETS, learning_rate_scales, make_optimizer
from sam_jax.train.learning.state import ENCODER, TrainState, flatten, init_state, trained_variables
from sam_jax.train.learning.step import make_step
from sam_jax.train.learning.validation import VALIDATION, read_best

SETTINGS, MODEL, LAST = "finetune.json", "model", "last"
SHOWN = 4
"""Images in the picture of samples."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out of a run.

    Attributes:
      model: the folder that `sam_jax.load` reads, and `sam-jax convert` turns into PyTorch's.
      trained: numbers that were trained.
      frozen: numbers that were not.
      heads: what a decoder with another number of masks was made of.
    """

    model: Path
    trained: int
    frozen: int
    heads: HeadReport | None


def finetune(
    data: str,
    checkpoint: str,
    out: Path,
    config: FinetuneConfig = FinetuneConfig(),  # noqa: B008
    *,
    family: str | None = None,
    prefix: str | None = None,
) -> Result:
    """Train a checkpoint's decoder, or more of it, on images with masks. Started again, a run goes on where it was.

    It must be told the same then, but for `config.loop`: with more steps it goes on for longer, the learning rate where
    the longer schedule has it.

    The run's folder gets `model/` (the result, with the image encoder), `finetune.json` (what was asked for),
    `metrics.jsonl`, `report.html`, `samples.png`, with matplotlib `curves.png`, `checkpoints/`, and, where the encoder
    does not train and no store is given, `embeddings/`. With held-out images, `model/` is the step that was best on
    them, `last/` the last, and `validation.jsonl` says how good the run was on them. Images and objects are split over
    as many devices as divide them evenly.

    Args:
      data: a COCO JSON file, a folder (`sam_jax.train.data.sources.open_source`), or "scenes".
      checkpoint: anything with a decoder and an image encoder that `sam_jax.load` takes.
      out: the run's folder.
      config: settings.
      family: of the checkpoint, as in `load`.
      prefix: likewise.

    Raises:
      ValueError: for bad data, or a folder whose run was told something else.
      CheckpointError: for a bad checkpoint.
      TrainingError: if training diverges.
    """
    out = Path(out).expanduser().resolve()
    model, variables = load(checkpoint, family=family, prefix=prefix)
    encoder, encoder_variables = load_encoder(checkpoint, family=family, prefix=prefix)
    model, encoder = _computing_in(config.dtype, model), _computing_in(config.dtype, encoder)
    heads = None
    if config.mask_outputs is not None:
        model, variables, heads = change_masks(jax.random.key(config.seed), model, variables, config.mask_outputs)
    if config.classes and masks_selected(model.config) < model.config.multimask_outputs:
        raise ValueError("classes need a decoder that returns several masks of a prompt, and SAM-HQ's returns one.")
    say = Console(stderr=True)
    if not can_plot():
        say.print(NO_PLOTS, markup=False)
    source, held_out = open_sources(data, config, model.config, say)
    params, constants = flatten(variables, encoder_variables)
    if config.train == "lora":
        params = add_lora(jax.random.key(config.seed), params, config.lora_rank)
    scales = learning_rate_scales(params, PRESETS[config.train])
    if not any(scales.values()):
        raise ValueError(f"There is nothing in this decoder that train={config.train!r} trains.")
    optimizer = make_optimizer(config.optimizer, scales, config.loop.steps)
    mesh = _mesh(config)
    state = init_state(params, constants, scales, optimizer)
    state = state if mesh is None else replicate(state, mesh)

    # A frozen encoder need see each image but once; of drawn scenes, no image comes twice.
    encoder_trains = any(path.startswith(ENCODER) for path in state.params)
    in_step = data == SCENES or encoder_trains
    if in_step and config.embeddings is not None:
        raise ValueError(
            "embeddings must be left out where the encoder trains or scenes are drawn: it sees each image in the step."
        )
    if not encoder_trains and config.augment.is_on:
        raise ValueError("augment must be left out where the encoder does not train: it sees each image once.")
    origin = provenance_of(checkpoint, family, prefix)
    stored_as = model.config, config.dtype, origin
    store = None if config.embeddings is None else _opened(config.embeddings, model.config, origin)
    _claim(out, {"data": data, "checkpoint": checkpoint, "family": family, "prefix": prefix}, config)
    encode = functools.partial(encode_image, encoder, encoder_variables)
    if not in_step:
        store = store or _store(out / "embeddings", *stored_as)
        embed(source, store, encode)
    seen = source if store is None else Embedded(source, store)
    measure = None
    if held_out is not None and encoder_trains:
        measure = measure_of(_computing_in("float32", model), held_out, encoder, config.classes)
    elif held_out is not None:
        of_held_out = store if store and config.split else _store(out / "embeddings_held_out", *stored_as)
        embed(held_out, of_held_out, encode)
        of_it = Embedded(held_out, of_held_out)
        measure = measure_of(_computing_in("float32", model), of_it, classes=config.classes)
    step = make_step(
        model,
        optimizer,
        encoder=encoder if in_step else None,
        simulation=config.simulation,
        loss=config.loss,
        classes=config.classes,
        seed=config.seed,
        mesh=mesh,
        remat=config.remat,
    )
    stream = batches(
        seen,
        model.config,
        images=config.batch,
        objects=None if config.classes else config.objects,
        seed=config.seed,
        workers=config.workers,
        preprocessing=encoder.config.preprocessing,
        frame_size=encoder.config.image_size,
        target_scale=config.target_scale,
        augmentation=config.augment.or_default(encoder_trains and data != SCENES),
    )
    with contextlib.closing(stream):
        state = train(out, state, step, stream, config.loop, measure)

    provenance = dataclasses.replace(origin, source=f"fine-tuned from {origin.source or checkpoint}", sha256=None)
    modules = _computing_in("float32", model), _computing_in("float32", encoder)
    shown = held_out or (DrawnScenes(SHOWN, model.config.image_size, held_out=True) if data == SCENES else source)
    _write(out, on_one_device(state), modules, provenance, shown, config.classes, validated=held_out is not None)
    return Result(out / MODEL, _size(state.params), _size(state.frozen), heads)


def _write(
    out: Path,
    state: TrainState,
    modules: tuple[Sam, Encoder],
    provenance: Provenance,
    shown: Source,
    classes: bool,
    validated: bool,
) -> None:
    """Write what a run came to: the best or the only checkpoint, the last one where another was best, and pictures."""
    say, (model, encoder) = Console(stderr=True), modules

    def write(name: str, variables: tuple[Variables, Variables]) -> None:
        save(out / name, model, variables[0], encoder, variables[1], provenance=provenance, overwrite=True)

    say.print(f"Writing {out / MODEL} and the pictures beside it")
    best = trained_variables(state)
    found = {"trained": f"{_size(state.params):,} parameters", "frozen": f"{_size(state.frozen):,}"}
    if validated:
        number, params = read_best(out)
        found[MODEL] = f"step {number}, the best on the held-out images; {LAST}/ is step {int(state.step)}."
        say.print(f"{MODEL}/ is {found[MODEL]}")
        write(LAST, best)
        best = trained_variables(state, params)
    write(MODEL, best)
    _draw(out, model, best[0], Encoded(shown, functools.partial(encode_image, encoder, best[1])), classes, found)


def _draw(out: Path, model: Sam, variables: Variables, shown: Source, classes: bool, found: dict[str, str]) -> None:
    """Draw the run's curves, and what its model makes of the first images, and write the report of both."""
    measure = evaluate_classes if classes else functools.partial(evaluate, cap=5, objects=8)
    report = measure(model, variables, (shown[index] for index in range(min(SHOWN, len(shown)))))
    lines, looks, samples = read_lines(out / METRICS), read_lines(out / VALIDATION), report.picture()
    samples.save(out / "samples.png")
    plots = curves(lines, looks) if can_plot() else None
    if plots:
        plots.save(out / "curves.png")
    write_report(out, json.loads((out / SETTINGS).read_text("utf-8")), found, lines, looks, plots, samples)


def _claim(out: Path, told: dict[str, str | None], config: FinetuneConfig) -> None:
    """Write down what the run is told; of a run that is there, see that it is told the same but for how long."""
    asked = told | {"config": json.loads(config.to_json())}
    path = out / SETTINGS
    if path.exists():
        there = json.loads(path.read_text("utf-8"))
        differing = [name for name in told if there.get(name) != told[name]]
        known = dataclasses.asdict(FinetuneConfig.from_json(json.dumps(there["config"])))
        differing += [name for name, value in dataclasses.asdict(config).items() if known[name] != value]
        if others := ", ".join(name for name in differing if name != "loop"):
            raise ValueError(f"{out} has a run with another {others}. Its settings are in {path}; take another folder.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=2) + "\n", "utf-8")


def _mesh(config: FinetuneConfig) -> Mesh | None:
    """As many devices as split a batch's images and objects evenly; None for one alone."""
    devices = jax.devices()
    rows = math.gcd(config.batch, len(devices))
    columns = 1 if config.classes else math.gcd(config.objects, len(devices) // rows)
    return make_mesh(rows, devices[: rows * columns]) if rows * columns > 1 else None


def _computing_in(dtype: str, module: Any) -> Any:
    return module.clone(config=dataclasses.replace(module.config, dtype=dtype))


def _opened(path: str, decoder: SamConfig, origin: Provenance) -> EmbeddingStore:
    """Open a store that is there. It must be of the same encoder."""
    return _store(Path(path), decoder, EmbeddingStore.open(path).dtype, origin)


def _store(path: Path, decoder: SamConfig, dtype: StoredDType, origin: Provenance) -> EmbeddingStore:
    return EmbeddingStore.create(path, map_shapes(decoder), decoder.image_size, dtype, origin)


def _size(params: dict[str, Any]) -> int:
    return sum(x.size for x in params.values())
