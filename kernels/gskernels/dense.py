"""dense/torch: the full matrix through the BLAS library. weight [L, D]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gskernels.layer import Layer


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    return F.linear(x, layer.weight, layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    return grad_out @ layer.weight


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, D]."""
    return grad_out.t() @ x


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw)."""
    return grad_input(grad_out, layer), grad_weight(grad_out, x, layer)
