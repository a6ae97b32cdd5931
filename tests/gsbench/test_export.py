"""Runs in the formats of other tools, and back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pytest_benchmark.stats import Stats

import gsbench
from gsbench.errors import NothingMeasured, UserError
from gsbench.export import FORMATS, export
from gsbench.export.pytest_benchmark import read, stats
from gsbench.frame import COLUMNS
from gsbench.store import RunWriter, read_run, read_samples
from tests.gsbench import synthetic as s

RECORDS = [s.timed("a/b", 2.0), s.timed("a/b", 3.0, pass_="backward", sm_mhz=1980.0), s.failed("a/c", "oom", 'too, "large"')]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    s.write(tmp_path / "made_up", [])
    manifest = json.loads((tmp_path / "made_up" / "manifest.json").read_text())
    with RunWriter.create(tmp_path / "run", manifest | {"run": "run"}) as writer:
        for record in RECORDS:
            ms = record.timing.median_ms if record.timing else 0.0
            writer.add(record, [(0, ms * x) for x in (0.99, 1.0, 1.01)] if ms else [])
    return tmp_path / "run"


def test_csv_and_parquet_have_the_columns_of_load(run: Path, tmp_path: Path) -> None:
    export(read_run(run), "csv", tmp_path / "run.csv")
    with open(tmp_path / "run.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == [column.name for column in COLUMNS]
    assert [line["reason"] for line in lines] == ["", "", 'too, "large"']
    export(read_run(run), "parquet", tmp_path / "run.parquet")
    found = pd.read_parquet(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(found, gsbench.load(run), check_dtype=False)  # text is read back as strings
    assert found.samples.dtype == "Int64"


def test_github_action_benchmark(run: Path, tmp_path: Path) -> None:
    export(read_run(run), "github-action-benchmark", tmp_path / "run.json")
    entries = json.loads((tmp_path / "run.json").read_text())
    assert [(e["name"].split()[1], e["unit"], e["value"], e["range"]) for e in entries] == [
        ("forward", "ms", 2.0, "± 0.004"), ("backward", "ms", 3.0, "± 0.006"),
    ]  # fmt: skip


def test_pytest_benchmark_and_back(run: Path, tmp_path: Path) -> None:
    export(read_run(run), "pytest-benchmark", tmp_path / "0001_run.json")
    assert read(tmp_path / "0001_run.json", tmp_path / "back") == (2, 0)
    before, after = read_run(run), read_run(tmp_path / "back")
    assert after.records == [record for record in before.records if record.timing]
    assert after.manifest["environment"] == before.manifest["environment"]
    assert after.manifest["imported_from"] == "0001_run.json"
    assert read_samples(after.path).ms.tolist() == pytest.approx(read_samples(before.path).ms.tolist())
    with pytest.raises(UserError, match="exists already"):
        read(tmp_path / "0001_run.json", tmp_path / "back")


def test_its_own_tool_reads_our_file(run: Path, tmp_path: Path) -> None:
    export(read_run(run), "pytest-benchmark", tmp_path / "0001_run.json")
    file = str(tmp_path / "0001_run.json")
    command = [sys.executable, "-m", "pytest_benchmark", "compare", file, "--columns=min,median,iqr"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a/b[forward" in done.stdout
    assert "a/b[backward" in done.stdout


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 51, 100, 102])
def test_the_statistics_are_its_own(count: int) -> None:
    data = np.random.default_rng(count).lognormal(0, 1, count).tolist()
    theirs = Stats()
    theirs.data = list(data)
    ours = stats(data)
    for name, value in theirs.as_dict().items():
        if name != "hd15iqr":  # older versions name the next larger sample
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(value)), name
    assert ours["q3"] <= ours["hd15iqr"] <= ours["max"] or count < 3


def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    empty = read_run(s.write(tmp_path / "empty", [s.failed("a/b", "oom", "")]))
    for to in ("pytest-benchmark", "github-action-benchmark"):
        with pytest.raises(NothingMeasured, match="no case of it was timed"):
            export(empty, to, tmp_path / "x.json")
    without = read_run(s.write(tmp_path / "without", [s.timed("a/b", 1.0)]))
    with pytest.raises(NothingMeasured, match="no raw samples of 1 cases"):
        export(without, "pytest-benchmark", tmp_path / "x.json")
    with pytest.raises(UserError, match="--to xml: not one of pytest-benchmark, csv, parquet"):
        export(without, "xml", tmp_path / "x.json")
    with pytest.raises(UserError, match=r"csv writes \.csv files"):
        export(without, "csv", tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        export(without, "csv", tmp_path / "nowhere" / "x.csv")
    assert set(FORMATS) == {"pytest-benchmark", "csv", "parquet", "github-action-benchmark"}
