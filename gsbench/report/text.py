"""Numbers in words: how the report writes times, ratios, bytes and environments."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from gsbench.frame import part
from gsbench.report.ratios import Ratio


def times(value: float) -> str:
    """A ratio: 1.53×, 0.041×, 118×."""
    if value < 0.1:
        return f"{value:.2g}×"
    return f"{value:.2f}×" if value < 99.995 else f"{value:.3g}×" if value < 999.5 else f"{value:,.0f}×"


def milliseconds(value: float) -> str:
    return f"{value:.4g}" if value < 9999 else f"{value:,.0f}"


def size(count: float | None) -> str:
    """Bytes in binary units, three digits."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def energy(value: float) -> str:
    return f"{milliseconds(value)} mJ"


def flops(value: float) -> str:
    """FLOP/s: 120G, 3.4T."""
    return f"{value / 1e12:,.4g}T" if value >= 1e12 else f"{value / 1e9:,.4g}G"


def form(name: str) -> Callable[[float], str]:
    """How a value of a view is written."""
    return {"times": times, "ms": milliseconds, "mJ": energy}[name]


def slugs(names: Sequence[str]) -> list[str]:
    """Names made safe for files and links, each once: a name from a manifest can hold anything."""
    used: dict[str, int] = {}
    found = []
    for name in names:
        slug = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:100] or "run"
        used[slug] = used.get(slug, 0) + 1
        found.append(slug if used[slug] == 1 else f"{slug}--{used[slug]}")  # a slug never holds "--"
    return found


def interval(ratio: Ratio) -> str:
    return f"{times(ratio.value)} [{times(ratio.low)}, {times(ratio.high)}]"


def device_line(manifest: dict[str, Any]) -> str:
    """The device in words: NVIDIA H200, 139 GiB, L2 50 MiB, 132 SMs."""
    device = part(manifest, "device")
    words = [str(device.get("name") or device.get("type") or "unknown device")]
    if device.get("memory_bytes"):
        words.append(size(device["memory_bytes"]))
    if device.get("l2_bytes"):
        words.append(f"L2 {size(device['l2_bytes'])}")
    words += [f"{device[key]} {unit}" for key, unit in (("sm_count", "SMs"), ("threads", "threads")) if device.get(key)]
    return ", ".join(words)


def software_line(manifest: dict[str, Any]) -> str:
    """Versions in words, those that are recorded."""
    environment = part(manifest, "environment")
    words = [f"{name} {environment[name]}" for name in ("torch", "triton") if environment.get(name)]
    words += [f"{name.upper()} {environment[name]}" for name in ("cuda",) if environment.get(name)]
    words += [f"driver {environment['driver']}"] if environment.get("driver") else []
    words += [f"Python {environment['python']}"] if environment.get("python") else []
    words += [str(environment["platform"])] if environment.get("platform") else []
    commit = f" at {str(environment['git_commit'])[:12]}" if environment.get("git_commit") else ""
    words += [f"gsbench {environment['gsbench']}{commit}"] if environment.get("gsbench") else []
    return ", ".join(words)


def ceilings_line(manifest: dict[str, Any]) -> str:
    """The device's own measured ceilings in words; empty where none were measured."""
    ceilings = part(manifest, "ceilings")
    names = (("copy_gbps", "copy"), ("read_gbps", "read"), ("write_gbps", "write"), ("gather_gbps", "row gather"))
    words = [f"{label} {ceilings[key]:,.0f} GB/s" for key, label in names if is_number(ceilings.get(key))]
    products = sorted(part(ceilings, "matmul_tflops").items())
    words += [f"{dtype} product {value:,.3g} TFLOP/s" for dtype, value in products if is_number(value)]
    return ", ".join(words)


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
