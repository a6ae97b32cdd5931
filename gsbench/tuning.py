"""What `gsbench tune` measures, and how it shows what it found. Pure: no torch, no clock, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gsbench import plan as planning
from gsbench.case import AXES, Case, Point
from gsbench.errors import NothingMeasured, UserError
from gsbench.suite import PATTERNS, Suite, validate
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FLOATS, FORWARD, GRAD_INPUT, GRAD_WEIGHT, Implementation

DEFAULT_POINT = Shape(batch=256, dim=768, labels=655_360, fan_in=64, group_size=32)
_KEYS = (*AXES, "dtype", "pattern")


def suite_at(texts: Sequence[str]) -> Suite:
    """Every pass at the points that the texts give, such as "batch=64,group_size=16"; what one leaves out is as in
    DEFAULT_POINT, bf16 and uniform. Raises UserError that names the text, the key and what is allowed."""
    points, dtypes, patterns = [], [], []
    for text in texts:
        given = dict(_pair(text, part) for part in text.split(",") if part.strip())
        if not given:
            raise UserError(f"--at {text!r}: write KEY=VALUE, such as 'batch=64,group_size=16'; keys: {', '.join(_KEYS)}")
        dtypes.append(_one_of(text, "dtype", given.pop("dtype", "bf16"), FLOATS))
        patterns.append(_one_of(text, "pattern", given.pop("pattern", "uniform"), PATTERNS))
        points.append({"name": text, **asdict(DEFAULT_POINT), **{axis: _number(text, v) for axis, v in given.items()}})
    if len({*zip(dtypes, patterns, strict=True)}) > 1:
        raise UserError("--at: all points of one call have the same dtype and pattern; call again for the others")
    data = {
        "title": "points",
        "passes": [FORWARD, BACKWARD],
        "points": points,
        "dtypes": dtypes[:1],
        "patterns": patterns[:1],
    }
    return validate(data, "--at")


def _pair(text: str, part: str) -> tuple[str, str]:
    key, separator, value = (piece.strip() for piece in part.partition("="))
    if not separator or key not in _KEYS:
        raise UserError(f"--at {text!r}: {part.strip()!r} is no KEY=VALUE with one of the keys {', '.join(_KEYS)}")
    return key, value


def _one_of(text: str, key: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise UserError(f"--at {text!r}: {key}={value!r}: allowed are {', '.join(allowed)}")
    return value


def _number(text: str, value: str) -> int:
    try:
        return int(value.replace("_", ""))
    except ValueError:
        raise UserError(f"--at {text!r}: takes whole numbers, got {value!r}") from None


def points_of(suite: Suite, implementations: Sequence[Implementation], only: Sequence[str]) -> dict[Point, list[Case]]:
    """The cases to tune, point by point, the default point first.

    Of implementations that have something to choose (`Implementation.tuned`). With `backward` come the two gradients,
    which a layer asks for where only one is wanted. Raises UserError for names that match nothing, NothingMeasured where
    nothing is left.
    """
    passes: list[str] = [*suite.passes]
    if BACKWARD in passes:
        passes += [pass_ for pass_ in (GRAD_INPUT, GRAD_WEIGHT) if pass_ not in passes]
    wanted = suite.model_copy(update={"passes": passes, "modes": ["cold"]})
    points: dict[Point, list[Case]] = {}
    tuned = {i.name for i in implementations if i.tuned}
    for case in planning.build(wanted, "cuda", implementations, only).cases:
        if case.implementation in tuned:
            points.setdefault(case.point, []).append(case)
    if not points:
        raise NothingMeasured(f"nothing to choose here; tuned are {', '.join(sorted(tuned))}")
    return points


# ---- what is shown ----------------------------------------------------------------------------------------------


def told_apart(config: Mapping[str, int], candidates: Iterable[Mapping[str, int]]) -> str:
    """The configuration in words, less what all candidates have in common."""
    every = list(candidates)
    differing = [key for key in config if any(other.get(key) != config[key] for other in every)]
    return " ".join(f"{key}={config[key]}" for key in differing) or "the only one"


def trial_row(trial: Any) -> dict[str, Any]:
    """What a `gskernels.trials.Trial` found: kernel, shape class, candidates that ran, the winner and how it compares."""
    _, kernel, shape = trial.key.split("|")
    won, second = trial.winner, trial.runner_up
    return {
        "kernel": kernel, "shape class": shape, "ran": sum(ms != float("inf") for ms in trial.milliseconds),
        "candidates": len(trial.candidates), "won": told_apart(trial.config, trial.candidates),
        "ms": _finite(trial.milliseconds[won]), "runner-up ms": None if second is None else trial.milliseconds[second],
        "default ms": _finite(trial.milliseconds[0]), "gain": trial.gain,
    }  # fmt: skip


FIGURES = ("ms", "runner-up", "default", "gain")  # columns of times, in milliseconds, and of what the winner saves


def trial_cells(trial: Any) -> list[str]:
    """A row of the table: kernel, shape class, how many ran, the winner, FIGURES."""
    row = trial_row(trial)
    times = [f"{row[key]:.4f}" if row[key] is not None else "-" for key in ("ms", "runner-up ms", "default ms")]
    gain = "-" if row["gain"] is None else f"{row['gain']:.1%}"
    return [row["kernel"], row["shape class"], f"{row['ran']} of {row['candidates']}", row["won"], *times, gain]


def _finite(ms: float) -> float | None:
    return None if ms == float("inf") else ms
