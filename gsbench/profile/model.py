"""What a profile holds. Every part may be missing; `Profile.missing` then says why, in a line.

Schema history (in every file):
  1  first version
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

SCHEMA = 1
PARTS = ("breakdown", "counters", "bytes", "timeline", "static")
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class KernelTime:
    """A kernel, or on the CPU an operator, of one call: launches a call, and the time of all of them together."""

    name: str
    launches: float
    total_us: float
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    registers: int | None = None
    shared_bytes: int | None = None


@dataclass(frozen=True, config=_STRICT)
class Breakdown:
    """torch.profiler's view of calls made back to back with warm caches; medians over the calls, microseconds.

    span_us: from the start of a call's first kernel to the end of its last. busy_us: kernels within it. gap_us: the rest.
    host_us: what the host takes to issue a call. between_us: idle between a call's last kernel and the next one's first.
    On the CPU span_us is the call, kernels are operators by their own time, and gap_us what no operator accounts for.
    """

    device: str  # "cpu" or "cuda"
    calls: int
    span_us: float
    busy_us: float
    gap_us: float
    host_us: float
    between_us: float
    kernels: tuple[KernelTime, ...]


@dataclass(frozen=True, config=_STRICT)
class Stall:
    """Cycles that a warp waits for this reason, for each instruction it issues."""

    reason: str
    cycles: float


@dataclass(frozen=True, config=_STRICT)
class KernelCounters:
    """Hardware counters of one launch, caches flushed before it. Bytes, microseconds, percent of the peak while it ran."""

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    duration_us: float | None = None
    dram_read: float | None = None
    dram_write: float | None = None
    l2_read: float | None = None
    l2_write: float | None = None
    l2_reduced: float | None = None  # atomics and reductions
    dram_pct: float | None = None
    l2_pct: float | None = None
    l1_pct: float | None = None  # L1 and shared memory
    tensor_pct: float | None = None
    issue_pct: float | None = None  # cycles in which a scheduler issues
    sm_pct: float | None = None
    l2_hit_pct: float | None = None
    occupancy_pct: float | None = None  # achieved
    occupancy_limit_pct: float | None = None  # what registers, shared memory and block size allow
    registers: int | None = None
    shared_bytes: int | None = None
    waves: float | None = None
    shared_wavefronts: float | None = None
    bank_conflicts: float | None = None  # wavefronts beyond one a request
    stalls: tuple[Stall, ...] = ()
    bound: str = ""  # memory, tensor, issue or latency
    words: str = ""  # the verdict, and what to look at next


@dataclass(frozen=True, config=_STRICT)
class Bytes:
    """DRAM bytes of one whole call, cold before it and written back after it, beside the modelled ones."""

    dram_read: float
    dram_write: float
    modelled_read: float
    modelled_write: float
    passes: int  # more than one: ncu repeated the kernels, and the caches between are its own

    @property
    def ratio(self) -> float:
        """Measured over modelled."""
        return (self.dram_read + self.dram_write) / (self.modelled_read + self.modelled_write)


@dataclass(frozen=True, config=_STRICT)
class TimelineReading:
    at_s: float
    sm_mhz: int
    memory_mhz: int
    power_w: float
    temperature_c: int
    used_bytes: int
    reasons: tuple[str, ...] = ()  # clock-event reasons


@dataclass(frozen=True, config=_STRICT)
class Timeline:
    """NVML while the call ran back to back from `busy_from_s` to `busy_to_s`, idle before and after."""

    busy_from_s: float
    busy_to_s: float
    readings: tuple[TimelineReading, ...]

    def reason_spans(self) -> list[tuple[str, float, float]]:
        """(reason, from, to) of every stretch in which a clock-event reason stood."""
        spans: list[tuple[str, float, float]] = []
        for name in dict.fromkeys(name for r in self.readings for name in r.reasons):
            start: float | None = None
            for r in self.readings:
                if name in r.reasons:
                    start = r.at_s if start is None else start
                elif start is not None:
                    spans.append((name, start, r.at_s))
                    start = None
            if start is not None:
                spans.append((name, start, self.readings[-1].at_s))
        return spans


@dataclass(frozen=True, config=_STRICT)
class StaticKernel:
    """What the compiler says of a kernel that the case launches, and the occupancy that follows; no GPU needed."""

    name: str
    arch: str
    launches: int
    grid: tuple[int, ...]
    threads: int
    registers: int
    spills: int | None  # bytes a thread; None where the compiler gives the stack only
    stack: int
    shared_bytes: int  # a block, fixed and dynamic
    blocks_per_sm: int
    occupancy_pct: float
    limited_by: str  # registers, shared memory, warps or blocks
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Profile:
    """One case. `verdict`: sentences, the most important first. Times in milliseconds come from the run's record."""

    key: str
    case: dict[str, Any]
    written_utc: str
    device: str
    environment: dict[str, Any]
    command: tuple[str, ...]
    modelled_read: int
    modelled_write: int
    useful_flops: int
    median_ms: float | None = None
    floor_ms: float | None = None
    roof_share: float | None = None
    breakdown: Breakdown | None = None
    counters: tuple[KernelCounters, ...] = ()
    bytes: Bytes | None = None
    timeline: Timeline | None = None
    static: tuple[StaticKernel, ...] = ()
    verdict: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)  # part -> why
    trace_file: str = ""
    figure_file: str = ""
    schema: int = SCHEMA

    @property
    def title(self) -> str:
        c = self.case
        shape = f"B={c['batch']} D={c['dim']} L={c['labels']:,} K={c['fan_in']} G={c['group_size']}"
        return f"{c['implementation']} {c['pass']} {shape} {c['pattern']} {c['dtype']}"
