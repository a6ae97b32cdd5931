"""fixed_fan_in/gather: plain torch, one short product a label over gathered rows of X^T. weight [L, K].

    y_l = w_l X^T[I_l],  dw_l = dy_l X^T[I_l]^T,  dX^T[I_l] += w_l (x) dy_l

Rows of X^T, because an input is then one contiguous row; a batched product, because it multiplies and sums in one
pass over the gathered rows. The gathered rows of a chunk of labels hold CHUNK_BYTES, whatever L is; the 32-bit
indices are made once a topology and kept with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gskernels.fixed_fan_in import label_inputs
from gskernels.layer import Layer
from gskernels.topology import GroupTopology

# Gathered rows of one chunk: the level-2 cache of a CPU core; half of a large card's level-2 cache.
CHUNK_BYTES = {"cpu": 2 << 20, "cuda": 32 << 20}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    columns = x.t().contiguous()  # [D, B]
    for labels, index in _chunks(layer.sparse, x):
        inputs = _gather(columns, index)  # [n, K, B]
        y[:, labels] = torch.bmm(layer.weight[labels, None], inputs).squeeze(1).t()
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over labels is taken in fp32 and rounded once."""
    total = _zeros(grad_out, layer)
    for labels, index in _chunks(layer.sparse, grad_out):
        _scatter(total, grad_out[:, labels].t().contiguous(), layer.weight[labels], index)
    return total.t().to(grad_out.dtype).contiguous()


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for labels, index in _chunks(layer.sparse, x):
        block = grad_out[:, labels].t().contiguous()  # [n, B]
        torch.bmm(block[:, None], _gather(columns, index).mT, out=grad[labels, None])
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw) from one read of grad_out."""
    total = _zeros(grad_out, layer)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for labels, index in _chunks(layer.sparse, x):
        block = grad_out[:, labels].t().contiguous()
        torch.bmm(block[:, None], _gather(columns, index).mT, out=grad[labels, None])
        _scatter(total, block, layer.weight[labels], index)
    return total.t().to(grad_out.dtype).contiguous(), grad


def _chunks(topology: GroupTopology, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(labels, their inputs [n, K]) of each chunk."""
    inputs = label_inputs(topology)
    budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cpu"])
    step = max(1, budget // (topology.fan_in * max(1, like.shape[0]) * like.element_size()))
    for start in range(0, topology.labels, step):
        labels = slice(start, min(start + step, topology.labels))
        yield labels, inputs[labels]


def _gather(columns: Tensor, index: Tensor) -> Tensor:
    """Rows of X^T [D, B] at index [n, K]: [n, K, B]."""
    return columns.index_select(0, index.flatten()).view(*index.shape, columns.shape[1])


def _zeros(grad_out: Tensor, layer: Layer) -> Tensor:
    return torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)


def _scatter(total: Tensor, block: Tensor, weight: Tensor, index: Tensor) -> None:
    """total [D, B] fp32 += the outer products of weight [n, K] and block [n, B], at index [n, K]."""
    part = (weight.float()[:, :, None] * block.float()[:, None, :]).flatten(0, 1)  # [n K, B]
    if total.is_cuda:
        total.index_add_(0, index.flatten(), part)
    else:  # an expanded index makes scatter_add_ sort and then add whole rows: 1.6 times faster than index_add_
        total.scatter_add_(0, index.flatten().long()[:, None].expand_as(part), part)
