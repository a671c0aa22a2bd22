from sam_jax.commands.demo import SEED, SIZE, prompts_for
from sam_jax.train.data.scenes import HELD_OUT_SEEDS, draw_scene
from sam_jax.train.evaluation.metrics import mask_iou


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
