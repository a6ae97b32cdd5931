"""Bytes and FLOPs of a case: the model behind floors, roof shares and the memory plan. Pure; imports no torch.

Conventions: every input is read once, every output written once, and a multiply-add is two FLOPs. `useful` FLOPs are
those of the sparse layer (2 B L K a product) even where an implementation multiplies by stored zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gskernels.table import Implementation, Shape

ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Cost:
    """reads + writes are the fewest bytes that the pass can move; extra is what it needs in memory beside its inputs."""

    useful_flops: int
    reads: int
    writes: int
    layer_bytes: int
    input_bytes: int  # layer, x and grad_out as held while the case runs
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
    x, y = b * d * item, b * l * item
    weight, fixed = _layer(implementation, shape, item)
    products = 2 if pass_ == "backward" else 1
    width = d if implementation.layout == "dense" else shape.fan_in
    reads = {
        "forward": x + weight + fixed, "grad_input": y + weight + fixed, "grad_weight": y + x + fixed,
        "backward": y + x + weight + fixed,
    }[pass_]  # fmt: skip
    writes = {"forward": y, "grad_input": x, "grad_weight": weight, "backward": x + weight}[pass_]
    return Cost(
        useful_flops=products * 2 * b * l * width,
        reads=reads,
        writes=writes,
        layer_bytes=weight + fixed,
        input_bytes=weight + fixed + x + y,
        extra_bytes=writes + implementation.workspace(shape, pass_, item),
    )


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
    return l * k * item, math.ceil(l / implementation.topology_group_size(shape.group_size)) * k * index_bytes


def floor_ms(cost: Cost, *, bandwidth_gbps: float, matmul_tflops: float | None, cache_bytes: int) -> float:
    """No version of the case runs faster than this on a card with these measured ceilings.

    Written bytes that fit the last-level cache are left out: their write-back can fall outside the timed call.
    """
    moved = cost.reads + max(0, cost.writes - cache_bytes)
    memory = moved / (bandwidth_gbps * 1e6)
    arithmetic = cost.useful_flops / (matmul_tflops * 1e9) if matmul_tflops else 0.0
    return max(memory, arithmetic)
