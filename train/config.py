"""Everything that a fine-tuning run can be told: frozen dataclasses, from flags or a JSON file."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sam_jax.config import check_known
from sam_jax.errors import describe
from sam_jax.images.read import Reading

Preset = Literal["heads", "hq", "decoder", "decoder_and_prompt_encoder", "everything", "lora"]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's terms.

    Attributes:
      focal: of the focal loss.
      dice: of the dice loss.
      iou: of the squared error of the predicted IoU; 0 switches it off.
      iou_warmup: steps over which that weight rises from 0.
      class_focal: of the focal loss of classes. SAM's weight would make all of their masks empty first.
      hq: of the loss of SAM-HQ's own mask, in which focal and dice have their weights from above.
      size_aware: whether small objects count as much as large ones in the focal loss; classes count by their pixels.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    iou_warmup: int = 0
    class_focal: float = 1.0
    hq: float = 1.0
    size_aware: bool = True


@dataclasses.dataclass(frozen=True)
class Simulation:
    """How a user is simulated; the defaults are the 11 rounds of SAM's paper (arXiv 2304.02643, appendix A).

    Attributes:
      clicks: clicks in the error region, one per round after the first prompt.
      refinements: whether there are two more rounds in which only the last mask is new: one at a random place among the
        clicks, one at the end.
      boxes: share of the objects whose first prompt is a box, not a click.
      box_noise: standard deviation of a box's edges, as a share of the box's side.
      box_noise_limit: how far an edge moves at most, as a share of the input frame's side (20 of 1024 pixels).
    """

    clicks: int = 8
    refinements: bool = True
    boxes: float = 0.5
    box_noise: float = 0.1
    box_noise_limit: float = 20 / 1024

    def __post_init__(self) -> None:
        if self.clicks < 0 or (self.refinements and not self.clicks):
            raise ValueError(
                f"Simulation.clicks must be 0 or more, and 1 or more with refinements, got {self.clicks} "
                f"with refinements={self.refinements}."
            )
        if not 0 <= self.boxes <= 1:
            raise ValueError(f"Simulation.boxes must be a share from 0 to 1, got {self.boxes}.")

    @property
    def rounds(self) -> int:
        """How often the decoder is asked: the first prompt, the clicks, the refinements."""
        return 1 + self.clicks + 2 * self.refinements


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a schedule.

    Attributes:
      learning_rate: the highest; rows of the table of what trains scale it.
      schedule: how it falls after the warm-up: along a cosine to `final`, in steps, or not.
      warmup: updates over which it rises from 0; at most a tenth of the run.
      final: the cosine's end, as a share of `learning_rate`.
      drops: where the step decay divides by 10, as shares of all steps (SAM's are 2/3 and 26/27).
      weight_decay: of kernels alone.
      clip: largest norm of the gradient of all parameters together.
      accumulate: batches whose gradients are averaged before one update.
      average: decay of the running mean of the parameters that is kept in the end; 0 keeps the parameters themselves.
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: int = 50
    final: float = 0.01
    drops: tuple[float, ...] = (2 / 3, 26 / 27)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulate < 1 or not 0 <= self.average < 1 or self.clip <= 0:
            raise ValueError(
                "OptimizerConfig needs accumulate of 1 or more, average from 0 to below 1, and a positive clip; got "
                f"{self.accumulate}, {self.average} and {self.clip}."
            )


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train, and what is written when.

    Attributes:
      steps: batches.
      log_every: batches per line of metrics. NaN and divergence are looked for as often.
      save_every: batches between checkpoints, a multiple of `log_every`.
      keep: checkpoints that stay on disk; the older ones go.
      diverged: how many times the lowest mean loss of a line means that training has diverged.
      validate_every: batches between looks at the held-out images, if there are any, a multiple of `log_every`; by
        default as many as between checkpoints.
      patience: the run ends after so many looks without a new best; by default it does not.
    """

    steps: int = 1000
    log_every: int = 10
    save_every: int = 100
    keep: int = 2
    diverged: float = 10.0
    validate_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every, self.save_every, self.keep) < 1 or self.save_every % self.log_every:
            raise ValueError(
                "LoopConfig needs positive numbers, and save_every must be a multiple of log_every; got "
                f"steps={self.steps}, log_every={self.log_every}, save_every={self.save_every}, keep={self.keep}."
            )
        if self.look_every < 1 or self.look_every % self.log_every or (self.patience is not None and self.patience < 1):
            raise ValueError(
                "LoopConfig needs validate_every and patience of 1 or more, and validate_every must be a multiple of "
                f"log_every; got {self.validate_every}, {self.patience} and {self.log_every}."
            )

    @property
    def look_every(self) -> int:
        """Batches between looks at the held-out images."""
        return self.save_every if self.validate_every is None else self.validate_every


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How images change at random each time they are seen. What is None is on where the encoder trains on images.

    Attributes:
      flips: left and right, and top and bottom, change places, each in half of the cases.
      turns: by no, one, two or three quarters.
      brightness: values move by at most this share of their range; 0 for not.
      contrast: distances to the mean value change by at most this share; 0 for not.
    """

    flips: bool | None = None
    turns: bool | None = None
    brightness: float | None = None
    contrast: float | None = None

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"Augmentation.{name} must be a share from 0 to below 1, got {getattr(self, name)}.")

    @property
    def is_on(self) -> bool:
        """Whether anything changes."""
        return any(vars(self).values())

    def or_default(self, on: bool) -> "Augmentation":
        """Return the same with every None decided: on or off."""
        usual = Augmentation(True, True, 0.2, 0.2) if on else Augmentation(False, False, 0.0, 0.0)
        asked = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(usual, **asked)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """A whole run.

    Attributes:
      train: what trains: the mask heads, SAM-HQ's token and head, the decoder, decoder and prompt encoder, everything,
        or low-rank additions.
      batch: images per step, over all devices.
      objects: objects per image and step; fewer are padded, of more some are drawn.
      seed: of the order of images, the objects drawn, and the simulated prompts.
      lora_rank: rank of the additions that `train="lora"` trains.
      dtype: compute dtype. Parameters stay in float32.
      remat: compute the decoder's activations twice instead of keeping them.
      mask_outputs: masks 1, 2, ... of another number than the checkpoint's.
      classes: the values 1, 2, ... of label images are classes. Masks 1, 2, ... learn one each, asked for with a box
        around the whole image.
      workers: processes that make batches; 0 for threads of this one.
      embeddings: a store that sam-jax embed made with the checkpoint, for an encoder that does not train; images that
        it does not have are added. By default the run's folder gets one.
      split_components: of label images, make each connected blob of a value an object of its own.
      reading: how images are read.
      tile: side in pixels of the tiles to train on, for small objects in large images; they overlap by a quarter.
      validate: held-out images, data like that to train on: the run looks at them while it
        trains, and keeps what was best.
      split: hold out this share of the images instead, chosen by the seed.
      target_scale: pixels of a target along each side of a low-res pixel; losses and simulated prompts go by them. With
        1, a step takes least time and memory. With 4, they are those of SAM's input frame: edges come out finer than a
        low-res pixel.
      augment: how images change at random, where the encoder trains.
      loss: weights of the loss.
      simulation: the simulated user.
      optimizer: settings of the optimizer.
      loop: how long.
    """

    train: Preset = "decoder"
    batch: int = 4
    objects: int = 8
    seed: int = 0
    lora_rank: int = 4
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False
    mask_outputs: int | None = None
    classes: bool = False
    workers: int = 0
    embeddings: str | None = None
    split_components: bool = False
    reading: Annotated[Reading, tyro.conf.arg(name="")] = Reading()  # noqa: RUF009 - frozen
    tile: int | None = None
    validate: str | None = None
    split: float = 0.0
    target_scale: int = 1
    augment: Augmentation = Augmentation()
    loss: LossConfig = LossConfig()
    simulation: Simulation = Simulation()
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()

    def __post_init__(self) -> None:
        if self.target_scale < 1:
            raise ValueError(f"target_scale must be 1 or more, got {self.target_scale}.")
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"tile must be 1 or more pixels, got {self.tile}.")
        if self.classes and self.split_components:
            raise ValueError("split_components makes objects, which classes has none of: leave one of them out.")
        if not 0 <= self.split < 1 or (self.split and self.validate):
            raise ValueError(
                f"split must be a share from 0 to below 1, and left out beside validate; got {self.split} and "
                f"validate={self.validate}."
            )

    def to_json(self) -> str:
        """Return the settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "FinetuneConfig":
        """Read what `to_json` wrote. A missing field takes its default.

        Raises:
          ValueError: for a key that is no field, or a value that a field cannot take.
        """
        return _build(cls, json.loads(text))

    @classmethod
    def read(cls, path: Path) -> "FinetuneConfig":
        """Read a JSON file; see `from_json`."""
        return cls.from_json(path.read_text("utf-8"))


def _build(cls: Any, values: Any) -> Any:
    """Make a dataclass of a JSON object, and the dataclasses among its fields of theirs."""
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be a JSON object, got {describe(values)}.")
    check_known(cls, values)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    return cls(**{name: _value(fields[name].default, value) for name, value in values.items()})


def _value(default: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(default):
        return _build(type(default), value)
    return tuple(value) if isinstance(default, tuple) else value


def choose_config(file: Path | None, flags: FinetuneConfig) -> FinetuneConfig:
    """Return the settings of a file, or those of flags.

    Raises:
      ValueError: if there are both, or the file has no such settings.
    """
    if file is None:
        return flags
    if flags != FinetuneConfig():
        raise ValueError(f"Settings come from a file or from flags, not from both; got {file} and flags beside it.")
    return FinetuneConfig.read(file)
