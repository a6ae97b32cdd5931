"""What is kept slot by slot: a regrown slot starts afresh, its weights, its gradient and what the optimizer remembers of the
input it had; and slots may change places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from gskernels.topology import GroupTopology

_CHUNK = 1 << 24  # weights masked in one go


@torch.no_grad()
def reset_slots(tensor: Tensor, topology: GroupTopology, slots: Tensor, value: float = 0.0) -> None:
    """Fill a tensor [L, K] in place with `value` at the slots [groups, K] (bool), for every label of their groups."""
    size = topology.group_size
    for start, stop in topology.chunks(max(1, _CHUNK // topology.fan_in)):
        mask = slots[start // size : -(-stop // size)].repeat_interleave(size, 0)[: stop - start]
        tensor[start:stop].masked_fill_(mask, value)


@torch.no_grad()
def reorder_slots(tensor: Tensor, topology: GroupTopology, order: Tensor) -> None:
    """Move the slots of a tensor [L, K] in place, for all labels of a group: place k gets what `order` [groups, K] names."""
    size = topology.group_size
    for start, stop in topology.chunks(max(1, _CHUNK // topology.fan_in)):
        rows = order[start // size : -(-stop // size)].repeat_interleave(size, 0)[: stop - start]
        tensor[start:stop] = tensor[start:stop].gather(1, rows)


def resettable_state(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[tuple[Tensor, float]]:
    """Each tensor of the optimizer's state that is kept slot by slot, with the value it has for a new parameter.

    Every state tensor shaped like the weight counts: momentum buffers, Adam's moments, running averages of squares. New
    means zero, but for Adagrad's `initial_accumulator_value` and for Rprop's step size, the learning rate. Step counters
    (scalars) belong to the parameter as a whole and stay, so Adam's bias correction does not start again.

    Raises ValueError where that would be incomplete: an optimizer that does not hold the weight, that keeps factored
    or flattened state (Adafactor, LBFGS), or whose state has tensors of another shape.
    """
    group = next((g for g in optimizer.param_groups if any(p is weight for p in g["params"])), None)
    name = type(optimizer).__name__
    if group is None:
        raise ValueError(f"the layer's weight is not among the parameters of this {name}")
    if isinstance(optimizer, torch.optim.LBFGS) or name == "Adafactor":
        raise ValueError(f"{name} keeps state that is not per weight, so it cannot be reset for regrown slots")
    found = []
    for key, value in optimizer.state.get(weight, {}).items():
        for tensor in _tensors(value):
            if tensor.shape == weight.shape:
                found.append((tensor, _fresh_value(optimizer, group, key)))
            elif tensor.dim() > 1 or tensor.numel() > 1:
                raise ValueError(
                    f"{name} keeps {key!r} of shape {list(tensor.shape)} for a weight of shape {list(weight.shape)}: "
                    "it cannot be reset for regrown slots"
                )
    return found


def _fresh_value(optimizer: torch.optim.Optimizer, group: dict[str, Any], key: str) -> float:
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(group["lr"])
    return 0.0


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
