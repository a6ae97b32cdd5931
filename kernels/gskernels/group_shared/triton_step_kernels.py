# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are compiled from this text: their arguments are pointers and scalars of the device, not Python objects)
"""The device side of `triton_step` and `triton_topk`: passes that use a tile of logits where it is computed.

Names as in `triton_kernels`: a *tile* is BLOCK_G labels of one group, a *slice* BLOCK_B rows of the batch. All K inputs
of a group are one block here, since a logit has to be complete before anything is made of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gskernels.group_shared.triton_kernels import _labels_of, _rows
from gskernels.pointwise_triton import listed, loss_and_slope, sort_key, store_updated


@triton.jit
def _logits(xt, w, row, b, bias, labels_at, inside_j, HAS_BIAS: tl.constexpr):
    """(x [BLOCK_K, BLOCK_B], logits [BLOCK_B, BLOCK_G] fp32) of a slice."""
    x = tl.load(xt + row + b[None, :])
    z = tl.dot(tl.trans(x), tl.trans(w), input_precision="ieee")
    if HAS_BIAS:
        z += tl.load(bias + labels_at, mask=inside_j, other=0.0).to(tl.float32)[None, :]
    return x, z


@triton.jit(do_not_specialize=["seed_low", "seed_high"])
def step_kernel(
    xt, weight, indices, bias, pointers, rows, columns, label_weight, losses, grad_xt, grad_weight, grad_bias, buffer, lost,
    sound, batch, stride, labels, copies, copy_stride, lr, momentum, decay, seed_low, seed_high,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
    TIGHT: tl.constexpr, WIDE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_LABEL_WEIGHT: tl.constexpr, LOSS: tl.constexpr,
    SLOTS: tl.constexpr, GRADIENTS: tl.constexpr, UPDATE: tl.constexpr, MOMENTUM: tl.constexpr, ROUNDING: tl.constexpr,
    GUARD: tl.constexpr,
):  # fmt: skip
    """A training step of one tile: all of its logits, slice by slice, are made, used and dropped.

    losses [SLOTS] fp64 += the tile's loss. GRADIENTS: grad_xt [copies, D, stride] fp32 += weight^T dz^T at the inputs,
    grad_bias = the sum of dz, and grad_weight = dz^T x, or with UPDATE the weights themselves are updated (with GUARD
    only if `sound`). Without GRADIENTS the loss is all.
    """
    tile = tl.program_id(0)
    group, first, count = _labels_of(tile, labels, G, BLOCK_G, TIGHT)
    within = (first - group * G).to(tl.int32)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_G)
    at = first * K + (j[:, None] * K + k[None, :])
    inside = (j < count)[:, None] & (k < K)[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0)
    row = _rows(tl.load(indices + group * K + k, mask=k < K, other=0), stride, WIDE)
    factor = tl.load(label_weight + first + j, mask=j < count, other=0.0)[None, :] if HAS_LABEL_WEIGHT else 1.0
    total = tl.zeros((BLOCK_K, BLOCK_G), tl.float32)
    sums = tl.zeros((BLOCK_G,), tl.float32)
    loss = tl.zeros((BLOCK_G,), tl.float32)
    target = grad_xt + (tile % copies).to(tl.int64) * copy_stride
    for b0 in range(0, batch, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        x, z = _logits(xt, w, row, b, bias, first + j, j < count, HAS_BIAS)
        hit = listed(pointers, rows, columns, group, within, b, j)
        each, slope = loss_and_slope(tl.where(hit, -z, z), LOSS)
        real = (b < batch)[:, None] & (j < count)[None, :]
        loss += tl.sum(tl.where(real, each * factor, 0.0), 0)
        if GRADIENTS:
            dz = tl.where(real, tl.where(hit, -slope, slope) * factor, 0.0)
            if HAS_BIAS:
                sums += tl.sum(dz, 0)
            dz = dz.to(xt.dtype.element_ty)
            total = tl.dot(x, dz, total, input_precision="ieee")
            product = tl.dot(tl.trans(w), tl.trans(dz), input_precision="ieee")  # [BLOCK_K, BLOCK_B]
            tl.atomic_add(target + row + b[None, :], product, mask=(k < K)[:, None], sem="relaxed")
    tl.atomic_add(losses + tile % SLOTS, tl.sum(loss, 0).to(tl.float64), sem="relaxed")
    if GRADIENTS:
        if HAS_BIAS:
            tl.store(grad_bias + first + j, sums, mask=j < count)
        if UPDATE:
            if GUARD:
                inside = inside & (tl.load(sound) != 0)
            store_updated(weight, buffer, lost, at, inside, w.to(tl.float32), tl.trans(total), at, lr, momentum, decay,
                           seed_low, seed_high, MOMENTUM, ROUNDING)  # fmt: skip
        else:
            tl.store(grad_weight + at, tl.trans(total).to(grad_weight.dtype.element_ty), mask=inside)


@triton.jit
def best_of_tiles_kernel(
    xt, weight, indices, bias, pointers, rows, columns, keys, batch, stride, labels, first_tile, tiles,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
    TIGHT: tl.constexpr, WIDE: tl.constexpr, HAS_BIAS: tl.constexpr, EXCLUDE: tl.constexpr,
):  # fmt: skip
    """keys [tiles, batch] int64: of each row the largest logit of tile first_tile + t, then the smaller tile first.

    The high word sorts as the logit does, the low one is 2^31 - 1 - t.
    """
    tile = first_tile + tl.program_id(0)
    group, first, count = _labels_of(tile, labels, G, BLOCK_G, TIGHT)
    within = (first - group * G).to(tl.int32)
    k = tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_G)
    w = tl.load(weight + first * K + (j[:, None] * K + k[None, :]),
                mask=(j < count)[:, None] & (k < K)[None, :], other=0.0)  # fmt: skip
    row = _rows(tl.load(indices + group * K + k, mask=k < K, other=0), stride, WIDE)
    for b0 in range(0, batch, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        _, z = _logits(xt, w, row, b, bias, first + j, j < count, HAS_BIAS)
        key = tl.where((j < count)[None, :], sort_key(z), -0x80000000)
        if EXCLUDE:
            key = tl.where(listed(pointers, rows, columns, group, within, b, j), -0x80000000, key)
        best = tl.max(key, 1).to(tl.int64) * 4294967296 + (2147483647 - tl.program_id(0))
        tl.store(keys + tl.program_id(0).to(tl.int64) * batch + b, best, mask=b < batch)


@triton.jit
def candidates_kernel(
    x, weight, indices, bias, pointers, rows, columns, chosen, values, numbers, dim, labels, first_tile,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, TIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, EXCLUDE: tl.constexpr,
):  # fmt: skip
    """values, numbers [batch, k, BLOCK_G]: logits fp32 and labels of the k tiles that a row chose [batch, k] int64."""
    b = tl.program_id(0)
    slot = b.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    group, first, count = _labels_of(first_tile + tl.load(chosen + slot), labels, G, BLOCK_G, TIGHT)
    within = (first - group * G).to(tl.int32)
    j = tl.arange(0, BLOCK_G)
    z = tl.zeros((BLOCK_G,), tl.float32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        index = tl.load(indices + group * K + k, mask=k < K, other=0).to(tl.int64)
        one = tl.load(x + b.to(tl.int64) * dim + index, mask=k < K, other=0.0).to(tl.float32)
        w = tl.load(weight + first * K + (j[:, None] * K + k[None, :]),
                    mask=(j < count)[:, None] & (k < K)[None, :], other=0.0).to(tl.float32)  # fmt: skip
        z += tl.sum(w * one[None, :], 1)
    if HAS_BIAS:
        z += tl.load(bias + first + j, mask=j < count, other=0.0).to(tl.float32)
    hit = j >= count
    if EXCLUDE:
        for i in range(tl.load(pointers + group), tl.load(pointers + group + 1)):
            hit = hit | ((tl.load(rows + i) == b) & (tl.load(columns + i) - within == j))
    tl.store(values + slot * BLOCK_G + j, tl.where(hit, float("-inf"), z))
    tl.store(numbers + slot * BLOCK_G + j, first + j)
