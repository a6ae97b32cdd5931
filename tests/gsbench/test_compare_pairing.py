"""gsbench.compare: which cases are paired, which must not be, and what is said of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gsbench.compare import compare
from gsbench.errors import NothingMeasured, UserError
from gsbench.record import Record
from gsbench.report import verdicts
from tests.gsbench import synthetic as s
from tests.gsbench.sides import judged, only, replicates, scattered, two


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


def test_processes_that_took_turns_are_judged_by_their_rounds(tmp_path: Path) -> None:
    """The machine was disturbed in some rounds, more of base's than of new's: the medians of the processes mislead."""
    for process in range(5):
        drift = [1.0, 1.3, 1.0, 1.6, 1.0, 1.0, 1.2]
        sides = {"base": [ms * 1.0 for ms in drift], "new": [ms * (1.1 + 0.001 * process) for ms in drift]}
        for name, rounds in sides.items():
            ms = 1.0 if name == "new" else 1.2
            s.write(tmp_path / name / f"{process:02}", [s.timed("a/b", ms, rounds_ms=tuple(rounds))])
    pair = only(compare(tmp_path / "base", tmp_path / "new", paired=True))
    assert pair.ratio == pytest.approx(1.102, abs=0.0005)
    assert (pair.verdict, pair.new_ms) == ("slower", 1.0)
    apart = only(compare(tmp_path / "base", tmp_path / "new"))
    assert apart.ratio == pytest.approx(1.0 / 1.2)


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
