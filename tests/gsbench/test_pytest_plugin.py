"""The fixture gpu_benchmark inside pytest-benchmark: its statistics, storage and comparison; from there to a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsbench.compare import compare
from gsbench.errors import NothingMeasured, UserError
from gsbench.export.pytest_benchmark import read
from gsbench.store import read_run

ROOT = Path(__file__).parent.parent.parent
TESTS = '''
import pytest
import torch

def add(x, *, other):
    return x + other

@pytest.mark.benchmark(max_time=0.02)
def test_a_call(gpu_benchmark):
    x = torch.ones(1000)
    assert torch.equal(gpu_benchmark(add, x, other=1), x + 1)

@pytest.mark.benchmark(max_time=0.02)
def test_a_case(gpu_benchmark):
    gpu_benchmark.case("dense/torch", "forward", batch=4, dim=32, labels=256, fan_in=8, group_size=8)

def test_of_another_kind(benchmark):
    benchmark(sum, [1, 2])

def test_what_cannot_run(gpu_benchmark):
    gpu_benchmark.case("group_shared/triton", "forward", batch=4, dim=32, labels=256, fan_in=8, group_size=8)

def test_a_graph(gpu_benchmark):
    gpu_benchmark(add, torch.ones(1), other=1, mode="graph")

def test_twice(gpu_benchmark):
    gpu_benchmark(add, torch.ones(1), other=1)
    with pytest.raises(RuntimeError, match="it can be used once"):
        gpu_benchmark(add, torch.ones(1), other=1)

@pytest.mark.parametrize("mode, name", [("lukewarm", "dense/torch"), ("cold", "none/such")])
def test_mistakes(gpu_benchmark, mode, name):
    with pytest.raises(ValueError, match="not one of cold, hot|unknown implementation 'none/such'"):
        if mode == "lukewarm":
            gpu_benchmark(add, 1, other=1, mode=mode)
        gpu_benchmark.case(name, "forward", batch=4, dim=32, labels=256, fan_in=8, group_size=8)
'''


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gsbench.pytest_plugin", "-p", "no:cacheprovider",
               "--gsbench-device", "cpu", *options, "test_mine.py"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pytest")
    (folder / "test_mine.py").write_text(TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> Path:
    done = run_pytest(folder, "--benchmark-save=one", "--benchmark-save-data")
    assert "6 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    (file,) = folder.glob(".benchmarks/*/0001_one.json")
    return file


def test_our_samples_are_in_its_statistics(saved: Path) -> None:
    document = json.loads(saved.read_text())
    benchmarks = {b["name"]: b for b in document["benchmarks"]}
    assert set(benchmarks) == {"test_a_call", "test_a_case", "test_of_another_kind", "test_twice"}
    call, case = benchmarks["test_a_call"], benchmarks["test_a_case"]
    assert call["extra_info"]["method"] == "perf_counter"
    assert call["extra_info"]["ci_low_ms"] <= 1e3 * call["stats"]["median"] <= call["extra_info"]["ci_high_ms"]
    assert call["stats"]["rounds"] >= 20
    record = case["extra_info"]["gsbench"]
    assert record["verified"] is True
    assert record["timing"]["median_ms"] == pytest.approx(1e3 * case["stats"]["median"])
    assert document["machine_info"]["gsbench_device"]["type"] == "cpu"


def test_its_comparison_reads_them_and_a_gate_on_the_file_makes_a_run(folder: Path, saved: Path, tmp_path: Path) -> None:
    done = run_pytest(folder, "--benchmark-compare=0001", "-k", "a_case")
    assert "test_a_case (0001_one)" in done.stdout
    assert read(saved, tmp_path / "run") == (1, 3)
    run = read_run(tmp_path / "run")
    assert run.manifest["device"]["name"]
    assert run.manifest["environment"]["torch"]
    (pair,) = compare(tmp_path / "run", tmp_path / "run").pairs
    assert pair.ratio == 1


def test_disabled_benchmarks_are_called_and_not_timed(folder: Path) -> None:
    done = run_pytest(folder, "--benchmark-disable", "-k", "a_call")
    assert "1 passed" in done.stdout
    assert "test_a_call" not in done.stdout


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", UserError, "not a file of pytest-benchmark: JSONDecodeError"),
        ('{"benchmarks": []}', UserError, "KeyError: 'machine_info'"),
        ('{"benchmarks": [{"name": "x"}], "machine_info": {}, "commit_info": {}}', NothingMeasured,
         "none of its 1 benchmarks names a case"),
        ('{"benchmarks": [{"extra_info": {"gsbench": {"status": "ok"}}}], "machine_info": {}, "commit_info": {}}', UserError,
         "benchmark 1: not a record: KeyError: 'case'"),
    ],
)  # fmt: skip
def test_files_that_make_no_run(tmp_path: Path, text: str, error: type[UserError], words: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(error, match=words):
        read(tmp_path / "file.json", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.json", tmp_path / "run")
