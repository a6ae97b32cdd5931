"""The records as the page carries them: one table by columns, and the raw samples in one byte each.

Text columns are {"of": the different texts, "at": an index a row}, others plain lists with null where nothing is recorded.
`samples` is {"of": [low, high, how many were taken] a row or null, "bytes": one base64 text a row}: a byte is the place of a
sample between low and high, in the order they were taken.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from gsbench.case import AXES
from gsbench.errors import UserError
from gsbench.record import Record
from gsbench.report.tables import marks
from gsbench.report.views import rounded
from gsbench.store import RunData, read_samples

MOST_CASES = 6000  # in the page; the rest is in `gsbench report --csv`
SAMPLE_BYTES = 1 << 20  # for the raw samples of all cases together
FEWEST_SAMPLES = 24  # a case
Column = Callable[[Record], Any]


@dataclass(frozen=True)
class Entry:
    """A case of the report. `number` is what the views call it."""

    number: int
    run: str
    record: Record


def _timed(name: str) -> Column:
    return lambda r: None if r.timing is None else getattr(r.timing, name)


def _shape(axis: str) -> Column:
    return lambda r: getattr(r.case.point.shape, axis)


TEXTS: dict[str, Column] = {
    "implementation": lambda r: r.case.implementation, "pass": lambda r: r.case.pass_,
    "pattern": lambda r: r.case.point.pattern, "dtype": lambda r: r.case.point.dtype,
    "mode": lambda r: r.case.mode, "device": lambda r: r.case.device,
    "status": lambda r: r.status, "reason": lambda r: r.reason, "flags": lambda r: "; ".join(marks(r)),
    "config": lambda r: json.dumps(r.config, sort_keys=True) if r.config else "",
    "method": lambda r: r.timing.method if r.timing else "", "block": lambda r: r.block,
    "finished": lambda r: r.finished_utc,
}  # fmt: skip
NUMBERS: dict[str, Column] = {
    **{axis: _shape(axis) for axis in AXES}, "world_size": lambda r: r.case.world_size,
    **{name: _timed(name) for name in ("median_ms", "ci_low_ms", "ci_high_ms", "p5_ms", "p95_ms", "min_ms", "samples")},
    **{
        name: (lambda r, name=name: getattr(r, name))  # type: ignore[misc]
        for name in (
            "floor_ms", "roof_share", "useful_flops", "min_bytes", "layer_bytes", "peak_extra_bytes", "modelled_extra_bytes",
            "nvml_used_bytes", "energy_mj", "sm_mhz",
        )
    },
}  # fmt: skip


def chosen(entries: Sequence[Entry], drawn: set[int]) -> list[Entry]:
    """The cases that the page carries, in their order: where there are too many, those that are drawn first."""
    if len(entries) <= MOST_CASES:
        return list(entries)
    ordered = sorted(entries, key=lambda e: e.number not in drawn)
    return sorted(ordered[:MOST_CASES], key=lambda e: e.number)


def table(entries: Sequence[Entry]) -> dict[str, Any]:
    columns: dict[str, Any] = {"id": [e.number for e in entries], "run": _coded(e.run for e in entries)}
    for name, column in TEXTS.items():
        columns[name] = _coded(column(e.record) for e in entries)
    for name, column in NUMBERS.items():
        columns[name] = [_plain(column(e.record)) for e in entries]
    return columns


def _coded(texts: Iterable[str]) -> dict[str, Any]:
    index: dict[str, int] = {}
    at = [index.setdefault(text, len(index)) for text in texts]
    return {"of": list(index), "at": at}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return rounded(value) if isfinite(value) else None  # JSON has no others
    return value


@dataclass(frozen=True)
class Samples:
    """Raw samples in milliseconds by (run, key of the case), and what a reader must know of them."""

    of: dict[tuple[str, str], list[float]]
    notices: list[str]


def read(runs: Sequence[tuple[str, RunData]]) -> Samples:
    """The raw samples of the runs. Runs without a file of them, or with a broken one, leave a notice."""
    found: dict[tuple[str, str], list[float]] = {}
    notices = []
    for name, run in runs:
        timed = sum(record.timing is not None for record in run.records)
        try:
            frame = read_samples(run.path)
        except UserError as e:
            notices.append(f"{e}; its samples are not drawn.")
            continue
        if timed and frame.empty:
            notices.append(f"{run.path.name}: no raw samples beside the records (samples.parquet is missing or empty).")
        for key, values in frame.groupby("key", sort=False).ms:
            found[name, str(key)] = values.tolist()
    return Samples(found, notices)


def strips(entries: Sequence[Entry], samples: Samples) -> tuple[dict[str, Any], str]:
    """The samples of these cases for the page, and a notice if not all of them fit."""
    most = max(FEWEST_SAMPLES, SAMPLE_BYTES // max(1, len(entries)))
    ranges: list[list[float] | None] = []
    texts, thinned = [], 0
    for entry in entries:
        values = samples.of.get((entry.run, entry.record.key), [])
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        every = -(-len(values) // most) if values else 1
        thinned += every > 1
        span = (high - low) or 1.0
        places = bytes(round(255 * (value - low) / span) for value in values[::every])
        ranges.append([rounded(low), rounded(high), len(values)] if values else None)
        texts.append(base64.b64encode(places).decode())
    notice = f"Of {thinned} cases with many samples every n-th one is drawn, {most} at most." if thinned else ""
    return {"of": ranges, "bytes": texts}, notice
