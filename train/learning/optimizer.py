"""What trains, as a table of paths, and the optax chain that trains it.

Parameters are a flat mapping from `/`-joined paths to arrays (`sam_jax.train.learning.state`), so that a rule about
parameters is a pattern of their paths.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sam_jax.train.config import OptimizerConfig, Preset

FROZEN = 0.0
Table = tuple[tuple[str, float], ...]
"""Rows of (pattern, learning-rate scale). The first row whose pattern matches a whole path decides; 0 is frozen."""

_HEADS = r"mask_decoder/(iou_token|mask_tokens|(hypernetworks|iou_head|hq)/.*)"
_NOT_TAUGHT = (r"mask_decoder/object_head/.*", FROZEN)
"""SAM 2's head of the object score: no loss reaches it, and weight decay alone would make it forget."""

PRESETS: dict[Preset, Table] = {
    "heads": ((_HEADS, 1.0), (r"(mask_decoder|prompt_encoder|image_encoder)/.*", FROZEN)),
    "hq": ((r"mask_decoder/hq/.*", 1.0), (r"(mask_decoder|prompt_encoder|image_encoder)/.*", FROZEN)),
    "decoder": (_NOT_TAUGHT, (r"mask_decoder/.*", 1.0), (r"(prompt_encoder|image_encoder)/.*", FROZEN)),
    "decoder_and_prompt_encoder": (
        _NOT_TAUGHT,
        (r"(mask_decoder|prompt_encoder)/.*", 1.0),
        (r"image_encoder/.*", FROZEN),
    ),
    "everything": (_NOT_TAUGHT, (r"(mask_decoder|prompt_encoder|image_encoder)/.*", 1.0)),
    "lora": ((r".*/lora_[ab]", 1.0), (r"(mask_decoder|prompt_encoder|image_encoder)/.*", FROZEN)),
}
"""The usual tables by name."""


def learning_rate_scales(paths: Iterable[str], table: Table) -> dict[str, float]:
    """Return the learning-rate scale of each parameter.

    Args:
      paths: of all parameters.
      table: rows of (pattern, scale).

    Raises:
      ValueError: listing every parameter that no row matches, or a scale that is negative.
    """
    if any(scale < 0 for _, scale in table):
        raise ValueError(f"Learning-rate scales must be 0 (frozen) or more, got {dict(table)}.")
    rows = [(re.compile(pattern), scale) for pattern, scale in table]
    scales = {path: next((scale for row, scale in rows if row.fullmatch(path)), None) for path in paths}
    uncovered = [path for path, scale in scales.items() if scale is None]
    if uncovered:
        raise ValueError(f"The table must cover every parameter; no row matches {', '.join(sorted(uncovered))}.")
    return {path: scale for path, scale in scales.items() if scale is not None}


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done.

    Args:
      config: settings of the optimizer.
      steps: updates of the whole run.
    """
    warmup = min(config.warmup, steps // 10)
    rate, after = config.learning_rate, max(1, steps - warmup)
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(rate, after, alpha=config.final)
    elif config.schedule == "step":
        drops = {int(share * steps) - warmup: 0.1 for share in config.drops}
        falling = optax.piecewise_constant_schedule(rate, {max(0, at): by for at, by in drops.items()})
    else:
        falling = optax.constant_schedule(rate)
    # The first update already moves.
    rising = optax.linear_schedule(rate / (warmup + 1), rate, max(1, warmup))
    return optax.join_schedules([rising, falling], [warmup])


def make_optimizer(config: OptimizerConfig, scales: Mapping[str, float], steps: int) -> optax.GradientTransformation:
    """Return AdamW for the parameters that train: a flat mapping with the paths whose scale is not 0.

    Args:
      config: settings.
      scales: learning-rate scale of each path (`learning_rate_scales`).
      steps: batches of the whole run; `config.accumulate` of them make one update.
    """

    def of_kernels(params: Any) -> Any:
        return {path: is_kernel(path) for path in params}

    def scaled(updates: Any, _: Any) -> Any:
        return {path: scales[path] * update for path, update in updates.items()}

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(),
        optax.add_decayed_weights(config.weight_decay, mask=of_kernels),
        optax.stateless(scaled),
        optax.scale_by_learning_rate(learning_rate(config, max(1, steps // config.accumulate))),
        *([running_mean(config.average)] if config.average else []),
    )
    if config.accumulate == 1:
        return chain
    return optax.MultiSteps(chain, config.accumulate).gradient_transformation()


def is_kernel(path: str) -> bool:
    """Return whether a path is that of a matrix that multiplies features: what weight decay is for."""
    return path.rpartition("/")[2] in ("kernel", "lora_a", "lora_b")


class RunningMean(NamedTuple):
    """State of `running_mean`.

    Attributes:
      average: the mean, of the parameters' own shapes.
    """

    average: Any


def running_mean(decay: float) -> optax.GradientTransformation:
    """Return a transformation that changes no update, and keeps `decay * mean + (1 - decay) * parameters`.

    It is the last of a chain, since it must see the parameters as they will be. The mean begins as the parameters.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new = optax.apply_updates(params, updates)
        return updates, RunningMean(optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(lambda params: RunningMean(jax.tree.map(jnp.array, params)), update)


def averaged(params: dict[str, Array], optimizer_state: Any) -> dict[str, Array]:
    """Return the running mean of the parameters where the optimizer keeps one, else the parameters."""
    average = optax.tree.get(optimizer_state, "average")
    return params if average is None else average
