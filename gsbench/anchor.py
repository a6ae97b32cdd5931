"""Ratios to an anchor: an implementation that nobody changes, timed in every run at the same points.

A machine that drifts (clocks, temperature, driver, library versions) moves the anchor too. Every time is divided by the
anchor's in the same run, then multiplied by the anchor's mean over the base, so that times stay milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from gsbench.case import Case
from gsbench.differences import joined
from gsbench.errors import NothingMeasured, UserError
from gsbench.record import Record, Timing
from gsbench.store import RunData


@dataclass(frozen=True)
class Anchored:
    """Both sides with the anchor's own times divided out. The anchor's cases are left out: they are 1 by construction."""

    base: list[RunData]
    new: list[RunData]
    drift: float  # the anchor's own new / base, geometric mean over its cases
    least: float  # the smallest and largest of its cases
    most: float
    cases: int
    lost: tuple[Case, ...]  # timed, but the anchor was not timed beside them in every run


def anchored(base: Sequence[RunData], new: Sequence[RunData], anchor: str) -> Anchored:
    """Divide by the anchor. Raises UserError if no run has that implementation, NothingMeasured if it cannot serve."""
    found = [_index(run, anchor) for run in (*base, *new)]
    before, after = found[: len(base)], found[len(base) :]
    if not any(found):
        timed = sorted({r.case.implementation for run in (*base, *new) for r in run.records if r.timing})
        raise UserError(f"--anchor {anchor}: not timed in any run; timed there: {', '.join(timed) or 'nothing'}")
    hashes = [{r.binary_hash for index in side for r in index.values()} - {""} for side in (before, after)]
    if hashes[0] and hashes[1] and hashes[0] != hashes[1]:
        was, now = map(joined, hashes)
        raise NothingMeasured(
            f"--anchor {anchor}: its own binary changed ({was} → {now}), so it anchors nothing; choose an unchanged one"
        )
    shared = [place for place in before[0] if all(place in index for index in found)] if before else []
    if not shared:
        raise NothingMeasured(f"--anchor {anchor}: no point where every run of both sides timed it; measure again with it")
    means = [{place: _mean(index[place] for index in side) for place in shared} for side in (before, after)]
    drifts = [means[1][place] / means[0][place] for place in shared]
    lost: dict[Case, None] = {}
    sides = []
    for runs, indices in ((base, before), (new, after)):
        side = []
        for run, index in zip(runs, indices, strict=True):
            records = list(_divided(run.records, index, means[0], anchor, lost))
            side.append(replace(run, records=records))
        sides.append(side)
    drift = math.exp(sum(map(math.log, drifts)) / len(drifts))
    return Anchored(sides[0], sides[1], drift, min(drifts), max(drifts), len(drifts), tuple(lost))


def _place(case: Case) -> Case:
    """Where a case was timed, whoever it was."""
    return replace(case, implementation="")


def _index(run: RunData, anchor: str) -> dict[Case, Record]:
    return {
        _place(record.case): record
        for record in run.records
        if record.case.implementation == anchor and record.timing is not None and _usable(record.timing)
    }


def _usable(t: Timing) -> bool:
    return all(math.isfinite(x) and x > 0 for x in (t.median_ms, t.ci_low_ms, t.ci_high_ms, t.p20_ms, t.p80_ms))


def _mean(records: Iterable[Record]) -> float:
    logs = [math.log(record.timing.median_ms) for record in records if record.timing is not None]
    return math.exp(sum(logs) / len(logs))


def _divided(
    records: Iterable[Record], index: dict[Case, Record], scale: dict[Case, float], anchor: str, lost: dict[Case, None]
) -> Iterator[Record]:
    for record in records:
        if record.case.implementation == anchor:
            continue
        if record.timing is None:
            yield record
            continue
        place = _place(record.case)
        if place not in scale:
            lost[record.case] = None
            continue
        reference = index[place].timing
        assert reference is not None, "only timed records are indexed"
        if record.timing.method != reference.method:
            lost[record.case] = None
            continue
        yield replace(record, timing=_relative(record.timing, reference, scale[place]))


def _relative(t: Timing, a: Timing, scale: float) -> Timing:
    """Ends of intervals divided by the anchor's opposite ends: its own uncertainty is part of the ratio's."""
    m = scale / a.median_ms
    return replace(
        t, median_ms=t.median_ms * m, ci_low_ms=t.ci_low_ms * scale / a.ci_high_ms,
        ci_high_ms=t.ci_high_ms * scale / a.ci_low_ms, p20_ms=t.p20_ms * scale / a.p80_ms,
        p80_ms=t.p80_ms * scale / a.p20_ms, p5_ms=t.p5_ms * m, p95_ms=t.p95_ms * m, min_ms=t.min_ms * m,
        bimodal=t.bimodal or a.bimodal,
    )  # fmt: skip
