"""pytest-benchmark's JSON, both ways: its tools read our runs, and its files become runs again.

A benchmark is a timed case, in seconds. The record travels whole in `extra_info["gsbench"]`: that is what makes the way
back possible, for files that this module or the `gpu_benchmark` fixture wrote. A benchmark without it names no case (no
implementation, shape or verified outputs) and is left out.
"""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import latest, part
from gsbench.record import SCHEMA, Record
from gsbench.store import RunData, RunWriter, read_samples

KEY = "gsbench"
_FORMAT = "5.0.0"  # of pytest-benchmark, whose fields these are


def write(run: RunData, file: Path) -> None:
    """Raises NothingMeasured for a run without timed cases or without its raw samples."""
    timed = [record for record in latest(run.records) if record.timing is not None]
    if not timed:
        raise NothingMeasured(f"{run.path}: no case of it was timed, so there is nothing to export")
    samples = {key: group.ms.tolist() for key, group in read_samples(run.path).groupby("key")}
    lost = [record for record in timed if record.key not in samples]
    if lost:
        first = f"no raw samples of {len(lost)} cases, the first {lost[0].case}"
        raise NothingMeasured(f"{run.path}: {first}; mean and spread need them")
    environment = part(run.manifest, "environment")
    document = {
        "machine_info": {**part(run.manifest, "device"), **environment, "node": part(run.manifest, "device").get("name")},
        "commit_info": {"id": environment.get("git_commit"), "dirty": environment.get("git_dirty")},
        "benchmarks": [_benchmark(record, samples[record.key]) for record in timed],
        "datetime": run.manifest.get("created_utc", ""),
        "version": _FORMAT,
        KEY: {"manifest": run.manifest},
    }
    file.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(file: Path, out: Path) -> tuple[int, int]:
    """A run folder at `out` of the cases in the file; returns (cases, benchmarks that name no case).

    Raises UserError for a file that is none of pytest-benchmark's, NothingMeasured if no benchmark names a case.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        benchmarks = [dict(b) for b in document["benchmarks"]]
        machine, commit = document["machine_info"], document["commit_info"]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: not a file of pytest-benchmark: {type(e).__name__}: {e}") from None
    found: dict[str, tuple[Record, list[float]]] = {}
    for number, benchmark in enumerate(benchmarks, 1):
        info = benchmark.get("extra_info")
        if not isinstance(info, dict) or KEY not in info:
            continue
        try:
            record = Record.from_dict(info[KEY])
            samples = [1e3 * float(s) for s in benchmark["stats"].get("data", ())]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{file}: benchmark {number}: not a record: {type(e).__name__}: {e}") from None
        if record.key in found:
            raise UserError(f"{file}: benchmark {number}: {record.case} is there twice")
        found[record.key] = record, samples
    if not found:
        raise NothingMeasured(
            f"{file}: none of its {len(benchmarks)} benchmarks names a case (extra_info.{KEY}); gsbench export writes such "
            "files, and tests that call gpu_benchmark.case"
        )
    manifest = part(part(document, KEY), "manifest") or _manifest(machine, commit, document.get("datetime", ""))
    with RunWriter.create(out, {**manifest, "schema": SCHEMA, "run": out.name, "imported_from": file.name}) as writer:
        for record, samples in found.values():
            writer.add(record, [(0, ms) for ms in samples])
    return len(found), len(benchmarks) - len(found)


def _manifest(machine: dict[str, Any], commit: dict[str, Any], when: str) -> dict[str, Any]:
    """Of a file that pytest-benchmark wrote itself: what the fixture put beside its machine and commit."""
    environment = {"git_commit": commit.get("id"), "git_dirty": commit.get("dirty"), **part(machine, "gsbench_environment")}
    return {"suite": {"name": "pytest"}, "created_utc": when, "device": part(machine, "gsbench_device"),
            "environment": environment, "ceilings": {}, "validity": []}  # fmt: skip


def _benchmark(record: Record, ms: list[float]) -> dict[str, Any]:
    case = record.case
    name = f"{case.implementation}[{case.pass_} {case.point} {case.mode}]"
    return {
        "group": f"{case.pass_} {case.point} {case.mode}", "name": name, "fullname": f"gsbench::{name}",
        "params": case.to_dict(), "param": str(case), "extra_info": {KEY: record.to_dict()},
        "options": {"timer": record.timing.method if record.timing else ""}, "stats": stats([x * 1e-3 for x in ms]),
    }  # fmt: skip


def stats(seconds: list[float]) -> dict[str, Any]:
    """The fields of pytest-benchmark's `Stats`, by its definitions, of at least one sample; `data` holds the samples."""
    ordered, count, total = sorted(seconds), len(seconds), sum(seconds)
    mean = statistics.mean(seconds)
    deviation = statistics.stdev(seconds) if count > 1 else 0
    q1, q3 = _quartiles(ordered)
    iqr = q3 - q1
    low, high = bisect_left(ordered, q1 - 1.5 * iqr), bisect_right(ordered, q3 + 1.5 * iqr)
    far = sum(not mean - deviation <= s <= mean + deviation for s in seconds)
    outliers = low + count - high
    return {
        "min": ordered[0], "max": ordered[-1], "mean": mean, "stddev": deviation, "rounds": count,
        "median": statistics.median(seconds), "iqr": iqr, "q1": q1, "q3": q3, "iqr_outliers": outliers,
        "stddev_outliers": far, "outliers": f"{far};{outliers}", "ld15iqr": ordered[low], "hd15iqr": ordered[high - 1],
        "ops": count / total if total else 0, "total": total, "data": seconds, "iterations": 1,
    }  # fmt: skip


def _quartiles(x: list[float]) -> tuple[float, float]:
    count, n = len(x), len(x) // 4
    if count == 1:
        return x[0], x[0]
    if count % 2 == 0:
        return statistics.median(x[: count // 2]), statistics.median(x[count // 2 :])
    if count % 4 == 1:
        return 0.25 * x[n - 1] + 0.75 * x[n], 0.75 * x[3 * n] + 0.25 * x[3 * n + 1]
    return 0.75 * x[n] + 0.25 * x[n + 1], 0.25 * x[3 * n + 1] + 0.75 * x[3 * n + 2]
