"""The profiled process: what is counted lies between start and stop, and what NVML says is kept with its time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gsbench.case import Case, Point
from gsbench.measure.nvml import Monitor
from gsbench.profile import runner
from gskernels.shape import Shape

TINY = Point(Shape(4, 64, 96, 16, 32), "uniform", "fp32")
CASE = Case("dense/torch", "forward", TINY, "cold", "cpu")


def request_(folder: Path, *cases: Case) -> dict[str, Any]:
    return {
        "device": "cpu",
        "cases": [c.to_dict() for c in cases],
        "folder": str(folder),
        "answers": str(folder / "answers"),
    }


@pytest.mark.parametrize("all_bytes", [False, True])
def test_only_the_call_between_its_markers_is_counted(tmp_path, monkeypatch, all_bytes):
    happened: list[str] = []
    cudart = SimpleNamespace(
        cudaProfilerStart=lambda: happened.append("start"), cudaProfilerStop=lambda: happened.append("stop")
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: happened.append("marker"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=1 << 10))
    flush = torch.sum
    monkeypatch.setattr(torch, "sum", lambda *args, **options: happened.append("flush") or flush(*args, **options))

    def noted(implementation, pass_, operands):
        return lambda: happened.append(implementation.name) or ()

    monkeypatch.setattr(runner, "bind", noted)
    runner.count(request_(tmp_path, CASE, replace(CASE, implementation="bottleneck/torch")), all_bytes)
    written_back = ["flush"] if all_bytes else []
    for name in ("dense/torch", "bottleneck/torch"):
        assert happened[:4] == [name] * 4  # warm
        counted = ["flush", "start", "marker", name, "marker", *written_back, "stop"]
        assert happened[4 : 4 + len(counted)] == counted
        happened = happened[4 + len(counted) :]
    assert happened == []


class Nvml:
    """A card that caps its power."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __getattr__(self, name: str) -> Any:
        values = {
            "nvmlInit": None, "nvmlDeviceGetHandleByUUID": 1, "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetPowerUsage": 700_000, "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x20,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=10**9), "nvmlDeviceGetComputeRunningProcesses": [],
        }  # fmt: skip
        return lambda *args: values[name]


def test_what_nvml_reads_while_the_call_runs(monkeypatch):
    monkeypatch.setattr(runner, "_BUSY_S", 0.05)
    monkeypatch.setattr(runner, "_IDLE_S", 0.02)
    monitor = Monitor("GPU-1", nvml=Nvml(), period_s=0.005)
    calls: list[int] = []
    found = runner._timeline(lambda: calls.append(1) or (), torch.device("cpu"), monitor)
    monitor.close()
    assert calls
    assert 0.02 <= found["busy_from_s"] < found["busy_to_s"]
    assert len(found["readings"]) >= 3
    reading = found["readings"][0]
    assert (reading["sm_mhz"], reading["power_w"], reading["used_bytes"]) == (1755, 700.0, 10**9)
    assert reading["reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]


def test_a_profiler_that_fails_is_answered_with_its_reason(tmp_path, monkeypatch):
    def refuse(*args: Any) -> None:
        raise RuntimeError("CUPTI is held by another profiler\nand more")

    monkeypatch.setattr(runner, "_traced", refuse)
    runner.trace(request_(tmp_path, CASE), Monitor(None))
    (answer,) = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert answer == {
        "key": CASE.key,
        "traced": False,
        "why": "torch.profiler: RuntimeError: CUPTI is held by another profiler",
        "no_timeline": "no NVIDIA device",
    }
