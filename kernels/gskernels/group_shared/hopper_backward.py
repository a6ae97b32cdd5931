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
LEAST_RING, MOST_RING = {1: 4, 2: 8, 4: 8}, 16  # tiles of dY in a block that owns labels, by those that it is at; at most
DEEP = 3  # halves on their way to a warpgroup
MOST_FAR = 8  # halves that come from L2: of larger batches one kernel after the other is faster
LEAD = 8 << 20  # bytes of dY that blocks of a kind may be ahead of the others
SQUARES = 4  # of 32 x 32 numbers of X that a block transposes
# What takes a block how long, in one unit, fitted to the fastest of several shares (H200). Rows, for 64 inputs of a group:
# once, and for 64 rows. Labels, for 64 inputs: each label; 64 rows of the labels multiplied at once, near or far.
ADD_ONCE, ADD_COSTS = 285, {16: 276, 32: 335, 64: 677, 128: 1338}
STORE_COST, NEAR_COST, FAR_COST = 9.2, 112, 216


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
    if rows is None:
        return None
    halves = 2 * rows.slices
    found = None
    for near in range(halves, max(-1, halves - MOST_FAR - 1), -1):
        for deep in range(min(DEEP, halves - near), 0, -1) or (0,):
            found = found or label_macros(problem, gpu, near, deep)
    shares = _shares(problem, gpu, int(rows.macros["G"]), rows.slices, found[0]["NEAR"] / 2) if found else None
    if found is None or shares is None:
        return None
    row_blocks, label_blocks = shares
    row_blocks = min(row_blocks, cdiv(problem.labels, max(TILE, int(rows.macros["G"]))) * rows.slices)
    label_blocks = min(label_blocks, cdiv(problem.labels, TILE * _tiles(problem)))
    return Plan(
        {**rows.macros, **found[0], "SHARED_SUMS": 1}, max(rows.shared_bytes, found[1]), rows.slices, row_blocks, label_blocks,
        LEAD // (rows.slices * 128),
    )  # fmt: skip


def _tiles(problem: Problem) -> int:
    """That a label block is at: its four warpgroups have 64 inputs of a group each."""
    return {1: 4, 2: 2}.get(cdiv(TILE, problem.group_size) * (problem.fan_in // 64), 1)


def label_macros(
    problem: Problem, gpu: Machine, near: int, deep: int, asked: int = 1, direct: int = 0, early: int = 2,
    piece: int = 32,
) -> tuple[dict[str, int], int] | None:  # fmt: skip
    """(macros of blocks that own labels, their shared memory), with as many stages as there is room for; None if too few.

    Of X^T `near` halves of a slice are in shared memory, `direct` come to registers and the others to a ring there.
    """
    piece, tiles = min(piece, problem.group_size), _tiles(problem)
    deep = 0 if 2 * cdiv(problem.batch, ROWS) == near + direct else deep
    held = 4 * piece * 128 + deep * SLOT_BYTES + near * problem.dim * HALF * 2
    ring = min(MOST_RING, (gpu.shared_bytes - RESERVED - BARRIERS - held) // TILE_BYTES) // tiles * tiles
    if ring < LEAST_RING[tiles]:
        return None
    macros = {
        "SLICES": cdiv(problem.batch, ROWS), "NEAR": near, "DIRECT": direct, "EARLY": early if direct else 0, "DEEP": deep,
        "ASKED": asked, "RING": ring, "OVERLAP": int(ring > tiles), "PIECE": piece,
    }  # fmt: skip
    return macros, BARRIERS + ring * TILE_BYTES + held


def _shares(problem: Problem, gpu: Machine, group: int, slices: int, near: float) -> tuple[int, int] | None:
    """(blocks that own rows, blocks that own labels), such that both kinds end together."""
    unit, far = min(group, TILE), slices - near
    adding = (ADD_ONCE + slices * ADD_COSTS[group]) / group
    weighing = STORE_COST + (near * NEAR_COST + far * FAR_COST) / unit
    times = {
        parts * slices: max(adding / (parts * slices), weighing / (gpu.processors - parts * slices))
        for parts in range(1, (gpu.processors - 1) // slices + 1)
    }
    best = min(times, key=times.__getitem__, default=0)
    return (best, gpu.processors - best) if best else None


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
    rows, outputs = hopper.row_map(x, HALF), output_map(dw, int(macros["PIECE"]))
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
