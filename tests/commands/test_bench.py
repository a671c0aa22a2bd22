"""What `sam-jax bench` measures: that it is about the right calls. How long they take is no fact to test."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from pages import blocks
from PIL import Image
from random_model import FAMILIES, MODEL, family_model, random_embedding

import sam_jax
from sam_jax import Sam
from sam_jax.batch.sharding import make_mesh
from sam_jax.commands import bench, cli
from sam_jax.decoder.features import map_shapes, maps_of
from sam_jax.prompts import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT


def test_random_prompts_are_of_their_kind_and_in_the_frame() -> None:
    clicks, boxes = bench.random_prompts(MODEL, 3, clicks=4), bench.random_prompts(MODEL, 3, kind="boxes")
    assert clicks.masks is None
    assert clicks.labels.shape[0] == boxes.labels.shape[0] == 3
    assert (np.asarray(boxes.labels) == (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)).all()
    assert (np.asarray(boxes.coordinates[:, 0]) <= boxes.coordinates[:, 1]).all()
    assert np.ptp(clicks.coordinates) <= MODEL.config.image_size[0]
    assert bench.random_prompts(MODEL, 2, kind="masks").masks.shape == (2, *MODEL.config.mask_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_features_are_those_that_the_decoder_takes(family: str) -> None:
    config = family_model(family).config
    maps = maps_of(bench.random_features(Sam(config)))
    assert {name: value.shape for name, value in maps.items()} == map_shapes(config)


def test_a_call_is_made_again_until_it_can_be_timed() -> None:
    calls: list[float] = []
    seconds = bench.seconds_of(lambda: calls.append(time.perf_counter()), 0.01)
    assert len(calls) > 1
    assert seconds * len(calls) == pytest.approx(0.01, rel=0.5, abs=0.01)


def test_sides_take_turns_and_short_ones_are_called_once_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAUSE", 0)
    monkeypatch.setattr(bench, "seconds_of", lambda run, at_least: float(run()))
    calls: list[str] = []
    sides = {"short": lambda: calls.append("short") or 0.01, "long": lambda: calls.append("long") or 9}
    assert bench.in_turns(sides, 2) == {"short": [0.01, 0.01], "long": [9, 9]}
    assert calls == ["short", "short", "long", "long", "short", "short", "long"]


def test_the_persistent_cache_is_put_back(tmp_path: Path) -> None:
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    with bench.cached_in(str(tmp_path)):
        jax.jit(lambda x: 3 * x + 1)(np.ones(3)).block_until_ready()
    assert list(tmp_path.iterdir())
    assert before == (jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)


def test_memory_beside_the_result_is_bounded_by_the_chunk(variables: dict[str, Any]) -> None:
    few, many = (bench.program_memory(MODEL, variables, n) for n in (8, 128))
    assert many["result"] > 15 * few["result"]
    assert many["beside it"] - many["result"] < 2 * few["beside it"]


@pytest.mark.slow
def test_a_report_of_the_tiny_decoder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The command from end to end: what it prints, the file, and the plot."""
    monkeypatch.setattr(sam_jax, "SamConfig", lambda: MODEL.config)
    monkeypatch.setattr(bench, "PAUSE", 0)
    monkeypatch.setattr(bench, "ENOUGH", 0.001)
    monkeypatch.setattr(bench, "product_gflops", lambda size: 1.0)
    out = tmp_path / "here.json"
    monkeypatch.setattr(sys, "argv", ["sam-jax", "bench", "--prompt-sets", "1", "3", "--repeats", "1", "-o", str(out)])
    cli.main()
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert list(report["prompt sets a second"]) == ["1", "3"]
    assert all(x > 0 for part in list(report.values())[1:-1] for x in part.values() if not isinstance(x, dict))
    assert report["machine"]["cores"] > 0
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.size == (560, 360)


def test_the_output_must_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-jax", "bench", "-o", "figures"])
    with pytest.raises(SystemExit, match=r"must be a \.json file, got figures"):
        cli.main()


def test_a_product_is_measured() -> None:
    assert bench.product_gflops(64) > 0


@pytest.mark.slow
def test_the_page_on_speed_runs(variables: dict[str, Any]) -> None:
    """Every Python block, one after the other, with the tiny decoder."""
    names: dict[str, Any] = {
        "sam_jax": sam_jax,
        "jax": jax,
        "model": MODEL,
        "variables": variables,
        "embedding": random_embedding(),
        "prompts": bench.random_prompts(MODEL, 16),
        "mesh": make_mesh(devices=jax.devices()[:2]),
    }
    for block in blocks("docs/speed.md", "python"):
        exec(compile(block, "speed.md", "exec"), names)
    reference = sam_jax.predict_masks(MODEL, variables, names["embedding"], names["prompts"], path="plain")
    scale = np.abs(reference.logits).max()
    outs = [value for name, value in names.items() if name.startswith("out")]
    assert len(outs) >= 4
    for out in outs:
        np.testing.assert_allclose(out.logits, reference.logits, rtol=0, atol=1e-5 * scale)
