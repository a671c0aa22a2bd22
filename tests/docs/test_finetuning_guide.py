"""The guide to fine-tuning: its commands and its code run in their order, on a stand-in for the small checkpoint."""

import dataclasses
import functools
import re
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pages import ROOT
from random_model import random_variables

import sam_jax
from sam_jax.commands import cli
from sam_jax.config import TINY
from sam_jax.encoders.config import ViTConfig
from sam_jax.encoders.vit import ImageEncoder
from sam_jax.train.commands import finetune as finetune_module
from sam_jax.train.learning import step as step_module

PAGE = "docs/finetune.md"


@pytest.mark.slow
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    # One device, and the modules as they are: what compiles fastest.
    monkeypatch.setattr(finetune_module, "_mesh", lambda config: None)
    monkeypatch.setattr(sam_jax, "predict_masks", functools.partial(sam_jax.predict_masks, path="plain"))
    monkeypatch.setattr(step_module, "decode_batch", functools.partial(step_module.decode_batch, path="plain"))
    save_stand_in(tmp_path / "sam_jax_demo" / "small")
    names: dict = {}
    for language, text in re.findall(r"^```(python|sh)\n(.*?)^```$", (ROOT / PAGE).read_text(), re.M | re.S):
        if language == "python":
            exec(compile(text, PAGE, "exec"), names)
            continue
        for command in text.replace("\\\n", " ").splitlines():
            monkeypatch.setattr(sys, "argv", shlex.split(command))
            cli.main()
    out = capsys.readouterr().out
    assert re.search(r"before \d+ objects: .*\nafter \d+ objects: ", out)
    assert "trained  " in out
    assert all(len(names[picture].getcolors(1 << 20)) > 5 for picture in ("curves", "samples"))
    before, after = (sam_jax.load(path)[1]["params"] for path in ("sam_jax_demo/small", "run/model"))
    changed = {part: any(jax.tree.leaves(jax.tree.map(differ, before[part], after[part]))) for part in before}
    assert changed == {"mask_decoder": True, "prompt_encoder": False}
    back = sam_jax.load("fine_tuned.safetensors")[1]["params"]
    assert not any(jax.tree.leaves(jax.tree.map(differ, after, back)))
    assert np.isfinite(names["loss"])


def save_stand_in(folder: Path) -> None:
    """Write a checkpoint with an image encoder that is smaller than the package's, which compile longer."""
    size = (128, 128)
    model = sam_jax.Sam(dataclasses.replace(TINY, depth=1, mlp_width=32, iou_head_depth=2))
    encoder = ImageEncoder(
        ViTConfig(
            width=16, depth=1, heads=2, mlp_width=64, window_size=4, global_blocks=(0,), out_width=32, image_size=size
        )
    )
    of_encoder = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((*size, 3)))
    sam_jax.save(folder, model, random_variables(model), encoder, of_encoder)


def differ(x: jax.Array, y: jax.Array) -> bool:
    return bool((np.asarray(x) != np.asarray(y)).any())
