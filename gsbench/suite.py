"""Suites: declarative sweeps, read strictly. Pure; imports no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gsbench.case import AXES, MODES, PASSES, SHARE_AXES
from gsbench.errors import UserError
from gskernels.table import FLOATS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATTERNS = ("uniform", "ordered", "zipf", "clustered", "banked")
Positive = Annotated[int, Field(strict=True, ge=1)]
Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
if TYPE_CHECKING:
    PassName = str
else:
    PassName = Literal[PASSES]
_STRICT = ConfigDict(extra="forbid", frozen=True)


class Axes(BaseModel):
    """Values of each axis. The first is the default point's."""

    model_config = _STRICT

    batch: list[Positive] = Field(min_length=1)
    dim: list[Positive] = Field(min_length=1)
    labels: list[Positive] = Field(min_length=1)
    fan_in: list[Positive] = Field(min_length=1)
    group_size: list[Positive] = Field(min_length=1)
    head_share: list[Share] = Field(default=[0.0], min_length=1, description="share of the labels in a dense head")


class NamedPoint(BaseModel):
    """One point given outright, such as a published shape."""

    model_config = _STRICT

    name: str
    batch: Positive
    dim: Positive
    labels: Positive
    fan_in: Positive
    group_size: Positive
    head_share: Share = 0.0


class TimingSettings(BaseModel):
    """When a case has been sampled enough (seconds; `precision` is the CI's half-width over the median)."""

    model_config = _STRICT

    budget_s: float = Field(default=1.0, gt=0, description="time budget of one case's samples")
    precision: float = Field(default=0.005, gt=0, lt=1)
    min_samples: int = Field(default=20, ge=5)
    max_samples: int = Field(default=2000, ge=5)
    warmup_s: float = Field(default=0.05, ge=0)
    timeout_s: float = Field(default=180.0, gt=0, description="silence of the worker after which it is replaced")


class Suite(BaseModel):
    """A sweep. `grid`: "star" varies one axis at a time around the default point, "cross" takes every combination."""

    model_config = _STRICT

    title: str
    passes: list[PassName] = Field(min_length=1)
    implementations: list[str] = Field(default=["*"], min_length=1, description="names or globs")
    dtypes: list[Literal["fp32", "fp16", "bf16"]] = Field(default=["bf16"], min_length=1)
    patterns: list[Literal["uniform", "ordered", "zipf", "clustered", "banked"]] = Field(default=["uniform"], min_length=1)
    modes: list[Literal["cold", "hot", "graph", "host"]] = Field(default=["cold"], min_length=1)
    grid: Literal["star", "cross"] = "star"
    axes: Axes | None = None
    points: list[NamedPoint] = []
    timing: TimingSettings = TimingSettings()
    energy: bool = Field(default=False, description="energy per call over a window of a second (NVML)")

    @field_validator("passes", "implementations", "dtypes", "patterns", "modes")
    @classmethod
    def _distinct(cls, values: list[str]) -> list[str]:
        if len(set(values)) != len(values):
            raise ValueError("a value is given twice")
        return values

    @model_validator(mode="after")
    def _has_points(self) -> Suite:
        if self.axes is None and not self.points:
            raise ValueError("needs [axes], or [[points]], or both")
        return self

    def grid_size(self) -> int:
        """Number of points, counted without listing them."""
        if self.axes is None:
            return len(self.points)
        lengths = [len(getattr(self.axes, axis)) for axis in (*AXES, *SHARE_AXES)]
        grid = math.prod(lengths) if self.grid == "cross" else 1 + sum(n - 1 for n in lengths)
        return len(self.points) + grid


def suite_folder() -> Path:
    """suites/ of the checkout, or the copy inside the wheel."""
    checkout = Path(__file__).parent.parent / "suites"
    return checkout if checkout.is_dir() else Path(__file__).parent / "suites"


def suite_names() -> list[str]:
    return sorted(file.stem for file in suite_folder().glob("*.toml"))


def load_suite(name: str, device: str, overrides: list[str] | None = None) -> tuple[Suite, dict[str, Any]]:
    """The suite of that name or file path, its [cpu] table applied on the CPU, then `--set` overrides.

    Returns the suite and what the run's manifest keeps of it: {"name", "file", "scaled_for_cpu", "overrides", ...}.
    Raises UserError that names the file, the key and what is allowed.
    """
    file = Path(name)
    if not (file.suffix == ".toml" or file.exists()):
        file = suite_folder() / f"{name}.toml"
        if not file.exists():
            raise UserError(f"unknown suite {name!r}; known: {', '.join(suite_names())}; or give the path of a .toml file")
    try:
        data = tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: no such suite file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise UserError(f"{file}: not a TOML file: {e}") from None
    scaled = data.pop("cpu", {})
    if not isinstance(scaled, dict):
        raise UserError(f"{file}: cpu: must be a table of overrides")
    validate(data, str(file))  # a fault anywhere shows on every machine
    on_cpu = merged(data, scaled)
    validate(on_cpu, f"{file} [cpu]")
    if device == "cpu":
        data = on_cpu
    for text in overrides or []:
        _override(data, text)
    suite = validate(data, str(file))
    resolved = {
        "name": file.stem, "file": file.name, "scaled_for_cpu": device == "cpu" and bool(scaled),
        "overrides": overrides or [], **suite.model_dump(mode="json"),
    }  # fmt: skip
    return suite, resolved


_RESOLUTION = ("name", "file", "scaled_for_cpu", "overrides")  # what load_suite adds to a suite's own keys


def from_manifest(resolved: dict[str, Any], source: str) -> Suite:
    """The suite that `load_suite` resolved for a run. Raises UserError where the manifest's no longer fits."""
    return validate({key: value for key, value in resolved.items() if key not in _RESOLUTION}, source)


def validate(data: dict[str, Any], source: str) -> Suite:
    """Raises UserError: one line that names source, key, fault and, for an unknown key, the known ones."""
    try:
        suite = Suite.model_validate(data)
    except ValidationError as e:
        raise UserError(f"{source}: " + "; ".join(_in_words(dict(error)) for error in e.errors()[:3])) from None
    for dim, fan_in in _widest(suite):
        if fan_in > dim:
            raise UserError(f"{source}: fan_in={fan_in} exceeds dim={dim}; a label can read at most all inputs")
    for labels, group_size in _largest_groups(suite):
        if group_size > labels:
            raise UserError(f"{source}: group_size={group_size} exceeds labels={labels}")
    return suite


def _widest(suite: Suite) -> list[tuple[int, int]]:
    """(dim, fan_in) pairs that occur, the worst ones at least."""
    return [(p.dim, p.fan_in) for p in suite.points] + _extremes(suite, "dim", "fan_in")


def _largest_groups(suite: Suite) -> list[tuple[int, int]]:
    """(labels, group_size) pairs that occur, the worst ones at least."""
    return [(p.labels, p.group_size) for p in suite.points] + _extremes(suite, "labels", "group_size")


def _extremes(suite: Suite, limit: str, value: str) -> list[tuple[int, int]]:
    if suite.axes is None:
        return []
    limits, values = getattr(suite.axes, limit), getattr(suite.axes, value)
    if suite.grid == "cross":
        return [(min(limits), max(values))]
    return [(min(limits), values[0]), (limits[0], max(values))]  # a star leaves the default point on one axis only


def _in_words(error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "the suite"
    if error["type"] == "extra_forbidden":
        parts: dict[str, type[BaseModel]] = {"axes": Axes, "points": NamedPoint, "timing": TimingSettings}
        known = parts.get(str(error["loc"][0])) if len(error["loc"]) > 1 else None
        names = list(known.model_fields) if known else [*Suite.model_fields, "cpu"]
        return f"unknown key {place!r}; known: {', '.join(names)}"
    if error["type"] == "missing":  # whose input is all that surrounds it
        return f"{place} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}, got {error['input']!r}" if error["type"] != "value_error" else (
        f"{place}: {message}"
    )


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `over` says, table by table."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


_LISTS = {"passes": PASSES, "dtypes": FLOATS, "patterns": PATTERNS, "modes": MODES}
_SINGULAR = {"pass": "passes", "dtype": "dtypes", "pattern": "patterns", "mode": "modes"}


def _override(data: dict[str, Any], text: str) -> None:
    """Apply one --set KEY=V1,V2 in place. Raises UserError that lists the keys."""
    key, separator, values = text.partition("=")
    key = _SINGULAR.get(key.strip(), key.strip())
    items = [v.strip() for v in values.split(",") if v.strip()]
    timing = key.removeprefix("timing.")
    if not separator or not items:
        raise UserError(f"--set {text!r}: write KEY=VALUE or KEY=V1,V2, such as --set batch=64,256")
    if key in AXES:
        data.setdefault("axes", {})[key] = _numbers(text, items, int)
    elif key in SHARE_AXES:
        data.setdefault("axes", {})[key] = _numbers(text, items, float)
    elif key in _LISTS:
        unknown = [v for v in items if v not in _LISTS[key]]
        if unknown:
            raise UserError(f"--set {text!r}: {unknown[0]!r} is not one of {', '.join(_LISTS[key])}")
        data[key] = items
    elif key == "grid":
        data["grid"] = items[0]
    elif key.startswith("timing.") and timing in TimingSettings.model_fields:
        data.setdefault("timing", {})[timing] = _numbers(text, items, float)[0]
    else:
        known = [*AXES, *SHARE_AXES, *_SINGULAR, "grid", *(f"timing.{name}" for name in TimingSettings.model_fields)]
        raise UserError(f"--set {text!r}: unknown key {key!r}; known: {', '.join(known)}")


def _numbers(text: str, items: list[str], kind: Callable[[str], float]) -> list[float]:
    try:
        return [kind(item.replace("_", "")) for item in items]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"--set {text!r}: takes {what}, got {', '.join(items)!r}") from None
