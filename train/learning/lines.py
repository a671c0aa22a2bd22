"""Lines of numbers in a run's folder: JSON, each of one step."""

import json
from collections.abc import Sequence
from pathlib import Path

Line = dict[str, float]
"""`step` and what was measured at it."""


def read_lines(path: Path, up_to: float = float("inf")) -> list[Line]:
    """Return a file's lines up to a step; none where there is no file. A last line that a kill cut off is left out."""
    lines: list[Line] = []
    for text in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return [line for line in lines if line["step"] <= up_to]


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write a file of lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def append_line(path: Path, line: Line) -> None:
    """Write one more line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
