"""The one walk over many files: the share of this process, and files read ahead of the work on them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grain

T = TypeVar("T")

AHEAD = 2
"""Files that are read, by a thread each, while the one before them is worked on: a bound on memory."""


def share_of_process(files: Sequence[Path]) -> list[Path]:
    """Return every n-th file, for n processes of `jax.distributed`; no two processes get the same.

    Take the share first, and look at what is done already afterwards: processes look at different times.
    """
    shard = grain.sharding.ShardByJaxProcess()
    return list(files[shard.shard_index :: shard.shard_count])


def read_ahead(files: Sequence[Path], read: Callable[[Path], T]) -> Iterator[tuple[Path, T | ValueError]]:
    """Yield each file, in order, with what is read of it, or with the ValueError that reading it ended in."""

    def read_one(file: Path) -> tuple[Path, T | ValueError]:
        try:
            return file, read(file)
        except ValueError as error:
            return file, error

    options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
    pairs = iter(grain.MapDataset.source(files).map(read_one).to_iter_dataset(options))
    try:
        yield from pairs
    finally:
        pairs.close()
