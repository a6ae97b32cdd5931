"""head_tail/*: the passes of a layer with a dense head and a sparse tail, as `gskernels.table` describes them.

`tail` is the name of the implementation that computes the tail. forward and backward are those of `head_tail_linear`, with
the columns in the order head, tail. In a step, head and tail are two layers whose losses and input gradients add up: the
head goes in chunks (`gskernels.chunked`), the tail through its implementation's own step, so no logits of all labels exist
where that stores none.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from gskernels import chunked, head_tail, ranking, steps
from gskernels.head_tail import PIECE_BYTES, Inputs
from gskernels.layer import Layer
from gskernels.positives import Positives
from gskernels.ranking import Best, best_of
from gskernels.steps import Outcome, Targets, Updates
from gskernels.table import find

Parts = tuple[Targets, Targets]


def forward(x: Tensor, layer: Layer, tail: str) -> Tensor:
    return head_tail.forward(_inputs(x, layer, tail))


def backward(grad_out: Tensor, x: Tensor, layer: Layer, tail: str) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, gradient of the tail's weights, gradient of the head's)."""
    dx, d_head, dw, *_ = head_tail.backward(grad_out, [True, True, True, False, False], _inputs(x, layer, tail))
    return dx, dw, d_head


def parted(layer: Layer, targets: Targets) -> Parts:
    """The targets of head and tail. Waits for the device; whoever loads the lists can part them before."""
    return targets.rows(0, layer.head_labels), targets.rows(layer.head_labels, layer.labels)


def step(
    x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False, *, tail: str,
    parts: Parts | None = None,
) -> Outcome:  # fmt: skip
    """parts: what `parted` makes of the targets; made here where it is not given.

    With `guard` the logits of all labels exist, since nothing may be updated before the losses of both are known.
    """
    if guard and updates:
        return steps.unfused(sys.modules[__name__], x, layer, targets, updates, guard, tail=tail)
    of_head, of_tail = parts or parted(layer, targets)
    first_layer, second_layer = _layers(layer)
    own = {"weight": updates["head"]} if "head" in updates else {}
    others = {"weight": updates["weight"]} if "weight" in updates else {}
    first = chunked.step(x, first_layer, of_head, own)
    second = steps.run(find(tail).load(), x, second_layer, of_tail, others, **find(tail).options)
    db = None if first.db is None or second.db is None else torch.cat([first.db, second.db])
    dx = (first.dx.float() + second.dx.float()).to(x.dtype)
    whole = {name: one for name, one in updates.items() if name == "bias"}
    outcome = steps.finish(first.loss + second.loss, dx, layer, {"bias": db}, whole)
    return outcome._replace(dw=second.dw, d_head=first.dw)


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None, ties: bool = True, *, tail: str) -> Best:
    """The best of the head's best and the tail's best. With `exclude` the host waits for the device."""
    first, second = _layers(layer)
    head, labels_of = layer.head_labels, (lambda *span: None) if exclude is None else exclude.within
    best = chunked.topk(x, first, min(k, head), labels_of(0, head), ties)
    module, options, others = find(tail).load(), find(tail).options, labels_of(head, layer.labels)
    values, labels = ranking.run(module, x, second, min(k, second.labels), others, ties=ties, **options)
    labels = torch.where(labels < 0, -1, labels + head)
    return best_of(torch.cat([best[0], values], 1), torch.cat([best[1], labels], 1), k)


def _layers(layer: Layer) -> tuple[Layer, Layer]:
    return layer.rows(0, layer.head_labels), layer.rows(layer.head_labels, layer.labels)


def _inputs(x: Tensor, layer: Layer, tail: str) -> Inputs:
    assert layer.head is not None
    topology, head = layer.sparse, layer.head_labels
    first, second = (None, None) if layer.bias is None else (layer.bias[:head], layer.bias[head:])
    return Inputs(
        x, layer.head, layer.weight, first, second, topology.indices, None, topology.dim, topology.group_size, PIECE_BYTES,
        tail, tail,
    )  # fmt: skip
