"""One call or one case timed in this very process, by the rules that a sweep goes by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gsbench.case import Case, Point
from gsbench.errors import NothingMeasured
from gsbench.implementations import all_implementations
from gsbench.measure import ceilings
from gsbench.measure.block import Bench, Finished, measure
from gsbench.measure.environment import probe_device
from gsbench.measure.nvml import Monitor
from gsbench.measure.rounds import Series, take_rounds
from gsbench.measure.timers import CpuTimer, CudaTimer, GraphTimer, HostTimer, Timer
from gsbench.measure.worker import take_device
from gsbench.record import Record, Timing
from gsbench.store import Sample
from gsbench.suite import TimingSettings
from gskernels.shape import Shape

_NAMELESS = Point(Shape(1, 1, 1, 1, 1), "uniform", "fp32")  # of a call that is no case


@dataclass(frozen=True)
class Timed:
    """A call's samples in milliseconds, their summary, what speaks against them, and what the last call returned."""

    samples: list[float]
    timing: Timing
    flags: tuple[str, ...]
    sm_mhz: float | None
    result: Any


class Stopwatch:
    """A device and what watches it. `time` and `case` raise NothingMeasured where another gsbench measures on it."""

    def __init__(self, device: str) -> None:
        info = probe_device(device)
        monitor = Monitor(info.get("uuid"))
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device)
        monitor.adopt_own_context()
        named = {i.name: i for i in all_implementations()}
        self.bench = Bench(self.device, info, {}, monitor, named, lambda case, phase: None)

    def time(self, call: Callable[[], Any], mode: str, settings: TimingSettings) -> Timed:
        """Warm up, then sample until the median is known well enough. mode: cold, hot, graph or host."""
        case = Case("call", "forward", _NAMELESS, mode, self.device.type)
        with self._held():
            series = Series(case, self._timer(call, mode), call)
            failed = take_rounds(self.bench.monitor, [series], settings, self.bench.say, lambda: False)
        if failed:
            raise failed[0][1]
        flags = [*series.flags, *(["host_behind"] if series.target.host_behind else [])]
        return Timed([ms for _, ms in series.samples], series.summary(), tuple(flags), series.sm_mhz, series.target.last)

    def case(self, case: Case, settings: TimingSettings) -> tuple[Record, list[Sample]]:
        """Verify against the oracle, time, check once more: what a sweep makes of a case."""
        with self._held():
            dtype = case.point.dtype
            if dtype not in self.bench.ceilings.get("matmul_tflops", {}):
                self.bench.ceilings = ceilings.measure(self.device, [dtype], self.bench.info["cache_bytes"])
            for outcome in measure(self.bench, [case], settings, energy=False):
                if isinstance(outcome, Finished):
                    return outcome.record, outcome.samples
        raise AssertionError("a case alone always ends with a record")

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The device's lock, as a worker holds it, but only while something is timed."""
        info = self.bench.info
        lock = take_device(info.get("uuid") or str(self.device))
        if lock is None:
            raise NothingMeasured(f"{info['name']} is being measured by another gsbench; wait for it to end")
        with lock:
            yield

    def _timer(self, call: Callable[[], Any], mode: str) -> Timer:
        if self.device.type != "cuda":
            return CpuTimer(mode == "cold", self.bench.info["cache_bytes"])
        if mode == "host":
            return HostTimer()
        return GraphTimer([call]) if mode == "graph" else CudaTimer(mode == "cold", self.device)
