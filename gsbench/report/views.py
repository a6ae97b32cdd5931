"""What the report draws, as plain data: the page draws it with Plotly, `--figures` with matplotlib, from the same numbers.

A view's data, by its kind ("id" is the number of a case in the report; a "form" is how a value is written, see
gsbench.report.text and form() of assets/report.js):

    curves  x {title, log, at, labels}, form, reference, lines, series [{name, points [[x, y, low, high, id]]}],
            floor {name, points [[x, y]]}, fits [{name, points [[x, y], [x, y]]}]
    rows    form, reference, rows [{name, value, low, high, floor, id}]
    stack   phases [name], rows [{name, model [bytes], measured, id}]        (gsbench.report.memory)
    roof    ceilings, series [{name, points [[x, y, floor, id]]}]            (gsbench.report.roofline)
    map     rows, columns, cells                                             (gsbench.report.winners)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsbench.report.ratios import ANCHOR, RIVAL, SUBJECT, Comparison, by_pass, by_setting, in_order, timing_of
from gsbench.report.scaling import fit
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
from gskernels.shape import Shape

MOST_POINTS = 12  # points off every axis that are drawn
DODGE = 0.6  # of the distance between two named points, over which their implementations spread
Data = dict[str, Any]
Value = tuple[float, float, float]  # middle, low, high


@dataclass(frozen=True)
class Group:
    """The comparisons of one run, setting, dtype and pass: one heading of the report. `ids`: record key -> case number."""

    heading: str
    run: str
    stem: str  # begins the names of its figures
    comparisons: list[Comparison]
    naming: Naming
    ids: dict[str, int] = field(repr=False)

    def apart(self, most: int) -> list[Comparison]:
        """The points that lie on no axis through the default point; none of them if there are too many."""
        drawn = {c.point for _, line in self.lines() for c in line}
        rest = [c for c in from_centre(self.comparisons, self.naming.centre) if c.point not in drawn]
        return rest if len(rest) <= most else []

    def lines(self) -> Iterator[tuple[str, list[Comparison]]]:
        """(axis, the comparisons that differ from the default point in that axis only), for each axis that varies."""
        for axis in varying(c.point for c in self.comparisons):
            if axis != "dtype" and len(line := along(self.comparisons, axis, self.naming.centre)) > 1:
                yield axis, line


@dataclass(frozen=True)
class View:
    """One figure. `stem`: names its files. `title`: what is drawn; `meaning`: what its values mean."""

    kind: str
    section: str
    heading: str
    stem: str
    title: str
    meaning: str
    caption: str
    data: Data
    implementations: list[str]


@dataclass(frozen=True)
class Plot:
    """A value of a timed implementation that is drawn against every axis."""

    name: str
    section: str
    title: str
    meaning: str
    form: str
    value: Callable[[Comparison, str], Value | None]
    reference: str = ""  # what the values are divided by


def _speedup(c: Comparison, name: str) -> Value | None:
    ratio = c.speedup(name)
    return None if ratio is None else (ratio.value, ratio.low, ratio.high)


def _ratio(c: Comparison, name: str) -> Value | None:
    ratio = c.to_anchor(name)
    return None if ratio is None else (ratio.value, ratio.low, ratio.high)


def _time(c: Comparison, name: str) -> Value | None:
    t = timing_of(c.timed[name])
    return t.median_ms, t.ci_low_ms, t.ci_high_ms


def _energy(c: Comparison, name: str) -> Value | None:
    energy = c.timed[name].energy_mj
    return None if not energy else (energy, energy, energy)


PLOTS = (
    Plot("speedup", "speed", f"speed over the best {RIVAL}", "times as fast (higher is better)", "times", _speedup, RIVAL),
    Plot("ratio", "speed", f"time over {ANCHOR}", "multiple of its time (lower is better)", "times", _ratio, ANCHOR),
    Plot("time", "scaling", "time of one call", "median, ms (lower is better)", "ms", _time),
    Plot("energy", "energy", "energy of one call", "mJ (lower is better)", "mJ", _energy),
)


def groups(
    comparisons: Sequence[Comparison], ids: dict[str, int], declared: dict[str, int | str], named: dict[Shape, str], run: str
) -> Iterator[Group]:
    """The groups of one run. `run`: its name where the report has several, else "".

    `declared` and `named` hold the suite's default point and named points (see gsbench.report.sweeps).
    """
    settings = by_setting(comparisons)
    dtypes = sorted({c.point.dtype for c in comparisons})
    for setting, timed in settings.items():
        for dtype in sorted({c.point.dtype for c in timed}):
            group = [c for c in timed if c.point.dtype == dtype]
            naming = Naming(default_point([c.point for c in group], {**declared, "dtype": dtype}), named)
            words = [str(setting)] * (len(settings) > 1) + [dtype] * (len(dtypes) > 1)
            parts = [run] * bool(run) + [setting.slug] * (len(settings) > 1) + [dtype] * (len(dtypes) > 1)
            for pass_, of_pass in by_pass(group).items():
                heading = ", ".join([f"{run}: {pass_}" if run not in ("", pass_) else pass_, *words])
                yield Group(heading, run, "-".join([*parts, pass_]), of_pass, naming, ids)


def sweeps(group: Group) -> Iterator[View]:
    """Every plot against every axis, then over the points that lie on no axis."""
    for axis, line in group.lines():
        at = [rank if axis in CATEGORIES else float(coordinate(c.point, axis)) for rank, c in enumerate(line)]
        x = {
            "title": AXIS_TITLES[axis], "log": axis not in CATEGORIES, "at": at,
            "labels": [short(coordinate(c.point, axis)) for c in line],
        }  # fmt: skip
        fixed = describe(line[0].point, [other for other in AXIS_TITLES if other != axis])
        for plot in PLOTS:
            yield from _curves(group, line, plot, x, f"by {AXIS_TITLES[axis]}", axis, f"At {fixed}.")
    apart = group.apart(MOST_POINTS)
    for plot in PLOTS:
        if len(apart) == 1:
            yield from _rows(group, apart[0], plot)
        elif apart:
            names = [group.naming.of(c.point) for c in apart]
            x = {"title": "", "log": False, "at": list(range(len(names))), "labels": names}
            yield from _curves(group, apart, plot, x, "at each point", "points", group.naming.legend, lines=False)


def _curves(
    group: Group, line: Sequence[Comparison], plot: Plot, x: Data, over: str, stem: str, caption: str, lines: bool = True
) -> Iterator[View]:
    names = in_order(name for c in line for name in c.timed)
    series: list[Data] = []
    fits: list[Data] = []
    for rank, name in enumerate(names):
        aside = 0.0 if lines else DODGE * (rank / max(1, len(names) - 1) - 0.5)
        points = []
        for at, c in zip(x["at"], line, strict=True):
            value = plot.value(c, name) if name in c.timed else None
            if value is not None:
                points.append([at + aside, *map(rounded, value), group.ids[c.timed[name].key]])
        if points:
            series.append({"name": name, "points": points})
        if stem == "labels" and plot.name == "time" and (power := fit([(p[0], p[1]) for p in points])):
            ends = [[at, rounded(power.at(at))] for at in (points[0][0], points[-1][0])]
            text = {"exponent": rounded(power.exponent), "error": rounded(power.error), "count": len(points)}
            fits.append({"name": name, "points": ends, **text})
    if not series:
        return
    data = {
        "x": x, "form": plot.form, "reference": 1 if plot.reference else None, "lines": lines, "series": series,
        "floor": _floor(line, x["at"]) if plot.name == "time" and lines else None, "fits": fits,
    }  # fmt: skip
    caption += _absences(line, x["labels"], plot)
    drawn = [one["name"] for one in series]
    yield View("curves", plot.section, group.heading, f"{group.stem}-{stem}-{plot.name}", f"{plot.title}, {over}",
               plot.meaning, caption, data, drawn)  # fmt: skip


def _rows(group: Group, c: Comparison, plot: Plot) -> Iterator[View]:
    """One point: a row for each implementation, the best first."""
    rows: list[Data] = []
    for name, record in c.timed.items():
        if (value := plot.value(c, name)) is not None:
            middle, low, high = map(rounded, value)
            floor = rounded(record.floor_ms) if plot.name == "time" and record.floor_ms else None
            one = {"name": name, "value": middle, "low": low, "high": high, "floor": floor, "id": group.ids[record.key]}
            rows.append(one)
    if not rows:
        return
    rows.sort(key=lambda row: row["value"], reverse=plot.name == "speedup")
    name = group.naming.of(c.point)
    data = {"form": plot.form, "reference": 1 if plot.reference else None, "rows": rows}
    caption = f"{name}: {describe(c.point, AXIS_TITLES)}." + (" Grey tick: floor." if plot.name == "time" else "")
    yield View("rows", plot.section, group.heading, f"{group.stem}-{name}-{plot.name}", plot.title, plot.meaning, caption,
               data, [row["name"] for row in rows])  # fmt: skip


def _floor(line: Sequence[Comparison], at: Sequence[float]) -> Data | None:
    """The floor of group_shared's bytes and FLOPs, or of the fastest implementation where it was not timed."""
    has_subject = any(c.subject for c in line)
    points = []
    for x, c in zip(at, line, strict=True):
        name = c.subject if has_subject else c.winner
        floor = c.timed[name].floor_ms if name else None
        if floor is not None:
            points.append([x, rounded(floor)])
    return {"name": f"floor of {SUBJECT if has_subject else 'the fastest'}", "points": points} if points else None


def _absences(line: Sequence[Comparison], labels: Sequence[str], plot: Plot) -> str:
    """What is not drawn, and why: part of the caption."""
    if plot.name == "energy":
        return ""
    words = []
    for name in in_order(n for c in line for n in c.untimed):
        where: dict[str, list[str]] = {}
        for label, c in zip(labels, line, strict=True):
            if name in c.untimed:
                where.setdefault(c.untimed[name].status, []).append(label)
        for status, at in where.items():
            words.append(f"{name} ({status})" if len(at) == len(line) else f"{name} at {', '.join(at)} ({status})")
    bare = [label for label, c in zip(labels, line, strict=True) if not any(plot.value(c, name) for name in c.timed)]
    words += [f"no {plot.reference} to divide by at {', '.join(bare)}"] if bare else []
    return f" Not drawn: {'; '.join(words)}." if words else ""


def rounded(value: float) -> float:
    """Six digits: more is noise, and would differ from machine to machine."""
    return float(f"{value:.6g}")
