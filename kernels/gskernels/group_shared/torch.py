"""group_shared/torch: gather the inputs of a chunk of groups, then one batched product. weight [L, K].

For a group g with inputs I_g:  Y_g^T = W_g X^T[I_g],  dW_g = dY_g^T X^T[I_g]^T,  dX^T[I_g] += W_g^T dY_g^T.
Rows of X^T are gathered, not columns of X: on the CPU 4 times faster, each input being one contiguous row.
A chunk's temporaries hold CHUNK_BYTES, so they stay in cache and do not grow with L. The 32-bit indices are made
once a topology and kept with it (`topology.memo`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import chunked
from gskernels.layer import Layer
from gskernels.steps import Outcome, Targets, Updates
from gskernels.topology import GroupTopology

# Gathered inputs, products and copies of one chunk. CPU: measured best among 1 to 32 MiB (2 cores of 1 MiB level-2
# cache); CUDA: half of a large card's level-2 cache, and enough work for each launch.
CHUNK_BYTES = {"cpu": 5 << 20, "cuda": 32 << 20}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    fan_in, group_size = layer.sparse.fan_in, layer.sparse.group_size
    y = x.new_empty(x.shape[0], layer.labels)
    columns = x.t().contiguous()  # [D, B]
    chunks = _chunks(layer.sparse, x, fan_in + group_size)
    gathered = _buffer(chunks, fan_in, x)
    products = x.new_empty(0 if x.is_cuda else chunks[0].count * group_size * x.shape[0])
    for chunk in chunks:
        inputs = _gather(columns, layer.sparse, chunk, gathered)  # [n, K, B]
        weight = _grouped(layer.weight[chunk.labels], chunk)  # [n, G, K]
        block = _split(y[:, chunk.labels], chunk).transpose(0, 1)  # [n, B, G]
        if x.is_cuda:  # cuBLAS writes the strided block itself
            torch.bmm(inputs.mT, weight.mT, out=block)
        else:  # MKL is half as fast into rows that lie L apart: copy from cache
            block.copy_(torch.bmm(inputs.mT, weight.mT, out=products[: block.numel()].view(block.shape)))
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over groups is taken in fp32 and rounded once."""
    total = _zeros(grad_out, layer)
    for chunk in _chunks(layer.sparse, grad_out, 2 * layer.sparse.fan_in + layer.sparse.group_size):
        _scatter(total, _grad_block(grad_out, chunk), layer, chunk)
    return total.t().to(grad_out.dtype).contiguous()


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    chunks = _chunks(layer.sparse, x, 2 * layer.sparse.fan_in + layer.sparse.group_size)
    gathered = _buffer(chunks, layer.sparse.fan_in, x)
    for chunk in chunks:
        inputs = _gather(columns, layer.sparse, chunk, gathered)
        torch.bmm(_grad_block(grad_out, chunk), inputs.mT, out=_grouped(grad[chunk.labels], chunk))
    return grad


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """(dx, dw) from one read of grad_out."""
    total = _zeros(grad_out, layer)
    grad = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    columns = x.t().contiguous()
    chunks = _chunks(layer.sparse, x, 2 * layer.sparse.fan_in + layer.sparse.group_size)
    gathered = _buffer(chunks, layer.sparse.fan_in, x)
    for chunk in chunks:
        block = _grad_block(grad_out, chunk)
        inputs = _gather(columns, layer.sparse, chunk, gathered)
        torch.bmm(block, inputs.mT, out=_grouped(grad[chunk.labels], chunk))
        _scatter(total, block, layer, chunk)
    return total.t().to(grad_out.dtype).contiguous(), grad


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """A training step in chunks of groups, as `gskernels.steps` describes it: no [B, L] exists."""
    parts = chunked.Groups(sys.modules[__name__], x, layer)
    return chunked.by_chunks(x, layer, parts, targets, updates, guard, align=layer.sparse.group_size)


@dataclass(frozen=True)
class _Chunk:
    """`count` neighbouring groups of `size` labels each."""

    groups: slice
    labels: slice
    size: int

    @property
    def count(self) -> int:
        return int(self.groups.stop - self.groups.start)


def _chunks(topology: GroupTopology, like: Tensor, rows: int) -> list[_Chunk]:
    """Chunks of CHUNK_BYTES where a group needs `rows` rows of B numbers; a ragged last group is one of its own."""
    size = topology.group_size
    whole = topology.labels // size
    budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cpu"])
    step = max(1, budget // (rows * max(1, like.shape[0]) * 4))
    chunks = []
    for start in range(0, whole, step):
        stop = min(start + step, whole)
        chunks.append(_Chunk(slice(start, stop), slice(start * size, stop * size), size))
    if whole < topology.groups:
        labels = slice(whole * size, topology.labels)
        chunks.append(_Chunk(slice(whole, whole + 1), labels, topology.labels - whole * size))
    return chunks


def _buffer(chunks: list[_Chunk], fan_in: int, like: Tensor) -> Tensor:
    """Room for the gathered inputs of the largest chunk, the first: written again and again, it stays in cache."""
    return like.new_empty(chunks[0].count * fan_in, like.shape[0])


def _split(block: Tensor, chunk: _Chunk) -> Tensor:
    """[B, n G] as [B, n, G]."""
    return block.view(block.shape[0], chunk.count, chunk.size)


def _grouped(rows: Tensor, chunk: _Chunk) -> Tensor:
    """[n G, K] as [n, G, K]."""
    return rows.reshape(chunk.count, chunk.size, rows.shape[1])


def _indices(topology: GroupTopology) -> Tensor:
    return topology.memo("int32", topology.indices.int)  # [groups, K]; index_select takes no int16


def _gather(columns: Tensor, topology: GroupTopology, chunk: _Chunk, buffer: Tensor) -> Tensor:
    """Rows of X^T [D, B] that the groups read: [n, K, B], in the buffer."""
    index = _indices(topology)[chunk.groups].flatten()
    rows = torch.index_select(columns, 0, index, out=buffer[: index.numel()])
    return rows.view(chunk.count, topology.fan_in, columns.shape[1])


def _grad_block(grad_out: Tensor, chunk: _Chunk) -> Tensor:
    """dY^T of the labels, [n, G, B]. Packed first: MKL and cuBLAS are slow on rows that lie L apart."""
    return _split(grad_out[:, chunk.labels].contiguous(), chunk).permute(1, 2, 0)


def _zeros(grad_out: Tensor, layer: Layer) -> Tensor:
    return torch.zeros(layer.sparse.dim, grad_out.shape[0], dtype=torch.float32, device=grad_out.device)


def _scatter(total: Tensor, block: Tensor, layer: Layer, chunk: _Chunk) -> None:
    """total [D, B] fp32 += W_g^T dY_g^T of the groups, at their inputs."""
    part = torch.bmm(_grouped(layer.weight[chunk.labels], chunk).mT, block).flatten(0, 1).float()  # [n K, B]
    index = _indices(layer.sparse)[chunk.groups].flatten()
    if total.is_cuda:
        total.index_add_(0, index, part)
    else:  # an expanded index makes scatter_add_ sort and then add whole rows: 1.6 times faster than index_add_
        total.scatter_add_(0, index.long()[:, None].expand_as(part), part)
