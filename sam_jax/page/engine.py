"""What computes: one thread prepares images, one decodes prompts, one looks for everything; none waits for another.

Prompts that wait together on the same image are decoded in one call. Every program is compiled when the server starts,
the likeliest first.
"""

import dataclasses
import itertools
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.records import Progress, Record, generate_records
from sam_jax.batch.compiled import CompiledDecoder, compile
from sam_jax.batch.decode import Sizes, round_up
from sam_jax.decoder.model import MaskPrediction
from sam_jax.fast.low_rank import prepare_image
from sam_jax.images.pixels import EncodedImage, encode_image, full_size_masks
from sam_jax.page.gallery import StoredImage
from sam_jax.page.messages import MOST_POINTS
from sam_jax.predictor import Predictor
from sam_jax.prompts import Prompts

PREPARED = 8
"""Images whose tables are kept: 39 MB each for SAM's decoder."""

ENCODED = 64
"""Images whose embeddings are kept: 4 MB each."""

TOKENS: tuple[int, ...] = (4, 16, MOST_POINTS + 2)
"""What numbers of tokens are rounded up to; a box is two."""

TOGETHER: tuple[int, ...] = (1, 4)
"""Prompt sets that are decoded in a call."""

Value = TypeVar("Value")

_prepare = jax.jit(prepare_image, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A prompt set on a prepared image, and where its masks go."""

    image: EncodedImage
    prompts: Prompts
    future: Future[MaskPrediction]

    @property
    def key(self) -> tuple[int, int, bool]:
        """What prompt sets of one call have in common: the image, the room for tokens, mask prompts or not."""
        tokens = round_up(self.prompts.labels.shape[-1], TOKENS)
        return id(self.image), tokens, self.prompts.masks is not None


class Engine:
    """A model at work. Results are futures; what nobody waits for any more, because its future was cancelled, is not
    computed.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Begin to compile.

        Args:
          predictor: the model.
        """
        self.predictor = predictor
        self._preparing, self._looking, self._compiling = (
            ThreadPoolExecutor(1, f"sam-jax-{name}") for name in ("prepare", "everything", "compile")
        )
        self._lock = threading.Lock()
        self._prepared = Recent[Future[EncodedImage]](PREPARED)
        self._encoded = Recent[EncodedImage](ENCODED)  # of the preparing thread alone
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        several = itertools.product((False, True), TOGETHER, TOKENS)
        self._programs = {key: self._compiling.submit(self._compile, *key) for key in several}
        self._thread = threading.Thread(target=self._decode_all, name="sam-jax-decode", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the threads; what they have begun is finished, what waits is not."""
        self._queue.put(None)
        for executor in (self._compiling, self._preparing, self._looking):
            executor.shutdown(wait=False, cancel_futures=True)

    def waiting_for(self) -> str | None:
        """Return what is being made ready, for people to read; None when everything is."""
        done = sum(program.done() for program in self._programs.values())
        total = len(self._programs)
        return f"Compiling program {done + 1} of {total}" if done < total else None

    def prepare(self, image: StoredImage) -> Future[EncodedImage]:
        """Return an image ready for prompts, which it is at once if it was among the last."""
        with self._lock:
            found = self._prepared.get(image.id)
            if found is None or found.cancelled() or (found.done() and found.exception()):
                found = self._preparing.submit(self._prepare_image, image)
                self._prepared.put(image.id, found)
            return found

    def is_prepared(self, image: StoredImage) -> bool:
        """Return whether `prepare` has nothing to do."""
        with self._lock:
            found = self._prepared.peek(image.id)
        return found is not None and found.done() and not found.cancelled() and not found.exception()

    def decode(self, image: EncodedImage, prompts: Prompts) -> Future[MaskPrediction]:
        """Return all masks of one prompt set, without its axis.

        Args:
          image: what `prepare` came to.
          prompts: in the input frame, with one prompt set.
        """
        waiting = _Waiting(image, prompts, Future())
        self._queue.put(waiting)
        return waiting.future

    def everything(self, image: StoredImage, settings: AutomaticConfig, progress: Progress) -> Future[list[Record]]:
        """Return a record of every object of an image; `progress` is told how far it is and may end it by raising."""

        def look() -> list[Record]:
            progress(0)
            encoded = self.prepare(image).result()
            arguments = encoded.original_size, lambda _: encoded, settings
            return generate_records(self.predictor.model, self.predictor.variables, *arguments, progress=progress)

        return self._looking.submit(look)

    def _compile(self, masks: bool, together: int, tokens: int) -> CompiledDecoder:
        sizes = Sizes(tokens=(tokens,), prompt_sets=(together,))
        return compile(self.predictor.model, self.predictor.variables, sizes=sizes, masks=masks, prepared=True)

    def _prepare_image(self, image: StoredImage) -> EncodedImage:
        encoded = self._encoded.get(image.id)
        if encoded is None:
            encoded = encode_image(self.predictor.encoder, self.predictor.encoder_variables, image.pixels())
            self._encoded.put(image.id, encoded)
        features = jax.tree.map(lambda x: x.astype(np.float32), encoded.embedding)  # which the programs are for
        state = _prepare(self.predictor.model, self.predictor.variables, features)
        prepared = encoded._replace(embedding=jax.block_until_ready(state))
        config = self.predictor.model.config
        for masks in (1, 3):  # of an answer: compiles what the image's size needs
            full_size_masks(config, prepared, np.zeros((masks, *config.mask_size), np.float32))
        return prepared

    def _decode_all(self) -> None:
        """Decode until `close`, what waits together in one call."""
        while (first := self._queue.get()) is not None:
            waiting = [first]
            while not self._queue.empty():
                if (another := self._queue.get()) is None:
                    return
                waiting.append(another)
            for group in _groups(waiting, TOGETHER[-1]):
                wanted = [one for one in group if one.future.set_running_or_notify_cancel()]
                if wanted:
                    self._decode_group(wanted)

    def _decode_group(self, group: list[_Waiting]) -> None:
        try:
            _, tokens, masks = group[0].key
            together = round_up(len(group), TOGETHER)
            prompts: Any = jax.tree.map(
                lambda *x: np.concatenate(x),
                *(jax.tree.map(np.asarray, one.prompts).pad(tokens, 1) for one in group),
            )
            program = self._programs[masks, together, tokens].result()
            out: Any = program(self.predictor.variables, group[0].image.embedding, prompts)
            out = jax.tree.map(np.asarray, out)
        except Exception as error:
            for one in group:
                one.future.set_exception(error)
            return
        for i, one in enumerate(group):
            one.future.set_result(jax.tree.map(lambda x, i=i: x[i], out))


def _groups(waiting: Iterable[_Waiting], most: int) -> Iterable[list[_Waiting]]:
    """What can be decoded in a call, in the order of the first of each."""
    by_key: dict[Any, list[_Waiting]] = {}
    for one in waiting:
        by_key.setdefault(one.key, []).append(one)
    for several in by_key.values():
        for start in range(0, len(several), most):
            yield several[start : start + most]


class Recent(Generic[Value]):
    """The values that were used last, by name."""

    def __init__(self, most: int) -> None:
        """Begin with none."""
        self._most = most
        self._values: OrderedDict[str, Value] = OrderedDict()

    def get(self, name: str) -> Value | None:
        """Return a value, which is now the last that was used."""
        if name in self._values:
            self._values.move_to_end(name)
        return self._values.get(name)

    def peek(self, name: str) -> Value | None:
        """Return a value without using it."""
        return self._values.get(name)

    def put(self, name: str, value: Value) -> None:
        """Keep a value, and forget the one that was not used for the longest time."""
        self._values[name] = value
        self._values.move_to_end(name)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
