"""The dense route of fixed_fan_in/cuda: chunks of labels expanded to rows of D numbers, products by cuBLAS."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gskernels import chunked, routes, tune
from gskernels.cuda.launch import I64, Kernel, kernel
from gskernels.layer import Layer
from gskernels.steps import Outcome, Targets, Updates
from gskernels.topology import GroupTopology

NAMES = {torch.float32: "float", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int16: "short", torch.int32: "int"}


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y, buffer = x.new_empty(x.shape[0], layer.labels), _buffer(layer)
    piece = None if _aligned(layer) else x.new_empty(x.shape[0], _step(layer))
    for labels in _chunks(layer):
        dense = _expanded(layer, labels, buffer)
        if piece is None:
            torch.mm(x, dense.t(), out=y[:, labels])
        else:
            y[:, labels] = torch.mm(x, dense.t(), out=piece[:, : dense.shape[0]])
    return y if layer.bias is None else y.add_(layer.bias)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]; the sum over chunks is taken in fp32 and rounded once."""
    total = grad_out.new_zeros(grad_out.shape[0], layer.sparse.dim, dtype=torch.float32)
    buffer = _buffer(layer)
    for labels, block in _blocks(grad_out, layer):
        dense = _expanded(layer, labels, buffer)
        if grad_out.dtype == torch.float32:
            total.addmm_(block, dense)
        else:
            total += block @ dense
    return total.to(grad_out.dtype)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    indices, dim, fan_in = label_indices(layer.sparse), layer.sparse.dim, layer.sparse.fan_in
    dw = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    collect, buffer = tool("collect", layer, indices.dtype), _buffer(layer)
    for labels, block in _blocks(grad_out, layer):
        dense = torch.mm(block.t(), x, out=buffer[: block.shape[1]])
        count = dense.shape[0] * fan_in
        grid = min(tune.cdiv(count, 256), tune.multiprocessors(dw.get_device()) * 8)
        collect.launch(grid, 256, (dense, indices[labels], dw[labels], I64(count), fan_in, dim))
    return dw


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """A training step chunk by chunk: a block expanded once serves the logits and dx, then takes the dense gradient."""
    indices, dim, fan_in = label_indices(layer.sparse), layer.sparse.dim, layer.sparse.fan_in
    collect, buffer = tool("collect", layer, indices.dtype), _buffer(layer)
    piece = layer.weight.new_empty(len(buffer), fan_in)

    def gradient(dz: Tensor, first: int, stop: int) -> Tensor:
        dense = torch.mm(dz.t(), x, out=buffer[: stop - first])
        count = dense.shape[0] * fan_in
        grid = min(tune.cdiv(count, 256), tune.multiprocessors(dense.get_device()) * 8)
        collect.launch(grid, 256, (dense, indices[first:stop], piece[: stop - first], I64(count), fan_in, dim))
        return piece[: stop - first]

    rows = chunked.Rows(x, layer, lambda first, stop: _expanded(layer, slice(first, stop), buffer), gradient)
    return chunked.by_chunks(x, layer, rows, targets, updates, guard, chunk=_step(layer))


def tool(name: str, layer: Layer, index: torch.dtype, warps: int = 4) -> Kernel:
    """A kernel of cuda_expand.cu for the layer's numbers."""
    defines: dict[str, int | str] = {"ELEMENT": NAMES[layer.weight.dtype], "INDEX": NAMES[index], "WARPS": warps}
    return kernel("fixed_fan_in/cuda_expand.cu", name, defines, layer.weight.get_device())


def label_indices(topology: GroupTopology, multiple: int = 1) -> Tensor:
    """[L, K']: every label's list, K' the next multiple; what is added repeats the first entry."""

    def build() -> Tensor:
        rows = topology.indices
        if topology.group_size > 1:
            rows = rows.repeat_interleave(topology.group_size, 0)[: topology.labels]
        extra = -topology.fan_in % multiple
        return torch.cat([rows, rows[:, :1].expand(-1, extra)], 1).contiguous() if extra else rows.contiguous()

    return topology.memo(f"fixed_fan_in/cuda: indices, {multiple if topology.fan_in % multiple else 1}", build)


def _step(layer: Layer) -> int:
    return routes.chunk_labels(layer.labels, layer.sparse.dim, layer.weight.element_size())


def _aligned(layer: Layer) -> bool:
    return routes.aligned_rows(layer.labels, layer.weight.element_size())


def _chunks(layer: Layer) -> Iterator[slice]:
    for start in range(0, layer.labels, _step(layer)):
        yield slice(start, min(start + _step(layer), layer.labels))


def _blocks(grad_out: Tensor, layer: Layer) -> Iterator[tuple[slice, Tensor]]:
    """The labels and columns [B, n] of each chunk, copied where rows of grad_out are not aligned."""
    piece = None if _aligned(layer) else grad_out.new_empty(grad_out.shape[0], _step(layer))
    for labels in _chunks(layer):
        block = grad_out[:, labels]
        yield labels, block if piece is None else piece[:, : block.shape[1]].copy_(block)


def _buffer(layer: Layer) -> Tensor:
    """Room for a dense chunk [n, D]."""
    return layer.weight.new_empty(_step(layer), layer.sparse.dim)


def _expanded(layer: Layer, labels: slice, buffer: Tensor) -> Tensor:
    """The weights [n, D] of the labels, zeros where they read nothing."""
    count, dim = labels.stop - labels.start, layer.sparse.dim
    indices, weight = label_indices(layer.sparse)[labels], layer.weight[labels].contiguous()
    row = tune.cdiv(dim * weight.element_size(), 16) * 16
    warps = 4 if 4 * row <= routes.ROW_BYTES else 1
    expand = tool("expand", layer, indices.dtype, warps)
    blocks = tune.multiprocessors(weight.get_device()) * expand.blocks_per_sm(warps * 32, warps * row)
    args = (weight, indices, buffer, count, weight.shape[1], dim)
    expand.launch(min(tune.cdiv(count, warps), blocks), warps * 32, args, warps * row)
    return buffer[:count]
