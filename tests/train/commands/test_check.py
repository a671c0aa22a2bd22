"""`sam-jax finetune --check` reads everything and trains nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_run import save_checkpoint

from sam_jax.commands import cli
from sam_jax.train.commands.suggest import advice, suggested
from sam_jax.train.config import FinetuneConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and 12 bits in 16: five images with masks, and one whose mask is empty."""
    folder = tmp_path_factory.mktemp("check")
    save_checkpoint(folder / "base")
    rng = np.random.default_rng(0)
    for i in range(6):
        label = np.zeros((60, 80), np.uint16)
        if i:
            label[10:30, 10:30], label[40:50, 50:60], label[5, 5] = 300, 301, 7
        for place, values in {"images": rng.integers(0, 4096, (60, 80)).astype(np.uint16), "masks": label}.items():
            (folder / "data" / place).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / "data" / place / f"cell_{i}.tif", values)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    arguments = f"finetune {folder}/data --checkpoint {folder}/base -o {folder}/run --check"
    monkeypatch.setattr(sys, "argv", ["sam-jax", *arguments.split(), *more])
    monkeypatch.setenv("COLUMNS", "400")
    cli.main()


def test_the_table_has_sizes_ranges_objects_and_what_is_wrong(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, folder, "--range", "file")
    out = capsys.readouterr().out
    for text in (
        "cell_1.tif │ 60 x 80 │ uint16",
        "0..16 flat",
        "5 images, 15 objects. Quantiles of the areas in pixels: 5 %: 1, 50 %: 100, 95 %: 400.",
        "Left out 1 images without an object, such as cell_0.tif.",
        "Range of all images: the smallest value that the file's type can hold becomes 0",
        "Warning: 5 of 5 images use a small part of their range",
        "Warning: 5 of 15 objects are too small for the decoder's masks",
    ):
        assert text in out
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["check.png", "suggested.json"]
    settings = FinetuneConfig.read(folder / "run" / "suggested.json")
    assert (settings.reading.range, settings.train, settings.batch, settings.split) == ("file", "everything", 2, 0.2)
    sheet = np.asarray(Image.open(folder / "run" / "check.png"))
    assert sheet.shape[1] > 4 * 240
    assert sheet.reshape(-1, 3).std() > 30


@pytest.mark.parametrize(("images", "steps"), [(10, 300), (100, 1000), (5000, 5000)])
def test_more_images_train_for_longer(images: int, steps: int) -> None:
    settings = suggested(FinetuneConfig(tile=512, validate="x"), images)
    assert (settings.train, settings.loop.steps, settings.loop.patience) == ("everything", steps, 5)
    assert (settings.tile, settings.validate, settings.split) == (512, "x", 0.0)
    assert FinetuneConfig.from_json(settings.to_json()) == settings
    assert suggested(FinetuneConfig(), 1).split == 0.0


def test_where_the_default_trains_a_note_says_what_is_worth_trying_first() -> None:
    (note,) = advice(FinetuneConfig(), 12)
    assert note.startswith("The decoder alone trains. With 12 images, --train everything for 300 steps")
    assert advice(FinetuneConfig(train="lora"), 12) == ()


def test_every_problem_of_the_data_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no page 3|it has 1 channels, and no channel 2"):
        command(monkeypatch, folder, "--channels", "2")
