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
    - ``head_tail``: `head` [H, D] dense for the first H labels; `weight` [L - H, K] and `topology` sparse for the others

    All tensors share one dtype (fp32, fp16 or bf16) and one device.
    """

    weight: Tensor
    topology: GroupTopology | None = None
    down: Tensor | None = None  # [r, D], bottleneck only
    bias: Tensor | None = None  # [L]
    head: Tensor | None = None  # [H, D], head_tail only

    @property
    def labels(self) -> int:
        return self.head_labels + self.weight.shape[0]

    @property
    def head_labels(self) -> int:
        """H; 0 for a layer without a head."""
        return 0 if self.head is None else self.head.shape[0]

    @property
    def sparse(self) -> GroupTopology:
        """The topology of a sparse or masked layer. Raises ValueError for a layout without one."""
        if self.topology is None:
            raise ValueError("this layer has no topology: it is dense or a bottleneck")
        return self.topology

    def rows(self, start: int, stop: int) -> Layer:
        """The layer of labels [start, stop); `start` must begin a group. Of a head-tail layer: a dense or a sparse one.

        Raises ValueError for labels on both sides of the end of a head.
        """
        bias, first = None if self.bias is None else self.bias[start:stop], self.head_labels
        if self.head is not None and start < first < stop:
            raise ValueError(f"[{start}, {stop}) must end or begin where the head ends, at {first}")
        if self.head is not None and stop <= first:
            return Layer(self.head[start:stop], bias=bias)
        start, stop = start - first, stop - first
        topology = None if self.topology is None else self.topology.rows(start, stop)
        return replace(self, weight=self.weight[start:stop], topology=topology, bias=bias, head=None)
