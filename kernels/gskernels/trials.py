"""Time the candidates of a kernel and say which one won. Everything but `cold` is a pure function of its arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.choices import Config

Clock = Callable[[Sequence[Callable[[], object]]], list[float]]  # milliseconds of each call
SAMPLES = 7
NOISE = 0.01  # an earlier candidate that is slower by no more than this wins: tables then change for a reason
FLUSH_BYTES = 256 << 20  # read before each sample: more than any level-2 cache holds
HOLD_CYCLES = 200_000  # about 0.1 ms in which the launches of a sample are queued, so that the host is not measured


@dataclass(frozen=True)
class Trial:
    """The measured candidates of one (GPU, kernel, shape class), the default first.

    milliseconds: the median of each; infinite for one that does not fit the GPU.
    """

    key: str  # "gpu|kernel|shape class"
    candidates: tuple[Config, ...]
    milliseconds: tuple[float, ...]

    @property
    def winner(self) -> int:
        """The number of the fastest, or of the first that is slower by no more than NOISE."""
        least = min(self.milliseconds)
        return next(i for i, ms in enumerate(self.milliseconds) if ms <= least * (1 + NOISE))

    @property
    def config(self) -> Config:
        return dict(self.candidates[self.winner])

    @property
    def runner_up(self) -> int | None:
        """The number of the fastest of the others; None where nothing else ran."""
        others = [(ms, i) for i, ms in enumerate(self.milliseconds) if i != self.winner and math.isfinite(ms)]
        return min(others)[1] if others else None

    @property
    def gain(self) -> float | None:
        """The share of the default's time that the winner saves; None where the default does not run."""
        default = self.milliseconds[0]
        return 1 - self.milliseconds[self.winner] / default if math.isfinite(default) else None


def tried(key: str, candidates: Sequence[Config], run: Callable[[Config], object], clock: Clock) -> Trial:
    """Run every candidate once, and by `clock` those that fit the GPU; what else goes wrong is raised."""
    fitting = []
    for number, config in enumerate(candidates):
        try:
            run(config)
        except Exception as error:  # does not fit this GPU (shared memory, registers): another one will
            if type(error).__name__ not in ("OutOfResources", "PTXASError", "CompilationError"):
                raise
            continue
        fitting.append(number)
    times = [math.inf] * len(candidates)
    measured = clock([functools.partial(run, candidates[number]) for number in fitting])
    for number, ms in zip(fitting, measured, strict=True):
        times[number] = ms
    return Trial(key, tuple(dict(config) for config in candidates), tuple(times))


def cold(calls: Sequence[Callable[[], object]], like: Tensor) -> list[float]:
    """The median milliseconds of each call on the current stream of `like`'s device, caches cold."""
    flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=like.device)
    medians = []
    for call in calls:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(SAMPLES)]
        for start, stop in events:
            flush.max()
            torch.cuda._sleep(HOLD_CYCLES)
            start.record()
            call()
            stop.record()
        events[-1][1].synchronize()
        medians.append(sorted(start.elapsed_time(stop) for start, stop in events)[SAMPLES // 2])
    return medians
