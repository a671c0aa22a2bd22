"""The page for people who come from the official package: its code runs, and prints what it says."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from pages import blocks
from random_model import random_variables

import sam_jax
from sam_jax import Sam
from sam_jax.config import TINY
from sam_jax.convert import encoder_to_torch, own_metadata, to_torch, write_tensors
from sam_jax.encoders.config import VIT_TINY
from sam_jax.encoders.vit import ImageEncoder

PAGE = "docs/migration.md"


@pytest.fixture
def checkpoint(tmp_path: Path) -> None:
    """Write what the page loads: full size in pixels, and small in everything else."""
    model = Sam(dataclasses.replace(TINY, depth=1, image_size=(1024, 1024), grid_size=(64, 64)))
    encoder = ImageEncoder(dataclasses.replace(VIT_TINY, depth=1, global_blocks=(0,), image_size=(1024, 1024)))
    encoder_variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1024, 1024, 3)))
    tensors = to_torch(model, random_variables(model)) | encoder_to_torch(encoder, encoder_variables)
    write_tensors(tmp_path / "sam.safetensors", tensors, metadata=own_metadata(model.config, encoder.config))


def test_the_code_prints_what_the_page_says(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(PAGE, "python"))
    exec(compile(code, PAGE, "exec"), {})
    said = re.findall(r"^print\(.*?\)  # ([^:\n]*)", code, re.M)
    assert said
    assert capsys.readouterr().out.splitlines() == said


def test_the_names_on_the_page_exist():
    text = (Path(__file__).parents[2] / PAGE).read_text()
    names = set(re.findall(r"sam_jax\.(\w+)", text)) - {"preprocess"}
    assert names
    assert [name for name in names if not hasattr(sam_jax, name)] == []
