"""The state of a training run: flat parameters, what trains apart from what does not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Int

from sam_jax.decoder.model import Variables
from sam_jax.prompts import AnyArray
from sam_jax.train.learning.lora import merge_lora
from sam_jax.train.learning.optimizer import averaged

Flat = dict[str, Array]
"""Parameters by `/`-joined path: `mask_decoder/...`, `prompt_encoder/...`, and `image_encoder/...` if there is one."""

ENCODER = "image_encoder"


@struct.dataclass
class TrainState:
    """Everything that a step changes, and what it needs besides the batch.

    Attributes:
      step: batches seen.
      params: parameters that train, in float32.
      frozen: all other parameters, as they were loaded. No step touches them, and the optimizer does not know them.
      constants: the variables of the decoder and of the image encoder that are no parameters.
      optimizer: the optimizer's state.
    """

    step: Int[Array, ""]
    params: Flat
    frozen: Flat
    constants: dict[str, Any]
    optimizer: optax.OptState


def flatten(variables: Variables, encoder_variables: Variables | None = None) -> tuple[Flat, dict[str, Any]]:
    """Return the parameters of decoder and image encoder as one flat mapping, and the constants of both.

    Args:
      variables: the decoder's.
      encoder_variables: the image encoder's, where it is part of the step.
    """
    trees = dict(variables["params"])
    constants = {"decoder": {"constants": variables["constants"]}}
    if encoder_variables is not None:
        trees[ENCODER] = encoder_variables["params"]
        constants[ENCODER] = {name: tree for name, tree in encoder_variables.items() if name != "params"}
    params: Any = flatten_dict(trees, sep="/")
    return params, constants


def unflatten(params: Mapping[str, Array], constants: Mapping[str, Any]) -> tuple[Variables, Variables]:
    """Return the variables of decoder and image encoder, low-rank additions merged: the inverse of `flatten`."""
    trees = unflatten_dict(merge_lora(params), sep="/")
    encoder = {"params": trees.pop(ENCODER, {}), **constants.get(ENCODER, {})}
    return {"params": trees, **constants["decoder"]}, encoder


def init_state(
    params: Flat, constants: dict[str, Any], scales: Mapping[str, float], optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first step.

    Args:
      params: all parameters (`flatten`).
      constants: what else the modules need.
      scales: learning-rate scale of each parameter; those of scale 0 are frozen.
      optimizer: what `make_optimizer` returned for the same scales.
    """
    trained = {path: jnp.array(x, jnp.float32) for path, x in params.items() if scales[path]}
    frozen = {path: jnp.asarray(x) for path, x in params.items() if not scales[path]}
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, constants, optimizer.init(trained))


def trained_variables(state: TrainState, params: Mapping[str, AnyArray] | None = None) -> tuple[Variables, Variables]:
    """Return the variables of decoder and image encoder to use and to save.

    Args:
      state: of a run.
      params: those that train, of any of its steps; by default the state's, averaged where the optimizer averages.
    """
    trained = averaged(state.params, state.optimizer) if params is None else jax.tree.map(jnp.asarray, dict(params))
    return jax.tree.map(jnp.asarray, unflatten(state.frozen | trained, state.constants))
