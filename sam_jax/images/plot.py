"""Pictures of numbers: curves over axes, drawn by matplotlib, which the extra `report` brings."""

import importlib.util
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from sam_jax.images.draw import COLOURS

NO_PLOTS = 'Curves are left out, since matplotlib is missing: pip install "sam-jax[report]"'

Points = Sequence[tuple[float, float]]

_STYLES = ("-", "--", ":", "-.")
"""Of lines, so that curves can be told apart without their colours."""
_DPI = 100


def can_plot() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def line_plot(
    curves: Mapping[str, Points],
    x_label: str,
    y_label: str,
    *,
    y_limits: tuple[float, float] | None = None,
    size: tuple[int, int] = (560, 360),
    doubling: bool = False,
) -> Image.Image:
    """Return a plot of curves over common axes, with a legend.

    Args:
      curves: points (x, y) by name, in the order in which they are joined.
      x_label: what lies along the x axis.
      y_label: what lies along the y axis.
      y_limits: the smallest and the largest y; by default 0 and what the curves need.
      size: width and height of the picture in pixels.
      doubling: whether equal steps along x double it, rather than add to it; x is positive then.

    Raises:
      ModuleNotFoundError: without matplotlib (`can_plot`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / _DPI, size[1] / _DPI), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        colour = tuple(part / 255 for part in COLOURS[i % len(COLOURS)])
        marker = "o" if len(points) <= 12 else None
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, color=colour, linestyle=_STYLES[i % len(_STYLES)], marker=marker, linewidth=2, label=name)
    if doubling:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(*(y_limits or (0, None)))
    axes.set_xlabel(x_label, fontsize=12)
    axes.set_ylabel(y_label, fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(color="0.88")
    axes.legend(fontsize=11, loc="best")
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=_DPI)
        return Image.open(file).convert("RGB")
