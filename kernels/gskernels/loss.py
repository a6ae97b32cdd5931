"""Losses over all labels whose targets are lists of positive labels: no dense target exists at any time.

    binary cross-entropy   sum over b, l of w_l (softplus(z) - t z)          t = 1 for a positive, else 0
    squared hinge          sum over b, l of w_l max(0, 1 - s z)^2            s = 1 for a positive, else -1

Both are "every label is a negative", plus a correction at the positives. The first part goes in chunks of labels,
the second gathers one number a positive; its gradient is computed from the logits and stored, not added to the
first part's, so that it is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gskernels import pointwise
from gskernels.positives import Positives, check_lists, check_tensors

# CPU: 1 to 4 MiB measured best (B = 64, L = 100,000, 2 cores), 32 MiB twice as slow; CUDA: half of a large card's
# level-2 cache.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 32 << 20}
LOGITS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class _Pointwise(NamedTuple):
    """A loss of one logit and its derivative, as a negative and as a positive; one temporary each."""

    negative: Callable[[Tensor], Tensor]
    positive: Callable[[Tensor], Tensor]
    negative_gradient: Callable[[Tensor], Tensor]
    positive_gradient: Callable[[Tensor], Tensor]


_CROSS_ENTROPY = _Pointwise(
    negative=F.softplus,
    positive=lambda z: F.softplus(-z),
    negative_gradient=torch.sigmoid,
    positive_gradient=lambda z: torch.sigmoid(-z).neg_(),  # sigmoid(z) - 1 without the cancellation
)
_SQUARED_HINGE = _Pointwise(
    negative=lambda z: (z + 1).relu_().square_(),
    positive=lambda z: (1 - z).relu_().square_(),
    negative_gradient=lambda z: (z + 1).relu_().mul_(2),
    positive_gradient=lambda z: (1 - z).relu_().mul_(-2),
)


LOSSES = {"cross_entropy": _CROSS_ENTROPY, "squared_hinge": _SQUARED_HINGE}


def _chunks(logits: Tensor, chunk_bytes: int) -> Iterator[slice]:
    """Label ranges in which two temporaries in the type of the sums hold `chunk_bytes`."""
    column = 2 * max(1, logits.shape[0]) * _accumulator(logits).itemsize
    step = max(1, chunk_bytes // column)
    for start in range(0, logits.shape[1], step):
        yield slice(start, start + step)


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _each(function: Callable[[Tensor], Tensor], logits: Tensor, labels: slice, weight: Tensor | None) -> Tensor:
    """[B, n] in the type of the sums. A function, so that nothing of a chunk outlives it."""
    each = function(logits[:, labels].to(_accumulator(logits)))
    return each if weight is None else each.mul_(weight[labels])


def gradient_in_place(
    logits: Tensor, positives: Positives, loss: str, weight: Tensor | None = None, chunk_bytes: int | None = None
) -> Tensor:
    """The loss, a scalar in the type of the sums; `logits` [B, L] become its derivative, from one read of them.

    loss: one of `LOSSES`; weight: [L] fp32. Operands are not looked at.
    """
    kernels = pointwise.kernels(logits.device.type)
    if kernels is not None and logits.stride(1) == 1:
        losses: Tensor = kernels.new_losses(logits)
        lists = positives.by_group(kernels.COLUMNS, -(-logits.shape[1] // kernels.COLUMNS))
        kernels.loss_in_place(logits, 0, logits.shape[1], lists, loss, weight, losses)
        return losses.sum().float()
    chosen, rows, labels = LOSSES[loss], positives.rows(), positives.labels.long()
    at = logits[rows, labels].to(_accumulator(logits))
    factor = None if weight is None else weight[labels]
    correction, slope = chosen.positive(at) - chosen.negative(at), chosen.positive_gradient(at)
    total = (correction if factor is None else correction * factor).sum(dtype=torch.float64)
    for chunk in _chunks(logits, chunk_bytes or CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"])):
        total += _each(chosen.negative, logits, chunk, weight).sum()
        logits[:, chunk] = _each(chosen.negative_gradient, logits, chunk, weight)
    logits[rows, labels] = (slope if factor is None else slope * factor).to(logits.dtype)
    return total.to(_accumulator(logits))


class _SparsePositives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,  # [B, L]
        rows: Tensor,  # [positives] int64
        labels: Tensor,  # [positives] int64
        weight: Tensor | None,  # [L] in the type of the sums
        loss: _Pointwise,
        chunk_bytes: int,
        in_place: bool,
    ) -> Tensor:
        ctx.save_for_backward(logits, rows, labels, weight)
        ctx.loss, ctx.chunk_bytes, ctx.in_place = loss, chunk_bytes, in_place
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for chunk in _chunks(logits, chunk_bytes):
            total += _each(loss.negative, logits, chunk, weight).sum()
        at = logits[rows, labels].to(_accumulator(logits))
        correction = loss.positive(at) - loss.negative(at)
        total += (correction if weight is None else correction.mul_(weight[labels])).sum()
        return total.to(_accumulator(logits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, rows, labels, weight = ctx.saved_tensors
        at = ctx.loss.positive_gradient(logits[rows, labels].to(_accumulator(logits))).mul_(upstream)
        if weight is not None:
            at.mul_(weight[labels])
        gradient = logits if ctx.in_place else torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for chunk in _chunks(logits, ctx.chunk_bytes):
            gradient[:, chunk] = _each(ctx.loss.negative_gradient, logits, chunk, weight).mul_(upstream)
        gradient[rows, labels] = at.to(gradient.dtype)
        return gradient, None, None, None, None, None, None


def binary_cross_entropy(
    logits: Tensor,  # [B, L]
    pointers: Tensor,  # [B + 1]
    positives: Tensor,  # [positives of the batch]
    weight: Tensor | None = None,  # [L]
    *,
    chunk_bytes: int | None = None,
    in_place: bool = False,
    check: bool = True,
) -> Tensor:
    """Binary cross-entropy of every row with every label, summed: ``sum w_l (softplus(z) - t z)``.

    Equals ``F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")`` for the dense 0/1 targets
    that the positives stand for. Differentiable once, in `logits`.

    Memory beside the logits: `chunk_bytes` (or two columns of fp32, if that is more) and a few numbers a positive; in
    backward the gradient [B, L] too, unless `in_place`.

    Args:
        logits: [B, L], fp32, fp16, bf16 (sums are taken in fp32) or fp64; any strides.
        pointers: [B + 1] int32 or int64: row b's positives are ``positives[pointers[b]:pointers[b + 1]]``.
        positives: int32 or int64, ascending and distinct within a row, each in [0, L).
        weight: [L] floating, a factor for each label; not differentiable.
        chunk_bytes: the bound on temporaries, in bytes; by default `CHUNK_BYTES` of the device.
        in_place: let backward write the gradient over `logits`, which is lost by it. For logits that nothing else
            reads after the loss, such as the output of a linear layer; a second backward, or another operator that
            kept the logits for its own, raises autograd's RuntimeError.
        check: look at the contents of `pointers` and `positives`: O(positives), and the host waits for the device.
            Without it malformed lists give undefined results.

    Returns:
        A scalar, fp32 (fp64 for fp64 logits).

    Raises:
        ValueError: shapes, dtypes, devices or lists of positives other than above; the message names the place.
    """
    return _apply(_CROSS_ENTROPY, logits, pointers, positives, weight, chunk_bytes, in_place, check)


def squared_hinge(
    logits: Tensor,  # [B, L]
    pointers: Tensor,  # [B + 1]
    positives: Tensor,  # [positives of the batch]
    weight: Tensor | None = None,  # [L]
    *,
    chunk_bytes: int | None = None,
    in_place: bool = False,
    check: bool = True,
) -> Tensor:
    """Squared hinge loss of every row with every label, summed: ``sum w_l max(0, 1 - s z)^2``, s = 1 or -1.

    The loss of DiSMEC (Babbar and Schoelkopf 2017). Arguments, result, memory and errors as in `binary_cross_entropy`.
    """
    return _apply(_SQUARED_HINGE, logits, pointers, positives, weight, chunk_bytes, in_place, check)


def _apply(
    loss: _Pointwise, logits: Tensor, pointers: Tensor, positives: Tensor, weight: Tensor | None,
    chunk_bytes: int | None, in_place: bool, check: bool,
) -> Tensor:  # fmt: skip
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"])
    _check_operands(logits, pointers, positives, weight, chunk_bytes, in_place)
    if check:
        check_lists(pointers, positives, logits.shape[1])
    rows = Positives(pointers, positives).rows()
    factor = None if weight is None else weight.to(_accumulator(logits))
    total: Tensor = _SparsePositives.apply(  # type: ignore[no-untyped-call]
        logits, rows, positives.long(), factor, loss, chunk_bytes, in_place
    )
    return total


def _check_operands(
    logits: Tensor, pointers: Tensor, positives: Tensor, weight: Tensor | None, chunk_bytes: int, in_place: bool
) -> None:
    if logits.dim() != 2 or logits.dtype not in LOGITS:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in LOGITS)
        raise ValueError(f"logits must be [B, L] in {allowed}, got {list(logits.shape)} in {logits.dtype}")
    labels = logits.shape[1]
    check_tensors(pointers, positives, logits, "logits")
    if weight is not None and (tuple(weight.shape) != (labels,) or not weight.is_floating_point()):
        raise ValueError(f"weight must be [{labels}] floating, got {list(weight.shape)} in {weight.dtype}")
    if weight is not None and weight.requires_grad:
        raise ValueError("weight requires a gradient, but the loss is differentiable in the logits alone")
    if weight is not None and weight.device != logits.device:
        raise ValueError(f"weight must be on the device of logits, {logits.device}, got {weight.device}")
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes}")
    if in_place and any(stride == 0 and size > 1 for stride, size in zip(logits.stride(), logits.shape, strict=True)):
        raise ValueError("in_place needs logits with memory of their own, got an expanded tensor")
