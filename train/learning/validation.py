"""Held-out images while a run trains: how good the model is on them, which step was best, and when to stop.

`validation.jsonl` in the run's folder has a line for every look, `best.safetensors` the parameters of the best one.
A checkpoint of the best step is kept before these parameters are written. So a run that is killed at any point finds
them again: they are there, or they are those of the checkpoint that it goes on from.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sam_jax.atomic import remove_leftovers, written_whole
from sam_jax.train.learning.lines import Line, append_line, read_lines, write_lines
from sam_jax.train.learning.optimizer import averaged
from sam_jax.train.learning.state import TrainState

VALIDATION, BEST = "validation.jsonl", "best.safetensors"
HARDLY = 0.002
"""By so little an IoU rises that hardly improves."""

MEASURED = {"click": "after a click", "box": "of boxes", "class": "of classes"}
"""Names in a line of mean IoUs on held-out images, and what they are."""

Measure = Callable[[TrainState], Line]
"""From a state to what is measured on held-out images: `click` and `box` of objects, or `class`."""


class Validation:
    """What is known of the held-out images.

    Attributes:
      history: the lines so far; the first is of step 0.
    """

    def __init__(self, run: Path, measure: Measure, state: TrainState, patience: int | None) -> None:
        """Begin, or go on where a run was.

        Args:
          run: the run's folder.
          measure: from a state to a line.
          state: that the run begins with or goes on from.
          patience: after so many looks without a new best, the run is over; None for never.
        """
        self.run, self.measure, self.patience = run, measure, patience
        self.history = read_lines(run / VALIDATION, int(state.step))  # later ones are done again
        write_lines(run / VALIDATION, self.history)
        remove_leftovers(run, {BEST})
        if self.history and self.best["step"] == int(state.step):
            write_best(run, state)  # a kill may have come before it

    @property
    def best(self) -> Line:
        """The first of the highest lines."""
        return max(self.history, key=score)

    @property
    def is_over(self) -> bool:
        """Whether there was no new best for as many looks as the run has patience."""
        return self.patience is not None and bool(self.history) and self.looks_since_best >= self.patience

    @property
    def looks_since_best(self) -> int:
        """How often the run has looked after its best step."""
        return sum(line["step"] > self.best["step"] for line in self.history)

    def look(self, state: TrainState, keep: Callable[[], None]) -> None:
        """Measure a state, and keep its parameters if they are the best.

        Args:
          state: the run's state.
          keep: writes a checkpoint of this state, and returns when it is whole.
        """
        line = {"step": float(state.step), **self.measure(state)}
        self.history.append(line)
        append_line(self.run / VALIDATION, line)
        if self.best is line:
            if int(state.step):  # step 0 is where a run without a checkpoint begins
                keep()
            write_best(self.run, state)

    def in_words(self) -> str:
        """Return what the last look found, and whether the run still improves."""
        last, best = self.history[-1], self.best
        ious = (f"{last[name]:.3f} {words}" for name, words in MEASURED.items() if name in last)
        found = f"held-out images: IoU {', '.join(ious)}"
        if len(self.history) == 1:
            return f"{found}, before training"
        if best is last:
            before = max(self.history[:-1], key=score)
            rise = score(last) - score(before)
            how = "still improving" if rise > HARDLY else "hardly improving"
            return f"{found}; {how}: mean {rise:+.3f} since step {before['step']:.0f}"
        looks = self.looks_since_best
        ends = f", and ends after {self.patience}" if self.patience else ""
        times = "1 look" if looks == 1 else f"{looks} looks"
        return f"{found}; no better than step {best['step']:.0f} (mean {score(best):.3f}) for {times}{ends}"


def score(line: Line) -> float:
    """Return the number that the best is chosen by: the mean of the IoUs."""
    return statistics.fmean(line[name] for name in MEASURED if name in line)


def write_best(run: Path, state: TrainState) -> None:
    """Write a state's parameters as the best, whole or not at all."""
    if jax.process_index():
        return
    params = {path: np.asarray(x) for path, x in jax.device_get(averaged(state.params, state.optimizer)).items()}
    with written_whole(run / BEST, overwrite=True) as path:
        save_file(params, path, {"step": str(int(state.step))})


def read_best(run: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Return the step of the best parameters, and them.

    Raises:
      ValueError: if the file is missing or damaged.
    """
    try:
        with safe_open(run / BEST, "numpy") as file:
            return int(file.metadata()["step"]), {path: file.get_tensor(path) for path in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{run / BEST} has not the parameters of the best step: {error}") from error
