"""How time grows: a power law through the points of a sweep, by least squares of the logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

FEWEST = 3  # points: two always lie on a line


@dataclass(frozen=True)
class Power:
    """y = factor * x ** exponent. error: standard error of the exponent."""

    exponent: float
    factor: float
    error: float

    def at(self, x: float) -> float:
        return float(self.factor * x**self.exponent)


def fit(points: Sequence[tuple[float, float]]) -> Power | None:
    """The power law of the points (x, y), all positive; None for fewer than three different x."""
    if len({x for x, _ in points}) < FEWEST:
        return None
    count = len(points)
    xs, ys = [log(x) for x, _ in points], [log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / count, sum(ys) / count
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    left = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Power(slope, exp(mean_y - slope * mean_x), sqrt(left / (count - 2) / spread))
