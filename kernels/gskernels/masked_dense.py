"""masked_dense/torch: simulated sparsity, the full matrix times a mask. weight [L, D].

What most published sparse-training code runs: the memory and the time of the dense layer, plus the mask. The mask
([L, D] bool) is made once a topology and kept with it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gskernels.layer import Layer


def _mask(layer: Layer) -> Tensor:
    return layer.sparse.memo("mask", layer.sparse.mask)


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    return F.linear(x, layer.weight * _mask(layer), layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    return grad_out @ (layer.weight * _mask(layer))


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, D], zero outside of the mask."""
    return (grad_out.t() @ x).mul_(_mask(layer))


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw)."""
    return grad_input(grad_out, layer), grad_weight(grad_out, x, layer)
