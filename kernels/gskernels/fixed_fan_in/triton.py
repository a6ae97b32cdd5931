"""fixed_fan_in/triton: every label gathers its own rows of X^T; products on plain cores. weight [L, K].

Y^T[l] = sum_k W[l, k] X^T[I[l, k]];  dW[l, k] = <dY^T[l], X^T[I[l, k]]>;  dX^T[d] = sum over the labels that read d.
X, W (and dY for grad_input) are transposed first. What derives from the indices alone is made once a topology
(`topology.memo`) and is no part of a pass: the indices as [K, L], and for grad_input the lists of labels by input.
All sums have a fixed order: every pass returns the same bits each time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import tune
from gskernels.fixed_fan_in.triton_kernels import (
    label_forward_kernel,
    label_grad_input_kernel,
    label_grad_weight_kernel,
    take_kernel,
)
from gskernels.group_shared.triton_problem import Problem, distinct, transpose, without
from gskernels.layer import Layer
from gskernels.topology import GroupTopology
from gskernels.tune import Config

PLAN_ENTRIES = 1 << 26  # pairs of label and input that are sorted at once


@dataclass(frozen=True)
class Plan:
    """The transposed topology in chunks of labels: who reads each input, padded to lists of equal length per block.

    source: [n] where in W (flat) an entry's weight is, or -1 for padding
    local: [n] the entry's label within its chunk
    offsets: [chunks * blocks + 1] int64, where the lists of a block of inputs begin
    """

    source: Tensor
    local: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, topology: GroupTopology, config: Config) -> Plan:
        """Lists are padded to the longest of their BLOCK_D inputs, rounded up to UNROLL."""
        chunk, block, unroll = config["CHUNK"], config["BLOCK_D"], config["UNROLL"]
        wide = topology.labels * topology.fan_in >= 2**31
        blocks = tune.cdiv(topology.dim, block)
        step = max(1, PLAN_ENTRIES // (chunk * topology.fan_in)) * chunk
        sources, locals_, lengths = [], [], []
        for start in range(0, topology.labels, step):
            labels = torch.arange(start, min(start + step, topology.labels), device=topology.device)
            inputs = topology.indices[labels // topology.group_size].long()  # [labels, K]
            key = (((labels - start) // chunk)[:, None] * (blocks * block) + inputs).flatten()
            order = key.argsort(stable=True)
            key = key[order]
            count = torch.bincount(key, minlength=tune.cdiv(len(labels), chunk) * blocks * block)
            rank = torch.arange(len(key), device=key.device) - (count.cumsum(0) - count)[key]
            length = (count.view(-1, block).amax(1) + unroll - 1) // unroll * (unroll * block)
            to = (length.cumsum(0) - length)[key // block] + rank * block + key % block
            source = torch.full((int(length.sum()),), -1, dtype=torch.int64, device=key.device)
            source[to] = order
            locals_.append((source.clamp(min=0) // topology.fan_in % chunk).to(torch.int16))
            source[to] += start * topology.fan_in
            sources.append(source if wide else source.to(torch.int32))
            lengths.append(length)
        ends = torch.cat(lengths).cumsum(0)
        return cls(torch.cat(sources), torch.cat(locals_), torch.nn.functional.pad(ends, (1, 0)))


def plan_key(config: Config) -> str:
    return f"fixed_fan_in/triton: plan {config['CHUNK']} {config['BLOCK_D']} {config['UNROLL']}"


def indices_by_input(topology: GroupTopology) -> Tensor:
    """[K, L]: neighbouring labels side by side."""

    def build() -> Tensor:
        rows = topology.indices
        if topology.group_size > 1:
            rows = rows.repeat_interleave(topology.group_size, 0)[: topology.labels]
        return rows.t().contiguous()

    return topology.memo("fixed_fan_in/triton: indices [K, L]", build)


# ---- configurations ---------------------------------------------------------------------------------------------


def fitted(problem: Problem, config: Config) -> Config:
    """The configuration within what the batch and the registers allow: narrower pieces, fewer of them."""
    block_b = min(config["BLOCK_B"], max(16, tune.power_of_two(problem.batch)))
    span, unroll = min(config["SPAN"], max(1, min(problem.stride, 256) // block_b)), config["UNROLL"]
    if problem.dtype == torch.float32:
        span, unroll = min(span, 2), min(unroll, 4)
    elif problem.batch > span * block_b:
        unroll = min(unroll, 8)
    return {**config, "BLOCK_B": block_b, "SPAN": span, "UNROLL": unroll}


def forward_candidates(problem: Problem) -> list[Config]:
    options = [(2, 4, 32, 4), (2, 4, 16, 8), (1, 4, 32, 4), (2, 8, 64, 4)]
    return distinct(
        fitted(problem, {"BLOCK_B": 64, "SPAN": s, "num_warps": w, "num_stages": 1, "BLOCK_L": l, "UNROLL": u,
                         "PHASE": 1024})
        for s, w, l, u in options
    )  # fmt: skip


def grad_weight_candidates(problem: Problem) -> list[Config]:
    options = [(4, 4, 16, 16), (4, 4, 16, 8), (4, 8, 32, 8), (2, 4, 16, 8)]
    return distinct(
        fitted(problem, {"BLOCK_B": 64, "SPAN": s, "num_warps": w, "num_stages": 1, "BLOCK_L": l, "UNROLL": u})
        for s, w, l, u in options
    )


def grad_input_config(problem: Problem) -> Config:
    """Not tuned: every candidate wants a plan of its own, as large as the weights."""
    return fitted(problem, {"BLOCK_B": 64, "SPAN": 2, "num_warps": 8, "num_stages": 1, "BLOCK_D": 32, "UNROLL": 4,
                            "CHUNK": 1024, "PROGRAMS": 4})  # fmt: skip


# ---- launchers --------------------------------------------------------------------------------------------------


def _forward(x: Tensor, layer: Layer, problem: Problem, config: Config) -> Tensor:
    y = x.new_empty(problem.batch, problem.labels)
    xt, weight_t = transpose(x, x.dtype, problem.stride), transpose(layer.weight.contiguous(), x.dtype)
    blocks = tune.cdiv(tune.cdiv(problem.labels, config["BLOCK_L"]), config["PHASE"]) * config["PHASE"]
    grid = (blocks * tune.cdiv(problem.batch, config["SPAN"] * config["BLOCK_B"]),)
    bias = layer.weight if layer.bias is None else layer.bias.contiguous()
    args = (xt, weight_t, indices_by_input(layer.sparse), bias, y, problem.batch, problem.stride, problem.labels)
    tune.launch(label_forward_kernel, grid, args, config, K=problem.fan_in, WIDE=problem.wide,
                HAS_BIAS=layer.bias is not None)  # fmt: skip
    return y


def _grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem, config: Config) -> Tensor:
    dw = torch.empty_like(layer.weight, memory_format=torch.contiguous_format)
    xt = transpose(x, x.dtype, problem.stride)
    grid = (tune.cdiv(problem.labels, config["BLOCK_L"]),)
    args = (xt, grad_out, indices_by_input(layer.sparse), dw, problem.batch, problem.stride, problem.labels)
    tune.launch(label_grad_weight_kernel, grid, args, config, K=problem.fan_in, WIDE=problem.wide,
                WHOLE=problem.batch <= config["SPAN"] * config["BLOCK_B"])  # fmt: skip
    return dw


def _grad_input(grad_out: Tensor, layer: Layer, problem: Problem, config: Config) -> Tensor:
    plan = layer.sparse.memo(plan_key(config), lambda: Plan.of(layer.sparse, config))
    weights = torch.empty(len(plan.source), dtype=layer.weight.dtype, device=grad_out.device)
    tune.launch(take_kernel, (tune.cdiv(len(weights), 1024),),
                (layer.weight.contiguous(), plan.source, weights, len(weights)), {"num_warps": 4}, BLOCK=1024)  # fmt: skip
    grad_t = transpose(grad_out, grad_out.dtype, problem.stride)
    slices = tune.cdiv(problem.batch, config["SPAN"] * config["BLOCK_B"])
    chunks, blocks = tune.cdiv(problem.labels, config["CHUNK"]), tune.cdiv(problem.dim, config["BLOCK_D"])
    parts = max(1, min(chunks, tune.multiprocessors(grad_out.get_device()) * config["PROGRAMS"] // slices))
    partial = grad_out.new_empty(parts, problem.dim, problem.stride, dtype=torch.float32)
    args = (grad_t, weights, plan.local, plan.offsets, partial,
            problem.dim, problem.batch, problem.stride, chunks, parts, blocks)  # fmt: skip
    tune.launch(label_grad_input_kernel, (parts * slices,), args, without(config, "PROGRAMS"), WIDE=problem.wide)
    return transpose(partial, problem.dtype, columns=problem.batch)


def _check(operand: Tensor) -> None:
    if not operand.is_cuda and not tune.interpreted():
        raise ValueError(f"fixed_fan_in/triton runs on cuda, not on {operand.device.type}")


# ---- public -----------------------------------------------------------------------------------------------------


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    _check(x)
    problem, x = Problem.of(x.shape[0], layer), x.contiguous()
    if problem.batch == 0:
        return x.new_empty(0, problem.labels)
    with tune.device_of(x):
        config = tune.choose(
            "fixed_fan_in.forward", problem.shape_class, forward_candidates(problem),
            lambda c: _forward(x, layer, problem, c), x, legal=lambda c: fitted(problem, c) == c,
        )  # fmt: skip
        return _forward(x, layer, problem, config)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    _check(grad_out)
    problem, grad_out = Problem.of(grad_out.shape[0], layer), grad_out.contiguous()
    if problem.batch == 0:
        return grad_out.new_empty(0, problem.dim)
    with tune.device_of(grad_out):
        return _grad_input(grad_out, layer, problem, grad_input_config(problem))


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    _check(x)
    problem, grad_out, x = Problem.of(x.shape[0], layer), grad_out.contiguous(), x.contiguous()
    if problem.batch == 0:
        return torch.zeros_like(layer.weight)
    with tune.device_of(x):
        config = tune.choose(
            "fixed_fan_in.grad_weight", problem.shape_class, grad_weight_candidates(problem),
            lambda c: _grad_weight(grad_out, x, layer, problem, c), x, legal=lambda c: fitted(problem, c) == c,
        )  # fmt: skip
        return _grad_weight(grad_out, x, layer, problem, config)


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]; nothing is shared between the two."""
    return grad_input(grad_out, layer), grad_weight(grad_out, x, layer)
