"""group_shared/cuda: CUDA C++ kernels, compiled at first use. weight [L, K].

Per group g with inputs I_g: Y_g = X[:, I_g] W_g^T;  dW_g = dY_g^T X[:, I_g];  dX[:, I_g] += dY_g W_g.
A pass runs on the kernels for Hopper (`hopper`) where these support the problem, else on those for sm_80 and newer
(`portable`), which take every shape. Sums are taken in fp32; fp32 operands are multiplied in fp32, never in tf32.
Hopper's kernels sum gradients in an order fixed by the shape and the GPU model. The others may reach dX by additions in
memory, whose order, and so the last bits, differ from run to run, unless `deterministic=True`.

Operands that are not contiguous, or do not begin on 16 bytes, are copied. Nothing waits for the GPU, so all passes can
be captured in a CUDA graph once they have run.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared import hopper, hopper_backward, hopper_step, hopper_topk, portable
from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer
from gskernels.positives import Positives
from gskernels.ranking import Best
from gskernels.steps import Outcome, Targets, Updates, finish
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT


def _ready(tensor: Tensor) -> Tensor:
    """Contiguous, and on 16 bytes: what kernels take."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _prepared(batch: int, layer: Layer) -> tuple[Problem, Layer]:
    indices = layer.sparse.indices
    topology = layer.sparse if indices.is_contiguous() else replace(layer.sparse, indices=indices.contiguous())
    bias = None if layer.bias is None else layer.bias.contiguous()
    return Problem.of(batch, layer), replace(layer, weight=_ready(layer.weight), topology=topology, bias=bias)


def _check(operand: Tensor) -> None:
    if not operand.is_cuda:
        raise ValueError(f"group_shared/cuda runs on cuda, not on {operand.device.type}")


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one. Raises ValueError for tensors that are not on a GPU."""
    _check(x)
    if x.shape[0] == 0:
        return x.new_empty(0, layer.labels)
    problem, layer = _prepared(x.shape[0], layer)
    with tune.device_of(x):
        if hopper.supports(problem, FORWARD, x.device):
            return hopper.forward(_ready(x), layer, problem)
        return portable.forward(_ready(x), layer, problem)


def grad_input(grad_out: Tensor, layer: Layer, *, deterministic: bool = False) -> Tensor:
    """grad_out [B, L] -> dx [B, D]. Raises ValueError for tensors that are not on a GPU."""
    _check(grad_out)
    if grad_out.shape[0] == 0:
        return grad_out.new_empty(0, layer.sparse.dim)
    problem, layer = _prepared(grad_out.shape[0], layer)
    grad_out = _ready(grad_out)
    with tune.device_of(grad_out):
        if hopper.supports(problem, GRAD_INPUT, grad_out.device):
            return hopper.grad_input(grad_out, layer, problem)
        return _portable_grad_input(grad_out, layer, problem, deterministic)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]. Raises ValueError for tensors that are not on a GPU."""
    _check(x)
    if x.shape[0] == 0:
        return torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
    problem, layer = _prepared(x.shape[0], layer)
    grad_out, x = _ready(grad_out), _ready(x)
    with tune.device_of(x):
        if hopper.supports(problem, GRAD_WEIGHT, x.device):
            return hopper.grad_weight(grad_out, x, layer, problem)
        return _portable_grad_weight(grad_out, x, layer, problem)


def backward(grad_out: Tensor, x: Tensor, layer: Layer, *, deterministic: bool = False) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]. Raises ValueError for tensors that are not on a GPU."""
    _check(x)
    if x.shape[0] == 0:
        return x.new_empty(x.shape), torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
    problem, layer = _prepared(x.shape[0], layer)
    grad_out, x = _ready(grad_out), _ready(x)
    with tune.device_of(x):
        plan = hopper_backward.plan_for(problem, x.device)
        if plan is not None:
            return hopper_backward.backward(grad_out, x, layer, problem, plan)
        if deterministic or hopper.supports(problem, BACKWARD, x.device):
            return grad_input(grad_out, layer, deterministic=deterministic), grad_weight(grad_out, x, layer)
        dx, dw = portable.gradients(grad_out, x, layer, problem, with_input=True)
        assert dx is not None
        assert dw is not None
        return dx, dw


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """The pass `step`, as `gskernels.steps` describes it: on Hopper without logits in memory, else as Triton does it.

    Raises ValueError for tensors that are not on a GPU.
    """
    _check(x)
    problem, ready = _prepared(x.shape[0], layer)
    with tune.device_of(x):
        plan = None if guard else hopper_step.plan_for(problem, layer, targets, updates, x.device)
        if plan is not None:
            bias, factor = (None if t is None else _ready(t) for t in (ready.bias, targets.label_weight))
            ready, aligned = replace(ready, bias=bias), replace(targets, label_weight=factor)
            loss, dx, dw, db = hopper_step.step(_ready(x), ready, aligned, updates.get("weight"), problem, plan)
            left = {name: update for name, update in updates.items() if name != "weight"}
            return finish(loss, dx, layer, {"weight": dw, "bias": db}, left)
    from gskernels.group_shared import triton

    return triton.step(x, layer, targets, updates, guard)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, ties: bool = True) -> Best:
    """The pass `topk`, as `gskernels.ranking` describes it: on Hopper without logits in memory, else as Triton does it.

    Raises ValueError for tensors that are not on a GPU.
    """
    _check(x)
    problem, ready = _prepared(x.shape[0], layer)
    with tune.device_of(x):
        plan = None if exclude is not None else hopper_topk.plan_for(problem, k, layer.bias is not None, x.device)
        if plan is not None:
            return hopper_topk.topk(_ready(x), ready, k, problem, plan)
    from gskernels.group_shared import triton

    return triton.topk(x, layer, k, exclude, ties)


def _portable_grad_input(grad_out: Tensor, layer: Layer, problem: Problem, deterministic: bool) -> Tensor:
    return (portable.ordered_grad_input if deterministic else portable.grad_input)(grad_out, layer, problem)


def _portable_grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    _, dw = portable.gradients(grad_out, x, layer, problem, with_input=False)
    assert dw is not None
    return dw
