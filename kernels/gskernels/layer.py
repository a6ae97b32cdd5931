"""The parameters of one output layer, in the layout its family computes with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gskernels.topology import GroupTopology


@dataclass(frozen=True)
class Layer:
    """What every pass of every implementation takes besides its activations.

    The layout decides what `weight` means:

    - ``dense``: `weight` [L, D]
    - ``bottleneck``: `weight` [L, r] after `down` [r, D]
    - ``masked``: `weight` [L, D], of which only the inputs that `topology` names count
    - ``sparse``: `weight` [L, K]; column k of label l multiplies input ``topology.indices[l // G, k]``

    All tensors share one dtype (fp32, fp16 or bf16) and one device.
    """

    weight: Tensor
    topology: GroupTopology | None = None
    down: Tensor | None = None  # [r, D], bottleneck only
    bias: Tensor | None = None  # [L]

    @property
    def labels(self) -> int:
        return self.weight.shape[0]

    @property
    def sparse(self) -> GroupTopology:
        """The topology of a sparse or masked layer. Raises ValueError for a layout without one."""
        if self.topology is None:
            raise ValueError("this layer has no topology: it is dense or a bottleneck")
        return self.topology

    def rows(self, start: int, stop: int) -> Layer:
        """The layer of labels [start, stop); `start` must begin a group."""
        return replace(
            self,
            weight=self.weight[start:stop],
            topology=None if self.topology is None else self.topology.rows(start, stop),
            bias=None if self.bias is None else self.bias[start:stop],
        )
