"""gskernels: linear layers with a very large, group-shared sparse output.

The public names load on first use, so that reading the table of implementations never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gskernels.fused import fused_loss
    from gskernels.head_tail import head_tail_linear
    from gskernels.layer import Layer
    from gskernels.loss import binary_cross_entropy, squared_hinge
    from gskernels.nn import BottleneckLinear, FixedFanInLinear, GroupSharedLinear, HeadTailLinear
    from gskernels.ops import linear
    from gskernels.optim import Update
    from gskernels.positives import Positives
    from gskernels.ranking import topk
    from gskernels.rewire import Rewirer, Schedule
    from gskernels.shape import Shape
    from gskernels.steps import Outcome, Targets, step
    from gskernels.table import IMPLEMENTATIONS, Implementation
    from gskernels.topology import GroupTopology

_HOMES = {
    "GroupTopology": "gskernels.topology",
    "Layer": "gskernels.layer",
    "linear": "gskernels.ops",
    "fused_loss": "gskernels.fused",
    "head_tail_linear": "gskernels.head_tail",
    "binary_cross_entropy": "gskernels.loss",
    "squared_hinge": "gskernels.loss",
    "BottleneckLinear": "gskernels.nn",
    "FixedFanInLinear": "gskernels.nn",
    "GroupSharedLinear": "gskernels.nn",
    "HeadTailLinear": "gskernels.nn",
    "Update": "gskernels.optim",
    "Positives": "gskernels.positives",
    "topk": "gskernels.ranking",
    "Outcome": "gskernels.steps",
    "Targets": "gskernels.steps",
    "step": "gskernels.steps",
    "Rewirer": "gskernels.rewire",
    "Schedule": "gskernels.rewire",
    "IMPLEMENTATIONS": "gskernels.table",
    "Implementation": "gskernels.table",
    "Shape": "gskernels.shape",
}

__all__ = [
    "IMPLEMENTATIONS",
    "BottleneckLinear",
    "FixedFanInLinear",
    "GroupSharedLinear",
    "GroupTopology",
    "HeadTailLinear",
    "Implementation",
    "Layer",
    "Outcome",
    "Positives",
    "Rewirer",
    "Schedule",
    "Shape",
    "Targets",
    "Update",
    "binary_cross_entropy",
    "fused_loss",
    "head_tail_linear",
    "linear",
    "squared_hinge",
    "step",
    "topk",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gskernels' has no attribute {name!r}")
