"""Looking for everything takes a while: a job that says how far it is, and that can be stopped."""

import dataclasses
import secrets
import threading
from concurrent.futures import CancelledError, Future
from typing import Any, Literal

from sam_jax.automatic.config import AutomaticConfig
from sam_jax.automatic.records import Record
from sam_jax.page.engine import Engine
from sam_jax.page.gallery import StoredImage

MOST_WAITING = 8
"""Jobs that are not finished."""

MOST_KEPT = 32
"""Jobs that are remembered."""

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class BusyError(Exception):
    """Too many jobs are waiting."""


@dataclasses.dataclass
class Job:
    """Looking for everything in an image.

    Attributes:
      id: random letters.
      image: that of the image.
      progress: from 0 to 1.
      stopped: whether it is to end.
      future: the records.
    """

    id: str
    image: str
    progress: float = 0.0
    stopped: bool = False
    future: Future[list[Record]] | None = None

    def tell(self, share: float) -> None:
        """Note how far it is.

        Raises:
          CancelledError: if it is to end.
        """
        if self.stopped:
            raise CancelledError
        self.progress = share

    def stop(self) -> None:
        """End it as soon as may be."""
        self.stopped = True
        if self.future is not None:
            self.future.cancel()

    @property
    def state(self) -> State:
        """What it is doing."""
        future: Any = self.future
        if not future.done():
            return "running" if future.running() else "waiting"
        if future.cancelled() or isinstance(future.exception(), CancelledError):
            return "cancelled"
        return "failed" if future.exception() else "done"


class Jobs:
    """The last jobs by id."""

    def __init__(self, engine: Engine) -> None:
        """Begin with none."""
        self._engine = engine
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}

    def start(self, image: StoredImage, settings: AutomaticConfig) -> Job:
        """Begin to look for everything.

        Raises:
          BusyError: if too many jobs are waiting.
        """
        with self._lock:
            waiting = [job for job in self._jobs.values() if job.state in ("waiting", "running")]
            if len(waiting) >= MOST_WAITING:
                raise BusyError(f"{len(waiting)} jobs are waiting already: try again later.")
            job = Job(secrets.token_hex(8), image.id)
            job.future = self._engine.everything(image, settings, job.tell)
            self._jobs[job.id] = job
            if len(self._jobs) > MOST_KEPT:
                del self._jobs[next(old for old, one in self._jobs.items() if one not in waiting)]
        return job

    def close(self) -> None:
        """Stop all jobs."""
        with self._lock:
            for job in self._jobs.values():
                job.stop()

    def __getitem__(self, job_id: str) -> Job:
        """Return a job.

        Raises:
          KeyError: if there is none, or it is long ago.
        """
        return self._jobs[job_id]
