"""bottleneck/torch: D -> r -> L through the BLAS library. down [r, D], weight [L, r].

What a training step keeps of forward is the hidden activation; `saved` computes it, and the passes that need it
take it as ``hidden``, so that timing a backward does not pay for recomputing forward's work.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from gskernels.layer import Layer


def _down(layer: Layer) -> Tensor:
    if layer.down is None:
        raise ValueError("a bottleneck layer needs `down` [r, D]")
    return layer.down


def saved(x: Tensor, layer: Layer) -> dict[str, Tensor]:
    """What forward keeps for grad_weight and backward: hidden [B, r]."""
    return {"hidden": F.linear(x, _down(layer))}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    return F.linear(F.linear(x, _down(layer)), layer.weight, layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    return (grad_out @ layer.weight) @ _down(layer)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, *, hidden: Tensor | None = None) -> Tensor:
    """grad_out [B, L], x [B, D] -> the gradient of `weight` alone, [L, r]."""
    return grad_out.t() @ (saved(x, layer)["hidden"] if hidden is None else hidden)


def backward(
    grad_out: Tensor, x: Tensor, layer: Layer, *, hidden: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx [B, D], dw [L, r], d_down [r, D]) from two reads of grad_out: dx and d_down share ``grad_out @ weight``."""
    grad_hidden = grad_out @ layer.weight  # [B, r]
    return grad_hidden @ _down(layer), grad_weight(grad_out, x, layer, hidden=hidden), grad_hidden.t() @ x
