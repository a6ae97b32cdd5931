"""A package outside the repository that adds implementations, most of them faulty in one way each."""

from __future__ import annotations

import os
from pathlib import Path

CALLS = '''
import os, signal, sys, time
import torch
from gskernels.dense import forward as right

def crash(x, layer):
    os.kill(os.getpid(), signal.SIGKILL)

def hang(x, layer):
    time.sleep(3600)

def wrong(x, layer):
    return right(x, layer) * 1.5

def unwritten(x, layer):
    return torch.empty(x.shape[0], layer.labels)

def raises(x, layer):
    raise ValueError("first line\\nsecond line")

def oom(x, layer):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 TiB")

def cuda_error(x, layer):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def prints(x, layer):
    print("hello from an implementation")
    return right(x, layer)

def slow(x, layer):
    time.sleep(0.05)
    return right(x, layer)
'''

TABLE = '''
from gskernels.table import Implementation

FAULTS = ("crash", "hang", "wrong", "unwritten", "raises", "oom", "cuda_error", "prints", "slow")
IMPLEMENTATIONS = [
    Implementation(f"faulty/{name}", f"faulty_{name}", "dense", name, passes=("forward",)) for name in FAULTS
]
'''


def install(folder: Path) -> dict[str, str]:
    """Write the package into `folder` as an installer would; returns the environment that sees it."""
    (folder / "faulty.py").write_text(TABLE)  # which the command line reads, without torch
    (folder / "faulty_calls.py").write_text(CALLS)
    for name in ("crash", "hang", "wrong", "unwritten", "raises", "oom", "cuda_error", "prints", "slow"):
        (folder / f"faulty_{name}.py").write_text(f"from faulty_calls import {name} as forward\n")
    info = folder / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gsbench.implementations]\nfaulty = faulty:IMPLEMENTATIONS\n")
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    root = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(folder), str(root), str(root / "kernels"), *inherited])
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)}  # TMPDIR: a device lock of our own
