"""How good an order of labels is, as groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gskernels.grouping.orders import random_order
from gskernels.grouping.rows import Rows, as_rows


@dataclass(frozen=True)
class GroupingReport:
    """How alike the labels of a group are, and how evenly groups are filled.

    - groups, smallest, largest: their number and sizes; only the last may be smaller than G
    - cohesion: mean over labels with features of the cosine with the mean of its group, 0 to 1
    - random_cohesion: the same of a random order, what cohesion has to be above
    - load_spread: standard deviation over mean of the groups' shares of all positives
    """

    groups: int
    smallest: int
    largest: int
    cohesion: float
    random_cohesion: float
    load_spread: float


def report(order: Tensor, group_size: int, features: Any, frequencies: Tensor, *, seed: int = 0) -> GroupingReport:
    """Report of an order [L] in groups of G. features as in `semantic_order`, frequencies [L] of the training data.

    Raises ValueError where the sizes do not match.
    """
    rows, labels = as_rows(features, torch.device("cpu"))
    if len(order) != labels or len(frequencies) != labels:
        raise ValueError(f"order and frequencies must be [{labels}], got [{len(order)}] and [{len(frequencies)}]")
    group = torch.arange(labels) // group_size
    sizes = torch.bincount(group)
    load = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, group, frequencies.cpu().double()[order])
    spread = float(load.std(correction=0) / load.mean()) if float(load.sum()) > 0 else 0.0
    orders = (order, random_order(labels, seed=seed))
    mine, chance = (_cohesion(rows.take(o), group_size, labels) for o in orders)
    return GroupingReport(len(sizes), int(sizes.min()), int(sizes.max()), mine, chance, spread)


def _cohesion(rows: Rows, group_size: int, labels: int) -> float:
    total = with_features = 0.0
    step = max(1, (1 << 23) // max(1, rows.width)) * group_size
    for start in range(0, labels, step):
        part = rows.part(start, min(start + step, labels))
        count = min(start + step, labels) - start
        group = torch.arange(count) // group_size
        sums, dots = part.within(group, int(group[-1]) + 1)
        whole, length = sums(torch.ones(count)), part.squares().sqrt()
        cosine = dots(whole / whole.norm(dim=1, keepdim=True).clamp(min=1e-30)) / length.clamp(min=1e-30)
        total += float(cosine.sum(dtype=torch.float64))
        with_features += int((length > 0).sum())
    return total / max(1.0, with_features)
