import dataclasses
from pathlib import Path

import pytest
import tyro

from sam_jax.train.config import FinetuneConfig, LoopConfig, OptimizerConfig, Simulation, choose_config

OTHER = FinetuneConfig(
    train="everything",
    simulation=Simulation(clicks=2),
    optimizer=OptimizerConfig(schedule="step", drops=(0.5,)),
    loop=LoopConfig(steps=7),
)


def test_settings_go_to_json_and_back():
    assert FinetuneConfig.from_json(OTHER.to_json()) == OTHER
    assert FinetuneConfig.from_json("{}") == FinetuneConfig()


def test_settings_are_hashable():
    assert hash(OTHER) == hash(FinetuneConfig.from_json(OTHER.to_json()))


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"Unknown settings for OptimizerConfig: rate\. Known: accumulate, "):
        FinetuneConfig.from_json('{"optimizer": {"rate": 1}}')
    with pytest.raises(ValueError, match="Simulation must be a JSON object, got 3"):
        FinetuneConfig.from_json('{"simulation": 3}')


def test_flags_are_the_fields():
    flags = "--train everything --simulation.clicks 2 --optimizer.schedule step --optimizer.drops 0.5 --loop.steps 7"
    assert tyro.cli(FinetuneConfig, args=flags.split()) == OTHER


def test_settings_come_from_a_file_or_from_flags(tmp_path: Path):
    file = tmp_path / "settings.json"
    file.write_text(OTHER.to_json())
    assert choose_config(file, FinetuneConfig()) == OTHER
    assert choose_config(None, OTHER) == OTHER
    with pytest.raises(ValueError, match="not from both"):
        choose_config(file, dataclasses.replace(OTHER, seed=1))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Simulation(clicks=-1),
        lambda: Simulation(clicks=0),
        lambda: Simulation(boxes=2.0),
        lambda: LoopConfig(save_every=15),
        lambda: LoopConfig(keep=0),
        lambda: LoopConfig(validate_every=15),
        lambda: LoopConfig(patience=0),
        lambda: FinetuneConfig(target_scale=0),
    ],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=r"must be|needs"):
        wrong()
