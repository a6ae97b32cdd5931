"""dense/chunked and bottleneck/chunked: a step that goes through chunks of labels, so that no [B, L] exists.

Of each chunk the logits, their derivative, its part of dx, the gradient of its weights and their update, one after the
other, while the chunk is in cache (ELMO, Zhang et al. 2025, which fuses the update in the same way). Where the update
is a plain one, rounded to nearest, it is the epilogue of the product that makes the gradient,
w = (1 - lr decay) w - lr dz^T x by one BLAS call, and no gradient is stored. A bottleneck is a dense layer over the
hidden activations.

`by_chunks` does this for every layout that can show a chunk of its weights as a dense block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels import dense, tune
from gskernels.layer import Layer
from gskernels.loss import gradient_in_place
from gskernels.positives import Positives
from gskernels.ranking import Best, best_of, by_logits
from gskernels.steps import Outcome, Targets, Updates, finish

# Logits of a chunk, in bytes. CPU: a level-2 cache; CUDA: half of a large card's level-2 cache.
CHUNK_BYTES = {"cpu": 1 << 20, "cuda": 32 << 20}
ALIGN = 128  # labels: chunks are whole blocks of the kernel that computes the loss


@dataclass(frozen=True)
class Block:
    """How `by_chunks` sees a layer. `first`, `stop` are labels; dz is [B, n]."""

    rows: Callable[[int, int], Tensor]  # (first, stop) -> the weights as dense rows [n, D]
    gradient: Callable[[Tensor, int, int], Tensor]  # (dz, first, stop) -> the gradient of the chunk's weights
    plain: bool = False  # whether the rows are the weights themselves, so that the update may be a product's epilogue


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """The pass `step` of a dense layer or a bottleneck, as `gskernels.steps` describes it."""
    if layer.down is None:
        return by_chunks(x, layer, _dense(x, layer), targets, updates, guard)
    hidden = x @ layer.down.t()
    inner = Layer(layer.weight, bias=layer.bias)
    own = {name: update for name, update in updates.items() if name != "down"}
    got = by_chunks(hidden, inner, _dense(hidden, inner), targets, own, guard, rounded=False)
    grad_hidden = got.dx.to(x.dtype)  # [B, r]
    left = {name: update for name, update in updates.items() if name == "down"}
    outer = finish(got.loss, grad_hidden @ layer.down, layer, {"down": grad_hidden.t() @ x}, left, guard)
    return Outcome(got.loss, outer.dx, got.dw, got.db, outer.d_down)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, ties: bool = True) -> Best:
    """The pass `topk` of a dense layer or a bottleneck: torch.topk of each chunk's logits, then of what these left."""
    if layer.down is not None:
        x, layer = x @ layer.down.t(), Layer(layer.weight, bias=layer.bias)
    found = []
    for first, stop in _chunks(len(x), layer.labels, x, at_least=k):
        part = None if exclude is None else exclude.within(first, stop)
        values, labels = by_logits(dense, x, layer.rows(first, stop), min(k, stop - first), part, ties=ties)
        found.append((values, torch.where(labels < 0, -1, labels + first)))
    if len(found) == 1:
        return found[0]
    return best_of(torch.cat([values for values, _ in found], 1), torch.cat([labels for _, labels in found], 1), k)


def _dense(x: Tensor, layer: Layer) -> Block:
    return Block(lambda first, stop: layer.weight[first:stop], lambda dz, first, stop: product(dz.t(), x), plain=True)


def by_chunks(
    x: Tensor, layer: Layer, block: Block, targets: Targets, updates: Updates, guard: bool = False, *,
    chunk: int | None = None, rounded: bool = True,
) -> Outcome:  # fmt: skip
    """A step in chunks of `chunk` labels (of CHUNK_BYTES of logits without it), a multiple of ALIGN.

    rounded: return dx in the dtype of x, else in fp32. With `guard` the loss is computed once before, and the host waits.
    """
    labels, update = layer.labels, updates.get("weight")
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    dw = torch.empty_like(layer.weight) if update is None else None
    db = None if layer.bias is None else torch.empty(labels, dtype=torch.float32, device=x.device)
    chunks = _chunks(len(x), labels, x, chunk)
    sound = True
    if guard and updates:
        before = _Loss(x, targets, labels)
        for first, stop in chunks:
            before.into(_logits(x, block.rows(first, stop), layer, first, stop), first)
        sound = bool(before.sum().isfinite())
    loss = _Loss(x, targets, labels)
    for first, stop in chunks:
        rows, weight = block.rows(first, stop), layer.weight[first:stop]
        dz = _logits(x, rows, layer, first, stop)
        loss.into(dz, first)
        _add_product(total, dz, rows)
        if db is not None:
            db[first:stop] = dz.sum(0, dtype=torch.float32)
        if dw is not None:
            dw[first:stop] = block.gradient(dz, first, stop)
        elif update is not None and sound:
            if block.plain and update.momentum == 0 and update.rounds(weight.dtype) == "nearest":
                weight.addmm_(dz.t(), x, beta=1 - update.lr * update.weight_decay, alpha=-update.lr)
            else:
                update.rows(first, stop).apply(weight, block.gradient(dz, first, stop), first * weight.shape[1])
    others = {name: one for name, one in updates.items() if name != "weight"}
    dx = total.to(x.dtype) if rounded else total
    return finish(loss.sum(), dx, layer, {"weight": dw, "bias": db}, others, guard)


class _Loss:
    """The loss of all chunks, whose logits it turns into their derivative."""

    def __init__(self, x: Tensor, targets: Targets, labels: int) -> None:
        self._targets, self._labels = targets, labels
        self._kernels = tune.pointwise(x.device.type)
        if self._kernels is not None:
            self._total = self._kernels.new_losses(x)
            self._lists = targets.positives.by_group(ALIGN, -(-labels // ALIGN))
        else:
            self._total = torch.zeros((), dtype=torch.float64, device=x.device)

    def into(self, logits: Tensor, first: int) -> None:
        """logits [B, n] of labels from `first` on, a multiple of ALIGN."""
        one = self._targets
        if self._kernels is not None:
            self._kernels.loss_in_place(logits, first, self._labels, self._lists, one.loss, one.label_weight, self._total)
        else:
            part = one.rows(first, first + logits.shape[1])
            self._total += gradient_in_place(logits, part.positives, part.loss, part.label_weight)

    def sum(self) -> Tensor:
        total: Tensor = self._total.sum().float()
        return total


def _chunks(batch: int, labels: int, like: Tensor, chunk: int | None = None, at_least: int = 1) -> list[tuple[int, int]]:
    budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cpu"]) // (like.element_size() * max(1, batch))
    size = max(ALIGN, math.ceil(at_least / ALIGN) * ALIGN, (chunk or budget) // ALIGN * ALIGN)
    return [(first, min(first + size, labels)) for first in range(0, labels, size)]


def _logits(x: Tensor, rows: Tensor, layer: Layer, first: int, stop: int) -> Tensor:
    """[B, n], memory of its own."""
    return torch.nn.functional.linear(x, rows, None if layer.bias is None else layer.bias[first:stop])


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 from 16-bit operands where the BLAS library gives it, else in their dtype."""
    if a.is_cuda and a.dtype != torch.float32 and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def _add_product(total: Tensor, dz: Tensor, rows: Tensor) -> None:
    """total [B, D] fp32 += dz [B, n] @ rows [n, D]."""
    if dz.dtype == torch.float32:
        total.addmm_(dz, rows)
    else:
        total += product(dz, rows)
