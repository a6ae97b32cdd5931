"""The card's own ceilings, measured at the start of a run: what no case can beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gsbench.measure.operands import DTYPES
from gsbench.measure.timers import CpuTimer, CudaTimer, Target, Timer

_SIZES = {"cuda": (1 << 30, 8192, 20), "cpu": (1 << 27, 1024, 7)}  # bytes a buffer, matrix side, samples


def measure(device: torch.device, dtypes: list[str], cache_bytes: int) -> dict[str, Any]:
    """Bandwidths in GB/s (10^9 bytes; copy counts bytes read plus written) and matrix products in TFLOP/s.

    {"copy_gbps", "read_gbps", "write_gbps", "gather_gbps", "bandwidth_gbps": of copy and read, "matmul_tflops": {dtype: }}
    gather reads random rows of 512 bytes and writes them in order, counted like a copy. Random data throughout.
    """
    size, side, samples = _SIZES[device.type]
    timer: Timer = CudaTimer(True, device) if device.type == "cuda" else CpuTimer(True, cache_bytes)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    rows, rows_out = source.view(-1, 128), target.view(-1, 128)
    order = torch.randperm(rows.shape[0], device=device)
    sink = torch.empty((), device=device)
    small = [source[: size // 4 // 128]] * 128  # read from cache again and again: a write of random data

    def best(call: Callable[[], Any]) -> float:
        subject = Target(lambda: (call(),))
        timer.sample(subject, 3)
        return float(np.median(timer.sample(subject, samples)))

    result: dict[str, Any] = {
        "copy_gbps": 2 * size / best(lambda: target.copy_(source)) / 1e6,
        "read_gbps": size / best(lambda: torch.sum(source, dim=0, out=sink)) / 1e6,
        "write_gbps": size / best(lambda: torch.cat(small, out=target)) / 1e6,
        "gather_gbps": 2 * size / best(lambda: torch.index_select(rows, 0, order, out=rows_out)) / 1e6,
    }
    result["bandwidth_gbps"] = max(result["copy_gbps"], result["read_gbps"])
    result["matmul_tflops"] = {}
    for name in dtypes:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(2))
        result["matmul_tflops"][name] = 2 * side**3 / best(lambda a=a, b=b: a @ b) / 1e9  # type: ignore[misc]
    return result
