"""A decoder with another number of masks, started from a checkpoint."""

import dataclasses
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from sam_jax.model import Sam, Variables


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
        lines = [f"{len(self.loaded)} arrays loaded as they are, {len(self.partly)} for each mask:"]
        return "\n  ".join([*lines, *(f"{path}: {text}" for path, text in self.partly.items())])


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
    fresh: dict[str, Any] = flatten_dict(jax.jit(changed.init)(key), sep="/")
    given: dict[str, Any] = flatten_dict(variables, sep="/")
    loaded, partly = [], {}
    for path, leaf in given.items():
        if leaf.shape == fresh[path].shape:
            fresh[path] = leaf
            loaded.append(path)
            continue
        axis = next(i for i, sizes in enumerate(zip(leaf.shape, fresh[path].shape, strict=True)) if sizes == (old, new))
        of_kept = (slice(None),) * axis + (slice(kept),)
        fresh[path] = fresh[path].astype(leaf.dtype).at[of_kept].set(leaf[of_kept])
        partly[path] = f"masks 0 to {kept - 1} loaded" + (f", {kept} to {new - 1} initialised" if new > old else "")
    report = HeadReport(tuple(loaded), partly, old - kept)
    return changed, unflatten_dict(fresh, sep="/"), report
