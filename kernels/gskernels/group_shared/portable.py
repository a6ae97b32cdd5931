"""The launchers of the portable CUDA kernels: group_shared on sm_80 and newer, for every shape.

A plan (tile sizes as macros, grid, shared memory) is a pure function of the problem and of what the GPU offers; the
kernels' sources say what the macros mean. Functions take contiguous operands on one GPU, the current device, and B > 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.cuda.launch import I64, kernel
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.tune import cdiv

ELEMENTS = {torch.float32: "float", torch.float16: "fp16", torch.bfloat16: "bf16"}
INDICES = {torch.int16: "short", torch.int32: "int"}
# Reductions go to four accumulators of dX^T, tile by tile, while these are small: they meet on fewer lines.
COPIED_NUMBERS = 1 << 21
HOPPER_SHARED_BYTES = 227 << 10  # what a block may have on sm_90 and sm_100; older GPUs offer less


@dataclass(frozen=True)
class Machine:
    """What a plan depends on: multiprocessors, and the shared memory (bytes) that one block may have."""

    processors: int
    shared_bytes: int


@dataclass(frozen=True)
class Plan:
    """macros: tile sizes of the kernel. rows: batch rows of a slice, and what the rows of X^T and dX^T are padded to."""

    macros: dict[str, int | str]
    rows: int
    shared_bytes: int

    def __getitem__(self, macro: str) -> int:
        return int(self.macros[macro])


@functools.cache
def machine(device_index: int) -> Machine:
    properties = torch.cuda.get_device_properties(device_index)
    return Machine(properties.multi_processor_count, properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


# ---- plans ------------------------------------------------------------------------------------------------------


def part_size(group_size: int) -> int:
    """Labels that a warp takes: 32, or 16 where fewer of those would be left empty."""
    return 16 if cdiv(group_size, 16) * 16 < cdiv(group_size, 32) * 32 else 32


def parts_of_group(problem: Problem) -> int:
    return cdiv(problem.group_size, part_size(problem.group_size))


def shared_parts(problem: Problem) -> int:
    """Parts of one group whose warps divide the inputs among them: each gathers and reduces fewer rows."""
    most = 2 if problem.item == 4 else 4
    return next(n for n in (4, 2, 1) if n <= most and parts_of_group(problem) % n == 0)


def slice_rows(problem: Problem) -> int:
    """Batch rows that a block treats together."""
    most = 32 if problem.item == 4 else 64
    return next(rows for rows in (16, 32, 64) if rows >= min(problem.batch, most))


def common_macros(problem: Problem, index: torch.dtype) -> dict[str, int | str]:
    """Element and index types, the part, and which rows are made of whole 16-byte pieces."""
    piece = 16 // problem.item
    return {
        "ELEMENT": ELEMENTS[problem.dtype], "INDEX": INDICES[index], "PART": part_size(problem.group_size),
        "W_ALIGNED": int(problem.fan_in % piece == 0),
        "Y_ALIGNED": int(problem.labels % piece == 0 and problem.group_size % piece == 0),
    }  # fmt: skip


def forward_shared_bytes(problem: Problem, rows: int, part: int, team: int, warps: int, resident: bool) -> int:
    """The stages of the teams; the whole slice of X^T and a row of zeros, or twice 32 rows of it a warp."""
    stage = rows * (team * part * problem.item + 64)
    return warps // team * stage + (problem.dim + 1 if resident else warps * 64) * rows * problem.item


def forward_plan(problem: Problem, index: torch.dtype, gpu: Machine) -> Plan:
    """The first of the choices, from fast to frugal, whose shared memory a block can have."""
    rows = 32 if problem.item == 4 else slice_rows(problem)
    macros = common_macros(problem, index)
    part, team = part_size(problem.group_size), 4
    choices = [(True, 16), (True, 12), (True, 8), (False, 12), (False, 8), (False, 4)]
    if rows * problem.item < 128 or (problem.item == 4 and not macros["W_ALIGNED"]):
        choices = choices[2:]  # narrow slices: several blocks a multiprocessor; ragged rows of fp32: the most registers
    elif problem.item == 4 or not macros["W_ALIGNED"] or gpu.shared_bytes < HOPPER_SHARED_BYTES:
        choices = choices[1:]  # fp32, ragged rows and sm_80 need more registers than 16 warps have
    for resident, warps in choices:
        shared = forward_shared_bytes(problem, rows, part, team, warps, resident)
        if shared <= gpu.shared_bytes:
            break
    macros |= {"SLICE": rows, "TEAM": team, "WARPS": warps, "BLOCKS": 1, "RESIDENT": int(resident)}
    return Plan(macros, rows, shared)


def gradients_plan(problem: Problem, index: torch.dtype, with_input: bool, with_weight: bool) -> Plan:
    """Needs at most 50 KB of shared memory, which every GPU has."""
    warps, part = 4, part_size(problem.group_size)
    stages = 2 * 32 * warps * part * problem.item
    macros = common_macros(problem, index)
    share, aligned = shared_parts(problem), macros["W_ALIGNED"] and macros["Y_ALIGNED"]
    blocks = 2 if with_input and with_weight and not macros["Y_ALIGNED"] else 3  # what registers allow without spills
    if problem.item == 2 and share == 4 and aligned:
        blocks = 4  # H200, G = 128: both gradients 0.252 ms, 0.280 with three blocks a multiprocessor
    macros |= {"SHARE": share, "WARPS": warps, "BLOCKS": blocks}
    macros |= {"WITH_INPUT": int(with_input), "WITH_WEIGHT": int(with_weight)}
    weights_and_inputs = warps * (part * 128 + 128 // problem.item * 4) if with_input else 0
    return Plan(macros, 32, stages + weights_and_inputs)


def ordered_shared_bytes(problem: Problem, rows: int, resident: bool) -> int:
    """Two stages of dY, weights and inputs; and the sums, if they are resident."""
    piece = 16 // problem.item
    parts = 8 * piece // part_size(problem.group_size)
    stages = 2 * (rows * 128 + 8 * piece * 128 + parts * (128 // problem.item) * 4)
    return stages + (problem.dim * rows * 4 if resident else 0)


def ordered_plan(problem: Problem, index: torch.dtype, gpu: Machine) -> Plan:
    """The largest slice whose sums fit shared memory; where none does, sums in global memory."""
    widest = next(rows for rows in (16, 32, 64) if rows >= min(problem.batch, 64))
    macros = common_macros(problem, index) | {"SPLIT": 2 if problem.item == 4 else 4}
    for rows in (64, 32, 16):
        shared = ordered_shared_bytes(problem, rows, True)
        if rows <= widest and shared <= gpu.shared_bytes:
            return Plan(macros | {"SLICE": rows, "ACCUMULATE_SHARED": 1}, rows, shared)
    macros |= {"SLICE": widest, "ACCUMULATE_SHARED": 0}
    return Plan(macros, widest, ordered_shared_bytes(problem, widest, False))


def prefers_ordered(problem: Problem, plan: Plan) -> bool:
    """Whether adding in order, in shared memory, is faster than reductions: they grow with 1 / G.

    H200, B = 256, D = 768, K = 64: 0.71 ms against 0.77 at G = 16, 0.50 against 0.44 at G = 32.
    """
    return problem.group_size <= 16 and plan["SLICE"] == 64 and bool(plan["ACCUMULATE_SHARED"])


def copies_of_sums(problem: Problem, stride: int) -> int:
    return 4 if problem.dim * stride < COPIED_NUMBERS else 1


# ---- launchers --------------------------------------------------------------------------------------------------


def transposed(x: Tensor, rows: int) -> Tensor:
    """x [B, D] -> [D, stride], zero from column B on; the stride is B rounded up to a multiple of `rows`."""
    (batch, dim), stride = x.shape, cdiv(x.shape[0], rows) * rows
    out = x.new_empty(dim, stride)
    macros = {"ELEMENT": ELEMENTS[x.dtype]}
    launcher = kernel("group_shared/portable_transpose.cu", "portable_transpose", macros, x.get_device())
    launcher.launch(cdiv(dim, 32) * cdiv(stride, 32), 256, (x, out, batch, dim, stride))
    return out


def summed(sums: Tensor, problem: Problem) -> Tensor:
    """sums [count, D, stride] fp32 -> dx [B, D], added in order."""
    count, dim, stride = sums.shape
    dx = sums.new_empty(problem.batch, dim, dtype=problem.dtype)
    macros = {"ELEMENT": ELEMENTS[problem.dtype]}
    launcher = kernel("group_shared/portable_transpose.cu", "portable_sum", macros, sums.get_device())
    launcher.launch(cdiv(dim, 32) * cdiv(problem.batch, 32), 256, (sums, dx, problem.batch, dim, stride, count))
    return dx


def forward(x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    indices, device = layer.sparse.indices, x.get_device()
    gpu = machine(device)
    plan = forward_plan(problem, indices.dtype, gpu)
    launcher = kernel("group_shared/portable_forward.cu", "portable_forward", plan.macros, device)
    y = x.new_empty(problem.batch, problem.labels)
    xt = transposed(x, plan.rows)
    parts = parts_of_group(problem)
    slices, tiles = xt.shape[1] // plan.rows, cdiv(problem.groups * parts, plan["TEAM"])
    threads = plan["WARPS"] * 32
    room = gpu.processors * launcher.blocks_per_sm(threads, plan.shared_bytes)
    blocks = max(1, min(room // slices, cdiv(tiles, plan["WARPS"] // plan["TEAM"])))
    args = (xt, layer.weight, indices, layer.bias, y, problem.batch, xt.shape[1], problem.dim, problem.labels,
            problem.fan_in, problem.group_size, parts, tiles, slices)  # fmt: skip
    launcher.launch(slices * blocks, threads, args, plan.shared_bytes)
    return y


def gradients(
    grad_out: Tensor, x: Tensor | None, layer: Layer, problem: Problem, with_input: bool
) -> tuple[Tensor | None, Tensor | None]:
    """grad_out [B, L] -> (dx [B, D] if with_input, dw [L, K] if x [B, D] is given) by one kernel; dx in no fixed order."""
    indices, device = layer.sparse.indices, grad_out.get_device()
    plan = gradients_plan(problem, indices.dtype, with_input, x is not None)
    launcher = kernel("group_shared/portable_gradients.cu", "portable_gradients", plan.macros, device)
    dw = None if x is None else torch.empty_like(layer.weight)
    stride = cdiv(problem.batch, plan.rows) * plan.rows
    copies = copies_of_sums(problem, stride)
    sums = grad_out.new_zeros(copies, problem.dim, stride, dtype=torch.float32) if with_input else None
    xt = None if x is None else transposed(x, plan.rows)
    parts, k_blocks = parts_of_group(problem), cdiv(problem.fan_in, 128 // problem.item)
    tiles = cdiv(problem.groups * parts, plan["WARPS"])
    args = (xt, grad_out, layer.weight, indices, dw, sums, problem.batch, stride, problem.labels, problem.fan_in,
            problem.group_size, parts, k_blocks, copies, I64(problem.dim * stride))  # fmt: skip
    launcher.launch(tiles * k_blocks, plan["WARPS"] * 32, args, plan.shared_bytes)
    return (None if sums is None else summed(sums, problem)), dw


def grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """grad_out [B, L] -> dx [B, D], the faster way."""
    plan = ordered_plan(problem, layer.sparse.indices.dtype, machine(grad_out.get_device()))
    if prefers_ordered(problem, plan):
        return ordered_grad_input(grad_out, layer, problem)
    dx, _ = gradients(grad_out, None, layer, problem, with_input=True)
    assert dx is not None
    return dx


def ordered_grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """grad_out [B, L] -> dx [B, D], in an order fixed by the shape and the GPU model."""
    indices, device = layer.sparse.indices, grad_out.get_device()
    gpu = machine(device)
    plan = ordered_plan(problem, indices.dtype, gpu)
    launcher = kernel("group_shared/portable_ordered.cu", "portable_ordered_grad_input", plan.macros, device)
    slices = cdiv(problem.batch, plan.rows)
    threads, stride = plan.rows // 16 * plan["SPLIT"] * 32, slices * plan.rows
    parts, k_blocks = parts_of_group(problem), cdiv(problem.fan_in, 128 // problem.item)
    tiles = cdiv(problem.groups * parts, 128 // problem.item // part_size(problem.group_size))
    room = gpu.processors * launcher.blocks_per_sm(threads, plan.shared_bytes)
    blocks = max(1, min(room // slices, tiles * k_blocks))
    partial = grad_out.new_empty(blocks, problem.dim, stride, dtype=torch.float32)
    args = (grad_out, layer.weight, indices, partial, problem.dim, problem.batch, stride, problem.labels,
            problem.fan_in, problem.group_size, parts, tiles, k_blocks, slices)  # fmt: skip
    launcher.launch(slices * blocks, threads, args, plan.shared_bytes)
    return summed(partial, problem)
