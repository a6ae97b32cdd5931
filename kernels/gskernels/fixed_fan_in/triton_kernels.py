# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are compiled from this text: their arguments are pointers and scalars of the device, not Python objects)
"""The device side of fixed_fan_in/triton. Launchers and public functions are in `triton.py`.

Every (label, input) pair costs a row of B numbers that nobody else needs at that moment, so these kernels live off the
level-1 and level-2 caches and are bound by the instructions around each load. Three things keep those few: rows of X^T
(or dY^T) are read 16 bytes a thread; indices and weights are stored [K, L], so that neighbouring labels' are one load;
and a thread holds SPAN pieces of its label's row, BLOCK_B apart, for each index and weight that it reads.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row_offsets(index, stride, WIDE: tl.constexpr):
    return (index.to(tl.int64) if WIDE else index.to(tl.int32))[:, None] * stride


@triton.jit
def label_forward_kernel(
    xt, weight_t, indices_t, bias, y, batch, stride, labels,
    K: tl.constexpr, UNROLL: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_B: tl.constexpr, SPAN: tl.constexpr,
    PHASE: tl.constexpr, WIDE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """y[slice, labels] from xt [D, stride], weight_t [K, L] and indices_t [K, L].

    A slice is SPAN * BLOCK_B columns. Programs in flight together share a slice, so that its part of X^T stays in the
    level-1 cache, and walk through PHASE blocks of labels before the next slice.
    """
    slices = tl.cdiv(batch, SPAN * BLOCK_B)
    phase = tl.program_id(0) // (PHASE * slices)
    within = tl.program_id(0) % (PHASE * slices)
    b = (within // PHASE) * (SPAN * BLOCK_B) + tl.arange(0, BLOCK_B)
    first = (phase * PHASE + within % PHASE).to(tl.int64) * BLOCK_L
    j = tl.arange(0, BLOCK_L)
    inside = j < labels - first
    if first < labels:
        sum0 = tl.zeros((BLOCK_L, BLOCK_B), tl.float32)
        sum1 = sum0
        if HAS_BIAS:
            sum0 += tl.load(bias + first + j, mask=inside, other=0.0).to(tl.float32)[:, None]
            sum1 = sum0
        for k0 in range(0, K, UNROLL):
            for u in tl.static_range(UNROLL):
                at = first + (tl.full((), 0, tl.int64) + k0 + u) * labels + j
                mask = inside if K % UNROLL == 0 else inside & (k0 + u < K)
                w = tl.load(weight_t + at, mask=mask, other=0.0).to(tl.float32)[:, None]
                rows = xt + _row_offsets(tl.load(indices_t + at, mask=mask, other=0), stride, WIDE) + b[None, :]
                sum0 += tl.load(rows).to(tl.float32) * w
                if SPAN == 2:
                    sum1 += tl.load(rows + BLOCK_B).to(tl.float32) * w
        out = y + first + (b[:, None].to(tl.int64) * labels + j[None, :])
        tl.store(out, tl.trans(sum0.to(y.dtype.element_ty)), mask=inside[None, :] & (b < batch)[:, None])
        if SPAN == 2:
            tl.store(out + (tl.full((), 0, tl.int64) + labels) * BLOCK_B, tl.trans(sum1.to(y.dtype.element_ty)),
                     mask=inside[None, :] & (b < batch - BLOCK_B)[:, None])  # fmt: skip


@triton.jit
def _grad_piece(grad_out, first, j, inside, b, batch, labels):
    """[BLOCK_L, BLOCK_B] fp32 of grad_out^T."""
    at = grad_out + first + (b[:, None].to(tl.int64) * labels + j[None, :])
    piece = tl.load(at, mask=inside[None, :] & (b < batch)[:, None], other=0.0)
    return tl.trans(piece).to(tl.float32)


@triton.jit
def label_grad_weight_kernel(
    xt, grad_out, indices_t, grad_weight, batch, stride, labels,
    K: tl.constexpr, UNROLL: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_B: tl.constexpr, SPAN: tl.constexpr,
    WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """grad_weight[labels, k] = sum over b of grad_out[b, labels] x[b, indices], UNROLL inputs at a time.

    WHOLE says that SPAN * BLOCK_B covers the batch: its piece of grad_out is then loaded once for all inputs. Sums run
    in registers over the SPAN pieces first, so that few are taken across threads.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_L
    j = tl.arange(0, BLOCK_L)
    inside = j < labels - first
    column = tl.arange(0, UNROLL)
    b = tl.arange(0, BLOCK_B)
    dy0 = _grad_piece(grad_out, first, j, inside, b, batch, labels)
    dy1 = dy0
    dy2 = dy0
    dy3 = dy0
    if SPAN >= 2:
        dy1 = _grad_piece(grad_out, first, j, inside, b + BLOCK_B, batch, labels)
    if SPAN == 4:
        dy2 = _grad_piece(grad_out, first, j, inside, b + 2 * BLOCK_B, batch, labels)
        dy3 = _grad_piece(grad_out, first, j, inside, b + 3 * BLOCK_B, batch, labels)
    for k0 in range(0, K, UNROLL):
        out = tl.zeros((BLOCK_L, UNROLL), tl.float32)
        for b0 in range(0, SPAN * BLOCK_B if WHOLE else batch, SPAN * BLOCK_B):
            b = b0 + tl.arange(0, BLOCK_B)
            if not WHOLE:
                dy0 = _grad_piece(grad_out, first, j, inside, b, batch, labels)
                if SPAN >= 2:
                    dy1 = _grad_piece(grad_out, first, j, inside, b + BLOCK_B, batch, labels)
                if SPAN == 4:
                    dy2 = _grad_piece(grad_out, first, j, inside, b + 2 * BLOCK_B, batch, labels)
                    dy3 = _grad_piece(grad_out, first, j, inside, b + 3 * BLOCK_B, batch, labels)
            for u in tl.static_range(UNROLL):
                at = first + (tl.full((), 0, tl.int64) + k0 + u) * labels + j
                mask = inside if K % UNROLL == 0 else inside & (k0 + u < K)
                rows = xt + _row_offsets(tl.load(indices_t + at, mask=mask, other=0), stride, WIDE) + b[None, :]
                product = tl.load(rows).to(tl.float32) * dy0
                if SPAN >= 2:
                    product += tl.load(rows + BLOCK_B).to(tl.float32) * dy1
                if SPAN == 4:
                    product += tl.load(rows + 2 * BLOCK_B).to(tl.float32) * dy2
                    product += tl.load(rows + 3 * BLOCK_B).to(tl.float32) * dy3
                out += tl.where((column == u)[None, :], tl.sum(product, axis=1)[:, None], 0.0)
        k = k0 + column
        tl.store(grad_weight + first * K + (j[:, None] * K + k[None, :]), out.to(grad_weight.dtype.element_ty),
                 mask=inside[:, None] & (k < K)[None, :])  # fmt: skip


@triton.jit
def take_kernel(src, source, dst, count, BLOCK: tl.constexpr):
    """dst[i] = src[source[i]], or 0 where source[i] is -1."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(source + i, mask=i < count, other=-1)
    tl.store(dst + i, tl.load(src + at, mask=at >= 0, other=0.0), mask=i < count)


@triton.jit
def label_grad_input_kernel(
    grad_t, weights, local, offsets, partial, dim, batch, stride, chunks, parts, blocks,
    CHUNK: tl.constexpr, UNROLL: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, SPAN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """partial[part, d, slice] = sum over the part's chunks of labels of weight * dY^T[label, slice], in fixed order.

    The lists of a chunk (`fixed_fan_in.triton.Plan`) are ordered by input, BLOCK_D inputs side by side: entry i of
    block n of chunk c is at offsets[c * blocks + n] + i * BLOCK_D + d % BLOCK_D. A program adds up a slice of a part
    alone, so it needs no atomics, and its chunk of dY^T (grad_t [L, stride]) stays in the level-1 cache.
    """
    slices = tl.cdiv(batch, SPAN * BLOCK_B)
    part = tl.program_id(0) // slices
    b = (tl.program_id(0) % slices) * (SPAN * BLOCK_B) + tl.arange(0, BLOCK_B)
    mine = partial + part.to(tl.int64) * dim * stride
    j = tl.arange(0, BLOCK_D)
    for chunk in range(part, chunks, parts):
        base = grad_t + (tl.full((), 0, tl.int64) + chunk) * CHUNK * stride
        for block in range(blocks):
            start = tl.load(offsets + chunk * blocks + block)
            stop = tl.load(offsets + chunk * blocks + block + 1)
            sum0 = tl.zeros((BLOCK_D, BLOCK_B), tl.float32)
            sum1 = sum0
            for entry in range(start, stop, BLOCK_D * UNROLL):
                for u in tl.static_range(UNROLL):
                    at = entry + u * BLOCK_D + j
                    w = tl.load(weights + at).to(tl.float32)[:, None]
                    rows = base + _row_offsets(tl.load(local + at), stride, WIDE) + b[None, :]
                    sum0 += tl.load(rows).to(tl.float32) * w
                    if SPAN == 2:
                        sum1 += tl.load(rows + BLOCK_B).to(tl.float32) * w
            d = block * BLOCK_D + j
            inside = (d < dim)[:, None]
            where = mine + _row_offsets(d, stride, WIDE) + b[None, :]
            tl.store(where, tl.load(where, mask=inside & (chunk > part), other=0.0) + sum0, mask=inside)
            if SPAN == 2:
                where += BLOCK_B
                tl.store(where, tl.load(where, mask=inside & (chunk > part), other=0.0) + sum1, mask=inside)
