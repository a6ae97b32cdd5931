"""gsbench selftest: rates from made-up experiments whose truth is known, and one small experiment on this CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gsbench import decide
from gsbench.errors import NothingMeasured, UserError
from gsbench.report import selftests
from gsbench.selftest import Rate, analyse, name_of, shares
from tests.gsbench import faulty
from tests.gsbench import synthetic as s

CASES, PROCESSES = 60, 5


def experiment(folder: Path, seed: int, scatter: float, shift: float = 0.0) -> None:
    """Processes of a and b that share their drift; `shift` is what b is slower by though it is the same code."""
    random = np.random.default_rng(seed)
    sides = {"a": 0.0, "b": shift, **{name_of(share): shift + np.log1p(share) for share in (0.02, 0.05)}}
    points = [s.point(batch=i) for i in range(1, CASES + 1)]
    for process in range(PROCESSES):
        drift = random.normal(0, 0.05, CASES)
        for name, by in sides.items():
            times = np.exp(drift + random.normal(by, scatter, CASES)) * np.linspace(0.005, 0.2, CASES)
            records = [s.timed("a/b", float(ms), where) for ms, where in zip(times, points, strict=True)]
            s.write(folder / name / f"{process:02}", records)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet")
    for i in (1, 2):
        experiment(folder / f"{i:02}", i, 0.002)
    return folder


def test_the_rates_are_those_of_the_simulation(quiet: Path) -> None:
    """Scatter 0.2 % between processes: nearly no alarm, all of 2 % found at tolerance 0, and 2 % is within 3 %."""
    found = analyse(quiet)
    assert (found.processes, found.experiments) == (PROCESSES, 2)
    assert found.false_alarms[0.03] == Rate(0, 2 * CASES)
    assert found.false_alarms[0.0].share <= 0.05
    assert found.passed
    assert found.detection[0.02, 0.0, "all"].share >= 0.99
    assert found.detection[0.05, 0.03, "all"].share >= 0.99
    assert found.detection[0.02, 0.03, "all"].found == 0
    assert found.planted == {0.02: pytest.approx(1.02, abs=0.001), 0.05: pytest.approx(1.05, abs=0.001)}
    lengths = [found.detection[0.02, 0.0, name].total for name in ("all", "over 10 us", "over 50 us")]
    assert lengths[0] == 2 * CASES
    assert lengths[0] > lengths[1] > lengths[2] > 0


def test_a_harness_that_sees_differences_where_there_are_none_does_not_pass(tmp_path: Path) -> None:
    experiment(tmp_path / "01", 3, 0.002, shift=0.05)
    found = analyse(tmp_path)
    assert found.false_alarms[0.03].share > 0.9
    assert not found.passed
    assert "NOT MET" in selftests.to_markdown(found)


def test_the_smallest_effect_that_would_be_found_is_found_four_times_in_five() -> None:
    """Simulated: 20,000 cases, each slowed by what `detectable` says of the true scatter. Not of an estimate of it."""
    random = np.random.default_rng(4)
    cases, sd, processes = 20_000, 0.004, 5
    scatter = sd * np.array([-1.0, 1.0, -1.0, 1.0, 0.0])  # of standard deviation sd exactly
    least = float(decide.detectable(np.ones((1, 5)), np.exp(scatter)[None], 0.01, paired=True)[0])
    base = np.ones((cases, processes))
    new = np.exp(random.normal(least, sd, (cases, processes)))
    found = decide.hierarchical_bootstrap(base, new, paired=True, resamples=500)
    assert 0.75 <= (found.low > 0.01).mean() <= 0.85


def test_what_is_detectable_shrinks_with_more_processes_and_grows_with_scatter() -> None:
    random = np.random.default_rng(5)

    def typical(processes: int, sd: float, paired: bool) -> float:
        base, new = (np.exp(random.normal(0, sd, (2000, processes))) for _ in range(2))
        return float(np.median(decide.detectable(base, new, 0.0, paired=paired)))

    for paired in (False, True):
        assert typical(20, 0.01, paired) < 0.6 * typical(5, 0.01, paired)
        assert typical(5, 0.02, paired) == pytest.approx(2 * typical(5, 0.01, paired), rel=0.1)


@pytest.mark.parametrize(("found", "total"), [(0, 200), (3, 200), (100, 200), (200, 200), (1, 1)])
def test_the_interval_of_a_rate_is_scipys(found: int, total: int) -> None:
    from scipy.stats import binomtest

    exact = binomtest(found, total).proportion_ci(method="exact")
    assert decide.rate_interval(found, total) == pytest.approx((exact.low, exact.high))


def test_the_report_says_it_in_a_line_in_tables_and_in_json(quiet: Path, tmp_path: Path) -> None:
    (quiet / "instrument.json").write_text(json.dumps({
        "timers": {"method": "cuda_events", "overhead_ms": 0.002, "resolution_ms": 0.0005},
        "agreement": [{"key": "k", "by": "do_bench", "ours_ms": 1.0, "theirs_ms": 1.02},
                      {"key": "k", "by": "graph", "failed": "RuntimeError: cannot capture"}],
    }))  # fmt: skip
    found = analyse(quiet)
    files = selftests.write(found, tmp_path)
    assert files[2].read_bytes().startswith(b"\x89PNG")
    text = files[0].read_text()
    assert "Made-up GPU, suite made_up, 5 processes a side: false alarms 0.0% (0 of 120 A/A comparisons" in text
    assert "a call that does nothing reads 2 us; the smallest step of the clock is 0.5 us" in text
    assert "| k | do_bench | 1 | 1.02 | 0.980 |" in text
    assert "RuntimeError: cannot capture" in text
    assert text.count("| a/b forward") == 60
    document = json.loads(files[1].read_text(), parse_constant=pytest.fail)
    assert document["passed"] is True
    assert {d["planted"] for d in document["detection"]} == {0.02, 0.05}


def test_what_is_no_self_test(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no self-test here"):
        analyse(tmp_path / "nowhere")
    for side in ("a", "b"):
        s.write(tmp_path / "01" / side / "01", [s.failed("a/b", "oom", "")])
    with pytest.raises(NothingMeasured, match="1 timed on neither side"):
        analyse(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("much", "not a share"), ("0%,1%", "a slowdown of nothing"), ("1%,,", "not a share")]
)
def test_shares_that_cannot_be_planted(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        shares(text)
    assert shares("5%,1%") == [0.01, 0.05]


def test_a_small_experiment_on_this_cpu(tmp_path: Path) -> None:
    """Not how fast: that every part is there, and that a call nearly twice as long is measured as longer."""
    command = [
        sys.executable, "-m", "gsbench", "selftest", "--suite", "smoke", "--device", "cpu", "--quick", "--name", "st",
        "--set", "pass=forward", "--set", "batch=4", "--set", "labels=512", "--only", "dense/torch", "--json",
        "--plant", "90%",
    ]  # fmt: skip
    environment = faulty.install(tmp_path) | {"OMP_NUM_THREADS": "1"}  # threads that wait for each other take seconds
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stderr  # two processes on a busy machine may well differ
    document = json.loads(done.stdout)
    assert document["measured_as"][0]["ratio"] > 1.2
    assert document["timers"]["method"].startswith("perf_counter")
    assert document["timers"]["resolution_ms"] > 0
    assert [a["by"] for a in document["agreement"]] == ["loop"]
    assert len(document["cases"]) == 1
    assert json.loads(selftests.to_json(analyse(tmp_path / "results" / "st"))) == document
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "exists already; choose another --name" in refused.stderr
