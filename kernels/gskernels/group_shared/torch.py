"""group_shared/torch: gather the inputs of a chunk of groups, then one batched product. weight [L, K].

For a group g with inputs I_g:  Y_g^T = W_g X^T[I_g],  dW_g = dY_g^T X^T[I_g]^T,  dX^T[I_g] += W_g^T dY_g^T.
Rows of X^T are gathered, not columns of X: on the CPU 4 times faster, each input being one contiguous row.
A chunk's temporaries hold CHUNK_BYTES, so they stay in cache and do not grow with L. The 32-bit indices are made
once a topology and kept with it (`topology.memo`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gskernels.layer import Layer
from gskernels.topology import GroupTopology

# Gathered inputs, products and copies of one chunk. CPU: about the level-2 cache, measured best among 1 to 32 MiB;
# CUDA: half of a large card's level-2 cache, and enough work for each launch.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    columns = x.t().contiguous()  # [D, B]
    for groups, labels, size in _chunks(layer.sparse, x):
        inputs = _gather(columns, layer.sparse, groups)  # [n, K, B]
        weight = _grouped(layer.weight[labels], size)  # [n, G, K]
        block = _split(y[:, labels], size).transpose(0, 1)  # [n, B, G]
        if x.is_cuda:  # cuBLAS writes the strided block itself
            torch.bmm(inputs.mT, weight.mT, out=block)
        else:  # MKL is half as fast into rows that lie L apart: copy from cache
            block.copy_(torch.bmm(inputs.mT, weight.mT))
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over groups is taken in fp32 and rounded once."""
    total = _zeros(grad_out, layer)
    for groups, labels, size in _chunks(layer.sparse, grad_out):
        _scatter(total, _grad_block(grad_out, labels, size), layer, groups, labels, size)
    return total.t().to(grad_out.dtype).contiguous()


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for groups, labels, size in _chunks(layer.sparse, x):
        inputs = _gather(columns, layer.sparse, groups)
        torch.bmm(_grad_block(grad_out, labels, size), inputs.mT, out=_grouped(grad[labels], size))
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw) from one read of grad_out."""
    total = _zeros(grad_out, layer)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    for groups, labels, size in _chunks(layer.sparse, x):
        block = _grad_block(grad_out, labels, size)
        inputs = _gather(columns, layer.sparse, groups)
        torch.bmm(block, inputs.mT, out=_grouped(grad[labels], size))
        _scatter(total, block, layer, groups, labels, size)
    return total.t().to(grad_out.dtype).contiguous(), grad


def _chunks(topology: GroupTopology, like: Tensor) -> Iterator[tuple[slice, slice, int]]:
    """(groups, labels, labels a group) of each chunk; a ragged last group is a chunk of its own."""
    size, batch = topology.group_size, max(1, like.shape[0])
    whole = topology.labels // size
    step = max(1, CHUNK_BYTES.get(like.device.type, 4 << 20) // ((2 * topology.fan_in + size) * batch * 4))
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        yield slice(start, stop), slice(start * size, stop * size), size
    if whole < topology.groups:
        yield slice(whole, whole + 1), slice(whole * size, topology.labels), topology.labels - whole * size


def _split(block: Tensor, size: int) -> Tensor:
    """[B, n G] as [B, n, G]."""
    return block.view(block.shape[0], block.shape[1] // size, size)


def _grouped(rows: Tensor, size: int) -> Tensor:
    """[n G, K] as [n, G, K]."""
    return rows.view(rows.shape[0] // size, size, rows.shape[1])


def _indices(topology: GroupTopology) -> Tensor:
    return topology.memo("int32", topology.indices.int)  # [groups, K]; index_select takes no int16


def _gather(columns: Tensor, topology: GroupTopology, groups: slice) -> Tensor:
    """Rows of X^T [D, B] that the groups read: [n, K, B]."""
    index = _indices(topology)[groups]
    return columns.index_select(0, index.flatten()).view(*index.shape, columns.shape[1])


def _grad_block(grad_out: Tensor, labels: slice, size: int) -> Tensor:
    """dY^T of the labels, [n, G, B]. Packed first: MKL and cuBLAS are slow on rows that lie L apart."""
    return _split(grad_out[:, labels].contiguous(), size).permute(1, 2, 0)


def _zeros(grad_out: Tensor, layer: Layer) -> Tensor:
    return torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)


def _scatter(total: Tensor, block: Tensor, layer: Layer, groups: slice, labels: slice, size: int) -> None:
    """total [D, B] fp32 += W_g^T dY_g^T of the groups, at their inputs."""
    part = torch.bmm(_grouped(layer.weight[labels], size).mT, block).flatten(0, 1).float()  # [n K, B]
    index = _indices(layer.sparse)[groups].flatten()
    if total.is_cuda:
        total.index_add_(0, index, part)
    else:  # an expanded index makes scatter_add_ sort and then add whole rows: 1.6 times faster than index_add_
        total.scatter_add_(0, index.long()[:, None].expand_as(part), part)
