"""The command: from a checkpoint with its encoder to a report."""

import json
from pathlib import Path

import pytest
from small_run import save_checkpoint

from sam_jax.train.commands.evaluate import limits_for, run


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
    with pytest.raises(FileExistsError, match="To replace it, add --overwrite"):
        run("scenes", str(checkpoint), tmp_path / "out")


def test_limits_are_cocos_for_an_image_of_coco() -> None:
    assert limits_for((480, 640)) == (1024, 9216)
    assert limits_for((256, 256)) == (218, 1966)


def test_no_data_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no data set"):
        run(str(tmp_path / "nothing"), str(checkpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()
