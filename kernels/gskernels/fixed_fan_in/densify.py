"""fixed_fan_in/densify: scatter a chunk of labels to a dense block, then the BLAS product. weight [L, K].

D / K times the FLOPs, all of them in the fastest code there is. The dense block [n, D] holds CHUNK_BYTES, whatever
L is. scatter and gather take int64 indices only: they are made once a topology and kept with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gskernels import chunked
from gskernels.layer import Layer
from gskernels.steps import Outcome, Targets, Updates

# The dense block: in the last-level cache of a CPU; on CUDA large enough for the product to fill the device.
CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    for labels, index in _chunks(layer):
        torch.mm(x, _dense(layer, labels, index).t(), out=y[:, labels])
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over chunks is taken in fp32 and rounded once."""
    total = grad_out.new_zeros(grad_out.shape[0], layer.sparse.dim, dtype=torch.float32)
    for labels, index in _chunks(layer):
        _add_product(total, grad_out[:, labels], _dense(layer, labels, index))
    return total.to(grad_out.dtype)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    for labels, index in _chunks(layer):
        torch.gather(grad_out[:, labels].t() @ x, 1, index, out=grad[labels])
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw); a chunk's part of grad_out is read twice in a row, the second time from cache."""
    total = grad_out.new_zeros(grad_out.shape[0], layer.sparse.dim, dtype=torch.float32)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    for labels, index in _chunks(layer):
        block = grad_out[:, labels]
        _add_product(total, block, _dense(layer, labels, index))
        torch.gather(block.t() @ x, 1, index, out=grad[labels])
    return total.to(grad_out.dtype), grad


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """A training step chunk by chunk, of which a dense block serves the logits and dx: no [B, L] exists."""
    index = layer.sparse.memo("label_inputs_int64", layer.sparse.label_indices)

    def rows(first: int, stop: int) -> Tensor:
        return _dense(layer, slice(first, stop), index[first:stop])

    def gradient(dz: Tensor, first: int, stop: int) -> Tensor:
        return torch.gather(chunked.product(dz.t(), x), 1, index[first:stop])

    chunk = CHUNK_BYTES.get(x.device.type, CHUNK_BYTES["cpu"]) // (layer.sparse.dim * x.element_size())
    return chunked.by_chunks(x, layer, chunked.Rows(x, layer, rows, gradient), targets, updates, guard, chunk=chunk)


def _chunks(layer: Layer) -> Iterator[tuple[slice, Tensor]]:
    """(labels, their inputs [n, K] int64) of each chunk."""
    topology, weight = layer.sparse, layer.weight
    inputs = topology.memo("label_inputs_int64", topology.label_indices)
    budget = CHUNK_BYTES.get(weight.device.type, CHUNK_BYTES["cpu"])
    step = max(1, budget // (topology.dim * weight.element_size()))
    for start in range(0, topology.labels, step):
        labels = slice(start, min(start + step, topology.labels))
        yield labels, inputs[labels]


def _dense(layer: Layer, labels: slice, index: Tensor) -> Tensor:
    """The weights [n, D] of the labels, zeros where they read nothing."""
    dense = layer.weight.new_zeros(index.shape[0], layer.sparse.dim)
    return dense.scatter_(1, index, layer.weight[labels])


def _add_product(total: Tensor, block: Tensor, dense: Tensor) -> None:
    """total [B, D] fp32 += block [B, n] @ dense [n, D]."""
    if block.dtype == torch.float32:
        total.addmm_(block, dense)
    else:
        total += block @ dense
