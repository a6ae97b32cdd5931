"""Random operands of one point, shared by all its implementations."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gsbench.case import Point
from gskernels import ops
from gskernels.layer import Layer
from gskernels.table import Implementation
from gskernels.topology import PATTERNS, GroupTopology

DTYPES = {name: dtype for dtype, name in ops.DTYPES.items()}
Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]
TOPOLOGY_SEED = 7


class Operands:
    """x [B, D], grad_out [B, L] and one layer a kind (dense, bottleneck, masked, sparse per group or per label).

    Values are standard normal, weights scaled by 1/sqrt(inputs): random, never zeros, since constant data runs
    measurably faster on real GPUs. `refill(seed)` draws new values in place; the index sets stay.
    """

    def __init__(self, point: Point, device: torch.device, seed: int) -> None:
        self.point, self.device = point, device
        s = point.shape
        dtype = DTYPES[point.dtype]
        self.x = torch.empty(s.batch, s.dim, dtype=dtype, device=device)
        self.grad_out = torch.empty(s.batch, s.labels, dtype=dtype, device=device)
        self._layers: dict[str, Layer] = {}
        self._weights: dict[str, Tensor] = {}
        self._topologies: dict[int, GroupTopology] = {}
        self.refill(seed)

    def kind(self, implementation: Implementation) -> str:
        """Implementations of one kind compute the same function of the same operands."""
        if implementation.layout in ("sparse", "masked"):
            group = implementation.topology_group_size(self.point.shape.group_size)
            return f"{implementation.layout}/{group}"
        return implementation.layout

    def layer(self, implementation: Implementation) -> Layer:
        """Built on first use. Raises torch.OutOfMemoryError where it does not fit."""
        kind = self.kind(implementation)
        if kind not in self._layers:
            s = self.point.shape
            rows: dict[str, tuple[int, int]] = {
                "dense": (s.labels, s.dim), "masked": (s.labels, s.dim), "sparse": (s.labels, s.fan_in),
                "bottleneck": (s.labels, s.bottleneck_rank),
            }  # fmt: skip
            topology = down = None
            if implementation.layout in ("sparse", "masked"):
                topology = self._topology(implementation.topology_group_size(s.group_size))
            if implementation.layout == "bottleneck":
                down = self._weight("down", (s.bottleneck_rank, s.dim))
            name = "dense" if implementation.layout == "masked" else implementation.layout
            self._layers[kind] = Layer(self._weight(name, rows[implementation.layout]), topology, down)
        return self._layers[kind]

    def refill(self, seed: int) -> None:
        """New random values everywhere, in place."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        for tensor in (self.x, self.grad_out):
            tensor.normal_(generator=self._generator)
        for weight in self._weights.values():
            weight.normal_(0, 1 / math.sqrt(weight.shape[1]), generator=self._generator)

    def clone(self) -> Operands:
        """The same values and index sets in other memory."""
        twin = Operands.__new__(Operands)
        twin.point, twin.device = self.point, self.device
        twin._generator = self._generator
        twin.x, twin.grad_out = self.x.clone(), self.grad_out.clone()
        twin._weights = {name: weight.clone() for name, weight in self._weights.items()}
        twin._topologies = {
            group: GroupTopology(t.indices.clone(), t.labels, t.dim, t.group_size) for group, t in self._topologies.items()
        }
        twin._layers = {}
        return twin

    def _weight(self, name: str, shape: tuple[int, int]) -> Tensor:
        if name not in self._weights:
            weight = torch.empty(shape, dtype=self.x.dtype, device=self.device)
            self._weights[name] = weight.normal_(0, 1 / math.sqrt(shape[1]), generator=self._generator)
        return self._weights[name]

    def _topology(self, group_size: int) -> GroupTopology:
        if group_size not in self._topologies:
            s = self.point.shape
            drawn = PATTERNS[self.point.pattern](
                s.labels, s.dim, s.fan_in, group_size, seed=TOPOLOGY_SEED, device=self.device
            )
            self._topologies[group_size] = drawn
        return self._topologies[group_size]


def bind(implementation: Implementation, pass_: str, operands: Operands) -> Call:
    """The pass as a call without arguments that returns its outputs as a tuple.

    What forward keeps for backward (a bottleneck's hidden activations) is computed here, outside of what is timed.
    An implementation without a fused `backward` runs grad_input, then grad_weight.
    """
    module, layer = implementation.load(), operands.layer(implementation)
    options = dict(implementation.options)
    x, grad_out = operands.x, operands.grad_out
    saved = module.saved(x, layer) if hasattr(module, "saved") and pass_ in ("grad_weight", "backward") else {}
    if pass_ == "forward":
        return lambda: (module.forward(x, layer, **options),)
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
