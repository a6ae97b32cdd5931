"""gsbench compare: the command line and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from gsbench.cli.compare import compare as verb
from gsbench.cli.gate import parse_tolerance
from gsbench.errors import NothingMeasured, UserError
from gsbench.record import Record
from gsbench.report import verdicts
from gsbench.report.markup import COMMENT
from tests.gsbench import synthetic as s
from tests.gsbench.sides import judged, replicates, scattered, two

HOSTILE = "evil/<img src=x>|`@all` [bold red]\x1b[31m\x00\n# head"


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    base = [s.timed(HOSTILE, 1.0), s.timed("a/b", 1.0), s.timed(f"{HOSTILE}2", 1.0)]
    new = [s.timed(HOSTILE, 2.0, validity=(HOSTILE,)), s.timed("a/b", 1.0), s.failed(f"{HOSTILE}2", "oom", HOSTILE)]
    return two(tmp_path, base, new, code_fingerprint=HOSTILE)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(verb)
    return app


def test_exit_codes(app: typer.Typer, tmp_path: Path) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.1)])
    assert CliRunner().invoke(app, [str(base), str(new)]).exit_code == 1
    assert CliRunner().invoke(app, [str(new), str(base)]).exit_code == 0
    assert CliRunner().invoke(app, [str(base), str(new), "--tolerance", "20%"]).exit_code == 0
    for wrong in (["--tolerance", "much"], ["--by", "colour"], ["--json", "--markdown"]):
        result = CliRunner().invoke(app, [str(base), str(new), *wrong])
        assert isinstance(result.exception, UserError)
        assert result.exception.exit_code == 2
    assert isinstance(CliRunner().invoke(app, [str(base), str(tmp_path / "nowhere")]).exception, UserError)


@pytest.mark.parametrize(
    ("base", "new", "message"),
    [
        ([s.failed("a/b", "unsupported", "")], [s.failed("a/b", "unsupported", "")], "1 timed on neither side"),
        ([s.timed("a/b", 1.0)], [s.timed("a/c", 1.0)], "1 in BASE only, 1 in NEW only"),
        ([s.timed("a/b", 1.0)], [], "no case is recorded in NEW"),
        ([], [], "no case is recorded in BASE"),
    ],
)
def test_nothing_to_compare_says_why(
    app: typer.Typer, tmp_path: Path, base: list[Record], new: list[Record], message: str
) -> None:
    result = CliRunner().invoke(app, [str(path) for path in two(tmp_path, base, new)])
    assert isinstance(result.exception, NothingMeasured)
    assert result.exception.exit_code == 3
    assert message in str(result.exception)


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), (" 2.5 % ", 0.025), ("0.03", 0.03), ("0", 0.0)])
def test_a_tolerance(text: str, value: float) -> None:
    assert parse_tolerance(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "-1%", "100%", "nan", "inf", "3 percent"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(UserError, match="--tolerance"):
        parse_tolerance(text)


def test_the_terminal_shows_the_worst_first_and_says_what_it_rests_on(app: typer.Typer, hostile: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(app, [str(path) for path in hostile], env={"COLUMNS": "250"})
    assert result.exit_code == 1
    assert result.output.index("slower (provisional)") < result.output.index("same (provisional)")
    assert "[bold red]" in result.output
    assert "\x1b" not in result.output
    assert "\x00" not in result.output
    assert "No longer timed: 1" in result.output
    assert "rest on one process a side" in result.output
    assert "2 cases compared: 1 slower, 1 same. Geometric mean of new / base 1.414 (" in result.output


def test_many_cases_are_cut_short_unless_all_are_asked_for(app: typer.Typer, tmp_path: Path) -> None:
    records = [s.timed("a/b", 1.0, s.point(batch=i)) for i in range(1, 100)]
    arguments = [str(path) for path in two(tmp_path, records, records)]
    short, full = (CliRunner().invoke(app, [*arguments, *more], env={"COLUMNS": "250"}).output for more in ([], ["--all"]))
    assert "59 more cases with --all" in short
    assert full.count("same (provisional)") == 99


def test_json_holds_everything_and_no_nan(app: typer.Typer, hostile: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(app, [*(str(path) for path in hostile), "--json"])
    document = json.loads(result.output, parse_constant=pytest.fail)
    assert document["schema"] == verdicts.SCHEMA
    assert document["worse"] is True
    assert [pair["verdict"] for pair in document["pairs"]] == ["slower", "same"]
    assert document["pairs"][0]["implementation"] == HOSTILE
    assert document["pairs"][0]["provisional"] is True
    assert document["overall"]["verdicts"] == {"slower": 1, "unclear": 0, "same": 1, "faster": 0}
    assert document["not_comparable"][0]["field"] == "status"
    assert len(document["pairs"][0]["key"]) == 16


def test_markdown_has_no_markup_of_others(app: typer.Typer, hostile: tuple[Path, Path]) -> None:
    text = CliRunner().invoke(app, [*(str(path) for path in hostile), "--markdown"]).output
    for forbidden in ("<img", "`@all`", "@all", "\x1b", "\x00", "\n# head", "[bold"):
        assert forbidden not in text
    table = [line for line in text.splitlines() if line.startswith(("| slower", "| same", "| verdict"))]
    assert [line.count("|") for line in table] == [9, 9, 9]


@pytest.mark.parametrize("count", [10, 5000])
def test_markdown_fits_a_comment_with_the_worst_in_it(tmp_path: Path, count: int) -> None:
    points = [s.point(batch=i) for i in range(1, count + 1)]
    base = [s.timed("a/b", 1.0, where) for where in points]
    new = [s.timed("a/b", 3.0 if i == count // 2 else 1.0, where) for i, where in enumerate(points)]
    gone = [s.timed("a/gone", 1.0, where) for where in points]
    text = verdicts.to_markdown(judged(tmp_path, [*base, *gone], new))
    assert len(text) <= COMMENT
    rows = [line for line in text.splitlines() if "a/b forward" in line]
    assert rows[0].startswith("| slower")
    assert f"B={count // 2 + 1} " in rows[0]
    assert ("do not fit here" in text) is (count > 1000)
    assert text.count("<details>") == text.count("</details>")


def test_markdown_closes_what_it_cuts(tmp_path: Path) -> None:
    where = [s.point(batch=i) for i in range(1, 300)]
    records = [s.timed("a/gone", 1.0, one) for one in where]
    found = judged(tmp_path, [s.timed("a/b", 1.0), *records], [s.timed("a/b", 1.0)])
    for most in range(1000, 4000, 100):
        text = verdicts.to_markdown(found, most)
        assert len(text) <= most
        assert text.count("<details>") == text.count("</details>")


def test_junit_is_xml_whatever_the_names(app: typer.Typer, hostile: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    CliRunner().invoke(app, [*(str(path) for path in hostile), "--junit", str(file)])
    suite = ElementTree.parse(file).getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "1", "skipped": "0",
    }  # fmt: skip
    failure = suite[0].find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("slower (provisional): new / base 2.000")
    assert "<img src=x>" in (suite[0].get("name") or "")
    error = suite[2].find("error")
    assert error is not None
    assert error.get("message") == "status ok → oom"


@pytest.mark.parametrize("processes", [1, 5])
@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"], ["--junit", "junit.xml"]], ids=str)
def test_nothing_heavy_is_imported(tmp_path: Path, form: list[str], processes: int) -> None:
    base, new = (replicates(tmp_path / name, scattered(8, 0.0, processes)) for name in ("base", "new"))
    script = "import sys; from gsbench.cli import app\ntry: app()\nexcept SystemExit as e: assert not e.code, e.code\n"
    command = [sys.executable, "-c", f"{script}print(*sys.modules)", "compare", str(base), str(new), *form]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    loaded = set(done.stdout.split("\n")[-2].split())
    assert not loaded & {"torch", "triton", "pandas", "pyarrow", "matplotlib", "scipy.stats", "jinja2"}
    assert ("scipy" in loaded) is (processes > 1)
