"""What the timers themselves cost and resolve, and whether independent ones agree with them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from gsbench.case import Case
from gsbench.measure.block import Bench
from gsbench.measure.operands import Call, Operands, bind
from gsbench.measure.timers import CpuTimer, CudaTimer, GraphTimer, Target, Timer

_SAMPLES = 51
_SEED = 0


def timers(bench: Bench) -> dict[str, Any]:
    """{"method", "overhead_ms": median reading of a call that does nothing, "resolution_ms": smallest step of the clock}"""
    timer = _hot(bench)
    return {
        "method": timer.method,
        "overhead_ms": statistics.median(timer.sample(Target(lambda: ()), _SAMPLES)),
        "resolution_ms": _step_of_events() if bench.device.type == "cuda" else _step_of_clock(),
    }


def agreement(bench: Bench, case: Case) -> list[dict[str, Any]]:
    """Hot time of one case by our timer and by each independent one: {"key", "by", "ours_ms", "theirs_ms"}.

    Ours is taken before and after each other one and averaged, so that drift between the two is halved. On a GPU the
    others are triton.testing.do_bench (which clears its cache before every call, so ours is cold beside it), CUDA-graph
    replay, and the profiler's kernel time; on the CPU a loop under time.perf_counter.
    """
    operands = Operands(case.point, bench.device, _SEED)
    call = bind(bench.implementations[case.implementation], case.pass_, operands)
    call()
    hot = _hot(bench)
    others: list[tuple[str, Timer, Callable[[Call], float]]] = (
        [("do_bench", CudaTimer(True, bench.device), _do_bench), ("graph", hot, _graph), ("profiler", hot, _profiler)]
        if bench.device.type == "cuda"
        else [("loop", hot, _loop)]
    )
    found = []
    for name, ours, theirs in others:
        here: dict[str, Any] = {"key": case.key, "by": name}
        before = _median(ours, call)
        try:
            other = theirs(call)
        except Exception as e:  # a call that cannot be captured, a profiler that may not run: said, and the rest goes on
            found.append({**here, "failed": f"{type(e).__name__}: {e}".splitlines()[0][:200]})
            continue
        found.append({**here, "ours_ms": (before + _median(ours, call)) / 2, "theirs_ms": other})
    return found


def _hot(bench: Bench) -> Timer:
    return CudaTimer(False, bench.device) if bench.device.type == "cuda" else CpuTimer(False, 0)


def _median(timer: Timer, call: Call) -> float:
    target = Target(call)
    timer.sample(target, 5)
    return statistics.median(timer.sample(target, _SAMPLES))


def _loop(call: Call) -> float:
    """As timeit does it: one pair of readings around many calls; the median of several such loops."""
    began = time.perf_counter()
    call()
    count = max(1, round(2e-3 / max(1e-9, time.perf_counter() - began)))
    loops = []
    for _ in range(25):
        began = time.perf_counter()
        for _ in range(count):
            call()
        loops.append((time.perf_counter() - began) / count * 1e3)
    return statistics.median(loops)


def _do_bench(call: Call) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median"))


def _graph(call: Call) -> float:
    timer = GraphTimer([call])
    return statistics.median(timer.sample(Target(call), _SAMPLES))


def _profiler(call: Call) -> float:
    """Time of the call's kernels by CUPTI; without the gaps between them, so at most what events say."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(_SAMPLES):
            call()
        torch.cuda.synchronize()
    total = sum(event.self_device_time_total for event in profiler.key_averages())
    return float(total) / _SAMPLES * 1e-3


def _step_of_clock() -> float:
    steps = set()
    last = time.perf_counter_ns()
    for _ in range(20_000):
        now = time.perf_counter_ns()
        if now > last:
            steps.add(now - last)
        last = now
    return min(steps) * 1e-6


def _step_of_events() -> float:
    """Smallest difference between distinct readings of spins that grow by a cycle or so."""
    events = []
    for cycles in range(20_000, 20_400):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(20_000)
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    times = sorted({start.elapsed_time(end) for start, end in events})
    steps = [b - a for a, b in itertools.pairwise(times) if b - a > 1e-7]
    return min(steps, default=0.0)
