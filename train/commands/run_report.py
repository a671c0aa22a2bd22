"""`report.html` of a run: settings, curves, samples and tables on one page that needs nothing beside it."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sam_jax.atomic import written_whole
from sam_jax.images.plot import NO_PLOTS
from sam_jax.train.learning.lines import Line

REPORT = "report.html"
ROWS = 20
"""Lines of metrics that the report's table has at most, evenly over the run."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #57606a; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #15191f; --soft: #9aa4af; --line: #3a424c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
img { max-width: 100%; background: #ffffff; border: 1px solid var(--line); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
"""


def write_report(
    out: Path,
    told: Mapping[str, Any],
    found: Mapping[str, str],
    lines: Sequence[Line],
    held_out: Sequence[Line],
    curves: Image.Image | None,
    samples: Image.Image,
) -> None:
    """Write a run's report.

    Args:
      out: the run's folder.
      told: what the run was told, as JSON has it.
      found: what came out of it, a line each.
      lines: metrics of the run.
      held_out: lines of its validation, if there are any.
      curves: pictures of both; None without matplotlib.
      samples: what the model makes of some images.
    """
    parts = [
        f"<h1>Fine-tuning of {html.escape(str(told['checkpoint']))}</h1>",
        _table([*found.items()]),
        "<h2>Curves</h2>",
        f"<p>{html.escape(NO_PLOTS)}</p>" if curves is None else _picture(curves, "Curves of the run"),
        "<h2>Samples</h2>",
        _picture(samples, "Images, what is in them, and the masks of the model"),
    ]
    if held_out:
        parts += ["<h2>Held-out images</h2>", _of_lines(held_out)]
    parts += ["<h2>Training</h2>", _of_lines(lines), "<h2>Settings</h2>", _table(_flat(told), ["setting", "value"])]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{REPORT}</title>'
    page = f'<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>'
    with written_whole(out / REPORT, overwrite=True) as file:
        file.write_text(f"<!doctype html>{page}\n", "utf-8")


def _picture(picture: Image.Image, text: str) -> str:
    with io.BytesIO() as file:
        picture.save(file, "PNG")
        content = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{content}">'


def _of_lines(lines: Sequence[Line]) -> str:
    """A table of the first and the last line, and of some between."""
    last = len(lines) - 1
    chosen = sorted({round(i * last / (ROWS - 1)) for i in range(ROWS)})
    names = list(lines[0])
    return _table([[f"{lines[i][name]:.5g}" for name in names] for i in chosen], names)


def _table(rows: Sequence[Sequence[str]], names: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in cells)}</table></div>'


def _flat(told: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Settings with the names of their flags, one after the other."""
    rows = []
    for name, value in told.items():
        if isinstance(value, Mapping):
            rows += _flat(value, above if name == "config" else f"{above}{name}.")
        else:
            rows.append((above + name, value if isinstance(value, str) else json.dumps(value)))
    return rows
