"""The passes that can be measured, one line each: what they run, return, move and multiply. Imports no torch.

A new pass is a line here; what it returns in truth is in `gsbench.measure.truth`, how it is called in
`gsbench.measure.operands`. Everything else (suites, plans, costs, verification, records, reports) reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass

from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT, GROW, SCORE, STEP, TOPK, Implementation

# Outputs sliced by label (by group: score); the others are made of all labels.
LABEL_AXIS = {"y": 1, "dw": 0, "weight": 0, "d_head": 0, "head": 0, "score": 0}


@dataclass(frozen=True)
class Pass:
    """A pass under the name that cases, suites and records know it by.

    runs: the pass of `gskernels.table`. products: of 2 B L K FLOPs each. reads, writes: operands, as `gsbench.costs` sizes
    them. outputs: names in order; "d_down" and "down" are a bottleneck's alone, "d_head" and "head" a head-tail layer's.
    rounding: of the update that a step makes, "" where it returns gradients. k: of topk.
    """

    name: str
    runs: str
    products: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    outputs: tuple[str, ...]
    rounding: str = ""
    k: int = 0

    def unsupported(self, implementation: Implementation, shape: Shape, dtype: str, device: str) -> str | None:
        """Why the case cannot run, in words, or None if it can."""
        if self.k > shape.labels:
            return f"{self.name} takes the best {self.k} labels, but there are {shape.labels}"
        if self.rounding == "stochastic" and dtype != "bf16":
            return f"{self.name} rounds bf16 weights, not {dtype}"
        return implementation.unsupported(shape, self.runs, dtype, device)


_LAYER = ("weight", "indices")
_STEP = ("x", *_LAYER), ("x", "weight")
_UPDATED = ("loss", "dx", "weight", "down", "head")
_BEST = ("values", "labels")
TABLE = (
    Pass(FORWARD, FORWARD, 1, ("x", *_LAYER), ("y",), ("y",)),
    Pass(GRAD_INPUT, GRAD_INPUT, 1, ("y", *_LAYER), ("x",), ("dx",)),
    Pass(GRAD_WEIGHT, GRAD_WEIGHT, 1, ("y", "x", "indices"), ("weight",), ("dw",)),
    Pass(BACKWARD, BACKWARD, 2, ("y", "x", *_LAYER), ("x", "weight"), ("dx", "dw", "d_down", "d_head")),
    # Loss over all labels, gradient of the input, and SGD in place, without momentum, rounded to nearest.
    Pass("step", STEP, 3, *_STEP, _UPDATED, rounding="nearest"),
    Pass("step_stochastic", STEP, 3, *_STEP, _UPDATED, rounding="stochastic"),
    Pass("step_gradients", STEP, 3, *_STEP, ("loss", "dx", "dw", "d_down", "d_head")),
    Pass("topk", TOPK, 1, ("x", *_LAYER), ("best",), _BEST, k=5),
    Pass("topk_100", TOPK, 1, ("x", *_LAYER), ("best",), _BEST, k=100),
    # Parts of a rewiring, by the rules of `gskernels.rewire`: what each slot is worth; other inputs in DROPPED of the slots.
    Pass("score", SCORE, 0, ("weight",), ("score",), ("score",)),
    Pass("grow", GROW, 0, ("indices", "slots"), ("indices",), ("indices",)),
)
DROPPED = 0.3  # share of a group's slots: RigL's at the start
PASSES = {one.name: one for one in TABLE}
