"""How a figure looks: house style, layout, axes, legend, bytes. Knows nothing of records."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from math import log2
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from gsbench.report.palette import contrast
from gsbench.report.text import size

DPI = 300
WIDTH = 5.4  # inches: the text stays readable on a phone
PLOT_HEIGHT = 3.1
LONGEST_NAME = 34  # characters of a name in a legend
ABOVE = 0.52  # inches for the title and what the values mean
INK, MUTED, GRID = "#20242a", "#5c6470", "#dfe3e8"
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "gsbench",
    "svg.fonttype": "path", "text.parse_math": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


def house_style() -> Any:
    """matplotlib's own defaults and ours on top: a user's matplotlibrc changes nothing."""
    settings: Any = {**matplotlib.rcParamsDefault, **RC, "backend": "agg"}
    return matplotlib.rc_context(settings)


def plot(entries: int, lines: int = 1) -> tuple[Figure, Axes]:
    """One plot with room for its legend of two columns below it. lines: of the longest label of the x axis."""
    below = 0.56 + 0.174 * ((entries + 1) // 2) + 0.14 * (lines - 1)
    height = ABOVE + PLOT_HEIGHT + below
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_axes((0.115, below / height, 0.85, PLOT_HEIGHT / height))


def grid(columns: int, rows: int, entries: int) -> tuple[Figure, Axes]:
    """A map of tiles with room for its legend of two columns below it."""
    below = 0.62 + 0.174 * ((entries + 1) // 2)
    tiles = 0.42 * max(2, rows)
    height = ABOVE + tiles + below
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((0.19, below / height, 0.78, tiles / height))
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(-0.5, max(2, rows) - 0.5)
    ax.grid(False)
    return figure, ax


def tile(column: int, row: int, color: str) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=color, linewidth=0)


def on(color: str) -> str:
    """Black or white, whichever is easier to read on that colour."""
    return "white" if contrast(color, "#ffffff") > contrast(color, INK) else INK


def wrapped(label: str) -> str:
    """A label of the x axis on several lines where it is a name of several words."""
    return label if len(label) <= 8 else label.replace(" ", "\n")


def pair(entries: int) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two plots side by side with one legend of four columns below them."""
    below, above = 0.56 + 0.174 * ((entries + 3) // 4), ABOVE + 0.45
    height = above + PLOT_HEIGHT + below
    figure = Figure(figsize=(2 * WIDTH, height))
    left, right = (figure.add_axes((x, below / height, 0.415, PLOT_HEIGHT / height)) for x in (0.06, 0.565))
    return figure, (left, right)


def rows(names: Sequence[str], legend: int = 0) -> tuple[Figure, Axes]:
    """One row a name, the names on the left; room below for a legend of four columns with that many entries."""
    plot, below = 0.32 * len(names) + 0.2, 0.32 + (0.1 + 0.19 * ((legend + 3) // 4)) * bool(legend)
    height = plot + below + ABOVE
    left = min(0.5, 0.02 + 0.0145 * max(len(name) for name in names))
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((left, below / height, 0.97 - left, plot / height))
    ax.set_yticks(range(len(names)), [fitting(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    return figure, ax


def title(figure: Figure, title: str, *more: str) -> None:
    """The title, and below it what was measured and what the values mean, from the left edge of the figure."""
    top = figure.get_figheight()
    figure.text(0.02, 1 - 0.2 / top, title, fontsize=11.5, fontweight="bold", va="center")
    figure.text(0.02, 1 - 0.385 / top, ";  ".join(text for text in more if text), fontsize=9, color=MUTED, va="center")


def fitting(name: str) -> str:
    """A name as a legend holds it: cut where it is too long; matplotlib drops one that begins with "_"."""
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return f" {cut}" if cut.startswith("_") else cut


def beside(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(text, (x, y), xytext=(10, 0), textcoords="offset points", va="center", fontsize=9)


def log_y(ax: Axes, low: float, high: float, form: Callable[[float], str]) -> None:
    ax.set_yscale("log")
    pad = max(1.06, (high / low) ** 0.05)
    ax.set_ylim(low / pad, high * pad)
    ticks = log_ticks(low / pad, high * pad)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([_plain(form(t)) for t in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())


def log_x(ax: Axes, values: Sequence[float], form: Callable[[float], str]) -> None:
    low, high = min(values), max(values)
    span = max(high / low, 2)
    reach = high * span**0.1
    low, high = low / span**0.06, high * span**0.45  # room for the text on the right
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = log_ticks(low, reach)
    ticks = ticks[:: max(1, -(-len(ticks) // 4))]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([_plain(form(t)) for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Four to ten round ticks of a logarithmic axis, whatever its span."""
    span = high / low
    if span < 2.2:
        ticks = [float(t) for t in MaxNLocator(6).tick_values(low, high)]
    else:
        steps = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if span < 8 else (1.0, 2.0, 5.0) if span < 500 else (1.0,)
        ticks = [step * 10.0**n for n in range(-9, 18) for step in steps]
    return [t for t in ticks if t > 0 and low <= t <= high]


def linear_bytes(ax: Axes, most: float) -> None:
    """An axis of bytes from zero, its ticks in round binary units, with room on the right for text."""
    ax.set_xlim(0, most * 1.25)
    unit = 2.0 ** (10 * min(3, int(log2(max(most, 1)) // 10)))
    step = next((s for s in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if 4 * s * unit >= most), 500)
    ticks = [i * step * unit for i in range(5) if i * step * unit <= most * 1.05]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([size(t) if t else "0" for t in ticks]))


def _plain(text: str) -> str:
    """A tick's label without idle zeros: 1.50× is 1.5×, 2.00× is 2×."""
    number, mark = (text[:-1], "×") if text.endswith("×") else (text, "")
    return (number.rstrip("0").rstrip(".") if mark and "." in number and "e" not in number else number) + mark


def legend_below(figure: Figure, ax: Axes, columns: int = 2) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=columns,
                  handlelength=2.9, columnspacing=1.0, borderaxespad=0.3, labelspacing=0.35)  # fmt: skip


def png_bytes(figure: Figure) -> bytes:
    """In 128 colours: a third of the bytes, which the HTML page carries."""
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    png = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(128, dither=Image.Dither.NONE).save(png, format="png", dpi=(DPI, DPI))
    return png.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return svg.getvalue()
