import dataclasses
import json
import math
import os
import re
import signal
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import fresh_state, random_batch, step
from toy_run import KilledError, numbers, toy_state, toy_step

from sam_jax.train.config import LoopConfig
from sam_jax.train.learning.lines import read_lines
from sam_jax.train.learning.loop import METRICS, TrainingError, check_line, curves, rehearse, summarise, train

CONFIG = LoopConfig(steps=8, log_every=2, save_every=4, keep=2)


def killed_at(number, step=toy_step):
    """The step, killed when it is to do the one after `number`."""

    def run(state, batch):
        if int(state.step) == number:
            raise KilledError
        return step(state, batch)

    return run


@pytest.mark.parametrize("number", [0, 3, 4, 5, 7])
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(tmp_path, number):
    whole = train(tmp_path / "whole", toy_state(), toy_step, numbers(), CONFIG)
    with pytest.raises(KilledError):
        train(tmp_path / "cut", toy_state(), killed_at(number), numbers(), CONFIG)
    resumed = train(tmp_path / "cut", toy_state(), toy_step, numbers(), CONFIG)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), whole, resumed))
    lines = [read_lines(tmp_path / name / METRICS, 8) for name in ("whole", "cut")]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [2, 4, 6, 8]


@pytest.mark.slow
def test_a_real_run_that_is_killed_ends_with_the_same_bits(tmp_path):
    config, batches = LoopConfig(steps=4, log_every=1, save_every=2), [random_batch(seed=i) for i in range(3)]

    def data():
        return iter(grain.MapDataset.source(batches).repeat().to_iter_dataset())

    whole = train(tmp_path / "whole", fresh_state(), step(), data(), config)
    with pytest.raises(KilledError):
        train(tmp_path / "cut", fresh_state(), killed_at(3, step()), data(), config)
    resumed = train(tmp_path / "cut", fresh_state(), step(), data(), config)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), whole, resumed))
    assert read_lines(tmp_path / "whole" / METRICS, 4)[0]["loss"] > 0


@pytest.mark.parametrize("number", [3, 4, 6])  # steps 0 and 1 are rehearsed
def test_ctrl_c_saves_the_step_that_is_running(tmp_path, number, capsys):
    def interrupted(state, batch):
        if int(state.step) == number - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return toy_step(state, batch)

    usual = signal.getsignal(signal.SIGINT)
    whole = train(tmp_path / "whole", toy_state(), toy_step, numbers(), CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", toy_state(), interrupted, numbers(), CONFIG)
    assert f"Stopped after step {number}, which is saved." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is usual
    resumed = train(tmp_path / "cut", toy_state(), killed_at(number - 1), numbers(), CONFIG)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), whole, resumed))


def test_a_log_file_gets_a_line_where_a_terminal_has_a_bar(tmp_path, capsys):
    train(tmp_path, toy_state(), toy_step, numbers(), CONFIG)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == [f"step {i} of 8" for i in (2, 4, 6, 8)]
    assert lines[-1].endswith("s a step, 0:00:00 left")


@pytest.mark.parametrize("done", [0, 4])
def test_time_and_memory_are_told_before_the_first_step_and_compiling_is_no_step(tmp_path, done, capsys):
    said = []

    def slow_at_first(state, batch):
        said.append(" ".join(capsys.readouterr().err.split()))
        time.sleep(0.01 if len(said) > 1 else 1.0)
        return toy_step(state, batch)

    if done:
        train(tmp_path, toy_state(), toy_step, numbers(), dataclasses.replace(CONFIG, steps=done))
    train(tmp_path, toy_state(), slow_at_first, numbers(), CONFIG)
    assert len(said) == 2 + 8 - done  # two steps are forgotten
    told = rf"A step takes 0\.\d\d s; {8 - done} steps take 0:00:0\d\. \d+\.\d GiB of memory are in use\."
    assert re.search(told, said[2])
    assert not any(re.search(told, text) for text in said[3:])
    assert all(line["seconds"] < 0.5 for line in read_lines(tmp_path / METRICS))


@pytest.mark.parametrize("placed", [False, True])
def test_a_rehearsal_changes_nothing_and_its_program_is_that_of_training(placed):
    update = jax.jit(lambda moving, batch: jax.tree.map(lambda x: 0.7 * x + batch, moving), donate_argnums=0)

    def uses_up(state, batch):
        params, optimizer = update((state.params, state.optimizer), batch)
        return state.replace(step=state.step + 1, params=params, optimizer=optimizer), {"loss": batch}

    def begin():
        state = toy_state()
        state = uses_up(jax.device_put(state, jax.devices()[1]) if placed else state, 1.5)[0]
        return state, state.params["x"]

    (state, used_up), (wanted, _) = begin(), begin()
    state, seconds = rehearse(uses_up, state, 2.5)
    assert used_up.is_deleted()
    assert seconds > 0
    programs = update._cache_size()
    for _ in range(3):
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(x, y)
            assert (x.sharding, x.committed) == (y.sharding, y.committed)
        state, wanted = uses_up(state, 2.5)[0], uses_up(wanted, 2.5)[0]
    assert update._cache_size() == programs


def test_a_run_that_is_done_is_done(tmp_path):
    train(tmp_path, toy_state(), toy_step, numbers(), CONFIG)
    state = train(tmp_path, toy_state(), killed_at(8), numbers(), CONFIG)
    assert int(state.step) == 8


def test_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    def broken(state, batch):
        state, metrics = toy_step(state, batch)
        return state, metrics | {"focal": jnp.where(state.step == 5, jnp.nan, metrics["focal"])}

    with pytest.raises(TrainingError, match="up to step 6, focal became NaN or infinite"):
        train(tmp_path, toy_state(), broken, numbers(), CONFIG)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]
    assert [line["step"] for line in read_lines(tmp_path / METRICS, 100)] == [2, 4]
    assert int(train(tmp_path, toy_state(), toy_step, numbers(), CONFIG).step) == 8


def line(loss, **more):
    return {"step": 10.0, "loss": loss, **more}


def test_a_loss_far_above_the_lowest_is_divergence():
    history = [line(2.0), line(0.5), line(0.7)]
    check_line(line(4.9), history, 10)
    check_line(line(1e6), [], 10)
    with pytest.raises(TrainingError, match=r"the loss is 5\.1, and 0\.5 was reached before"):
        check_line(line(5.1), history, 10)
    with pytest.raises(TrainingError, match="gradient became NaN"):
        check_line(line(0.5, gradient=math.inf), history, 10)


def test_lines_are_means_and_one_bad_step_is_not_hidden():
    metrics = [{"loss": np.float32(1)}, {"loss": np.float32(3)}]
    assert summarise(7, metrics, 2.5) == {"step": 7, "seconds": 2.5, "loss": 2.0}
    assert math.isnan(summarise(7, [*metrics, {"loss": np.float32("nan")}], 5.0)["loss"])


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path):
    (tmp_path / METRICS).write_text(json.dumps(line(1.0)) + '\n{"step": 20, "lo')
    assert read_lines(tmp_path / METRICS, 100) == [line(1.0)]
    assert read_lines(tmp_path / METRICS, 5) == []
    assert read_lines(tmp_path / "nowhere" / METRICS, 5) == []


def test_curves_are_drawn(tmp_path):
    train(tmp_path, toy_state(), toy_step, numbers(), CONFIG)
    picture = curves(read_lines(tmp_path / METRICS, 100))
    assert len(picture.getcolors(1 << 16)) > 5
    held_out = [{"step": step, "click": 0.2, "box": 0.1 * step} for step in range(8)]
    assert curves(read_lines(tmp_path / METRICS), held_out).tobytes() != picture.tobytes()


def test_the_loss_of_sam_hqs_mask_has_a_curve():
    lines = [{"step": step, **dict.fromkeys(("loss", "focal", "dice", "iou", "overlap"), 0.1)} for step in (1, 9)]
    with_hq = [line | {"hq": 1.0 / line["step"]} for line in lines]
    assert curves(with_hq).tobytes() != curves(lines).tobytes()


def test_curves_of_classes_have_one_overlap():
    lines = [
        {"step": step, "loss": 1.0, "focal": 0.1, "dice": 0.5, "iou": 0.1, "overlap": 0.1 * step} for step in (1, 9)
    ]
    alone = curves(lines)
    assert curves(lines, [{"step": 0, "class": 0.4}, {"step": 9, "class": 0.8}]).tobytes() != alone.tobytes()
