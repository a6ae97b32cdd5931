"""group_shared/apart: one gradient after the other, each by the implementation that `gskernels.dispatch` picks for it.

Kernels for both gradients read dY once; where the fastest of each single one come from different implementations, reading
it twice can take less time. weight [L, K].
"""

from __future__ import annotations

from torch import Tensor

from gskernels.dispatch import AUTO, implementation_for
from gskernels.layer import Layer
from gskernels.table import GRAD_INPUT, GRAD_WEIGHT


def backward(grad_out: Tensor, x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """grad_out [B, L], x [B, D] -> dx [B, D], dw [L, K]. Raises ValueError for tensors that are not on a GPU."""
    if not grad_out.is_cuda:
        raise ValueError(f"group_shared/apart runs on cuda, not on {grad_out.device.type}")
    for_input, for_weight = (implementation_for(AUTO, pass_, grad_out, layer) for pass_ in (GRAD_INPUT, GRAD_WEIGHT))
    dx = for_input.load().grad_input(grad_out, layer, **for_input.options)
    dw = for_weight.load().grad_weight(grad_out, x, layer, **for_weight.options)
    return dx, dw
