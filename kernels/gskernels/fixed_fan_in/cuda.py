"""fixed_fan_in/cuda: the strongest per-label layer we know how to write, in CUDA C++. weight [L, K].

Two routes to every pass, of which the one expected to be faster is taken (`gskernels.routes`):

- gather: the products of a label's K inputs and no others. A slice of X^T (of dY^T for grad_input) stays in shared memory
  and its rows are read whole, so that there are no bank conflicts; lists and weights come 16 bytes a load, several loads
  ahead; the products run on tensor cores with every operand of use (cuda.cuh), sums are fp32; Y leaves as whole 128-byte
  rows of a tile, and dY is turned in shared memory, never in global memory. grad_input goes through the lists of labels by
  input, made once a topology (`cuda_gather.Plan`).
- dense: D / K times the products, all in cuBLAS, at up to 16 times the rate. Chunks of labels are expanded to rows of D
  numbers by a kernel that writes them once, in 16-byte pieces (`fixed_fan_in/densify` fills, scatters and reads back).

No pass uses atomics: sums have a fixed order. Operands that are not contiguous are copied.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gskernels import tune
from gskernels.fixed_fan_in import cuda_dense, cuda_gather
from gskernels.layer import Layer
from gskernels.routes import takes_dense
from gskernels.steps import Outcome, Targets, Updates, unfused


def _dense(pass_: str, batch: int, layer: Layer) -> bool:
    topology = layer.sparse
    return takes_dense(pass_, batch, topology.dim, topology.labels, topology.fan_in, layer.weight.element_size())


def _check(operand: Tensor) -> None:
    if not operand.is_cuda:
        raise ValueError(f"fixed_fan_in/cuda runs on cuda, not on {operand.device.type}")


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L], plus the bias if the layer has one."""
    _check(x)
    if x.shape[0] == 0:
        return x.new_empty(0, layer.labels)
    with tune.device_of(x):
        if _dense("forward", x.shape[0], layer):
            return cuda_dense.forward(x.contiguous(), layer)
        return cuda_gather.forward(x.contiguous(), layer)


def grad_input(grad_out: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L] -> dx [B, D]."""
    _check(grad_out)
    if grad_out.shape[0] == 0:
        return grad_out.new_empty(0, layer.sparse.dim)
    with tune.device_of(grad_out):
        if _dense("grad_input", grad_out.shape[0], layer):
            return cuda_dense.grad_input(grad_out.contiguous(), layer)
        return cuda_gather.grad_input(grad_out.contiguous(), layer)


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer) -> Tensor:
    """grad_out [B, L], x [B, D] -> dw [L, K]."""
    _check(x)
    if x.shape[0] == 0:
        return torch.zeros_like(layer.weight)
    with tune.device_of(x):
        if _dense("grad_weight", x.shape[0], layer):
            return cuda_dense.grad_weight(grad_out.contiguous(), x.contiguous(), layer)
        return cuda_gather.grad_weight(grad_out.contiguous(), x.contiguous(), layer)


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]; nothing is shared between the two."""
    return grad_input(grad_out, layer), grad_weight(grad_out, x, layer)


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """A training step, as `gskernels.steps` describes it: chunk by chunk where grad_input takes the dense route."""
    _check(x)
    if x.shape[0] == 0 or not _dense("grad_input", x.shape[0], layer):
        return unfused(sys.modules[__name__], x, layer, targets, updates, guard)
    with tune.device_of(x):
        return cuda_dense.step(x.contiguous(), layer, targets, updates, guard)
