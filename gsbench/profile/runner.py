"""The process that a profiler looks at: it makes one point's operands, warms up, and calls each case.

    python -m gsbench.profile.runner trace|counters|bytes|static REQUEST.json

A request is {"device", "cases": [...], "folder", "answers"}; answers go to that file, a line of JSON a case.
trace: torch.profiler and NVML. counters, bytes: for Nsight Compute, which counts between cudaProfilerStart and
cudaProfilerStop; a marker stands before and after each call. static: the compiler alone ("arch" in the request).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gsbench.case import Case
from gsbench.implementations import all_implementations
from gsbench.measure.environment import probe_device
from gsbench.measure.nvml import Monitor, Reading
from gsbench.measure.operands import Call, Operands, bind
from gsbench.measure.worker import take_device
from gsbench.profile.breakdown import CALL

_SEED = 0
_TRACED_S = 0.5  # as many calls as fit, from 3 to 20
_BUSY_S, _IDLE_S = 1.2, 0.3


def trace(request: dict[str, Any], monitor: Monitor) -> None:
    """<folder>/<stem>.trace.json.gz for each case, and the NVML readings as an answer."""
    device = torch.device(request["device"])
    for data, stem, call in _calls(request, device):
        began = time.perf_counter()
        call()
        _wait(device)
        count = max(3, min(20, int(_TRACED_S / max(1e-9, time.perf_counter() - began))))
        file = Path(request["folder"]) / f"{stem}.trace.json.gz"
        try:
            _traced(call, count, device, file)
            answer: dict[str, Any] = {"traced": True}
        except Exception as e:
            answer = {"traced": False, "why": f"torch.profiler: {type(e).__name__}: {str(e).splitlines()[0][:200]}"}
        if device.type == "cuda" and monitor.available:
            answer["timeline"] = _timeline(call, device, monitor)
        else:
            answer["no_timeline"] = monitor.why
        _answer(request, data, **answer)


def _traced(call: Call, count: int, device: torch.device, file: Path) -> None:
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities):  # the first one pays for starting the profiler
        call()
        _wait(device)
    with profile(activities=activities) as profiler:
        for _ in range(count):
            with record_function(CALL):
                call()
        _wait(device)
    profiler.export_chrome_trace(str(file))


def _timeline(call: Call, device: torch.device, monitor: Monitor) -> dict[str, Any]:
    began = time.monotonic()
    time.sleep(_IDLE_S)
    busy_from = time.monotonic()
    while time.monotonic() - busy_from < _BUSY_S:
        for _ in range(5):
            call()
        _wait(device)
    busy_to = time.monotonic()
    time.sleep(_IDLE_S)
    return {
        "busy_from_s": busy_from - began, "busy_to_s": busy_to - began,
        "readings": [_reading(r, began) for r in monitor.window(began).readings],
    }  # fmt: skip


def _reading(r: Reading, began: float) -> dict[str, Any]:
    return {
        "at_s": round(r.at - began, 4), "sm_mhz": r.sm_mhz, "memory_mhz": r.memory_mhz, "power_w": r.power_w,
        "temperature_c": r.temperature_c, "used_bytes": r.used_bytes, "reasons": r.reason_names(),
    }  # fmt: skip


def count(request: dict[str, Any], all_bytes: bool) -> None:
    """Each call between two markers, caches flushed before it. all_bytes: flushed after it too, so that what it wrote
    reaches memory while it is counted."""
    device = torch.device(request["device"])
    flush = torch.ones(2 * torch.cuda.get_device_properties(device).L2_cache_size // 4, device=device)
    sink = torch.empty((), device=device)
    cudart: Any = torch.cuda.cudart()
    for _, _, call in _calls(request, device):
        for _ in range(2):
            call()
        torch.sum(flush, dim=0, out=sink)
        _wait(device)
        cudart.cudaProfilerStart()
        torch.cuda._sleep(1000)
        outputs = call()
        torch.cuda._sleep(1000)
        if all_bytes:
            torch.sum(flush, dim=0, out=sink)
        _wait(device)
        cudart.cudaProfilerStop()
        del outputs


def static(request: dict[str, Any]) -> None:
    from dataclasses import asdict

    from gsbench.profile.static import NotStatic, kernels_of

    named = {i.name: i for i in all_implementations()}
    for data in request["cases"]:
        case = Case.from_dict(data)
        try:
            kernels = kernels_of(case, named[case.implementation], request["arch"])
            _answer(request, data, kernels=[asdict(kernel) for kernel in kernels])
        except NotStatic as e:
            _answer(request, data, why=str(e))


def _calls(request: dict[str, Any], device: torch.device) -> Any:
    """(case as data, file stem, the pass as a call that has run twice) of every case, on shared operands."""
    from gsbench.profile.store import stem

    named = {i.name: i for i in all_implementations()}
    operands: Operands | None = None
    for data in request["cases"]:
        case = Case.from_dict(data)
        if operands is None or operands.point != case.point:
            operands = None
            operands = Operands(case.point, device, _SEED)
        call = bind(named[case.implementation], case.pass_, operands)
        for _ in range(2):
            call()
        _wait(device)
        yield data, stem(case), call


def _answer(request: dict[str, Any], case: dict[str, Any], **data: Any) -> None:
    with open(request["answers"], "a") as file:
        file.write(json.dumps({"key": Case.from_dict(case).key, **data}) + "\n")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    what, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if what == "static":
        static(request)
        return
    info = probe_device(request["device"])
    lock = take_device(info.get("uuid") or request["device"])
    if lock is None:
        sys.exit(f"{info['name']} is being measured by another gsbench; wait for it to end")
    monitor = Monitor(info.get("uuid") if what == "trace" else None)
    if what == "trace":
        trace(request, monitor)
    else:
        count(request, all_bytes=what == "bytes")


if __name__ == "__main__":
    main()
