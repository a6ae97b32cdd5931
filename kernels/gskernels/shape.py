"""The sizes of a layer, and what functions of them look like. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """One point of the sweep axes: B, D, L, K, G, and the share of the labels in a dense head."""

    batch: int
    dim: int
    labels: int
    fan_in: int
    group_size: int
    head_share: float = 0.0

    @property
    def head(self) -> int:
        """H, the labels of the head; only head-tail layers have one."""
        return round(self.head_share * self.labels)

    @property
    def tail(self) -> Shape:
        """Of the layer over the other labels."""
        return replace(self, labels=self.labels - self.head, head_share=0.0)

    @property
    def bottleneck_rank(self) -> int:
        """r of the FLOPs-matched bottleneck D -> r -> L: r (D + L) = K L, to the nearest multiple of 8."""
        exact = self.fan_in * self.labels / (self.dim + self.labels)
        return max(8, round(exact / 8) * 8)


Limit = Callable[[Shape, str, str, str], str | None]
Workspace = Callable[[Shape, str, int], int]
