"""The one file that a self-test's runs are kept in: the same analysis follows from it, and damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gsbench import selfruns
from gsbench.errors import NothingMeasured, UserError
from gsbench.report import selftests
from gsbench.selftest import analyse, undecided
from tests.gsbench import synthetic as s

POINTS = [s.point(batch=i) for i in range(1, 5)]


def folder_of(tmp_path: Path, shift: float = 0.0, more: tuple[int, ...] = ()) -> Path:
    """One experiment of four cases, five processes a side; `more`: cases that three further processes measured."""
    random = np.random.default_rng(7)
    for process in range(8):
        for name, by in (("a", 0.0), ("b", shift), ("planted-5%", shift + np.log(1.05))):
            chosen = [i for i in range(4) if process < 5 or i in more]
            if chosen:
                times = np.exp(random.normal(by, 0.002, 4))
                rounds = [tuple(float(f"{times[i] * k:.6g}") for k in (1.0, 1.01, 0.99, 1.02, 0.98)) for i in range(4)]
                records = [s.timed("a/b", float(times[i]), POINTS[i], rounds_ms=rounds[i]) for i in chosen]
                s.write(tmp_path / "st" / "01" / name / f"{process:02}", [*records, s.failed("a/c", "oom", "too large")])
    (tmp_path / "st" / "instrument.json").write_text(json.dumps({"timers": {}, "agreement": []}))
    return tmp_path / "st"


def test_the_analysis_of_the_file_is_that_of_the_runs(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, more=(0, 2))
    of_runs = selftests.to_json(analyse(folder))
    file = selfruns.write(folder)
    shutil.rmtree(folder / "01")
    assert selftests.to_json(analyse(folder)) == of_runs
    again = selfruns.load(folder).experiments[0]["b"]
    assert [len([r for r in run.records if r.timing]) for run in again] == [4] * 5 + [2] * 3
    assert {r.status for run in again for r in run.records} == {"ok", "oom"}
    assert file.stat().st_size < 12_000


def test_cases_that_were_measured_again_have_more_processes(tmp_path: Path) -> None:
    found = analyse(folder_of(tmp_path, more=(0, 2)))
    assert (found.processes, found.most_processes) == (5, 8)
    assert {c.case.point.shape.batch: c.processes for c in found.cases} == {1: 8, 2: 5, 3: 8, 4: 5}
    assert "5 to 8 processes a side" in selftests.sentence(found)


def test_what_the_gate_would_measure_again(tmp_path: Path) -> None:
    """Scatter 0.2 %: 5 % more is slower than the tolerance of 3 % at once; a side b that differs is looked at again."""
    assert undecided(folder_of(tmp_path / "same") / "01") == []
    again = undecided(folder_of(tmp_path / "apart", shift=0.05) / "01")
    assert sorted(case.point.shape.batch for case in again) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", UserError, "not valid JSON"),
        ("[]", UserError, "no schema version; this is not a runs.json of gsbench selftest"),
        ('{"schema": 99}', NothingMeasured, "schema 99 is newer than this gsbench reads"),
        ('{"schema": 1, "cases": [1]}', UserError, "not as gsbench selftest wrote it"),
    ],
)
def test_a_damaged_file(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(error, match=words):
        analyse(tmp_path)


def test_timings_of_several_methods_are_no_self_test(tmp_path: Path) -> None:
    for side, method in (("a", "cuda_events"), ("b", "cuda_graph")):
        s.write(tmp_path / "01" / side / "01", [s.timed("a/b", 1.0, method=method)])
    with pytest.raises(UserError, match="several methods \\(cuda_events, cuda_graph\\)"):
        analyse(tmp_path)


def test_a_side_that_is_missing(tmp_path: Path) -> None:
    s.write(tmp_path / "01" / "a" / "01", [s.timed("a/b", 1.0)])
    with pytest.raises(UserError, match="experiment 1: it has no side b"):
        analyse(tmp_path)
