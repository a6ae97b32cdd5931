"""Which timings may be divided by each other, and the ratios.

A comparison holds the implementations of one pass at one point under one setting (mode, method, device, world
size) of one run: nothing else is ever divided. Pure Python on records: no pandas, no matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, log

from gsbench.case import MODES, PASSES, Point
from gsbench.record import Record, Timing
from gskernels.table import IMPLEMENTATIONS

SUBJECT = "group_shared"
RIVAL = "fixed_fan_in"
ANCHOR = "bottleneck/torch"

_TABLE_ORDER = {implementation.name: i for i, implementation in enumerate(IMPLEMENTATIONS)}


@dataclass(frozen=True)
class Setting:
    """How the timings were taken: two settings are never compared."""

    mode: str
    method: str
    device: str
    world_size: int

    def __str__(self) -> str:
        ranks = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{self.mode}, {self.method}, {self.device}{ranks}"

    @property
    def slug(self) -> str:
        return f"{self.mode}-{self.method}-{self.device}-{self.world_size}"


@dataclass(frozen=True)
class Ratio:
    """Quotient of two medians; the interval combines both order-statistic intervals conservatively."""

    value: float
    low: float
    high: float
    interleaved: bool  # both were timed in one A B B A block, so drift hit them alike


def quotient(numerator: Record, denominator: Record) -> Ratio:
    """Median over median; low is the lowest numerator over the highest denominator, high the reverse."""
    n, d = timing_of(numerator), timing_of(denominator)
    same_block = numerator.block != "" and numerator.block == denominator.block
    return Ratio(n.median_ms / d.median_ms, n.ci_low_ms / d.ci_high_ms, n.ci_high_ms / d.ci_low_ms, same_block)


def timing_of(record: Record) -> Timing:
    if record.timing is None:
        raise ValueError(f"{record.case} has no timing ({record.status})")
    return record.timing


def family(name: str) -> str:
    return name.partition("/")[0]


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of the implementation table, unknown ones after it by name."""
    return sorted(set(names), key=lambda name: (_TABLE_ORDER.get(name, len(_TABLE_ORDER)), name))


@dataclass(frozen=True)
class Comparison:
    """The implementations of one pass at one point under one setting. `timed` is never empty."""

    setting: Setting
    pass_: str
    point: Point
    timed: dict[str, Record]
    untimed: dict[str, Record]

    def fastest(self, of_family: str | None = None) -> Record | None:
        rivals = [r for name, r in self.timed.items() if of_family is None or family(name) == of_family]
        return min(rivals, key=lambda r: timing_of(r).median_ms, default=None)

    @property
    def winner(self) -> str:
        best = self.fastest()
        assert best is not None, "a comparison without timings"
        return best.case.implementation

    @property
    def tied(self) -> set[str]:
        """The winner and all whose interval overlaps the winner's; empty if the winner stands alone."""
        end = timing_of(self.timed[self.winner]).ci_high_ms
        near = {name for name, record in self.timed.items() if timing_of(record).ci_low_ms <= end}
        return near if len(near) > 1 else set()

    def speedup(self, name: str) -> Ratio | None:
        """Time of the best fixed_fan_in implementation over that of `name`; None if either has no timing."""
        best = self.fastest(RIVAL)
        return quotient(best, self.timed[name]) if best is not None and name in self.timed else None

    def to_anchor(self, name: str) -> Ratio | None:
        """Time of `name` over that of bottleneck/torch; None if either has no timing."""
        anchor = self.timed.get(ANCHOR)
        return quotient(self.timed[name], anchor) if anchor is not None and name in self.timed else None

    @property
    def subject(self) -> str | None:
        """The fastest group_shared implementation."""
        best = self.fastest(SUBJECT)
        return None if best is None else best.case.implementation

    def why_untimed(self, reference: str) -> str:
        """Why an implementation (or every one of a family) has no timing here, in words."""
        failed = [r for name, r in self.untimed.items() if reference in (name, family(name))]
        if not failed:
            return f"{reference} was not measured"
        return "; ".join(f"{r.case.implementation}: {r.status}{f' ({r.reason})' if r.reason else ''}" for r in failed)


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Comparisons by setting (cold first), pass and point. Untimed records join those of their point and mode."""
    places: dict[tuple[str, str, int, str, Point], list[Record]] = {}
    for r in records:
        places.setdefault((r.case.mode, r.case.device, r.case.world_size, r.case.pass_, r.case.point), []).append(r)
    found = []
    for (mode, device, world_size, pass_, point), group in places.items():
        untimed = {r.case.implementation: r for r in group if r.timing is None}
        for method in sorted({r.timing.method for r in group if r.timing is not None}):
            timed = {r.case.implementation: r for r in group if r.timing is not None and r.timing.method == method}
            ordered = {name: timed[name] for name in in_order(timed)}
            found.append(Comparison(Setting(mode, method, device, world_size), pass_, point, ordered, untimed))
    return sorted(found, key=_sort_key)


def _sort_key(c: Comparison) -> tuple[object, ...]:
    s, shape = c.setting, c.point.shape
    return (
        rank(MODES, s.mode), s.mode, s.method, s.device, s.world_size, rank(PASSES, c.pass_), c.pass_,
        c.point.dtype, c.point.pattern, shape.batch, shape.dim, shape.labels, shape.fan_in, shape.group_size,
    )  # fmt: skip


def rank(order: tuple[str, ...], value: str) -> int:
    return order.index(value) if value in order else len(order)


def by_setting(comparisons: Iterable[Comparison]) -> dict[Setting, list[Comparison]]:
    groups: dict[Setting, list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault(c.setting, []).append(c)
    return groups


def by_pass(comparisons: Iterable[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for c in comparisons:
        groups.setdefault(c.pass_, []).append(c)
    return groups


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))
