"""fixed_fan_in/embedding_bag: a label is a weighted bag of rows of X^T, an input is an "embedding". weight [L, K].

forward is F.embedding_bag, and grad_weight the aten operator of its backward, called directly so that it can be had
alone. grad_input is F.embedding_bag too, over the transposed bags (an input is a weighted bag of the labels that read
it): on the CPU 9 times faster than aten's _embedding_bag_dense_backward, which sorts the indices in each call.
The bags are made once a topology (`gskernels.fixed_fan_in.patterns`). Labels go in chunks: the transposed pieces of Y
and dY do not grow with L.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gskernels.fixed_fan_in import Pattern, patterns
from gskernels.layer import Layer

MODE_SUM, NO_PADDING = 0, -1


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    columns = x.t().contiguous()  # [D, B]
    for pattern in patterns(layer.sparse):
        weight = layer.weight[pattern.labels].reshape(-1)
        y[:, pattern.labels] = _bags(pattern.columns, columns, pattern.rows, weight).t()
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over chunks is taken in fp32 and rounded once."""
    total = torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)
    for pattern in patterns(layer.sparse):
        total += _columns_gradient(pattern, _block(grad_out, pattern), layer)
    return total.t().to(grad_out.dtype).contiguous()


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for pattern in patterns(layer.sparse):
        _weights_gradient(pattern, _block(grad_out, pattern), columns, grad)
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw) from one read of grad_out."""
    total = torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for pattern in patterns(layer.sparse):
        block = _block(grad_out, pattern)
        _weights_gradient(pattern, block, columns, grad)
        total += _columns_gradient(pattern, block, layer)
    return total.t().to(grad_out.dtype).contiguous(), grad


def _bags(index: Tensor, table: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of each bag's rows of `table`; bag i holds the indices rows[i]:rows[i + 1]."""
    return F.embedding_bag(index, table, rows, mode="sum", per_sample_weights=weight, include_last_offset=True)


def _block(grad_out: Tensor, pattern: Pattern) -> Tensor:
    return grad_out[:, pattern.labels].t().contiguous()  # [n, B]


def _columns_gradient(pattern: Pattern, block: Tensor, layer: Layer) -> Tensor:
    """[D, B]."""
    weight = pattern.transposed_values(layer.weight[pattern.labels])
    return _bags(pattern.transposed_columns, block, pattern.transposed_rows, weight)


def _weights_gradient(pattern: Pattern, block: Tensor, columns: Tensor, grad: Tensor) -> None:
    """Writes the labels' rows of grad [L, K]."""
    labels, fan_in = block.shape[0], grad.shape[1]
    bag = torch.arange(labels, dtype=torch.int32, device=block.device).repeat_interleave(fan_in)
    gradient: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        block, columns, pattern.columns, pattern.rows[:-1], bag, MODE_SUM, NO_PADDING
    )
    grad[pattern.labels] = gradient.view(labels, fan_in)
