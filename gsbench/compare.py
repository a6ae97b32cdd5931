"""Two sides of recorded runs, paired case by case and judged. Reads records only: no torch, no pandas.

A side is a run, or a folder of runs: the runs of a side that hold a case are its replicates, each one process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gsbench import decide
from gsbench.case import AXES, SHARE_AXES, Case
from gsbench.decide import Verdict
from gsbench.differences import Difference, joined, of_configuration, of_environment
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import device_name, read_runs
from gsbench.record import Record, Timing
from gsbench.store import RunData, uncollected

DEFAULT_TOLERANCE = 0.03
GROUPINGS: dict[str, Callable[[Case], str]] = {
    "implementation": lambda case: case.implementation,
    "family": lambda case: case.implementation.partition("/")[0],
    "backend": lambda case: case.implementation.partition("/")[2],
    "pass": lambda case: case.pass_,
    "mode": lambda case: case.mode,
    "dtype": lambda case: case.point.dtype,
    "pattern": lambda case: case.point.pattern,
}
for _axis in (*AXES, *SHARE_AXES):
    GROUPINGS[_axis] = lambda case, axis=_axis: str(getattr(case.point.shape, axis))  # type: ignore[misc]


@dataclass(frozen=True)
class Pair:
    """One case timed on both sides. Times in ms (geometric mean of the processes' medians); ratio = new / base."""

    case: Case
    base_ms: float
    new_ms: float
    ratio: float
    low: float  # 95 % interval of the ratio
    high: float
    tolerance: float  # beyond it is slower or faster: as asked for, or the case's own noise if more; 0.03 = 3 %
    p: float  # that the ratio is within the tolerance, adjusted over all pairs (Benjamini-Hochberg)
    verdict: Verdict
    base_processes: int
    new_processes: int
    same_binary: bool  # recorded on both sides, and one and the same
    base_mhz: float | None  # SM clock while it was timed (geometric mean of the processes); None where not recorded
    new_mhz: float | None
    config: tuple[Difference, ...]  # tuned tiles, registers, spills, shared memory, binary
    flags: tuple[str, ...]  # validity of either side's records, and why a verdict was withheld

    @property
    def provisional(self) -> bool:
        """Fewer than five processes a side: evidence, but no proof."""
        return min(self.base_processes, self.new_processes) < decide.ENOUGH_PROCESSES

    @property
    def clock_ratio(self) -> float | None:
        """SM clock of new over base; times a ratio of times it gives the ratio of clock cycles."""
        return self.new_mhz / self.base_mhz if self.base_mhz and self.new_mhz else None

    @property
    def control_failed(self) -> bool:
        """The binary is unchanged and yet the time moved: the measurement is suspect, not the code."""
        return self.same_binary and self.verdict in ("slower", "faster")


@dataclass(frozen=True)
class NotComparable:
    """A case of both sides whose timings must not be divided, and the field that forbids it."""

    case: Case
    difference: Difference
    broken: bool  # it was timed in the base, and in no new run


@dataclass(frozen=True)
class Summary:
    """Geometric mean of new / base over some pairs, with a 95 % interval, and how many of each verdict."""

    name: str
    ratio: float
    low: float
    high: float
    verdicts: dict[Verdict, int]

    @property
    def cases(self) -> int:
        return sum(self.verdicts.values())


@dataclass(frozen=True)
class Compared:
    """All there is to say about two sides. `pairs` is never empty and begins with the worst."""

    base: tuple[str, ...]  # names of the runs
    new: tuple[str, ...]
    tolerance: float
    paired: bool
    pairs: tuple[Pair, ...]
    overall: Summary
    by: str
    groups: tuple[Summary, ...]
    not_comparable: tuple[NotComparable, ...]
    missing: tuple[Case, ...]  # in the base only
    extra: tuple[Case, ...]  # in the new runs only
    untimed: tuple[Case, ...]  # on neither side timed
    environment: tuple[Difference, ...]

    @property
    def worse(self) -> bool:
        """Something is slower, or no longer works."""
        return self.overall.verdicts["slower"] > 0 or any(pair.broken for pair in self.not_comparable)


@dataclass(frozen=True)
class _Entry:
    run: int  # position among the runs of its side
    device: str
    record: Record


@dataclass(frozen=True)
class _Candidate:
    """A case of both sides: all its entries, and those that were timed."""

    case: Case
    all_base: list[_Entry]
    all_new: list[_Entry]
    base: list[_Entry]
    new: list[_Entry]

    @property
    def processes(self) -> tuple[int, int]:
        return len(self.base), len(self.new)


_Side = dict[Case, list[_Entry]]


def compare(
    base: Path | str | Sequence[Path | str], new: Path | str | Sequence[Path | str], by: str = "implementation",
    tolerance: float = DEFAULT_TOLERANCE, paired: bool = False, seed: int = 0,
) -> Compared:  # fmt: skip
    """Pair the cases of two sides and judge each pair.

    base, new: a run folder, a folder of runs, or a list of either. tolerance: 0.03 for 3 %. paired: run i of one side
    (by name) was measured next to run i of the other. Raises UserError for bad input, NothingMeasured if no case was
    timed comparably on both sides.
    """
    with uncollected():
        return compare_runs(read_runs(base), read_runs(new), by, tolerance, paired, seed)


def compare_runs(
    base: Sequence[RunData], new: Sequence[RunData], by: str = "implementation", tolerance: float = DEFAULT_TOLERANCE,
    paired: bool = False, seed: int = 0, tolerance_of: Callable[[Case], float] | None = None,
) -> Compared:  # fmt: skip
    """As `compare`, of runs that were read already. tolerance_of: a case's own tolerance, instead of `tolerance`."""
    if by not in GROUPINGS:
        raise UserError(f"--by {by}: not one of {', '.join(GROUPINGS)}")
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance {tolerance:g}: not from 0 up to 1 (0.03 is 3 %)")
    runs = list(base), list(new)
    if paired and len(runs[0]) != len(runs[1]):
        raise UserError(f"--paired: {len(runs[0])} runs in BASE, {len(runs[1])} in NEW; pairs need as many on both sides")
    before, after = _side(runs[0]), _side(runs[1])
    candidates: list[_Candidate] = []
    missing, refused, untimed = [], [], []
    for case, entries in before.items():
        others = after.pop(case, None)
        if others is None:
            missing.append(case)
            continue
        candidate = _Candidate(case, entries, others, _timed(entries), _timed(others))
        if not candidate.base and not candidate.new:
            untimed.append(case)
        elif difference := _forbidden(candidate):
            refused.append(NotComparable(case, difference, broken=not candidate.new))
        else:
            candidates.append(candidate)
    extra = list(after)
    if not candidates:
        raise NothingMeasured(_why_nothing(runs, refused, untimed, missing, extra))
    allowed = [tolerance if tolerance_of is None else tolerance_of(c.case) for c in candidates]
    pairs = sorted(_judge(candidates, np.log1p(allowed), paired, seed), key=_worst_first)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(GROUPINGS[by](pair.case), []).append(pair)
    summaries = sorted((_summary(name, group) for name, group in groups.items()), key=lambda s: -s.ratio)
    return Compared(
        tuple(run.name for run in runs[0]), tuple(run.name for run in runs[1]), tolerance, paired, tuple(pairs),
        _summary("all", pairs), by, tuple(summaries), tuple(sorted(refused, key=lambda r: not r.broken)), tuple(missing),
        tuple(extra), tuple(untimed), of_environment(*runs),
    )  # fmt: skip


# ---- pairing ----------------------------------------------------------------------------------------------------


def _side(runs: list[RunData]) -> _Side:
    """Each case's record in every run that holds it; of a case measured again in one run, the later record."""
    side: _Side = {}
    for number, run in enumerate(runs):
        device = device_name(run)
        for case, record in {record.case: record for record in run.records}.items():
            side.setdefault(case, []).append(_Entry(number, device, record))
    return side


def _timed(entries: list[_Entry]) -> list[_Entry]:
    return [entry for entry in entries if entry.record.timing is not None]


def _timing(entry: _Entry) -> Timing:
    assert entry.record.timing is not None, "only timed entries are judged"
    return entry.record.timing


def _forbidden(c: _Candidate) -> Difference | None:
    """The first field that forbids dividing: status, device, method, or a time that is no positive number."""
    timed = c.base, c.new
    if len(c.base) == len(c.new) == 1 and _dividable(c.base[0], c.new[0]):
        return None
    if not c.base or not c.new:
        return Difference("status", *(joined(e.record.status for e in side) for side in (c.all_base, c.all_new)))
    fields: tuple[tuple[str, Callable[[_Entry], str]], ...] = (
        ("device", lambda entry: entry.device or "unknown"), ("method", lambda entry: _timing(entry).method),
    )  # fmt: skip
    for name, value in fields:
        if len({value(entry) for side in timed for entry in side}) > 1:
            return Difference(name, *(joined(map(value, side)) for side in timed))
    for name in ("median_ms", "ci_low_ms", "ci_high_ms"):
        values = [[getattr(_timing(entry), name) for entry in side] for side in timed]
        if not all(math.isfinite(x) and x > 0 for side in values for x in side):
            return Difference(name, *(joined(f"{x:g}" for x in side) for side in values))
    return None


def _dividable(base: _Entry, new: _Entry) -> bool:
    """The common case, of which there may be thousands, in one look."""
    one, other = _timing(base), _timing(new)
    ordered = all(0 < t.ci_low_ms <= t.median_ms <= t.ci_high_ms < math.inf for t in (one, other))
    return ordered and one.method == other.method and base.device == new.device != ""


def _why_nothing(
    runs: tuple[list[RunData], list[RunData]], refused: list[NotComparable], untimed: list[Case],
    missing: list[Case], extra: list[Case],
) -> str:  # fmt: skip
    for name, side in zip(("BASE", "NEW"), runs, strict=True):
        if not any(run.records for run in side):
            return f"nothing to compare: no case is recorded in {name} ({', '.join(run.name for run in side)})"
    words = [f"{len(untimed)} timed on neither side"] if untimed else []
    fields = Counter((r.difference.field, r.difference.base, r.difference.new) for r in refused)
    words += [f"{count} differ in {field} ({base} against {new})" for (field, base, new), count in fields.most_common(3)]
    words += [f"{len(missing)} in BASE only"] if missing else []
    words += [f"{len(extra)} in NEW only"] if extra else []
    return f"nothing to compare: of the cases, {', '.join(words)}; measure both sides on one device with one suite"


# ---- judging ----------------------------------------------------------------------------------------------------


def _judge(candidates: list[_Candidate], allowed: decide.Floats, paired: bool, seed: int) -> list[Pair]:
    """Estimates for cases with as many processes at once; then one false-discovery control over all.

    allowed: each case's tolerance as a log.
    """
    if paired:
        candidates = [_in_step(c) for c in candidates]
    alike: dict[tuple[int, int], list[int]] = {}
    for i, c in enumerate(candidates):
        alike.setdefault(c.processes if min(c.processes) > 1 else (1, 1), []).append(i)
    centre, low, high, freedom, limit, p = (np.empty(len(candidates)) for _ in range(6))
    for count, rows in alike.items():
        some = [candidates[i] for i in rows]
        if min(count) > 1:
            base = [_medians(c.base) for c in some]
            new = [[beside(b.record, n.record) for b, n in zip(c.base, c.new, strict=True)] if paired else _medians(c.new)
                   for c in some]  # fmt: skip
            found = decide.hierarchical_bootstrap(base, new, paired=paired, seed=seed)
            own = np.zeros(len(rows)) if paired else decide.noise(base)  # pairs share what drifts: their scatter is all
        else:
            found = decide.from_intervals([_range(c.base) for c in some], [_range(c.new) for c in some])
            own = np.log1p([_spread((*c.base, *c.new)) for c in some])
        centre[rows], low[rows], high[rows], freedom[rows] = found.log_ratio, found.low, found.high, found.freedom
        limit[rows] = np.maximum(allowed[rows], own)
        p[rows] = found.beyond(limit[rows])
    adjusted = decide.false_discovery(p)
    judged = decide.verdicts(decide.Estimates(centre, low, high, freedom, 1), limit, adjusted, allowed)
    ratios = [x.tolist() for x in (np.exp(centre), np.exp(low), np.exp(high), np.expm1(limit), adjusted)]
    return [_pair(c, verdict, *row) for c, verdict, *row in zip(candidates, judged, *ratios, strict=True)]


def _pair(
    c: _Candidate, verdict: Verdict, ratio: float, low: float, high: float, tolerance: float, p: float
) -> Pair:  # fmt: skip
    if min(c.processes) == 1 and any(_timing(e).bimodal for e in (*c.base, *c.new)):
        verdict = "unclear"  # which mode a single process met is chance
    hashes = {entry.record.binary_hash for entry in (*c.base, *c.new)}
    new_ms = _centre(_medians(c.new))
    config = of_configuration([entry.record for entry in c.base], [entry.record for entry in c.new])
    flags = dict.fromkeys(_flags(c.all_base, "base") + _flags(c.all_new, "new"))
    return Pair(
        c.case, new_ms / ratio, new_ms, ratio, low, high, tolerance, p, verdict, *c.processes,
        len(hashes) == 1 and "" not in hashes, _clock(c.base), _clock(c.new), config, tuple(flags),
    )  # fmt: skip


def _in_step(c: _Candidate) -> _Candidate:
    """Only the entries whose partner was timed too; where there is none, one of each side."""
    shared = {entry.run for entry in c.base} & {entry.run for entry in c.new}
    base, new = ([e for e in side if e.run in shared] or side[:1] for side in (c.base, c.new))
    return replace(c, base=base, new=new)


def _medians(entries: list[_Entry]) -> list[float]:
    return [_timing(entry).median_ms for entry in entries]


def beside(base: Record, new: Record) -> float:
    """The new process's time as seen beside its partner: that one's median times what their turns say. Both are timed."""
    assert base.timing is not None
    assert new.timing is not None
    ratio = decide.log_ratio_of_turns(base.rounds_ms, new.rounds_ms)
    return new.timing.median_ms if ratio is None else base.timing.median_ms * math.exp(ratio)


def _centre(times: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, times)) / len(times))


def _clock(entries: list[_Entry]) -> float | None:
    clocks = [entry.record.sm_mhz for entry in entries]
    known = [clock for clock in clocks if clock]
    return _centre(known) if known and len(known) == len(clocks) else None


def _range(entries: list[_Entry]) -> tuple[float, float, float]:
    """Median, low and high end in ms; of several processes their geometric mean and the widest ends."""
    timings = [_timing(entry) for entry in entries]
    ends = min(t.ci_low_ms for t in timings), max(t.ci_high_ms for t in timings)
    return _centre(_medians(entries)), *ends


def _spread(entries: Sequence[_Entry]) -> float:
    """Noise of one process: half of the central 60 % of its samples, over the median."""
    return max((t.p80_ms - t.p20_ms) / 2 / t.median_ms for t in map(_timing, entries))


def _flags(entries: list[_Entry], side: str) -> list[str]:
    flags = [f"{side}: {flag}" for entry in entries for flag in entry.record.validity]
    flags += [f"{side}: bimodal" for entry in entries if entry.record.timing is not None and _timing(entry).bimodal]
    lost = [entry.record.status for entry in entries if entry.record.timing is None]
    return flags + ([f"{side}: {len(lost)} of {len(entries)} runs not timed ({joined(lost)})"] if lost else [])


def _worst_first(pair: Pair) -> tuple[int, float]:
    return decide.VERDICTS.index(pair.verdict), -pair.ratio


def _summary(name: str, pairs: Iterable[Pair]) -> Summary:
    chosen = list(pairs)
    logs = np.log([(pair.ratio, pair.low, pair.high) for pair in chosen])
    counts = Counter(pair.verdict for pair in chosen)
    return Summary(name, *decide.geometric_mean(*logs.T), {verdict: counts[verdict] for verdict in decide.VERDICTS})
