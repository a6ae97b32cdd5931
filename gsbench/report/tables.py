"""The tables of the report, as plain cells: the page writes them as HTML, as Markdown and as LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from gsbench.case import AXES, Point
from gsbench.record import Record
from gsbench.report.answer import lost_to_anchor, lost_to_rival, subject_speedup, subject_to_anchor
from gsbench.report.ratios import (
    ANCHOR,
    RIVAL,
    SUBJECT,
    Comparison,
    Ratio,
    family,
    geometric_mean,
    in_order,
    timing_of,
)
from gsbench.report.sweeps import describe, from_centre
from gsbench.report.text import interval, milliseconds, times
from gsbench.report.views import Group, View

NOT_INTERLEAVED = "†"
MOST_ROWS = 150  # of a table that is read


@dataclass(frozen=True)
class Cell:
    text: str
    strong: bool = False
    bad: bool = False  # strong for a loss or a fault, not for a win


@dataclass(frozen=True)
class Table:
    """`labels` leading columns name the row; the others hold figures."""

    title: str
    header: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""
    labels: int = 1


def shortened(table: Table) -> Table:
    """The first rows of a table, and how many there are."""
    if len(table.rows) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(table.rows):,} rows. {table.note}"
    return replace(table, rows=table.rows[:MOST_ROWS], note=note)


def summary(groups: Sequence[Group]) -> Table:
    """A row a group: comparisons, clear wins of each implementation, geometric means, losses."""
    rows = []
    for group in groups:
        comparisons = group.comparisons
        rows.append([
            Cell(group.heading), Cell(_wins(comparisons)), Cell(str(len(comparisons))),
            Cell(_mean(comparisons, subject_speedup)), Cell(_mean(comparisons, subject_to_anchor)),
            Cell(str(sum(map(lost_to_rival, comparisons)))), Cell(str(sum(map(lost_to_anchor, comparisons)))),
        ])  # fmt: skip
    header = ("run and pass" if any(g.run for g in groups) else "pass", "fastest", "points", f"{SUBJECT} over best {RIVAL}",
              f"{SUBJECT} time / {ANCHOR}", f"lost to {RIVAL}", "lost to bottleneck")  # fmt: skip
    note = "Geometric means over the points, with their range. A loss counts if its whole interval is on that side."
    return Table("At a glance", header, rows, note, labels=2)


def _wins(group: Sequence[Comparison]) -> str:
    contests = [c for c in group if len(c.timed) > 1]
    clear = [c.winner for c in contests if not c.tied]
    words = [f"{name} {clear.count(name)}" for name in sorted(in_order(clear), key=lambda n: -clear.count(n))]
    ties = len(contests) - len(clear)
    return ", ".join([*words, *([f"tie {ties}"] if ties else [])])


def _mean(group: Sequence[Comparison], against: Callable[[Comparison], Ratio | None]) -> str:
    values = [r.value for c in group if (r := against(c)) is not None]
    if not values:
        return "n/a"
    span = f" ({times(min(values))} to {times(max(values))})" if len(values) > 1 else ""
    return times(geometric_mean(values)) + span


def losses(groups: Sequence[Group]) -> Table:
    """Every comparison that group_shared loses, the worst first."""
    lost = [(g, c) for g in groups for c in g.comparisons if lost_to_rival(c) or lost_to_anchor(c)]
    rows = []
    for group, c in sorted(lost, key=lambda item: _severity(item[1]), reverse=True):
        cells = [Cell(group.heading), Cell(_place(c.point)), Cell(c.subject or "")]
        for against, is_lost in ((subject_speedup, lost_to_rival(c)), (subject_to_anchor, lost_to_anchor(c))):
            ratio = against(c)
            cells.append(Cell("n/a") if ratio is None else Cell(interval(ratio), strong=is_lost, bad=is_lost))
        cells.append(Cell(c.winner))
        rows.append(cells)
    figures = (f"best {SUBJECT}", f"speed over best {RIVAL}", f"time / {ANCHOR}", "fastest of all")
    return Table(f"Where {SUBJECT} loses", ("measured", "point", *figures), rows,
                 "Bold: lost, the whole interval. The worst first.", labels=3)  # fmt: skip


def _place(point: Point) -> str:
    return f"{describe(point, AXES)} {point.pattern} {point.dtype}"


def _severity(c: Comparison) -> float:
    speedup, ratio = subject_speedup(c), subject_to_anchor(c)
    return max(1 / speedup.value if speedup else 0, ratio.value if ratio else 0)


def by_family(group: Group) -> Table:
    """A row a point: the best time of each family in ms, and both ratios of group_shared."""
    here = {family(name) for c in group.comparisons for name in (*c.timed, *c.untimed)}
    others = sorted(here - {SUBJECT, RIVAL, family(ANCHOR), "dense", "masked_dense"})
    columns = (SUBJECT, RIVAL, ANCHOR, "dense", *others)
    rows, daggers, reasons = [], False, []
    for c in from_centre(group.comparisons, group.naming.centre):
        cells = [Cell(group.naming.of(c.point))]
        for column in columns:
            best = c.timed.get(column) if "/" in column else c.fastest(column)
            if best is None:
                cells.append(Cell(", ".join(sorted({r.status for n, r in c.untimed.items() if n.startswith(column)}))))
                continue
            tie = " tie" if best.case.implementation in c.tied else ""
            cells.append(Cell(milliseconds(timing_of(best).median_ms) + tie, best.case.implementation == c.winner))
        for ratio, reference in ((subject_speedup(c), RIVAL), (subject_to_anchor(c), ANCHOR)):
            daggers |= ratio is not None and not ratio.interleaved
            if ratio is None and c.subject:
                reasons.append(c.why_untimed(reference))
            mark = "" if ratio is None or ratio.interleaved else NOT_INTERLEAVED
            cells.append(Cell("n/a" if ratio is None else interval(ratio) + mark))
        rows.append([*cells, Cell(c.winner)])
    note = group.naming.legend + " Bold: the fastest of all; tie: its interval overlaps that of the fastest."
    if daggers:
        note += f" {NOT_INTERLEAVED}: not timed in one interleaved block."
    if reasons:
        note += f" n/a: no ratio, for {'; '.join(dict.fromkeys(reasons))}."
    times_of = (f"best {SUBJECT}", f"best {RIVAL}", ANCHOR, "dense", *(f"best {other}" for other in others))
    header = ("point", *(f"{name}, ms" for name in times_of), f"speed over {RIVAL}", f"time / {ANCHOR}", "fastest")
    return Table(f"{group.heading}: the best of each family", header, rows, note)


def exponents(views: Sequence[View]) -> Table:
    """How time grows with L: the power that fits each implementation's points."""
    rows = [
        [Cell(view.heading), Cell(f["name"]), Cell(f"{f['exponent']:.3f}"), Cell(f"{f['error']:.3f}"), Cell(str(f["count"]))]
        for view in views if view.kind == "curves" for f in view.data["fits"]
    ]  # fmt: skip
    note = "Time grows as L to that power, by least squares of the logarithms along L, all else at the default point."
    header = ("measured", "implementation", "exponent", "standard error", "points")
    return Table("Growth with L", header, rows, note, labels=2)


def marks(r: Record) -> list[str]:
    """What keeps a record from being beyond dispute."""
    said = list(r.validity)
    if r.roof_share is not None and r.roof_share > 1:
        said.append("above 100 % of the roof: a fault of the harness")
    if r.timing is not None:
        said += ["two modes in the samples"] * r.timing.bimodal
        said += ["the time budget ended before the interval was narrow enough"] * r.timing.capped
    return list(dict.fromkeys(said))


def failures(records: Sequence[Record]) -> Table:
    """Cases without a timing, those of one implementation, status and reason on one row."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if r.timing is None:
            groups.setdefault((r.case.implementation, r.status, r.reason), []).append(r)
    return Table("Not timed, and why", ("implementation", "status", "reason", "first of them", "cases"),
                 [_group_row(key, group) for key, group in sorted(groups.items())], labels=4)  # fmt: skip


def _group_row(key: tuple[str, str, str], group: Sequence[Record]) -> list[Cell]:
    name, status, reason = key
    first = group[0].case
    return [Cell(name), Cell(status), Cell(reason or "no reason recorded"),
            Cell(f"{first.pass_} {first.point} {first.mode}"), Cell(str(len(group)))]  # fmt: skip


def flags(records: Sequence[Record]) -> Table:
    """What keeps records from being beyond dispute, with how many carry it."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        for mark in marks(r):
            groups.setdefault(mark, []).append(r)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [[Cell(mark), Cell(str(group[0].case)), Cell(str(len(group)))] for mark, group in ordered]
    return Table("What limits these figures", ("flag", "first of them", "cases"), rows, labels=2)


def implementations(group: Iterable[Comparison]) -> list[str]:
    return in_order(name for c in group for name in (*c.timed, *c.untimed))


def absolute(c: Comparison) -> Table:
    """One comparison in full, for the terminal: status, median, interval, both ratios, roof, flags."""
    rows = []
    for name in implementations([c]):
        if name not in c.timed:
            rows.append([Cell(name), Cell(c.untimed[name].status), *[Cell("")] * 6])
            continue
        record, t = c.timed[name], timing_of(c.timed[name])
        speedup, ratio, best = c.speedup(name), c.to_anchor(name), name == c.winner
        rows.append([
            Cell(name, strong=best), Cell("tie" if name in c.tied else "ok"), Cell(milliseconds(t.median_ms), strong=best),
            Cell(f"{milliseconds(t.ci_low_ms)} to {milliseconds(t.ci_high_ms)}"),
            Cell(times(speedup.value) if speedup else "n/a"), Cell(times(ratio.value) if ratio else "n/a"),
            Cell("n/a" if record.roof_share is None else f"{record.roof_share:.1%}"), Cell("; ".join(record.validity)),
        ])  # fmt: skip
    header = ["implementation", "status", "median ms", "95 % interval", "speed\n/ fan_in", "time\n/ bottl.", "roof", "flags"]
    if not any(row[-1].text for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table(f"{c.pass_}  {c.point}  ({c.setting})", tuple(header), rows, labels=2)
