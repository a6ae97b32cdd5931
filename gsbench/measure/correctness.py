"""The correctness gate without timing: every implementation on small awkward shapes. Behind `gsbench verify`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gsbench.case import Point
from gsbench.measure import verify
from gsbench.measure.block import diagnose
from gsbench.measure.operands import Operands, bind
from gsbench.passes import PASSES
from gskernels.shape import Shape
from gskernels.table import Implementation

SHAPES = (
    Shape(64, 256, 4096, 32, 32),  # everything divides
    Shape(1, 64, 1000, 8, 8),  # batch of one
    Shape(33, 100, 1003, 33, 16),  # nothing divides; ragged last group
    Shape(16, 384, 515, 100, 1),  # per-label lists
    Shape(7, 96, 300, 96, 300),  # one group; every input read
    Shape(9, 64, 1003, 16, 8, head_share=0.1),  # a dense head; head-tail layers alone
)
SEEDS = (0, 1)


@dataclass(frozen=True)
class Result:
    """status: "passed", "failed" (or the exception's), "unsupported". worst: error over bound, the largest."""

    implementation: str
    pass_: str
    point: Point
    status: str
    detail: str
    worst: float | None = None


def verify_all(device: torch.device, implementations: Sequence[Implementation], dtypes: Sequence[str]) -> Iterator[Result]:
    """A result for every implementation, pass, shape and dtype, on two seeds with NaN-poisoned allocations."""
    for shape in SHAPES:
        for dtype in dtypes:
            point = Point(shape, "uniform", dtype)
            operands = Operands(point, device, SEEDS[0])
            for implementation in implementations:
                for pass_ in PASSES:
                    other = shape.head > 0 and implementation.layout != "head_tail"
                    if other or not implementation.belongs(PASSES[pass_].runs, shape):
                        continue
                    reason = PASSES[pass_].unsupported(implementation, shape, dtype, device.type)
                    if reason is not None:
                        yield Result(implementation.name, pass_, point, "unsupported", reason)
                    else:
                        yield _verify_one(operands, implementation, pass_, point)


def _verify_one(operands: Operands, implementation: Implementation, pass_: str, point: Point) -> Result:
    worst, name = 0.0, implementation.name
    try:
        for seed in SEEDS:
            operands.refill(seed)
            call = bind(implementation, pass_, operands)
            with verify.poisoned():
                outputs = call()
            wrong = verify.shapes_as_expected(pass_, operands, operands.layer(implementation), outputs)
            if wrong:
                return Result(name, pass_, point, "failed", wrong)
            for verdict in verify.check(pass_, operands, implementation, {name: outputs})[name]:
                if not verdict.passed:
                    return Result(name, pass_, point, "failed", str(verdict))
                worst = max(worst, verdict.error / verdict.bound)
    except Exception as e:
        status, reason = diagnose(e)
        return Result(name, pass_, point, status, reason)
    return Result(name, pass_, point, "passed", "", worst)
