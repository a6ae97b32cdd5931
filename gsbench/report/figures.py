"""Every figure of a run, as PNG and SVG bytes that depend on the records only (no dates, fixed ids)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from gsbench.report.palette import Style
from gsbench.report.ratios import ANCHOR, RIVAL, SUBJECT, Comparison, by_pass, by_setting, in_order, timing_of
from gsbench.report.sweeps import (
    AXIS_TITLES,
    CATEGORIES,
    Naming,
    along,
    coordinate,
    default_point,
    describe,
    from_centre,
    short,
    varying,
)  # fmt: skip
from gsbench.report.text import milliseconds, size, times
from gskernels.table import Shape

DPI = 180
WIDTH = 5.4  # inches: the text stays readable on a phone
PLOT_HEIGHT = 3.1
LONGEST_NAME = 34  # characters of a name in a legend
ABOVE = 0.52  # inches for the title and what the y axis means
MOST_POINTS = 6  # points off every axis that get a figure of their own
FLOOR_REACH = 20.0  # a floor further than this below every curve would flatten them: it leaves the plot
INK, MUTED, GRID = "#20242a", "#5c6470", "#dfe3e8"
RC: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9, "svg.hashsalt": "gsbench",
    "svg.fonttype": "path", "text.parse_math": False, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip
Curve = list[tuple[float, float, float, float]]  # x, middle, low, high


@dataclass(frozen=True)
class Drawing:
    """A finished figure. `stem` is unique within a run and safe as a file name."""

    stem: str
    heading: str  # the group of figures it belongs to
    title: str
    caption: str
    png: bytes
    svg: bytes


@dataclass(frozen=True)
class Plot:
    """One of the three views of a sweep."""

    name: str
    title: str
    ylabel: str
    reference: str  # what the values are divided by, "" for absolute times


PLOTS = (
    Plot("speedup", f"speed over the best {RIVAL}", "times as fast  (higher is better)", RIVAL),
    Plot("ratio", f"time over {ANCHOR}", "multiple of its time  (lower is better)", ANCHOR),
    Plot("time", "time of one call", "median, ms  (lower is better)", ""),
)


def draw(
    comparisons: Sequence[Comparison], styles: dict[str, Style], declared: dict[str, int | str], named: dict[Shape, str]
) -> Iterator[Drawing]:
    """Figures by setting, dtype, pass and axis; then memory. A few points that lie on no axis get one of their own.

    `declared` and `named` hold the suite's default point and named points (see gsbench.report.sweeps).
    """
    settings = by_setting(comparisons)
    dtypes = sorted({c.point.dtype for c in comparisons})
    for setting, timed in settings.items():
        for dtype in sorted({c.point.dtype for c in timed}):
            group = [c for c in timed if c.point.dtype == dtype]
            centre = default_point([c.point for c in group], {**declared, "dtype": dtype})
            words = [str(setting)] * (len(settings) > 1) + [dtype] * (len(dtypes) > 1)
            prefix = "".join(f"{w}-" for w in [setting.slug] * (len(settings) > 1) + [dtype] * (len(dtypes) > 1))
            for pass_, of_pass in by_pass(group).items():
                heading = ", ".join([pass_, *words])
                yield from _of_pass(of_pass, styles, Naming(centre, named), heading, prefix + pass_)


def _of_pass(
    group: Sequence[Comparison], styles: dict[str, Style], naming: Naming, heading: str, stem: str
) -> Iterator[Drawing]:
    axes = [axis for axis in varying(c.point for c in group) if axis != "dtype"]
    lines = {axis: line for axis in axes if len(line := along(group, axis, naming.centre)) > 1}
    for axis, line in lines.items():
        for plot in PLOTS:
            if any(_curves(line, axis, plot).values()):
                yield _sweep(line, axis, plot, styles, heading, f"{stem}-{axis}-{plot.name}")
    drawn = {c.point for line in lines.values() for c in line}
    apart = [c for c in from_centre(group, naming.centre) if c.point not in drawn]
    apart = apart if len(apart) <= MOST_POINTS else []
    for c in apart:
        name = naming.of(c.point)
        yield _bars(c, styles, heading, f"{stem}-{name}-time", name)
    for c in [*(c for c in group if c.point == naming.centre and c not in apart), *apart]:
        if any(r.peak_extra_bytes for r in c.timed.values()):
            name = naming.of(c.point)
            yield _memory(c, styles, heading, f"{stem}-{name}-memory", name)


def _position(line: Sequence[Comparison], axis: str) -> list[float]:
    """Where the points of a sweep stand: their value, or their rank where the axis is a list of names."""
    if axis in CATEGORIES:
        return [float(i) for i in range(len(line))]
    return [float(coordinate(c.point, axis)) for c in line]


def _curves(line: Sequence[Comparison], axis: str, plot: Plot) -> dict[str, Curve]:
    curves: dict[str, Curve] = {name: [] for name in in_order(n for c in line for n in c.timed)}
    for x, c in zip(_position(line, axis), line, strict=True):
        for name, record in c.timed.items():
            if not plot.reference:
                t = timing_of(record)
                curves[name].append((x, t.median_ms, t.ci_low_ms, t.ci_high_ms))
                continue
            ratio = c.speedup(name) if plot.reference == RIVAL else c.to_anchor(name)
            if ratio is not None:
                curves[name].append((x, ratio.value, ratio.low, ratio.high))
    return {name: curve for name, curve in curves.items() if curve}


def _floor(line: Sequence[Comparison], axis: str) -> tuple[str, list[tuple[float, float]]]:
    """The floor of group_shared's bytes and FLOPs, or of the fastest implementation where it was not timed."""
    has_subject = any(c.subject for c in line)
    points = []
    for x, c in zip(_position(line, axis), line, strict=True):
        name = c.subject if has_subject else c.winner
        floor = c.timed[name].floor_ms if name else None
        if floor is not None:
            points.append((x, floor))
    return f"floor of {SUBJECT if has_subject else 'the fastest'}", points


def _sweep(line: Sequence[Comparison], axis: str, plot: Plot, styles: dict[str, Style], heading: str, stem: str) -> Drawing:
    curves = _curves(line, axis, plot)
    with _house_style():
        figure, ax = _canvas(len(curves) + 1)
        for name, curve in curves.items():
            style = styles[name]
            x, middle, low, high = zip(*curve, strict=True)
            ax.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0, zorder=style.layer - 1)
            ax.plot(x, middle, color=style.color, marker=style.marker, markersize=6 if style.width > 2 else 5,
                    markeredgecolor="white", markeredgewidth=0.6, linestyle=style.line, linewidth=style.width,
                    zorder=style.layer, label=_fitting(name))  # fmt: skip
        lows = [low for curve in curves.values() for _, _, low, _ in curve]
        highs = [high for curve in curves.values() for _, _, _, high in curve]
        if plot.reference:
            ax.axhline(1, color=MUTED, linewidth=1.2, zorder=1.5)
            lows, highs = [*lows, 1.0], [*highs, 1.0]
        else:
            label, floor = _floor(line, axis)
            if floor:
                x, y = zip(*floor, strict=True)
                ax.plot(x, y, color=MUTED, linestyle=(0, (1, 1.5)), linewidth=1.6, zorder=1.8, label=label)
                lows.append(max(min(y), min(lows) / FLOOR_REACH))
        _log_y(ax, min(lows), max(highs), times if plot.reference else milliseconds)
        _x_axis(ax, axis, line)
        _title(figure, f"{heading}: {plot.title}", plot.ylabel)
        _legend_below(figure, ax)
        fixed = [a for a in AXIS_TITLES if a != axis]
        return _finish(figure, stem, heading, f"{plot.title}, by {AXIS_TITLES[axis]}",
                       f"At {describe(line[0].point, fixed)}.{_absences(line, axis, plot)}")  # fmt: skip


def _absences(line: Sequence[Comparison], axis: str, plot: Plot) -> str:
    """What is not drawn, and why: part of the caption."""
    words = []
    for name in in_order(n for c in line for n in c.untimed):
        where: dict[str, list[str]] = {}
        for c in line:
            if name in c.untimed:
                where.setdefault(c.untimed[name].status, []).append(short(coordinate(c.point, axis)))
        for status, at in where.items():
            words.append(f"{name} ({status})" if len(at) == len(line) else f"{name} at {', '.join(at)} ({status})")
    bare = [short(coordinate(c.point, axis)) for c in line if not _curves([c], axis, plot)]
    words += [f"no {plot.reference} to divide by at {', '.join(bare)}"] if bare else []
    return f" Not drawn: {'; '.join(words)}." if words else ""


def _bars(c: Comparison, styles: dict[str, Style], heading: str, stem: str, name: str) -> Drawing:
    """Times at one point: dots with their interval, the floor of each as a tick."""
    names = sorted(c.timed, key=lambda n: timing_of(c.timed[n]).median_ms)
    with _house_style():
        figure, ax = _rows(names)
        values = []
        for y, each in enumerate(names):
            t, floor, style = timing_of(c.timed[each]), c.timed[each].floor_ms, styles[each]
            ax.plot([t.ci_low_ms, t.ci_high_ms], [y, y], color=style.color, linewidth=5, alpha=0.35)
            ax.plot(t.median_ms, y, color=style.color, marker=style.marker, markersize=9, markeredgecolor="white")
            _beside(ax, t.median_ms, y, f"{milliseconds(t.median_ms)} ms")
            values.append(t.median_ms)
            if floor:
                ax.plot(floor, y, color=MUTED, marker="|", markersize=14, markeredgewidth=2)
                values.append(floor)
        _log_x(ax, values, milliseconds)
        _title(figure, f"{heading}: time of one call", f"{name}: median, ms  (grey tick: floor)")
        return _finish(figure, stem, heading, "time of one call", f"At {describe(c.point, AXIS_TITLES)}.")


def _memory(c: Comparison, styles: dict[str, Style], heading: str, stem: str, name: str) -> Drawing:
    """Peak memory above the inputs beside the model's, at one point."""
    held = {n: r.peak_extra_bytes for n, r in c.timed.items() if r.peak_extra_bytes}
    names = sorted(held, key=lambda n: held[n])
    with _house_style():
        figure, ax = _rows(names)
        values: list[float] = []
        for y, each in enumerate(names):
            peak, model, style = held[each], c.timed[each].modelled_extra_bytes, styles[each]
            if model:
                ax.plot([peak, model], [y, y], color=style.color, linewidth=2, alpha=0.5)
                ax.plot(model, y, color=style.color, marker="o", markersize=10, fillstyle="none", markeredgewidth=1.6)
                values.append(model)
            ax.plot(peak, y, color=style.color, marker="o", markersize=6)
            _beside(ax, max(peak, model or 0), y, size(peak))
            values.append(peak)
        _log_x(ax, values, size)
        _title(figure, f"{heading}: extra memory", f"{name}: above the inputs  (dot: measured, ring: model)")
        return _finish(figure, stem, heading, "extra memory", f"At {describe(c.point, AXIS_TITLES)}, outputs included.")


def _house_style() -> Any:
    """matplotlib's own defaults and ours on top: a user's matplotlibrc changes nothing."""
    settings: Any = {**matplotlib.rcParamsDefault, **RC, "backend": "agg"}
    return matplotlib.rc_context(settings)


def _canvas(entries: int) -> tuple[Figure, Axes]:
    """One plot with room for its legend of two columns below it."""
    below = 0.56 + 0.174 * ((entries + 1) // 2)
    height = ABOVE + PLOT_HEIGHT + below
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.add_axes((0.115, below / height, 0.85, PLOT_HEIGHT / height))


def _rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """One row a name, the names on the left."""
    plot, below = 0.32 * len(names) + 0.2, 0.32
    height = plot + below + ABOVE
    left = min(0.5, 0.02 + 0.0145 * max(len(name) for name in names))
    figure = Figure(figsize=(WIDTH, height))
    ax = figure.add_axes((left, below / height, 0.97 - left, plot / height))
    ax.set_yticks(range(len(names)), [_fitting(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(False, axis="y")
    return figure, ax


def _title(figure: Figure, title: str, meaning: str) -> None:
    """The title, and below it what the values mean, from the left edge: long tick labels push nothing aside."""
    top = figure.get_figheight()
    figure.text(0.02, 1 - 0.2 / top, title, fontsize=11.5, fontweight="bold", va="center")
    figure.text(0.02, 1 - 0.385 / top, meaning, fontsize=9, color=MUTED, va="center")


def _fitting(name: str) -> str:
    """A name as a legend holds it: cut where it is too long; matplotlib drops one that begins with "_"."""
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    return f" {cut}" if cut.startswith("_") else cut


def _beside(ax: Axes, x: float, y: float, text: str) -> None:
    ax.annotate(text, (x, y), xytext=(10, 0), textcoords="offset points", va="center", fontsize=9)


def _log_y(ax: Axes, low: float, high: float, form: Any) -> None:
    ax.set_yscale("log")
    pad = max(1.06, (high / low) ** 0.05)
    ax.set_ylim(low / pad, high * pad)
    ticks = log_ticks(low / pad, high * pad)
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter([_plain(form(t)) for t in ticks]))
    ax.yaxis.set_minor_locator(NullLocator())


def _log_x(ax: Axes, values: Sequence[float], form: Any) -> None:
    low, high = min(values), max(values)
    span = max(high / low, 2)
    reach = high * span**0.1
    low, high = low / span**0.06, high * span**0.45  # room for the text on the right
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ticks = binary_ticks(low, reach) if form is size else log_ticks(low, reach)
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
        ticks = [step * 10.0**n for n in range(-9, 12) for step in steps]
    return [t for t in ticks if t > 0 and low <= t <= high]


def binary_ticks(low: float, high: float) -> list[float]:
    """Powers of two, with their thirds between (48, 64, 96 MiB) where the span is small."""
    steps = (1.0, 1.25, 1.5, 1.75) if high / low < 4 else (1.0, 1.5) if high / low < 16 else (1.0,)
    return [t for t in (step * 2.0**n for n in range(60) for step in steps) if low <= t <= high]


def _plain(text: str) -> str:
    """A tick's label without idle zeros: 1.50× is 1.5×, 2.00× is 2×."""
    number, mark = (text[:-1], "×") if text.endswith("×") else (text, "")
    return (number.rstrip("0").rstrip(".") if mark and "." in number and "e" not in number else number) + mark


def _x_axis(ax: Axes, axis: str, line: Sequence[Comparison]) -> None:
    positions = _position(line, axis)
    labels = [short(coordinate(c.point, axis)) for c in line]
    if axis not in CATEGORIES:
        ax.set_xscale("log", base=2)
        every = -(-len(positions) // 9)
        positions, labels = positions[::every], labels[::every]
    else:
        ax.set_xlim(-0.3, len(line) - 0.7)
    ax.xaxis.set_major_locator(FixedLocator(positions))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(AXIS_TITLES[axis])


def _legend_below(figure: Figure, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.01, 0.0), ncols=2,
                  handlelength=2.9, columnspacing=1.0, borderaxespad=0.3, labelspacing=0.35)  # fmt: skip


def _finish(figure: Figure, stem: str, heading: str, title: str, caption: str) -> Drawing:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(stem, heading, title, caption, _png(figure), svg.getvalue())


def _png(figure: Figure) -> bytes:
    """In 128 colours: a third of the bytes, which the HTML page carries."""
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    png = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(128, dither=Image.Dither.NONE).save(png, format="png", dpi=(DPI, DPI))
    return png.getvalue()
