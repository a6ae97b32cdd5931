"""gskernels: linear layers with a very large, group-shared sparse output.

The public names load on first use, so that reading the table of implementations never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gskernels.layer import Layer
    from gskernels.ops import linear
    from gskernels.table import IMPLEMENTATIONS, Implementation, Shape
    from gskernels.topology import GroupTopology

_HOMES = {
    "GroupTopology": "gskernels.topology",
    "Layer": "gskernels.layer",
    "linear": "gskernels.ops",
    "IMPLEMENTATIONS": "gskernels.table",
    "Implementation": "gskernels.table",
    "Shape": "gskernels.table",
}

__all__ = ["IMPLEMENTATIONS", "GroupTopology", "Implementation", "Layer", "Shape", "linear"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gskernels' has no attribute {name!r}")
