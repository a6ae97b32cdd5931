"""dense/chunked and bottleneck/chunked: a step that goes through chunks of labels, so that no [B, L] exists.

Of each chunk the logits, their derivative, its part of dx, the gradient of its weights and their update, one after the
other, while the chunk is in cache (ELMO, Zhang et al. 2025, which fuses the update in the same way). Where the update
is a plain one, rounded to nearest, it is the epilogue of the product that makes the gradient,
w = (1 - lr decay) w - lr dz^T x by one BLAS call, and no gradient is stored. A bottleneck is a dense layer over the
hidden activations.

`by_chunks` does this for every layout whose chunks can be made dense rows, or go through a module's forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from gskernels import dense, pointwise
from gskernels.layer import Layer
from gskernels.loss import gradient_in_place
from gskernels.positives import Positives
from gskernels.ranking import Best, best_of, by_logits
from gskernels.steps import Outcome, Targets, Updates, finish

# Logits of a chunk, in bytes. CPU: below 8 MiB the calls cost more than the cache saves; CUDA: half of a large card's
# level-2 cache.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 32 << 20}
ALIGN = 128  # labels: chunks are whole blocks of the kernel that computes the loss


class Chunks(Protocol):
    """How `by_chunks` sees a layer: chunks of labels [first, stop), backward right after logits."""

    plain: bool  # whether the update of a chunk may be the epilogue of the product dz^T x

    def logits(self, first: int, stop: int) -> Tensor:
        """[B, n], memory of its own."""

    def backward(self, total: Tensor, dz: Tensor, first: int, stop: int, weight: bool) -> Tensor | None:
        """Add the chunk's dx to `total` [B, D] fp32; the gradient of its weights if `weight`."""


class Rows:
    """A layer whose chunks are dense rows [n, D], as they are or made for the purpose."""

    def __init__(
        self, x: Tensor, layer: Layer, rows: Callable[[int, int], Tensor] | None = None,
        gradient: Callable[[Tensor, int, int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        """rows(first, stop), gradient(dz, first, stop). Without them the weights are the rows."""
        self._x, self._layer, self._make, self._gradient, self.plain = x, layer, rows, gradient, rows is None

    def logits(self, first: int, stop: int) -> Tensor:
        layer = self._layer
        self._rows = layer.weight[first:stop] if self._make is None else self._make(first, stop)
        return torch.nn.functional.linear(self._x, self._rows, None if layer.bias is None else layer.bias[first:stop])

    def backward(self, total: Tensor, dz: Tensor, first: int, stop: int, weight: bool) -> Tensor | None:
        if dz.dtype == torch.float32:
            total.addmm_(dz, self._rows)
        else:
            total += product(dz, self._rows)
        if not weight:
            return None
        return product(dz.t(), self._x) if self._gradient is None else self._gradient(dz, first, stop)


class Groups:
    """A sparse layer whose chunks go through a module's forward and backward."""

    plain = False

    def __init__(self, module: ModuleType, x: Tensor, layer: Layer) -> None:
        self._module, self._x, self._layer = module, x, layer

    def logits(self, first: int, stop: int) -> Tensor:
        self._part = self._layer.rows(first, stop)
        z: Tensor = self._module.forward(self._x, self._part)
        return z

    def backward(self, total: Tensor, dz: Tensor, first: int, stop: int, weight: bool) -> Tensor | None:
        dx, gradient = self._module.backward(dz, self._x, self._part)
        total += dx
        return gradient if weight else None


def by_chunks(
    x: Tensor, layer: Layer, parts: Chunks, targets: Targets, updates: Updates, guard: bool = False, *,
    chunk: int | None = None, align: int = 1, rounded: bool = True,
) -> Outcome:  # fmt: skip
    """A step in chunks of about `chunk` labels (CHUNK_BYTES of logits without it), a multiple of ALIGN and `align`.

    rounded: return dx in the dtype of x, else in fp32. With `guard` the loss is computed once before, and the host waits.
    """
    update = updates.get("weight")
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    dw = torch.empty_like(layer.weight) if update is None else None
    db = None if layer.bias is None else torch.empty(layer.labels, dtype=torch.float32, device=x.device)
    chunks, sound = _chunks(len(x), layer.labels, x, chunk, math.lcm(ALIGN, align)), True
    if guard and updates:
        before = _Loss(x, targets, layer.labels)
        for first, stop in chunks:
            before.into(parts.logits(first, stop), first)
        sound = bool(before.sum().isfinite())
    loss = _Loss(x, targets, layer.labels)
    for first, stop in chunks:
        dz = parts.logits(first, stop)
        loss.into(dz, first)
        weight = layer.weight[first:stop]
        epilogue = parts.plain and update is not None and not update.momentum and update.rounds(x.dtype) == "nearest"
        gradient = parts.backward(total, dz, first, stop, weight=not epilogue)
        if db is not None:
            db[first:stop] = dz.sum(0, dtype=torch.float32)
        if update is None:
            assert dw is not None
            assert gradient is not None
            dw[first:stop] = gradient
        elif sound and gradient is None:
            weight.addmm_(dz.t(), x, beta=1 - update.lr * update.weight_decay, alpha=-update.lr)
        elif sound and gradient is not None:
            update.rows(first, stop).apply(weight, gradient, first * weight.shape[1])
    others = {name: one for name, one in updates.items() if name != "weight"}
    dx = total.to(x.dtype) if rounded else total
    return finish(loss.sum(), dx, layer, {"weight": dw, "bias": db}, others, guard)


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False) -> Outcome:
    """The pass `step` of a dense layer or a bottleneck, as `gskernels.steps` describes it."""
    if layer.down is None:
        return by_chunks(x, layer, Rows(x, layer), targets, updates, guard)
    hidden = x @ layer.down.t()
    inner = Layer(layer.weight, bias=layer.bias)
    own = {name: update for name, update in updates.items() if name != "down"}
    got = by_chunks(hidden, inner, Rows(hidden, inner), targets, own, guard, rounded=False)
    grad_hidden = got.dx.to(x.dtype)  # [B, r]
    left = {name: update for name, update in updates.items() if name == "down"}
    outer = finish(got.loss, grad_hidden @ layer.down, layer, {"down": grad_hidden.t() @ x}, left, guard)
    return Outcome(got.loss, outer.dx, got.dw, got.db, outer.d_down)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, ties: bool = True) -> Best:
    """The pass `topk` of a dense layer or a bottleneck: torch.topk of each chunk's logits, then of what these left."""
    if layer.down is not None:
        x, layer = x @ layer.down.t(), Layer(layer.weight, bias=layer.bias)
    found = []
    for first, stop in _chunks(len(x), layer.labels, x, align=math.ceil(k / ALIGN) * ALIGN):
        part = None if exclude is None else exclude.within(first, stop)
        values, labels = by_logits(dense, x, layer.rows(first, stop), min(k, stop - first), part, ties=ties)
        found.append((values, torch.where(labels < 0, -1, labels + first)))
    if len(found) == 1:
        return found[0]
    return best_of(torch.cat([values for values, _ in found], 1), torch.cat([labels for _, labels in found], 1), k)


class _Loss:
    """The loss of all chunks, whose logits it turns into their derivative."""

    def __init__(self, x: Tensor, targets: Targets, labels: int) -> None:
        self._targets, self._labels = targets, labels
        self._kernels = pointwise.kernels(x.device.type)
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


def _chunks(batch: int, labels: int, like: Tensor, chunk: int | None = None, align: int = ALIGN) -> list[tuple[int, int]]:
    budget = CHUNK_BYTES.get(like.device.type, CHUNK_BYTES["cpu"]) // (like.element_size() * max(1, batch))
    size = max(align, (chunk or budget) // align * align)
    return [(first, min(first + size, labels)) for first in range(0, labels, size)]


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 from 16-bit operands where the BLAS library gives it, else in their dtype."""
    if a.is_cuda and a.dtype != torch.float32 and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b
