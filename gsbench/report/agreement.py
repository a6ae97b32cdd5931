"""The same case in two runs: do two measurements of one thing agree?

Runs are set side by side only where device, method and case are the same; speedups are never taken across runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import log

from gsbench.frame import device_name, latest
from gsbench.record import Record
from gsbench.report.ratios import Ratio, geometric_mean, quotient
from gsbench.report.tables import Cell, Table
from gsbench.report.text import interval, milliseconds, times
from gsbench.store import RunData

SHOWN = 20


@dataclass(frozen=True)
class Pair:
    first: Record
    second: Record
    ratio: Ratio  # second over first

    @property
    def disagreement(self) -> float:
        return abs(log(self.ratio.value))


def shared_cases(first: RunData, second: RunData) -> list[Pair]:
    """Cases that both runs timed on the same model of device by the same method, the largest disagreement first."""
    if device_name(first) != device_name(second):
        return []
    known = {record.key: record for record in latest(first.records)}
    pairs = []
    for record in latest(second.records):
        other = known.get(record.key)
        if other is None or other.timing is None or record.timing is None:
            continue
        if other.timing.method == record.timing.method:
            pairs.append(Pair(other, record, quotient(record, other)))
    return sorted(pairs, key=lambda pair: -pair.disagreement)


def agreement(runs: Sequence[RunData]) -> list[Table]:
    """A table of the pairs of runs, and one of the largest disagreements; empty where no case is shared."""
    summary, worst = [], []
    for first, second in combinations(runs, 2):
        pairs = shared_cases(first, second)
        if not pairs:
            continue
        apart = sum(pair.ratio.low > 1 or pair.ratio.high < 1 for pair in pairs)
        same_code = first.manifest.get("code_fingerprint") == second.manifest.get("code_fingerprint")
        summary.append([
            Cell(first.name), Cell(second.name), Cell(str(len(pairs))),
            Cell(times(geometric_mean(pair.ratio.value for pair in pairs))), Cell(times(pairs[0].ratio.value)),
            Cell(str(apart)), Cell("same" if same_code else "differs"),
        ])  # fmt: skip
        worst += [(pair.disagreement, first.name, second.name, pair) for pair in pairs]
    if not summary:
        return []
    worst.sort(key=lambda item: -item[0])
    rows = [_pair_row(first_name, second_name, pair) for _, first_name, second_name, pair in worst[:SHOWN]]
    note = "Median of the second run over that of the first. Apart: the intervals do not overlap."
    cut = f" The {SHOWN} largest of {len(worst)}." if len(worst) > SHOWN else ""
    header = ("first", "second", "shared cases", "geometric mean", "largest disagreement", "apart", "code")
    bold = "Bold: the intervals of the two medians do not overlap."
    return [
        Table("Agreement between runs", header, summary, note, 2),
        Table("Largest disagreements", ("case", "first", "second", "first ms", "second ms", "ratio"), rows, bold + cut, 3),
    ]


def _pair_row(first_name: str, second_name: str, pair: Pair) -> list[Cell]:
    apart = pair.ratio.low > 1 or pair.ratio.high < 1
    medians = [Cell(_median(pair.first)), Cell(_median(pair.second))]
    ratio = Cell(interval(pair.ratio), strong=apart, bad=apart)
    return [Cell(str(pair.first.case)), Cell(first_name), Cell(second_name), *medians, ratio]


def _median(record: Record) -> str:
    return milliseconds(record.timing.median_ms) if record.timing else ""
