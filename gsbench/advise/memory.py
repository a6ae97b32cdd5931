"""What a case holds in memory, and the largest L that fits. Pure.

Held: the layer, x, the gradient of the outputs (or the outputs), what the pass returns and its workspace. Not counted: the
encoder, optimizer state, and what the CUDA context takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from gsbench import costs
from gsbench.advise.evidence import Evidence, coordinates
from gsbench.case import Point
from gsbench.errors import UserError
from gskernels.table import Implementation

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "tb": 1000**4,
          "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4}  # fmt: skip
_MOST_LABELS = 1 << 40


def parse_bytes(text: str) -> int:
    """Bytes of "24GiB", "80 GB" or "1000000". Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS or not float(match[1]):
        raise UserError(f"--memory {text!r}: write a size such as 24GiB or 80GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def needed(evidence: Evidence, implementation: Implementation, passes: Sequence[str], point: Point) -> int:
    """Bytes of the pass that needs the most: as modelled, its extra bytes by what near records' allocators counted."""
    most = 0
    for pass_ in passes:
        cost = costs.cost(implementation, pass_, point.shape, point.dtype)
        most = max(most, cost.input_bytes + round(cost.extra_bytes * factor(evidence, implementation, pass_, point)))
    return most


def factor(evidence: Evidence, implementation: Implementation, pass_: str, point: Point) -> float:
    """Measured over modelled extra bytes of the nearest record that has them; 1 where there is none."""
    at = coordinates(implementation, point.shape)
    counted = [one for one in evidence.of(implementation.name, pass_, point) if one.memory_factor is not None]
    nearest = min(counted, key=lambda one: (sum(abs(a - b) for a, b in zip(at, one.at, strict=True)), one.id), default=None)
    return 1.0 if nearest is None or nearest.memory_factor is None else nearest.memory_factor


def largest_labels(
    evidence: Evidence, implementation: Implementation, passes: Sequence[str], point: Point, memory_bytes: int
) -> int:
    """The largest L that fits, all else equal, to within eight; 0 where not even one group does."""

    def fits(labels: int) -> bool:
        shape = replace(point.shape, labels=labels)
        return needed(evidence, implementation, passes, replace(point, shape=shape)) <= memory_bytes

    low, high = 0, _MOST_LABELS // 8
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(8 * middle) else (low, middle - 1)
    return 8 * low
