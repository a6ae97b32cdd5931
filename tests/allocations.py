"""What torch's CPU allocator hands out while something runs: nothing inside an operator escapes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocations(NamedTuple):
    peak: int  # bytes alive at once beyond those before
    sizes: list[int]  # bytes of every allocation, the largest first


def allocations(run: Callable[[], object]) -> Allocations:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, size in changes:
        alive += size
        peak = max(peak, alive)
    del kept
    return Allocations(peak, sorted((size for _, size in changes if size > 0), reverse=True))
