"""The loop: steps, lines of metrics, checkpoints, and a stop where training goes wrong.

A run is a folder. `checkpoints/` has what moves (parameters that train, the optimizer's state, the place in the data),
so that a run that is killed at any point and started again goes on from the last checkpoint as if nothing had happened.
`metrics.jsonl` has one line for every few steps: `step`, `seconds` per step, and the means of what the steps returned.

Before its first step a run rehearses: it does two steps, and forgets them. The first compiles, the second says how long
all steps take. So this is known before training begins, and no line's `seconds` has compilation in it.
"""

import contextlib
import dataclasses
import datetime
import itertools
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sam_jax.images.draw import stacked
from sam_jax.images.plot import line_plot
from sam_jax.memory import peak_memory
from sam_jax.train.config import LoopConfig
from sam_jax.train.learning.lines import Line, append_line, read_lines, write_lines
from sam_jax.train.learning.state import TrainState
from sam_jax.train.learning.step import Step
from sam_jax.train.learning.validation import MEASURED, Measure, Validation

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


class TrainingError(ValueError):
    """Training went wrong: NaN, or a loss that grows. The last good checkpoint is kept."""


def train(
    run: Path,
    state: TrainState,
    step: Step,
    batches: "grain.DatasetIterator",
    config: LoopConfig = LoopConfig(),  # noqa: B008
    measure: Measure | None = None,
) -> TrainState:
    """Train until `config.steps`, from the run's last checkpoint if there is one, and return the last state.

    How long the steps take, and how much memory, is told before the first one (`rehearse`).

    With held-out images, the run looks at them before the first step, every `config.look_every` steps, and after
    the last one. The parameters of the best look are kept (`validation.read_best`), and `config.patience` ends the run.

    Args:
      run: the run's folder, made if need be.
      state: the state at the beginning; of a resumed run, its frozen part counts, and the shapes of the rest.
      step: what `make_step` returned.
      batches: an endless iterator whose state can be kept, as `sam_jax.train.data.batches.batches` returns.
      config: how long, and what is written when.
      measure: from a state to how good it is on held-out images.

    Raises:
      TrainingError: for a metric that is not finite, or a loss far above the lowest that there was.
      KeyboardInterrupt: after Ctrl-C, when the step is done and saved. A second Ctrl-C does not wait for that.
    """
    run = Path(run).expanduser().resolve()
    run.mkdir(parents=True, exist_ok=True)
    with checkpoint_manager(run, config.keep) as manager, _progress() as progress, _ctrl_c() as interrupted:
        state = resume(manager, state, batches)
        number = int(state.step)
        history = read_lines(run / METRICS, number)
        write_lines(run / METRICS, history)  # lines after the checkpoint are about steps that are done again
        task = progress.add_task("training", total=config.steps, completed=number, note="")
        validation = measure and Validation(run, measure, state, config.patience)

        def keep() -> None:
            save_checkpoint(manager, state, batches)
            manager.wait_until_finished()

        def look() -> None:
            if validation:
                validation.look(state, keep)
                progress.console.print(f"step {number}: {validation.in_words()}")

        stopping = bool(validation and validation.is_over)
        stream: Iterator[Any] = batches
        if number < config.steps and not stopping:
            first = next(batches)
            state, seconds = rehearse(step, state, first)
            progress.console.print(_cost_in_words(seconds, config.steps - number, bool(validation)))
            stream = itertools.chain([first], batches)
        if validation and not validation.history:
            look()
        pending, begun = [], time.monotonic()
        while number < config.steps and not stopping:
            state, metrics = step(state, next(stream))
            pending.append(metrics)
            number += 1
            stopping = interrupted.is_set()
            last = stopping or number == config.steps
            if number % config.log_every == 0 or last:
                metrics = jax.device_get(pending)
                line = summarise(number, metrics, (time.monotonic() - begun) / len(pending))
                check_line(line, history, config.diverged)
                history.append(line)
                append_line(run / METRICS, line)
                progress.update(task, completed=number, note=f"loss {line['loss']:.4f}")
                if not progress.console.is_terminal:
                    progress.console.print(_in_words(line, config.steps))
                pending, begun = [], time.monotonic()
            if validation and (number % config.look_every == 0 or number == config.steps):
                look()
                begun = time.monotonic()
                stopping = last = last or validation.is_over
            if number % config.save_every == 0 or last:
                save_checkpoint(manager, state, batches)
        if interrupted.is_set():
            progress.console.print(f"Stopped after step {number}, which is saved. The same command goes on from there.")
            raise KeyboardInterrupt
        if validation and validation.is_over:
            progress.console.print(
                f"Ended after step {number} of {config.steps}: {config.patience} looks had no new best."
            )
    return state


def rehearse(step: Step, state: TrainState, batch: Any) -> tuple[TrainState, float]:
    """Do two steps and forget them; return the state as it was, and the seconds of the second step.

    The first step compiles. What moves is kept in the host's memory meanwhile, so that a device needs no more memory
    than for training.

    Args:
      step: what uses up the state that goes in.
      state: before the steps.
      batch: for both steps.
    """
    before = _moving(state)
    kept = jax.tree.map(np.array, before)
    seconds = 0.0
    for _ in range(2):
        begun = time.monotonic()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.monotonic() - begun

    def put_back(kept: np.ndarray, before: jax.Array) -> jax.Array:
        return jax.device_put(kept, before.sharding if before.committed else None, may_alias=False)

    return dataclasses.replace(state, **jax.tree.map(put_back, kept, before)), seconds


def checkpoint_manager(run: Path, keep: int) -> ocp.CheckpointManager:
    """Return the manager of a run's checkpoints, which keeps the newest ones."""
    return ocp.CheckpointManager(run / CHECKPOINTS, options=ocp.CheckpointManagerOptions(max_to_keep=keep))


def save_checkpoint(manager: ocp.CheckpointManager, state: TrainState, batches: "grain.DatasetIterator") -> None:
    """Keep what moves: the state without its frozen part, and the place in the data; once for each step."""
    if manager.latest_step() == int(state.step):
        return
    data = grain.checkpoint.CheckpointSave(batches)  # pyright: ignore[reportCallIssue]
    manager.save(int(state.step), args=ocp.args.Composite(state=ocp.args.StandardSave(_moving(state)), data=data))


def resume(manager: ocp.CheckpointManager, state: TrainState, batches: "grain.DatasetIterator") -> TrainState:
    """Return the state of the newest checkpoint and move the data to its place; the state itself if there is none.

    Args:
      manager: of the run's checkpoints.
      state: has the frozen part, and the shapes of what moves.
      batches: the data from its beginning.
    """
    newest = manager.latest_step()
    if newest is None:
        return state
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _moving(state))
    data = grain.checkpoint.CheckpointRestore(batches)  # pyright: ignore[reportCallIssue]
    restored = manager.restore(newest, args=ocp.args.Composite(state=ocp.args.StandardRestore(target), data=data))
    return dataclasses.replace(state, **restored["state"])


def summarise(step: int, metrics: Sequence[Mapping[str, Any]], seconds: float) -> Line:
    """Return a line: the means of the metrics of some steps.

    Args:
      step: number of the last of them.
      metrics: of each step.
      seconds: that each took.
    """
    means = {name: float(np.mean([float(values[name]) for values in metrics])) for name in metrics[0]}
    return {"step": step, "seconds": seconds, **means}


def check_line(line: Line, history: Sequence[Line], diverged: float) -> None:
    """Raise a TrainingError for a metric that is not finite, or a loss `diverged` times the lowest before it.

    Args:
      line: the newest line.
      history: the lines before it.
      diverged: how much is too much.
    """
    broken = [name for name, value in line.items() if not math.isfinite(value)]
    lowest = min((before["loss"] for before in history), default=math.inf)
    if broken:
        problem = f"{', '.join(broken)} became NaN or infinite"
    elif line["loss"] > diverged * lowest:
        problem = f"the loss is {line['loss']:.4g}, and {lowest:.4g} was reached before"
    else:
        return
    raise TrainingError(
        f"Training has diverged: up to step {line['step']:.0f}, {problem}. The last checkpoint before that is kept. A "
        "lower learning rate, a longer warm-up or a smaller clip may help."
    )


def curves(lines: Sequence[Line], held_out: Sequence[Line] = ()) -> Image.Image:
    """Return a picture of the terms of the loss, and of the overlaps, over the steps. It needs matplotlib.

    Args:
      lines: metrics of a run, at least one.
      held_out: lines of its validation.
    """

    def points(lines: Sequence[Line], name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in lines]

    terms = {name: points(lines, name) for name in ("loss", "focal", "dice", "iou", "hq") if name in lines[0]}
    names = ("first_overlap", "last_overlap") if "last_overlap" in lines[0] else ("overlap",)
    overlaps = {name: points(lines, name) for name in names}
    if held_out:
        overlaps |= {f"held-out {name}": points(held_out, name) for name in MEASURED if name in held_out[0]}
    return stacked([line_plot(terms, "step", "loss"), line_plot(overlaps, "step", "mean IoU", y_limits=(0, 1))])


def _moving(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "params": state.params, "optimizer": state.optimizer}


def _cost_in_words(seconds: float, steps: int, validated: bool) -> str:
    """What so many steps take, of so many seconds each."""
    whole = datetime.timedelta(seconds=round(seconds * steps))
    without = ", without the looks at held-out images" if validated else ""
    return (
        f"A step takes {seconds:.2f} s; {steps} steps take {whole}{without}. "
        f"{peak_memory() / 2**30:.1f} GiB of memory are in use."
    )


def _in_words(line: Line, steps: int) -> str:
    """A line of metrics for a log file, which no bar can be drawn in."""
    left = datetime.timedelta(seconds=round(line["seconds"] * (steps - line["step"])))
    return f"step {line['step']} of {steps}: loss {line['loss']:.4f}, {line['seconds']:.2f} s a step, {left} left"


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one is as usual. Signals come to the main thread alone."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    usual = signal.getsignal(signal.SIGINT)

    def press(*_: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
