"""dense/outside: the full matrix, a chunk of labels at a time. weight [L, D]."""

import torch
from torch import Tensor

from gskernels.layer import Layer

CHUNK = 256  # labels


def forward(x: Tensor, layer: Layer) -> Tensor:
    """x [B, D] -> y [B, L]."""
    y = x.new_empty(x.shape[0], layer.labels)
    for start in range(0, layer.labels, CHUNK):
        torch.mm(x, layer.weight[start : start + CHUNK].t(), out=y[:, start : start + CHUNK])
    return y
