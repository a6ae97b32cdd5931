"""Where a run was measured: versions, device, code. The harness side imports no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gsbench
import gskernels
from gsbench.errors import UserError

_PACKAGE = Path(__file__).parent.parent
_DECIDES_TIMES = (_PACKAGE / "measure", _PACKAGE / "costs.py", Path(str(gskernels.__file__)).parent)
_SOURCES = (".py", ".cu", ".cuh", ".json")
KEPT_ON_RESUME = ("python", "torch", "triton")  # device and driver: where the worker says hello


def versions() -> dict[str, Any]:
    """Package versions and the commit, without importing any of the packages."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": _platform()}
    for package in ("torch", "triton", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    found["gsbench"] = gsbench.__version__
    named = os.environ.get("GSBENCH_COMMIT")  # for copies without the history: who names the commit vouches for it
    found["git_commit"] = named or _git("rev-parse", "HEAD")
    status = None if named else _git("status", "--porcelain", "--untracked-files=no")
    found["git_dirty"] = None if status is None else bool(status)
    return found


def code_fingerprint(library: Sequence[Path] = ()) -> str:
    """Hash of every file that decides what is measured and how: sources, kernels, tuned tables.

    library: folders that are imported from before all others; a `gskernels` in one of them counts instead of ours.
    """
    digest = hashlib.sha256()
    shadowed = any((folder / "gskernels").is_dir() for folder in library)
    for root in (*library, *(_DECIDES_TIMES[:-1] if shadowed else _DECIDES_TIMES)):
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in _SOURCES)
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def mixes(path: Path, before: dict[str, Any], now: dict[str, Any], force: bool) -> bool:
    """Whether resuming the run at `path` would mix what must not change. Raises UserError that lists it, unless forced."""
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if changed and not force:
        why = f"{path}: cannot be resumed: {'; '.join(changed)}"
        raise UserError(f"{why}; start a new run, or add --force (it is recorded)")
    return bool(changed)


def probe_device(device: str) -> dict[str, Any]:
    """The device as the worker sees it (imports torch). {"type", "name", "memory_bytes", "cache_bytes", ...}"""
    import torch

    if device.startswith("cuda"):
        p = torch.cuda.get_device_properties(torch.device(device))
        return {
            "type": "cuda", "name": p.name, "memory_bytes": p.total_memory, "cache_bytes": p.L2_cache_size,
            "l2_bytes": p.L2_cache_size, "sm_count": p.multi_processor_count, "capability": f"{p.major}.{p.minor}",
            "uuid": f"GPU-{p.uuid}" if hasattr(p, "uuid") else None,
        }  # fmt: skip
    return {
        "type": "cpu", "name": _cpu_name(), "memory_bytes": memory_bytes(), "cache_bytes": _last_level_cache(),
        "threads": torch.get_num_threads(), "uuid": None,
    }  # fmt: skip


def _platform() -> str:
    libc = "".join(platform.libc_ver())
    return " ".join(part for part in (platform.system(), platform.machine(), libc) if part)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _last_level_cache() -> int:
    """Bytes of the largest data cache; 32 MiB where the system does not say."""
    if sys.platform == "linux":
        sizes = [0]
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
            text = file.read_text().strip()
            if text.endswith("K"):
                sizes.append(int(text[:-1]) * 1024)
        if max(sizes):
            return max(sizes)
    return 32 << 20
