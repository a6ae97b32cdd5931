"""The runs of a self-test in one file, `runs.json`, from which its analysis follows: small enough to be committed.

    {"schema": 2, "manifest": {...}, "method": "cuda_events", "instrument": {...}, "cases": [{...}, ...],
     "experiments": [{"a": [[[median_ms, ci_low_ms, ...], ...], ...], "b": ..., "planted-2%": ...}, ...]}

A side of an experiment is a list of processes, a process a list of the cases' timings (the numbers of `record.Timing` and
the medians of the rounds, to six digits) or of their statuses where they were not timed. Imports no torch.

Schema history: 2 the medians of the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from gsbench.case import Case
from gsbench.errors import UserError
from gsbench.frame import read_runs
from gsbench.record import Record, Timing
from gsbench.store import RunData, check_schema, find_runs

FILE, INSTRUMENT = "runs.json", "instrument.json"
SCHEMA = 2
_KEPT = ("device", "environment", "suite", "command", "created_utc", "code_fingerprint")  # of the manifest
_NUMBERS = tuple(field.name for field in fields(Timing) if field.name != "method")
_WORDS = ("bimodal", "capped")
Sides = dict[str, list[RunData]]


@dataclass(frozen=True)
class SelfRuns:
    """What a self-test measured: the manifest that its runs share, and of each experiment the runs of each side."""

    manifest: dict[str, Any]
    instrument: dict[str, Any]
    experiments: list[Sides]


def load(folder: Path) -> SelfRuns:
    """Of a self-test's folder: its runs.json, or else the runs themselves. Raises UserError or NothingMeasured."""
    file = folder / FILE
    return _unpacked(_parsed(file), file) if file.exists() else _unpacked(packed(folder), file)


def packed(folder: Path) -> dict[str, Any]:
    """What runs.json holds, from the runs. Raises UserError where the folder holds no self-test."""
    experiments = [path for path in sorted(folder.iterdir()) if (path / "a").is_dir()] if folder.is_dir() else []
    if not experiments:
        raise UserError(f"{folder}: no self-test here (a {FILE}, or folders 01/a, 01/b ... as gsbench selftest writes them)")
    found = [sides_of(path) for path in experiments]
    runs = [run for sides in found for side in sides.values() for run in side]
    cases = list(dict.fromkeys(record.case for run in runs for record in run.records if record.status != "unsupported"))
    methods = sorted({record.timing.method for run in runs for record in run.records if record.timing})
    if len(methods) > 1:
        raise UserError(f"{folder}: its cases were timed by several methods ({', '.join(methods)}); one self-test has one")
    manifest = {key: runs[0].manifest[key] for key in _KEPT if key in runs[0].manifest}
    return {
        "schema": SCHEMA, "manifest": manifest, "method": methods[0] if methods else "", "instrument": _instrument(folder),
        "cases": [case.to_dict() for case in cases],
        "experiments": [{name: [_row(run, cases) for run in side] for name, side in sides.items()} for sides in found],
    }  # fmt: skip


def sides_of(experiment: Path) -> Sides:
    """The runs of each side of one experiment."""
    return {side.name: read_runs(find_runs(side)) for side in sorted(experiment.iterdir()) if side.is_dir()}


def write(folder: Path) -> Path:
    """Keep the self-test's runs as one file beside them."""
    data = packed(folder)
    experiments = data.pop("experiments")
    head = json.dumps(data, sort_keys=True)[:-1]
    rows = [
        "{" + ",\n".join(f"{json.dumps(name)}: [{','.join(json.dumps(row, separators=(',', ':')) for row in side)}]"
                         for name, side in sides.items()) + "}"
        for sides in experiments
    ]  # fmt: skip
    (folder / FILE).write_text(f'{head}, "experiments": [\n' + ",\n".join(rows) + "]}\n", encoding="utf-8")
    return folder / FILE


def _row(run: RunData, cases: Sequence[Case]) -> list[Any]:
    records = {record.case: record for record in run.records}
    return [_short(records[case]) if case in records else "missing" for case in cases]


def _short(record: Record) -> Any:
    if record.timing is None:
        return record.status
    values = (getattr(record.timing, name) for name in _NUMBERS)
    numbers = [int(value) if isinstance(value, (bool, int)) else float(f"{value:.6g}") for value in values]
    return [*numbers, list(record.rounds_ms)]


def _parsed(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{file}: not valid JSON: {e}") from None
    return check_schema(data, file, SCHEMA, f"{FILE} of gsbench selftest")


def _unpacked(data: dict[str, Any], file: Path) -> SelfRuns:
    try:
        cases = [Case.from_dict(case) for case in data["cases"]]
        experiments = [
            {
                name: [
                    RunData(file.parent / name / f"{i:02}", data["manifest"] | {"run": f"{name}-{i:02}"},
                            _records(cases, row, data["method"]))
                    for i, row in enumerate(side, 1)
                ]
                for name, side in sides.items()
            }
            for sides in data["experiments"]
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{file}: not as gsbench selftest wrote it: {type(e).__name__}: {e}") from None
    return SelfRuns(data["manifest"], data["instrument"], experiments)


def _records(cases: Sequence[Case], row: Sequence[Any], method: str) -> list[Record]:
    return [_record(case, what, method) for case, what in zip(cases, row, strict=True) if what != "missing"]


def _record(case: Case, what: Any, method: str) -> Record:
    if isinstance(what, str):
        return Record(case, what)
    named = dict(zip(_NUMBERS, what, strict=False))
    timing = Timing(method, **named | {name: bool(named[name]) for name in _WORDS})
    rounds = tuple(what[len(_NUMBERS)]) if len(what) > len(_NUMBERS) else ()
    return Record(case, "ok", verified=True, timing=timing, rounds_ms=rounds)


def _instrument(folder: Path) -> dict[str, Any]:
    file = folder / INSTRUMENT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise UserError(f"{file}: not valid JSON: {e}") from None
    return found if isinstance(found, dict) else {}
