"""From a Chrome trace of torch.profiler to where a call's time goes. Pure."""

from __future__ import annotations

import bisect
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gsbench.profile.model import Breakdown, KernelTime

CALL = "gsbench call"  # the annotation around each call
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
Event = Mapping[str, Any]


def breakdown(trace: Mapping[str, Any], device: str) -> Breakdown:
    """Raises ValueError where the trace holds no call, or on a GPU nothing that ran there."""
    events = [e for e in trace.get("traceEvents", ()) if e.get("ph") == "X"]
    calls = sorted((e for e in events if e.get("name") == CALL and e.get("cat") == "user_annotation"), key=_start)
    if not calls:
        raise ValueError(f"the trace holds no {CALL!r}")
    return _gpu(events, calls) if device == "cuda" else _cpu(events, calls)


def _gpu(events: Sequence[Event], calls: Sequence[Event]) -> Breakdown:
    launches = [(e.get("args", {}).get("correlation"), e) for e in events if e.get("cat") in _LAUNCHES]
    launched = {number: e for number, e in launches if number is not None}
    starts = [_start(call) for call in calls]
    of_call: dict[int, list[Event]] = defaultdict(list)
    for event in sorted((e for e in events if e.get("cat") in _ON_GPU), key=_start):
        cause = launched.get(event.get("args", {}).get("correlation"), event)
        index = bisect.bisect_right(starts, _start(cause)) - 1
        if index >= 0:
            of_call[index].append(event)
    if not of_call:
        raise ValueError("the trace holds no kernel: the profiler saw nothing of the GPU (CUPTI missing or refused)")
    spans, busy, between = [], [], []
    before: float | None = None
    for index in sorted(of_call):
        first, last = _start(of_call[index][0]), max(_end(e) for e in of_call[index])
        spans.append(last - first)
        busy.append(_covered(of_call[index]))
        if before is not None:
            between.append(max(0.0, first - before))
        before = last
    return Breakdown(
        device="cuda", calls=len(of_call), span_us=statistics.median(spans), busy_us=statistics.median(busy),
        gap_us=statistics.median(s - b for s, b in zip(spans, busy, strict=True)),
        host_us=statistics.median(call["dur"] for call in calls),
        between_us=statistics.median(between) if between else 0.0,
        kernels=_kernels((e for members in of_call.values() for e in members), len(of_call)),
    )  # fmt: skip


def _cpu(events: Sequence[Event], calls: Sequence[Event]) -> Breakdown:
    """Operators by their own time: that of an operator less what it calls."""
    own: list[Event] = []
    for thread in {(e.get("pid"), e.get("tid")) for e in calls}:
        within = [e for e in events if (e.get("pid"), e.get("tid")) == thread and e.get("cat") == "cpu_op"]
        stack: list[dict[str, Any]] = []
        for event in sorted(within, key=lambda e: (_start(e), -e["dur"])):
            while stack and _end(stack[-1]) <= _start(event):
                stack.pop()
            mine = {**event, "own": event["dur"]}
            if stack:
                stack[-1]["own"] -= event["dur"]
            stack.append(mine)
            own.append(mine)
    kernels = _kernels(({**e, "dur": e["own"]} for e in own if _inside(e, calls)), len(calls))
    span = statistics.median(call["dur"] for call in calls)
    busy = min(span, sum(k.total_us for k in kernels))
    return Breakdown("cpu", len(calls), span, busy, span - busy, span, 0.0, kernels)


def _inside(event: Event, calls: Sequence[Event]) -> bool:
    return any(_start(call) <= _start(event) <= _end(call) for call in calls)


def _kernels(events: Iterable[Event], calls: int) -> tuple[KernelTime, ...]:
    """The longest first."""
    members: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        members[str(event["name"])].append(event)
    found = []
    for name, these in members.items():
        args = these[0].get("args", {})
        found.append(
            KernelTime(
                name, len(these) / calls, sum(e["dur"] for e in these) / calls, tuple(args.get("grid", ())),
                tuple(args.get("block", ())), args.get("registers per thread"), args.get("shared memory"),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda k: -k.total_us))


def _covered(events: Sequence[Event]) -> float:
    """Time in which at least one of them ran; ordered by start."""
    total, until = 0.0, float("-inf")
    for event in events:
        total += max(0.0, _end(event) - max(until, _start(event)))
        until = max(until, _end(event))
    return total


def _start(event: Event) -> float:
    return float(event["ts"])


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])
