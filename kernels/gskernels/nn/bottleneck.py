"""BottleneckLinear: two dense layers, as many FLOPs as a sparse one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gskernels import bottleneck
from gskernels.fused import fused_loss
from gskernels.layer import Layer
from gskernels.nn.parameters import Device, dense_layer, fill_uniform, zero_bias
from gskernels.positives import Positives
from gskernels.ranking import topk
from gskernels.shape import Shape
from gskernels.steps import Targets, Updates


class BottleneckLinear(nn.Module):
    """D -> r -> L, both dense: the rival with as many parameters and FLOPs as a sparse layer of fan-in K.

    Parameters: `down` [r, D], `weight` [L, r], `bias` [L] or None. `down` starts uniform in +-sqrt(3/D), which keeps
    the scale of x, and `weight` in +-1/sqrt(r), so that the logits have that of the other layers.

    Args:
        dim, labels: D, L.
        fan_in: K of the layer to match: r (D + L) = K L, to the nearest multiple of 8 (`Shape.bottleneck_rank`).
        rank: r itself; `fan_in` is then ignored.

    Raises:
        ValueError: neither `fan_in` nor `rank`, or sizes below 1.
    """

    def __init__(
        self, dim: int, labels: int, fan_in: int | None = None, *, rank: int | None = None, bias: bool = True,
        device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if rank is None and fan_in is None:
            raise ValueError("a bottleneck needs fan_in, to match its FLOPs, or rank")
        if rank is None:
            rank = Shape(1, dim, labels, fan_in or 0, 1).bottleneck_rank
        if min(dim, labels, rank) < 1:
            raise ValueError(f"dim, labels and rank must be at least 1, got {dim}, {labels} and {rank}")
        self.dim, self.labels, self.rank = dim, labels, rank
        self.down = nn.Parameter(torch.empty(rank, dim, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(labels, rank, device=device, dtype=dtype))
        self.bias = zero_bias(bias, labels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both matrices anew and clear the bias."""
        fill_uniform(self.down, math.sqrt(3 / self.dim))
        fill_uniform(self.weight, 1 / math.sqrt(self.rank))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [*, D] in the dtype of the weights -> [*, L]."""
        return bottleneck.forward(x, Layer(self.weight, down=self.down, bias=self.bias))

    def loss(
        self, x: Tensor, targets: Targets, updates: Updates | None = None, *, guard: bool = False, check: bool = True
    ) -> Tensor:
        """The loss over all labels, in chunks of labels; see `gskernels.fused_loss`."""
        return fused_loss(x, Layer(self.weight, down=self.down, bias=self.bias), targets, updates, guard=guard, check=check)

    def topk(self, x: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """(values, labels), each [B, k], of the best labels of x [B, D]; see `gskernels.topk`."""
        return topk(x, Layer(self.weight, down=self.down, bias=self.bias), k, exclude)

    def to_dense(self) -> nn.Linear:
        """A dense layer of the same function; it holds [L, D]."""
        return dense_layer(self.weight @ self.down, self.bias)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, labels={self.labels}, rank={self.rank}, bias={self.bias is not None}"
