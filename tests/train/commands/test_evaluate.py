"""The command: from a checkpoint with its encoder to a report."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_run import save_checkpoint

from sam_jax.train.commands.evaluate import comparison, figures_of, limits_for, read_figures, run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "checkpoint"
    save_checkpoint(path)
    return path


def test_drawn_scenes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("new-shapes", str(checkpoint), tmp_path / "out", images=1, cap=5, objects=8)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["images"] == 1
    assert report["size_limits"] == [31, 276]
    assert report["all"]["objects"] == sum(means["objects"] for means in report["by_size"].values())
    assert f"{report['all']['click_iou']['score']['1']:.3f}" in capsys.readouterr().out
    run("new-shapes", str(checkpoint), tmp_path / "2", images=1, cap=5, objects=8, compare=tmp_path / "out")
    assert "+0.000" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="To replace it, add --overwrite"):
        run("scenes", str(checkpoint), tmp_path / "out")


def test_tiles_and_no_matplotlib(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    label = np.zeros((96, 150), np.uint8)
    label[10:30, 40:60], label[50:80, 90:120] = 1, 2
    for place, values in {"images": 80 * label, "labels": label}.items():
        (tmp_path / place).mkdir()
        Image.fromarray(values).save(tmp_path / place / "a.png")
    run(str(tmp_path), str(checkpoint), tmp_path / "out", cap=1, objects=2, tile=64)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (report["images"], report["all"]["objects"]) == (2, 2)  # each object is in one tile alone
    assert 'pip install "sam-jax[report]"' in capsys.readouterr().err
    assert (tmp_path / "out" / "evaluation.png").exists()  # with the samples alone


def figures(shift: float = 0.0, objects: int = 5) -> dict[str, Any]:
    """A report's numbers, as JSON has them."""
    means = {
        "objects": objects,
        "click_iou": {"score": {"1": 0.5 + shift, "3": 0.6 + shift}},
        "box_iou": {"score": 0.7 + shift},
    }
    needed = {"score": {"85": {"mean": 9.0 - shift, "failures": 0}}}
    return {
        "images": 2,
        "all": means,
        "by_size": {"small": means},
        "clicks_needed": needed,
        "calibration": {"error": 0.1},
    }


def test_two_evaluations_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(figures()))
    Console().print(comparison(read_figures(tmp_path), figures_of(figures(0.1))))
    printed = [" ".join(re.sub(r"[^\w.:+% -]", "", line).split()) for line in capsys.readouterr().out.splitlines()]
    assert "all: IoU after 1 click 0.500 0.600 +0.100" in printed
    assert "small: IoU of boxes 0.700 0.800 +0.100" in printed
    assert "clicks to 85 % 9.000 8.900 -0.100" in printed


def test_what_cannot_be_compared(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="are of 5 and of 6 objects; they must be of the same"):
        comparison(figures_of(figures()), figures_of(figures(objects=6)))
    with pytest.raises(ValueError, match="is no folder of sam-jax evaluate that can be compared"):
        run("scenes", str(checkpoint), tmp_path / "out", compare=tmp_path)
    with pytest.raises(ValueError, match="compare is for the protocol of prompts"):
        run("scenes", str(checkpoint), tmp_path / "out", compare=tmp_path, protocol="everything")


def test_limits_are_cocos_for_an_image_of_coco() -> None:
    assert limits_for((480, 640)) == (1024, 9216)
    assert limits_for((256, 256)) == (218, 1966)


def test_no_data_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no data set"):
        run(str(tmp_path / "nothing"), str(checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()
