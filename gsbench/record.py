"""What one measured case leaves behind. Exporters only read this.

Schema history (the version is in every manifest and every record line):
  1  first version
  2  sm_mhz
  3  a case may have a head_share (and its key then depends on it)
  4  rounds_ms
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any, TypeVar

from gsbench.case import Case

SCHEMA = 4
STATUSES = ("ok", "oom", "timeout", "crashed", "error", "unsupported", "failed_verification")


def utc_now() -> str:
    """The time as records and manifests write it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class NewerSchema(ValueError):
    """Written by a gsbench that records more than this one knows."""


@dataclass(frozen=True)
class Timing:
    """Summary of the raw samples of one case; times in milliseconds, nothing discarded.

    method: how a sample was taken ("cuda_events", "cuda_graph", "perf_counter",
    "perf_counter_kept_memory"); records of different methods
    are never compared. The confidence interval is the distribution-free order-statistic interval of the median.
    """

    method: str
    median_ms: float
    ci_low_ms: float
    ci_high_ms: float
    p5_ms: float
    p20_ms: float
    p80_ms: float
    p95_ms: float
    min_ms: float
    samples: int
    bimodal: bool
    capped: bool  # the time budget ended before the interval was narrow enough


@dataclass(frozen=True)
class Record:
    """One line of records.jsonl. A timing without `verified` cannot be constructed (ValueError)."""

    case: Case
    status: str
    reason: str = ""  # why not ok, in words
    verified: bool = False
    errors: dict[str, Any] = field(default_factory=dict)  # output -> {error, reference_error, bound}, the worst seed
    timing: Timing | None = None
    floor_ms: float | None = None
    roof_share: float | None = None  # floor_ms / median_ms
    useful_flops: int | None = None
    min_bytes: int | None = None
    layer_bytes: int | None = None  # weights and indices
    peak_extra_bytes: int | None = None  # allocator's peak above the inputs during one call, outputs included
    modelled_extra_bytes: int | None = None
    nvml_used_bytes: int | None = None
    energy_mj: float | None = None  # per call
    rounds_ms: tuple[float, ...] = ()  # median of each round of samples; between two rounds others had their turn
    sm_mhz: float | None = None  # median SM clock while it was timed
    validity: tuple[str, ...] = ()  # what keeps this record from being beyond dispute
    config: dict[str, Any] = field(default_factory=dict)  # tuned tiles, registers, spills, shared memory
    binary_hash: str = ""
    block: str = ""  # cases with one block were timed interleaved
    finished_utc: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.timing is not None and not self.verified:
            raise ValueError(f"a timing of unverified outputs: {self.case}")
        if (self.status == "ok") != (self.timing is not None):
            raise ValueError(f"status {self.status!r} with{'' if self.timing else 'out'} a timing: {self.case}")

    @property
    def key(self) -> str:
        return self.case.key

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["case"] = self.case.to_dict()
        data["key"] = self.key
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """Raises NewerSchema for one that is newer, ValueError / KeyError / TypeError for a malformed line."""
        if data.get("schema", 0) > SCHEMA:
            raise NewerSchema(f"record schema {data['schema']} is newer than this gsbench reads ({SCHEMA}); upgrade gsbench")
        values = dict(data)
        values.pop("key", None)
        values["case"] = Case.from_dict(data["case"])
        values["timing"] = None if data.get("timing") is None else _made(Timing, _TIMING, data["timing"])
        values["validity"] = tuple(data.get("validity", ()))
        values["rounds_ms"] = tuple(data.get("rounds_ms", ()))
        record = _made(cls, _RECORD, values)
        record.__post_init__()
        return record


_Made = TypeVar("_Made")
_TIMING, _RECORD = ({field.name for field in fields(one)} for one in (Timing, Record))


def _made(cls: type[_Made], names: set[str], values: dict[str, Any]) -> _Made:
    """cls(**values). Where nothing is missing or unknown, without a call for each field, which frozen classes make: a file
    may hold thousands of records."""
    if values.keys() != names:
        return cls(**values)
    made = object.__new__(cls)
    made.__dict__.update(values)
    return made
