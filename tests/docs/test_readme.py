import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pages import ROOT, blocks
from torch_writer import write_torch_zip

from sam_jax.commands.random_weights import random_state_dict
from sam_jax.config import TINY, SamConfig
from sam_jax.convert import own_metadata, write_tensors
from sam_jax.convert.download import PUBLISHED
from sam_jax.convert.hub import Repository


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python block, one after the other, with random weights in the official file."""
    monkeypatch.chdir(tmp_path)
    write_torch_zip(tmp_path / "sam_vit_b_01ec64.pth", random_state_dict(SamConfig()))
    names: dict = {}
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["out"].logits.shape == (3, 4, 256, 256)
    assert names["masks"].shape == (3, 3, 1200, 1800)
    assert names["value"] < names["first"]
    assert np.isfinite(names["value"])
    assert os.path.isdir("fine_tuned")


@pytest.mark.slow
def test_the_tutorial_runs_on_eight_devices(tmp_path: Path) -> None:
    """With a decoder of the full size in pixels, and small in everything else."""
    config = dataclasses.replace(TINY, image_size=(1024, 1024), grid_size=(64, 64))
    write_tensors(tmp_path / "sam.safetensors", random_state_dict(config), metadata=own_metadata(config))
    (tmp_path / "tutorial.py").write_text("\n".join(blocks("docs/tutorial.md", "python")))
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = [sys.executable, "-W", "error", "tutorial.py"]
    out = subprocess.run(run, cwd=tmp_path, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
    assert out.splitlines() == [
        "(1, 4, 256, 256) (1, 4)",
        "(4, 256, 256)",
        "(10, 4, 4, 256, 256)",
        "(4, 4, 256, 256) [ True False False False]",
    ]


def test_the_commands_of_the_readme_exist() -> None:
    from sam_jax.commands.cli import COMMANDS

    used = set(re.findall(r"^(?:.*&& )?sam-jax (\w+)", "\n".join(blocks("README.md", "sh")), re.M))
    assert used
    assert used <= set(COMMANDS)


def test_the_names_of_checkpoints_load() -> None:
    """All that the page of families lists, and of these the README: published ones, and repositories of the Hub."""

    def names_in(file: str, heading: str) -> set[str]:
        table = (ROOT / file).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        rows = [line.rstrip(" |").rpartition("|")[2] for line in table.splitlines() if line.startswith("|")]
        return set(re.findall(r"`([^`]+)`", " ".join(rows)))

    listed = names_in("docs/families.md", "Names")
    repositories = {name for name in listed if "/" in name}
    assert listed - repositories == set(PUBLISHED)
    assert all(Repository.parse(name) == (name, "main") for name in repositories)
    assert names_in("README.md", "Families") < listed
