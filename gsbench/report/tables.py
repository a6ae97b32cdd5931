"""The tables of the report, as plain cells: the page writes them as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gsbench.case import AXES, PASSES
from gsbench.record import Record
from gsbench.report.answer import lost_to_anchor, lost_to_rival, subject_speedup, subject_to_anchor
from gsbench.report.ratios import (
    ANCHOR,
    RIVAL,
    SUBJECT,
    Comparison,
    Ratio,
    by_pass,
    family,
    geometric_mean,
    in_order,
    rank,
    timing_of,
)
from gsbench.report.sweeps import Naming, from_centre
from gsbench.report.text import interval, milliseconds, size, times

NOT_INTERLEAVED = "†"


@dataclass(frozen=True)
class Cell:
    text: str
    strong: bool = False
    bad: bool = False  # strong for a loss or a fault, not for a win
    hint: str = ""  # shown on hover


@dataclass(frozen=True)
class Table:
    """`labels` leading columns name the row; the others hold figures."""

    title: str
    header: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""
    labels: int = 1


def summary(comparisons: Sequence[Comparison]) -> Table:
    """A row a pass: comparisons, clear wins of each family, geometric means, losses."""
    rows = []
    for pass_, group in by_pass(comparisons).items():
        rows.append([
            Cell(pass_), Cell(_wins(group)), Cell(str(len(group))), Cell(_mean(group, subject_speedup)),
            Cell(_mean(group, subject_to_anchor)), Cell(str(sum(map(lost_to_rival, group)))),
            Cell(str(sum(map(lost_to_anchor, group)))),
        ])  # fmt: skip
    header = ("pass", "fastest", "comparisons", f"{SUBJECT} over best {RIVAL}", f"{SUBJECT} time / {ANCHOR}",
              f"lost to {RIVAL}", f"lost to {ANCHOR}")  # fmt: skip
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


def losses(comparisons: Sequence[Comparison], naming: Naming) -> Table:
    """Every comparison that group_shared loses, the worst first."""
    lost = [c for c in comparisons if lost_to_rival(c) or lost_to_anchor(c)]
    rows = []
    for c in sorted(lost, key=_severity, reverse=True):
        cells = [Cell(c.pass_), Cell(naming.of(c.point)), Cell(c.subject or "")]
        for against, is_lost in ((subject_speedup, lost_to_rival(c)), (subject_to_anchor, lost_to_anchor(c))):
            ratio = against(c)
            cells.append(Cell("n/a") if ratio is None else Cell(interval(ratio), strong=is_lost, bad=is_lost))
        cells.append(Cell(c.winner))
        rows.append(cells)
    figures = (f"best {SUBJECT}", f"speed over best {RIVAL}", f"time / {ANCHOR}", "fastest of all")
    note = f"{naming.legend} Bold: lost, the whole interval. The worst first."
    return Table(f"Where {SUBJECT} loses", ("pass", "point", *figures), rows, note, labels=3)


def _severity(c: Comparison) -> float:
    speedup, ratio = subject_speedup(c), subject_to_anchor(c)
    return max(1 / speedup.value if speedup else 0, ratio.value if ratio else 0)


def ratio_tables(comparisons: Sequence[Comparison], naming: Naming) -> list[Table]:
    """For each pass: speed over the best fixed_fan_in, time over bottleneck/torch, share of the roof.

    A row a point, named by what sets it apart from the default point; a column an implementation.
    """
    tables = []
    for pass_, group in by_pass(from_centre(comparisons, naming.centre)).items():
        speed = f"{pass_}: speed over the best {RIVAL} (higher is better)"
        time = f"{pass_}: time over {ANCHOR} (lower is better)"
        tables += [
            _ratios(speed, group, naming, Comparison.speedup, RIVAL),
            _ratios(time, group, naming, Comparison.to_anchor, ANCHOR),
            _roofs(pass_, group, naming),
        ]
    return tables


def _ratios(
    title: str, group: Sequence[Comparison], naming: Naming, against: Callable[[Comparison, str], Ratio | None],
    reference: str,
) -> Table:  # fmt: skip
    names = _columns(group)
    rows, daggers, reasons = [], False, []
    for c in group:
        cells = [Cell(naming.of(c.point))]
        if not any(against(c, name) for name in c.timed):
            reasons.append(c.why_untimed(reference))
        for name in names:
            ratio = against(c, name)
            daggers |= ratio is not None and not ratio.interleaved
            cells.append(_ratio_cell(c, name, ratio))
        rows.append(cells)
    note = naming.legend + " Bold: the fastest; tie: its interval overlaps that of the fastest."
    if daggers:
        note += f" {NOT_INTERLEAVED}: not timed in one interleaved block."
    if reasons:
        note += f" n/a: no ratio, for {'; '.join(dict.fromkeys(reasons))}."
    return Table(title, ("point", *names), rows, note)


def _ratio_cell(c: Comparison, name: str, ratio: Ratio | None) -> Cell:
    mark = " tie" if name in c.tied else ""
    strong = name == c.winner
    if name not in c.timed:
        return untimed_cell(c, name)
    if ratio is None:
        return Cell("n/a" + mark, strong)
    dagger = "" if ratio.interleaved else NOT_INTERLEAVED
    span = f"95 % interval {times(ratio.low)} to {times(ratio.high)}"
    return Cell(times(ratio.value) + dagger + mark, strong, hint=span)


def _roofs(pass_: str, group: Sequence[Comparison], naming: Naming) -> Table:
    """Share of the roof: the floor of the layer's bytes and FLOPs over the measured median."""
    names = _columns(group)
    rows = []
    for c in group:
        cells = [Cell(naming.of(c.point))]
        for name in names:
            if name not in c.timed:
                cells.append(untimed_cell(c, name))
                continue
            share = c.timed[name].roof_share
            above = share is not None and share > 1
            text = "n/a" if share is None else f"{share:.1%}{' !' if above else ''}"
            cells.append(Cell(text, strong=above, bad=above))
        rows.append(cells)
    note = f"{naming.legend} Each against its own floor. !: above 100 %, a fault of the harness."
    return Table(f"{pass_}: share of the roof", ("point", *names), rows, note)


def untimed_cell(c: Comparison, name: str) -> Cell:
    record = c.untimed.get(name)
    return Cell("") if record is None else Cell(record.status, hint=record.reason)


def implementations(group: Iterable[Comparison]) -> list[str]:
    return in_order(name for c in group for name in (*c.timed, *c.untimed))


def _columns(group: Iterable[Comparison]) -> list[str]:
    """The subject first, where a narrow screen still shows it; then the order of the implementation table."""
    return sorted(implementations(group), key=lambda name: family(name) != SUBJECT)


def all_cases(records: Sequence[Record]) -> Table:
    header = (
        "implementation", "pass", "B", "D", "L", "K", "G", "pattern", "dtype", "mode", "method", "status", "median ms",
        "95 % interval", "samples", "floor ms", "roof", "extra memory", "modelled", "layer", "mJ", "flags",
    )  # fmt: skip
    order = {name: i for i, name in enumerate(in_order(r.case.implementation for r in records))}

    def place_of(r: Record) -> tuple[object, ...]:
        shape = [getattr(r.case.point.shape, axis) for axis in AXES]
        where = (r.case.point.dtype, r.case.point.pattern, *shape, r.case.mode)
        return rank(PASSES, r.case.pass_), *where, order[r.case.implementation]

    ordered = sorted(records, key=place_of)
    return Table("Every case", header, [_case_row(r) for r in ordered], labels=2)


def _case_row(r: Record) -> list[Cell]:
    t, s = r.timing, r.case.point.shape
    texts = [
        r.case.implementation, r.case.pass_, *(f"{getattr(s, axis):,}" for axis in AXES), r.case.point.pattern,
        r.case.point.dtype, r.case.mode, t.method if t else "", r.status, milliseconds(t.median_ms) if t else "",
        f"{milliseconds(t.ci_low_ms)} to {milliseconds(t.ci_high_ms)}" if t else "", str(t.samples) if t else "",
        "" if r.floor_ms is None else milliseconds(r.floor_ms), "" if r.roof_share is None else f"{r.roof_share:.1%}",
        size(r.peak_extra_bytes), size(r.modelled_extra_bytes), size(r.layer_bytes),
        "" if r.energy_mj is None else f"{r.energy_mj:.4g}", "; ".join(r.validity),
    ]  # fmt: skip
    return [Cell(text) for text in texts]


def failures(records: Sequence[Record]) -> Table:
    """Cases without a timing, those of one implementation, status and reason on one row."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if r.timing is None:
            groups.setdefault((r.case.implementation, r.status, r.reason), []).append(r)
    return Table("Not timed, and why", ("implementation", "status", "cases", "reason", "first of them"),
                 [_group_row(key, group) for key, group in sorted(groups.items())], labels=2)  # fmt: skip


def _group_row(key: tuple[str, str, str], group: Sequence[Record]) -> list[Cell]:
    name, status, reason = key
    first = group[0].case
    return [Cell(name), Cell(status), Cell(str(len(group))), Cell(reason or "no reason recorded"),
            Cell(f"{first.pass_} {first.point} {first.mode}")]  # fmt: skip


def flags(records: Sequence[Record]) -> Table:
    """What keeps records from being beyond dispute, with how many carry it."""
    groups: dict[str, list[Record]] = {}
    for r in records:
        marks = list(r.validity)
        if r.roof_share is not None and r.roof_share > 1:
            marks.append("above 100 % of the roof: a fault of the harness")
        if r.timing is not None:
            marks += ["two modes in the samples"] * r.timing.bimodal
            marks += ["the time budget ended before the interval was narrow enough"] * r.timing.capped
        for mark in dict.fromkeys(marks):
            groups.setdefault(mark, []).append(r)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [[Cell(mark), Cell(str(len(group))), Cell(str(group[0].case))] for mark, group in ordered]
    return Table("What limits these figures", ("flag", "cases", "first of them"), rows)


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
