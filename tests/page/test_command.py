"""The command as people run it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sam_jax.page.serve import listen


def test_it_serves_asks_for_the_token_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    run = [sys.executable, "-P", "-c", "from sam_jax.commands.cli import main; main()"]
    arguments = ["page", "--host", "0.0.0.0", "--port", "0", "--no-browser"]
    with subprocess.Popen([*run, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        shown = next(word for word in process.stdout.readline().split() if word.startswith("http://"))
        port = shown.split(":")[2].split("/")[0]
        token = shown.split("?token=")[1]
        images = f"http://127.0.0.1:{port}/api/images"
        assert httpx.get(images).status_code == 401
        answer = httpx.get(images, headers={"authorization": f"Bearer {token}"})
        assert "scene-59.png" in answer.text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_what_is_missing_is_named() -> None:
    without = "import sys; sys.modules['fastapi'] = None; sys.argv = ['sam-jax', 'page']"
    run = f"{without}; from sam_jax.commands.cli import main; main()"
    ended = subprocess.run([sys.executable, "-P", "-c", run], stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == 'sam-jax: The page needs fastapi: pip install "sam-jax[page]"\n'


def test_a_port_that_is_taken_is_said() -> None:
    taken = listen("127.0.0.1", 0)
    with taken, pytest.raises(OSError, match="cannot be used"):
        listen("127.0.0.1", taken.getsockname()[1])
