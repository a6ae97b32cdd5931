"""How one sample is taken: CUDA events with the stream held, CUDA-graph replay, or a monotonic clock."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from gsbench.measure import heap
from gsbench.measure.operands import Call, Outputs

Samples = list[float]  # milliseconds


@dataclass
class Target:
    """A call that is being timed, and what its timer learnt of it."""

    call: Call
    last: Outputs = field(default=(), repr=False)  # of the last timed call, for the check after timing
    hold_s: float = 100e-6
    host_behind: bool = False  # its launches could not be queued while the stream was held


class Timer(Protocol):
    method: str

    def sample(self, target: Target, count: int) -> Samples:
        """`count` samples in milliseconds, none discarded."""


class CpuTimer:
    """A monotonic clock around the call; cold: a buffer of twice the last-level cache is read before each.

    Where the process keeps its memory (`heap.keep`), calls take no page faults: another method, for the times differ.
    """

    def __init__(self, cold: bool, cache_bytes: int) -> None:
        self.method = "perf_counter_kept_memory" if heap.kept() else "perf_counter"
        self._flush = _passed_over(torch.device("cpu"), cache_bytes) if cold else None

    def sample(self, target: Target, count: int) -> Samples:
        samples = []
        for _ in range(count):
            if self._flush is not None:
                self._flush.sum()
            start = time.perf_counter_ns()
            target.last = target.call()
            samples.append((time.perf_counter_ns() - start) * 1e-6)
        return samples


@dataclass(frozen=True)
class _Queued:
    """A sample on its way: its events, whether the hold ended too early, and how long the host took to queue it."""

    start: torch.cuda.Event
    end: torch.cuda.Event
    behind: bool
    host_s: float


class CudaTimer:
    """Events on the current stream, which a spinning kernel holds until every launch of the sample is queued.

    cold: a buffer of twice the L2 is read before the hold begins; that evicts the operands and leaves no dirty lines
    whose write-back the timed kernels would pay. Samples during which the hold ran out are taken again, with a longer one
    unless the host merely hesitated once; a call that outlasts the longest hold (it waits for the device itself) is marked
    `host_behind`.
    """

    method = "cuda_events"
    _LONGEST_HOLD_S = 40e-3  # a thousand launches; the driver queues about that many
    _LONGER = 1.25  # than the host needed: most of a short sample's cost is its hold
    _SELDOM = 0.2  # share of the samples for which the hold may have run out and yet be long enough

    def __init__(self, cold: bool, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self._cycles_per_second = 1e3 * getattr(properties, "clock_rate", 2_000_000)
        self._flush = _passed_over(device, properties.L2_cache_size) if cold else None
        self._sink = torch.empty((), device=device)

    def sample(self, target: Target, count: int) -> Samples:
        samples: Samples = []
        while len(samples) < count:
            queued = [self._one(target) for _ in range(count - len(samples))]
            torch.cuda.synchronize()
            samples += [one.start.elapsed_time(one.end) for one in queued if target.host_behind or not one.behind]
            self._hold_longer(target, queued)
        return samples

    def _hold_longer(self, target: Target, queued: list[_Queued]) -> None:
        late = sum(one.behind for one in queued)
        if target.host_behind or late <= self._SELDOM * len(queued):
            return
        target.host_behind = target.hold_s >= self._LONGEST_HOLD_S
        needed = self._LONGER * max(target.hold_s, statistics.median(one.host_s for one in queued))
        target.hold_s = 100e-6 if target.host_behind else min(needed, self._LONGEST_HOLD_S)

    def _one(self, target: Target) -> _Queued:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._flush is not None:
            torch.sum(self._flush, dim=0, out=self._sink)
        torch.cuda._sleep(int(target.hold_s * self._cycles_per_second))
        began = time.perf_counter()
        start.record()
        target.last = target.call()
        behind = start.query()  # true only if the hold ended before the last launch was queued
        end.record()
        return _Queued(start, end, behind, time.perf_counter() - began)


class HostTimer:
    """Wall time of a call on an idle device until it is idle again: launch overhead included."""

    method = "perf_counter"

    def sample(self, target: Target, count: int) -> Samples:
        samples = []
        for _ in range(count):
            torch.cuda.synchronize()
            start = time.perf_counter_ns()
            target.last = target.call()
            torch.cuda.synchronize()
            samples.append((time.perf_counter_ns() - start) * 1e-6)
        return samples


class GraphTimer:
    """Replays of a CUDA graph of calls on rotating operand sets; a sample is a replay's time over its calls."""

    method = "cuda_graph"
    _REPLAY_S = 1e-3

    def __init__(self, rotating: list[Call]) -> None:
        """rotating: calls on different copies of the operands, enough to pass the L2 between two uses of one."""
        self._rotating = rotating  # the graph reads their operands at every replay
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in rotating:
                call()
            seconds = elapsed_of(rotating[0], torch.cuda.synchronize)
        torch.cuda.current_stream().wait_stream(stream)
        self._calls = len(rotating) * max(1, math.ceil(self._REPLAY_S / seconds / len(rotating)))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for i in range(self._calls):
                # the first copy is the last called: its outputs are the ones that are checked
                self._outputs = rotating[(self._calls - 1 - i) % len(rotating)]()

    def sample(self, target: Target, count: int) -> Samples:
        events = []
        for _ in range(count):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self._graph.replay()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        target.last = self._outputs
        return [start.elapsed_time(end) / self._calls for start, end in events]


@functools.cache
def _passed_over(device: torch.device, cache_bytes: int) -> torch.Tensor:
    """Twice the cache, to be read before each cold sample; one for all timers of a process."""
    return torch.ones(2 * cache_bytes // 4, device=device)


def elapsed_of(call: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Seconds of one call by the host's clock, device work included. For choosing sample counts, never recorded."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start
