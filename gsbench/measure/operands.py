"""Random operands of one point, shared by all its implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gsbench.case import Point
from gsbench.passes import DROPPED, PASSES, Pass
from gskernels import ops, ranking, steps
from gskernels.layer import Layer
from gskernels.optim import Update
from gskernels.positives import Positives
from gskernels.rewire import drop_per_group
from gskernels.steps import Targets
from gskernels.table import GROW, SCORE, STEP, TOPK, Implementation
from gskernels.topology import PATTERNS, GroupTopology

DTYPES = {name: dtype for dtype, name in ops.DTYPES.items()}
Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]
TOPOLOGY_SEED = 7
MOST_POSITIVES = 10
IDLE_RATE = 1e-30  # not 0, with which a BLAS library leaves a product out


class Operands:
    """x [B, D], grad_out [B, L], lists of positives, slots that a rewiring drops, and one layer a kind (dense, bottleneck,
    masked, sparse by group size, head-tail).

    Values are standard normal, weights scaled by 1/sqrt(inputs): random, never zeros, since constant data runs
    measurably faster on real GPUs. What a pass does not ask for is never made. `refill(seed)` draws new values in place
    and new lists; the index sets stay.

    updating: whether a step changes the weights: `True` to verify it, on copies that each call makes; `False` to time it,
    on the weights themselves with a rate so small that none changes. The work is the same, at every call.
    """

    def __init__(self, point: Point, device: torch.device, seed: int) -> None:
        self.point, self.device = point, device
        s = point.shape
        dtype = DTYPES[point.dtype]
        self.x = torch.empty(s.batch, s.dim, dtype=dtype, device=device)
        self.updating = True
        self._grad_out: Tensor | None = None
        self._targets: Targets | None = None
        self._dropped: Tensor | None = None
        self._layers: dict[str, Layer] = {}
        self._weights: dict[str, Tensor] = {}
        self._topologies: dict[tuple[int, int], GroupTopology] = {}
        self.refill(seed)

    def kind(self, implementation: Implementation) -> str:
        """Implementations of one kind compute the same function of the same operands; each rule one of its own."""
        if implementation.layout == "rules":
            return implementation.name
        if implementation.layout in ("sparse", "masked", "head_tail"):
            group = implementation.topology_group_size(self.point.shape.group_size)
            return f"{implementation.layout}/{group}"
        return implementation.layout

    def layer(self, implementation: Implementation) -> Layer:
        """Built on first use. Raises torch.OutOfMemoryError where it does not fit."""
        kind = self.kind(implementation)
        if kind not in self._layers:
            s = self.point.shape
            rows: dict[str, tuple[int, int]] = {
                "dense": (s.labels, s.dim), "sparse": (s.labels, s.fan_in), "bottleneck": (s.labels, s.bottleneck_rank),
                "head_tail": (s.tail.labels, s.fan_in),
            }  # fmt: skip
            topology = down = head = None
            if implementation.layout not in ("dense", "bottleneck"):
                labels = s.tail.labels if implementation.layout == "head_tail" else s.labels
                topology = self._topology(labels, implementation.topology_group_size(s.group_size))
            if implementation.layout == "bottleneck":
                down = self._weight("down", (s.bottleneck_rank, s.dim))
            if implementation.layout == "head_tail":
                head = self._weight("head", (s.head, s.dim))
            name = {"masked": "dense", "rules": "sparse"}.get(implementation.layout, implementation.layout)
            self._layers[kind] = Layer(self._weight(name, rows[name]), topology, down, head=head)
        return self._layers[kind]

    @property
    def grad_out(self) -> Tensor:
        """[B, L]"""
        if self._grad_out is None:
            self._grad_out = self.x.new_empty(len(self.x), self.point.shape.labels).normal_(generator=self._generator)
        return self._grad_out

    @property
    def targets(self) -> Targets:
        """Up to MOST_POSITIVES distinct labels a row, binary cross-entropy."""
        if self._targets is None:
            s = self.point.shape
            drawn = torch.rand(s.batch, MOST_POSITIVES, generator=self._generator, device=self.device, dtype=torch.float64)
            labels = (drawn * s.labels).long().sort(1).values
            kept = torch.rand(labels.shape, generator=self._generator, device=self.device) < 0.5
            kept[:, 1:] &= labels[:, 1:] != labels[:, :-1]
            pointers = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
            self._targets = Targets(Positives(pointers, labels[kept]))
        return self._targets

    @property
    def weight_gradient(self) -> Tensor:
        """[L, K]: of the sparse layer's weights."""
        s = self.point.shape
        return self._weight("gradient", (s.labels, s.fan_in))

    @property
    def dropped(self) -> Tensor:
        """[groups, K] bool: the share DROPPED of each group's slots."""
        if self._dropped is None:
            topology = self._topology(self.point.shape.labels, self.point.shape.group_size)
            score = torch.rand(topology.indices.shape, generator=self._generator, device=self.device)
            self._dropped = drop_per_group(score, DROPPED)
        return self._dropped

    def update(self, one: Pass) -> Update | None:
        """What a step of that pass does to each parameter; None where it returns gradients."""
        if not one.rounding:
            return None
        # An eighth of a weight, roughly: dz is about a half, the sum over the batch random.
        rate = 0.25 / math.sqrt(self.point.shape.batch * self.point.shape.fan_in) if self.updating else IDLE_RATE
        return Update(rate, rounding=one.rounding, seed=TOPOLOGY_SEED)

    def refill(self, seed: int) -> None:
        """New random values everywhere, in place."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._targets = self._dropped = None
        for tensor in (self.x, self._grad_out):
            if tensor is not None:
                tensor.normal_(generator=self._generator)
        for weight in self._weights.values():
            weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=self._generator)

    def clone(self) -> Operands:
        """The same values and index sets in other memory."""
        twin = Operands.__new__(Operands)
        twin.point, twin.device = self.point, self.device
        twin._generator = self._generator
        twin.updating, twin._targets, twin._dropped = self.updating, self._targets, self._dropped
        twin.x, twin._grad_out = self.x.clone(), None if self._grad_out is None else self._grad_out.clone()
        twin._weights = {name: weight.clone() for name, weight in self._weights.items()}
        twin._topologies = {
            sizes: GroupTopology(t.indices.clone(), t.labels, t.dim, t.group_size) for sizes, t in self._topologies.items()
        }
        twin._layers = {}
        return twin

    def _weight(self, name: str, shape: tuple[int, int]) -> Tensor:
        if name not in self._weights:
            weight = torch.empty(shape, dtype=self.x.dtype, device=self.device)
            self._weights[name] = weight.normal_(0, 1 / math.sqrt(shape[1]), generator=self._generator)
        return self._weights[name]

    def _topology(self, labels: int, group_size: int) -> GroupTopology:
        sizes = labels, group_size
        if sizes not in self._topologies:
            s = self.point.shape
            drawn = PATTERNS[self.point.pattern](labels, s.dim, s.fan_in, group_size, seed=TOPOLOGY_SEED, device=self.device)
            self._topologies[sizes] = drawn
        return self._topologies[sizes]


def bind(implementation: Implementation, pass_: str, operands: Operands) -> Call:
    """The pass as a call without arguments that returns its outputs as a tuple.

    What forward keeps for backward (a bottleneck's hidden activations) is computed here, outside of what is timed.
    An implementation without a fused `backward` runs grad_input, then grad_weight.
    """
    module, layer = implementation.load(), operands.layer(implementation)
    options = dict(implementation.options)
    x, one = operands.x, PASSES[pass_]
    if one.runs == STEP:
        return _bind_step(module, one, operands, layer, options)
    if one.runs == TOPK:
        return lambda: ranking.run(module, x, layer, one.k, ties=False, **options)
    if one.runs == SCORE:
        gradient = operands.weight_gradient if "dw" in implementation.needs else None
        return lambda: (module.score_slots(layer.weight, layer.sparse, grad=gradient, **options),)
    if one.runs == GROW:
        dropped = operands.dropped
        if implementation.needs:
            options |= {"x": x, "grad_out": operands.grad_out}
        return lambda: (module.grow(layer.sparse, dropped, seed=TOPOLOGY_SEED, **options).indices,)
    if pass_ == "forward":
        return lambda: (module.forward(x, layer, **options),)
    grad_out = operands.grad_out
    saved = module.saved(x, layer) if hasattr(module, "saved") and pass_ in ("grad_weight", "backward") else {}
    if pass_ == "grad_input":
        return lambda: (module.grad_input(grad_out, layer, **options),)
    if pass_ == "grad_weight":
        return lambda: (module.grad_weight(grad_out, x, layer, **saved, **options),)
    if hasattr(module, "backward"):
        return lambda: tuple(module.backward(grad_out, x, layer, **saved, **options))
    return lambda: (
        module.grad_input(grad_out, layer, **options),
        module.grad_weight(grad_out, x, layer, **saved, **options),
    )


def _bind_step(module: ModuleType, one: Pass, operands: Operands, layer: Layer, options: dict[str, Any]) -> Call:
    """Returns (loss, dx, ...): the gradients, or the parameters after their update.

    A module that parts the targets (a head-tail layer's) does so here, as one that loads them would.
    """
    x, targets = operands.x, operands.targets
    if hasattr(module, "parted"):
        options["parts"] = module.parted(layer, targets)

    def call() -> Outputs:
        update, mine = operands.update(one), layer
        if update is None:
            return tuple(t for t in steps.run(module, x, layer, targets, {}, **options) if t is not None)
        parameters = {name: p for name in ("weight", "down", "head") if (p := getattr(layer, name)) is not None}
        if operands.updating:
            parameters = {name: parameter.clone() for name, parameter in parameters.items()}
            mine = replace(layer, **parameters)
        got = steps.run(module, x, mine, targets, dict.fromkeys(parameters, update), **options)
        return (got.loss, got.dx, *parameters.values())

    return call
