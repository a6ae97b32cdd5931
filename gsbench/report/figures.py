"""Every figure of a run, as PNG and SVG bytes that depend on the records only (no dates, fixed ids)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from gsbench.report import canvas
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

MOST_POINTS = 6  # points off every axis that get a figure of their own
FLOOR_REACH = 20.0  # a floor further than this below every curve would flatten them: it leaves the plot
Curve = list[tuple[float, float, float, float]]  # x, middle, low, high


@dataclass(frozen=True)
class Drawing:
    """A finished figure. `stem` is unique within a run."""

    stem: str
    heading: str  # the group of figures it belongs to
    title: str
    caption: str
    png: bytes
    svg: bytes
    wide: bool = False  # takes a row of its own


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
RELATIVE = PLOTS[:2]


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
        if axis == "group_size" and all(_curves(line, axis, plot) for plot in RELATIVE):
            yield _pair(line, axis, styles, heading, f"{stem}-{axis}")
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


def _curve_panel(ax: Axes, line: Sequence[Comparison], axis: str, plot: Plot, styles: dict[str, Style]) -> None:
    curves = _curves(line, axis, plot)
    for name, curve in curves.items():
        style = styles[name]
        x, middle, low, high = zip(*curve, strict=True)
        ax.fill_between(x, low, high, color=style.color, alpha=0.18, linewidth=0, zorder=style.layer - 1)
        ax.plot(x, middle, color=style.color, marker=style.marker, markersize=6 if style.width > 2 else 5,
                markeredgecolor="white", markeredgewidth=0.6, linestyle=style.line, linewidth=style.width,
                zorder=style.layer, label=canvas.fitting(name))  # fmt: skip
    lows = [low for curve in curves.values() for _, _, low, _ in curve]
    highs = [high for curve in curves.values() for _, _, _, high in curve]
    if plot.reference:
        ax.axhline(1, color=canvas.MUTED, linewidth=1.2, zorder=1.5)
        lows, highs = [*lows, 1.0], [*highs, 1.0]
    else:
        label, floor = _floor(line, axis)
        if floor:
            x, y = zip(*floor, strict=True)
            ax.plot(x, y, color=canvas.MUTED, linestyle=(0, (1, 1.5)), linewidth=1.6, zorder=1.8, label=label)
            lows.append(max(min(y), min(lows) / FLOOR_REACH))
    canvas.log_y(ax, min(lows), max(highs), times if plot.reference else milliseconds)
    _x_axis(ax, axis, line)


def _pair(line: Sequence[Comparison], axis: str, styles: dict[str, Style], heading: str, stem: str) -> Drawing:
    """Both relative views side by side: the figure that stands for the whole run, in a README say."""
    with canvas.house_style():
        figure, panels = canvas.pair(max(len(_curves(line, axis, plot)) for plot in RELATIVE))
        for ax, plot in zip(panels, RELATIVE, strict=True):
            _curve_panel(ax, line, axis, plot, styles)
            ax.set_title(f"{plot.title}\n{plot.ylabel}", loc="left", fontsize=10, fontweight="normal")
        canvas.title(figure, f"{heading}, against {AXIS_TITLES[axis]}", f"at {describe(line[0].point, _fixed(axis))}")
        canvas.legend_below(figure, panels[1], columns=4)
        return _finish(figure, stem, heading, f"speed and time against both rivals, by {AXIS_TITLES[axis]}",
                       f"At {describe(line[0].point, _fixed(axis))}.", wide=True)  # fmt: skip


def _fixed(axis: str) -> list[str]:
    return [a for a in AXIS_TITLES if a != axis]


def _sweep(line: Sequence[Comparison], axis: str, plot: Plot, styles: dict[str, Style], heading: str, stem: str) -> Drawing:
    with canvas.house_style():
        figure, ax = canvas.plot(len(_curves(line, axis, plot)) + 1)
        _curve_panel(ax, line, axis, plot, styles)
        canvas.title(figure, f"{heading}: {plot.title}", plot.ylabel)
        canvas.legend_below(figure, ax)
        return _finish(figure, stem, heading, f"{plot.title}, by {AXIS_TITLES[axis]}",
                       f"At {describe(line[0].point, _fixed(axis))}.{_absences(line, axis, plot)}")  # fmt: skip


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
    with canvas.house_style():
        figure, ax = canvas.rows(names)
        values = []
        for y, each in enumerate(names):
            t, floor, style = timing_of(c.timed[each]), c.timed[each].floor_ms, styles[each]
            ax.plot([t.ci_low_ms, t.ci_high_ms], [y, y], color=style.color, linewidth=5, alpha=0.35)
            ax.plot(t.median_ms, y, color=style.color, marker=style.marker, markersize=9, markeredgecolor="white")
            canvas.beside(ax, t.median_ms, y, f"{milliseconds(t.median_ms)} ms")
            values.append(t.median_ms)
            if floor:
                ax.plot(floor, y, color=canvas.MUTED, marker="|", markersize=14, markeredgewidth=2)
                values.append(floor)
        canvas.log_x(ax, values, milliseconds)
        canvas.title(figure, f"{heading}: time of one call", f"{name}: median, ms  (grey tick: floor)")
        return _finish(figure, stem, heading, "time of one call", f"At {describe(c.point, AXIS_TITLES)}.")


def _memory(c: Comparison, styles: dict[str, Style], heading: str, stem: str, name: str) -> Drawing:
    """Peak memory above the inputs beside the model's, at one point."""
    held = {n: r.peak_extra_bytes for n, r in c.timed.items() if r.peak_extra_bytes}
    names = sorted(held, key=lambda n: held[n])
    with canvas.house_style():
        figure, ax = canvas.rows(names)
        values: list[float] = []
        for y, each in enumerate(names):
            peak, model, style = held[each], c.timed[each].modelled_extra_bytes, styles[each]
            if model:
                ax.plot([peak, model], [y, y], color=style.color, linewidth=2, alpha=0.5)
                ax.plot(model, y, color=style.color, marker="o", markersize=10, fillstyle="none", markeredgewidth=1.6)
                values.append(model)
            ax.plot(peak, y, color=style.color, marker="o", markersize=6)
            canvas.beside(ax, max(peak, model or 0), y, size(peak))
            values.append(peak)
        canvas.log_x(ax, values, size, binary=True)
        canvas.title(figure, f"{heading}: extra memory", f"{name}: above the inputs  (dot: measured, ring: model)")
        return _finish(figure, stem, heading, "extra memory", f"At {describe(c.point, AXIS_TITLES)}, outputs included.")


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


def _finish(figure: Figure, stem: str, heading: str, title: str, caption: str, wide: bool = False) -> Drawing:
    return Drawing(stem, heading, title, caption, canvas.png_bytes(figure), canvas.svg_bytes(figure), wide)
