"""A calibrated delay behind a call: slowdowns of a known size, to learn whether the harness finds them.

On a GPU a spinning kernel on the call's stream; a delay of nothing launches it as well, so that two delays differ by
their spinning alone (a launch costs more than 1 % of a short kernel). On the CPU a loop over the monotonic clock.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Protocol

import numpy as np
import torch

from gsbench.measure.operands import Call, Outputs

_CYCLES = (20_000, 60_000, 100_000, 140_000)  # of the calibration: 10 to 70 us
_REPEATS = 15


class Delay(Protocol):
    def after(self, call: Call, ms: float) -> Call:
        """The call, followed by so many milliseconds of doing nothing where it runs."""


class CpuSpin:
    def after(self, call: Call, ms: float) -> Call:
        wait = round(ms * 1e6)

        def delayed() -> Outputs:
            outputs = call()
            until = time.perf_counter_ns() + wait
            while time.perf_counter_ns() < until:
                pass
            return outputs

        return delayed


class CudaSpin:
    """ms_per_cycle: slope of the time over the cycles that were asked for, so that the launch is not in it."""

    def __init__(self, ms_per_cycle: float) -> None:
        self._ms_per_cycle = ms_per_cycle

    def after(self, call: Call, ms: float) -> Call:
        cycles = round(ms / self._ms_per_cycle)

        def delayed() -> Outputs:
            outputs = call()
            torch.cuda._sleep(cycles)
            return outputs

        return delayed


@functools.cache
def of(device: torch.device) -> Delay:
    """The device's delay, calibrated once a process."""
    return CudaSpin(_ms_per_cycle()) if device.type == "cuda" else CpuSpin()


def _ms_per_cycle() -> float:
    torch.cuda._sleep(_CYCLES[-1])
    times = []
    for cycles in _CYCLES:
        events = []
        for _ in range(_REPEATS):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(_CYCLES[-1])  # holds the stream until both events are queued
            start.record()
            torch.cuda._sleep(cycles)
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        times.append(statistics.median(start.elapsed_time(end) for start, end in events))
    return float(np.polyfit(_CYCLES, times, 1)[0])
