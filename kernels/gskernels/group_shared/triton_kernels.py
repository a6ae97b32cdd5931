# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# (kernels are compiled from this text: their arguments are pointers and scalars of the device, not Python objects)
"""The device side of group_shared/triton. Launchers and public functions are in `triton.py`.

Names in all kernels: a *tile* is BLOCK_G labels of one group (a group larger than BLOCK_G has several tiles; a smaller
one leaves some of its tile unused); a *slice* is BLOCK_B rows of the batch. X and dX are kept transposed, [D, stride]
with stride >= B, so that a gathered input is a contiguous row; x^T is zero from column B on. TIGHT says that tile t
begins at label t * BLOCK_G. Offsets that grow with L are 64-bit; within a tile they are 32-bit.

Written for one tile a program. Two or four neighbouring tiles, joined before the store for longer row segments, were
slower (H200, default point: 0.17 ms at best against 0.16 ms), persistent programs with prefetched tiles too (0.18 ms).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def transpose_kernel(
    src, dst, scratch, rows, cols, src_stride, dst_stride, parts, part_stride, scratch_stride,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, CLEAR: tl.constexpr,
):  # fmt: skip
    """dst[c, r] = sum over parts of src[part, r, c], zero for rows <= r < dst_stride, the sum in fixed order.

    CLEAR copies of `scratch`, shaped like dst and scratch_stride apart, are set to zero on the way.
    """
    column_blocks = tl.cdiv(cols, BLOCK_C)
    r = (tl.program_id(0) // column_blocks) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = (tl.program_id(0) % column_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (r < rows)[:, None] & (c < cols)[None, :]
    at = r[:, None].to(tl.int64) * src_stride + c[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for _ in range(parts):
        total += tl.load(src + at, mask=inside, other=0.0).to(tl.float32)
        src += part_stride
    to = c[:, None].to(tl.int64) * dst_stride + r[None, :]
    inside = (c < cols)[:, None] & (r < dst_stride)[None, :]
    tl.store(dst + to, tl.trans(total.to(dst.dtype.element_ty)), mask=inside)
    for _ in tl.static_range(CLEAR):
        tl.store(scratch + to, tl.zeros((BLOCK_C, BLOCK_R), tl.float32), mask=inside)
        scratch += scratch_stride


@triton.jit
def _labels_of(tile, labels, G: tl.constexpr, BLOCK_G: tl.constexpr, TIGHT: tl.constexpr):
    """The group of a tile, its first label (int64), and how many labels it holds."""
    tile = tl.full((), 0, tl.int32) + tile  # the interpreter counts loops in plain integers
    parts: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    group = (tile // parts).to(tl.int64)
    if TIGHT:
        first = tile.to(tl.int64) * BLOCK_G
        count = tl.minimum(labels - first, BLOCK_G).to(tl.int32)
    else:
        within = (tile % parts) * BLOCK_G
        first = group * G + within
        count = tl.minimum(labels - first, tl.minimum(G - within, BLOCK_G)).to(tl.int32)
    return group, first, count


@triton.jit
def _rows(index, stride, WIDE: tl.constexpr):
    """Offsets [BLOCK_K, 1] of the rows of X^T or dX^T; 32-bit unless these hold 2^31 numbers."""
    return (index.to(tl.int64) if WIDE else index.to(tl.int32))[:, None] * stride


@triton.jit
def forward_kernel(
    xt, weight, indices, bias, y, batch, stride, labels, tiles, phase,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
    TIGHT: tl.constexpr, WIDE: tl.constexpr, TMA: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """y[slice, tile] = x^T[inputs of the group, slice]^T  weight[tile]^T.

    Programs in flight together share a slice and `phase` neighbouring tiles: their 2 * BLOCK_G-byte row segments
    complete long runs of the output while these are in the level-2 cache, and weights are read from memory once.
    With TMA, y is a tensor descriptor and the tile leaves through the copy engine.
    """
    slices = tl.cdiv(batch, BLOCK_B)
    within = tl.program_id(0) % (phase * slices)
    b0 = (within // phase) * BLOCK_B
    tile = tl.program_id(0) // (phase * slices) * phase + within % phase
    if tile < tiles:
        group, first, count = _labels_of(tile, labels, G, BLOCK_G, TIGHT)
        b = b0 + tl.arange(0, BLOCK_B)
        j = tl.arange(0, BLOCK_G)
        out = tl.zeros((BLOCK_B, BLOCK_G), tl.float32)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            index = tl.load(indices + group * K + k, mask=k < K, other=0)
            x = tl.load(xt + _rows(index, stride, WIDE) + b[None, :])
            w = tl.load(weight + first * K + (j[:, None] * K + k[None, :]),
                        mask=(j < count)[:, None] & (k < K)[None, :], other=0.0)  # fmt: skip
            out = tl.dot(tl.trans(x), tl.trans(w), out, input_precision="ieee")
        if HAS_BIAS:
            out += tl.load(bias + first + j, mask=j < count, other=0.0).to(tl.float32)[None, :]
        result = out.to(xt.dtype.element_ty)
        if TMA:
            y.store([b0, tile * BLOCK_G], result)
        else:
            tl.store(y + first + (b[:, None].to(tl.int64) * labels + j[None, :]), result,
                     mask=(b < batch)[:, None] & (j < count)[None, :])  # fmt: skip


@triton.jit
def gradients_kernel(
    xt, grad_out, weight, indices, grad_weight, grad_xt, batch, stride, labels, copies, copy_stride,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
    TIGHT: tl.constexpr, WIDE: tl.constexpr, WITH_INPUT: tl.constexpr, WITH_WEIGHT: tl.constexpr,
):  # fmt: skip
    """grad_weight[tile] = grad_out[:, tile]^T x[:, inputs];  grad_xt[inputs] += weight[tile]^T grad_out[:, tile]^T.

    grad_xt [copies, D, stride] fp32 is reached by reductions in the level-2 cache, whose rate bounds the kernel up to
    G = 64. They leave as vectors of four; several copies spread them over more lines.
    """
    blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    tile = tl.program_id(0) // blocks
    group, first, count = _labels_of(tile, labels, G, BLOCK_G, TIGHT)
    k = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_G)
    weights = first * K + (j[:, None] * K + k[None, :])
    inside = (j < count)[:, None] & (k < K)[None, :]
    row = _rows(tl.load(indices + group * K + k, mask=k < K, other=0), stride, WIDE)
    total = tl.zeros((BLOCK_K, BLOCK_G), tl.float32)
    if WITH_INPUT:
        w = tl.load(weight + weights, mask=inside, other=0.0)
        target = grad_xt + (tile % copies).to(tl.int64) * copy_stride
    for b0 in range(0, batch, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        dy = tl.load(grad_out + first + (b[:, None].to(tl.int64) * labels + j[None, :]),
                     mask=(b < batch)[:, None] & (j < count)[None, :], other=0.0)  # fmt: skip
        if WITH_WEIGHT:
            total = tl.dot(tl.load(xt + row + b[None, :]), dy, total, input_precision="ieee")
        if WITH_INPUT:
            product = tl.dot(tl.trans(w), tl.trans(dy), input_precision="ieee")  # [BLOCK_K, BLOCK_B]
            tl.atomic_add(target + row + b[None, :], product, mask=(k < K)[:, None], sem="relaxed")
    if WITH_WEIGHT:
        tl.store(grad_weight + weights, tl.trans(total).to(grad_weight.dtype.element_ty), mask=inside)


@triton.jit
def _operands(
    weight, grad_out, indices, step, steps, b, batch, labels,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, TIGHT: tl.constexpr,
):  # fmt: skip
    """weight [BLOCK_G, BLOCK_K], grad_out [BLOCK_B, BLOCK_G] and the inputs [BLOCK_K] of one step; zeros past the end."""
    blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    group, first, count = _labels_of(step // blocks, labels, G, BLOCK_G, TIGHT)
    count = tl.where(step < steps, count, 0)
    k = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    j = tl.arange(0, BLOCK_G)
    w = tl.load(weight + first * K + (j[:, None] * K + k[None, :]),
                mask=(j < count)[:, None] & (k < K)[None, :], other=0.0)  # fmt: skip
    dy = tl.load(grad_out + first + (b[:, None].to(tl.int64) * labels + j[None, :]),
                 mask=(b < batch)[:, None] & (j < count)[None, :], other=0.0)  # fmt: skip
    index = tl.load(indices + group * K + k, mask=(k < K) & (step < steps), other=0)
    return w, dy, index, k


@triton.jit
def ordered_grad_input_kernel(
    grad_out, weight, indices, partial, dim, batch, stride, labels, steps, parts,
    K: tl.constexpr, BLOCK_K: tl.constexpr, G: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_B: tl.constexpr,
    TIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """partial[part, :, slice] = sum over steps part, part + parts, ... of weight^T grad_out^T, in that order.

    One program owns a slice of a part, so it adds with plain loads and stores, a barrier between groups: no atomics,
    the same bits every time. A step is BLOCK_K inputs of a tile; operands of the next one are fetched ahead.
    """
    slices = tl.cdiv(batch, BLOCK_B)
    part = tl.program_id(0) // slices
    b = (tl.program_id(0) % slices) * BLOCK_B + tl.arange(0, BLOCK_B)
    mine = partial + part.to(tl.int64) * dim * stride
    w, dy, index, k = _operands(weight, grad_out, indices, part, steps, b, batch, labels, K, BLOCK_K, G, BLOCK_G, TIGHT)
    for step in tl.range(part, steps, parts, num_stages=1):
        next_w, next_dy, next_index, next_k = _operands(
            weight, grad_out, indices, step + parts, steps, b, batch, labels, K, BLOCK_K, G, BLOCK_G, TIGHT
        )
        where = mine + _rows(index, stride, WIDE) + b[None, :]
        inside = (k < K)[:, None]
        before = tl.load(where, mask=inside)
        tl.store(where, before + tl.dot(tl.trans(w), tl.trans(dy), input_precision="ieee"), mask=inside)
        tl.debug_barrier()
        w, dy, index, k = next_w, next_dy, next_index, next_k
