"""What each pass returns in truth, from the float64 oracle, for a chunk of labels at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gsbench.measure.operands import Operands
from gsbench.passes import Pass
from gskernels import oracle
from gskernels.layer import Layer
from gskernels.table import SCORE, STEP, Implementation

Named = dict[str, Tensor]


def chunk(
    one: Pass, operands: Operands, implementation: Implementation, start: int, stop: int, dtype: torch.dtype
) -> Named:  # fmt: skip
    """The outputs of labels [start, stop) by name: per label, or the chunk's share of a sum.

    dtype: float64 for the truth, that of the operands for the plain torch reference. Not for topk and grow.
    """
    layer = operands.layer(implementation)
    part, in_head = layer.rows(start, stop), stop <= layer.head_labels
    if one.runs == SCORE:
        rule, dtype = implementation.options["rule"], torch.promote_types(dtype, torch.float32)
        gradient = operands.weight_gradient[start:stop].to(dtype) if "dw" in implementation.needs else None
        score = oracle.slot_scores(part.weight.to(dtype), part.sparse.group_size, gradient, rule == "max_weight")
        return {"score": score}
    found = _of_layer(one, operands, part, start, stop, dtype)
    return {_IN_HEAD.get(name, name) if in_head else name: value for name, value in found.items()}


_IN_HEAD = {"dw": "d_head", "weight": "head"}


def _of_layer(one: Pass, operands: Operands, part: Layer, start: int, stop: int, dtype: torch.dtype) -> Named:
    if one.runs != STEP:
        grad_out = operands.grad_out[:, start:stop] if "y" in one.reads else operands.x
        return dict(zip(one.outputs, oracle.outputs(one.runs, operands.x, grad_out, part, dtype=dtype), strict=False))
    got = oracle.step(operands.x, part, operands.targets.rows(start, stop), dtype=dtype)
    assert got.dw is not None
    found = {"loss": got.loss, "dx": got.dx, "dw": got.dw, "d_down": got.d_down}
    update = operands.update(one)
    if update is not None:
        sums = torch.promote_types(dtype, torch.float32)
        found["weight"] = oracle.updated(part.weight, got.dw.to(sums), update)[0].to(dtype)
        found["down"] = got.d_down
    return {name: value for name, value in found.items() if name in one.outputs and value is not None}


def total(name: str, one: Pass, operands: Operands, layer: Layer, summed: Tensor) -> Tensor:
    """An output that is made of all labels, from the sum over chunks."""
    update = operands.update(one)
    if name != "down" or update is None or layer.down is None:
        return summed
    return oracle.updated(layer.down, summed, update)[0]


class Best:
    """The best k labels while chunks of labels go by: values, and at each chosen place what the truth has there."""

    def __init__(self, batch: int, k: int, device: torch.device) -> None:
        self._k = k
        self.values = torch.full((batch, k), -math.inf, dtype=torch.float64, device=device)
        self.truth = self.values.clone()

    def add(self, values: Tensor, truth: Tensor) -> None:
        """Both [B, n], of a chunk: what the choice goes by, and the true logits."""
        candidates = torch.cat([self.values, values.double()], 1)
        at = candidates.topk(self._k, dim=1).indices
        self.values = candidates.gather(1, at)
        self.truth = torch.cat([self.truth, truth], 1).gather(1, at)
