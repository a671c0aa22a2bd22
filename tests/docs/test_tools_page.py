"""The page on other tools: its commands and its code run in their order."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from pages import ROOT
from rich.console import Console

from sam_jax.commands import cli, demo


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.run(tmp_path / "sam_jax_demo", Console(file=io.StringIO()))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    page = (ROOT / "docs/tools.md").read_text()
    for language, text in re.findall(r"^```(python|sh)\n(.*?)^```$", page, re.M | re.S):
        if language == "python":
            exec(compile(text, "tools.md", "exec"), names)
        else:
            monkeypatch.setattr(sys, "argv", shlex.split(text))
            cli.main()
    assert len(names["rows"]) == 2
    assert (tmp_path / "found" / "demo.tif").exists()
