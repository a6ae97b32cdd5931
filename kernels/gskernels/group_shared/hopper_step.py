"""The step of group_shared/cuda on Hopper: one cooperative launch, between kernels that prepare and one that finishes.

Blocks that own labels make logits, loss, dY, dW and the update; blocks that own batch rows take dY from a ring in global
memory and make dX. `hopper_step.cu` says how. A plan is a pure function of the problem and of what the GPU offers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.cuda.launch import kernel
from gskernels.group_shared import hopper
from gskernels.group_shared.hopper import ELEMENTS, LEAST_BATCH
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.optim import Update
from gskernels.pointwise_triton import KINDS, ROUNDINGS
from gskernels.pointwise_triton import words as words_of_seed
from gskernels.steps import Targets, Updates
from gskernels.tune import cdiv

SOURCE = "group_shared/hopper_step.cu"
THREADS, CONSUMERS = 896, 16  # of a block; its warps that make logits
RESERVED = 1024  # bytes of shared memory for barriers
MOST_STAGES = 8
# What a unit costs a block that owns labels, in units of what a slice of it costs one that owns rows: once, and a slice.
# Fitted to the fastest of several shares (H200), by unit and fan-in; the last is the one before it, not measured.
LABEL_COSTS = {(32, 64): (1.12, 1.09), (16, 64): (1.16, 0.91), (32, 128): (0.7, 1.04), (16, 128): (0.7, 1.04)}
INDICES = {torch.int32: "int", torch.int64: "i64"}


@dataclass(frozen=True)
class Plan:
    """unit: labels that a block treats together. item_slices: of 64 batch rows, of an item. row_blocks: of the batch.

    input_blocks, output_blocks: that own batch rows, labels. stages, input_stages: of their rings in shared memory.
    slots: items in the ring in global memory, of slot_bytes each.
    """

    unit: int
    item_slices: int
    row_blocks: int
    input_blocks: int
    output_blocks: int
    stages: int
    input_stages: int
    slots: int
    slot_bytes: int
    shared_bytes: int

    @property
    def slices(self) -> int:
        """Of 64 batch rows."""
        return self.row_blocks * self.item_slices


def input_share(unit: int, fan_in: int, slices: int) -> float:
    """Of the multiprocessors, for the blocks that own batch rows, such that both kinds end together."""
    once, each = LABEL_COSTS[unit, fan_in]
    return slices / (slices + once + each * slices)


def plan_of(problem: Problem, gpu: Machine, bias: bool, factor: bool) -> Plan | None:
    """None for what the kernel does not take."""
    unit = next((unit for unit in (32, 16) if problem.group_size % unit == 0), 0)
    fits = (
        problem.dtype in ELEMENTS and unit and problem.batch >= LEAST_BATCH and problem.dim % 64 == 0
        and problem.fan_in in (64, 128)
    )  # fmt: skip
    if not fits:
        return None
    room = gpu.shared_bytes - RESERVED
    sums, taken = cdiv(problem.dim * 256, 1024) * 1024, unit * problem.fan_in * 2 + 64 * unit * 2 + problem.fan_in * 2
    input_stages = min(16, (room - sums) // taken) // 2 * 2
    most = next(slices for slices in (1, 2, 4) if slices == 4 or slices * 64 >= problem.batch)
    stage = {slices: stage_bytes(problem.fan_in, unit, slices, bias, factor) for slices in (4, 2, 1) if slices <= most}
    stages = {slices: _stages(room // size, slices, cdiv(problem.batch, slices * 64)) for slices, size in stage.items()}
    # The most rows under way, which count half with one warpgroup that weighs; of as many, in smaller items.
    rows = {s: s * n // (1 if n % (2 * cdiv(problem.batch, s * 64)) == 0 else 2) for s, n in stages.items()}
    item_slices = max(rows, key=lambda slices: (rows[slices], -slices))
    row_blocks = cdiv(problem.batch, item_slices * 64)
    slices = row_blocks * item_slices
    parts = max(1, round(input_share(unit, problem.fan_in, slices) * gpu.processors / slices))
    output_blocks = gpu.processors - parts * slices
    if stages[item_slices] == 0 or input_stages < 2 or output_blocks < 1:
        return None
    # Blocks wait for each other through the ring: it holds what all have under way, several times.
    slots = row_blocks * (5 * output_blocks + 3 * (input_stages + 1) * parts)
    slot_bytes = unit * (problem.fan_in + item_slices * 64) * 2
    shared = max(stages[item_slices] * stage[item_slices], sums + input_stages * taken)
    return Plan(
        unit, item_slices, row_blocks, parts * slices, output_blocks, stages[item_slices], input_stages, slots, slot_bytes,
        shared,
    )  # fmt: skip


def _stages(fitting: int, slices: int, row_blocks: int) -> int:
    """Who waits at a stage was there the time before, as barriers tell passages apart by parity: warpgroups take items in
    turns, two of them units of `row_blocks` items if there are stages for both, else one takes all."""
    turns = max(2, 4 // slices)
    both = math.lcm(turns, 2 * row_blocks)
    most = min(MOST_STAGES, fitting)
    return most // both * both or most // turns * turns


def stage_bytes(fan_in: int, unit: int, slices: int, bias: bool, factor: bool) -> int:
    """Of a block that owns labels: rows of X^T, whose place dW takes later; weights and dY; and beside them where the
    positives begin, the bias and its warps' sums, the factors."""
    gradient = cdiv(unit * (fan_in + 4) * 4, 1024) * 1024
    matrices = max(fan_in * slices * 128, gradient) + unit * fan_in * 2 + slices * 64 * unit * 2
    return matrices + 16 + bias * (unit * 2 + slices * 4 * unit * 4) + factor * unit * 4


def plan_for(problem: Problem, layer: Layer, targets: Targets, updates: Updates, device: torch.device) -> Plan | None:
    """A plan for a call on this device, or None where another implementation has to take it."""
    gpu = hopper.machine_of(device)
    if gpu is None or targets.positives.labels.dtype not in INDICES:
        return None
    update = updates.get("weight")
    states = () if update is None else (layer.weight, update.momentum_buffer, update.compensation)
    if any(state is not None and state.data_ptr() % 16 for state in states):
        return None
    return plan_of(problem, gpu, layer.bias is not None, targets.label_weight is not None)


def macros_of(
    problem: Problem, plan: Plan, bias: bool, targets: Targets, update: Update | None
) -> dict[str, int | str]:  # fmt: skip
    """What `hopper_step.cu` is compiled with."""
    how = Update(0.0) if update is None else update
    return {
        "ELEMENT": ELEMENTS[problem.dtype], "INDEX": INDICES[targets.positives.labels.dtype], "K": problem.fan_in,
        "G": plan.unit, "LIST": problem.group_size, "SLICES": plan.item_slices, "STAGES": plan.stages, "BIAS": int(bias),
        "UPDATE": int(update is not None), "LOSS": KINDS.index(targets.loss), "MOMENTUM": int(how.momentum > 0),
        "FACTOR": int(targets.label_weight is not None), "ROUNDING": ROUNDINGS.index(how.rounds(problem.dtype)),
    }  # fmt: skip


def step(
    x: Tensor, layer: Layer, targets: Targets, update: Update | None, problem: Problem, plan: Plan
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """x [B, D] -> loss, dx, dw where there is no update of the weights, db [L] fp32 where there is a bias.

    Operands are contiguous and begin on 16 bytes.
    """
    how = Update(0.0) if update is None else update
    device, stride = x.get_device(), plan.slices * 64
    pointers, positives = targets.positives.pointers, targets.positives.labels
    units = cdiv(problem.labels, plan.unit)
    words_of = (plan.slices * problem.dim * 64, units, plan.slots, plan.slots)
    words = x.new_empty(sum(words_of), dtype=torch.int32)
    sums, heads, ready, done = words.split(words_of)
    links = x.new_empty(max(1, len(positives)), 4, dtype=torch.int32)
    xt, dx, loss = x.new_empty(problem.dim, stride), torch.empty_like(x), x.new_empty((), dtype=torch.float32)
    losses = x.new_empty(plan.output_blocks, CONSUMERS, dtype=torch.float64)
    ring = x.new_empty(plan.slots, plan.slot_bytes, dtype=torch.uint8)  # small enough to stay in L2
    dw = torch.empty_like(layer.weight) if update is None else None
    db = None if layer.bias is None else x.new_empty(problem.labels, dtype=torch.float32)

    macros = macros_of(problem, plan, layer.bias is not None, targets, update)
    squares = cdiv(problem.dim, 32) * cdiv(stride, 32)
    pointers = pointers.to(positives.dtype)
    kernel(SOURCE, "hopper_step_clear", macros, device).launch(cdiv(len(words), 1024), 256, (words, len(words)))
    kernel(SOURCE, "hopper_step_prepare", macros, device).launch(
        squares + cdiv(problem.batch, 8), 256,
        (x, xt, pointers, positives, heads, links, problem.batch, problem.dim, stride), early=True,
    )  # fmt: skip
    maps = hopper.weight_map(layer, problem, plan.unit)
    args = (
        maps, xt, hopper.lists(layer), heads, links, layer.bias, targets.label_weight, ring, ready, done,
        sums, losses, layer.weight, dw, how.momentum_buffer, how.compensation, db, problem.batch, problem.dim,
        problem.labels, plan.row_blocks, plan.input_blocks, plan.input_stages, plan.slots, float(how.lr),
        float(how.momentum), float(how.weight_decay), *words_of_seed(how.seed),
    )  # fmt: skip
    kernel(SOURCE, "hopper_step", macros, device).launch(
        plan.input_blocks + plan.output_blocks, THREADS, args, plan.shared_bytes, cooperative=True
    )
    kernel(SOURCE, "hopper_step_finish", macros, device).launch(
        plan.slices * (problem.dim // 16) + 1, 256,
        (sums, dx, losses, loss, problem.batch, problem.dim, plan.slices, losses.numel()),
        early=True,
    )  # fmt: skip
    return loss, dx, dw, db
