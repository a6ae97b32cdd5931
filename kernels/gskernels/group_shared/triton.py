"""group_shared/triton: gather the rows of X^T that a group reads, multiply on tensor cores. weight [L, K].

Per group g with inputs I_g: Y_g = X[:, I_g] W_g^T;  dW_g = dY_g^T X[:, I_g];  dX[:, I_g] += dY_g W_g.
X is transposed first (fractions of a percent of the time), dX is summed transposed in fp32. `grad_input` and
`backward` reach dX by atomic additions, whose order, and so the last bits, differ from run to run;
`deterministic=True` sums in an order fixed by the shape and the GPU model instead.

Operands that are not contiguous are copied. Nothing waits for the GPU, except while a shape class is tuned
(`gskernels.tune`), so all passes can be captured in a CUDA graph once they have run.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared import triton_step, triton_topk
from gskernels.group_shared.triton_kernels import forward_kernel, gradients_kernel, ordered_grad_input_kernel
from gskernels.group_shared.triton_problem import Problem, distinct, transpose, without
from gskernels.layer import Layer
from gskernels.positives import Positives
from gskernels.ranking import Best, by_logits
from gskernels.steps import Outcome, Targets, Updates, unfused
from gskernels.tune import Config

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton < 3.4
    TensorDescriptor = None

# ---- configurations ---------------------------------------------------------------------------------------------


def fitted(problem: Problem, config: Config) -> Config:
    """The configuration within what the problem allows: tiles shrink, or get more threads, where registers would spill.

    Depends on nothing that a shape class does not tell apart: what fits one of its shapes fits all.
    """
    most_b, most_k = min(256, max(16, tune.power_of_two(problem.batch))), max(16, tune.power_of_two(problem.fan_in))
    limits: Config = {}
    if problem.dtype == torch.float32:  # multiplies without tensor cores
        most_b, most_k, limits = min(most_b, 32), min(most_k, 32), {"num_stages": 1}
    elif problem.block_g >= 64 and problem.rows == "narrow":  # weights one by one, an address each
        most_b, most_k, limits = min(most_b, 64), min(most_k, 32), {"num_warps": 8, "num_stages": 1}
    elif problem.block_g == 128:
        limits = {} if problem.rows == "aligned" else {"num_warps": 8}
        most_k = min(most_k, 16 * (config | limits)["num_warps"])
    return {**config, "BLOCK_B": min(config["BLOCK_B"], most_b), "BLOCK_K": min(config["BLOCK_K"], most_k), **limits}


def copy_engine(like: Tensor) -> bool:
    """Whether tiles can leave through the tensor copy engine: Hopper or newer, and a Triton that drives it."""
    if TensorDescriptor is None or not like.is_cuda or tune.interpreted():
        return False
    return torch.cuda.get_device_capability(like.device)[0] >= 9


def forward_candidates(problem: Problem, engine: bool = False) -> list[Config]:
    """engine: whether `copy_engine` is there. PHASE has narrow optima that no simple rule explains: leave it in."""
    if engine and problem.contiguous_rows:
        options = [(128, 64, 4, 1, 1024, 1), (128, 64, 4, 1, 264, 1), (128, 64, 4, 1, 128, 1), (128, 32, 4, 3, 128, 1),
                   (64, 64, 4, 1, 264, 1), (64, 64, 4, 3, 1024, 1), (128, 64, 4, 2, 1024, 1)]  # fmt: skip
    else:
        options = [(128, 64, 4, 1, 264, 0), (64, 64, 8, 1, 264, 0), (64, 64, 4, 1, 264, 0), (128, 128, 4, 1, 264, 0),
                   (128, 64, 8, 1, 264, 0)]  # fmt: skip
    return distinct(
        fitted(problem, {"BLOCK_B": b, "BLOCK_K": k, "num_warps": w, "num_stages": s, "PHASE": p, "TMA": t})
        for b, k, w, s, p, t in options
    )


def gradients_candidates(problem: Problem, with_input: bool, with_weight: bool) -> list[Config]:
    if with_input and with_weight:
        options = [(32, 64, 4, 4), (64, 64, 4, 1), (32, 64, 4, 2), (32, 128, 4, 3)]
    elif with_input:
        options = [(64, 64, 4, 1), (32, 64, 4, 1), (32, 128, 4, 1)]
    else:
        options = [(64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3), (64, 128, 4, 2), (64, 128, 8, 1)]
    return distinct(
        fitted(problem, {"BLOCK_B": b, "BLOCK_K": k, "num_warps": w, "num_stages": s, "COPIES": problem.copies})
        for b, k, w, s in options
    )


def ordered_config(problem: Problem) -> Config:
    """One choice for all: the order of the sum must not depend on a measurement."""
    return fitted(problem, {"BLOCK_B": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 1, "PROGRAMS": 2})


# ---- launchers --------------------------------------------------------------------------------------------------


def _forward(x: Tensor, layer: Layer, problem: Problem, config: Config) -> Tensor:
    y = x.new_empty(problem.batch, problem.labels)
    xt = transpose(x, x.dtype, problem.stride)
    slices = tune.cdiv(problem.batch, config["BLOCK_B"])
    out: Any = y
    if config["TMA"]:
        out = TensorDescriptor(y, list(y.shape), list(y.stride()), [config["BLOCK_B"], problem.block_g])
    grid = (tune.cdiv(problem.tiles, config["PHASE"]) * config["PHASE"] * slices,)
    bias = layer.weight if layer.bias is None else layer.bias.contiguous()
    args = (xt, layer.weight.contiguous(), layer.sparse.indices.contiguous(), bias, out,
            problem.batch, problem.stride, problem.labels, problem.tiles, config["PHASE"])  # fmt: skip
    tune.launch(forward_kernel, grid, args, without(config, "PHASE"), HAS_BIAS=layer.bias is not None,
                **problem.constants())  # fmt: skip
    return y


def _gradients(
    grad_out: Tensor, x: Tensor | None, layer: Layer, problem: Problem, config: Config, with_input: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dx if with_input, dw if x is given) by one kernel."""
    weight = layer.weight.contiguous()
    dw = None if x is None else torch.empty_like(weight)
    copies = config["COPIES"]
    sums = grad_out.new_empty(copies if with_input else 0, problem.dim, problem.stride, dtype=torch.float32)
    if x is None:
        xt: Tensor = sums.zero_()
    else:
        xt = transpose(x, x.dtype, problem.stride, clear=sums)
    grid = (problem.tiles * tune.cdiv(problem.fan_in, config["BLOCK_K"]),)
    args = (xt, grad_out, weight, layer.sparse.indices.contiguous(), weight if dw is None else dw, sums,
            problem.batch, problem.stride, problem.labels, copies, problem.dim * problem.stride)  # fmt: skip
    tune.launch(gradients_kernel, grid, args, without(config, "COPIES"), WITH_INPUT=with_input, WITH_WEIGHT=x is not None,
                **problem.constants())  # fmt: skip
    return (_finish(sums, problem) if with_input else None), dw


def _ordered_grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    config = ordered_config(problem)
    slices = tune.cdiv(problem.batch, config["BLOCK_B"])
    steps = problem.tiles * tune.cdiv(problem.fan_in, config["BLOCK_K"])
    parts = max(1, min(steps, tune.multiprocessors(grad_out.get_device()) * config["PROGRAMS"] // slices))
    partial = grad_out.new_zeros(parts, problem.dim, problem.stride, dtype=torch.float32)
    args = (grad_out, layer.weight.contiguous(), layer.sparse.indices.contiguous(), partial,
            problem.dim, problem.batch, problem.stride, problem.labels, steps, parts)  # fmt: skip
    tune.launch(ordered_grad_input_kernel, (parts * slices,), args, without(config, "PROGRAMS"),
                **problem.constants())  # fmt: skip
    return _finish(partial, problem)


def _finish(sums: Tensor, problem: Problem) -> Tensor:
    """dx [B, D] from fp32 sums [parts, D, stride]."""
    return transpose(sums, problem.dtype, columns=problem.batch)


def _check(operand: Tensor) -> None:
    if not operand.is_cuda and not tune.interpreted():
        raise ValueError(f"group_shared/triton runs on cuda, not on {operand.device.type}")


# ---- public -----------------------------------------------------------------------------------------------------


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    _check(x)
    problem, x = Problem.of(x.shape[0], layer), x.contiguous()
    if problem.batch == 0:
        return x.new_empty(0, problem.labels)
    with tune.device_of(x):
        engine = copy_engine(x) and problem.contiguous_rows
        config = tune.choose(
            "group_shared.forward", problem.shape_class, forward_candidates(problem, engine),
            lambda c: _forward(x, layer, problem, c), x,
            legal=lambda c: fitted(problem, c) == c and c["TMA"] == engine,
        )  # fmt: skip
        return _forward(x, layer, problem, config)


def grad_input(grad_out: Tensor, layer: Layer, *, deterministic: bool = False) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    _check(grad_out)
    problem, grad_out = Problem.of(grad_out.shape[0], layer), grad_out.contiguous()
    if problem.batch == 0:
        return grad_out.new_empty(0, problem.dim)
    with tune.device_of(grad_out):
        if deterministic:
            return _ordered_grad_input(grad_out, layer, problem)
        dx, _ = _tuned_gradients("grad_input", grad_out, None, layer, problem, True)
        assert dx is not None
        return dx


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    _check(x)
    problem, grad_out, x = Problem.of(x.shape[0], layer), grad_out.contiguous(), x.contiguous()
    if problem.batch == 0:
        return torch.zeros_like(layer.weight)
    with tune.device_of(x):
        _, dw = _tuned_gradients("grad_weight", grad_out, x, layer, problem, False)
        assert dw is not None
        return dw


def backward(grad_out: Tensor, x: Tensor, layer: Layer, *, deterministic: bool = False) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]: one kernel reads grad_out once, unless deterministic."""
    if deterministic:
        return grad_input(grad_out, layer, deterministic=True), grad_weight(grad_out, x, layer)
    _check(x)
    problem, grad_out, x = Problem.of(x.shape[0], layer), grad_out.contiguous(), x.contiguous()
    if problem.batch == 0:
        return x.new_empty(0, problem.dim), torch.zeros_like(layer.weight)
    with tune.device_of(x):
        dx, dw = _tuned_gradients("backward", grad_out, x, layer, problem, True)
        assert dx is not None
        assert dw is not None
        return dx, dw


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """A training step without stored logits where registers allow it, as `gskernels.steps` describes it."""
    _check(x)
    problem, x = Problem.of(x.shape[0], layer), x.contiguous()
    if problem.batch == 0 or not triton_step.supports(problem):
        return unfused(sys.modules[__name__], x, layer, targets, updates, guard)
    return triton_step.step(x, layer, targets, updates, guard, problem)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, ties: bool = True) -> Best:
    """The best labels, as `gskernels.ranking` describes it, without stored logits where registers allow it.

    Equal ones are always in the order of labels.
    """
    _check(x)
    problem, x = Problem.of(x.shape[0], layer), x.contiguous()
    if problem.batch == 0 or not triton_step.supports(problem):
        return by_logits(sys.modules[__name__], x, layer, k, exclude)
    return triton_topk.topk(x, layer, k, exclude, problem)


def _tuned_gradients(
    pass_: str, grad_out: Tensor, x: Tensor | None, layer: Layer, problem: Problem, with_input: bool
) -> tuple[Tensor | None, Tensor | None]:
    config = tune.choose(
        f"group_shared.{pass_}", problem.shape_class, gradients_candidates(problem, with_input, x is not None),
        lambda c: _gradients(grad_out, x, layer, problem, c, with_input), grad_out,
        legal=lambda c: fitted(problem, c) == c,
    )  # fmt: skip
    return _gradients(grad_out, x, layer, problem, config, with_input)
