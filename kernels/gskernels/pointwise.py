"""Whether the kernels of `gskernels.pointwise_triton` can run."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType


@functools.cache
def kernels(device_type: str) -> ModuleType | None:
    """`gskernels.pointwise_triton` on a GPU, with Triton installed; else None."""
    if device_type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("gskernels.pointwise_triton")
