"""Tolerances and quarantine from TOML: what matches, and that every slip is named with file, entry, key and remedy."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from gsbench.case import Case
from gsbench.errors import UserError
from gsbench.policy import Match, load
from gsbench.share import parse_share
from tests.gsbench import synthetic as s

CASE = Case("group_shared/triton", "backward", s.point(labels=32768), "cold", "cuda")


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "gate.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("entry", "matches"),
    [
        ({}, True),
        ({"implementation": "group_shared/triton"}, True),
        ({"implementation": "group_shared/*", "pass": "backward", "labels": 32768, "dtype": "bf16"}, True),
        ({"implementation": "group_shared"}, False),
        ({"pass": "forward"}, False),
        ({"implementation": "group_shared/*", "labels": 32769}, False),
        ({"mode": "hot"}, False),
        ({"pattern": "zipf"}, False),
        ({"group_size": 64, "fan_in": 32, "batch": 256, "dim": 768}, True),
        ({"batch": 1}, False),
    ],
)
def test_every_key_that_is_given_must_match(entry: dict[str, object], matches: bool) -> None:
    assert Match.model_validate(entry).matches(CASE) is matches


def test_one_file_for_both(tmp_path: Path) -> None:
    file = written(tmp_path, """
[[tolerance]]
implementation = "group_shared/*"
tolerance = "8%"
[[tolerance]]
tolerance = 0.01
[[quarantine]]
implementation = "group_shared/triton"
until = 2026-12-31
why = "issue 31"
""")  # fmt: skip
    policy = load(0.03, file, file)
    assert policy.tolerance(CASE) == pytest.approx(0.08)
    assert policy.tolerance(Case("dense/torch", "forward", s.point(), "cold", "cuda")) == pytest.approx(0.01)
    found = policy.quarantine(CASE)
    assert found is not None
    assert (found.until, found.why) == (date(2026, 12, 31), "issue 31")
    assert load(0.03).tolerance(CASE) == 0.03
    assert load(0.03, file).quarantine(CASE) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[tolerance]", "gate.toml: not a TOML file"),
        ("[[tolerances]]\nx = 1", r"unknown table 'tolerances'; known: \[\[tolerance\]\], \[\[quarantine\]\]"),
        ("tolerance = 3", r"\[\[tolerance\]\]: input should be a valid list, got 3"),
        ("[[tolerance]]\nimplementation = 'a/b'", r"\[\[tolerance\]\] 1: tolerance is missing"),
        ("[[tolerance]]\ntolerance = '3%'\nlabel = 3",
         r"\[\[tolerance\]\] 1: unknown key 'label'; known: implementation, pass, mode, dtype, pattern, batch, dim, labels"),
        ("[[tolerance]]\ntolerance = '3%'\n[[tolerance]]\ntolerance = 'much'",
         r"\[\[tolerance\]\] 2, tolerance: not a share from 0% up to 100%, such as 3% or 0.03, got 'much'"),
        ("[[tolerance]]\ntolerance = 1.5", "not a share from 0% up to 100%"),
        ("[[tolerance]]\ntolerance = true", "not a share, such as 3% or 0.03, got True"),
        ("[[tolerance]]\ntolerance = '3%'\npass = 'sideways'", "pass: input should be 'forward', 'grad_input'"),
        ("[[tolerance]]\ntolerance = '3%'\nlabels = '10'", "labels: input should be a valid integer, got '10'"),
        ("[[quarantine]]\nwhy = 'x'", "until is missing"),
        ("[[quarantine]]\nuntil = 2026-12-31", "why is missing"),
        ("[[quarantine]]\nuntil = 2026-12-31\nwhy = ''", "why: string should have at least 1 character"),
        ("[[quarantine]]\nuntil = '2026-12-31'\nwhy = 'x'",
         "until: not a day without quotes, such as 2026-12-31, got '2026-12-31'"),
        ("[[quarantine]]\nuntil = 2026-12-31T10:00:00\nwhy = 'x'", "until: not a day without quotes"),
    ],
)  # fmt: skip
def test_slips_are_named(tmp_path: Path, text: str, words: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError, match=words) as e:
        load(0.03, file, file)
    assert str(e.value).startswith(f"{file}: ")
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml: no such file"):
        load(0.03, quarantine=tmp_path / "nowhere.toml")


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), (" 2.5 % ", 0.025), ("0.03", 0.03), ("0", 0.0)])
def test_a_share(text: str, value: float) -> None:
    assert parse_share(text) == pytest.approx(value)
