"""The twins of the page's plots for papers: every view drawn by matplotlib, as PNG (300 dpi) and SVG.

The bytes depend on the views, the styles and the versions of matplotlib and Pillow; `fingerprint` on the first two and on
this code, and is the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gsbench.report import canvas
from gsbench.report.palette import PHASE_COLORS, Style
from gsbench.report.text import flops, form, size, slugs, times
from gsbench.report.views import Data, View

FLOOR_REACH = 20.0  # a floor further than this below every curve would flatten them: it leaves the plot
PAIRED = "-group_size-"  # the axis whose two relative views also make one figure: a README's


@dataclass(frozen=True)
class Plate:
    """One figure, of one view or of two side by side. `stem` names its files."""

    stem: str
    views: tuple[View, ...]

    def draw(self, styles: dict[str, Style]) -> tuple[bytes, bytes]:
        """(PNG, SVG)."""
        with canvas.house_style():
            figure = _pair(self.views, styles) if len(self.views) > 1 else DRAW[self.views[0].kind](self.views[0], styles)
            return canvas.png_bytes(figure), canvas.svg_bytes(figure)

    def fingerprint(self, styles: dict[str, Style]) -> str:
        """What is drawn, and the code that draws it."""
        used = {name: asdict(styles[name]) for view in self.views for name in view.implementations}
        what = json.dumps([[asdict(view) for view in self.views], used], sort_keys=True)
        code = [files("gsbench.report").joinpath(name).read_bytes() for name in ("canvas.py", "figures.py")]
        return hashlib.sha256(b"\0".join([what.encode(), *code])).hexdigest()


def plates(views: Sequence[View]) -> list[Plate]:
    """Every view, and before the two relative views of a group-size sweep both in one. No two have one stem."""
    found: list[tuple[str, tuple[View, ...]]] = []
    ratios = {view.stem: view for view in views}
    for view in views:
        other = ratios.get(view.stem.removesuffix("speedup") + "ratio")
        if view.stem.endswith(f"{PAIRED}speedup") and other is not None:
            found.append((view.stem.removesuffix("-speedup"), (view, other)))
        found.append((view.stem, (view,)))
    return [Plate(stem, pair) for stem, (_, pair) in zip(slugs([stem for stem, _ in found]), found, strict=True)]


def _curve_panel(ax: Axes, view: View, styles: dict[str, Style]) -> None:
    data, value = view.data, form(view.data["form"])
    for series in data["series"]:
        style, joined = styles[series["name"]], data["lines"]
        x, middle, low, high, _ = zip(*series["points"], strict=True)
        if joined:
            ax.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0, zorder=style.layer - 1)
        else:
            ax.vlines(x, low, high, color=style.color, linewidth=2.5, alpha=0.4, zorder=style.layer - 1)
        ax.plot(x, middle, color=style.color, marker=style.marker, markersize=6 if style.width > 2 else 5,
                markeredgecolor="white", markeredgewidth=0.6, linestyle=style.line if joined else "none",
                linewidth=style.width, zorder=style.layer, label=canvas.fitting(series["name"]))  # fmt: skip
    for fitted in data["fits"]:
        x, y = zip(*fitted["points"], strict=True)
        ax.plot(x, y, color=styles[fitted["name"]].color, linestyle=":", linewidth=1, zorder=1.7)
    lows = [point[2] for series in data["series"] for point in series["points"]]
    highs = [point[3] for series in data["series"] for point in series["points"]]
    if data["reference"]:
        ax.axhline(data["reference"], color=canvas.MUTED, linewidth=1.2, zorder=1.5)
        lows, highs = [*lows, data["reference"]], [*highs, data["reference"]]
    if data["floor"]:
        x, y = zip(*data["floor"]["points"], strict=True)
        label = data["floor"]["name"]
        ax.plot(x, y, color=canvas.MUTED, linestyle=(0, (1, 1.5)), linewidth=1.6, zorder=1.8, label=label)
        lows.append(max(min(y), min(lows) / FLOOR_REACH))
    canvas.log_y(ax, min(lows), max(highs), value)
    _x_axis(ax, data["x"], joined=data["lines"])


def _x_axis(ax: Axes, x: Data, joined: bool) -> None:
    positions, labels = x["at"], x["labels"]
    if x["log"]:
        ax.set_xscale("log", base=2)
        every = -(-len(positions) // 9)
        positions, labels = positions[::every], labels[::every]
    else:
        room = 0.3 if joined else 0.5
        ax.set_xlim(-room, len(positions) - 1 + room)
    ax.xaxis.set_major_locator(FixedLocator(positions))
    ax.xaxis.set_major_formatter(FixedFormatter([canvas.wrapped(label) for label in labels]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(x["title"])
    if not joined:
        ax.tick_params(axis="x", labelsize=8)


def _curves(view: View, styles: dict[str, Style]) -> Figure:
    data = view.data
    deep = 1 + max(canvas.wrapped(label).count("\n") for label in data["x"]["labels"])
    figure, ax = canvas.plot(len(data["series"]) + bool(data["floor"]), lines=deep)
    _curve_panel(ax, view, styles)
    canvas.title(figure, view.title, view.heading, view.meaning)
    canvas.legend_below(figure, ax)
    return figure


def _pair(views: Sequence[View], styles: dict[str, Style]) -> Figure:
    """Both relative views side by side: the figure that stands for the whole run, in a README say."""
    figure, panels = canvas.pair(max(len(view.implementations) for view in views))
    for ax, view in zip(panels, views, strict=True):
        _curve_panel(ax, view, styles)
        ax.set_title(f"{view.title.partition(',')[0]}\n{view.meaning}", loc="left", fontsize=10, fontweight="normal")
    first = views[0]
    fixed = first.caption.partition(" Not drawn")[0].rstrip(".")
    canvas.title(figure, f"{first.heading}, against {first.data['x']['title']}", fixed)
    canvas.legend_below(figure, panels[int(len(views[1].implementations) > len(first.implementations))], columns=4)
    return figure


def _rows(view: View, styles: dict[str, Style]) -> Figure:
    """Values at one point: dots with their interval, the floor of each as a tick."""
    rows, value = view.data["rows"], form(view.data["form"])
    figure, ax = canvas.rows([row["name"] for row in rows])
    drawn = [row[end] for row in rows for end in ("low", "high")] + [row["floor"] for row in rows if row["floor"]]
    for y, row in enumerate(rows):
        style = styles[row["name"]]
        ax.plot([row["low"], row["high"]], [y, y], color=style.color, linewidth=5, alpha=0.35)
        ax.plot(row["value"], y, color=style.color, marker=style.marker, markersize=9, markeredgecolor="white")
        canvas.beside(ax, row["high"], y, value(row["value"]))
        if row["floor"]:
            ax.plot(row["floor"], y, color=canvas.MUTED, marker="|", markersize=14, markeredgewidth=2)
    canvas.log_x(ax, drawn, value)
    canvas.title(figure, view.title, view.heading, view.meaning)
    return figure


def _stack(view: View, styles: dict[str, Style]) -> Figure:
    rows, phases = view.data["rows"], view.data["phases"]
    figure, ax = canvas.rows([row["name"] for row in rows], legend=len(phases) + 1)
    for i, phase in enumerate(phases):
        left = [sum(row["model"][:i]) for row in rows]
        sizes = [row["model"][i] for row in rows]
        ax.barh(range(len(rows)), sizes, left=left, height=0.62, color=PHASE_COLORS[phase][0], label=phase)
    seen = [(row["measured"], y) for y, row in enumerate(rows) if row["measured"]]
    if seen:
        ax.plot(*zip(*seen, strict=True), color=canvas.INK, marker="D", markersize=5, linestyle="none", label="measured",
                markeredgecolor="white", markeredgewidth=0.8)  # fmt: skip
    most = max(max(sum(row["model"]), row["measured"] or 0) for row in rows)
    for y, row in enumerate(rows):
        canvas.beside(ax, max(sum(row["model"]), row["measured"] or 0), y, size(row["measured"] or sum(row["model"])))
    canvas.linear_bytes(ax, most)
    canvas.title(figure, view.title, view.heading, view.meaning)
    canvas.legend_below(figure, ax, columns=4)
    return figure


def _roof(view: View, styles: dict[str, Style]) -> Figure:
    data = view.data
    figure, ax = canvas.plot(len(data["series"]) + 1)
    for series in data["series"]:
        style = styles[series["name"]]
        x, y, floor, _ = zip(*series["points"], strict=True)
        ax.plot(x, floor, color=canvas.MUTED, marker="_", markersize=5, linestyle="none", zorder=1.6)
        ax.plot(x, y, color=style.color, marker=style.marker, markersize=5, markeredgecolor="white", markeredgewidth=0.5,
                linestyle="none", zorder=style.layer, label=canvas.fitting(series["name"]))  # fmt: skip
    every = [point for series in data["series"] for point in series["points"]]
    low, high = min(p[0] for p in every) / 1.5, max(p[0] for p in every) * 1.5
    knee = data["flops"] / data["bandwidth"]
    line = [low, *([knee] if low < knee < high else []), high]
    roof = [min(data["flops"], data["bandwidth"] * x) for x in line]
    ax.plot(line, roof, color=canvas.INK, linewidth=1.4, zorder=1.5, label="measured ceilings")
    ax.set_xscale("log")
    ticks = canvas.log_ticks(low, high)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low, high)
    ax.set_xlabel("useful FLOPs a byte (fewest bytes)")
    rates = [rate for p in every for rate in p[1:3]] + roof
    canvas.log_y(ax, min(rates), max(rates), flops)
    canvas.title(figure, view.title, view.heading, view.meaning)
    canvas.legend_below(figure, ax)
    return figure


def _map(view: View, styles: dict[str, Style]) -> Figure:
    data = view.data
    across, down = data["columns"]["labels"], data["rows"]["labels"]
    figure, ax = canvas.grid(len(across), len(down), len(view.implementations) + 1)
    for cell in data["cells"]:
        tie = bool(cell["tied"])
        color = canvas.GRID if tie else styles[cell["winner"]].color
        ax.add_patch(canvas.tile(cell["column"], cell["row"], color))
        text = "tie" if tie else times(cell["lead"]) if cell["lead"] else ""
        ax.text(cell["column"], cell["row"], text, ha="center", va="center", fontsize=8.5, color=canvas.on(color))
    for name in view.implementations:
        if any(cell["winner"] == name and not cell["tied"] for cell in data["cells"]):
            ax.plot([], [], marker="s", markersize=9, linestyle="none", color=styles[name].color, label=canvas.fitting(name))
    ax.set_xticks(range(len(across)), across)
    ax.set_yticks(range(len(down)), down)
    ax.set(xlabel=data["columns"]["title"], ylabel=data["rows"]["title"])
    canvas.title(figure, view.title, view.heading, "the second's time over the first's")
    if ax.get_legend_handles_labels()[0]:
        canvas.legend_below(figure, ax)
    return figure


DRAW = {"curves": _curves, "rows": _rows, "stack": _stack, "roof": _roof, "map": _map}
