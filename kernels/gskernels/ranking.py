"""The best k labels of each row as one pass: exact, ties by label, and in a fused implementation without stored logits.

An implementation that has the pass defines, in its module,

    topk(x, layer, k, exclude=None, ties=True) -> (values [B, k] fp32, labels [B, k] int64)

Values fall along a row, equal ones in rising order of their labels; NaN counts as larger than any number, so it shows.
Labels that `exclude` lists for a row never appear in it, nor do those with a logit of -inf; where fewer than k are
left, the rest is -inf with label -1. Ties are of the logits as the implementation has them: fp32 where it is fused, in
the dtype of x elsewhere. With ties=False an implementation may take any of equal logits, where that is cheaper.

`by_logits` makes the pass of any implementation's forward. `gskernels.oracle.topk` is the specification.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gskernels.layer import Layer
from gskernels.ops import without_autocast
from gskernels.positives import Positives, check_lists, check_tensors
from gskernels.steps import check_activations, pick
from gskernels.table import TOPK

MOST = 128  # the largest k
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}  # of the sorting keys that `by_logits` holds at once
Best = tuple[Tensor, Tensor]


def topk(
    x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, *, implementation: str | None = None,
    check: bool = True,
) -> Best:  # fmt: skip
    """The k best labels of each row of x.

    Args:
        x: [B, D] in the dtype of the layer; B may be 0.
        layer: any layout; its bias counts.
        k: 1 <= k <= min(128, L).
        exclude: lists of labels that must not appear, for each row (such as those that a document is known to have).
        implementation: of `gskernels.IMPLEMENTATIONS`, one for the layout of the layer; by default the fastest.
        check: look at the contents of `exclude`, for which the host waits for the device.

    Returns:
        (values [B, k] fp32, labels [B, k] int64), as the module's text says.

    Raises:
        ValueError: shapes, dtypes, devices, k or lists that do not fit, or an implementation that cannot run here.
    """
    check_operands(x, layer, k, exclude, check)
    chosen = pick(TOPK, x, layer, implementation)
    with without_autocast(x), torch.no_grad():
        return run(chosen.load(), x, layer, k, exclude, **chosen.options)


def run(
    module: ModuleType, x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, *, ties: bool = True,
    **options: Any,
) -> Best:  # fmt: skip
    """The module's own topk where it has one, else `by_logits`."""
    if hasattr(module, "topk"):
        best: Best = module.topk(x, layer, k, exclude, ties, **options)
        return best
    return by_logits(module, x, layer, k, exclude, ties=ties, **options)


def by_logits(
    module: ModuleType, x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, *, ties: bool = True,
    **options: Any,
) -> Best:  # fmt: skip
    """Through the module's forward and torch.topk.

    ties: order equal logits by label. Without it, which of them are taken is torch.topk's choice; that costs less.
    """
    y = module.forward(x, layer, **options)
    if exclude is not None:
        y[exclude.rows(), exclude.labels.long()] = -math.inf
    if ties:
        return _ordered(y, k)
    values, labels = y.topk(k, dim=1)
    return values.float(), labels.masked_fill_(values == -math.inf, -1)


def best_of(values: Tensor, labels: Tensor, k: int) -> Best:
    """The k best of candidates [B, n] fp32 with labels [B, n] int64, n >= k, in the order of the module's text.

    A candidate of -inf has no label. Does not wait for the device.
    """
    at = _keys(values, labels).topk(k, dim=1).indices
    values, labels = values.gather(1, at), labels.gather(1, at)
    return values, labels.masked_fill_(values == -math.inf, -1)


def _keys(values: Tensor, labels: Tensor) -> Tensor:
    """int64 that sorts by value, then by falling label: -0 equals 0, any NaN is above +inf. Labels below 2^31."""
    bits = (values + 0.0).view(torch.int32)  # -0 + 0 = 0
    order = torch.where(values.isnan(), 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (order.long() << 32) | (2**31 - 1 - labels)


def _ordered(logits: Tensor, k: int) -> Best:
    """The best of logits [B, L], chunk by chunk."""
    batch, labels = logits.shape
    step = max(k, CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"]) // (16 * max(1, batch)))
    values, best = [], []
    for start in range(0, labels, step):
        part = logits[:, start : start + step].float()
        number = torch.arange(start, start + part.shape[1], device=part.device).expand_as(part)
        found = best_of(part, number, min(k, part.shape[1]))
        values.append(found[0])
        best.append(found[1])
    return best_of(torch.cat(values, 1), torch.cat(best, 1), k) if len(best) > 1 else (values[0], best[0])


def check_operands(x: Tensor, layer: Layer, k: int, exclude: Positives | None, lists: bool = True) -> None:
    """Raises ValueError in one line. lists: look at the contents of `exclude` too, for which the host waits."""
    check_activations(x, layer)
    if not 1 <= k <= min(MOST, layer.labels):
        raise ValueError(f"k must lie in 1..{min(MOST, layer.labels)} for {layer.labels} labels, got {k}")
    if exclude is not None:
        check_tensors(exclude.pointers, exclude.labels, x, "x")
        if lists:
            check_lists(exclude.pointers, exclude.labels, layer.labels)
