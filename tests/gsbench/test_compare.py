"""gsbench.compare: verdicts on made-up runs whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gsbench.compare import compare
from gsbench.report import verdicts
from tests.gsbench import synthetic as s
from tests.gsbench.sides import judged, only, replicates, scattered


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


def test_one_process_against_several_has_the_widest_ends(tmp_path: Path) -> None:
    base, new = replicates(tmp_path / "base", [[1.0], [1.2], [1.1]]), replicates(tmp_path / "new", [[1.3]])
    pair = only(compare(base, new))
    assert (pair.base_processes, pair.new_processes) == (3, 1)
    assert (pair.low, pair.high) == pytest.approx((1.3 * 0.998 / (1.2 * 1.002), 1.3 * 1.002 / 0.998))


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


@pytest.mark.parametrize(("base", "new", "suspect"), [("aa", "aa", True), ("aa", "bb", False), ("", "", False)])
def test_an_unchanged_binary_that_moved_is_the_measurements_fault(
    tmp_path: Path, base: str, new: str, suspect: bool
) -> None:
    found = judged(tmp_path, [s.timed("a/b", 1.0, binary_hash=base)], [s.timed("a/b", 2.0, binary_hash=new)])
    assert only(found).control_failed is suspect
    for text in (verdicts.to_markdown(found), verdicts.to_junit(found), verdicts.verdict(only(found))):
        assert ("suspect the measurement" in text) is suspect
