"""The step of group_shared/triton: one kernel, in which a tile's logits are made, used and dropped. weight [L, K].

A program has a tile of labels and goes through the batch. It computes the logits of a slice, their loss and derivative dz
on the spot, adds dz^T X to a sum in registers and dz W to dX^T in memory, and at the end updates its weights or stores
their gradient. Nobody else reads these weights, so the update can be in place. What is kept beside X^T and dX^T grows with
L by 4 bytes a group (where its positives begin) and, with a bias, 4 bytes a label (its gradient).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gskernels import tune
from gskernels.group_shared.triton_problem import Problem, distinct, transpose, without
from gskernels.group_shared.triton_step_kernels import step_kernel
from gskernels.layer import Layer
from gskernels.optim import Update
from gskernels.pointwise_triton import KINDS, ROUNDINGS, SLOTS, new_losses, words
from gskernels.positives import ByGroup
from gskernels.steps import Outcome, Targets, Updates, finish
from gskernels.tune import Config


def supports(problem: Problem) -> bool:
    """Whether a tile's gradient [K, labels] fits the registers of a program."""
    most = 2048 if problem.dtype == torch.float32 else 16384
    return inputs(problem) * problem.block_g <= most


def inputs(problem: Problem) -> int:
    """All inputs of a group as one block."""
    return max(16, tune.power_of_two(problem.fan_in))


def candidates(problem: Problem) -> list[Config]:
    most_b = min(256, max(16, tune.power_of_two(problem.batch)))
    numbers = inputs(problem) * problem.block_g
    if problem.dtype == torch.float32:  # multiplies without tensor cores
        options = [(16, 4, 1), (16, 8, 1)]
    elif numbers <= 4096:
        options = [(32, 4, 1), (64, 4, 1), (32, 4, 2), (64, 8, 1), (128, 8, 1)]
    else:
        options = [(32, 8, 1), (64, 8, 1), (16, 8, 1)]
    return distinct(
        {"BLOCK_B": min(b, most_b), "num_warps": w, "num_stages": s, "COPIES": problem.copies} for b, w, s in options
    )


def step(x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool, problem: Problem) -> Outcome:
    """The pass `step`, as `gskernels.steps` describes it, of a problem that is supported and has rows.

    x is contiguous.
    """
    with tune.device_of(x):
        by_group = targets.positives.by_group(problem.group_size, problem.groups)
        config = tune.choose(
            "group_shared.step", problem.shape_class, candidates(problem),
            lambda c: Step(x, layer, targets, by_group, problem, c).run({}), x,
            legal=lambda c: c in candidates(problem),
        )  # fmt: skip
        return Step(x, layer, targets, by_group, problem, config).run(updates, guard)


class Step:
    """One call, with its configuration."""

    def __init__(
        self, x: Tensor, layer: Layer, targets: Targets, by_group: ByGroup, problem: Problem, config: Config
    ) -> None:
        self.x, self.layer, self.targets, self.by_group = x, layer, targets, by_group
        self.problem, self.config = problem, config

    def run(self, updates: Updates, guard: bool = False) -> Outcome:
        """Updates what `updates` names, if the loss is finite or not asked to be."""
        problem, layer, x = self.problem, self.layer, self.x
        weight, update = layer.weight.contiguous(), updates.get("weight")
        sums = x.new_empty(self.config["COPIES"], problem.dim, problem.stride, dtype=torch.float32)
        xt = transpose(x, x.dtype, problem.stride, clear=sums)
        sound = None
        if guard and update is not None:
            sound = self._launch(xt, weight, sums, None, None, None, None, GRADIENTS=False).isfinite().int()
        dw = torch.empty_like(weight) if update is None else None
        db = None if layer.bias is None else x.new_empty(problem.labels, dtype=torch.float32)
        loss = self._launch(xt, weight, sums, dw, db, update, sound, GRADIENTS=True)
        left = {name: one for name, one in updates.items() if name != "weight"}
        dx = transpose(sums, x.dtype, columns=problem.batch)
        return finish(loss, dx, layer, {"weight": dw, "bias": db}, left, guard)

    def _launch(
        self, xt: Tensor, weight: Tensor, sums: Tensor, dw: Tensor | None, db: Tensor | None, update: Update | None,
        sound: Tensor | None, **constants: Any,
    ) -> Tensor:  # fmt: skip
        """The loss."""
        problem, layer, targets = self.problem, self.layer, self.targets
        losses = new_losses(xt)
        how = Update(0.0) if update is None else update
        optional = (dw, db, how.momentum_buffer, how.compensation, sound)
        dw_, db_, buffer, lost, sound_ = (weight if tensor is None else tensor for tensor in optional)
        bias = weight if layer.bias is None else layer.bias.contiguous()
        factor = losses if targets.label_weight is None else targets.label_weight
        sizes = (problem.batch, problem.stride, problem.labels, self.config["COPIES"], problem.dim * problem.stride)
        rates = (float(how.lr), float(how.momentum), float(how.weight_decay), *words(how.seed))
        args = (xt, weight, layer.sparse.indices.contiguous(), bias, *self.by_group, factor, losses, sums, dw_, db_, buffer,
                lost, sound_, *sizes, *rates)  # fmt: skip
        rounding = ROUNDINGS.index(how.rounds(weight.dtype))
        tune.launch(
            step_kernel, (problem.tiles,), args, without(self.config, "COPIES"), BLOCK_K=inputs(problem), SLOTS=SLOTS,
            HAS_BIAS=layer.bias is not None, HAS_LABEL_WEIGHT=targets.label_weight is not None,
            LOSS=KINDS.index(targets.loss), UPDATE=update is not None, MOMENTUM=how.momentum > 0, ROUNDING=rounding,
            GUARD=sound is not None, **problem.constants(), **constants,
        )  # fmt: skip
        return losses.sum().float()
