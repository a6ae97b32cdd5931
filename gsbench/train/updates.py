"""Updates that a fused step does itself, from the optimizer that would do them: same numbers, same state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gskernels.optim import SGD, Update


class Updater:
    """The next update of each parameter of a layer. A parameter so updated has no gradient, so `optimizer.step()` leaves it.

    Raises ValueError for an optimizer whose step is not that of `gskernels.optim.Update`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        if not can_update(optimizer):
            raise ValueError(f"a fused step updates by SGD, not by {type(optimizer).__name__}")
        self._optimizer = optimizer

    def updates(self, layer: nn.Module, hidden: Tensor) -> Mapping[str, Update]:
        """By the name of the parameter. None under autocast where weights are fp32: the products of a step with updates
        are in the dtype of the weights, and autocast wants them in another."""
        parameters = dict(layer.named_parameters())
        cast = torch.is_autocast_enabled(hidden.device.type)
        if cast and any(p.dtype != torch.get_autocast_dtype(hidden.device.type) for p in parameters.values()):
            return {}
        return {name: self._next(parameter) for name, parameter in parameters.items()}

    def _next(self, parameter: Tensor) -> Update:
        optimizer = self._optimizer
        if isinstance(optimizer, SGD):
            return optimizer.update_of(parameter)
        group = next(g for g in optimizer.param_groups if any(one is parameter for one in g["params"]))
        state = optimizer.state[parameter]
        if group["momentum"] and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        return Update(group["lr"], group["momentum"], group["weight_decay"], momentum_buffer=state.get("momentum_buffer"))


def can_update(optimizer: torch.optim.Optimizer | None) -> bool:
    """SGD, of torch (plain momentum) or of gskernels."""
    if isinstance(optimizer, torch.optim.SGD):
        return not any(g["nesterov"] or g["dampening"] or g["maximize"] for g in optimizer.param_groups)
    return isinstance(optimizer, SGD)
