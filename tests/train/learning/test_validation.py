"""Held-out images while a run trains: the best is kept, whatever kills the run."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_run import IOUS, VALIDATED, KilledError, measure, numbers, toy_state, toy_step
from toy_run import validated_run as run

from sam_jax.train.config import LoopConfig
from sam_jax.train.learning import validation as validation_module
from sam_jax.train.learning.lines import read_lines
from sam_jax.train.learning.loop import METRICS, train
from sam_jax.train.learning.validation import BEST, VALIDATION, Validation, read_best


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped: its folder, and its last state."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def assert_same(folder: Path, state, whole) -> None:
    """Both runs have the same last state, the same lines, and the same best parameters, bit for bit."""
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), state, whole[1]))
    assert read_lines(folder / VALIDATION) == read_lines(whole[0] / VALIDATION)
    lines = [[line | {"seconds": 0} for line in read_lines(where / METRICS)] for where in (folder, whole[0])]
    assert lines[0] == lines[1]
    (step, params), (wanted, of_whole) = read_best(folder), read_best(whole[0])
    assert step == wanted == 4
    np.testing.assert_array_equal(params["x"], of_whole["x"])
    assert not list(folder.glob(".*.tmp"))


def test_the_best_is_kept_and_the_last_is_returned(whole):
    folder, state = whole
    assert [line["step"] for line in read_lines(folder / VALIDATION)] == list(IOUS)
    assert int(state.step) == 12
    stopped = train(folder / "to_4", toy_state(), toy_step, numbers(), LoopConfig(steps=4, log_every=1, save_every=4))
    np.testing.assert_array_equal(read_best(folder)[1]["x"], stopped.params["x"])


@pytest.mark.parametrize("killed", IOUS)
def test_killed_while_it_looks(tmp_path, whole, killed):
    def looks(state):
        if int(state.step) == killed:
            raise KilledError
        return measure(state)

    with pytest.raises(KilledError):
        run(tmp_path, looks)
    assert_same(tmp_path, run(tmp_path), whole)


@pytest.mark.parametrize("killed", [0, 2, 4])
def test_killed_before_the_best_is_written(tmp_path, whole, killed, monkeypatch):
    write = validation_module.write_best

    def writes(folder, state):
        if int(state.step) == killed:
            raise KilledError
        write(folder, state)

    monkeypatch.setattr(validation_module, "write_best", writes)
    with pytest.raises(KilledError):
        run(tmp_path)
    monkeypatch.undo()
    assert_same(tmp_path, run(tmp_path), whole)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths}
import toy_run
from sam_jax.train.learning import validation

calls = []

def kill(path=None, *rest):
    calls.append(path)
    if len(calls) == {call}:
        if path is not None:
            Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

if {place!r} == "look":
    toy_run.validated_run(Path({folder!r}), lambda state: kill() or toy_run.measure(state))
else:
    save = validation.save_file
    validation.save_file = lambda params, path, more: kill(path) or save(params, path, more)
    toy_run.validated_run(Path({folder!r}))
"""


@pytest.mark.parametrize(("place", "call"), [("look", 4), ("write", 3)])
def test_kill_9(tmp_path, whole, place, call):
    """The fourth look is at step 6; the third best is that of step 4."""
    script = KILLED.format(paths=[str(Path(__file__).parents[1])], call=call, place=place, folder=str(tmp_path))
    killed = subprocess.run([sys.executable, "-P", "-c", script], env=os.environ, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / BEST).exists()  # the one before, whole
    assert read_best(tmp_path)[0] == (4 if place == "look" else 2)
    assert_same(tmp_path, run(tmp_path), whole)


def test_patience_ends_the_run_and_the_same_command_does_not_go_on(tmp_path, capsys):
    config = dataclasses.replace(VALIDATED, patience=2)
    assert int(run(tmp_path, config=config).step) == 8
    assert "Ended after step 8 of 12: 2 looks had no new best." in " ".join(capsys.readouterr().err.split())
    assert int(run(tmp_path, config=config).step) == 8
    assert read_best(tmp_path)[0] == 4
    assert int(run(tmp_path).step) == 12


def test_the_last_step_is_looked_at(tmp_path):
    config = LoopConfig(steps=4, log_every=1, save_every=4, validate_every=100)
    run(tmp_path, config=config)
    assert [line["step"] for line in read_lines(tmp_path / VALIDATION)] == [0, 4]


@pytest.mark.parametrize(
    ("ious", "words"),
    [
        ([0.5], r"IoU 0\.500 after a click, 0\.500 of boxes, before training"),
        ([0.5, 0.6], r"still improving: mean \+0\.100 since step 0"),
        ([0.5, 0.501], r"hardly improving: mean \+0\.001 since step 0"),
        ([0.5, 0.4], r"no better than step 0 \(mean 0\.500\) for 1 look, and ends after 5"),
        ([0.5, 0.6, 0.5, 0.55], r"no better than step 10 \(mean 0\.600\) for 2 looks"),
    ],
)
def test_whether_it_still_improves_is_said_in_words(tmp_path, ious, words):
    validation = Validation(tmp_path, measure, toy_state(), 5)
    validation.history = [{"step": 10.0 * i, "click": iou, "box": iou} for i, iou in enumerate(ious)]
    assert re.search(words, validation.in_words())


def test_a_damaged_best_is_named(tmp_path):
    (tmp_path / BEST).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"best\.safetensors has not the parameters of the best step"):
        read_best(tmp_path)
