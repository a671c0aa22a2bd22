"""State dict to Flax tree and back: the table applied, with every tensor and every leaf accounted for."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from sam_jax.config import SamConfig
from sam_jax.convert.tables.families import Family, find_family, listing, recognise, refuse_relatives, refuse_strangers
from sam_jax.convert.tables.gaps import Described, Gaps, compare
from sam_jax.convert.tables.names import official, sort_out
from sam_jax.convert.tables.rules import DECODER, NAMINGS, Naming, Slot, Table, flax_shapes, slots, torch_shapes
from sam_jax.convert.tables.settings import OWN, config_from_hf, config_from_shapes, family_of, frame, own_config
from sam_jax.encoders.config import HieraConfig
from sam_jax.errors import CheckpointError, describe

Config = TypeVar("Config")

# The same matrix. Hugging Face's SAM ties the two, and files hold either or both; its SAM 2 does not, and reads both.
_GAUSSIAN = "shared_image_embedding.positional_embedding"
_GAUSSIAN_TWIN = "prompt_encoder.shared_embedding.positional_embedding"


@dataclasses.dataclass(frozen=True)
class Identification(Generic[Config]):
    """What a checkpoint is, as far as names, shapes and dtypes tell.

    Attributes:
      family: whose settings it has.
      naming: whose names its tensors have.
      config: the decoder, or the image encoder, that it should hold.
      sources: plain name -> name in the file, of its tensors.
      ignored: names in the file of all others.
      gaps: where it is not that.
    """

    family: Family
    naming: Naming
    config: Config
    sources: Mapping[str, str]
    ignored: tuple[str, ...]
    gaps: Gaps


@dataclasses.dataclass(frozen=True)
class Conversion(Generic[Config]):
    """A converted decoder, or image encoder.

    Attributes:
      config: its settings.
      variables: `{"params": ..., "constants": ...}`, nested dicts of arrays in the file's dtypes.
      family: where the settings that weights do not tell are from.
      naming: whose names the tensors had.
      ignored: names in the file of all other tensors.
      widened: what `mixed_leaves` returned.
    """

    config: Config
    variables: dict[str, Any]
    family: Family
    naming: Naming
    ignored: tuple[str, ...]
    widened: Mapping[str, str]


def identify(
    tensors: Mapping[str, Described],
    *,
    family: str | None = None,
    prefix: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Identification[SamConfig]:
    """Say what a checkpoint's decoder is without reading any data. Gaps are reported, not raised.

    Args:
      tensors: name in the file -> anything with a shape and a dtype.
      family: a name of `FAMILIES`, whose settings to use whatever the names and `settings` say.
      prefix: what stands before the names of the decoder that is meant, where a file has several.
      settings: what `open_checkpoint` found beside the weights: the content of a Hugging Face `config.json`, or what
        `own_metadata` made.

    Raises:
      CheckpointError: if it is of a kind that cannot be converted, two tensors claim the same name, or no prefix says
        which of several decoders is meant.
      ValueError: if there is no such family.
    """
    text = listing({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    refuse_relatives(text)
    names = sort_out(tensors, prefix)
    if not names.has_decoder:
        refuse_strangers(text)
    naming = _naming(names.tensors)
    chosen = choose_family(family, settings, text, naming)
    sources = _one_gaussian(names.tensors)
    found = {name: tensors[source] for name, source in sources.items() if name != _GAUSSIAN_TWIN}
    if settings is None:
        config = config_from_shapes({name: tuple(found[name].shape) for name in found}, naming, chosen, text)
    elif OWN in settings:
        config = own_config(settings)
        config = dataclasses.replace(config, **frame(chosen, text)) if family else config
    elif naming != "hf":
        raise CheckpointError(
            "The config.json is of another checkpoint: it is Hugging Face's, and the tensors have Meta's names."
        )
    else:
        config = config_from_hf(settings)
        config = dataclasses.replace(config, **frame(chosen, text)) if family else config
    gaps = compare(found, torch_shapes(config, naming), sources)
    return Identification(chosen, naming, config, sources, names.ignored, gaps)


def from_torch(
    tensors: Mapping[str, Any],
    *,
    family: str | None = None,
    prefix: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Conversion[SamConfig]:
    """Convert a checkpoint's prompt encoder and mask decoder to Flax variables. Only their tensors are read.

    Args:
      tensors: name in the file -> array, or anything with `shape`, `dtype` and `read()`.
      family: a name of `FAMILIES`, whose settings to use whatever the names and `settings` say.
      prefix: what stands before the names of the decoder that is meant, where a file has several.
      settings: what `open_checkpoint` found beside the weights, as for `identify`.

    Raises:
      CheckpointError: if it is of a kind that cannot be converted; or listing every tensor that is missing, unexpected,
        misshapen or of another dtype than a float's.
      ValueError: if there is no such family.
    """
    found = identify(tensors, family=family, prefix=prefix, settings=settings)
    if found.gaps:
        raise CheckpointError(
            f"The checkpoint does not fit the decoder of {found.family.title} ({found.naming} names).\n{found.gaps}"
        )
    twins = [_read(tensors[found.sources[name]]) for name in (_GAUSSIAN, _GAUSSIAN_TWIN) if name in found.sources]
    if len(twins) == 2 and not _same_bits(*twins):
        raise CheckpointError(f"{_GAUSSIAN} and {_GAUSSIAN_TWIN} must be the same matrix, and they differ.")
    return read_variables(tensors, found, DECODER)


def to_torch(model: Any, variables: Mapping[str, Any], naming: Naming = "meta") -> dict[str, np.ndarray]:
    """Return the state dict that `from_torch` makes these variables of: its exact inverse, dtypes kept.

    Args:
      model: anything whose `config` is a `SamConfig`.
      variables: `{"params": ..., "constants": ...}`, nested mappings of arrays.
      naming: "meta", or "hf" for the names that `save_pretrained` writes of `SamModel` and its relatives.

    Raises:
      CheckpointError: listing every leaf that is missing, unexpected, misshapen or of another dtype than a float's.
      ValueError: if there is no such naming, or Hugging Face has no names for this decoder.
    """
    if naming == "hf" and model.config.efficient_sam:
        raise ValueError("Hugging Face has no names for EfficientSAM: only the naming meta has.")
    return write_variables(model.config, variables, naming, DECODER)


def choose_family(family: str | None, settings: Mapping[str, Any] | None, text: str, naming: Naming) -> Family:
    """Return the family that is asked for, else the one that the settings name, else what a listing speaks of."""
    return find_family(family) if family else family_of(settings) or recognise(text, naming)


def read_variables(tensors: Mapping[str, Any], found: Identification[Config], table: Table) -> Conversion[Config]:
    """Read the tensors of an identified network into its Flax tree. A leaf gets the widest dtype of its tensors."""
    places = slots(found.config, found.naming, table)
    leaves = _leaves({slot.name: _read(tensors[found.sources[slot.name]]) for slot in places}, places)
    widened = mixed_leaves(tensors, found, table)
    return Conversion(found.config, _nest(leaves), found.family, found.naming, found.ignored, widened)


def mixed_leaves(tensors: Mapping[str, Described], found: Identification[Config], table: Table) -> dict[str, str]:
    """Return the leaves that tensors of several dtypes become, and the widest of these that the leaf gets."""
    dtypes = collections.defaultdict(list)
    for slot in slots(found.config, found.naming, table):
        dtypes[slot.path].append(tensors[found.sources[slot.name]].dtype)
    return {path: str(_widest(several)) for path, several in dtypes.items() if len({*several}) > 1}


def notes_on(family: Family, widened: Mapping[str, str], asked: str | None) -> Iterator[str]:
    """What a user should know of a checkpoint: who else's files look the same, and which dtypes change.

    Args:
      family: that it is taken for.
      widened: what `mixed_leaves` returned.
      asked: the family that was asked for.
    """
    if asked is None and family.lookalikes:
        others = " and ".join(family.lookalikes)
        yield f"Files of {others} look like this one: say so by --family, or family= in Python."
    if widened:
        path, dtype = next(iter(widened.items()))
        yield (
            f"{len(widened)} arrays are made of tensors of several dtypes and get the widest of them, such as "
            f"{path} ({dtype})."
        )


def write_variables(config: Any, variables: Mapping[str, Any], naming: Naming, table: Table) -> dict[str, np.ndarray]:
    """Return the state dict of a Flax tree: the inverse of `read_variables`.

    Raises:
      CheckpointError: listing every leaf that is missing, unexpected, misshapen or of another dtype than a float's.
      ValueError: if there is no such naming.
    """
    if naming not in NAMINGS:
        raise ValueError(f"naming must be one of {', '.join(NAMINGS)}, got {describe(naming)}.")
    leaves = {path: np.asarray(leaf) for path, leaf in _flatten(variables)}
    gaps = compare(leaves, flax_shapes(config, table), {path: path for path in leaves})
    if gaps:
        raise CheckpointError(f"The variables do not fit the model's configuration.\n{gaps}")
    tensors = {slot.name: slot.leaf.to_torch(_part(leaves[slot.path], slot)) for slot in slots(config, naming, table)}
    if not (isinstance(config, HieraConfig) or getattr(config, "object_score", False)):
        return tensors
    tensors = {official(name, naming): tensor for name, tensor in tensors.items()}
    if naming == "hf" and _GAUSSIAN in tensors:
        tensors[_GAUSSIAN_TWIN] = tensors[_GAUSSIAN].copy()
    return tensors


def _naming(plain: Iterable[str]) -> Naming:
    """Return the naming that knows most of the names."""
    known = {naming: torch_shapes(SamConfig(), naming).keys() & {*plain} for naming in NAMINGS}
    return max(NAMINGS, key=lambda naming: len(known[naming]))


def _one_gaussian(sources: Mapping[str, str]) -> dict[str, str]:
    """Let the Gaussian matrix's second name stand in where it is the only one."""
    if _GAUSSIAN_TWIN in sources and _GAUSSIAN not in sources:
        return {_GAUSSIAN if name == _GAUSSIAN_TWIN else name: source for name, source in sources.items()}
    return dict(sources)


def _leaves(read: Mapping[str, np.ndarray], places: Iterable[Slot]) -> dict[str, np.ndarray]:
    """Return path -> leaf, with the tensors of a stacked leaf put together in the table's order."""
    parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    stacked = set()
    for slot in places:
        parts[slot.path].append(slot.leaf.to_flax(read[slot.name]))
        stacked |= {slot.path} if slot.position is not None else set()
    return {path: _stacked(arrays) if path in stacked else arrays[0] for path, arrays in parts.items()}


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    dtype = _widest(array.dtype for array in arrays)
    return np.stack([array.astype(dtype, copy=False) for array in arrays])


def _widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The dtype that holds all numbers of several float dtypes."""
    several = {*dtypes}
    if len(several) > 1:  # float16 and bfloat16 have only wider ones in common
        several.add(np.dtype(np.float32))
    return max(several, key=lambda dtype: dtype.itemsize)


def _part(leaf: np.ndarray, slot: Slot) -> np.ndarray:
    return leaf if slot.position is None else leaf[slot.position]


def _read(tensor: Any) -> np.ndarray:
    return tensor if isinstance(tensor, np.ndarray) else tensor.read()


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _flatten(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        inner = f"{path}/{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(value, inner)
        else:
            yield inner, value


def _nest(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
