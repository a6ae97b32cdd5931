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

from gskernels.cuda.launch import TensorMap, kernel, tensor_map
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.table import FORWARD, GRAD_WEIGHT
from gskernels.tune import cdiv

DETERMINISTIC = True  # grad_input and backward sum in a fixed order
ELEMENTS = {torch.float16: "fp16", torch.bfloat16: "bf16"}
TILE = 64  # labels that the copy engine moves together: 128 bytes a row
LEAST_BATCH = 33  # below, most of a slice of 64 rows would be empty
RESERVED = 1024  # bytes of shared memory for barriers


@dataclass(frozen=True)
class Machine:
    """What a plan depends on: multiprocessors, and the shared memory (bytes) that one block may have."""

    processors: int
    shared_bytes: int


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
    if torch.cuda.get_device_capability(device_index) != (9, 0):
        return None
    properties = torch.cuda.get_device_properties(device_index)
    return Machine(properties.multi_processor_count, properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


# ---- plans ------------------------------------------------------------------------------------------------------


def common_macros(problem: Problem, most: int) -> dict[str, int | str] | None:
    """What all kernels take, or None. most: labels of a product; a list is shared by 16, or by a multiple of them."""
    group = min(problem.group_size, most)
    fits = (
        problem.dtype in ELEMENTS
        and problem.batch >= LEAST_BATCH
        and problem.dim % 64 == 0
        and problem.fan_in % 64 == 0
        and group in (16, 32, 64)
        and problem.group_size % group == 0
    )
    if not fits:
        return None
    return {"ELEMENT": ELEMENTS[problem.dtype], "K": problem.fan_in, "G": group, "LIST": problem.group_size}


def forward_plan(problem: Problem, gpu: Machine, bias: bool = False) -> Plan | None:
    """The most warpgroups and stages that shared memory has room for."""
    macros = common_macros(problem, TILE)
    if macros is None or problem.labels % 8:  # the copy engine wants rows of Y that begin on 16 bytes
        return None
    lists = TILE // int(macros["G"]) * problem.fan_in * 2
    for warpgroups, stages in ((4, 2), (3, 2), (2, 2), (4, 1), (2, 1)):
        shared = problem.dim * 128 + warpgroups * (stages * (TILE * problem.fan_in * 2 + lists) + 2 * TILE * 128)
        if shared + RESERVED <= gpu.shared_bytes:
            break
    else:
        return None
    slices = cdiv(problem.batch, 64)
    parts = max(1, min(gpu.processors // slices, cdiv(cdiv(problem.labels, TILE), warpgroups)))
    macros |= {"WARPGROUPS": warpgroups, "STAGES": stages, "BIAS": int(bias)}
    return Plan(macros, warpgroups * 128, shared, slices, slices * parts)


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
    plans = {FORWARD: forward_plan, GRAD_WEIGHT: grad_weight_plan}
    return plans[pass_](problem, gpu) if pass_ in plans else None


def supports(problem: Problem, pass_: str, device: torch.device) -> bool:
    """Whether that pass of that problem runs here, on that device."""
    gpu = machine(torch.cuda.current_device() if device.index is None else device.index)
    return gpu is not None and plan_of(problem, pass_, gpu) is not None


# ---- launchers --------------------------------------------------------------------------------------------------


def _gpu(tensor: Tensor) -> Machine:
    gpu = machine(tensor.get_device())
    assert gpu is not None
    return gpu


def _lists(layer: Layer) -> Tensor:
    return layer.sparse.indices.to(torch.int16)


def _label_map(y: Tensor, rows: int) -> TensorMap:
    """[B, L] in boxes of `rows` rows and 64 labels."""
    batch, labels = y.shape
    return tensor_map(y, (labels, batch), (labels * 2,), (TILE, rows), 128)


def forward(x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    plan = forward_plan(problem, _gpu(x), layer.bias is not None)
    assert plan is not None
    y = x.new_empty(problem.batch, problem.labels)
    weights = tensor_map(layer.weight, (problem.fan_in, problem.labels), (problem.fan_in * 2,), (64, TILE), 128)
    args = (weights, _label_map(y, 64), x, _lists(layer), layer.bias, problem.batch, problem.dim, problem.labels,
            plan.slices)  # fmt: skip
    launcher = kernel("group_shared/hopper_forward.cu", "hopper_forward", plan.macros, x.get_device())
    launcher.launch(plan.blocks, plan.threads, args, plan.shared_bytes)
    return y


def grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    raise NotImplementedError


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    plan = grad_weight_plan(problem, _gpu(x))
    assert plan is not None
    dw = torch.empty_like(layer.weight)
    args = (x, grad_out, _lists(layer), dw, problem.batch, problem.dim, problem.labels)
    launcher = kernel("group_shared/hopper_grad_weight.cu", "hopper_grad_weight", plan.macros, x.get_device())
    launcher.launch(plan.blocks, plan.threads, args, plan.shared_bytes)
    return dw


def backward(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]."""
    return grad_input(grad_out, layer, problem), grad_weight(grad_out, x, layer, problem)
