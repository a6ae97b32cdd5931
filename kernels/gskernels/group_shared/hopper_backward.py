"""The launcher of hopper_backward.cu: both gradients from one launch, whose blocks own either batch rows or labels.

A plan is a pure function of the problem and of what the GPU offers, as in `hopper`; None where the kernel does not take
the problem. dW is summed in an order fixed by both, dX where that is asked for.
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
ROWS, HALF = 64, 32  # batch rows of a slice; of what label blocks hold or fetch of X^T at once
TILE_BYTES = ROWS * TILE * 2
SLOT_BYTES = 4 * 64 * HALF * 2  # a half of X^T on its way to each of four warpgroups: 64 inputs
MOST_RING = 16  # tiles of dY in a block that owns labels
# Tiles of dY for each of those that it is at, and halves on their way to a warpgroup: the least that there is room for.
WISHES = ((4, 2), (4, 1))
MOST_DEEP = 3  # halves on their way to a warpgroup
MOST_FAR = 32  # halves that come from L2: of larger batches nothing is measured
LEAD = 2 << 20  # bytes of dY that blocks of a kind may be ahead of the others
SQUARES = 4  # of 32 x 32 numbers of X that a block transposes
PIECE = 32  # labels of dW that leave together, at most
# What takes a block how long, in cycles, fitted to the fastest of several shares (H200). Rows, for 64 inputs of a group:
# once, and for 64 rows. Labels, for 64 inputs of those multiplied at once: each label; 64 rows, and these for each label;
# a half that is far.
ADD_ONCE, ADD_COSTS = 285, {16: 276, 32: 338, 64: 677, 128: 1420}
STORE_COST, SLICE_COST, MULTIPLY_COST, FAR_COST = 5.4, 105, 0.5, 34


@dataclass(frozen=True)
class Plan:
    """macros: of the kernel. shared_bytes: of a block. slices: of 64 batch rows.

    row_blocks: that own a slice, a multiple of `slices`. label_blocks: that own labels.
    lead: labels that blocks of a kind may be ahead of the others.
    """

    macros: Mapping[str, int | str]
    shared_bytes: int
    slices: int
    row_blocks: int
    label_blocks: int
    lead: int


@functools.lru_cache(maxsize=1024)
def plan_of(problem: Problem, gpu: Machine) -> Plan | None:
    rows = hopper.grad_input_plan(problem, gpu)
    weighers = None if rows is None else label_macros(problem, gpu)
    if rows is None or weighers is None:
        return None
    macros, shared, tiles = weighers
    group = int(rows.macros["G"])
    row_blocks = _row_blocks(problem, gpu, group, rows.slices, 2 * rows.slices - macros["NEAR"])
    if row_blocks == 0:
        return None
    return Plan(
        {**rows.macros, **macros, "SHARED_SUMS": 1}, max(rows.shared_bytes, shared), rows.slices,
        min(row_blocks, cdiv(problem.labels, max(TILE, group)) * rows.slices),
        min(gpu.processors - row_blocks, cdiv(problem.labels, TILE * tiles)), LEAD // (rows.slices * 128),
    )  # fmt: skip


def label_macros(problem: Problem, gpu: Machine) -> tuple[dict[str, int], int, int] | None:
    """(macros of blocks that own labels, their shared memory, tiles that they are at); None where there is too little room.

    Of X^T as many halves are resident as leave room for what else is wished for; the rings have what is left.
    """
    slices, unit = cdiv(problem.batch, ROWS), min(TILE, problem.group_size)
    tiles = {1: 4, 2: 2}.get(TILE // unit * (problem.fan_in // 64), 1)  # its four warpgroups have 64 inputs of a group each
    room = gpu.shared_bytes - RESERVED - BARRIERS - 4 * min(PIECE, unit) * 128
    for least, least_deep in WISHES:
        for near in range(2 * slices, max(0, 2 * slices - MOST_FAR) - 1, -1):
            far, left = 2 * slices - near, room - near * problem.dim * HALF * 2
            deep = min(MOST_DEEP, far, (left - least * tiles * TILE_BYTES) // SLOT_BYTES)
            ring = min(MOST_RING, (left - deep * SLOT_BYTES) // TILE_BYTES) // tiles * tiles
            if deep >= min(least_deep, far) and ring >= least * tiles:
                # OVERLAP as measured: two tiles at once are 1 % faster without.
                macros = {"SLICES": slices, "NEAR": near, "DEEP": deep, "RING": ring, "OVERLAP": int(tiles != 2)}
                return macros, gpu.shared_bytes - RESERVED - left + ring * TILE_BYTES + deep * SLOT_BYTES, tiles
    return None


def _row_blocks(problem: Problem, gpu: Machine, group: int, slices: int, far: int) -> int:
    """Such that they end together with the others, which own labels; 0 where there are too few multiprocessors."""
    unit = min(group, TILE)
    adding = (ADD_ONCE + slices * ADD_COSTS[group]) / group
    weighing = STORE_COST + (slices * (SLICE_COST + unit * MULTIPLY_COST) + far * FAR_COST) / unit
    shares = range(slices, gpu.processors, slices)
    return min(shares, key=lambda n: max(adding / n, weighing / (gpu.processors - n)), default=0)


def plan_for(problem: Problem, device: torch.device) -> Plan | None:
    """A plan for a call on this device, or None where other kernels have to take it."""
    gpu = hopper.machine_of(device)
    return None if gpu is None else plan_of(problem, gpu)


def backward(
    grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem, plan: Plan, deterministic: bool = False
) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]. Operands are contiguous and begin on 16 bytes.

    deterministic: dx is summed in an order fixed by the shape and the GPU model; dw is in any case.
    """
    device, dim, batch, slices = x.get_device(), problem.dim, problem.batch, plan.slices
    macros = {**plan.macros, "SHARED_SUMS": int(not deterministic)}
    far = 2 * slices - int(macros["NEAR"])
    lists = hopper.lists(layer)
    xt = x.new_empty(dim, far * HALF) if far else None
    progress = x.new_empty(2, dtype=torch.int32)
    sums = x.new_empty(plan.row_blocks if deterministic else slices, dim, ROWS, dtype=torch.float32)
    dx, dw = torch.empty_like(x), torch.empty_like(layer.weight)
    weights, grads = hopper.weight_map(layer, problem, min(int(macros["G"]), 32)), hopper.label_map(grad_out, ROWS)
    rows, outputs = hopper.row_map(x, HALF), output_map(dw, min(PIECE, int(macros["G"])))
    # From here on nothing else may be launched: each of these waits for the one before only where it needs it.
    prepared = (x, xt, progress, sums, 0 if deterministic else sums.numel(), batch, dim)
    kernel(SOURCE, "hopper_backward_prepare", macros, device).launch(
        max(1, cdiv(dim // 32 * far, SQUARES)), 256 * SQUARES, prepared
    )
    args = (weights, grads, rows, outputs, lists, sums, xt, progress, dim, problem.labels, plan.row_blocks,
            plan.lead)  # fmt: skip
    kernel(SOURCE, "hopper_backward", macros, device).launch(
        plan.row_blocks + plan.label_blocks, GRAD_INPUT_THREADS, args, plan.shared_bytes, early=True
    )
    hopper.add_parts(sums, dx, macros, slices, early=True)
    return dx, dw


def output_map(dw: Tensor, labels: int) -> TensorMap:
    """dW [L, K] in boxes of so many labels and 64 inputs."""
    return tensor_map(dw, (dw.shape[1], dw.shape[0]), (dw.shape[1] * 2,), (64, labels), 128)
