"""The launchers of group_shared/cuda on Hopper (sm_90a): persistent blocks that keep a slice of X^T, or of dX^T, on chip.

A plan (macros, slices, shared memory) is a pure function of the problem and of what the GPU offers; the kernels' sources
say what the macros mean. None means that the kernel does not take the problem: the portable kernels do.
Functions take contiguous operands that begin on 16 bytes, on one GPU, the current device.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.choices import Config
from gskernels.cuda.counters import counters
from gskernels.cuda.launch import TensorMap, kernel, tensor_map
from gskernels.group_shared import portable
from gskernels.group_shared.portable import Machine
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT
from gskernels.tune import cdiv, choose, shape_class

ELEMENTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
GRAD_INPUT_SOURCE = "group_shared/hopper_grad_input.cu"
TILE = 64  # labels that the copy engine moves together: 128 bytes a row
LEAST_BATCH = 33  # below, most of a slice of 64 rows would be empty
RESERVED = 1024  # bytes of shared memory for barriers
BARRIERS = 1024  # bytes for those of grad_input
PART_BYTES = 3  # of a number in a block's part of dX
GRAD_INPUT_THREADS = 4 * 128 + 128  # warpgroups that add, and one whose warps ask the copy engine
# Warpgroups and stages of the forward: the first that fits is the default, the others are candidates of
# `tune.trials`: what a stage more or a warpgroup less brings is seen by measuring only.
FORWARD_CHOICES = ((4, 2), (3, 2), (2, 2), (4, 1), (2, 1), (3, 1), (4, 3), (4, 4), (3, 3), (3, 4), (2, 3), (2, 4))


@dataclass(frozen=True)
class Plan:
    """macros: of the kernel. threads, shared_bytes: of a block. slices: of the batch. blocks: of the grid."""

    macros: Mapping[str, int | str]
    threads: int
    shared_bytes: int
    slices: int
    blocks: int


@functools.cache
def machine(device_index: int) -> Machine | None:
    """None for what is not Hopper."""
    return portable.machine(device_index) if torch.cuda.get_device_capability(device_index) == (9, 0) else None


def machine_of(device: torch.device) -> Machine | None:
    """As `machine`; a device without an index is the current one."""
    return machine(torch.cuda.current_device() if device.index is None else device.index)


# ---- plans ------------------------------------------------------------------------------------------------------


def common_macros(problem: Problem, most: int) -> dict[str, int | str] | None:
    """What all kernels take, or None. most: labels that are multiplied together; groups are 16, or a multiple, of them."""
    group = min(problem.group_size, most)
    fits = (
        problem.dtype in ELEMENTS
        and problem.batch >= LEAST_BATCH
        and problem.dim % 64 == 0
        and problem.fan_in % 64 == 0
        and group in (16, 32, 64, 128)
        and problem.group_size % group == 0
    )
    if not fits:
        return None
    return {"ELEMENT": ELEMENTS[problem.dtype], "K": problem.fan_in, "G": group, "LIST": problem.group_size}


def forward_plan(problem: Problem, gpu: Machine, bias: bool = False) -> Plan | None:
    """The default of `forward_plans`: the most warpgroups and, after them, stages that shared memory has room for."""
    return next(iter(forward_plans(problem, gpu, bias)), None)


def forward_plans(problem: Problem, gpu: Machine, bias: bool = False) -> list[Plan]:
    """A plan for each number of warpgroups and stages that shared memory has room for, the default first."""
    common = common_macros(problem, TILE)
    if common is None or problem.labels % 8:  # the copy engine wants rows of Y that begin on 16 bytes
        return []
    stage = TILE * 128 + TILE // int(common["G"]) * 128  # 64 inputs of a tile: weights, lists
    wide = 1 if problem.labels % TILE else 2  # tiles that are stored at once; then the map must see whole ones
    slices, plans = cdiv(problem.batch, 64), []
    for warpgroups, stages in FORWARD_CHOICES:
        if warpgroups == 4 and common["G"] == 16 and problem.fan_in > 64:
            continue  # registers would not suffice
        shared = problem.dim * 128 + warpgroups * (stages * stage + 2 * TILE * 128)
        if shared + RESERVED <= gpu.shared_bytes:
            parts = max(1, min(gpu.processors // slices, cdiv(cdiv(problem.labels, TILE * wide), warpgroups)))
            macros = common | {"WARPGROUPS": warpgroups, "STAGES": stages, "BIAS": int(bias), "WIDE": wide}
            plans.append(Plan(macros, warpgroups * 160, shared, slices, slices * parts))
    return plans


@functools.lru_cache(maxsize=1024)
def tuned_forward(problem: Problem, gpu: Machine, bias: bool) -> tuple[str, list[Config], list[Plan]]:
    """What the choice among `forward_plans` needs: the shape class, and configurations beside their plans.

    How many plans there are is part of the class, so that what is chosen for one of its shapes fits all.
    """
    plans = forward_plans(problem, gpu, bias)
    shape = shape_class(
        batch=problem.batch, dim=problem.dim, labels=problem.labels, fan_in=problem.fan_in,
        group_size=problem.group_size, dtype=problem.dtype, rows=f"{len(plans)}plans",
    )  # fmt: skip
    return shape, [{name: int(plan.macros[name]) for name in ("WARPGROUPS", "STAGES")} for plan in plans], plans


def grad_input_plan(problem: Problem, gpu: Machine) -> Plan | None:
    """Sums of 64 rows in shared memory; the rest is for tiles of dY, up to four, and, of small groups, as much for W."""
    macros = common_macros(problem, 128 if problem.fan_in == 64 else 64)
    if macros is None or problem.labels % 8:  # the copy engine wants rows of dY that begin on 16 bytes
        return None
    group, tile, sums = int(macros["G"]), TILE * 64 * 2, cdiv(problem.dim * 256, 1024) * 1024
    stage = stage_bytes(group)
    room = gpu.shared_bytes - RESERVED - BARRIERS - sums
    tiles = power_of_two(min(4, room // (2 * tile if stage else tile)))
    stages = power_of_two(min(16, (room - tiles * tile) // stage)) if stage else 1
    if tiles == 0 or stages == 0:
        return None
    slices = cdiv(problem.batch, 64)
    parts = max(1, min(gpu.processors // slices, cdiv(problem.labels, max(TILE, group))))  # a block takes so many at once
    shared = BARRIERS + sums + tiles * tile + stages * stage
    return Plan(macros | {"RING_Y": tiles, "RING_W": stages}, GRAD_INPUT_THREADS, shared, slices, slices * parts)


def stage_bytes(group: int) -> int:
    """Of grad_input: W of two units, of 64 inputs of a group each, and their lists; none where W comes to registers."""
    return 2 * (group * 128 + 128) if group < TILE else 0


def power_of_two(n: int) -> int:
    """The largest that does not exceed n; 0 if n is less than 1."""
    return 1 << n.bit_length() - 1 if n > 0 else 0


def grad_weight_plan(problem: Problem, gpu: Machine) -> Plan | None:
    """For what one block can hold of X. Two blocks that share a batch of 256 and exchange sums were slower than Triton."""
    macros = common_macros(problem, 32)
    rows = 64 if problem.batch <= 64 else 128
    shared = rows * problem.dim * 2
    if macros is None or problem.batch > rows or shared + RESERVED > gpu.shared_bytes:
        return None
    macros |= {"ROWS": rows, "ALIGNED": 2 if problem.labels % 4 == 0 else 1 - problem.labels % 2}
    return Plan(macros, 256, shared, 1, min(gpu.processors, cdiv(problem.labels, 256)))


def plan_of(problem: Problem, pass_: str, gpu: Machine) -> Plan | None:
    if pass_ == BACKWARD:  # one kernel after the other; where groups are large, one that reads dY once is faster
        return grad_input_plan(problem, gpu) if problem.group_size <= 32 else None
    plans = {FORWARD: forward_plan, GRAD_INPUT: grad_input_plan, GRAD_WEIGHT: grad_weight_plan}
    return plans[pass_](problem, gpu)


def supports(problem: Problem, pass_: str, device: torch.device) -> bool:
    """Whether that pass of that problem runs here, on that device."""
    gpu = machine_of(device)
    return gpu is not None and plan_of(problem, pass_, gpu) is not None


# ---- launchers --------------------------------------------------------------------------------------------------


def _gpu(tensor: Tensor) -> Machine:
    gpu = machine(tensor.get_device())
    assert gpu is not None
    return gpu


def lists(layer: Layer) -> Tensor:
    """[groups, K] int16, as all kernels for Hopper read them."""
    return layer.sparse.indices.to(torch.int16)


def weight_map(layer: Layer, problem: Problem, labels: int) -> TensorMap:
    """[L, K] in boxes of so many labels and 64 inputs."""
    return tensor_map(layer.weight, (problem.fan_in, problem.labels), (problem.fan_in * 2,), (64, labels), 128)


def row_map(x: Tensor) -> TensorMap:
    """[B, D] in boxes of 64 rows and 64 inputs."""
    batch, dim = x.shape
    return tensor_map(x, (dim, batch), (dim * 2,), (64, 64), 128)


def label_map(y: Tensor, rows: int) -> TensorMap:
    """[B, L] in boxes of `rows` rows and 64 labels."""
    batch, labels = y.shape
    return tensor_map(y, (labels, batch), (labels * 2,), (TILE, rows), 128)


def _wide_label_map(y: Tensor) -> TensorMap:
    """[B, L] in boxes of 16 rows and twice 64 labels, each row's 256 bytes together."""
    batch, labels = y.shape
    return tensor_map(y, (TILE, labels // TILE, batch), (TILE * 2, labels * 2), (TILE, 2, 16), 128)


def forward(x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    shape, configs, plans = tuned_forward(problem, _gpu(x), layer.bias is not None)
    config = choose(
        "group_shared.cuda.forward", shape, configs,
        lambda one: _forward(x, layer, problem, plans[configs.index(one)]), x,
        legal=configs.__contains__, on_purpose=True,
    )  # fmt: skip
    return _forward(x, layer, problem, plans[configs.index(config)])


def _forward(x: Tensor, layer: Layer, problem: Problem, plan: Plan) -> Tensor:
    y = x.new_empty(problem.batch, problem.labels)
    weights = weight_map(layer, problem, TILE)
    logits = label_map(y, 16) if plan.macros["WIDE"] == 1 else _wide_label_map(y)
    device = x.get_device()
    args = (weights, logits, row_map(x), lists(layer), layer.bias, counters(plan.slices, device), problem.dim,
            problem.labels)  # fmt: skip
    launcher = kernel("group_shared/hopper_forward.cu", "hopper_forward", plan.macros, device)
    launcher.launch((plan.slices, plan.blocks // plan.slices), plan.threads, args, plan.shared_bytes)
    return y


def grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """grad_out [B, L] -> dx [B, D], in an order fixed by the shape and the GPU model."""
    plan = grad_input_plan(problem, _gpu(grad_out))
    assert plan is not None
    weights = weight_map(layer, problem, min(int(plan.macros["G"]), TILE))
    partial = empty_parts(grad_out, plan.blocks, problem.dim)
    args = (weights, label_map(grad_out, 64), layer.weight, lists(layer), partial, problem.dim, problem.labels,
            plan.slices)  # fmt: skip
    launcher = kernel(GRAD_INPUT_SOURCE, "hopper_grad_input", plan.macros, grad_out.get_device())
    launcher.launch(plan.blocks, plan.threads, args, plan.shared_bytes)
    dx = grad_out.new_empty(problem.batch, problem.dim)
    add_parts(partial, dx, plan.macros, plan.slices)
    return dx


def empty_parts(like: Tensor, blocks: int, dim: int) -> Tensor:
    """Room for the parts of dX^T that so many blocks leave, which own 64 batch rows each."""
    return like.new_empty(blocks, dim, 64 * PART_BYTES, dtype=torch.uint8)


def add_parts(partial: Tensor, dx: Tensor, macros: Mapping[str, int | str], slices: int, early: bool = False) -> None:
    """dx [B, D] = the sums of what the blocks of a slice hold, `empty_parts`, in a fixed order.

    macros: those of grad_input, and any others. early: as in `Kernel.launch`.
    """
    batch, dim = dx.shape
    mine = {name: macros[name] for name in ("ELEMENT", "K", "G", "LIST", "RING_Y", "RING_W")}
    mine |= {"FEW": 1} if slices <= 2 else {}
    launcher = kernel(GRAD_INPUT_SOURCE, "hopper_grad_input_sum", mine, dx.get_device())
    addends = (partial, dx, batch, dim, slices, len(partial) // slices)
    warps = 21 if slices == 1 else 12  # its TURNS; of two slices fewer, so that all blocks run at once
    launcher.launch(slices * (dim // 8), 32 * warps, addends, early=early)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    plan = grad_weight_plan(problem, _gpu(x))
    assert plan is not None
    dw = torch.empty_like(layer.weight)
    args = (x, grad_out, lists(layer), dw, problem.batch, problem.dim, problem.labels)
    launcher = kernel("group_shared/hopper_grad_weight.cu", "hopper_grad_weight", plan.macros, x.get_device())
    launcher.launch(plan.blocks, plan.threads, args, plan.shared_bytes)
    return dw
