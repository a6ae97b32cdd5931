"""gsbench compare on made-up runs whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gsbench.cli.compare import compare as verb
from gsbench.cli.compare import parse_tolerance
from gsbench.compare import Compared, Pair, compare
from gsbench.errors import NothingMeasured, UserError
from gsbench.record import Record
from gsbench.report import verdicts
from tests.gsbench import synthetic as s

HOSTILE = "evil/<img src=x>|`@all` [bold red]\x1b[31m\x00\n# head"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(verb)
    return app


def two(tmp_path: Path, base: Sequence[Record], new: Sequence[Record], **manifest: Any) -> tuple[Path, Path]:
    """A run a side; `manifest` changes the new one's."""
    return s.write(tmp_path / "base", base), s.write(tmp_path / "new", new, **manifest)


def judged(tmp_path: Path, base: Sequence[Record], new: Sequence[Record], **options: Any) -> Compared:
    return compare(*two(tmp_path, base, new), **options)


def only(found: Compared) -> Pair:
    (pair,) = found.pairs
    return pair


def replicates(folder: Path, times: Sequence[Sequence[float]], **changes: Any) -> Path:
    """A run for each row of times; a case (one more batch row each) for each column."""
    for i, row in enumerate(times):
        records = [s.timed("group_shared/triton", ms, s.point(batch=b + 1), **changes) for b, ms in enumerate(row)]
        s.write(folder / f"run-{i:02}", records)
    return folder


def scattered(seed: int, shift: float, processes: int, cases: int = 1) -> list[list[float]]:
    random = np.random.default_rng(seed)
    table: list[list[float]] = np.exp(random.normal(shift, 0.004, (processes, cases))).tolist()
    return table


@pytest.mark.parametrize(
    ("new_ms", "spread", "expected"),
    [(1.10, 0.002, "slower"), (0.90, 0.002, "faster"), (1.01, 0.002, "same"), (1.03, 0.002, "unclear"),
     (1.0, 0.02, "same"), (1.2, 0.3, "unclear")],
)  # fmt: skip
def test_each_verdict_of_one_process_a_side(tmp_path: Path, new_ms: float, spread: float, expected: str) -> None:
    pair = only(judged(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", new_ms, spread=spread)]))
    assert pair.verdict == expected
    assert pair.provisional
    assert (pair.base_ms, pair.new_ms, pair.ratio) == pytest.approx((1.0, new_ms, new_ms))
    assert pair.low < pair.ratio < pair.high


def test_a_process_carries_no_verdict_beyond_its_own_noise(tmp_path: Path) -> None:
    """The interval is narrow, but the samples spread over 20 %: 10 % more is not a difference that one process shows."""
    noisy = replace(s.timing(1.1), p20_ms=1.0, p80_ms=1.4)
    pair = only(judged(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.1, timing=noisy)]))
    assert pair.tolerance == pytest.approx(0.2 / 1.1)
    assert pair.verdict == "unclear"


def test_two_modes_in_one_process_are_unclear(tmp_path: Path) -> None:
    pair = only(judged(tmp_path, [s.timed("a/b", 1.0, timing=s.timing(1.0, bimodal=True))], [s.timed("a/b", 2.0)]))
    assert pair.verdict == "unclear"
    assert "base: bimodal" in pair.flags


@pytest.mark.parametrize(("shift", "expected"), [(0.1, "slower"), (-0.1, "faster"), (0.0, "same"), (0.03, "unclear")])
@pytest.mark.parametrize("paired", [False, True])
def test_each_verdict_of_replicates(tmp_path: Path, shift: float, expected: str, paired: bool) -> None:
    base = replicates(tmp_path / "base", scattered(1, 0.0, 6))
    new = replicates(tmp_path / "new", scattered(2, shift, 6))
    pair = only(compare(base, new, paired=paired))
    assert pair.verdict == expected
    assert not pair.provisional
    assert (pair.base_processes, pair.new_processes) == (6, 6)
    assert verdicts.verdict(pair) == expected


def test_slow_processes_do_not_make_a_verdict_of_replicates(tmp_path: Path) -> None:
    """Within every process the interval is 0.2 %; three of ten processes are 12 % slower, on the new side by chance."""
    base = replicates(tmp_path / "base", [[1.0]] * 8 + [[1.12]] * 2)
    new = replicates(tmp_path / "new", [[1.0]] * 6 + [[1.12]] * 4)
    assert only(compare(base, new)).verdict != "slower"


@pytest.mark.parametrize("paired", [False, True])
def test_no_false_alarms_between_replicates_of_the_same(tmp_path: Path, paired: bool) -> None:
    base = replicates(tmp_path / "base", scattered(3, 0.0, 5, cases=300))
    new = replicates(tmp_path / "new", scattered(4, 0.0, 5, cases=300))
    found = compare(base, new, tolerance=0.0, paired=paired)
    assert found.overall.verdicts["slower"] + found.overall.verdicts["faster"] == 0
    assert compare(base, new, tolerance=0.03, paired=paired).overall.verdicts["same"] == 300


def test_few_replicates_are_provisional(tmp_path: Path) -> None:
    base, new = (replicates(tmp_path / name, scattered(5, 0.0, 3)) for name in ("base", "new"))
    pair = only(compare(base, new))
    assert (pair.base_processes, pair.provisional) == (3, True)


def test_the_geometric_means(tmp_path: Path) -> None:
    base = [s.timed("a/x", 1.0), s.timed("a/y", 1.0), s.timed("a/x", 1.0, pass_="backward")]
    new = [s.timed("a/x", 2.0), s.timed("a/y", 0.5), s.timed("a/x", 8.0, pass_="backward")]
    found = judged(tmp_path, base, new)
    assert found.overall.ratio == pytest.approx(2.0)
    assert [(g.name, g.cases) for g in found.groups] == [("a/x", 2), ("a/y", 1)]
    assert found.groups[0].ratio == pytest.approx(4.0)
    assert found.groups[0].low < 4.0 < found.groups[0].high
    assert [pair.verdict for pair in found.pairs] == ["slower", "slower", "faster"]
    assert found.pairs[0].ratio == pytest.approx(8.0)
    by_pass = compare(tmp_path / "base", tmp_path / "new", by="pass")
    assert {g.name: round(g.ratio, 6) for g in by_pass.groups} == {"forward": 1.0, "backward": 8.0}
    for by in ("family", "backend", "mode", "dtype", "pattern", "labels"):
        assert sum(g.cases for g in compare(tmp_path / "base", tmp_path / "new", by=by).groups) == 3


def test_missing_extra_broken_and_mended_cases(tmp_path: Path) -> None:
    base = [s.timed("a/kept", 1.0), s.timed("a/gone", 1.0), s.timed("a/broken", 1.0), s.failed("a/mended", "oom", "x")]
    new = [s.timed("a/kept", 1.0), s.timed("a/added", 1.0), s.failed("a/broken", "crashed", "x"), s.timed("a/mended", 1.0)]
    found = judged(tmp_path, [*base, s.failed("a/never", "unsupported", "")], [*new, s.failed("a/never", "oom", "")])
    assert only(found).case.implementation == "a/kept"
    assert [case.implementation for case in found.missing] == ["a/gone"]
    assert [case.implementation for case in found.extra] == ["a/added"]
    assert [case.implementation for case in found.untimed] == ["a/never"]
    assert [(r.case.implementation, str(r.difference), r.broken) for r in found.not_comparable] == [
        ("a/broken", "status ok → crashed", True), ("a/mended", "status oom → ok", False),
    ]  # fmt: skip
    assert found.worse


def test_a_replicate_that_failed_is_told(tmp_path: Path) -> None:
    base = replicates(tmp_path / "base", scattered(6, 0.0, 5))
    new = replicates(tmp_path / "new", scattered(7, 0.0, 5))
    s.write(new / "run-99", [s.failed("group_shared/triton", "timeout", "", s.point(batch=1))])
    pair = only(compare(base, new))
    assert pair.new_processes == 5
    assert pair.flags == ("new: 1 of 6 runs not timed (timeout)",)


def test_a_case_that_at_times_worked_before_and_now_never_does_is_broken(tmp_path: Path) -> None:
    base, new = (replicates(tmp_path / name, [[1.0, 1.0]]) for name in ("base", "new"))
    s.write(base / "flaky", [s.timed("a/b", 1.0)])
    s.write(base / "flaky-too", [s.failed("a/b", "timeout", "")])
    s.write(new / "gone", [s.failed("a/b", "crashed", "")])
    (refused,) = compare(base, new).not_comparable
    assert (str(refused.difference), refused.broken) == ("status ok or timeout → crashed", True)


def test_pairs_of_one_run_a_side_rest_on_one_process(tmp_path: Path) -> None:
    base, new = replicates(tmp_path / "base", [[1.0]]), replicates(tmp_path / "new", [[1.1]])
    assert only(compare(base, new, paired=True)) == only(compare(base, new))


def test_one_process_against_several_has_the_widest_ends(tmp_path: Path) -> None:
    base, new = replicates(tmp_path / "base", [[1.0], [1.2], [1.1]]), replicates(tmp_path / "new", [[1.3]])
    pair = only(compare(base, new))
    assert (pair.base_processes, pair.new_processes) == (3, 1)
    assert (pair.low, pair.high) == pytest.approx((1.3 * 0.998 / (1.2 * 1.002), 1.3 * 1.002 / 0.998))


def test_another_method_is_never_compared(tmp_path: Path) -> None:
    base = [s.timed("a/b", 1.0), s.timed("a/c", 1.0)]
    new = [s.timed("a/b", 1.0, method="cuda_graph"), s.timed("a/c", 1.0)]
    found = judged(tmp_path, base, new)
    assert len(found.pairs) == 1
    assert str(found.not_comparable[0].difference) == "method cuda_events → cuda_graph"
    assert not found.worse


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_times_that_are_no_positive_numbers_are_not_compared(tmp_path: Path, value: float) -> None:
    broken = s.timed("a/b", 1.0, timing=replace(s.timing(1.0), median_ms=value))
    found = judged(tmp_path, [s.timed("a/b", 1.0), s.timed("a/c", 1.0)], [broken, s.timed("a/c", 1.0)])
    assert found.not_comparable[0].difference.field == "median_ms"
    json.loads(verdicts.to_json(found), parse_constant=pytest.fail)


def test_another_device_is_never_compared(tmp_path: Path) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)], device={"name": "Other GPU"})
    with pytest.raises(NothingMeasured, match=r"1 differ in device \(Made-up GPU against Other GPU\)"):
        compare(base, new)


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


def test_of_a_case_recorded_twice_the_later_record_counts(tmp_path: Path) -> None:
    pair = only(judged(tmp_path, [s.timed("a/b", 9.0), s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)]))
    assert (pair.base_ms, pair.base_processes) == (pytest.approx(1.0), 1)


def test_environment_and_configuration_that_differ_are_listed(tmp_path: Path) -> None:
    def tuned(tile: int, registers: int, digest: str) -> Record:
        config = {"k": {"config": {"BLOCK_L": tile, "num_warps": 4}, "registers": registers, "spills": 0, "sha256": digest}}
        return s.timed("a/b", 1.0, config=config, binary_hash=digest[:4])

    environment = {"torch": "2.8.0", "triton": "3.3.0"}
    new = s.write(tmp_path / "new", [tuned(64, 40, "bbbbb")], environment=environment, code_fingerprint="beef")
    found = compare(s.write(tmp_path / "base", [tuned(32, 31, "aaaaa")]), new)
    told = [str(d) for d in found.environment]
    assert "environment.torch 2.7.0 → 2.8.0" in told
    assert "code_fingerprint f00d → beef" in told
    assert not any("triton" in line for line in told)
    assert [str(d) for d in only(found).config] == [
        "k.config.BLOCK_L 32 → 64", "k.registers 31 → 40", "binary aaaa → bbbb",
    ]  # fmt: skip


@pytest.mark.parametrize(("base", "new", "suspect"), [("aa", "aa", True), ("aa", "bb", False), ("", "", False)])
def test_an_unchanged_binary_that_moved_is_the_measurements_fault(
    tmp_path: Path, base: str, new: str, suspect: bool
) -> None:
    found = judged(tmp_path, [s.timed("a/b", 1.0, binary_hash=base)], [s.timed("a/b", 2.0, binary_hash=new)])
    assert only(found).control_failed is suspect
    for text in (verdicts.to_markdown(found), verdicts.to_junit(found), verdicts.verdict(only(found))):
        assert ("suspect the measurement" in text) is suspect


def test_validity_flags_of_either_side_are_kept(tmp_path: Path) -> None:
    found = judged(
        tmp_path, [s.timed("a/b", 1.0, validity=("power_cap",))], [s.timed("a/b", 1.0, validity=("host_behind",))]
    )
    assert only(found).flags == ("base: power_cap", "new: host_behind")


def test_pairs_of_runs_need_as_many_on_both_sides(tmp_path: Path) -> None:
    base, new = replicates(tmp_path / "base", [[1.0]] * 2), replicates(tmp_path / "new", [[1.0]] * 3)
    with pytest.raises(UserError, match="2 runs in BASE, 3 in NEW"):
        compare(base, new, paired=True)


def test_pairs_leave_out_a_run_whose_partner_failed(tmp_path: Path) -> None:
    drift = [1.0, 1.1, 1.2, 1.3, 1.4, 5.0]
    base, new = (
        replicates(tmp_path / "base", [[ms] for ms in drift]),
        replicates(tmp_path / "new", [[ms] for ms in drift[:5]]),
    )
    s.write(new / "run-99", [s.failed("group_shared/triton", "timeout", "", s.point(batch=1))])
    pair = only(compare(base, new, paired=True))
    assert (pair.base_processes, pair.verdict, pair.ratio) == (5, "same", pytest.approx(1.0))


# ---- the command line and what it writes ------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    base = [s.timed(HOSTILE, 1.0), s.timed("a/b", 1.0), s.timed(f"{HOSTILE}2", 1.0)]
    new = [s.timed(HOSTILE, 2.0, validity=(HOSTILE,)), s.timed("a/b", 1.0), s.failed(f"{HOSTILE}2", "oom", HOSTILE)]
    return two(tmp_path, base, new, code_fingerprint=HOSTILE)


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
    assert len(text) <= verdicts.COMMENT
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
