"""The pages for users that need no page of tests: their code runs after the demo, and every page is on the site."""

import io
import re
from pathlib import Path

import pytest
from pages import ROOT, blocks
from rich.console import Console

from sam_jax.commands import demo
from sam_jax.commands.cli import COMMANDS

PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    demo.run(folder / "sam_jax_demo", Console(file=io.StringIO()))
    return folder


@pytest.mark.parametrize("page", ["images.md", "families.md", "automatic.md", "scale.md", "exported.md", "page.md"])
def test_the_code_of_a_page_runs(page: str, after_the_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(after_the_demo)
    code = blocks(f"docs/{page}", "python")
    assert code
    names: dict = {}
    for block in code:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist(page: str) -> None:
    used = set(re.findall(r"^(?:.*&& )?sam-jax (\w+)", "\n".join(blocks(f"docs/{page}", "sh")), re.M))
    assert used <= set(COMMANDS)


def test_every_page_is_on_the_site_and_the_readme_is_short() -> None:
    assert sorted(re.findall(r"^  - .+: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)) == PAGES
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
