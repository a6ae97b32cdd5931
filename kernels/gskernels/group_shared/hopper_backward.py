"""The launcher of hopper_backward.cu: both gradients from one launch, whose blocks own either batch rows or labels.

A plan is a pure function of the problem and of what the GPU offers, as in `hopper`; None where the kernel does not take
the problem. Sums are taken in an order fixed by both.
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
TILE_BYTES = ROWS * TILE * 2
LEAST_RING, MOST_RING = 4, 16  # tiles of dY in a block that owns labels: for each tile that it is at, and in all
MOST_RESIDENT = 4  # slices of X^T there
MOST_FAR = 4  # slices that come from L2: of larger batches one kernel after the other is faster
DRAWN = 0.1  # of all rounds
LEAD = 4 << 20  # bytes of dY that blocks of a kind may be ahead of the others
# What takes a block how long, in one unit, fitted to the fastest of several shares (H200). Rows, for 64 inputs of a group:
# once, and for 64 rows. Labels, for 64 inputs: each label; 64 rows of the labels multiplied at once, near or far.
ADD_ONCE, ADD_COSTS = 285, {16: 276, 32: 335, 64: 677, 128: 1338}
STORE_COST, NEAR_COST, FAR_COST = 9.2, 112, 216


@dataclass(frozen=True)
class Plan:
    """macros: of the kernel. shared_bytes: of a block. slices: of 64 batch rows.

    row_blocks: that own a slice, a multiple of `slices`. label_blocks: that own labels.
    drawn: rounds, at the end, whose steps are drawn from a counter, for blocks of rows and of labels.
    lead: labels that these may be ahead of the others; -n: that they stay behind.
    """

    macros: Mapping[str, int | str]
    shared_bytes: int
    slices: int
    row_blocks: int
    label_blocks: int
    drawn: tuple[int, int]
    lead: tuple[int, int]


@functools.lru_cache(maxsize=1024)
def plan_of(problem: Problem, gpu: Machine) -> Plan | None:
    rows = hopper.grad_input_plan(problem, gpu)
    if rows is None:
        return None
    unit = min(int(rows.macros["G"]), TILE)
    jobs = TILE // unit * (problem.fan_in // 64)
    tiles = {1: 4, 2: 2}.get(jobs, 1)  # that a block is at
    room = gpu.shared_bytes - RESERVED - BARRIERS
    held = (room - LEAST_RING * tiles * TILE_BYTES) // (problem.dim * 128)  # slices of X^T that there is room for
    split = resident_slices(rows.slices, unit, min(MOST_RESIDENT, held))
    if split is None or rows.slices - split[0] > MOST_FAR:
        return None
    resident, chunk = split
    ring = min(MOST_RING, (room - resident * problem.dim * 128) // TILE_BYTES) // tiles * tiles
    shares = _shares(problem, gpu, int(rows.macros["G"]), rows.slices, resident)
    if shares is None:
        return None
    row_blocks, label_blocks = shares
    row_blocks = min(row_blocks, cdiv(problem.labels, max(TILE, int(rows.macros["G"]))) * rows.slices)
    label_blocks = min(label_blocks, cdiv(problem.labels, TILE * tiles))
    shared = max(rows.shared_bytes, BARRIERS + ring * TILE_BYTES + resident * problem.dim * 128)
    # Two slices' products at once hold two stages, and registers: sums, operands of each kind of slice, what comes.
    overlap = int(ring >= 4 * tiles and chunk + (resident > 0) + unit / 32 <= 4)
    macros = {
        **rows.macros, "RESIDENT": resident, "CHUNK": chunk, "RING": ring, "OVERLAP": overlap, "STORE": 0, "PIECE": unit, "SUM": 0,
    }  # fmt: skip
    steps = cdiv(problem.labels, max(TILE, int(rows.macros["G"]))), cdiv(problem.labels, TILE * tiles)
    drawn = int(steps[0] / (row_blocks // rows.slices) * DRAWN), int(steps[1] / label_blocks * DRAWN)
    lead = LEAD // (rows.slices * 128)
    return Plan(macros, shared, rows.slices, row_blocks, label_blocks, drawn, (lead, lead))


def resident_slices(slices: int, unit: int, most: int) -> tuple[int, int] | None:
    """(slices in shared memory, slices that are asked for together of the others): as many of the former as can be.

    Registers hold two slices on their way, beside sums of less than 64 labels three.
    """
    for resident in range(min(most, slices), -1, -1):
        left = slices - resident
        if left == 0:
            return resident, 0
        for chunk in (2, 3, 1):
            if left % chunk == 0 and (chunk > 1 or left == 1) and (chunk < 3 or unit < TILE):
                return resident, chunk
    return (0, 1) if most >= 0 else None


def _shares(problem: Problem, gpu: Machine, group: int, slices: int, resident: int) -> tuple[int, int] | None:
    """(blocks that own rows, blocks that own labels), such that both kinds end together."""
    unit, far = min(group, TILE), slices - resident
    adding = (ADD_ONCE + slices * ADD_COSTS[group]) / group
    weighing = STORE_COST + (resident * NEAR_COST + far * FAR_COST) / unit
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
    macros = {name: value for name, value in plan.macros.items() if isinstance(value, int)}
    far = (slices - macros["RESIDENT"]) * ROWS  # batch rows of X^T that label blocks read from L2
    lists = hopper.lists(layer)
    xt = x.new_empty(dim, far) if far else None
    progress = x.new_empty(3 + 3 * slices, dtype=torch.int32)
    partial = x.new_empty(plan.row_blocks, dim, ROWS, dtype=torch.float32)
    dx, dw = torch.empty_like(x), torch.empty_like(layer.weight)
    weights, grads = hopper.weight_map(layer, problem, min(macros["G"], 32)), hopper.label_map(grad_out, ROWS)
    # From here on nothing else may be launched: each of these waits for the one before only where it needs it.
    kernel(SOURCE, "hopper_backward_prepare", plan.macros, device).launch(
        max(1, dim // 32 * (far // 32)), 256, (x, xt, progress, len(progress), batch, dim, far)
    )
    drawn = (0, 0) if deterministic else plan.drawn
    args = (weights, grads, output_map(dw, macros), lists, partial, dx, x, xt, dw, progress, batch, dim, problem.labels,
            slices, plan.row_blocks, *drawn, *plan.lead)  # fmt: skip
    kernel(SOURCE, "hopper_backward", plan.macros, device).launch(
        plan.row_blocks + plan.label_blocks, GRAD_INPUT_THREADS, args, plan.shared_bytes, early=True
    )
    if not macros["SUM"]:
        hopper.add_parts(partial, dx, plan.macros, slices, early=True)
    return dx, dw


def output_map(dw: Tensor, macros: Mapping[str, int]) -> TensorMap:
    """dW [L, K] in boxes of PIECE labels and 64 inputs, or the 16 of a warp."""
    labels, fan_in = dw.shape
    inputs = 64 if macros["STORE"] == 2 else 16
    return tensor_map(dw, (fan_in, labels), (fan_in * 2,), (inputs, macros["PIECE"]), inputs * 2)
