"""Output layers: from the encoder's output [B, D] to a loss over all labels, and to the best labels of each document."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from gsbench.train import config
from gsbench.train.encoders import Batch
from gsbench.train.updates import Updater
from gskernels import FixedFanInLinear, GroupSharedLinear, HeadTailLinear
from gskernels.fused import fused_loss
from gskernels.layer import Layer
from gskernels.loss import binary_cross_entropy, squared_hinge
from gskernels.optim import stochastic_round
from gskernels.positives import Positives
from gskernels.ranking import MOST, topk
from gskernels.shape import Shape
from gskernels.steps import Targets

_LOSSES = {"cross_entropy": binary_cross_entropy, "squared_hinge": squared_hinge}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Output(nn.Module, ABC):
    """Every method's output layer.

    - loss(hidden, batch): summed over documents and labels; differentiable in hidden and the parameters
    - top(hidden, k, exclude): (scores, labels), each [B, k], best first, labels in the numbering of the data set, without
      those that `exclude` lists for a row; -1 where no label is left
    """

    labels: int

    @abstractmethod
    def loss(self, hidden: Tensor, batch: Batch) -> Tensor: ...

    @abstractmethod
    def top(self, hidden: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]: ...


class LinearOutput(Output):
    """A layer of gskernels (or torch.nn.Linear), the order in which it has the labels, and for a bottleneck the projection
    `down` before it: D -> r in fp32, which all labels share, so the encoder's optimizer trains it.

    label_order [L] is the label at each position of the layer, label_position [L] its inverse; both are in the state_dict.
    fused: the loss is one pass with its gradients (`gskernels.fused_loss`), which stores no logits where an implementation
    can do without. Where `updater` is set for a step, that pass has updated the parameters too and leaves them no gradient.
    """

    label_order: Tensor
    label_position: Tensor

    def __init__(
        self, layer: nn.Module, labels: int, order: Tensor | None, loss: str, fused: bool = False,
        down: nn.Linear | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.down, self.labels, self._loss, self._fused = layer, down, labels, loss, fused
        self._moved = order is not None
        order = torch.arange(labels) if order is None else order
        self.register_buffer("label_order", order.clone())
        self.register_buffer("label_position", order.argsort())
        self.keep_gradients = False  # set for a step whose rewiring looks at gradients
        self.updater: Updater | None = None  # set for a step that may update in its own pass
        self._kept: tuple[Tensor, Tensor] | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, L] by position."""
        options = {"internal": True} if isinstance(self.layer, HeadTailLinear) else {}
        y: Tensor = self.layer(self._read(hidden), **options)
        return y

    def fuses(self, hidden: Tensor) -> bool:
        """Whether the loss of these activations is one pass: not where gradients of the logits are kept, and not on a GPU
        where sums must have a fixed order."""
        ordered = hidden.is_cuda and torch.are_deterministic_algorithms_enabled()
        return self._fused and not self.keep_gradients and not ordered

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Where it is not fused the gradient is written over the logits: no second [B, L]."""
        if self.fuses(hidden):
            return self._fused_loss(self._read(hidden), batch)
        y = self.logits(hidden)
        self._kept = (hidden.detach(), y.detach()) if self.keep_gradients else None
        return _LOSSES[self._loss](y, batch.pointers, self._by_position(batch), in_place=True, check=False)

    def _fused_loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        layer = self.layer
        moves = self._moved and not isinstance(layer, HeadTailLinear)  # that one knows the order itself
        targets = Targets(Positives(batch.pointers, self._by_position(batch) if moves else batch.positives), self._loss)
        updates = {} if self.updater is None else self.updater.updates(layer, hidden)
        if isinstance(layer, nn.Linear):
            return fused_loss(hidden, Layer(layer.weight, bias=layer.bias), targets, updates, check=False)
        assert isinstance(layer, (GroupSharedLinear, HeadTailLinear))
        return layer.loss(hidden, targets, updates, check=False)

    def top(self, hidden: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """In one pass without stored logits where k and the implementation allow it."""
        layer, known_order = self.layer, isinstance(self.layer, HeadTailLinear)
        if exclude is not None and self._moved and not known_order:
            exclude = Positives(exclude.pointers, by_position(exclude.pointers, exclude.labels, self.label_position))
        if k > MOST:
            return self._top_of_logits(hidden, k, exclude)
        hidden = self._read(hidden).to(next(layer.parameters()).dtype)
        if isinstance(layer, nn.Linear):
            scores, found = topk(hidden, Layer(layer.weight, bias=layer.bias), k, exclude)
        else:
            assert isinstance(layer, (GroupSharedLinear, HeadTailLinear))
            scores, found = layer.topk(hidden, k, exclude)
        if self._moved and not known_order:
            found = torch.where(found < 0, -1, self.label_order[found.clamp(min=0)])
        return scores, found

    def _top_of_logits(self, hidden: Tensor, k: int, exclude: Positives | None) -> tuple[Tensor, Tensor]:
        y = self.logits(hidden)
        if exclude is not None:
            at = exclude.labels
            if isinstance(self.layer, HeadTailLinear):
                at = self.label_position[at]
            y[exclude.rows(), at] = -math.inf
        scores, found = y.topk(k)
        return scores.float(), torch.where(scores == -math.inf, -1, self.label_order[found])

    def _read(self, hidden: Tensor) -> Tensor:
        """What the layer reads, in the dtype of its weights; under autocast the layer casts."""
        if self.down is not None:
            hidden = self.down(hidden)
        if torch.is_autocast_enabled(hidden.device.type):
            return hidden
        return hidden.to(next(self.layer.parameters()).dtype)

    def _by_position(self, batch: Batch) -> Tensor:
        return by_position(batch.pointers, batch.positives, self.label_position) if self._moved else batch.positives

    @property
    def sparse(self) -> GroupSharedLinear:
        """The part of the layer that is rewired."""
        layer = self.layer.tail if isinstance(self.layer, HeadTailLinear) else self.layer
        assert isinstance(layer, GroupSharedLinear)
        return layer

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those that all labels share, for the encoder's optimizer: a bottleneck's projection."""
        return [] if self.down is None else list(self.down.parameters())

    def tail_parameters(self) -> list[nn.Parameter]:
        """Of a head-tail layer; empty for others."""
        return list(self.layer.tail.parameters()) if isinstance(self.layer, HeadTailLinear) else []

    def kept_gradients(self) -> tuple[Tensor, Tensor]:
        """(x [B, D], dY [B, labels]) of the sparse part at the last backward. Only where `keep_gradients` was set."""
        if self._kept is None:
            raise RuntimeError("keep_gradients was not set before the loss")
        (hidden, gradient), self._kept = self._kept, None
        sparse = self.sparse
        return hidden[:, hidden.shape[1] - sparse.dim :], gradient[:, self.labels - sparse.labels :]


class ChunkedDense(Output):
    """A dense layer in chunks of labels, updated as it goes (ELMO, Zhang et al. 2025): never the whole logits.

    `loss` returns the loss, has the gradient of `hidden` ready for backward, and in training has already updated weight
    [L, D] and bias [L] by SGD with the learning rate `lr`; bf16 weights are rounded stochastically where `stochastic`.
    """

    def __init__(
        self, dim: int, labels: int, chunk: int, dtype: torch.dtype, *, stochastic: bool, weight_decay: float, seed: int
    ) -> None:
        super().__init__()
        self.labels, self.chunk, self.stochastic, self.weight_decay = labels, chunk, stochastic, weight_decay
        self.seed, self.step, self.lr = seed, 0, 0.0
        bound = 1 / math.sqrt(dim)
        weight = torch.empty(labels, dim).uniform_(-bound, bound).to(dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(labels), requires_grad=False)

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = state["step"]

    def loss(self, hidden: Tensor, batch: Batch) -> Tensor:
        total: Tensor = _Fused.apply(hidden, self, batch)  # type: ignore[no-untyped-call]
        return total

    def chunks(self) -> list[slice]:
        return [slice(s, min(s + self.chunk, self.labels)) for s in range(0, self.labels, self.chunk)]

    def logits(self, hidden: Tensor, labels: slice) -> Tensor:
        """fp32 [B, n] of a chunk."""
        return (hidden.to(self.weight.dtype) @ self.weight[labels].t()).float() + self.bias[labels]

    def top(self, hidden: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        scores, best = hidden.new_empty(len(hidden), 0), torch.empty(len(hidden), 0, dtype=torch.int64, device=hidden.device)
        for labels in self.chunks():
            y = self.logits(hidden, labels)
            if exclude is not None:
                inside = exclude.within(labels.start, labels.stop)
                y[inside.rows(), inside.labels] = -math.inf
            part, at = y.topk(min(k, labels.stop - labels.start))
            scores, best = torch.cat([scores.float(), part], 1), torch.cat([best, at + labels.start], 1)
            scores, order = scores.topk(min(k, scores.shape[1]))
            best = best.gather(1, order)
        return scores, torch.where(scores == -math.inf, -1, best)

    def forward_backward(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, its gradient in hidden [B, D] fp32); weights and bias updated in training."""
        generator = torch.Generator(hidden.device).manual_seed((self.seed * 0x9E3779B97F4A7C15 + self.step) % 2**63)
        self.step += self.training
        rows = torch.arange(batch.rows, device=hidden.device).repeat_interleave(batch.pointers.diff())
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        gradient = torch.zeros_like(hidden, dtype=torch.float32)
        x = hidden.to(self.weight.dtype)
        for labels in self.chunks():
            z = self.logits(hidden, labels)
            inside = (batch.positives >= labels.start) & (batch.positives < labels.stop)
            at = (rows[inside], batch.positives[inside] - labels.start)
            total += torch.nn.functional.softplus(z).sum(dtype=torch.float64) - z[at].sum(dtype=torch.float64)
            z.sigmoid_()
            z[at] -= 1
            weight = self.weight[labels]
            gradient += (z.to(weight.dtype) @ weight).float()
            if self.training:
                self.bias[labels] -= self.lr * z.sum(0)
                step = (z.to(weight.dtype).t() @ x).float() + self.weight_decay * weight.float()
                value = weight.float() - self.lr * step
                rounds = self.stochastic and weight.dtype == torch.bfloat16
                weight.copy_(stochastic_round(value, generator) if rounds else value)
        return total, gradient


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: ChunkedDense, batch: Batch) -> Tensor:
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            total, gradient = layer.forward_backward(hidden, batch)
        ctx.save_for_backward(gradient.to(hidden.dtype))
        return total.float()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def by_position(pointers: Tensor, positives: Tensor, position: Tensor) -> Tensor:
    """Labels of rows `pointers` [B + 1] as positions, ascending in each row."""
    counts = pointers.diff()
    first = torch.arange(len(counts), device=positives.device).repeat_interleave(counts) * len(position)
    return (first + position[positives]).sort().values - first


class Auxiliary(nn.Module):
    """Spartex's loss: a dense layer over coarse clusters of labels, whose weight falls to zero by a straight line."""

    cluster: Tensor  # [L] int64

    def __init__(self, dim: int, cluster: Tensor, weight: float, end: int) -> None:
        super().__init__()
        self.weight, self.end = weight, end
        self.register_buffer("cluster", cluster)
        self.layer = nn.Linear(dim, int(cluster.max()) + 1)

    def factor(self, step: int) -> float:
        """The weight at a step: zero from `end` on."""
        return self.weight * max(0.0, 1 - step / self.end)

    def loss(self, hidden: Tensor, batch: Batch, step: int) -> Tensor:
        clusters = self.layer.out_features
        row = torch.arange(batch.rows, device=hidden.device).repeat_interleave(batch.pointers.diff())
        key = (row * clusters + self.cluster[batch.positives]).unique()
        pointers = torch.searchsorted(key, torch.arange(batch.rows + 1, device=key.device) * clusters)
        loss = binary_cross_entropy(self.layer(hidden), pointers, key % clusters, in_place=True, check=False)
        return self.factor(step) * loss


def rank_of(settings: config.Output, dim: int, labels: int) -> int:
    """Of the bottleneck with as many FLOPs as fan-in K."""
    return Shape(1, dim, labels, settings.fan_in, 1).bottleneck_rank


def new_down(settings: config.Output, dim: int, labels: int) -> nn.Linear | None:
    """The projection of a bottleneck; starts as `gskernels.BottleneckLinear`'s, which keeps the scale of what it reads."""
    if settings.method != "bottleneck":
        return None
    down = nn.Linear(dim, rank_of(settings, dim, labels), bias=False)
    nn.init.uniform_(down.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))
    return down


def new_layer(
    settings: config.Output, dim: int, labels: int, order: Tensor | None, head: int, seed: int, views: int = 1
) -> nn.Module:
    """The layer of a method; of a bottleneck, what comes after `new_down`.

    `order` [L] is what `methods` found, for a head-tail layer the head's labels first. `views`: of the documents in `dim`
    inputs; of two, the head reads the first, the tail the other.
    """
    dtype, k, g = DTYPES[settings.weights], settings.fan_in, settings.group_size
    implementation = settings.implementation or None
    if settings.method == "dense":
        return nn.Linear(dim, labels, dtype=dtype)
    if settings.method == "bottleneck":
        return nn.Linear(rank_of(settings, dim, labels), labels, dtype=dtype)
    if settings.method == "fixed_fan_in":
        return FixedFanInLinear(dim, labels, k, seed=seed, implementation=implementation, dtype=dtype)
    if settings.method == "group_shared":
        return GroupSharedLinear(dim, labels, k, g, seed=seed, implementation=implementation, dtype=dtype)
    head_dim, tail_dim = (dim // 2, dim - dim // 2) if settings.private_features or views == 2 else (dim, dim)
    return HeadTailLinear(dim, labels, head, k, g, label_order=order, head_dim=head_dim, tail_dim=tail_dim, seed=seed,
                          implementation=implementation, dtype=dtype)  # fmt: skip
