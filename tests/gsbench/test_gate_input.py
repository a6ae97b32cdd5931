"""gsbench.gate: sides that must not be compared. Each is one line that names the field and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gsbench import baseline
from gsbench.errors import NothingMeasured, UserError
from gsbench.gate import gate
from gsbench.policy import Policy
from gsbench.record import SCHEMA
from tests.gsbench import synthetic as s
from tests.gsbench.sides import two

PLAIN = Policy(0.03)
ENVIRONMENT = {"torch": "2.7.0", "triton": "3.3.0", "cuda": "12.8", "driver": "570.86"}


@pytest.mark.parametrize(
    ("manifest", "field", "todo"),
    [
        ({"device": {"name": "Other GPU"}}, "device name Made-up GPU → Other GPU", "measure the baseline again on this"),
        ({"device": {"name": "Made-up GPU", "threads": 4}}, "device threads unknown → 4", "on this device"),
        ({"environment": ENVIRONMENT | {"driver": "580.1"}}, "driver 570.86 → 580.1", "--anchor bottleneck/torch"),
        ({"environment": ENVIRONMENT | {"cuda": "13.0"}}, "cuda 12.8 → 13.0", "promote a new baseline"),
        ({"environment": ENVIRONMENT | {"torch": "2.8.0"}}, "torch 2.7.0 → 2.8.0", "promote a new baseline"),
        ({"environment": ENVIRONMENT | {"triton": "3.4.0"}}, "triton 3.3.0 → 3.4.0", "promote a new baseline"),
    ],
)  # fmt: skip
def test_a_baseline_of_another_machine(tmp_path: Path, manifest: dict[str, Any], field: str, todo: str) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)], **manifest)
    with pytest.raises(NothingMeasured) as e:
        gate(new, base, PLAIN)
    assert field in str(e.value)
    assert todo in str(e.value)
    assert e.value.exit_code == 3


def test_an_anchor_bridges_versions_and_no_devices(tmp_path: Path) -> None:
    records = [s.timed("a/b", 1.0), s.timed("bottleneck/torch", 1.0)]
    base, new = two(tmp_path, records, records, environment=ENVIRONMENT | {"driver": "580.1"})
    assert gate(new, base, PLAIN, anchor="bottleneck/torch").exit_code == 0
    other = s.write(tmp_path / "other", records, device={"name": "Other GPU"})
    with pytest.raises(NothingMeasured, match="device name Made-up GPU → Other GPU"):
        gate(other, base, PLAIN, anchor="bottleneck/torch")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (s.timed("a/b", 1.0, s.point(dtype="fp32")), "dtype bf16 → fp32; run the baseline's suite, or choose another"),
        (s.timed("a/b", 1.0, mode="hot"), "mode cold → hot"),
        (s.timed("a/b", 1.0, pass_="backward"), "pass forward → backward"),
        (s.timed("a/b", 1.0, method="cuda_graph"), r"differ in method \(cuda_events against cuda_graph\)"),
        (s.failed("a/b", "oom", ""), "differ in status"),
        (s.timed("x/y", 1.0), "1 in BASE only, 1 in NEW only"),
    ],
)
def test_sides_without_a_common_case_name_the_field(tmp_path: Path, new: Any, words: str) -> None:
    with pytest.raises(NothingMeasured, match=words):
        gate(*reversed(two(tmp_path, [s.timed("a/b", 1.0)], [new])), PLAIN)


def test_one_case_of_another_method_is_enough_for_no_pass(tmp_path: Path) -> None:
    base = [s.timed("a/b", 1.0), s.timed("a/c", 1.0)]
    found = gate(*reversed(two(tmp_path, base, [s.timed("a/b", 1.0), s.timed("a/c", 1.0, method="cuda_graph")])), PLAIN)
    assert found.exit_code == 3
    assert "a/c forward" in found.refused[0]
    assert "method cuda_events → cuda_graph" in found.refused[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_times_that_are_no_positive_numbers_are_no_pass(tmp_path: Path, value: float) -> None:
    broken = s.timed("a/c", 1.0, timing=replace(s.timing(1.0), median_ms=value))
    base = [s.timed("a/b", 1.0), s.timed("a/c", 1.0)]
    found = gate(*reversed(two(tmp_path, base, [s.timed("a/b", 1.0), broken])), PLAIN)
    assert found.exit_code == 3
    assert "not comparable: median_ms 1 → " in found.refused[0]


def test_missing_cases_are_no_pass_unless_a_part_is_meant(tmp_path: Path) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0), s.timed("a/gone", 1.0)], [s.timed("a/b", 1.0)])
    found = gate(new, base, PLAIN)
    assert found.exit_code == 3
    assert "1 cases of the baseline are not in the run, the first a/gone" in found.refused[0]
    assert gate(new, base, PLAIN, partial=True).exit_code == 0


def test_extra_and_mended_cases_pass(tmp_path: Path) -> None:
    base = [s.timed("a/b", 1.0), s.failed("a/mended", "oom", "")]
    new = [s.timed("a/b", 1.0), s.timed("a/mended", 1.0), s.timed("a/added", 1.0)]
    found = gate(*reversed(two(tmp_path, base, new)), PLAIN)
    assert found.exit_code == 0
    assert [case.implementation for case in found.compared.extra] == ["a/added"]


@pytest.mark.parametrize(("base", "new"), [([], [s.timed("a/b", 1.0)]), ([s.timed("a/b", 1.0)], [])])
def test_a_side_without_records(tmp_path: Path, base: list[Any], new: list[Any]) -> None:
    with pytest.raises(NothingMeasured, match="no case is recorded; measure the suite first"):
        gate(*reversed(two(tmp_path, base, new)), PLAIN)


def test_all_unsupported(tmp_path: Path) -> None:
    records = [s.failed("a/b", "unsupported", "")]
    with pytest.raises(NothingMeasured, match="1 timed on neither side"):
        gate(*reversed(two(tmp_path, records, records)), PLAIN)


@pytest.mark.parametrize(
    ("name", "text", "error", "words"),
    [
        ("manifest.json", "", UserError, "manifest.json: not valid JSON"),
        ("manifest.json", '{"schema": 99}', NothingMeasured, "schema 99 is newer than this gsbench reads"),
        ("records.jsonl", "\n{}\n", UserError, "records.jsonl:2: not a record"),
        ("records.jsonl", json.dumps({"schema": SCHEMA + 1}) + "\n", NothingMeasured, "records.jsonl:1: record schema"),
        ("records.jsonl", "", NothingMeasured, "no case is recorded"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, error: type[UserError], words: str) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)])
    (base / name).write_text(text)
    with pytest.raises(UserError, match=words) as e:
        gate(new, base, PLAIN)
    assert type(e.value) is error


def test_duplicates_are_told_and_the_later_counts(tmp_path: Path) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 9.0), s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)])
    found = gate(new, base, PLAIN)
    assert found.exit_code == 0
    assert any("1 cases are recorded twice, the first a/b forward" in line for line in found.warnings)


def _edit(folder: Path) -> None:
    file = folder / "records.jsonl"
    file.write_text(file.read_text().replace('"median_ms": 1.0', '"median_ms": 1.4'))


def _lose(folder: Path) -> None:
    (folder / "records.jsonl").unlink()


def _add(folder: Path) -> None:
    (folder / "samples.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("harm", "words"),
    [(_edit, "records.jsonl: changed by hand since it was promoted"),
     (_lose, "records.jsonl: missing, though it was signed"), (_add, "samples.parquet: changed by hand")],
)  # fmt: skip
def test_a_baseline_edited_by_hand(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)])
    folder = baseline.promote(base, tmp_path / "signed", "first")
    assert gate(new, folder, PLAIN).signatures[0]["why"] == "first"
    harm(folder)
    with pytest.raises(UserError, match=words) as e:
        gate(new, folder, PLAIN)
    assert "git checkout" in str(e.value)


def test_a_baseline_that_nobody_promoted_is_told(tmp_path: Path) -> None:
    base, new = two(tmp_path, [s.timed("a/b", 1.0)], [s.timed("a/b", 1.0)])
    assert any("nobody promoted this baseline" in line for line in gate(new, base, PLAIN).warnings)


@pytest.mark.parametrize(
    ("base_anchor", "new_anchor", "error", "words"),
    [
        (None, None, UserError, "--anchor dense/torch: not timed in any run; timed there: a/b, a/c"),
        (s.timed("dense/torch", 1.0), None, NothingMeasured, "no point where every run of both sides timed it"),
        (s.timed("dense/torch", 1.0, binary_hash="aa"), s.timed("dense/torch", 1.0, binary_hash="bb"), NothingMeasured,
         r"its own binary changed \(aa → bb\)"),
    ],
)  # fmt: skip
def test_an_anchor_that_cannot_serve(
    tmp_path: Path, base_anchor: Any, new_anchor: Any, error: type[UserError], words: str
) -> None:
    records = [s.timed("a/b", 1.0), s.timed("a/c", 1.0)]
    sides = [[*records, anchor] if anchor else records for anchor in (base_anchor, new_anchor)]
    with pytest.raises(error, match=words):
        gate(*reversed(two(tmp_path, *sides)), PLAIN, anchor="dense/torch")


def test_cases_without_an_anchor_beside_them_are_no_pass(tmp_path: Path) -> None:
    records = [s.timed("a/b", 1.0), s.timed("dense/torch", 1.0), s.timed("a/b", 1.0, s.point(batch=7))]
    found = gate(*reversed(two(tmp_path, records, records)), PLAIN, anchor="dense/torch")
    assert found.exit_code == 3
    assert "1 cases have no anchor timed beside them" in found.refused[0]
    assert len(found.compared.pairs) == 1
