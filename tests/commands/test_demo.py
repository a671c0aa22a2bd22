import io
import re
from pathlib import Path

from PIL import Image
from rich.console import Console

from sam_jax.commands.demo import SEED, SIZE, SMALL, prompts_for, run
from sam_jax.train.data.scenes import HELD_OUT_SEEDS, draw_scene
from sam_jax.train.evaluation.metrics import mask_iou


def test_the_small_sam_is_where_the_demo_looks() -> None:
    assert SMALL.is_file()
    assert SMALL.with_suffix(".json").is_file()


def test_the_demo_is_clearly_right_and_says_what_to_try(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    run(Path("sam_jax_demo"), Console(file=said, width=160))
    rows = re.findall(r"│ (one click|two clicks|a box|a click and a rough mask) +│ (0\.\d+)", said.getvalue())
    assert len(rows) == 4
    assert all(float(iou) > 0.85 for _, iou in rows)
    assert len(re.findall(r"^  sam-jax (\w+) ", said.getvalue(), re.M)) == 3
    with Image.open("sam_jax_demo/demo.png") as picture:
        assert picture.size == SIZE[::-1]


def test_every_prompt_asks_for_its_object() -> None:
    assert SEED in HELD_OUT_SEEDS
    asked = {one.name: one for one in prompts_for(draw_scene(SEED, SIZE))}
    assert list(asked) == ["one click", "two clicks", "a box", "a click and a rough mask"]
    for name, number in (("one click", 1), ("two clicks", 2)):
        clicks = asked[name].prompt["points"]
        assert len(set(clicks)) == number
        assert all(asked[name].truth[y, x] for x, y in clicks)
    x0, y0, x1, y1 = asked["a box"].prompt["boxes"]
    assert asked["a box"].truth[y0 : y1 + 1, x0 : x1 + 1].sum() == asked["a box"].truth.sum()
    rough = asked["a click and a rough mask"]
    assert 0.5 < float(mask_iou(rough.prompt["mask"], rough.truth)) < 0.98
