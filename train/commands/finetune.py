"""A run from data and a checkpoint to a better checkpoint: what `sam-jax finetune` does."""

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from sam_jax.batch.sharding import make_mesh, replicate
from sam_jax.config import SamConfig
from sam_jax.decoder.model import Sam
from sam_jax.files.checkpoints import Variables, load, load_encoder, provenance_of, save
from sam_jax.files.embeddings import EmbeddingStore, StoredDType
from sam_jax.files.manifest import Provenance
from sam_jax.images.pixels import encode_image
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data.batches import batches
from sam_jax.train.data.examples import Source
from sam_jax.train.data.looks import flat_note
from sam_jax.train.data.sources import DrawnScenes, Embedded, Encoded, embed, open_source
from sam_jax.train.evaluation.evaluate import evaluate
from sam_jax.train.learning.heads import HeadReport, change_masks
from sam_jax.train.learning.loop import curves, read_metrics, train
from sam_jax.train.learning.lora import add_lora
from sam_jax.train.learning.optimizer import PRESETS, learning_rate_scales, make_optimizer
from sam_jax.train.learning.state import ENCODER, flatten, init_state, trained_variables
from sam_jax.train.learning.step import make_step

SETTINGS, MODEL = "finetune.json", "model"
SCENES = "scenes"
"""What to write instead of a path, for drawn scenes."""
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
    `metrics.jsonl`, `curves.png`, `samples.png`, `checkpoints/`, and, where the encoder does not train and no store is
    given, `embeddings/`. Images and objects are split over as many devices as divide them evenly.

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
    out, say = Path(out).expanduser().resolve(), Console(stderr=True)
    model, variables = load(checkpoint, family=family, prefix=prefix)
    encoder, encoder_variables = load_encoder(checkpoint, family=family, prefix=prefix)
    model, encoder = _computing_in(config.dtype, model), _computing_in(config.dtype, encoder)
    heads = None
    if config.mask_outputs is not None:
        model, variables, heads = change_masks(jax.random.key(config.seed), model, variables, config.mask_outputs)
    if data == SCENES:
        source: Source = DrawnScenes(size=model.config.image_size)
    else:
        source = open_source(Path(data), split_components=config.split_components, reading=config.reading)
        for note in (*source.notes, *flat_note(source)):
            say.print(note)

    params, constants = flatten(variables, encoder_variables)
    if config.train == "lora":
        params = add_lora(jax.random.key(config.seed), params, config.lora_rank)
    scales = learning_rate_scales(params, PRESETS[config.train])
    optimizer = make_optimizer(config.optimizer, scales, config.loop.steps)
    mesh = _mesh(config)
    state = init_state(params, constants, scales, optimizer)
    state = state if mesh is None else replicate(state, mesh)

    # A frozen encoder need see each image but once; of drawn scenes, no image comes twice.
    in_step = data == SCENES or any(path.startswith(ENCODER) for path in state.params)
    if in_step and config.embeddings is not None:
        raise ValueError(
            "embeddings must be left out where the encoder trains or scenes are drawn: it sees each image in the step."
        )
    origin = provenance_of(checkpoint, family, prefix)
    store = None if config.embeddings is None else _opened(config.embeddings, model.config, origin)
    _claim(out, {"data": data, "checkpoint": checkpoint, "family": family, "prefix": prefix}, config)
    encode = functools.partial(encode_image, encoder, encoder_variables)
    if not in_step:
        store = store or _store(out / "embeddings", model.config, config.dtype, origin)
        embed(source, store, encode)
    seen = source if store is None else Embedded(source, store)
    step = make_step(
        model,
        optimizer,
        encoder=encoder if in_step else None,
        simulation=config.simulation,
        loss=config.loss,
        seed=config.seed,
        mesh=mesh,
        remat=config.remat,
    )
    stream = batches(
        seen,
        model.config,
        images=config.batch,
        objects=config.objects,
        seed=config.seed,
        workers=config.workers,
        preprocessing=encoder.config.preprocessing,
        target_scale=config.target_scale,
    )
    with contextlib.closing(stream):
        state = train(out, state, step, stream, config.loop)

    state = jax.tree.map(jnp.asarray, jax.device_get(state))  # from all devices to one
    variables, encoder_variables = trained_variables(state)
    model, encoder = _computing_in("float32", model), _computing_in("float32", encoder)
    provenance = dataclasses.replace(origin, source=f"fine-tuned from {origin.source or checkpoint}", sha256=None)
    say.print(f"Writing {out / MODEL} and the pictures beside it")
    save(out / MODEL, model, variables, encoder, encoder_variables, provenance=provenance, overwrite=True)
    shown = DrawnScenes(SHOWN, model.config.image_size, held_out=True) if data == SCENES else source
    _draw(out, model, variables, Encoded(shown, functools.partial(encode_image, encoder, encoder_variables)))
    return Result(out / MODEL, _size(state.params), _size(state.frozen), heads)


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
    columns = math.gcd(config.objects, len(devices) // rows)
    return make_mesh(rows, devices[: rows * columns]) if rows * columns > 1 else None


def _computing_in(dtype: str, module: Any) -> Any:
    return module.clone(config=dataclasses.replace(module.config, dtype=dtype))


def _opened(path: str, decoder: SamConfig, origin: Provenance) -> EmbeddingStore:
    """Open a store that is there. It must be of the same encoder."""
    return _store(Path(path), decoder, EmbeddingStore.open(path).dtype, origin)


def _store(path: Path, decoder: SamConfig, dtype: StoredDType, origin: Provenance) -> EmbeddingStore:
    shape = *decoder.grid_size, decoder.width
    return EmbeddingStore.create(path, shape, decoder.image_size, dtype, origin)


def _draw(out: Path, model: Sam, variables: Variables, shown: Source) -> None:
    """Draw the run's curves, and what its model makes of the first images."""
    examples = (shown[index] for index in range(min(SHOWN, len(shown))))
    evaluate(model, variables, examples, cap=5, objects=8).picture().save(out / "samples.png")
    curves(read_metrics(out, int(1e9))).save(out / "curves.png")


def _size(params: dict[str, Any]) -> int:
    return sum(x.size for x in params.values())
