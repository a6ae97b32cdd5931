"""Change points on simulated series whose truth is known, and trends over made-up runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gsbench import baseline
from gsbench.changepoints import change_points
from gsbench.cli.trend import trend as verb
from gsbench.errors import NothingMeasured, UserError
from gsbench.trend import trend
from tests.gsbench import synthetic as s


@pytest.mark.parametrize("draw", ["normal", "outliers"])
def test_of_series_without_a_change_at_most_the_level_has_one(draw: str) -> None:
    random = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        x = random.normal(0, 1, 30)
        if draw == "outliers":  # one run in ten was disturbed
            x += 10 * (random.random(30) < 0.1)
        found += bool(change_points(x, 0.05))
    assert found / 400 <= 0.05 + 2 * 0.011  # two standard errors


@pytest.mark.parametrize(("shift", "length"), [(4.0, 20), (3.0, 40), (-3.0, 40)])
def test_a_change_is_found_where_it_is(shift: float, length: int) -> None:
    random = np.random.default_rng(2)
    off = []
    for _ in range(100):
        x = random.normal(0, 1, length)
        x[length // 2 :] += shift
        found = change_points(x, 0.01)
        off += [min((abs(at - length // 2) for at in found), default=length)]
    assert np.mean(np.array(off) <= 1) >= 0.9
    assert np.mean(np.array(off) < length) >= 0.99


def test_two_changes_are_two() -> None:
    random = np.random.default_rng(3)
    x = np.concatenate([random.normal(level, 0.01, 15) for level in (0.0, 0.1, 0.05)])
    assert change_points(x, 0.01) == [15, 30]


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 5, [1.0] * 50, [0, 0, 0, 1, 1, 1]])
def test_too_few_numbers_or_none_that_differ_have_no_change(values: list[float]) -> None:
    assert change_points(values, 0.05) == []


@pytest.mark.parametrize("values", [[np.nan] * 20, [[1.0, 2.0]]])
def test_what_is_no_series(values: list[float]) -> None:
    with pytest.raises(ValueError, match="one series of finite numbers"):
        change_points(values)


def history(folder: Path, runs: int = 24, at: int = 14) -> Path:
    """Machines drift by 20 %; from run `at` on a/slower takes 6 % more, and a/same as much as before."""
    random = np.random.default_rng(4)
    for i in range(runs):
        drift = float(np.exp(random.normal(0, 0.2)))
        noise = np.exp(random.normal(0, 0.004, 3))
        times = {"bottleneck/torch": 1.0, "a/same": 2.0, "a/slower": 3.0 * (1.06 if i >= at else 1.0)}
        records = [s.timed(n, ms * drift * float(x)) for (n, ms), x in zip(times.items(), noise, strict=True)]
        s.write(folder / f"run-{i:02}", records, created_utc=f"2025-02-{i + 1:02}T00:00:00Z")
    return folder


def test_a_change_of_the_ratio_is_found_though_the_machine_drifts(tmp_path: Path) -> None:
    found = trend([str(history(tmp_path))], "bottleneck/torch")
    assert found.runs == 24
    assert [x.case.implementation for x in found.series] == ["a/slower", "a/same"]
    (change,) = found.series[0].changes
    assert (change.point.run, change.point.when) == ("run-14", "2025-02-15T00:00:00Z")
    assert change.factor == pytest.approx(1.06, abs=0.005)
    assert found.series[1].changes == ()
    alone = trend([str(tmp_path)], "a/same")  # of the anchor's own machine nothing is left either
    assert {x.case.implementation for x in alone.series} == {"a/slower", "bottleneck/torch"}


def test_globs_copies_and_runs_that_cannot_be_read(tmp_path: Path) -> None:
    history(tmp_path / "results", runs=3)
    baseline.promote(tmp_path / "results" / "run-00", tmp_path / "results" / "baselines" / "x", "first")
    s.write(tmp_path / "results" / "without", [s.timed("a/same", 1.0)])
    (s.write(tmp_path / "results" / "newer", []) / "manifest.json").write_text('{"schema": 99}')
    found = trend([str(tmp_path / "results" / "**")], "bottleneck/torch")
    assert found.runs == 4
    assert {len(x.points) for x in found.series} == {3}
    assert ["schema 99 is newer" in words for words in found.skipped] == [True, False]
    assert "bottleneck/torch was not timed in it" in found.skipped[1]


def test_devices_and_methods_are_never_mixed(tmp_path: Path) -> None:
    for i, (device, method) in enumerate([("One", "cuda_events"), ("Two", "cuda_events"), ("One", "cuda_graph")]):
        records = [s.timed(n, 1.0, method=method) for n in ("a/b", "bottleneck/torch")]
        s.write(tmp_path / str(i), records, device={"name": device})
    found = trend([str(tmp_path)], "bottleneck/torch")
    assert sorted((x.device, x.method, len(x.points)) for x in found.series) == [
        ("One", "cuda_events", 1), ("One", "cuda_graph", 1), ("Two", "cuda_events", 1),
    ]  # fmt: skip


def test_what_has_no_trend(tmp_path: Path) -> None:
    for place in (str(tmp_path), str(tmp_path / "none" / "**")):
        with pytest.raises(UserError, match="no run here"):
            trend([place], "bottleneck/torch")
    s.write(tmp_path / "run", [s.timed("a/b", float("nan")), s.timed("c/d", 1.0)])
    with pytest.raises(NothingMeasured, match="--anchor a/b: timed in none of the 1 runs"):
        trend([str(tmp_path)], "a/b")


def test_the_command_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verb)
    history(tmp_path / "results")
    done = CliRunner().invoke(app, [str(tmp_path / "results"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "a/slower forward" in done.output
    assert "at run-14, 2025-02-15" in done.output
    assert "2 cases over 24 runs, as ratios to bottleneck/torch: 1 changed" in done.output
    assert (tmp_path / "out" / "trend.png").read_bytes().startswith(b"\x89PNG")
    assert "| a/slower forward" in (tmp_path / "out" / "trend.md").read_text()
    document = json.loads(CliRunner().invoke(app, [str(tmp_path / "results"), "--json"]).output, parse_constant=pytest.fail)
    assert len(document["series"][0]["points"]) == 24
