"""Recorded runs as a pandas data frame: the public analysis API.

    import gsbench
    cases = gsbench.load("results")
    cases[cases.status == "ok"].groupby(["implementation", "pass"]).median_ms.median()

`COLUMNS` is the one place where a column is named, typed and explained. Columns are added, never renamed or
given another meaning. Nothing here imports torch, and pandas loads only when a frame is made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsbench.case import PASSES
from gsbench.record import Record
from gsbench.store import RunData, find_runs, read_run

if TYPE_CHECKING:
    import pandas as pd

# "int?" and "bool?" may be missing (pandas' nullable types); a missing float is NaN; text is never missing.
DTYPES = {"text": "object", "int": "int64", "int?": "Int64", "float": "float64", "bool": "bool", "bool?": "boolean"}


@dataclass(frozen=True)
class Column:
    name: str
    kind: str  # a key of DTYPES
    unit: str
    meaning: str
    value: Callable[[RunData, Record], Any]


def _timed(name: str) -> Callable[[RunData, Record], Any]:
    return lambda run, record: None if record.timing is None else getattr(record.timing, name)


def _of_record(name: str) -> Callable[[RunData, Record], Any]:
    return lambda run, record: getattr(record, name)


def _of_shape(name: str) -> Callable[[RunData, Record], Any]:
    return lambda run, record: getattr(record.case.point.shape, name)


def _of_case(name: str) -> Callable[[RunData, Record], Any]:
    return lambda run, record: getattr(record.case, name)


COLUMNS: tuple[Column, ...] = (
    Column("run", "text", "", "name of the run", lambda run, record: run.name),
    Column("implementation", "text", "", "family/backend", _of_case("implementation")),
    Column("family", "text", "", "the kind of layer: dense, bottleneck, fixed_fan_in, group_shared ...",
           lambda run, record: record.case.implementation.partition("/")[0]),
    Column("backend", "text", "", "how the family is computed: torch, csr, triton, cuda ...",
           lambda run, record: record.case.implementation.partition("/")[2]),
    Column("pass", "text", "", f"one of {', '.join(PASSES)}", _of_case("pass_")),
    Column("batch", "int", "rows", "B, rows of X", _of_shape("batch")),
    Column("dim", "int", "", "D, width of X", _of_shape("dim")),
    Column("labels", "int", "", "L, outputs", _of_shape("labels")),
    Column("fan_in", "int", "", "K, inputs that each label reads", _of_shape("fan_in")),
    Column("group_size", "int", "labels", "G, labels that share one index set", _of_shape("group_size")),
    Column("head_share", "float", "1", "share of the labels in a dense head; 0 where a point has none",
           _of_shape("head_share")),
    Column("pattern", "text", "", "how the indices are drawn", lambda run, record: record.case.point.pattern),
    Column("dtype", "text", "", "of inputs, weights and outputs", lambda run, record: record.case.point.dtype),
    Column("device", "text", "", "cpu or cuda", _of_case("device")),
    Column("world_size", "int", "processes", "devices that share the layer", _of_case("world_size")),
    Column("mode", "text", "", "cold, hot, graph or host; never compared with each other", _of_case("mode")),
    Column("status", "text", "", "ok, or why there is no timing", _of_record("status")),
    Column("verified", "bool", "", "outputs passed against the float64 oracle", _of_record("verified")),
    Column("median_ms", "float", "ms", "median time of one call", _timed("median_ms")),
    Column("ci_low_ms", "float", "ms", "lower end of the 95 % order-statistic interval of the median",
           _timed("ci_low_ms")),
    Column("ci_high_ms", "float", "ms", "upper end of it", _timed("ci_high_ms")),
    Column("samples", "int?", "", "samples taken, none discarded", _timed("samples")),
    Column("floor_ms", "float", "ms", "fewest bytes and FLOPs at the device's measured ceilings",
           _of_record("floor_ms")),
    Column("roof_share", "float", "1", "floor_ms / median_ms; above 1 is an error of the harness",
           _of_record("roof_share")),
    Column("useful_flops", "int?", "FLOP", "multiplications and additions that the result needs",
           _of_record("useful_flops")),
    Column("min_bytes", "int?", "byte", "each input read once, each output written once", _of_record("min_bytes")),
    Column("peak_extra_bytes", "int?", "byte", "allocator's peak above the inputs, outputs included",
           _of_record("peak_extra_bytes")),
    Column("modelled_extra_bytes", "int?", "byte", "the same by the cost model", _of_record("modelled_extra_bytes")),
    Column("layer_bytes", "int?", "byte", "weights and indices", _of_record("layer_bytes")),
    Column("energy_mj", "float", "mJ", "energy of one call", _of_record("energy_mj")),
    Column("validity", "text", "", "flags joined by '; '; empty when nothing speaks against the record",
           lambda run, record: "; ".join(record.validity)),
    Column("config", "text", "JSON", "tuned tiles, registers, spills, shared memory",
           lambda run, record: json.dumps(record.config, sort_keys=True)),
    Column("binary_hash", "text", "", "hash of the compiled kernels", _of_record("binary_hash")),
    Column("reason", "text", "", "why the status is not ok, in words", _of_record("reason")),
    Column("method", "text", "", "how a sample was timed; methods are never compared; empty if not timed",
           lambda run, record: record.timing.method if record.timing else ""),
    Column("p5_ms", "float", "ms", "5th percentile of the samples", _timed("p5_ms")),
    Column("p20_ms", "float", "ms", "20th percentile", _timed("p20_ms")),
    Column("p80_ms", "float", "ms", "80th percentile", _timed("p80_ms")),
    Column("p95_ms", "float", "ms", "95th percentile", _timed("p95_ms")),
    Column("min_ms", "float", "ms", "fastest sample", _timed("min_ms")),
    Column("bimodal", "bool?", "", "the samples have two modes", _timed("bimodal")),
    Column("capped", "bool?", "", "the time budget ended before the interval was narrow", _timed("capped")),
    Column("nvml_used_bytes", "int?", "byte", "memory used on the card, NVML's view", _of_record("nvml_used_bytes")),
    Column("block", "text", "", "cases of one block were timed interleaved", _of_record("block")),
    Column("device_name", "text", "", "model of the device", lambda run, record: device_name(run)),
    Column("suite", "text", "", "name of the suite",
           lambda run, record: str(part(run.manifest, "suite").get("name", ""))),
    Column("sm_mhz", "float", "MHz", "median SM clock while it was timed", _of_record("sm_mhz")),
    Column("key", "text", "", "content key of the case, the same in every run", _of_record("key")),
    Column("finished_utc", "text", "ISO 8601", "when the case ended", _of_record("finished_utc")),
)  # fmt: skip


def part(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """A table of the manifest, or an empty one where it is missing or not a table."""
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


def device_name(run: RunData) -> str:
    return str(part(run.manifest, "device").get("name", ""))


def latest(records: Iterable[Record]) -> list[Record]:
    """One record a case: of several with one key (a case measured again) the last one counts."""
    return list({record.key: record for record in records}.values())


def read_runs(paths: Path | str | Sequence[Path | str]) -> list[RunData]:
    """Every run at the paths: run folders, folders of runs, or a list of either. A run is read once.

    Raises UserError as `gsbench.store.read_run` and `find_runs` do.
    """
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    folders = dict.fromkeys(folder for path in several for folder in find_runs(Path(path)))
    return [read_run(folder) for folder in folders]


def rows(run: RunData) -> list[dict[str, Any]]:
    """The rows of `load` as plain values (None where missing), without pandas."""
    return [{column.name: column.value(run, record) for column in COLUMNS} for record in latest(run.records)]


def load(path: Path | str | Sequence[Path | str]) -> pd.DataFrame:
    """One row a case of the run, of all runs in a folder, or of a list of either.

    Where a run holds a case twice (it was measured again), the later record counts. A run without records
    contributes no rows; the columns and their types are the same for any input.

    Raises gsbench.errors.UserError if there is no run, or a run cannot be read.
    """
    import pandas as pd

    table = [row for run in read_runs(path) for row in rows(run)]
    frame = pd.DataFrame(table, columns=pd.Index([c.name for c in COLUMNS]), dtype="object")
    typed: pd.DataFrame = frame.astype({c.name: DTYPES[c.kind] for c in COLUMNS})
    return typed


def column_table() -> str:
    """The columns as a Markdown table, for the documentation."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{c.name}` | {c.kind} | {c.unit} | {c.meaning} |" for c in COLUMNS])


load.__doc__ = f"{load.__doc__}\n    Columns:\n\n" + "\n".join(
    f"    {c.name:<21}{c.kind:<7}{c.unit:<11}{c.meaning}" for c in COLUMNS
)
