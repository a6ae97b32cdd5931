"""A step under autograd: `fused_loss`, the loss of an output layer over all labels, whose logits need not exist.

Forward computes the loss and the gradients at once, or has already updated the parameters (`gskernels.steps`); backward
only scales what forward found. Without updates it is one operator, ``torch.ops.gskernels.step``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gskernels import steps
from gskernels.layer import Layer
from gskernels.ops import layer_of, without_autocast
from gskernels.positives import Positives
from gskernels.steps import Outcome, Targets, Updates
from gskernels.table import STEP, find


@torch.library.custom_op(
    "gskernels::step",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? indices, Tensor? bias, Tensor? down, Tensor pointers, Tensor positives, "
    "Tensor? label_weight, str loss, int group_size, str implementation) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _step(
    x: Tensor, weight: Tensor, indices: Tensor | None, bias: Tensor | None, down: Tensor | None, pointers: Tensor,
    positives: Tensor, label_weight: Tensor | None, loss: str, group_size: int, implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    chosen = find(implementation)
    if indices is None:
        layer = Layer(weight, bias=bias, down=down)
    else:
        layer = layer_of(weight, indices, bias, x.shape[1], group_size)
    with without_autocast(x):
        got = steps.run(chosen.load(), x, layer, Targets(Positives(pointers, positives), loss, label_weight), {},
                        **chosen.options)  # fmt: skip
    assert got.dw is not None
    db, d_down = (x.new_empty(0) if one is None else one for one in (got.db, got.d_down))
    return got.loss, got.dx, got.dw, db, d_down


@_step.register_fake
def _(x: Tensor, weight: Tensor, indices: Tensor | None, bias: Tensor | None, down: Tensor | None, pointers: Tensor,
      positives: Tensor, label_weight: Tensor | None, loss: str, group_size: int,
      implementation: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    found = (x, weight, x.new_empty(0) if bias is None else bias, x.new_empty(0) if down is None else down)
    dx, dw, db, d_down = (x.new_empty(one.shape) for one in found)
    return x.new_empty((), dtype=torch.float32), dx, dw, db, d_down


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.has_bias, ctx.has_down = inputs[3] is not None, inputs[4] is not None
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _autograd(ctx: Any, upstream: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    dx, dw, db, d_down = ctx.saved_tensors
    scaled = [
        (gradient * upstream).to(gradient.dtype) if wanted and there else None
        for gradient, wanted, there in (
            (dx, ctx.needs_input_grad[0], True), (dw, ctx.needs_input_grad[1], True),
            (db, ctx.needs_input_grad[3], ctx.has_bias), (d_down, ctx.needs_input_grad[4], ctx.has_down),
        )
    ]  # fmt: skip
    return scaled[0], scaled[1], None, scaled[2], scaled[3], *([None] * 6)


_step.register_autograd(_autograd, setup_context=_setup_context)


class _Updated(torch.autograd.Function):
    """The loss of a step that updates parameters; differentiable in x and in those that it does not update."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor | None, layer: Layer, targets: Targets,
        updates: Updates, implementation: str, guard: bool,
    ) -> Tensor:  # fmt: skip
        chosen = find(implementation)
        mine = Layer(weight.detach(), layer.topology, None if down is None else down.detach(),
                     None if bias is None else bias.detach())  # fmt: skip
        with without_autocast(x):
            got: Outcome = steps.run(chosen.load(), x, mine, targets, updates, guard, **chosen.options)
        ctx.save_for_backward(got.dx, got.dw, got.db, got.d_down)
        return got.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if one is None else (one * upstream).to(one.dtype) for one in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None)


def fused_loss(
    x: Tensor, layer: Layer, targets: Targets, updates: Updates | None = None, *, implementation: str | None = None,
    guard: bool = False, check: bool = True,
) -> Tensor:  # fmt: skip
    """The loss of all rows and labels, summed; differentiable once in x and in the parameters that it does not update.

    Operands, defaults and errors as for `gskernels.step`, but x may be [*, D], with as many lists of positives as rows.
    With `updates` those parameters are updated before it returns, by the gradient of this very loss, whatever is done
    with it later; where gradients are disabled nothing is updated. Under autocast x is cast to the dtype of the weights,
    and without `updates` both are cast as torch.nn.functional.linear does. Without `updates` it works under
    torch.compile (fullgraph, with check=False).

    Returns a scalar in fp32.
    """
    kind, updates = x.device.type, updates or {}
    if not updates and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        cast = {name: None if (p := getattr(layer, name)) is None else p.to(dtype) for name in steps.PARAMETERS}
        layer = Layer(cast["weight"], layer.topology, cast["down"], cast["bias"])  # type: ignore[arg-type]
    if torch.is_autocast_enabled(kind):
        x = x.to(layer.weight.dtype)
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) if x.dim() != 2 else x
    steps.check_operands(x, layer, targets, updates, check)
    chosen = steps.pick(STEP, x, layer, implementation).name
    if updates and torch.is_grad_enabled():
        loss: Tensor = _Updated.apply(  # type: ignore[no-untyped-call]
            x, layer.weight, layer.bias, layer.down, layer, targets, updates, chosen, guard
        )
        return loss
    topology, positives = layer.topology, targets.positives
    results: tuple[Tensor, ...] = torch.ops.gskernels.step(
        x, layer.weight.contiguous(), None if topology is None else topology.indices, layer.bias, layer.down,
        positives.pointers, positives.labels, targets.label_weight, targets.loss,
        1 if topology is None else topology.group_size, chosen,
    )  # fmt: skip
    return results[0]
