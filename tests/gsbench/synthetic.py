"""Run folders made up for tests: realistic in form, with times from a small formula, so results are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gsbench.case import Case, Point
from gsbench.record import Record, Timing
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS

DEFAULT = Shape(batch=256, dim=768, labels=131072, fan_in=32, group_size=64)
AXES: dict[str, list[int]] = {
    "batch": [256, 1, 16, 64, 1024],
    "dim": [768],
    "labels": [131072, 32768, 524288, 1048576],
    "fan_in": [32, 8, 16, 64, 128],
    "group_size": [64, 16, 256],
}
PASSES = ("forward", "grad_input", "grad_weight", "backward")


def point(pattern: str = "uniform", dtype: str = "bf16", **axes: int) -> Point:
    """The default point with some axes changed."""
    return Point(Shape(**{**DEFAULT.__dict__, **axes}), pattern, dtype)


def timing(median_ms: float, spread: float = 0.002, method: str = "cuda_events", **changes: Any) -> Timing:
    """A timing whose interval is the median times 1 -+ spread."""
    low, high = median_ms * (1 - spread), median_ms * (1 + spread)
    values: dict[str, Any] = {
        "method": method, "median_ms": median_ms, "ci_low_ms": low, "ci_high_ms": high, "p5_ms": low * 0.99,
        "p20_ms": low, "p80_ms": high, "p95_ms": high * 1.01, "min_ms": low * 0.98, "samples": 120, "bimodal": False,
        "capped": False,
    }  # fmt: skip
    return Timing(**{**values, **changes})


def timed(
    name: str, median_ms: float, where: Point | None = None, pass_: str = "forward", mode: str = "cold",
    spread: float = 0.002, method: str = "cuda_events", block: str = "b1", **changes: Any,
) -> Record:  # fmt: skip
    """A verified and timed record; `changes` go to the record."""
    case = Case(name, pass_, where or point(), mode, "cuda")
    values: dict[str, Any] = {
        "status": "ok", "verified": True, "timing": timing(median_ms, spread, method), "block": block,
        "finished_utc": "2025-01-01T00:00:00Z",
    }  # fmt: skip
    return Record(case, **{**values, **changes})


def failed(
    name: str, status: str, reason: str, where: Point | None = None, pass_: str = "forward", mode: str = "cold"
) -> Record:
    return Record(Case(name, pass_, where or point(), mode, "cuda"), status, reason)


def write(folder: Path, records: Iterable[Record], **manifest: Any) -> Path:
    """A run folder of these records."""
    folder.mkdir(parents=True)
    base: dict[str, Any] = {
        "schema": 1, "run": folder.name, "created_utc": "2025-01-01T00:00:00Z",
        "suite": {"name": "made_up", "title": "Made-up sweep", "passes": list(PASSES)},
        "command": ["gsbench", "run", "--suite", "made_up", "--set", "labels=131072,524288"],
        "device": {"type": "cuda", "name": "Made-up GPU", "memory_bytes": 149 * 10**9, "l2_bytes": 50 * 2**20,
                   "sm_count": 132},
        "environment": {"python": "3.11.7", "torch": "2.7.0", "triton": "3.3.0", "cuda": "12.8", "driver": "570.86",
                        "platform": "Linux x86_64", "gsbench": "0.1.0", "git_commit": "0123456789abcdef"},
        "ceilings": {"copy_gbps": 4100.0, "read_gbps": 4300.0, "write_gbps": 4000.0, "gather_gbps": 3000.0,
                     "matmul_tflops": {"bf16": 740.0}},
        "scaled_for_cpu": False, "code_fingerprint": "f00d", "validity": [],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**base, **manifest}))
    lines = [json.dumps(record.to_dict()) + "\n" for record in records]
    (folder / "records.jsonl").write_text("".join(lines))
    return folder


def write_samples(folder: Path, records: Iterable[Record], live: bool = False) -> None:
    """Twenty raw samples of each timed record around its median: in samples.parquet, or as a run in progress has them."""
    rows = [
        {
            "key": r.key,
            "block_round": [i // 5 for i in range(20)],
            "ms": [r.timing.median_ms * (0.99 + i / 1000) for i in range(20)],
        }
        for r in records
        if r.timing
    ]
    if live:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    import pandas as pd

    frames = [pd.DataFrame({**row, "sample": range(20)}) for row in rows]
    pd.concat(frames).to_parquet(folder / "samples.parquet")


def grid(count: int) -> list[Record]:
    """That many records of a full grid, by the formula of `realistic`."""
    names = list(EFFICIENCY)
    found: list[Record] = []
    for number in range(-(-count // len(names))):
        where = point(
            batch=2 ** (number % 8), labels=2 ** (12 + number // 8 % 8), fan_in=8 * (1 + number // 64 % 8),
            group_size=16 * (1 + number // 512),
        )  # fmt: skip
        for name in names[: count - len(found)]:
            ms = realistic_time(name, "forward", where)
            moved = 2 * (where.shape.batch + where.shape.fan_in) * where.shape.labels
            found.append(timed(
                name, ms, where, block=f"b{number}", floor_ms=ms / 3, roof_share=1 / 3, min_bytes=moved,
                useful_flops=moved * 32, peak_extra_bytes=moved, modelled_extra_bytes=moved, layer_bytes=moved,
                config={"tile": number % 5},
            ))  # fmt: skip
    return found


def sweep() -> list[Record]:
    """Sharing wins at B=256, loses to both at B=1, loses to the bottleneck alone at B=16, and ties with it at B=64."""
    milliseconds = {256: (1.0, 4.0, 2.0), 1: (0.5, 0.25, 0.1), 16: (0.5, 1.0, 0.4), 64: (0.5, 1.0, 0.501)}
    records = []
    for batch, (group, fan, bottleneck) in milliseconds.items():
        at = point(batch=batch)
        common: dict[str, Any] = {
            "peak_extra_bytes": batch * 2**20, "modelled_extra_bytes": batch * 2**19, "layer_bytes": 2**24, "floor_ms": 0.05,
            "min_bytes": batch * 2**19, "useful_flops": 2**30,
        }  # fmt: skip
        records += [
            timed("group_shared/triton", group, at, roof_share=0.05 / group, **common),
            timed("fixed_fan_in/triton", fan, at, **common), timed("fixed_fan_in/csr", fan * 8, at),
            timed("bottleneck/torch", bottleneck, at),
            failed("dense/torch", "oom", "CUDA out of memory", at),
        ]  # fmt: skip
    return records


def star() -> list[Point]:
    """The default point and every point that differs from it in one axis."""
    points = [
        point(),
        *(
            Point(replace(DEFAULT, **{axis: value}), "uniform", "bf16")
            for axis, values in AXES.items()
            for value in values[1:]
        ),
    ]
    return [*points, point(pattern="zipf"), point(pattern="clustered")]


# Milliseconds of one call, from bytes and FLOPs with an efficiency and a launch cost for each implementation.
EFFICIENCY: dict[str, tuple[float, float]] = {  # name -> (share of the ceiling, milliseconds of launches)
    "dense/torch": (0.8, 0.004), "bottleneck/torch": (0.75, 0.010), "masked_dense/torch": (0.3, 0.012),
    "fixed_fan_in/gather": (0.05, 0.030), "fixed_fan_in/csr": (0.02, 0.020),
    "fixed_fan_in/embedding_bag": (0.01, 0.012),
    "fixed_fan_in/densify": (0.4, 0.050), "fixed_fan_in/triton": (0.25, 0.005), "group_shared/torch": (0.12, 0.080),
    "group_shared/triton": (0.7, 0.006), "group_shared/triton_deterministic": (0.55, 0.009),
}  # fmt: skip


def realistic_time(name: str, pass_: str, where: Point) -> float:
    s, family = where.shape, name.partition("/")[0]
    wide = family in ("dense", "masked_dense") or name.endswith("densify")
    weights = s.labels * (s.dim if wide else s.fan_in)
    passes = 2 if pass_ == "backward" else 1
    shared_by = {"fixed_fan_in": 12, "group_shared": 12 * s.group_size}.get(family)
    gathered = s.batch * s.labels * s.fan_in / shared_by if shared_by else 0
    moved = 2 * (weights + s.batch * s.labels * passes + s.batch * s.dim + gathered)
    share, launch = EFFICIENCY[name]
    return launch * passes + max(moved / 4.1e9, 2 * s.batch * weights * passes / 7.4e11) / share


def realistic(scale: Callable[[str, Point], float] = lambda name, where: 1.0) -> list[Record]:
    """Eleven implementations over a star of points and four passes, with statuses as a real sweep leaves them."""
    records = []
    for n, where in enumerate(star()):
        for implementation in IMPLEMENTATIONS:
            for pass_ in PASSES:
                name = implementation.name
                if name not in EFFICIENCY:
                    continue
                reason = implementation.unsupported(where.shape, pass_, where.dtype, "cuda")
                if reason:
                    records.append(failed(name, "unsupported", reason, where, pass_))
                elif name == "masked_dense/torch" and where.shape.labels > 600_000:
                    records.append(failed(name, "oom", "CUDA out of memory: tried to allocate 4.50 GiB", where, pass_))
                elif name == "fixed_fan_in/embedding_bag" and where.shape.batch == 1024:
                    records.append(failed(name, "timeout", "no result after 180 s", where, pass_))
                else:
                    ms = realistic_time(name, pass_, where) * scale(name, where)
                    moved = 2 * (where.shape.batch + where.shape.fan_in) * where.shape.labels
                    records.append(timed(
                        name, ms, where, pass_, block=f"block-{n}", floor_ms=min(ms * 0.9, moved / 4.1e9),
                        roof_share=min(0.9, moved / 4.1e9 / ms), peak_extra_bytes=moved + int(ms * 4e8),
                        modelled_extra_bytes=moved, min_bytes=moved,
                        layer_bytes=2 * where.shape.labels * where.shape.fan_in,
                        useful_flops=2 * where.shape.batch * where.shape.labels * where.shape.fan_in,
                        validity=("power cap",) if where.shape.batch == 1024 else (),
                        config={"BLOCK_L": 64} if "triton" in name else {},
                    ))  # fmt: skip
    return records


SUITE: dict[str, Any] = {
    "name": "made_up",
    "title": "Made-up sweep",
    "axes": AXES,
    "patterns": ["uniform", "zipf"],
    "dtypes": ["bf16"],
}
