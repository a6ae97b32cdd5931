"""How much each slot is worth, and which ones to drop. A slot is one place (group, k) of an index list."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gskernels.topology import GroupTopology

SCORES = ("mean_weight", "max_weight", "weight_gradient")
DROPS = ("group", "global", "threshold")
_CHUNK = 1 << 24  # elements of a weight that are looked at in one go: bounds the fp32 copies


def score_slots(
    weight: Tensor,  # [L, K]
    topology: GroupTopology,
    rule: str = "mean_weight",
    grad: Tensor | None = None,  # [L, K]
) -> Tensor:
    """What each slot is worth to the labels of its group: [groups, K] fp32, never negative.

    - ``mean_weight``: mean of \\|w\\| over the group's labels (SET for G = 1)
    - ``max_weight``: max of \\|w\\|: a slot that one label depends on survives
    - ``weight_gradient``: mean of \\|w * grad\\|, the first-order change of the loss if the slot is removed

    Only real labels count in a ragged last group. Raises ValueError for another rule, shapes that do not fit, a missing
    gradient, or a score that is not finite (training has diverged; dropping by it would mean nothing).
    """
    if rule not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {rule!r}")
    expected = [topology.labels, topology.fan_in]
    if list(weight.shape) != expected:
        raise ValueError(f"weight must be {expected} for this topology, got {list(weight.shape)}")
    if rule == "weight_gradient":
        if grad is None:
            raise ValueError("score 'weight_gradient' needs the gradient of the weight: rewire before zero_grad()")
        if list(grad.shape) != expected:
            raise ValueError(f"grad must be {expected} for this topology, got {list(grad.shape)}")
    size = topology.group_size
    score = torch.empty(topology.groups, topology.fan_in, dtype=torch.float32, device=weight.device)
    for start, stop in topology.chunks(max(1, _CHUNK // topology.fan_in)):
        value = weight[start:stop].detach().float()
        if rule == "weight_gradient" and grad is not None:
            value = value * grad[start:stop].detach().float()
        groups = math.ceil((stop - start) / size)
        padded = torch.nn.functional.pad(value.abs(), (0, 0, 0, groups * size - (stop - start)))
        grouped = padded.view(groups, size, topology.fan_in)
        score[start // size : start // size + groups] = grouped.amax(1) if rule == "max_weight" else grouped.sum(1)
    if rule != "max_weight":
        score /= size
        score[-1] *= size / (topology.labels - (topology.groups - 1) * size)
    if not bool(score.isfinite().all()):
        group = int((~score.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"the {rule} score of group {group} is not finite: its weights or gradients are NaN or infinite")
    return score


def drop_per_group(score: Tensor, fraction: float) -> Tensor:
    """[groups, K] bool: the round(fraction * K) slots of lowest score in every group.

    score: [groups, K]. Raises ValueError for a fraction outside [0, 1].
    """
    _check_share("fraction", fraction)
    return _among_weakest(score, _rounded(fraction * score.shape[1]))[0]


def drop_global(score: Tensor, fraction: float, max_share: float = 0.5) -> Tensor:
    """[groups, K] bool: the round(fraction * groups * K) slots of lowest score anywhere.

    score: [groups, K]. No group drops more than floor(max_share * K) slots, so fewer fall where that binds everywhere.
    Raises ValueError for a share outside [0, 1].
    """
    _check_share("fraction", fraction)
    _check_share("max_share", max_share)
    dropped, value, slot = _among_weakest(score, _whole(max_share * score.shape[1]))
    count = min(_rounded(fraction * score.numel()), value.numel())
    chosen = torch.zeros(value.numel(), dtype=torch.bool, device=score.device)
    chosen[value.flatten().topk(count, largest=False, sorted=False).indices] = True
    return dropped.scatter_(1, slot, chosen.view(value.shape))


def drop_below(score: Tensor, threshold: float, max_share: float = 0.5) -> Tensor:
    """[groups, K] bool: the slots whose score is below `threshold`.

    score: [groups, K]. Where a group has more than floor(max_share * K) of them, its weakest ones fall. Raises
    ValueError for a share outside [0, 1].
    """
    _check_share("max_share", max_share)
    dropped, value, slot = _among_weakest(score, _whole(max_share * score.shape[1]))
    return dropped.scatter_(1, slot, value < threshold)


def _among_weakest(score: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` slots of lowest score of each group: mask [groups, K], their scores and places [groups, count]."""
    weakest = score.topk(count, dim=1, largest=False, sorted=False)
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    return mask.scatter_(1, weakest.indices, True), weakest.values, weakest.indices


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {share}")


def _rounded(value: float) -> int:
    """Half rounds up, whatever Python's round() does with 2.5."""
    return math.floor(value + 0.5)


def _whole(value: float) -> int:
    """floor, forgiving 0.29 * 100 = 28.999999999999996."""
    return math.floor(value + 1e-9)
