"""A case: one implementation x one pass x one point of the axes x dtype x mode."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gsbench import passes
from gskernels.shape import Shape

Mode = Literal["cold", "hot", "graph", "host"]
MODES: tuple[str, ...] = ("cold", "hot", "graph", "host")
PASSES = tuple(passes.PASSES)
AXES: tuple[str, ...] = ("batch", "dim", "labels", "fan_in", "group_size")  # whole numbers, that every point has
SHARE_AXES: tuple[str, ...] = ("head_share",)  # 0 where a point does not say


@dataclass(frozen=True)
class Point:
    """What implementations share when they are compared: the axes, the index pattern and the dtype."""

    shape: Shape
    pattern: str
    dtype: str

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.shape, self.pattern, self.dtype))

    def __hash__(self) -> int:  # every look at a table of cases asks for it
        return self._hash

    def __str__(self) -> str:
        s = self.shape
        head = f" H={s.head:,}" if s.head_share else ""
        return f"B={s.batch} D={s.dim} L={s.labels:,} K={s.fan_in} G={s.group_size}{head} {self.pattern} {self.dtype}"


@functools.lru_cache(maxsize=10_000)  # many cases of a file share a point
def _point(sizes: tuple[int, ...], head_share: float, pattern: str, dtype: str) -> Point:
    return Point(Shape(**dict(zip(AXES, sizes, strict=True)), head_share=head_share), pattern, dtype)


@dataclass(frozen=True)
class Case:
    implementation: str
    pass_: str
    point: Point
    mode: str
    device: str  # "cpu" or "cuda"
    world_size: int = 1

    def to_dict(self) -> dict[str, Any]:
        shape = {name: value for name, value in asdict(self.point.shape).items() if value or name not in SHARE_AXES}
        return {
            "implementation": self.implementation, "pass": self.pass_, **shape, "pattern": self.point.pattern,
            "dtype": self.point.dtype, "mode": self.mode, "device": self.device, "world_size": self.world_size,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Case:
        sizes = tuple([int(data[axis]) for axis in AXES])
        point = _point(sizes, float(data.get("head_share", 0)), data["pattern"], data["dtype"])
        return cls(
            data["implementation"], data["pass"], point, data["mode"], data["device"], data.get("world_size", 1)
        )

    @property
    def key(self) -> str:
        """Content key: stable over runs, machines and versions."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.implementation} {self.pass_} {self.point} {self.mode}"
