"""gsbench: evidence on whether sparsity in a very large output layer buys wall-clock time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gsbench.frame import load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from gsbench.frame import load

        return load
    raise AttributeError(f"module 'gsbench' has no attribute {name!r}")
