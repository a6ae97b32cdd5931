# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are compiled from this text: their arguments are pointers and scalars of the device, not Python objects)
"""What Triton kernels do number by number: loss and derivative, rounding and update; and two kernels that do only that.

On a GPU these two replace chains of torch operators, for layers whose logits are stored: `loss_in_place` reads and writes
logits once, `update` reads and writes weights once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gskernels import tune
from gskernels.positives import ByGroup

KINDS = ("cross_entropy", "squared_hinge")
ROUNDINGS = ("nearest", "stochastic", "kahan")
COLUMNS = 128  # labels of a group of `loss_in_place`
SLOTS = 128  # fp64 sums of the loss, so that programs do not wait for each other


@triton.jit
def listed(pointers, rows, columns, group, within, b, j):
    """[BLOCK_B, BLOCK_G] bool: which pairs of rows b and labels j of the tile the lists of the group name."""
    hit = (b < 0)[:, None] & (j < 0)[None, :]
    for i in range(tl.load(pointers + group), tl.load(pointers + group + 1)):
        hit = hit | ((b == tl.load(rows + i))[:, None] & (j == tl.load(columns + i) - within)[None, :])
    return hit


@triton.jit
def loss_and_slope(s, LOSS: tl.constexpr):
    """(loss, its derivative) at s = z of a negative, -z of a positive. LOSS 0: cross-entropy, 1: squared hinge."""
    if LOSS == 0:
        e = tl.exp(-tl.abs(s))
        # log(1 + e) / e on [0, 1], relative error 4e-7 wherever e is, which log(1 + e) does not have for a small e.
        p = 0.044089616197723926 - 0.008539204108515776 * e
        p = -0.1076816915209945 + p * e
        p = 0.1774523996889353 + p * e
        p = -0.24495462299797086 + p * e
        p = 0.33275479683508646 + p * e
        p = -0.49997405390156047 + p * e
        p = 0.9999998056663729 + p * e
        each = tl.where(s > 0, s, 0.0) + e * p
        slope = tl.where(s > 0, 1.0, e) / (1.0 + e)
        return tl.where(s == s, each, s), tl.where(s == s, slope, s)  # comparisons lose a NaN
    margin = tl.where(s < -1.0, 0.0, 1.0 + s)
    return margin * margin, 2.0 * margin


@triton.jit
def _mix(h):
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    return h ^ (h >> 16)


@triton.jit
def _noise(place, seed_low, seed_high):
    """`gskernels.optim.noise` of places (int64)."""
    low, high = place.to(tl.uint32), (place >> 32).to(tl.uint32)
    word = _mix(low ^ seed_low.to(tl.uint32)) + seed_high.to(tl.uint32) + high * 0x9E3779B9
    return _mix(word) >> 16


@triton.jit
def store_updated(
    weight, buffer, lost, at, inside, w, gradient, place, lr, momentum, decay, seed_low, seed_high,
    MOMENTUM: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    """What `gskernels.optim.Update.apply` does, on a tile. ROUNDING 0: nearest, 1: stochastic, 2: Kahan."""
    step = gradient + decay * w
    if MOMENTUM:
        step += momentum * tl.load(buffer + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(buffer + at, step.to(buffer.dtype.element_ty), mask=inside)
    if ROUNDING == 2:
        wanted = tl.load(lost + at, mask=inside, other=0.0).to(tl.float32) - lr * step
        new = (w + wanted).to(weight.dtype.element_ty)
        tl.store(lost + at, (wanted - (new.to(tl.float32) - w)).to(lost.dtype.element_ty), mask=inside)
        tl.store(weight + at, new, mask=inside)
    else:
        value = w - lr * step
        if ROUNDING == 1:
            bits = (value.to(tl.uint32, bitcast=True) + _noise(place, seed_low, seed_high)) & 0xFFFF0000
            value = tl.where(tl.abs(value) < float("inf"), bits.to(tl.float32, bitcast=True), value)
        tl.store(weight + at, value.to(weight.dtype.element_ty), mask=inside)


@triton.jit
def sort_key(value):
    """int32 that orders as the fp32 values do: -0 equals 0, any NaN is above +inf. As `gskernels.ranking` has it."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(value == value, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def loss_kernel(
    logits, pointers, rows, columns, label_weight, losses, batch, labels, width, row_stride, first_group,
    HAS_LABEL_WEIGHT: tl.constexpr, LOSS: tl.constexpr, SLOTS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """losses [SLOTS] fp64 += the loss of logits [batch, width], which become its derivative.

    Their column 0 is label first_group * BLOCK_L of `labels`; the lists are of groups of BLOCK_L.
    """
    group = first_group + tl.program_id(0)
    b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.arange(0, BLOCK_L)
    column = tl.program_id(0) * BLOCK_L + j
    at = b[:, None].to(tl.int64) * row_stride + column[None, :]
    real = (b < batch)[:, None] & (column < width)[None, :]
    z = tl.load(logits + at, mask=real, other=0.0).to(tl.float32)
    hit = listed(pointers, rows, columns, group, 0, b, j)
    each, slope = loss_and_slope(tl.where(hit, -z, z), LOSS)
    if HAS_LABEL_WEIGHT:
        label = group.to(tl.int64) * BLOCK_L + j
        factor = tl.load(label_weight + label, mask=label < labels, other=0.0)[None, :]
        each, slope = each * factor, slope * factor
    loss = tl.sum(tl.sum(tl.where(real, each, 0.0), 1), 0)
    tl.atomic_add(losses + (tl.program_id(0) + tl.program_id(1)) % SLOTS, loss.to(tl.float64), sem="relaxed")
    tl.store(logits + at, tl.where(hit, -slope, slope).to(logits.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def update_kernel(
    weight, gradient, buffer, lost, first, count, lr, momentum, decay, seed_low, seed_high,
    MOMENTUM: tl.constexpr, ROUNDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`gskernels.optim.Update.apply` of `count` numbers, of which the first is number `first` of its parameter."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    store_updated(weight, buffer, lost, at, inside, w, g, first + at, lr, momentum, decay, seed_low, seed_high,
                  MOMENTUM, ROUNDING)  # fmt: skip


def words(seed: int) -> tuple[int, int]:
    """The two 32-bit words of a seed, as int32."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return (low + 2**31) % 2**32 - 2**31, (high + 2**31) % 2**32 - 2**31


def loss_in_place(
    logits: Tensor,  # [B, n] of labels start .. start + n - 1, unit stride along labels
    start: int,  # a multiple of COLUMNS
    labels: int,  # L
    lists: ByGroup,  # of all labels, in groups of COLUMNS
    loss: str,
    label_weight: Tensor | None,  # [L] fp32
    losses: Tensor,  # [SLOTS] fp64
) -> None:
    """Add the loss to `losses`; the logits become its derivative."""
    batch, width = logits.shape
    if logits.numel() == 0:
        return
    factor = losses if label_weight is None else label_weight
    args = (logits, *lists, factor, losses, batch, labels, width, logits.stride(0), start // COLUMNS)
    with tune.device_of(logits):
        tune.launch(loss_kernel, (tune.cdiv(width, COLUMNS), tune.cdiv(batch, 32)), args, {"num_warps": 4},
                    HAS_LABEL_WEIGHT=label_weight is not None, LOSS=KINDS.index(loss), SLOTS=SLOTS, BLOCK_B=32,
                    BLOCK_L=COLUMNS)  # fmt: skip


def update(
    weight: Tensor, gradient: Tensor, buffer: Tensor | None, lost: Tensor | None, rounding: str,
    rates: tuple[float, float, float], seed: int, first: int,
) -> None:  # fmt: skip
    """One pass over a contiguous parameter and its state. rates: lr, momentum, weight decay."""
    count = weight.numel()
    if count == 0:
        return
    buffers = (weight if buffer is None else buffer, weight if lost is None else lost)
    args = (weight, gradient.contiguous(), *buffers, first, count, *(float(rate) for rate in rates), *words(seed))
    with tune.device_of(weight):
        tune.launch(update_kernel, (tune.cdiv(count, 1024),), args, {"num_warps": 4}, MOMENTUM=buffer is not None,
                    ROUNDING=ROUNDINGS.index(rounding), BLOCK=1024)  # fmt: skip


def new_losses(like: Tensor) -> Tensor:
    return torch.zeros(SLOTS, dtype=torch.float64, device=like.device)
