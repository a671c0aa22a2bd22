"""A run from data and a checkpoint to a better checkpoint: what `sam-jax finetune` does."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax

from sam_jax.checkpoints import Variables, load, load_encoder, save
from sam_jax.config import SamConfig
from sam_jax.embeddings import EmbeddingStore, StoredDType
from sam_jax.manifest import Provenance
from sam_jax.model import Sam
from sam_jax.pixels import encode_image
from sam_jax.train.config import FinetuneConfig
from sam_jax.train.data import batches
from sam_jax.train.evaluate import evaluate
from sam_jax.train.examples import Source
from sam_jax.train.heads import HeadReport, change_masks
from sam_jax.train.loop import curves, read_metrics, train
from sam_jax.train.lora import add_lora
from sam_jax.train.optimizer import PRESETS, learning_rate_scales, make_optimizer
from sam_jax.train.sources import DrawnScenes, Embedded, Encode, Encoded, embed, open_source
from sam_jax.train.state import ENCODER, flatten, init_state, trained_variables
from sam_jax.train.step import make_step

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


def finetune(data: str, checkpoint: str, out: Path, config: FinetuneConfig = FinetuneConfig()) -> Result:  # noqa: B008
    """Train a checkpoint's decoder, or more of it, on images with masks. Started again, a run goes on where it was.

    The run's folder gets `model/` (the result, with the image encoder), `finetune.json` (what was asked for),
    `metrics.jsonl`, `curves.png`, `samples.png`, `checkpoints/`, and `embeddings/` where the encoder does not train.

    Args:
      data: a COCO JSON file, a folder (`sam_jax.train.sources.open_source`), or "scenes".
      checkpoint: anything with a decoder and an image encoder that `sam_jax.load` takes.
      out: the run's folder.
      config: settings.

    Raises:
      ValueError: for bad data, or a folder whose run was told something else.
      CheckpointError: for a bad checkpoint.
      TrainingError: if training diverges.
    """
    out = Path(out).expanduser().resolve()
    model, variables = load(checkpoint)
    encoder, encoder_variables = load_encoder(checkpoint)
    model, encoder = _computing_in(config.dtype, model), _computing_in(config.dtype, encoder)
    heads = None
    if config.mask_outputs is not None:
        model, variables, heads = change_masks(jax.random.key(config.seed), model, variables, config.mask_outputs)
    source = DrawnScenes(size=model.config.image_size) if data == SCENES else open_source(Path(data))

    params, constants = flatten(variables, encoder_variables)
    if config.train == "lora":
        params = add_lora(jax.random.key(config.seed), params, config.lora_rank)
    scales = learning_rate_scales(params, PRESETS[config.train])
    optimizer = make_optimizer(config.optimizer, scales, config.loop.steps)
    state = init_state(params, constants, scales, optimizer)

    _claim(out, data, checkpoint, config)
    # A frozen encoder need see each image but once; of drawn scenes, no image comes twice.
    in_step = data == SCENES or any(path.startswith(ENCODER) for path in state.params)
    encode = functools.partial(encode_image, encoder, encoder_variables)
    seen = source if in_step else _embedded(source, out, model.config, config.dtype, checkpoint, encode)
    step = make_step(
        model,
        optimizer,
        encoder=encoder if in_step else None,
        simulation=config.simulation,
        loss=config.loss,
        seed=config.seed,
        remat=config.remat,
    )
    stream = batches(seen, model.config, images=config.batch, objects=config.objects, seed=config.seed)
    state = train(out, state, step, stream, config.loop)

    variables, encoder_variables = trained_variables(state)
    model, encoder = _computing_in("float32", model), _computing_in("float32", encoder)
    provenance = Provenance(source=f"fine-tuned from {checkpoint}")
    save(out / MODEL, model, variables, encoder, encoder_variables, provenance=provenance, overwrite=True)
    shown = DrawnScenes(SHOWN, model.config.image_size, held_out=True) if data == SCENES else source
    _draw(out, model, variables, Encoded(shown, functools.partial(encode_image, encoder, encoder_variables)))
    return Result(out / MODEL, _size(state.params), _size(state.frozen), heads)


def _claim(out: Path, data: str, checkpoint: str, config: FinetuneConfig) -> None:
    """Write down what the run is told; of a run that is there, see that it is told the same."""
    asked = {"data": data, "checkpoint": checkpoint, "config": json.loads(config.to_json())}
    path = out / SETTINGS
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asked, indent=2) + "\n", "utf-8")
    elif (there := json.loads(path.read_text("utf-8"))) != asked:
        differing = ", ".join(name for name in asked if there.get(name) != asked[name])
        raise ValueError(f"{out} has a run with another {differing}. Its settings are in {path}; take another folder.")


def _computing_in(dtype: str, module: Any) -> Any:
    return module.clone(config=dataclasses.replace(module.config, dtype=dtype))


def _embedded(
    source: Source, out: Path, decoder: SamConfig, dtype: StoredDType, checkpoint: str, encode: Encode
) -> Source:
    """Return the examples with embeddings from a store in the run's folder; those it has not got yet are computed."""
    shape = *decoder.grid_size, decoder.width
    provenance = Provenance(source=checkpoint)
    store = EmbeddingStore.create(out / "embeddings", shape, decoder.image_size, dtype, provenance)
    embed(source, store, encode)
    return Embedded(source, store)


def _draw(out: Path, model: Sam, variables: Variables, shown: Source) -> None:
    """Draw the run's curves, and what its model makes of the first images."""
    examples = (shown[index] for index in range(min(SHOWN, len(shown))))
    evaluate(model, variables, examples, cap=5, objects=8).picture().save(out / "samples.png")
    curves(read_metrics(out, int(1e9))).save(out / "curves.png")


def _size(params: dict[str, Any]) -> int:
    return sum(x.size for x in params.values())
