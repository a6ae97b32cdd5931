"""Kernels of group_shared/cuda for Hopper (sm_90a). None yet: `supports` says so, and the portable ones run."""

from __future__ import annotations

import torch
from torch import Tensor

from gskernels.group_shared.problem import Problem
from gskernels.layer import Layer

DETERMINISTIC = False  # whether grad_input and backward sum in a fixed order


def supports(problem: Problem, pass_: str, device: torch.device) -> bool:
    """Whether that pass of that problem runs here, on that device."""
    return False


def forward(x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    raise NotImplementedError


def grad_input(grad_out: Tensor, layer: Layer, problem: Problem) -> Tensor:
    raise NotImplementedError


def grad_weight(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> Tensor:
    raise NotImplementedError


def backward(grad_out: Tensor, x: Tensor, layer: Layer, problem: Problem) -> tuple[Tensor, Tensor]:
    raise NotImplementedError
