"""What a gate tolerates: tolerances of single cases and a quarantine, read strictly from TOML.

    [[tolerance]]                          # the first entry that matches a case counts
    implementation = "fixed_fan_in/*"      # a name or glob; any key left out matches everything
    pass = "backward"
    labels = 2_097_152
    tolerance = "8%"

    [[quarantine]]                         # measured and shown, but a slowdown does not fail the gate ...
    implementation = "fixed_fan_in/csr"
    until = 2026-12-31                     # ... up to and including this day
    why = "cuSPARSE falls into a slow mode; issue 31"

Both tables may stand in one file. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gsbench.case import AXES, SHARE_AXES, Case
from gsbench.errors import UserError
from gsbench.share import parse_share
from gsbench.suite import PassName, Share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SIZES = Annotated[int, Field(strict=True, ge=1)] | None


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("not a share, such as 3% or 0.03")
    return parse_share(str(value))


def _day(value: object) -> date:
    if not isinstance(value, date) or isinstance(value, datetime):
        raise ValueError("not a day without quotes, such as 2026-12-31")
    return value


class Match(BaseModel):
    """Which cases an entry speaks of: every key that is given must match."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    implementation: str = "*"
    pass_: PassName | None = Field(default=None, alias="pass")
    mode: Literal["cold", "hot", "graph", "host"] | None = None
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    pattern: Literal["uniform", "ordered", "zipf", "clustered", "banked"] | None = None
    batch: SIZES = None
    dim: SIZES = None
    labels: SIZES = None
    fan_in: SIZES = None
    group_size: SIZES = None
    head_share: Share | None = None

    def matches(self, case: Case) -> bool:
        point = case.point
        values = {"pass_": case.pass_, "mode": case.mode, "dtype": point.dtype, "pattern": point.pattern}
        values |= {axis: getattr(point.shape, axis) for axis in (*AXES, *SHARE_AXES)}
        wanted = {name: getattr(self, name) for name in values}
        return fnmatchcase(case.implementation, self.implementation) and all(
            want is None or want == values[name] for name, want in wanted.items()
        )


class Tolerance(Match):
    tolerance: Annotated[float, BeforeValidator(_share)]


class Quarantine(Match):
    until: Annotated[date, BeforeValidator(_day)]  # the last day on which it excuses
    why: Annotated[str, Field(strict=True, min_length=1)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: list[Tolerance] = []
    quarantine: list[Quarantine] = []


@dataclass(frozen=True)
class Policy:
    """What a gate tolerates. `default` holds where no entry matches; 0.03 = 3 %."""

    default: float
    tolerances: tuple[Tolerance, ...] = ()
    quarantines: tuple[Quarantine, ...] = ()

    def tolerance(self, case: Case) -> float:
        return next((entry.tolerance for entry in self.tolerances if entry.matches(case)), self.default)

    def quarantine(self, case: Case) -> Quarantine | None:
        """The entry that excuses the case for the longest."""
        return max((q for q in self.quarantines if q.matches(case)), key=lambda q: q.until, default=None)

    def idle(self, cases: Iterable[Case]) -> list[str]:
        """Entries that match none of the cases, in words: as likely a slip of the pen as a case that is gone."""
        known = list(cases)
        tables: tuple[tuple[str, tuple[Match, ...]], ...] = (
            ("tolerance", self.tolerances), ("quarantine", self.quarantines),
        )  # fmt: skip
        return [
            f"[[{name}]] {number} ({_shown(entry)}) matches no case of the gate"
            for name, entries in tables
            for number, entry in enumerate(entries, 1)
            if not any(entry.matches(case) for case in known)
        ]


def load(default: float, tolerances: Path | None = None, quarantine: Path | None = None) -> Policy:
    """A policy of these files; one may serve as both. Raises UserError that names file, entry, key and what is allowed."""
    files = {path: _read(path) for path in (tolerances, quarantine) if path is not None}
    return Policy(
        default,
        tuple(files[tolerances].tolerance) if tolerances else (),
        tuple(files[quarantine].quarantine) if quarantine else (),
    )


def _read(path: Path) -> _File:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise UserError(f"{path}: not a TOML file: {e}") from None
    try:
        return _File.model_validate(data)
    except ValidationError as e:
        raise UserError(f"{path}: " + "; ".join(_in_words(dict(error)) for error in e.errors()[:3])) from None


def _in_words(error: dict[str, Any]) -> str:
    """One fault: "[[quarantine]] 2, until: not a day ..., got '31 December'"."""
    table, *rest = error["loc"]
    models: dict[str, type[Match]] = {"tolerance": Tolerance, "quarantine": Quarantine}
    if table not in models:
        return f"unknown table {table!r}; known: [[tolerance]], [[quarantine]]"
    place = f"[[{table}]] {int(rest[0]) + 1}" if rest else f"[[{table}]]"
    key = ".".join(map(str, rest[1:]))
    if error["type"] == "extra_forbidden":
        known = ", ".join(field.alias or name for name, field in models[table].model_fields.items())
        return f"{place}: unknown key {key!r}; known: {known}"
    if error["type"] == "missing":
        return f"{place}: {key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}{', ' + key if key else ''}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _shown(entry: Match) -> str:
    given = entry.model_dump(by_alias=True, include=set(Match.model_fields), exclude_unset=True)
    return ", ".join(f"{key} = {value}" for key, value in given.items()) or "every case"
