"""fixed_fan_in/csr: torch.sparse CSR products, cuSPARSE on CUDA and MKL on the CPU. weight [L, K].

    Y^T = A X^T,  dX^T = A^T dY^T,  dw = (dY^T X) sampled at A's places

A is [L, D] with K entries a row. Its pattern and that of its transpose are made once a topology
(`gskernels.fixed_fan_in.patterns`); what is timed permutes the values and multiplies. Labels go in chunks: the
transposed pieces of Y and dY do not grow with L, and row pointers stay 32-bit.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gskernels.fixed_fan_in import Pattern, patterns
from gskernels.layer import Layer


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    inputs = x.t().contiguous()  # [D, B]
    for pattern in patterns(layer.sparse):
        y[:, pattern.labels] = (_matrix(pattern, layer.weight[pattern.labels], layer.sparse.dim) @ inputs).t()
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over chunks is taken in fp32 and rounded once."""
    total = torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)
    for pattern in patterns(layer.sparse):
        total += _transposed(pattern, layer.weight[pattern.labels]) @ _block(grad_out, pattern)
    return total.t().to(grad_out.dtype).contiguous()


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    for pattern in patterns(layer.sparse):
        grad[pattern.labels] = _sampled(pattern, _block(grad_out, pattern), x)
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw) from one read of grad_out."""
    total = torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    for pattern in patterns(layer.sparse):
        block = _block(grad_out, pattern)
        grad[pattern.labels] = _sampled(pattern, block, x)
        total += _transposed(pattern, layer.weight[pattern.labels]) @ block
    return total.t().to(grad_out.dtype).contiguous(), grad


def _csr(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # "Sparse CSR tensor support is in beta state", once a process
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=False)


def _matrix(pattern: Pattern, values: Tensor, dim: int) -> Tensor:
    """A [n, D] with values [n, K]."""
    return _csr(pattern.rows, pattern.columns, values.reshape(-1), (values.shape[0], dim))


def _transposed(pattern: Pattern, values: Tensor) -> Tensor:
    """A^T [D, n] with A's values [n, K]."""
    size = (pattern.transposed_rows.numel() - 1, values.shape[0])
    return _csr(pattern.transposed_rows, pattern.transposed_columns, pattern.transposed_values(values), size)


def _block(grad_out: Tensor, pattern: Pattern) -> Tensor:
    return grad_out[:, pattern.labels].t().contiguous()  # [n, B]


def _sampled(pattern: Pattern, block: Tensor, x: Tensor) -> Tensor:
    """[n, K]: block [n, B] @ x [B, D] at the places of A."""
    fan_in = pattern.columns.numel() // block.shape[0]
    places = _matrix(pattern, block.new_zeros(block.shape[0], fan_in), x.shape[1])
    sampled: Tensor = torch.sparse.sampled_addmm(places, block, x.contiguous(), beta=0.0)
    return sampled.values().view(block.shape[0], fan_in)
