"""A training step of an output layer as one pass: the loss over all labels, its gradients, and the update.

    z = forward(x);  loss = sum over b, l of label_weight_l loss(z, positive or not);  dz = its derivative, [B, L]
    dx = dz W;  dw = dz^T X at the layer's places;  db = sum of dz over the batch

An implementation that has the pass defines, in its module,

    step(x, layer, targets, updates, guard=False) -> Outcome

and may compute it tile by tile, so that neither z nor dz is ever stored. `unfused` makes the pass of any other one's
forward and backward. `gskernels.oracle.step` is the specification.

With s = -z for a positive and z for a negative, and the derivative's sign turned for a positive:

    cross_entropy   softplus(s), sigmoid(s)        squared_hinge   max(0, 1 + s)^2, 2 max(0, 1 + s)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gskernels.layer import Layer
from gskernels.loss import LOSSES, gradient_in_place
from gskernels.ops import DTYPES, PREFERENCE, without_autocast
from gskernels.optim import Update
from gskernels.positives import Positives, check_lists, check_tensors
from gskernels.shape import Shape
from gskernels.table import IMPLEMENTATIONS, STEP, TOPK, Implementation, find

Updates = Mapping[str, Update]  # by the name of the parameter in Layer: one of PARAMETERS
PARAMETERS = ("weight", "bias", "down", "head")
# By layout, and for a sparse one by (type of device, whether labels share lists): the first that can run.
DEFAULTS = {
    "dense": ("dense/chunked",), "bottleneck": ("bottleneck/chunked",), "masked": ("masked_dense/torch",),
    "head_tail": ("head_tail/triton", "head_tail/torch"),
}  # fmt: skip
SPARSE = {**PREFERENCE, ("cuda", True): ("group_shared/triton", "group_shared/cuda", "group_shared/torch")}
# Of groups on a GPU, by (pass, layout), instead: where Hopper's kernels do not take a pass, CUDA leaves it to Triton.
FUSED = {
    (pass_, layout): tuple(f"{family}/{backend}" for backend in ("cuda", "triton", "torch"))
    for pass_ in (STEP, TOPK) for layout, family in (("sparse", "group_shared"), ("head_tail", "head_tail"))
}  # fmt: skip


@dataclass(frozen=True)
class Targets:
    """What the logits are held against.

    positives: lists for the B rows. loss: "cross_entropy" or "squared_hinge". label_weight: [L] fp32, a factor of each
    label's part of the loss, or None for 1.
    """

    positives: Positives
    loss: str = "cross_entropy"
    label_weight: Tensor | None = None

    def rows(self, start: int, stop: int) -> Targets:
        """Of labels [start, stop), numbered from `start`. Waits for the device."""
        weight = None if self.label_weight is None else self.label_weight[start:stop]
        return Targets(self.positives.within(start, stop), self.loss, weight)


class Outcome(NamedTuple):
    """What a step returns. The gradient of a parameter is None where it was updated, or where the layer has none."""

    loss: Tensor  # scalar fp32: the sum over all rows and labels, before the update; NaN or Inf as they come
    dx: Tensor  # [B, D] in the dtype of x, from the weights before the update
    dw: Tensor | None = None  # shape and dtype of layer.weight
    db: Tensor | None = None  # [L], the dtype of layer.bias
    d_down: Tensor | None = None  # [r, D]
    d_head: Tensor | None = None  # [H, D]


def step(
    x: Tensor, layer: Layer, targets: Targets, updates: Updates | None = None, *, implementation: str | None = None,
    guard: bool = False, check: bool = True,
) -> Outcome:  # fmt: skip
    """One training step: parameters that `updates` names are updated in place, of the others it returns the gradients.

    Sums are taken in fp32. It is not differentiable itself; `gskernels.fused_loss` puts it under autograd.

    Args:
        x: [B, D] in the dtype of the layer; B may be 0.
        layer: any layout.
        targets: lists of positives, the loss, label weights.
        updates: by name of the parameter: one of `PARAMETERS`.
        implementation: of `gskernels.IMPLEMENTATIONS`, one for the layout of the layer; by default the fastest.
        guard: leave every parameter and its state as they are where the loss is not finite. Costs a second forward where
            the logits are not stored.
        check: look at the contents of the lists, for which the host waits for the device. Without it, malformed lists
            give undefined results.

    Returns:
        The loss, which is NaN or Inf where the operands make it so, dx, and the gradients of what was not updated.

    Raises:
        ValueError: shapes, dtypes, devices, lists or states that do not fit, or an implementation that cannot run here.
    """
    updates = updates or {}
    check_operands(x, layer, targets, updates, check)
    chosen = pick(STEP, x, layer, implementation)
    with without_autocast(x), torch.no_grad():
        return run(chosen.load(), x, layer, targets, updates, guard, **chosen.options)


def pick(pass_: str, x: Tensor, layer: Layer, implementation: str | None) -> Implementation:
    """The implementation of a pass for such a layer. Raises ValueError where the named one, or every default, cannot run."""
    topology, rank = layer.topology, layer.weight.shape[1]
    fan_in = rank if topology is None else topology.fan_in
    group_size = 1 if topology is None else topology.group_size
    shape = Shape(len(x), x.shape[1], layer.labels, fan_in, group_size, layer.head_labels / max(1, layer.labels))
    layout = layout_of(layer)
    known = [i for i in IMPLEMENTATIONS if i.layout == layout and pass_ in i.passes]
    if implementation is None:
        kind = (x.device.type, group_size > 1)
        fused = FUSED.get((pass_, layout)) if kind == ("cuda", True) else None
        wanted = fused or DEFAULTS.get(layout) or SPARSE.get(kind, ())
        known = [find(name) for name in wanted]
    elif implementation in [i.name for i in known]:
        known = [find(implementation)]
    else:
        names = ", ".join(i.name for i in known)
        raise ValueError(f"implementation {implementation!r} has no {pass_} for a {layout} layer; use {names}")
    reasons = []
    for one in known:
        reason = one.unsupported(shape, pass_, DTYPES[x.dtype], x.device.type)
        if reason is None:
            return one
        reasons.append(reason)
    raise ValueError(f"no {pass_} can run here: " + "; ".join(reasons))


def layout_of(layer: Layer) -> str:
    """The layout's name, as `gskernels.table` has it."""
    if layer.down is not None:
        return "bottleneck"
    if layer.topology is None:
        return "dense"
    if layer.head is not None:
        return "head_tail"
    masked = layer.weight.shape[1] == layer.topology.dim != layer.topology.fan_in
    return "masked" if masked else "sparse"


def unfused(
    module: ModuleType, x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False, **options: Any
) -> Outcome:
    """A step through a module's forward and backward: the logits [B, L] exist once, their gradient takes their place.

    With `guard` the host waits for the device.
    """
    kept = module.saved(x, layer) if hasattr(module, "saved") else {}
    grad = module.forward(x, layer, **options)  # the logits, until the next line
    loss = gradient_in_place(grad, targets.positives, targets.loss, targets.label_weight)
    if hasattr(module, "backward"):
        dx, *gradients = module.backward(grad, x, layer, **kept, **options)
    else:
        dx = module.grad_input(grad, layer, **options)
        gradients = [module.grad_weight(grad, x, layer, **kept, **options)]
    db = None if layer.bias is None else grad.sum(0, dtype=torch.float32)
    found = {"weight": gradients[0], "bias": db, "down" if layer.head is None else "head": (*gradients, None)[1]}
    return finish(loss, dx, layer, found, updates, guard)


def finish(
    loss: Tensor, dx: Tensor, layer: Layer, gradients: Mapping[str, Tensor | None], updates: Updates, guard: bool = False
) -> Outcome:
    """Update the parameters that `updates` names, and return the gradients of the others in their dtypes."""
    sound = not (guard and updates) or bool(loss.isfinite())
    left: dict[str, Tensor | None] = {}
    for name in PARAMETERS:
        parameter, gradient = getattr(layer, name), gradients.get(name)
        if parameter is None or gradient is None:
            left[name] = None
        elif name not in updates:
            left[name] = gradient.to(parameter.dtype)
        else:
            left[name] = None
            if sound:
                updates[name].apply(parameter, gradient)
    return Outcome(loss, dx, left["weight"], left["bias"], left["down"], left["head"])


def run(
    module: ModuleType, x: Tensor, layer: Layer, targets: Targets, updates: Updates, guard: bool = False, **options: Any
) -> Outcome:
    """The module's own step where it has one, else `unfused`. Operands are taken as `check_operands` would pass them."""
    if hasattr(module, "step"):
        outcome: Outcome = module.step(x, layer, targets, updates, guard, **options)
        return outcome
    return unfused(module, x, layer, targets, updates, guard, **options)


def check_operands(x: Tensor, layer: Layer, targets: Targets, updates: Updates, lists: bool = True) -> None:
    """Raises ValueError: one line that names the operand, what it is and what it must be.

    lists: look at the contents of the lists of positives as well, for which the host waits for the device.
    """
    check_activations(x, layer)
    positives, weight = targets.positives, targets.label_weight
    check_tensors(positives.pointers, positives.labels, x, "x")
    if targets.loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {targets.loss!r}")
    if weight is not None and (tuple(weight.shape) != (layer.labels,) or weight.dtype != torch.float32):
        found = f"{list(weight.shape)} in {weight.dtype}"
        raise ValueError(f"label_weight must be [{layer.labels}] in torch.float32, got {found}")
    if weight is not None and weight.device != x.device:
        raise ValueError(f"label_weight must be on the device of x, {x.device}, got {weight.device}")
    for name, update in updates.items():
        parameter = getattr(layer, name, None) if name in PARAMETERS else None
        if parameter is None:
            known = ", ".join(one for one in PARAMETERS if getattr(layer, one) is not None)
            raise ValueError(f"an update of {name!r}, but this layer has the parameters {known}")
        if not parameter.is_contiguous():
            raise ValueError(f"{name} must be contiguous to be updated in place")
        update.check(parameter, name)
    if lists:
        check_lists(positives.pointers, positives.labels, layer.labels)


def check_activations(x: Tensor, layer: Layer) -> None:
    """Raises ValueError unless x [B, D] fits the layer in shape, dtype and device, and the layer's tensors each other."""
    dim = layer.down.shape[1] if layer.down is not None else (
        layer.weight.shape[1] if layer.topology is None else layer.topology.dim
    )  # fmt: skip
    if x.dim() != 2 or x.shape[1] != dim:
        raise ValueError(f"x must be [B, {dim}] for this layer, got {list(x.shape)}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    for name in PARAMETERS:
        tensor = getattr(layer, name)
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
    if layer.topology is not None and layer.topology.device != x.device:
        raise ValueError(f"topology must be on the device of x, {x.device}, got {layer.topology.device}")
    if layer.topology is not None and layer.topology.labels != len(layer.weight):
        raise ValueError(f"weight has {len(layer.weight)} labels, the topology {layer.topology.labels}")
    if layer.head is not None and (layer.topology is None or layer.head.dim() != 2 or layer.head.shape[1] != dim):
        raise ValueError(f"head must be [H, {dim}], before a tail with a topology, got {list(layer.head.shape)}")
    if layer.bias is not None and tuple(layer.bias.shape) != (layer.labels,):
        raise ValueError(f"bias must be [{layer.labels}], got {list(layer.bias.shape)}")
