"""When to rewire, and how much."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Every `interval` steps, a share of slots that decays from `initial` to zero at step `end`.

    ``fraction(step) = initial / 2 * (1 + cos(pi * step / end))`` (RigL, Evci et al. 2020). Raises ValueError for an
    interval or end below 1, or an initial fraction outside (0, 1].
    """

    interval: int
    initial: float
    end: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")
        if self.end < 1:
            raise ValueError(f"end must be at least 1 step, got {self.end}")
        if not 0 < self.initial <= 1:
            raise ValueError(f"initial must lie in (0, 1], got {self.initial}")

    def due(self, step: int) -> bool:
        """Whether step `step` (counted from 0) rewires: each `interval`-th one after step 0 and before `end`."""
        return 0 < step < self.end and step % self.interval == 0

    def fraction(self, step: int) -> float:
        """The share of slots to drop at `step`: `initial` at step 0, half of it at end / 2, 0 from `end` on."""
        if step >= self.end:
            return 0.0
        return self.initial / 2 * (1 + math.cos(math.pi * max(step, 0) / self.end))
