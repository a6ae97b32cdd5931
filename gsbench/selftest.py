"""The harness tested by itself: how often it cries wolf, and what it finds. Reads recorded runs; imports no torch.

A self-test's folder holds one or more experiments, each a suite measured by interleaved processes:

    01/a/01 ... 01/b/01 ...            two sides of the same code: whatever is found between them is a false alarm
    01/planted-2%/01 ...               side b again with every call 2 % longer: whatever is not found is a miss
    instrument.json                    what the timers cost, and whether independent ones agree
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsbench import decide
from gsbench.case import Case
from gsbench.compare import DEFAULT_TOLERANCE, Compared, compare
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import part, read_runs
from gsbench.share import parse_share
from gsbench.store import find_runs

INSTRUMENT, PLANTED = "instrument.json", "planted-"
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


@dataclass(frozen=True)
class SelfTest:
    device: str
    kind: str  # "cpu" or "cuda"
    suite: str
    processes: int
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
    experiments = [path for path in sorted(folder.iterdir()) if (path / "a").is_dir()] if folder.is_dir() else []
    if not experiments:
        raise UserError(f"{folder}: no self-test here (a folder with 01/a, 01/b ... as gsbench selftest writes it)")
    first = read_runs(find_runs(experiments[0] / "a"))
    alarms, unclear = ({t: [0, 0] for t in TOLERANCES} for _ in range(2))
    finds: dict[tuple[float, float, str], list[int]] = {}
    ratios: dict[float, list[float]] = {}
    cases: list[Sensitivity] = []
    for experiment in experiments:
        for tolerance in TOLERANCES:
            found = _compared(experiment, "b", tolerance)
            counts = found.overall.verdicts
            for tally, count in ((alarms, counts["slower"] + counts["faster"]), (unclear, counts["unclear"])):
                tally[tolerance][0] += count
                tally[tolerance][1] += found.overall.cases
            if tolerance == 0.0:
                cases += _sensitivity(experiment, found)
        planted = {parse_share(side.name.removeprefix(PLANTED)): side for side in experiment.glob(f"{PLANTED}*")}
        for share, side in sorted(planted.items()):
            for tolerance in TOLERANCES:
                found = _compared(experiment, side.name, tolerance)
                for pair in found.pairs:
                    for name, least in LENGTHS_MS.items():
                        if pair.base_ms > least:
                            tally_of = finds.setdefault((share, tolerance, name), [0, 0])
                            tally_of[0] += pair.verdict == "slower"
                            tally_of[1] += 1
            ratios.setdefault(share, []).append(_compared(experiment, side.name, 0.0, base="b").overall.ratio)
    instrument = _instrument(folder)
    manifest = first[0].manifest
    return SelfTest(
        str(part(manifest, "device").get("name", "unknown device")), str(part(manifest, "device").get("type", "cpu")),
        str(part(manifest, "suite").get("name", "")), len(first), len(experiments),
        {t: Rate(*counts) for t, counts in alarms.items()}, {t: Rate(*counts) for t, counts in unclear.items()},
        {key: Rate(*counts) for key, counts in finds.items()},
        {share: float(np.exp(np.mean(np.log(found)))) for share, found in ratios.items()}, tuple(cases),
        instrument.get("timers", {}), tuple(instrument.get("agreement", ())),
    )  # fmt: skip


def name_of(share: float) -> str:
    """Folder of a planted share: planted-2%."""
    return f"{PLANTED}{100 * share:g}%"


def _compared(experiment: Path, side: str, tolerance: float, base: str = "a") -> Compared:
    try:
        return compare(experiment / base, experiment / side, tolerance=tolerance, paired=True)
    except NothingMeasured as e:
        raise NothingMeasured(f"{experiment}: {e}") from None


def _sensitivity(experiment: Path, found: Compared) -> list[Sensitivity]:
    """Of cases that every process timed; with one process a side nothing is known of the scatter."""
    sides = [read_runs(find_runs(experiment / name)) for name in ("a", "b")]
    medians = [[{r.case: r.timing.median_ms for r in run.records if r.timing} for run in side] for side in sides]
    pairs = [p for p in found.pairs if all(p.case in table for side in medians for table in side)]
    if not pairs or min(map(len, sides)) < 2:
        return []
    base, new = ([[table[p.case] for table in side] for p in pairs] for side in medians)
    least = decide.detectable(base, new, 0.0, paired=True, power=POWER)
    scatter = np.log(np.asarray(new) / np.asarray(base)).std(axis=1, ddof=1)
    columns = zip(pairs, scatter.tolist(), np.expm1(least).tolist(), strict=True)
    return [Sensitivity(p.case, p.base_ms, p.ratio, sd, d) for p, sd, d in columns]


def _instrument(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / INSTRUMENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(f"{folder / INSTRUMENT}: not valid JSON: {e}") from None
    return found if isinstance(found, dict) else {}


def shares(text: str) -> Sequence[float]:
    """Shares above 0 of "1%,2%,5%", in order. Raises UserError."""
    try:
        found = sorted({parse_share(item) for item in text.split(",")})
    except ValueError as e:
        raise UserError(f"--plant {text!r}: {e}; several are parted by commas, such as 1%,2%,5%") from None
    if not found[0]:
        raise UserError(f"--plant {text!r}: a slowdown of nothing cannot be found; give shares above 0%")
    return found
