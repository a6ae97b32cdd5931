"""From a suite to the list of cases. Pure: no torch, no clock, no files."""

from __future__ import annotations

import fnmatch
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gsbench.case import AXES, SHARE_AXES, Case, Point
from gsbench.costs import Cost, cost
from gsbench.errors import NothingMeasured, UserError
from gsbench.passes import PASSES
from gsbench.suite import Suite
from gskernels.shape import Shape
from gskernels.table import Implementation

MAX_CASES = 20_000


@dataclass(frozen=True)
class Plan:
    """What to measure, and what cannot be measured here, with the reason in words."""

    cases: list[Case]
    unsupported: list[tuple[Case, str]]

    def blocks(self) -> list[list[Case]]:
        """Cases of one point together (they share operands and are timed interleaved); points in seeded random order."""
        points: dict[Point, list[Case]] = {}
        for case in self.cases:
            points.setdefault(case.point, []).append(case)
        blocks = list(points.values())
        random.Random(0).shuffle(blocks)
        return blocks


def build(suite: Suite, device: str, implementations: Sequence[Implementation], only: Sequence[str] = ()) -> Plan:
    """Every case of the suite that makes sense (`Implementation.belongs`).

    Raises UserError for an unknown name or a grid above MAX_CASES, NothingMeasured if no case can run.
    """
    chosen = select(implementations, suite.implementations, only)
    count = (
        suite.grid_size() * len(suite.patterns) * len(suite.dtypes) * len(suite.passes) * len(suite.modes) * len(chosen)
    )
    if count > MAX_CASES:
        raise UserError(f"this grid has {count:,} cases, over the limit of {MAX_CASES:,}; narrow it with --set or --only")
    plan, left_out = Plan([], []), set()
    for shape, pattern, dtype in itertools.product(_shapes(suite), suite.patterns, suite.dtypes):
        point = Point(shape, pattern, dtype)
        for pass_, mode, implementation in itertools.product(suite.passes, suite.modes, chosen):
            if not implementation.belongs(PASSES[pass_].runs, shape):
                left_out.add(PASSES[pass_].unsupported(implementation, shape, dtype, device) or f"it has no {pass_} pass")
                continue
            case = Case(implementation.name, pass_, point, mode, device)
            reason = PASSES[pass_].unsupported(implementation, shape, dtype, device)
            if mode == "graph" and device != "cuda":
                reason = reason or "CUDA graphs need a CUDA device"
            if reason is None:
                plan.cases.append(case)
            else:
                plan.unsupported.append((case, reason))
    if not plan.cases:
        reasons = sorted({reason for _, reason in plan.unsupported} or left_out)
        raise NothingMeasured(f"no case of this suite runs on {device}: " + "; ".join(reasons[:6]))
    return plan


def select(implementations: Sequence[Implementation], *filters: Sequence[str]) -> list[Implementation]:
    """Those whose names match a pattern of every non-empty filter. Raises UserError for a pattern that matches none."""
    chosen = list(implementations)
    for patterns in filters:
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(i.name, pattern) for i in implementations):
                known = ", ".join(i.name for i in implementations)
                raise UserError(f"no implementation matches {pattern!r}; known: {known}")
        if patterns:
            chosen = [i for i in chosen if any(fnmatch.fnmatchcase(i.name, p) for p in patterns)]
    if not chosen:
        raise UserError("the suite's implementations and --only have none in common")
    return chosen


def costs(plan: Plan, implementations: Sequence[Implementation]) -> list[tuple[Case, Cost]]:
    """The modelled cost of every planned case."""
    named = {i.name: i for i in implementations}
    return [(c, cost(named[c.implementation], c.pass_, c.point.shape, c.point.dtype)) for c in plan.cases]


def _shapes(suite: Suite) -> list[Shape]:
    shapes = [Shape(p.batch, p.dim, p.labels, p.fan_in, p.group_size, p.head_share) for p in suite.points]
    if suite.axes is not None:
        axes = (*AXES, *SHARE_AXES)
        values = [getattr(suite.axes, axis) for axis in axes]
        if suite.grid == "cross":
            shapes += [Shape(*combination) for combination in itertools.product(*values)]
        else:
            default = Shape(**{axis: v[0] for axis, v in zip(axes, values, strict=True)})
            shapes.append(default)
            for axis, v in zip(axes, values, strict=True):
                shapes += [replace(default, **{axis: value}) for value in v[1:]]
    return list(dict.fromkeys(shapes))
