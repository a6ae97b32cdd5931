"""Texts in the form that Nsight Compute and torch.profiler write, with made-up figures."""

from __future__ import annotations

from typing import Any

from gsbench.profile import ncu
from gsbench.profile.breakdown import CALL

COLUMNS = ("ID", "Process ID", "Process Name", "Host Name", "Kernel Name", "Context", "Stream", "Block Size", "Grid Size",
           "Device", "CC")  # fmt: skip
MARKER = "at::cuda::<unnamed>::spin_kernel(long)"
HOPPER = "hopper_forward"

# Of one kernel, in base units.
VALUES: dict[str, str] = {
    "gpu__time_duration.sum": "136,416", "dram__bytes_read.sum": "88,100,000", "dram__bytes_write.sum": "290,000,000",
    "lts__t_sectors_op_read.sum": "5,000,000", "lts__t_sectors_op_write.sum": "10,485,760",
    "lts__t_sectors_op_atom.sum": "0", "lts__t_sectors_op_red.sum": "1,000",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "58.1",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "41.5",
    "l1tex__throughput.avg.pct_of_peak_sustained_active": "71.25",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed": "23.4",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "30.1",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "n/a", "lts__t_sector_hit_rate.pct": "55.5",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "24.9", "sm__maximum_warps_per_active_cycle_pct": "25",
    "launch__registers_per_thread": "90", "launch__shared_mem_per_block": "232,448",
    "launch__waves_per_multiprocessor": "1",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "1,000,000",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "250,000",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "2.5",
    "smsp__average_warps_issue_stalled_gmma_per_issue_active.ratio": "4.25",
    "smsp__average_warps_issue_stalled_selected_per_issue_active.ratio": "1",
    "smsp__average_warps_issue_stalled_drain_per_issue_active.ratio": "0",
}  # fmt: skip


def ncu_log(kernels: list[str], values: dict[str, str] | None = None, passes: int = 9) -> str:
    """What `--log-file` holds after `--csv --page raw --print-units base`."""
    values = VALUES if values is None else values
    lines = ["==PROF== Connected to process 4711 (/usr/bin/python3.12)"]
    lines += [f'==PROF== Profiling "{name}" - {i}: 0%....50%....100% - {passes} passes' for i, name in enumerate(kernels)]
    lines += ["==PROF== Disconnected from process 4711"]
    units = ["" for _ in COLUMNS] + ["byte" if "bytes" in metric else "" for metric in values]
    lines += [_row([*COLUMNS, *values]), _row(units)]
    for i, name in enumerate(kernels):
        place = [str(i), "4711", "python3.12", "127.0.0.1", name, "1", "7", "(512, 1, 1)", "(132, 1, 1)", "0", "9.0"]
        lines.append(_row([*place, *values.values()]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return ",".join(f'"{cell}"' for cell in cells)


def stall(reason: str) -> str:
    return next(metric for metric in ncu.COUNTERS if f"stalled_{reason}_" in metric)


def gpu_trace(calls: int = 3, gap: float = 2.0, host: float = 40.0, period: float = 200.0) -> dict[str, Any]:
    """Each call launches `first` (100 us) and, `gap` us later, `second` (20 us); a kernel before them belongs to none."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
        _launch(0, 5.0), _kernel("before", 0, 10.0, 5.0),
    ]  # fmt: skip
    for i in range(calls):
        start, on_gpu = 1000.0 + i * host, 1100.0 + i * period
        events.append({"ph": "X", "cat": "user_annotation", "name": CALL, "ts": start, "dur": host, "pid": 1, "tid": 1})
        events += [_launch(2 * i + 1, start + 1), _launch(2 * i + 2, start + 2)]
        events += [_kernel("first", 2 * i + 1, on_gpu, 100.0), _kernel("second", 2 * i + 2, on_gpu + 100.0 + gap, 20.0)]
    return {"schemaVersion": 1, "traceEvents": events}


def _launch(correlation: int, ts: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": ts, "dur": 1.0, "pid": 1, "tid": 1,
            "args": {"correlation": correlation}}  # fmt: skip


def _kernel(name: str, correlation: int, ts: float, dur: float) -> dict[str, Any]:
    args = {"correlation": correlation, "stream": 7, "grid": [132, 1, 1], "block": [512, 1, 1],
            "registers per thread": 90, "shared memory": 1024}  # fmt: skip
    return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": 7, "args": args}
