"""The harness tested by itself: how often it cries wolf, and what it finds. Reads recorded runs; imports no torch.

A self-test's folder holds one or more experiments, each a suite measured by interleaved processes:

    01/a/01 ... 01/b/01 ...            two sides of the same code: whatever is found between them is a false alarm
    01/planted-2%/01 ...               side b again with every call 2 % longer: whatever is not found is a miss
    instrument.json                    what the timers cost, and whether independent ones agree
    runs.json                          all of these in one file (`gsbench.selfruns`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsbench import decide, selfruns
from gsbench.case import Case
from gsbench.compare import DEFAULT_TOLERANCE, Compared, beside, compare_runs
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import part
from gsbench.selfruns import Sides
from gsbench.share import parse_share

PLANTED = "planted-"
TOLERANCES = (0.0, 0.01, DEFAULT_TOLERANCE)
BARS = {"cuda": 0.01, "cpu": 0.02}  # false alarms that are put up with at the default tolerance
LENGTHS_MS = {"all": 0.0, "over 10 us": 0.010, "over 50 us": 0.050}
POWER = 0.8


@dataclass(frozen=True)
class Rate:
    found: int
    total: int

    @property
    def share(self) -> float:
        return self.found / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        return decide.rate_interval(self.found, self.total) if self.total else (0.0, 1.0)

    def __str__(self) -> str:
        if not self.total:
            return "none"
        low, high = self.interval
        return f"{self.share:.1%} ({self.found} of {self.total}; 95 %: {low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Sensitivity:
    """What the gate could see of one case: its time, its A/A ratio, the smallest slowdown found 4 times in 5."""

    case: Case
    ms: float
    ratio: float
    scatter: float  # standard deviation of the log ratio between processes
    detectable: float  # 0.02 = 2 %, at tolerance 0
    processes: int  # a side


@dataclass(frozen=True)
class SelfTest:
    device: str
    kind: str  # "cpu" or "cuda"
    suite: str
    manifest: dict[str, Any]  # of its first run
    processes: int  # a side
    most_processes: int  # of cases that were unclear after so many
    experiments: int
    false_alarms: dict[float, Rate]  # by tolerance, A against A
    unclear: dict[float, Rate]
    detection: dict[tuple[float, float, str], Rate]  # by planted share, tolerance, and length of the case
    planted: dict[float, float]  # planted share -> its ratio to side b, timed in the same processes (geometric mean)
    cases: tuple[Sensitivity, ...]
    timers: dict[str, Any]
    agreement: tuple[dict[str, Any], ...]

    @property
    def passed(self) -> bool:
        """False alarms at the default tolerance are within the bar."""
        return self.false_alarms[DEFAULT_TOLERANCE].share <= BARS[self.kind]


def analyse(folder: Path) -> SelfTest:
    """Rates over all experiments of a self-test. Raises UserError where the folder holds none."""
    recorded = selfruns.load(folder)
    alarms, unclear = ({t: [0, 0] for t in TOLERANCES} for _ in range(2))
    finds: dict[tuple[float, float, str], list[int]] = {}
    ratios: dict[float, list[float]] = {}
    cases: list[Sensitivity] = []
    for number, sides in enumerate(recorded.experiments, 1):
        for tolerance in TOLERANCES:
            found = _compared(number, sides, "b", tolerance)
            counts = found.overall.verdicts
            for tally, count in ((alarms, counts["slower"] + counts["faster"]), (unclear, counts["unclear"])):
                tally[tolerance][0] += count
                tally[tolerance][1] += found.overall.cases
            if tolerance == 0.0:
                cases += _sensitivity(sides, found)
        planted = {parse_share(name.removeprefix(PLANTED)): name for name in sides if name.startswith(PLANTED)}
        for share, name in sorted(planted.items()):
            for tolerance in TOLERANCES:
                for pair in _compared(number, sides, name, tolerance).pairs:
                    for length, least in LENGTHS_MS.items():
                        if pair.base_ms > least:
                            tally_of = finds.setdefault((share, tolerance, length), [0, 0])
                            tally_of[0] += pair.verdict == "slower"
                            tally_of[1] += 1
            ratios.setdefault(share, []).append(_compared(number, sides, name, 0.0, base="b").overall.ratio)
    manifest = recorded.manifest
    return SelfTest(
        str(part(manifest, "device").get("name", "unknown device")), str(part(manifest, "device").get("type", "cpu")),
        str(part(manifest, "suite").get("name", "")), manifest,
        min(c.processes for c in cases) if cases else 1, max(c.processes for c in cases) if cases else 1,
        len(recorded.experiments),
        {t: Rate(*counts) for t, counts in alarms.items()}, {t: Rate(*counts) for t, counts in unclear.items()},
        {key: Rate(*counts) for key, counts in finds.items()},
        {share: float(np.exp(np.mean(np.log(found)))) for share, found in ratios.items()}, tuple(cases),
        recorded.instrument.get("timers", {}), tuple(recorded.instrument.get("agreement", ())),
    )  # fmt: skip


def undecided(experiment: Path) -> list[Case]:
    """The cases of an experiment that the gate would measure again: unclear at its tolerance, on b or on a planted side, or
    different on b. (It would measure those that are slower on a planted side again as well; these count as they are.)"""
    sides = selfruns.sides_of(experiment)
    again: dict[Case, None] = {}
    for name in sides:
        if name != "a":
            doubtful = ("unclear", "slower", "faster") if name == "b" else ("unclear",)
            found = _compared(int(experiment.name), sides, name, DEFAULT_TOLERANCE)
            again |= dict.fromkeys(pair.case for pair in found.pairs if pair.verdict in doubtful)
    return list(again)


def name_of(share: float) -> str:
    """Folder of a planted share: planted-2%."""
    return f"{PLANTED}{100 * share:g}%"


def _compared(number: int, sides: Sides, side: str, tolerance: float, base: str = "a") -> Compared:
    try:
        return compare_runs(sides[base], sides[side], tolerance=tolerance, paired=True)
    except KeyError:
        raise UserError(f"experiment {number}: it has no side {base if base not in sides else side}") from None
    except NothingMeasured as e:
        raise NothingMeasured(f"experiment {number}: {e}") from None


def _sensitivity(sides: Sides, found: Compared) -> list[Sensitivity]:
    """Of cases that two processes a side timed; with one nothing is known of the scatter."""
    tables = [[{r.case: r for r in run.records if r.timing} for run in sides[name]] for name in ("a", "b")]
    seen = []
    for pair in found.pairs:
        both = [(a[pair.case], b[pair.case]) for a, b in zip(*tables, strict=True) if pair.case in a and pair.case in b]
        if len(both) > 1:
            base = np.array([[a.timing.median_ms for a, _ in both if a.timing]])
            new = np.array([[beside(a, b) for a, b in both]])
            least = float(decide.detectable(base, new, 0.0, paired=True, power=POWER)[0])
            scatter = float(np.log(new / base).std(ddof=1))
            seen.append(Sensitivity(pair.case, pair.base_ms, pair.ratio, scatter, float(np.expm1(least)), len(both)))
    return seen


def shares(text: str) -> Sequence[float]:
    """Shares above 0 of "1%,2%,5%", in order. Raises UserError."""
    try:
        found = sorted({parse_share(item) for item in text.split(",")})
    except ValueError as e:
        raise UserError(f"--plant {text!r}: {e}; several are parted by commas, such as 1%,2%,5%") from None
    if not found[0]:
        raise UserError(f"--plant {text!r}: a slowdown of nothing cannot be found; give shares above 0%")
    return found
