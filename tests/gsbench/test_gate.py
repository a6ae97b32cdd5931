"""gsbench.gate: what passes, what fails, and what is no evidence, on made-up runs whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gsbench import policy
from gsbench.compare import compare
from gsbench.gate import Gated, gate, judge
from gsbench.policy import Policy, Quarantine, Tolerance
from gsbench.record import Record
from gsbench.report import gates
from tests.gsbench import synthetic as s
from tests.gsbench.sides import replicates, scattered, two

DAY = date(2026, 6, 1)
PLAIN = Policy(0.03)


def gated(
    tmp_path: Path, base: Sequence[Record], new: Sequence[Record], rules: Policy = PLAIN,
    manifest: dict[str, Any] | None = None, **options: Any,
) -> Gated:  # fmt: skip
    before, after = two(tmp_path, base, new, **(manifest or {"code_fingerprint": "beef"}))
    return gate(after, before, rules, today=DAY, **options)


def causes(found: Gated) -> list[tuple[str, str]]:
    return [(f.case.implementation, f.diagnosis.cause) for f in found.regressions]


@pytest.mark.parametrize(("new_ms", "code"), [(1.0, 0), (0.8, 0), (1.1, 1)])
def test_only_what_is_slower_fails(tmp_path: Path, new_ms: float, code: int) -> None:
    found = gated(tmp_path, [s.timed("a/b", 1.0), s.timed("a/c", 1.0)], [s.timed("a/b", new_ms), s.timed("a/c", 1.0)])
    assert found.exit_code == code
    assert len(found.regressions) == code


def test_a_case_that_is_no_longer_timed_fails(tmp_path: Path) -> None:
    found = gated(tmp_path, [s.timed("a/b", 1.0), s.timed("a/c", 1.0)], [s.failed("a/b", "oom", ""), s.timed("a/c", 1.0)])
    assert found.exit_code == 1
    assert found.regressions[0].status == "no longer timed: status ok → oom"
    assert causes(found) == [("a/b", "code")]


def test_of_replicates_a_false_alarm_rate_and_a_detection_rate(tmp_path: Path) -> None:
    """300 cases, 5 processes a side, 0.4 % scatter: no alarm among equals; 10 % slower is found in all."""
    base = replicates(tmp_path / "base", scattered(21, 0.0, 5, cases=300))
    equal = replicates(tmp_path / "equal", scattered(22, 0.0, 5, cases=300))
    slower = replicates(tmp_path / "slower", scattered(23, 0.1, 5, cases=300))
    assert gate(equal, base, PLAIN).exit_code == 0
    found = gate(slower, base, PLAIN)
    assert (found.exit_code, len(found.regressions)) == (1, 300)


def test_unclear_warns_and_is_no_failure_unless_nothing_else_is_there(tmp_path: Path) -> None:
    noisy = [s.timed("a/b", 1.0), s.timed("a/c", 1.0)], [s.timed("a/b", 1.2, spread=0.3), s.timed("a/c", 1.0)]
    found = gated(tmp_path / "some", *noisy)
    assert found.exit_code == 0
    assert any("1 of 2 cases are unclear" in line for line in found.warnings)
    found = gated(tmp_path / "all", [noisy[0][0]], [noisy[1][0]])
    assert found.exit_code == 3
    assert "every case is unclear" in found.refused[0]


def test_bimodal_samples_are_unclear(tmp_path: Path) -> None:
    found = gated(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 2.0, timing=s.timing(2.0, bimodal=True))])
    assert (found.exit_code, found.regressions) == (3, ())


def test_a_case_has_its_own_tolerance(tmp_path: Path) -> None:
    rules = Policy(0.03, (Tolerance(implementation="a/b", tolerance=0.2), Tolerance(implementation="a/*", tolerance=0.01)))
    found = gated(
        tmp_path, [s.timed("a/b", 1.0), s.timed("a/c", 1.0), s.timed("d/e", 1.0)],
        [s.timed("a/b", 1.1), s.timed("a/c", 1.025), s.timed("d/e", 1.025)], rules,
    )  # fmt: skip
    assert causes(found) == [("a/c", "code")]
    assert {p.case.implementation: round(p.tolerance, 4) for p in found.compared.pairs} == {
        "a/b": 0.2, "a/c": 0.01, "d/e": 0.03,
    }  # fmt: skip


@pytest.mark.parametrize(("until", "code"), [(date(2026, 6, 1), 0), (date(2026, 5, 31), 1)])
def test_a_quarantine_excuses_up_to_its_last_day(tmp_path: Path, until: date, code: int) -> None:
    rules = Policy(0.03, (), (Quarantine(implementation="a/b", until=until, why="issue 31"),))
    found = gated(
        tmp_path, [s.timed("a/b", 1.0), s.timed("a/c", 1.0)], [s.timed("a/b", 1.5), s.timed("a/c", 1.0)], rules
    )
    assert found.exit_code == code
    assert len(found.quarantined) == 1 - code
    expired = [line for line in found.warnings if "ran out on 2026-05-31 and excuses nothing" in line]
    assert len(expired) == code


def test_an_expired_quarantine_is_told_though_the_case_is_well(tmp_path: Path) -> None:
    rules = Policy(0.03, (), (Quarantine(implementation="a/b", until=date(2026, 1, 1), why="issue 31"),))
    found = gated(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)], rules)
    assert found.exit_code == 0
    assert any("a quarantine ran out on 2026-01-01" in line for line in found.warnings)


def test_of_two_quarantines_the_longer_excuses(tmp_path: Path) -> None:
    days = (date(2026, 1, 1), date(2026, 12, 31))
    rules = Policy(0.03, (), tuple(Quarantine(implementation="a/*", until=day, why="x") for day in days))
    found = gated(tmp_path, [s.timed("a/b", 1.0), s.timed("c/d", 1.0)], [s.timed("a/b", 2.0), s.timed("c/d", 1.0)], rules)
    assert (found.exit_code, len(found.quarantined)) == (0, 1)


def test_a_gate_of_quarantined_cases_alone_decides_nothing(tmp_path: Path) -> None:
    rules = Policy(0.03, (), (Quarantine(until=date(2026, 12, 31), why="x"),))
    assert gated(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 2.0)], rules).exit_code == 3


def test_an_entry_that_matches_no_case_is_told(tmp_path: Path) -> None:
    rules = Policy(0.03, (Tolerance(implementation="a/typo", tolerance=0.2),))
    found = gated(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)], rules)
    assert any("[[tolerance]] 1 (implementation = a/typo) matches no case" in line for line in found.warnings)


# ---- the diagnosis ----------------------------------------------------------------------------------------------


def tuned(ms: float, tile: int = 32, digest: str = "aa", **changes: Any) -> Record:
    config = {"k": {"config": {"BLOCK_L": tile}, "registers": 40, "sha256": digest}}
    return s.timed("a/b", ms, config=config, binary_hash=digest, **changes)


@pytest.mark.parametrize(
    ("base", "new", "manifest", "cause", "words"),
    [
        (tuned(1.0), tuned(1.2, digest="bb"), {"code_fingerprint": "beef"}, "code", "binary aa → bb; code_fingerprint f00d"),
        (tuned(1.0), tuned(1.2, 64, "bb"), {"code_fingerprint": "beef"}, "configuration", "k.config.BLOCK_L 32 → 64"),
        (tuned(1.0), tuned(1.2, digest="bb"), {}, "code", "another binary from the same sources"),
        (s.timed("a/b", 1.0), s.timed("a/b", 1.2), {"code_fingerprint": "beef"}, "code", "code_fingerprint f00d → beef"),
        (s.timed("a/b", 1.0), s.timed("a/b", 1.2, validity=("shared_gpu:1",)), {}, "noise", "new: shared_gpu:1"),
    ],
    ids=["code", "configuration", "binary", "fingerprint", "noise"],
)  # fmt: skip
def test_the_cause_of_a_regression(
    tmp_path: Path, base: Record, new: Record, manifest: dict[str, Any], cause: str, words: str
) -> None:
    found = gated(tmp_path, [base], [new], manifest=manifest or {"run": "new"})
    assert found.exit_code == 1
    assert found.regressions[0].diagnosis.cause == cause
    assert words in found.regressions[0].diagnosis.words


def test_a_slower_clock_is_told_from_slower_code(tmp_path: Path) -> None:
    """12 % slower at a clock 11 % lower is as many cycles; 12 % slower at the same clock is not."""
    base = [tuned(1.0, sm_mhz=1980.0), s.timed("c/d", 1.0, sm_mhz=1980.0)]
    found = gated(tmp_path / "clock", base, [tuned(1.12, digest="bb", sm_mhz=1770.0), s.timed("c/d", 1.0, sm_mhz=1980.0)])
    assert found.exit_code == 3
    assert found.suspects[0].diagnosis.cause == "clock"
    assert "SM clock 1980 → 1770 MHz explains it (1.001 in clock cycles)" in found.suspects[0].diagnosis.words
    assert "slower by the measurement's fault" in found.refused[0]
    found = gated(tmp_path / "code", base, [tuned(1.12, digest="bb", sm_mhz=1980.0), s.timed("c/d", 1.0)])
    assert causes(found) == [("a/b", "code")]


@pytest.mark.parametrize("new_ms", [1.2, 0.8])
def test_an_unchanged_binary_that_moves_makes_the_run_invalid(tmp_path: Path, new_ms: float) -> None:
    base = [tuned(1.0), s.timed("c/d", 1.0)]
    found = gated(tmp_path, base, [tuned(new_ms), s.timed("c/d", 1.5)])
    assert (found.exit_code, found.invalid) == (3, True)
    assert "invalid: 1 cases moved although their binary is unchanged, the first a/b" in found.refused[0]


def test_sides_that_took_turns_accuse_the_code_around_an_unchanged_binary(tmp_path: Path) -> None:
    """Interleaved, the machine cannot have moved between the sides; with the same code around it, it must have."""
    base = [tuned(1.0)]
    for manifest, code, invalid in (({"code_fingerprint": "beef"}, 1, False), ({"run": "new"}, 3, True)):
        compared = compare(*two(tmp_path / str(code), base, [tuned(1.2)], **manifest))
        found = judge(compared, PLAIN, interleaved=True)
        assert (found.exit_code, found.invalid) == (code, invalid)
        if code == 1:
            assert str(found.regressions[0].diagnosis).startswith("code: around the kernels, whose binary is unchanged")


def test_what_stays_unclear_after_turns_and_more_turns_is_a_warning(tmp_path: Path) -> None:
    compared = compare(*two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.2, spread=0.3)]))
    found = judge(compared, PLAIN, interleaved=True)
    assert found.exit_code == 0
    assert "1 of 1 cases are unclear" in found.warnings[0]
    assert gates.outcome(found).endswith("; 1 unclear)")


def test_with_an_anchor_other_versions_are_the_cause(tmp_path: Path) -> None:
    environment = {"torch": "2.8.0", "triton": "3.3.0", "cuda": "12.8", "driver": "580.1"}
    base = [tuned(1.0), s.timed("bottleneck/torch", 1.0)]
    new = [tuned(1.2), s.timed("bottleneck/torch", 1.0)]
    found = gated(tmp_path, base, new, manifest={"environment": environment}, anchor="bottleneck/torch")
    assert (found.exit_code, found.invalid) == (1, False)
    assert causes(found) == [("a/b", "driver")]
    assert "environment.driver 570.86 → 580.1" in found.regressions[0].diagnosis.words


# ---- the anchor -------------------------------------------------------------------------------------------------


def test_an_anchor_cancels_what_drifts_in_the_machine(tmp_path: Path) -> None:
    """Everything is 10 % slower, one case another 10 %: without an anchor all fail, with it the one."""
    base = [s.timed(name, 1.0) for name in ("bottleneck/torch", "a/b", "a/c")]
    new = [s.timed("bottleneck/torch", 1.1), s.timed("a/b", 1.1), s.timed("a/c", 1.21)]
    before, after = two(tmp_path, base, new, code_fingerprint="beef")
    assert len(gate(after, before, PLAIN).regressions) == 3
    found = gate(after, before, PLAIN, anchor="bottleneck/torch")
    assert [f.case.implementation for f in found.regressions] == ["a/c"]
    assert found.regressions[0].pair is not None
    assert found.regressions[0].pair.ratio == pytest.approx(1.1)
    assert found.regressions[0].pair.base_ms == pytest.approx(1.0)
    assert any("the anchor bottleneck/torch itself moved to 1.100 of its base" in line for line in found.warnings)


def test_an_anchor_takes_drift_between_processes_out_of_the_interval(tmp_path: Path) -> None:
    random = np.random.default_rng(31)
    for side in ("base", "new"):
        for i in range(5):
            drift = float(np.exp(random.normal(0, 0.05)))
            noise = [float(x) for x in np.exp(random.normal(0, 0.001, 2))]
            s.write(tmp_path / side / str(i), [
                s.timed("bottleneck/torch", drift * noise[0]), s.timed("a/b", 2 * drift * noise[1]),
            ])  # fmt: skip
    (alone,) = (p for p in gate(tmp_path / "new", tmp_path / "base", PLAIN).compared.pairs if p.case.implementation == "a/b")
    (pair,) = gate(tmp_path / "new", tmp_path / "base", PLAIN, anchor="bottleneck/torch").compared.pairs
    assert (alone.verdict, pair.verdict) == ("unclear", "same")
    assert pair.high - pair.low < 0.1 * (alone.high - alone.low)


def test_the_anchors_own_uncertainty_is_part_of_the_ratio(tmp_path: Path) -> None:
    base = [s.timed("bottleneck/torch", 1.0, spread=0.05), s.timed("a/b", 1.0)]
    found = gated(tmp_path, base, [s.timed("bottleneck/torch", 1.0), s.timed("a/b", 1.08)], anchor="bottleneck/torch")
    assert found.compared.pairs[0].verdict == "unclear"


def test_a_policy_of_files_is_what_the_gate_goes_by(tmp_path: Path) -> None:
    file = tmp_path / "gate.toml"
    file.write_text('[[tolerance]]\nimplementation = "a/*"\ntolerance = "50%"\n')
    found = gated(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.2)], policy.load(0.03, file))
    assert found.exit_code == 0
