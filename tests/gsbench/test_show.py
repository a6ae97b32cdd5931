from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gsbench.cli.report import report
from gsbench.cli.show import show
from gsbench.errors import UserError
from tests.gsbench import synthetic as s


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(show)
    app.command()(report)
    return app


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [
        s.timed("bottleneck/torch", 0.4), s.timed("fixed_fan_in/triton", 1.0),
        s.timed("group_shared/triton", 0.5, roof_share=0.61, floor_ms=0.305),
        s.failed("dense/torch", "oom", "CUDA out of memory: 4.50 GiB"),
        s.timed("hostile/[bold red]", 2.0),
    ]  # fmt: skip
    return s.write(tmp_path / "run", records)


def rows(text: str) -> dict[str, list[str]]:
    """The words of the first line that begins with each word."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return {words[0]: words for words in reversed(lines)}


def test_each_implementation_has_median_ratios_roof_and_status(app: typer.Typer, run: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(run)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    shown = rows(result.output)
    assert " ".join(shown["group_shared/triton"][1:]) == "ok 0.5 0.499 to 0.501 2.00× 1.25× 61.0%"
    assert " ".join(shown["fixed_fan_in/triton"][1:]) == "ok 1 0.998 to 1.002 1.00× 2.50× n/a"
    assert shown["dense/torch"][:2] == ["dense/torch", "oom"]
    assert "CUDA out of memory: 4.50 GiB" in result.output
    assert "Made-up GPU" in result.output
    assert "torch 2.7.0" in result.output
    assert "5 cases: 4 timed, 1 not" in result.output


def test_a_small_terminal_keeps_whole_figures(app: typer.Typer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    result = CliRunner().invoke(app, ["show", str(run)], env={"COLUMNS": "80"})
    assert " ".join(rows(result.output)["group_shared/triton"][1:]) == "ok 0.5 2.00× 1.25× 61.0%"
    assert "…" not in result.output


def test_names_are_never_read_as_markup(app: typer.Typer, run: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(run)], env={"COLUMNS": "200"})
    assert "hostile/[bold red]" in result.output


def test_failures_alone(app: typer.Typer, run: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(run), "--failures"], env={"COLUMNS": "200"})
    assert "CUDA out of memory" in result.output
    assert "group_shared/triton" not in result.output


def test_json_is_the_frame(app: typer.Typer, run: Path) -> None:
    cases = json.loads(CliRunner().invoke(app, ["show", str(run), "--json"]).output)
    assert len(cases) == 5
    assert {case["implementation"]: case["median_ms"] for case in cases}["group_shared/triton"] == 0.5
    failed = json.loads(CliRunner().invoke(app, ["show", str(run), "--json", "--failures"]).output)
    assert [(case["status"], case["median_ms"]) for case in failed] == [("oom", None)]


def test_an_empty_run_says_so(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(s.write(tmp_path / "empty", []))])
    assert result.exit_code == 0, result.output
    assert "0 cases" in result.output


def test_a_path_without_a_run_is_a_user_error(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["show", str(tmp_path / "nowhere")])
    assert isinstance(result.exception, UserError)
    assert "nowhere" in str(result.exception)


def test_report_names_what_it_wrote(app: typer.Typer, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["report", str(run), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    files = [Path(file) for file in json.loads(result.output)]
    assert {out / "index.html", out / "report.md"} <= set(files)
    assert all(file.stat().st_size for file in files)
    assert "index.html" in CliRunner().invoke(app, ["report", str(run), "--out", str(out)]).output
