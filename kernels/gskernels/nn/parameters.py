"""What the modules have in common: how parameters are made, and a dense layer made of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Device = torch.device | str | None


def fill_uniform(tensor: Tensor, bound: float) -> None:
    with torch.no_grad():
        tensor.uniform_(-bound, bound)


def zero_bias(wanted: bool, labels: int, device: Device, dtype: torch.dtype | None) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(labels, device=device, dtype=dtype)) if wanted else None


def dense_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    labels, dim = weight.shape
    dense = nn.Linear(dim, labels, bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.detach())
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().clone())
    return dense
