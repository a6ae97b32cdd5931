"""Nsight Compute: what to ask it for, how to start it, and its CSV as counters. All but `count` is pure."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsbench.profile import process
from gsbench.profile.model import KernelCounters, Stall

MARKER = "spin_kernel"  # torch.cuda._sleep: stands before and after each call
_MOST_KERNELS = 400

_OF_PEAK, _WHILE_ACTIVE = ".avg.pct_of_peak_sustained_elapsed", ".avg.pct_of_peak_sustained_active"
# Field of KernelCounters -> metric. The names are those of sm_80 to sm_90; what a GPU lacks is left out.
METRICS: dict[str, str] = {
    "dram_read": "dram__bytes_read.sum",
    "dram_write": "dram__bytes_write.sum",
    "l2_read": "lts__t_sectors_op_read.sum",
    "l2_write": "lts__t_sectors_op_write.sum",
    "l2_atomic": "lts__t_sectors_op_atom.sum",
    "l2_reduction": "lts__t_sectors_op_red.sum",
    "dram_pct": "dram__throughput" + _OF_PEAK,
    "l2_pct": "lts__throughput" + _OF_PEAK,
    "l1_pct": "l1tex__throughput" + _WHILE_ACTIVE,
    "tensor_pct": "sm__pipe_tensor_cycles_active" + _OF_PEAK,
    "issue_pct": "smsp__issue_active" + _WHILE_ACTIVE,
    "sm_pct": "sm__throughput" + _OF_PEAK,
    "l2_hit_pct": "lts__t_sector_hit_rate.pct",
    "occupancy_pct": "sm__warps_active" + _WHILE_ACTIVE,
    "occupancy_limit_pct": "sm__maximum_warps_per_active_cycle_pct",
    "registers": "launch__registers_per_thread",
    "shared_bytes": "launch__shared_mem_per_block",
    "waves": "launch__waves_per_multiprocessor",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "bank_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
}
DURATION = "gpu__time_duration.sum"
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
STALLS = (
    "barrier", "branch_resolving", "dispatch_stall", "drain", "gmma", "imc_miss", "lg_throttle", "long_scoreboard",
    "math_pipe_throttle", "membar", "mio_throttle", "no_instruction", "not_selected", "selected", "short_scoreboard",
    "sleeping", "tex_throttle", "wait",
)  # fmt: skip
COUNTERS: tuple[str, ...] = (DURATION, *METRICS.values(), *(_STALL.format(reason) for reason in STALLS))
# These few fit one pass: nothing is repeated, and the caches are left as the call itself leaves them.
BYTES: tuple[str, ...] = (METRICS["dram_read"], METRICS["dram_write"])
_SECTOR = 32  # bytes

Row = Mapping[str, str]


class NoCounters(Exception):
    """Why there are none, in a line."""


@dataclass(frozen=True)
class Counted:
    """Kernels of each call, in order. after: kernels that follow it up to the next call. passes: the most over all."""

    calls: list[list[Row]]
    after: list[list[Row]]
    passes: int


def find() -> str | None:
    """The path of ncu, on PATH or where CUDA and Nsight Compute install it."""
    found = shutil.which("ncu")
    if found:
        return found
    places = [Path("/usr/local/cuda/bin/ncu"), *sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True)]
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)


def command(ncu: str, metrics: Sequence[str], keep_caches: bool, log: Path, program: Sequence[str]) -> list[str]:
    """Counts what runs between cudaProfilerStart and cudaProfilerStop, at the clocks as they are."""
    return [
        ncu, "--profile-from-start", "off", "--target-processes", "all", "--clock-control", "none",
        "--cache-control", "none" if keep_caches else "all", "--launch-count", str(_MOST_KERNELS),
        "--metrics", ",".join(metrics), "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log), *program,
    ]  # fmt: skip


def count(
    ncu: str, metrics: Sequence[str], keep_caches: bool, program: Sequence[str], environment: Mapping[str, str],
    timeout_s: float,
) -> Counted:  # fmt: skip
    """Run the program under ncu. A metric that this GPU does not have is left out. Raises NoCounters."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        while True:
            try:
                words = command(ncu, metrics, keep_caches, log, program)
                done = process.run(words, {**environment, "LC_ALL": "C"}, timeout_s)
            except subprocess.TimeoutExpired:
                raise NoCounters(f"ncu took more than {timeout_s:.0f} s and was ended") from None
            except OSError as e:
                raise NoCounters(f"{ncu} does not start: {e.strerror or e}") from None
            text = log.read_text(errors="replace") if log.exists() else ""
            log.unlink(missing_ok=True)
            lacking = lacking_metrics(text + done.stdout, metrics)
            if not lacking or not any(metric not in lacking for metric in metrics):
                break
            metrics = [metric for metric in metrics if metric not in lacking]
        rows = parse(text)
        if not rows:
            raise NoCounters(complaint("\n".join((text, done.stdout, done.stderr)), done.returncode))
        return divided(rows, passes(text + done.stdout))


# ---- reading ----------------------------------------------------------------------------------------------------


def parse(text: str) -> list[dict[str, str]]:
    """The rows of `--csv --page raw`, one a kernel: column -> text. Messages of ncu around them are skipped, and so is the
    row of units (base units: byte, ns, %)."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        return []
    table = [line for line in lines[first:] if line.startswith('"')]
    rows = list(csv.DictReader(io.StringIO("\n".join(table))))
    return [row for row in rows if (row["ID"] or "").isdigit()]


def divided(rows: Sequence[Row], most_passes: int = 1) -> Counted:
    """The kernels by call: markers stand before and after each. Raises NoCounters where they do not pair up."""
    parts: list[list[Row]] = [[]]
    for row in rows:
        if MARKER in row["Kernel Name"]:
            parts.append([])
        else:
            parts[-1].append(row)
    if len(parts) % 2 == 0:
        raise NoCounters(f"the call launches more than the {_MOST_KERNELS} kernels that are counted")
    return Counted(parts[1::2], parts[2::2], most_passes)


def number(row: Row, metric: str) -> float | None:
    """None for a metric that was not asked for, or that this GPU does not have."""
    text = (row.get(metric) or "").replace(",", "").strip()
    try:
        return float(text)
    except ValueError:
        return None


def counters(row: Row) -> KernelCounters:
    """Without a verdict."""
    values: dict[str, Any] = {field: number(row, metric) for field, metric in METRICS.items()}
    reduced = [v for v in (values.pop("l2_atomic"), values.pop("l2_reduction")) if v is not None]
    for field in ("l2_read", "l2_write"):
        values[field] = None if values[field] is None else values[field] * _SECTOR
    for field in ("registers", "shared_bytes"):
        values[field] = None if values[field] is None else round(values[field])
    stalls = [(reason, number(row, _STALL.format(reason))) for reason in STALLS]
    nanoseconds = number(row, DURATION)
    return KernelCounters(
        name=row["Kernel Name"], grid=_three(row.get("Grid Size", "")), block=_three(row.get("Block Size", "")),
        duration_us=None if nanoseconds is None else nanoseconds / 1e3,
        l2_reduced=sum(reduced) * _SECTOR if reduced else None,
        stalls=tuple(sorted((Stall(r, c) for r, c in stalls if c), key=lambda s: -s.cycles)), **values,
    )  # fmt: skip


def total(rows: Sequence[Row], metric: str) -> float:
    return sum(number(row, metric) or 0.0 for row in rows)


def passes(log: str) -> int:
    """The most passes that a kernel took, from "==PROF== Profiling "name": 0%....100% - 9 passes"."""
    return max((int(n) for n in re.findall(r"- (\d+) pass", log)), default=1)


def lacking_metrics(log: str, metrics: Sequence[str]) -> set[str]:
    """Those of the metrics that ncu says it cannot find."""
    said = [line for line in log.splitlines() if line.startswith("==ERROR==") and "metric" in line]
    return {metric for metric in metrics for line in said if re.search(rf"\b{metric.split('.')[0]}\b", line)}


def complaint(log: str, returncode: int) -> str:
    """One line of what ncu, or the program under it, said when there are no counters."""
    if "ERR_NVGPUCTRPERM" in log:
        return (
            "no permission to read the GPU's counters (ERR_NVGPUCTRPERM): run as root, or have the administrator load the "
            "driver with NVreg_RestrictProfilingToAdminUsers=0"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("==ERROR==")]
    errors = errors or [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    said = errors[0].removeprefix("==ERROR==").strip() if errors else "no kernel was counted"
    return f"ncu ended with exit code {returncode}: {said}"


def _three(text: str) -> tuple[int, ...]:
    """(132, 1, 1) of "(132, 1, 1)"."""
    return tuple(int(n) for n in re.findall(r"\d+", text))
