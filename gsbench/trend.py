"""Each case's ratio to its anchor over recorded runs, and where it changed. Reads records only: no torch, no pandas."""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gsbench.case import Case
from gsbench.changepoints import change_points
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import device_name, latest
from gsbench.store import MANIFEST, RunData, find_runs, read_run

LEVEL = 0.05  # of a false change anywhere in the trend of runs
FINEST = 2e-4  # of one series


@dataclass(frozen=True)
class Point:
    run: str
    when: str  # UTC, when the run was begun
    ratio: float  # time over the anchor's in the same run


@dataclass(frozen=True)
class Change:
    """At `point` the geometric mean since the change before went from `before` to `after` (up to the next)."""

    point: Point
    before: float
    after: float

    @property
    def factor(self) -> float:
        return self.after / self.before


@dataclass(frozen=True)
class Series:
    """A case on one device by one method, oldest first."""

    case: Case
    device: str
    method: str
    points: tuple[Point, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Trend:
    anchor: str
    runs: int
    series: tuple[Series, ...]  # those that changed most come first
    skipped: tuple[str, ...]  # what was left out, in words


def trend(places: Sequence[str], anchor: str) -> Trend:
    """places: run folders, folders of runs, or globs of them. A run found twice (a promoted copy) counts once.

    Changes are those of a familywise level of 5 %, shared out over the series (Bonferroni); of more than 250 series one in
    5,000 may change falsely, which is as far as the shuffles reach. Raises UserError where a place
    has no run, NothingMeasured where none has the anchor.
    """
    runs, skipped = _read(places)
    values: dict[tuple[str, str, Case], list[Point]] = {}
    for run in runs:
        found = list(_ratios(run, anchor))
        if not found:
            skipped.append(f"{run.path}: {anchor} was not timed in it, or nothing beside it")
        for case, method, ratio in found:
            point = Point(run.name, str(run.manifest.get("created_utc", "")), ratio)
            values.setdefault((device_name(run), method, case), []).append(point)
    if not values:
        raise NothingMeasured(f"--anchor {anchor}: timed in none of the {len(runs)} runs; choose another implementation")
    level = max(LEVEL / len(values), FINEST)
    series = [
        Series(case, device, method, tuple(points), _changes(points, level))
        for (device, method, case), points in values.items()
    ]
    series.sort(key=lambda s: -max((abs(math.log(c.factor)) for c in s.changes), default=0.0))
    return Trend(anchor, len(runs), tuple(series), tuple(skipped))


def _read(places: Sequence[str]) -> tuple[list[RunData], list[str]]:
    folders: dict[Path, None] = {}
    for place in places:
        if Path(place).exists():
            folders |= dict.fromkeys(find_runs(Path(place)))
            continue
        found = [Path(p) for p in glob.glob(place, recursive=True)]
        runs = [p for p in found if (p / MANIFEST).exists()]
        if not runs:
            raise UserError(f"{place}: no run here (a run is a folder with a {MANIFEST})")
        folders |= dict.fromkeys(sorted(runs))
    read: dict[tuple[str, str], RunData] = {}
    skipped = []
    for folder in folders:
        try:
            run = read_run(folder)
        except UserError as e:  # one run of many that this version cannot read
            skipped.append(str(e))
            continue
        read.setdefault((run.name, str(run.manifest.get("created_utc", ""))), run)
    return sorted(read.values(), key=lambda run: (str(run.manifest.get("created_utc", "")), run.name)), skipped


def _ratios(run: RunData, anchor: str) -> Iterator[tuple[Case, str, float]]:
    def usable(ms: float) -> bool:
        return math.isfinite(ms) and ms > 0

    timed = [(r.case, r.timing) for r in latest(run.records) if r.timing is not None and usable(r.timing.median_ms)]
    anchors = {(replace(c, implementation=""), t.method): t.median_ms for c, t in timed if c.implementation == anchor}
    for case, timing in timed:
        reference = anchors.get((replace(case, implementation=""), timing.method))
        if reference is not None and case.implementation != anchor:
            yield case, timing.method, timing.median_ms / reference


def _changes(points: list[Point], level: float) -> tuple[Change, ...]:
    logs = np.log([point.ratio for point in points])
    starts = [0, *change_points(logs, level), len(points)]
    means = [float(np.exp(logs[a:b].mean())) for a, b in itertools.pairwise(starts)]
    return tuple(Change(points[at], means[i], means[i + 1]) for i, at in enumerate(starts[1:-1]))
