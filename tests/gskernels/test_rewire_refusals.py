"""Rewiring that is asked for what it cannot do: it says what is wrong, and changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gskernels.rewire import Schedule
from gskernels.topology import GroupTopology
from tests.gskernels.test_rewire import SCHEDULE, Layer, Rewirer, activations, trained

TOPOLOGY = GroupTopology.uniform(10, 16, 4, 3)
X, GRAD_OUT = activations(TOPOLOGY)


def rewirer(**settings: Any) -> Rewirer:
    layer, optimizer = trained(TOPOLOGY)
    return Rewirer(layer, optimizer, SCHEDULE, **settings)


def with_state(shape: tuple[int, ...]) -> Rewirer:
    mine = rewirer()
    mine.optimizer.state[mine.layer.weight]["blocks"] = [torch.zeros(shape)]  # type: ignore[index]
    return mine


def of_another_shape() -> Rewirer:
    layer = Layer(TOPOLOGY)
    layer.topology = GroupTopology.uniform(10, 16, 5, 3)
    return Rewirer(layer, torch.optim.SGD(layer.parameters(), lr=0.1), SCHEDULE)


def optimized_by(optimizer: Any) -> Rewirer:
    layer = Layer(TOPOLOGY)
    return Rewirer(layer, optimizer(layer.parameters()), SCHEDULE)


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "interval": (lambda: Schedule(0, 0.5, 10), "interval must be at least 1 step, got 0"),
    "end": (lambda: Schedule(1, 0.5, 0), "end must be at least 1 step, got 0"),
    "initial": (lambda: Schedule(1, 0.0, 10), r"initial must lie in \(0, 1\], got 0.0"),
    "score": (lambda: rewirer(score="best"), "score must be one of mean_weight, max_weight, weight_gradient, got 'best'"),
    "drop": (lambda: rewirer(drop="all"), "drop must be one of group, global, threshold, got 'all'"),
    "threshold missing": (lambda: rewirer(drop="threshold"), "drop 'threshold' and a threshold go together"),
    "threshold unused": (lambda: rewirer(threshold=0.1), "drop 'threshold' and a threshold go together"),
    "max_share": (lambda: rewirer(max_share=0.0), r"max_share must lie in \(0, 1\], got 0.0"),
    "init_std": (lambda: rewirer(init_std=-1.0), "init_std must not be negative, got -1.0"),
    "chunk": (lambda: rewirer(chunk=0), "chunk must be at least 1, got 0"),
    "grow": (lambda: rewirer(grow="best"), "grow must be one of random, gradient, banked_.*, got 'best'"),
    "activations": (lambda: rewirer(grow="banked_gradient").apply(0, X), "grow 'banked_gradient' needs x and grad_out"),
    "layer": (of_another_shape, r"the layer's weight must be \[10, 5\] for its topology, got \[10, 4\]"),
    "stranger": (
        lambda: Rewirer(Layer(TOPOLOGY), torch.optim.SGD([torch.zeros(1)], lr=0.1), SCHEDULE),
        "the layer's weight is not among the parameters of this SGD",
    ),
    "LBFGS": (lambda: optimized_by(torch.optim.LBFGS), "LBFGS keeps state that is not per weight"),
    "Adafactor": (lambda: optimized_by(torch.optim.Adafactor), "Adafactor keeps state that is not per weight"),
    "factored": (lambda: with_state((10, 1)).apply(0), r"SGD keeps 'blocks' of shape \[10, 1\] for a weight of"),
    "state": (lambda: rewirer().load_state_dict({"seed": "x"}), "a rewirer's state is {'seed': int}, got {'seed': 'x'}"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name: str) -> None:
    act, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("name", ["factored", "activations", "gradient", "score"])
def test_a_refused_rewiring_changes_nothing(name: str) -> None:
    mine = with_state((10, 1)) if name == "factored" else rewirer(
        grow="gradient" if name != "score" else "random", score="weight_gradient" if name == "score" else "mean_weight"
    )  # fmt: skip
    weight = mine.layer.weight.detach().clone()
    if name == "score":
        mine.layer.weight.grad = None
    with pytest.raises(ValueError):
        mine.apply(0, None if name == "activations" else X, GRAD_OUT * math.nan)
    assert torch.equal(mine.layer.weight, weight)
    assert torch.equal(mine.layer.topology.indices, TOPOLOGY.indices)
