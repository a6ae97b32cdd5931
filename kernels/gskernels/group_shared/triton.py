"""group_shared/triton: gather the rows of X^T that a group reads, multiply on tensor cores. weight [L, K].

Per group g with inputs I_g: Y_g = X[:, I_g] W_g^T;  dW_g = dY_g^T X[:, I_g];  dX[:, I_g] += dY_g W_g.
X is transposed first (fractions of a percent of the time), dX is summed transposed in fp32. `grad_input` and
`backward` reach dX by atomic additions, whose order, and so the last bits, differ from run to run;
`deterministic=True` sums in an order fixed by the shape and the GPU model instead.

Operands that are not contiguous are copied. Nothing waits for the GPU, except while a shape class is tuned
(`gskernels.tune`), so all passes can be captured in a CUDA graph once they have run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared.triton_kernels import (
    forward_kernel,
    gradients_kernel,
    ordered_grad_input_kernel,
    transpose_kernel,
)
from gskernels.layer import Layer
from gskernels.tune import Config

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # Triton < 3.4
    TensorDescriptor = None

COPIES = 4  # accumulators of dX^T that atomics are spread over: 0.465 ms against 0.478 with one (H200, R1)


@dataclass(frozen=True)
class Problem:
    """The sizes that decide tiles and grids."""

    batch: int
    dim: int
    labels: int
    fan_in: int
    group_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, batch: int, layer: Layer) -> Problem:
        topology = layer.sparse
        return cls(batch, topology.dim, topology.labels, topology.fan_in, topology.group_size, layer.weight.dtype)

    @property
    def block_g(self) -> int:
        """Labels of a tile: the smallest power of two that holds a group, within what tensor cores multiply well."""
        return min(128, max(16, tune.power_of_two(self.group_size)))

    @property
    def tiles(self) -> int:
        """Tiles of all groups; those past the end of a ragged last group hold no labels."""
        return tune.cdiv(self.labels, self.group_size) * tune.cdiv(self.group_size, self.block_g)

    @property
    def stride(self) -> int:
        """Row length of X^T and dX^T: B rounded up, so that every slice of up to 256 is whole and aligned."""
        return max(16, tune.power_of_two(self.batch)) if self.batch <= 256 else tune.cdiv(self.batch, 256) * 256

    @property
    def wide(self) -> bool:
        """Whether offsets into X^T and dX^T need 64 bits."""
        return self.dim * self.stride >= 2**31

    @property
    def shape_class(self) -> str:
        return tune.shape_class(
            batch=self.batch, dim=self.dim, labels=self.labels, fan_in=self.fan_in, group_size=self.group_size,
            dtype=self.dtype,
        )  # fmt: skip

    def constants(self) -> dict[str, int]:
        tight = self.group_size % self.block_g == 0
        return {"K": self.fan_in, "G": self.group_size, "BLOCK_G": self.block_g, "TIGHT": tight,
                "WIDE": self.wide}  # fmt: skip


# ---- configurations ---------------------------------------------------------------------------------------------


def block_b(problem: Problem, wanted: int) -> int:
    """A slice that divides the stride: a power of two between 16 and `wanted`."""
    return max(16, min(wanted, tune.power_of_two(problem.batch)))


def _config(problem: Problem, slice_: int, block_k: int, warps: int, stages: int, **more: int) -> Config:
    wide = problem.dtype == torch.float32  # fp32 multiplies without tensor cores: smaller tiles, or registers spill
    return {
        "BLOCK_B": block_b(problem, min(slice_, 64) if wide else slice_),
        "BLOCK_K": max(16, min(block_k, 32 if wide else block_k, tune.power_of_two(problem.fan_in))),
        "num_warps": warps, "num_stages": 1 if wide else stages, **more,
    }  # fmt: skip


def distinct(configs: list[Config]) -> list[Config]:
    """The configurations in order, each once."""
    return [config for i, config in enumerate(configs) if config not in configs[:i]]


def forward_candidates(problem: Problem) -> list[Config]:
    tma = int(problem.labels * problem.dtype.itemsize % 16 == 0 and problem.group_size % problem.block_g == 0)
    options = [(128, 64, 4, 1, tma), (64, 64, 4, 1, tma), (128, 64, 8, 1, tma), (128, 64, 4, 1, 0), (64, 64, 4, 1, 0)]
    return distinct([_config(problem, b, k, w, s, PHASE=512, TMA=t) for b, k, w, s, t in options])


def gradients_candidates(problem: Problem, with_input: bool) -> list[Config]:
    options = [(64, 64, 4, 1), (32, 64, 4, 1), (64, 128, 8, 1)] if with_input else \
              [(64, 64, 4, 2), (64, 64, 4, 3), (32, 64, 4, 3), (64, 128, 4, 2)]  # fmt: skip
    return distinct([_config(problem, b, k, w, s) for b, k, w, s in options])


def ordered_config(problem: Problem) -> Config:
    """One choice for all: the order of the sum must not depend on a measurement."""
    return _config(problem, 64, 64, 8, 1, PROGRAMS=2)


# ---- launchers --------------------------------------------------------------------------------------------------


def transpose(
    src: Tensor,  # [R, C], or [parts, R, C] to sum
    dtype: torch.dtype,
    stride: int | None = None,
    columns: int | None = None,
    clear: Tensor | None = None,  # [copies, C, stride] fp32
) -> Tensor:
    """[C, stride]: the first `columns` of src transposed, zero from R on; `clear` is filled with zeros on the way."""
    parts = src.shape[0] if src.dim() == 3 else 1
    height, width = src.shape[-2], src.shape[-1] if columns is None else columns
    out = torch.empty(width, stride or height, dtype=dtype, device=src.device)
    block = 32 if height * width < 2**22 else 64  # small ones are bound by latency: more programs
    grid = (tune.cdiv(out.shape[1], block) * tune.cdiv(width, block),)
    scratch = out if clear is None else clear
    sizes = (height, width, src.stride(-2), out.shape[1], parts, src.stride(0) if parts > 1 else 0, out.numel())
    tune.launch(transpose_kernel, grid, (src, out, scratch, *sizes), {"num_warps": 4},
                BLOCK_R=block, BLOCK_C=block, CLEAR=0 if clear is None else len(clear))  # fmt: skip
    return out


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
            problem.batch, problem.stride, problem.labels, problem.tiles)  # fmt: skip
    tune.launch(forward_kernel, grid, args, config, HAS_BIAS=layer.bias is not None, **problem.constants())
    return y


def _gradients(
    grad_out: Tensor, x: Tensor | None, layer: Layer, problem: Problem, config: Config, with_input: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dx if with_input, dw if x is given) by one kernel."""
    weight = layer.weight.contiguous()
    dw = None if x is None else torch.empty_like(weight)
    sums = grad_out.new_empty(COPIES if with_input else 0, problem.dim, problem.stride, dtype=torch.float32)
    if x is None:
        xt: Tensor = sums.zero_()
    else:
        xt = transpose(x, x.dtype, problem.stride, clear=sums)
    grid = (problem.tiles * tune.cdiv(problem.fan_in, config["BLOCK_K"]),)
    args = (xt, grad_out, weight, layer.sparse.indices.contiguous(), weight if dw is None else dw, sums,
            problem.batch, problem.stride, problem.labels, COPIES, problem.dim * problem.stride)  # fmt: skip
    tune.launch(gradients_kernel, grid, args, config, WITH_INPUT=with_input, WITH_WEIGHT=x is not None,
                **problem.constants())  # fmt: skip
    return (_finish(sums, problem) if with_input else None), dw


def _ordered_grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    config = dict(ordered_config(problem))
    slices = tune.cdiv(problem.batch, config["BLOCK_B"])
    steps = problem.tiles * tune.cdiv(problem.fan_in, config["BLOCK_K"])
    parts = max(1, min(steps, tune.multiprocessors(grad_out.get_device()) * config.pop("PROGRAMS") // slices))
    partial = grad_out.new_zeros(parts, problem.dim, problem.stride, dtype=torch.float32)
    args = (grad_out, layer.weight.contiguous(), layer.sparse.indices.contiguous(), partial,
            problem.dim, problem.batch, problem.stride, problem.labels, steps, parts)  # fmt: skip
    tune.launch(ordered_grad_input_kernel, (parts * slices,), args, config, **problem.constants())
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
        candidates = [c for c in forward_candidates(problem) if _legal(c, problem, x)]
        config = tune.choose(
            "group_shared.forward", problem.shape_class, candidates, lambda c: _forward(x, layer, problem, c), x,
            legal=lambda c: _legal(c, problem, x),
        )  # fmt: skip
        return _forward(x, layer, problem, config)


def _legal(config: Config, problem: Problem, x: Tensor) -> bool:
    """Whether a slice divides the padded batch and the copy engine can write these rows."""
    tight = problem.group_size % problem.block_g == 0 and problem.labels * x.element_size() % 16 == 0
    hopper = x.is_cuda and TensorDescriptor is not None and torch.cuda.get_device_capability(x.device)[0] >= 9
    fits = problem.stride % config["BLOCK_B"] == 0
    return fits and (not config.get("TMA") or (tight and hopper and not tune.interpreted()))


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


def _tuned_gradients(
    pass_: str, grad_out: Tensor, x: Tensor | None, layer: Layer, problem: Problem, with_input: bool
) -> tuple[Tensor | None, Tensor | None]:
    config = tune.choose(
        f"group_shared.{pass_}", problem.shape_class, gradients_candidates(problem, with_input),
        lambda c: _gradients(grad_out, x, layer, problem, c, with_input), grad_out,
        legal=lambda c: problem.stride % c["BLOCK_B"] == 0,
    )  # fmt: skip
    return _gradients(grad_out, x, layer, problem, config, with_input)
