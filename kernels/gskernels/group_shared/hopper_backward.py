"""The launcher of hopper_backward.cu: both gradients from one launch, whose blocks own either batch rows or labels.

A plan is a pure function of the problem and of what the GPU offers, as in `hopper`; None where the kernel does not take
the problem. The order of all sums is fixed by both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.cuda.launch import TensorMap, kernel, tensor_map
from gskernels.group_shared import hopper
from gskernels.group_shared.hopper import BARRIERS, GRAD_INPUT_THREADS, RESERVED, TILE
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.tune import cdiv

SOURCE = "group_shared/hopper_backward.cu"
ROWS = 64  # batch rows of a slice
TILE_BYTES = ROWS * TILE * 2  # a slice of a tile of dY
SLOT_BYTES = 4 * 64 * ROWS * 2  # a slice of X^T on its way to each of four warpgroups: 64 inputs
DEEPS = (3, 2, 1)  # such slices: the most that leave two stages for each tile
MOST_RING = 32  # stages, as many as there are barriers
MOST_SLICES = 16  # of larger batches nothing is measured
LEAD = 4 << 20  # bytes of dY that blocks of a kind may be ahead of the others
# That one with rows may be behind the mean of them before it holds the others, for one slice and for more. A block counts
# four tiles as soon as it asks for the first, which is 3 MB for all of them.
LAGS = 4 << 20, 6 << 20
PIECE = 32  # labels of dW that leave together, at most
# What takes a block how long, in cycles, fitted to the fastest of several shares (H200). Rows: 64 inputs of a group for 64
# batch rows; where the ring of dY is deep some take less, by group and slices.
ADD_COSTS, DEEP_ADD_COSTS = {16: 370, 32: 440, 64: 660, 128: 1200}, {(32, 1): 317, (32, 2): 415}
# Labels: 64 inputs of those that a warpgroup multiplies at once. Each label, if a stage holds one slice and if it holds two;
# 64 batch rows of all.
STORE_COSTS, WEIGH_COSTS = {16: (9.3, 7.5), 32: (3.05, 3.4), 64: (3.4, 3.4)}, {16: 125, 32: 160, 64: 188}


@dataclass(frozen=True)
class Plan:
    """macros: of the kernel. shared_bytes: of a block. slices: of 64 batch rows.

    row_blocks: that own a slice, a multiple of `slices`. label_blocks: that own labels.
    lead, lag: labels that blocks of a kind may be ahead of the others, and one with rows behind the mean of them.
    """

    macros: Mapping[str, int | str]
    shared_bytes: int
    slices: int
    row_blocks: int
    label_blocks: int
    lead: int
    lag: int


@functools.lru_cache(maxsize=1024)
def plan_of(problem: Problem, gpu: Machine) -> Plan | None:
    rows = hopper.grad_input_plan(problem, gpu)
    if rows is None or rows.slices > MOST_SLICES:
        return None
    group = int(rows.macros["G"])
    weighers = label_macros(rows.slices, group, problem.fan_in, gpu)
    row_blocks = _row_blocks(rows, group, gpu)
    if weighers is None or row_blocks == 0:
        return None
    macros, shared, tiles = weighers
    row = rows.slices * ROWS * 2  # bytes of dY, a label
    return Plan(
        {**rows.macros, **macros}, max(rows.shared_bytes, shared), rows.slices,
        min(row_blocks, cdiv(problem.labels, max(TILE, group)) * rows.slices),
        min(gpu.processors - row_blocks, cdiv(problem.labels, TILE * tiles)), LEAD // row,
        LAGS[rows.slices > 1] // row,
    )  # fmt: skip


def label_macros(slices: int, group: int, fan_in: int, gpu: Machine) -> tuple[dict[str, int], int, int] | None:
    """(macros of blocks that own labels, their shared memory, tiles that they are at); None for too little room."""
    unit, stage = min(TILE, group), slices_of_stage(slices) * TILE_BYTES
    tiles = {1: 4, 2: 2}.get(TILE // unit * (fan_in // 64), 1)  # its four warpgroups have 64 inputs of a group each
    for deep in DEEPS:
        others = BARRIERS + 8 * min(PIECE, unit) * 128 + deep * SLOT_BYTES
        ring = min(MOST_RING, (gpu.shared_bytes - RESERVED - others) // stage) // tiles * tiles
        if ring >= 2 * tiles:
            return {"SLICES": slices, "DEEP": deep, "RING": ring}, others + ring * stage, tiles
    return None


def slices_of_stage(slices: int) -> int:
    """How many slices of a tile of dY come together to a block that owns labels."""
    return 1 if slices % 2 else 2


def _row_blocks(rows: hopper.Plan, group: int, gpu: Machine) -> int:
    """Such that they end together with the others, which own labels; 0 where there are too few multiprocessors."""
    slices, unit = rows.slices, min(group, TILE)
    add = ADD_COSTS[group]
    if rows.macros["RING_Y"] == 4:
        add = DEEP_ADD_COSTS.get((group, slices), add)
    adding = slices * add / group
    weighing = STORE_COSTS[unit][slices_of_stage(slices) - 1] + slices * WEIGH_COSTS[unit] / unit
    shares = range(slices, gpu.processors, slices)
    return min(shares, key=lambda n: max(adding / n, weighing / (gpu.processors - n)), default=0)


def plan_for(problem: Problem, device: torch.device) -> Plan | None:
    """A plan for a call on this device, or None where other kernels have to take it."""
    gpu = hopper.machine_of(device)
    return None if gpu is None else plan_of(problem, gpu)


def backward(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]. Operands are contiguous and begin on 16 bytes."""
    device, dim, batch, slices, macros = x.get_device(), problem.dim, problem.batch, plan.slices, plan.macros
    lists = hopper.lists(layer)
    xt = x.new_empty(dim, slices * ROWS)
    progress = x.new_empty(6, dtype=torch.int32)  # what its blocks know of each other
    sums = hopper.empty_parts(x, plan.row_blocks, dim)
    dx, dw = torch.empty_like(x), torch.empty_like(layer.weight)
    weights, grads = hopper.weight_map(layer, problem, min(int(macros["G"]), TILE)), hopper.label_map(grad_out, ROWS)
    stages = hopper.label_map(grad_out, ROWS * slices_of_stage(slices))
    outputs = output_map(dw, min(PIECE, int(macros["G"])))
    # From here on nothing else may be launched: each of these waits for the one before only where it needs it.
    prepared = (x, xt, progress, batch, dim)
    threads = dim // 2 * (slices * ROWS // 8)
    kernel(SOURCE, "hopper_backward_prepare", macros, device).launch(cdiv(threads, 128), 128, prepared, beside=True)
    args = (weights, grads, stages, outputs, layer.weight, lists, sums, xt, progress, dim, problem.labels, plan.row_blocks,
            plan.lead, plan.lag)  # fmt: skip
    kernel(SOURCE, "hopper_backward", macros, device).launch(
        plan.row_blocks + plan.label_blocks, GRAD_INPUT_THREADS, args, plan.shared_bytes, early=True
    )
    hopper.add_parts(sums, dx, macros, slices, early=True)
    return dx, dw


def output_map(dw: Tensor, labels: int) -> TensorMap:
    """dW [L, K] in boxes of so many labels and 64 inputs."""
    return tensor_map(dw, (dw.shape[1], dw.shape[0]), (dw.shape[1] * 2,), (64, labels), 128)
