"""The sizes that decide how a group-shared layer is computed: what a plan is a function of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from gskernels.layer import Layer

P = TypeVar("P", bound="Problem")


@dataclass(frozen=True)
class Problem:
    """B, D, L, K, G and the dtype of x, weight and outputs."""

    batch: int
    dim: int
    labels: int
    fan_in: int
    group_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls: type[P], batch: int, layer: Layer) -> P:
        """Raises ValueError for a layer without a topology."""
        topology = layer.sparse
        return cls(batch, topology.dim, topology.labels, topology.fan_in, topology.group_size, layer.weight.dtype)

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def groups(self) -> int:
        return -(-self.labels // self.group_size)
