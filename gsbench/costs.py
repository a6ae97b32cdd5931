"""Bytes and FLOPs of a case: the model behind floors, roof shares and the memory plan. Pure; imports no torch.

Conventions: every input is read once, every output written once, and a multiply-add is two FLOPs. `useful` FLOPs are
those of the sparse layer (2 B L K a product) even where an implementation multiplies by stored zeros, with a head 2 B (H D +
(L - H) K). A step makes three products: logits, gradient of the input, gradient of the weights. Lists of positive labels are
left out: a few kilobytes. Growth by gradient makes one product, the dense gradient of 2 B L D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gsbench.passes import PASSES
from gskernels.shape import Shape
from gskernels.table import Implementation

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Cost:
    """reads + writes are the fewest bytes that the pass can move; extra is what it needs in memory beside its inputs."""

    useful_flops: int
    reads: int
    writes: int
    layer_bytes: int
    input_bytes: int  # layer, x and, where the pass reads it, grad_out, as held while the case runs
    extra_bytes: int  # outputs and workspace

    @property
    def min_bytes(self) -> int:
        return self.reads + self.writes

    @property
    def resident_bytes(self) -> int:
        return self.input_bytes + self.extra_bytes


def cost(implementation: Implementation, pass_: str, shape: Shape, dtype: str) -> Cost:
    """The modelled cost of one call of that pass."""
    item = ITEM_BYTES[dtype]
    b, d, l = shape.batch, shape.dim, shape.labels
    one = PASSES[pass_]
    weight, fixed = _layer(implementation, shape, item)
    slots = math.ceil(l / implementation.topology_group_size(shape.group_size)) * shape.fan_in
    sizes = {
        "x": b * d * item, "y": b * l * item, "weight": weight, "indices": fixed, "best": b * one.k * 12,
        "dw": weight, "slots": slots, "score": 4 * slots,
    }  # fmt: skip
    reads = (*one.reads, *implementation.needs)
    products = one.products * _connections(implementation, shape) + (l * d if "x" in implementation.needs else 0)
    in_place = weight if one.rounding and implementation.fused is not None else 0  # else gradients wait for the update
    writes = sum(sizes[name] for name in one.writes)
    return Cost(
        useful_flops=2 * b * products,
        reads=sum(sizes[name] for name in reads),
        writes=writes,
        layer_bytes=weight + fixed,
        input_bytes=weight + fixed + sizes["x"] + sum(sizes[name] for name in ("y", "dw", "slots") if name in reads),
        extra_bytes=writes - in_place + implementation.temporaries(shape, one.runs, item),
    )


def _connections(implementation: Implementation, shape: Shape) -> int:
    """Inputs that all labels read together."""
    if implementation.layout == "dense":
        return shape.labels * shape.dim
    if implementation.layout == "head_tail":
        return shape.head * shape.dim + shape.tail.labels * shape.fan_in
    return shape.labels * shape.fan_in


def _layer(implementation: Implementation, shape: Shape, item: int) -> tuple[int, int]:
    """(bytes of the weights that training changes, bytes of indices and masks)."""
    d, l, k = shape.dim, shape.labels, shape.fan_in
    if implementation.layout == "dense":
        return l * d * item, 0
    if implementation.layout == "masked":
        return l * d * item, l * d
    if implementation.layout == "bottleneck":
        return shape.bottleneck_rank * (d + l) * item, 0
    index_bytes = 2 if d <= 2**15 else 4
    if implementation.layout == "head_tail":
        rest = shape.tail.labels
        return _connections(implementation, shape) * item, math.ceil(rest / shape.group_size) * k * index_bytes
    return l * k * item, math.ceil(l / implementation.topology_group_size(shape.group_size)) * k * index_bytes


def floor_ms(cost: Cost, *, bandwidth_gbps: float, matmul_tflops: float | None, cache_bytes: int) -> float:
    """No version of the case runs faster than this on a card with these measured ceilings.

    Written bytes that fit the last-level cache are left out: their write-back can fall outside the timed call.
    """
    moved = cost.reads + max(0, cost.writes - cache_bytes)
    memory = moved / (bandwidth_gbps * 1e6)
    arithmetic = cost.useful_flops / (matmul_tflops * 1e9) if matmul_tflops else 0.0
    return max(memory, arithmetic)
