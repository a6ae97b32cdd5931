"""The gather route of fixed_fan_in/cuda: launchers of cuda_forward.cu, cuda_grad_weight.cu and cuda_grad_input.cu."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import tune
from gskernels.cuda.launch import I64, kernel, shared_bytes_limit
from gskernels.fixed_fan_in.cuda_dense import NAMES, label_indices, tool
from gskernels.layer import Layer
from gskernels.topology import GroupTopology

WARPS, FEWER_WARPS = 16, 8  # of a block; the second where rows are not resident: their addresses take registers
GRAD_TILE = 64  # labels of a tile of grad_weight
PLAN_SHARE, PLAN_LABELS, PLAN_WARPS = 4, 768, 8  # grad_input: 96 KiB of dY^T a block, two blocks a multiprocessor
PLAN_ENTRIES = 1 << 26  # pairs of label and input that are sorted at once


@dataclass(frozen=True)
class Slices:
    """How the batch is cut: `share` labels side by side in a warp, so rows of 512 / share bytes of X^T.

    resident: whether the D rows of a slice stay in shared memory. stride: row length of X^T, whole slices.
    """

    share: int
    columns: int
    resident: bool
    stride: int

    @classmethod
    def of(cls, batch: int, dim: int, item: int, index: torch.dtype, shared_bytes: int) -> Slices:
        """The widest rows that fit into `shared_bytes` of a block, and no wider than the batch needs."""
        shares = [4] if batch * item <= 128 else [2, 4]
        for share in shares:
            if index == torch.int16 and dim * 512 // share + beside(share, item) <= shared_bytes:
                return cls._cut(share, item, batch, True)
        return cls._cut(shares[0], item, batch, False)

    @classmethod
    def _cut(cls, share: int, item: int, batch: int, resident: bool) -> Slices:
        columns = 512 // share // item
        return cls(share, columns, resident, tune.cdiv(batch, columns) * columns)

    @property
    def warps(self) -> int:
        return WARPS if self.resident else FEWER_WARPS

    @property
    def row_bytes(self) -> int:
        return 512 // self.share

    def defines(self, layer: Layer, index: torch.dtype) -> dict[str, int | str]:
        return {"ELEMENT": NAMES[layer.weight.dtype], "INDEX": NAMES[index], "SHARE": self.share,
                "RESIDENT": int(self.resident), "WARPS": self.warps}  # fmt: skip


def forward_tile_bytes(share: int, item: int, warps: int = WARPS) -> int:
    """The forward's tile of Y^T in shared memory: two steps of every warp, a word for two numbers of 16 bits."""
    return 512 // share // item * (warps * 2 * share * item // 4 + 1) * 4


def grad_tile_bytes(share: int) -> int:
    """grad_weight's tile of dY^T, rows 16 bytes apart."""
    return GRAD_TILE * (512 // share + 16)


def beside(share: int, item: int) -> int:
    """Shared memory beside the rows of X^T."""
    return max(forward_tile_bytes(share, item), grad_tile_bytes(share))


def _transposed(x: Tensor, layer: Layer, stride: int, index: torch.dtype) -> Tensor:
    """[D, stride] of x [B, D], zeros past B."""
    (batch, dim), xt = x.shape, x.new_empty(x.shape[1], stride)
    grid = (tune.cdiv(dim, 32), tune.cdiv(stride, 32))
    tool("transpose", layer, index).launch(grid, 256, (x, xt, batch, dim, stride))
    return xt


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    (batch, dim), item, device = x.shape, x.element_size(), x.get_device()
    indices, weight = label_indices(layer.sparse, 8), layer.weight.contiguous()
    fan_in = indices.shape[1]
    if fan_in != weight.shape[1]:
        weight = torch.nn.functional.pad(weight, (0, fan_in - weight.shape[1]))
    slices = Slices.of(batch, dim, item, indices.dtype, shared_bytes_limit(device))
    ahead = max(n for n in (1, 2, 4) if n <= 8 // item and fan_in // 8 % n == 0)
    defines = slices.defines(layer, indices.dtype)
    defines |= {"FAN_IN": fan_in, "AHEAD": ahead, "HAS_BIAS": int(layer.bias is not None)}
    run = kernel("fixed_fan_in/cuda_forward.cu", "forward", defines, device)
    shared = slices.resident * dim * slices.row_bytes + forward_tile_bytes(slices.share, item, slices.warps)
    cuts = slices.stride // slices.columns
    blocks = tune.multiprocessors(device) * run.blocks_per_sm(slices.warps * 32, shared)
    grid = (min(tune.cdiv(layer.labels, slices.warps * 2 * slices.share), max(1, blocks // cuts)), cuts)
    y, bias = x.new_empty(batch, layer.labels), None if layer.bias is None else layer.bias.contiguous()
    xt = _transposed(x, layer, slices.stride, indices.dtype)
    args = (xt, weight, indices, bias, y, batch, slices.stride, dim, I64(layer.labels))
    run.launch(grid, slices.warps * 32, args, shared)
    return y


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]. Slices of the batch are added up in fp32, one launch each."""
    (batch, dim), item, device = x.shape, x.element_size(), x.get_device()
    indices = label_indices(layer.sparse)
    slices = Slices.of(batch, dim, item, indices.dtype, shared_bytes_limit(device))
    defines = slices.defines(layer, indices.dtype) | {"FAN_IN": layer.sparse.fan_in}
    run = kernel("fixed_fan_in/cuda_grad_weight.cu", "grad_weight", defines, device)
    shared = slices.resident * dim * slices.row_bytes + grad_tile_bytes(slices.share)
    blocks = tune.multiprocessors(device) * run.blocks_per_sm(slices.warps * 32, shared)
    dw = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    xt = _transposed(x, layer, slices.stride, indices.dtype)
    sums = None if slices.stride == slices.columns else torch.empty_like(dw, dtype=torch.float32)
    for first in range(0, slices.stride, slices.columns):
        before, after = sums if first else None, sums if first + slices.columns < slices.stride else None
        args = (xt, grad_out, indices, before, after, dw, first, batch, slices.stride, dim, I64(layer.labels))
        run.launch(min(tune.cdiv(layer.labels, GRAD_TILE), blocks), slices.warps * 32, args, shared)
    return dw


# ---- grad_input -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The transposed topology in chunks of labels: who reads each input, PLAN_SHARE lists of equal length side by side.

    source: [n] where in W (flat) an entry's weight is, or -1 for padding
    local: [n] int16, the entry's label within its chunk
    offsets: [chunks * groups + 1] int64, where the lists of PLAN_SHARE inputs begin: pieces of eight entries, in turn
    """

    source: Tensor
    local: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, topology: GroupTopology) -> Plan:
        """Lists are padded to the longest of their group, rounded up to eight; the arrays, by what is read ahead."""
        wide = topology.labels * topology.fan_in >= 2**31
        groups, piece = tune.cdiv(topology.dim, PLAN_SHARE), 8 * PLAN_SHARE
        step = max(1, PLAN_ENTRIES // (PLAN_LABELS * topology.fan_in)) * PLAN_LABELS
        sources, locals_, lengths = [], [], []
        for start in range(0, topology.labels, step):
            labels = torch.arange(start, min(start + step, topology.labels), device=topology.device)
            inputs = topology.indices[labels // topology.group_size].long()  # [labels, K]
            key = (((labels - start) // PLAN_LABELS)[:, None] * (groups * PLAN_SHARE) + inputs).flatten()
            order = key.argsort(stable=True)
            key = key[order]
            count = torch.bincount(key, minlength=tune.cdiv(len(labels), PLAN_LABELS) * groups * PLAN_SHARE)
            rank = torch.arange(len(key), device=key.device) - (count.cumsum(0) - count)[key]
            length = (count.view(-1, PLAN_SHARE).amax(1) + 7) // 8 * piece
            to = (length.cumsum(0) - length)[key // PLAN_SHARE] + rank // 8 * piece + key % PLAN_SHARE * 8 + rank % 8
            ahead = 4 * piece if start + step >= topology.labels else 0
            source = torch.full((int(length.sum()) + ahead,), -1, dtype=torch.int64, device=key.device)
            source[to] = order
            locals_.append((source.clamp(min=0) // topology.fan_in % PLAN_LABELS).to(torch.int16))
            source[to] += start * topology.fan_in
            sources.append(source if wide else source.to(torch.int32))
            lengths.append(length)
        ends = torch.cat(lengths).cumsum(0)
        return cls(torch.cat(sources), torch.cat(locals_), torch.nn.functional.pad(ends, (1, 0)))


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]. A block's sums are its own; those of all blocks are added at the end."""
    batch, dim, device = grad_out.shape[0], layer.sparse.dim, grad_out.get_device()
    plan = layer.sparse.memo("fixed_fan_in/cuda: plan", lambda: Plan.of(layer.sparse))
    defines: dict[str, int | str] = {
        "ELEMENT": NAMES[grad_out.dtype], "INDEX": "short", "SOURCE": "int" if plan.source.dtype == torch.int32 else "i64",
        "SHARE": PLAN_SHARE, "RESIDENT": 1, "CHUNK": PLAN_LABELS, "WARPS": PLAN_WARPS,
    }  # fmt: skip
    take = kernel("fixed_fan_in/cuda_grad_input.cu", "take", defines, device)
    weights = torch.empty(len(plan.source), dtype=grad_out.dtype, device=grad_out.device)
    sms = tune.multiprocessors(device)
    grid = min(tune.cdiv(len(weights), 256), sms * 8)
    take.launch(grid, 256, (layer.weight.contiguous(), plan.source, weights, I64(len(weights))))
    run = kernel("fixed_fan_in/cuda_grad_input.cu", "grad_input", defines, device)
    row = 512 // PLAN_SHARE
    columns, shared = row // grad_out.element_size(), PLAN_LABELS * row
    cuts, chunks = tune.cdiv(batch, columns), tune.cdiv(layer.labels, PLAN_LABELS)
    parts = max(1, min(chunks, sms * run.blocks_per_sm(PLAN_WARPS * 32, shared) // cuts))
    partial = grad_out.new_empty(parts, dim, cuts * columns, dtype=torch.float32)
    args = (grad_out, weights, plan.local, plan.offsets, partial, batch, cuts * columns, dim, chunks, I64(layer.labels))
    run.launch((parts, cuts), PLAN_WARPS * 32, args, shared)
    return partial.sum(0)[:, :batch].t().to(grad_out.dtype).contiguous()
