"""A decoder with another number of masks, started from a checkpoint."""

import dataclasses
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from sam_jax.decoder.model import Sam, Variables


class HeadReport(NamedTuple):
    """Where the parameters of a changed decoder come from.

    Attributes:
      loaded: paths of what is the checkpoint's, bit for bit.
      partly: path -> which masks are the checkpoint's and which are new.
      dropped: masks of the checkpoint that the new decoder has not.
    """

    loaded: tuple[str, ...]
    partly: dict[str, str]
    dropped: int

    def __str__(self) -> str:
        """All of it in a few lines."""
        kept = "".join(f", {text}" for text in sorted(set(self.partly.values())))
        dropped = f", {self.dropped} dropped" if self.dropped else ""
        of_masks = f"{len(self.partly)} with a part for each mask{kept}{dropped}:"
        return "\n  ".join([f"{len(self.loaded)} arrays loaded as they are, {of_masks}", *self.partly])


def change_masks(
    key: Key[Array, ""], model: Sam, variables: Variables, mask_outputs: int
) -> tuple[Sam, Variables, HeadReport]:
    """Return the decoder with another number of masks 1, 2, ...; mask 0 and as many others as there are stay.

    A new mask has a random token, random weights of its own small network, and a random column in the score's last
    layer.

    Args:
      key: of the random numbers.
      model: the decoder.
      variables: its variables.
      mask_outputs: how many masks besides mask 0 the new one has.
    """
    changed = Sam(dataclasses.replace(model.config, multimask_outputs=mask_outputs))
    old, new = model.config.num_masks, changed.config.num_masks
    kept = min(old, new)
    given: dict[str, Any] = flatten_dict(variables, sep="/")
    shapes: dict[str, Any] = flatten_dict(jax.eval_shape(changed.init, key), sep="/")
    of_masks = [path for path, leaf in given.items() if leaf.shape != shapes[path].shape]
    fresh = jax.jit(lambda key: _some(of_masks, changed.init(key)))(key)
    for path, leaf in fresh.items():
        axis = next(i for i, sizes in enumerate(zip(given[path].shape, leaf.shape, strict=True)) if sizes == (old, new))
        of_kept = (slice(None),) * axis + (slice(kept),)
        fresh[path] = leaf.astype(given[path].dtype).at[of_kept].set(given[path][of_kept])
    text = f"masks 0 to {kept - 1} loaded" + (f", {kept} to {new - 1} initialised" if new > old else "")
    loaded = tuple(path for path in given if path not in fresh)
    report = HeadReport(loaded, dict.fromkeys(of_masks, text), old - kept)
    return changed, unflatten_dict(given | fresh, sep="/"), report


def _some(paths: list[str], variables: Variables) -> dict[str, Array]:
    """Some of the variables, so that a compiled function computes no others."""
    flat: dict[str, Any] = flatten_dict(variables, sep="/")
    return {path: flat[path] for path in paths}
