"""gsbench gate: the command line and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from gsbench.cli.gate import gate as verb
from gsbench.errors import NothingMeasured, UserError
from gsbench.report.markup import COMMENT
from tests.gsbench import synthetic as s
from tests.gsbench.sides import two
from tests.gsbench.test_compare_output import HOSTILE

RUNS = tuple[str, str]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(verb)
    return app


@pytest.fixture
def mixed(tmp_path: Path) -> RUNS:
    """One case slower, one no longer timed, one quarantined, one as before; names from a stranger's hand."""
    names = (HOSTILE, "a/gone", "a/late", "a/same")
    base = [s.timed(name, 1.0) for name in names]
    new = [s.timed(HOSTILE, 1.5, validity=(HOSTILE,)), s.failed("a/gone", "oom", HOSTILE), s.timed("a/late", 1.5),
           s.timed("a/same", 1.0)]  # fmt: skip
    (tmp_path / "gate.toml").write_text(f"""
[[quarantine]]
implementation = "a/late"
until = 9999-12-31
why = {json.dumps("<b>" + "issue 31")}
""")
    before, after = two(tmp_path, base, new, code_fingerprint=HOSTILE)
    return str(after), str(before)


def arguments(runs: RUNS, *more: str) -> list[str]:
    return [runs[0], "--baseline", runs[1], *more]


def with_quarantine(runs: RUNS, *more: str) -> list[str]:
    return arguments(runs, "--quarantine", str(Path(runs[0]).parent / "gate.toml"), *more)


def test_exit_codes(app: typer.Typer, tmp_path: Path) -> None:
    before, after = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.1)], code_fingerprint="beef")
    slower, faster = (str(after), str(before)), (str(before), str(after))
    assert CliRunner().invoke(app, arguments(slower)).exit_code == 1
    assert CliRunner().invoke(app, arguments(faster)).exit_code == 0
    assert CliRunner().invoke(app, arguments(slower, "--tolerance", "20%")).exit_code == 0
    for wrong in (
        arguments(slower, "--tolerance", "much"), arguments(slower, "--json", "--markdown"), [slower[0]], [],
        arguments((slower[0], str(tmp_path / "nowhere"))), arguments(slower, "--tolerances", str(tmp_path / "nowhere.toml")),
        arguments(slower, "--anchor", "a/none"),
    ):  # fmt: skip
        error = CliRunner().invoke(app, wrong).exception
        assert isinstance(error, UserError)
        assert error.exit_code == 2
    other = s.write(tmp_path / "other", [s.timed("a/b", 1.0)], device={"name": "Other GPU"})
    assert isinstance(CliRunner().invoke(app, arguments((str(other), slower[1]))).exception, NothingMeasured)
    unclear = s.write(tmp_path / "unclear", [s.timed("a/b", 1.1, spread=0.3)])
    assert CliRunner().invoke(app, arguments((str(unclear), slower[1]))).exit_code == 3


def test_the_terminal_has_a_line_a_regression_with_its_cause(app: typer.Typer, mixed: RUNS) -> None:
    done = CliRunner().invoke(app, with_quarantine(mixed))
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0] == "Regressions: 2"
    assert lines[1].startswith("  slower 1.500 (1.494 to 1.506), tolerance 3.0%: evil/")
    assert ": code: code_fingerprint f00d → evil" in lines[1]
    assert lines[2].startswith("  no longer timed: status ok → oom: a/gone forward")
    assert any(line.endswith("(quarantined until 9999-12-31: <b>issue 31)") for line in lines)
    assert lines[-1].startswith("gate failed: 2 regressed (3 cases, ")
    assert "\x1b" not in done.output
    assert "\x00" not in done.output


def test_json_holds_everything_and_no_nan(app: typer.Typer, mixed: RUNS) -> None:
    done = CliRunner().invoke(app, with_quarantine(mixed, "--json"))
    document = json.loads(done.output, parse_constant=pytest.fail)
    assert (document["exit_code"], document["invalid"]) == (1, False)
    assert [(r["implementation"], r["cause"]) for r in document["regressions"]] == [(HOSTILE, "code"), ("a/gone", "code")]
    assert document["regressions"][1]["ratio"] is None
    assert document["quarantined"][0]["quarantine"] == {"until": "9999-12-31", "why": "<b>issue 31"}
    assert document["compared"]["overall"]["verdicts"]["slower"] == 2


def test_markdown_says_first_what_decides_and_has_no_markup_of_others(app: typer.Typer, mixed: RUNS) -> None:
    text = CliRunner().invoke(app, with_quarantine(mixed, "--markdown")).output
    assert text.startswith("### ❌ gsbench gate failed: 2 regressed\n")
    assert text.index("**Regressions: 2**") < text.index("**Quarantined: 1**") < text.index("| verdict |")
    for forbidden in ("<img", "<b>", "@all", "\x1b", "\x00", "\n# head", "[bold"):
        assert forbidden not in text


def test_markdown_of_five_thousand_regressions_fits_a_comment(app: typer.Typer, tmp_path: Path) -> None:
    points = [s.point(batch=i) for i in range(1, 5001)]
    base, new = ([s.timed("a/b", ms, where) for where in points] for ms in (1.0, 1.5))
    before, after = two(tmp_path, base, new, code_fingerprint="beef")
    text = CliRunner().invoke(app, arguments((str(after), str(before)), "--markdown")).output
    assert "gate failed: 5000 regressed" in text
    assert len(text) <= COMMENT
    assert "`gsbench gate --json` has everything" in text


def test_junit_is_xml_whatever_the_names(app: typer.Typer, mixed: RUNS, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    CliRunner().invoke(app, with_quarantine(mixed, "--junit", str(file)))
    suite = ElementTree.parse(file).getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "2", "errors": "0", "skipped": "1",
    }  # fmt: skip
    found = {(test.get("classname") or "").split("\n")[0]: [child.tag for child in test] for test in suite}
    assert found["gsbench.a/late"] == ["skipped"]
    assert found["gsbench.a/gone"] == ["failure"]
    assert found["gsbench.a/same"] == ["system-out"]


def test_junit_of_what_is_undecided_is_an_error(app: typer.Typer, tmp_path: Path) -> None:
    before, after = two(tmp_path, [s.timed("a/b", 1.0), s.timed("a/gone", 1.0)], [s.timed("a/b", 1.0)])
    file = tmp_path / "junit.xml"
    done = CliRunner().invoke(app, arguments((str(after), str(before)), "--junit", str(file)))
    suite = ElementTree.parse(file).getroot()[0]
    assert (done.exit_code, suite.get("errors"), suite.get("tests")) == (3, "1", "2")
    error = suite[-1].find("error")
    assert error is not None
    assert "cases of the baseline are not in the run" in (error.get("message") or "")


@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"], ["--junit", "junit.xml"]], ids=str)
def test_nothing_heavy_is_imported(mixed: RUNS, tmp_path: Path, form: list[str]) -> None:
    script = "import sys; from gsbench.cli import app\ntry: app()\nexcept SystemExit as e: assert e.code == 1, e.code\n"
    command = [sys.executable, "-c", f"{script}print(*sys.modules)", "gate", *with_quarantine(mixed, *form)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.split("\n")[-2].split())
    assert not loaded & {"torch", "triton", "pandas", "pyarrow", "matplotlib", "scipy.stats", "jinja2"}
