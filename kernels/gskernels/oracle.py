"""What every implementation must compute, in float64: the specification. Slow and obvious on purpose.

    Y  = X W^T + bias        X [B, D], W [L, D], Y [B, L]
    dX = dY W                dY [B, L], dX [B, D]
    dW = dY^T X              at the places where the layer keeps weights
    db = sum of dY over the batch
    step: the loss over all labels and its gradients (`gskernels.steps`);  topk: the best labels (`gskernels.ranking`)

It works on the whole layer it is given and holds [L, D] in float64. For a large layer go through chunks of
labels, `layer.rows(start, stop)`: Y, dW and db are per label, and dX is the sum over the chunks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gskernels.layer import Layer
from gskernels.optim import Update
from gskernels.positives import Positives
from gskernels.steps import Outcome, Targets
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT

GRAD_BIAS = "grad_bias"


def dense_weight(layer: Layer, dtype: torch.dtype = torch.float64) -> Tensor:
    """[L, D] in `dtype`: the matrix that the layer multiplies with, whatever its layout."""
    weight = layer.weight.to(dtype)
    if layer.down is not None:
        return weight @ layer.down.to(dtype)
    if layer.topology is None:
        return weight
    if layer.head is not None:
        return torch.cat([layer.head.to(dtype), layer.topology.to_dense(weight)])
    if is_masked(layer):
        return weight * layer.topology.mask()
    return layer.topology.to_dense(weight)


def is_masked(layer: Layer) -> bool:
    """Whether `weight` is [L, D] under a topology. At K = D a sparse weight has that shape too, and the order of
    its columns is the topology's: Layer tells the two apart only by the shape, so K = D counts as sparse."""
    topology = layer.topology
    return topology is not None and layer.weight.shape[1] == topology.dim != topology.fan_in


def outputs(
    pass_: str,
    x: Tensor,  # [B, D]
    grad_out: Tensor,  # [B, L], ignored by forward
    layer: Layer,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, ...]:
    """The results of one pass, in the order in which an implementation returns them.

    In float64 they are the truth; in the dtype of the operands, the plain torch reference of that dtype.


    - ``forward``: (y [B, L],)
    - ``grad_input``: (dx [B, D],)
    - ``grad_weight``: (dw in the shape of layer.weight,): [L, D] dense, [L, D] with zeros outside of the mask,
      [L, K] sparse, [L, r] bottleneck, [L - H, K] head-tail
    - ``backward``: (dx, dw), and after them the gradient of `down` [r, D] or `head` [H, D] for a layer that has it
    - ``grad_bias``: (db [L],)

    Raises ValueError for another pass.
    """
    x, grad_out = x.to(dtype), grad_out.to(dtype)
    if pass_ == FORWARD:
        y = x @ dense_weight(layer, dtype).t()
        return (y if layer.bias is None else y + layer.bias.to(dtype),)
    if pass_ == GRAD_INPUT:
        return (grad_out @ dense_weight(layer, dtype),)
    if pass_ == GRAD_WEIGHT:
        return (_grad_weight(x, grad_out, layer),)
    if pass_ == BACKWARD:
        gradients = (grad_out @ dense_weight(layer, dtype), _grad_weight(x, grad_out, layer))
        if layer.head is not None:
            return (*gradients, grad_out[:, : layer.head_labels].t() @ x)
        if layer.down is None:
            return gradients
        return (*gradients, (grad_out @ layer.weight.to(dtype)).t() @ x)
    if pass_ == GRAD_BIAS:
        return (grad_out.sum(0),)
    raise ValueError(f"no pass {pass_!r}: forward, grad_input, grad_weight, backward or grad_bias")


def _grad_weight(x: Tensor, grad_out: Tensor, layer: Layer) -> Tensor:
    if layer.down is not None:
        return grad_out.t() @ (x @ layer.down.to(x.dtype).t())
    full = grad_out[:, layer.head_labels :].t() @ x
    if layer.topology is None:
        return full
    if is_masked(layer):
        return full * layer.topology.mask()
    return full.gather(1, layer.topology.label_indices())


def step(x: Tensor, layer: Layer, targets: Targets, dtype: torch.dtype = torch.float64) -> Outcome:
    """The loss and all gradients of one step, nothing updated; loss, dx and d_down sum over chunks of labels."""
    z = outputs(FORWARD, x, x, layer, dtype)[0]
    s = z.to(torch.promote_types(dtype, torch.float32))
    sign = 1 - 2 * targets.positives.dense(layer.labels, s.dtype)  # -1 at the positives
    weight = torch.ones(layer.labels, device=x.device) if targets.label_weight is None else targets.label_weight
    if targets.loss == "cross_entropy":
        each, slope = F.softplus(sign * s), torch.sigmoid(sign * s)
    else:
        margin = (1 + sign * s).clamp(min=0)
        each, slope = margin.square(), 2 * margin
    dz = (sign * slope * weight).to(dtype)
    dx, dw, *rest = outputs(BACKWARD, x, dz, layer, dtype)
    db = None if layer.bias is None else outputs(GRAD_BIAS, x, dz, layer, dtype)[0]
    last = {"d_down" if layer.head is None else "d_head": one for one in rest}
    return Outcome((each * weight).sum(), dx, dw, db, **last)


def slot_scores(weight: Tensor, group_size: int, grad: Tensor | None, largest: bool) -> Tensor:
    """[groups, K] of weights [L, K]: the largest or mean \\|w\\| of a group's labels, or \\|w * grad\\|."""
    value = (weight if grad is None else weight * grad).abs()
    group = torch.arange(len(weight), device=weight.device) // group_size
    empty = value.new_zeros(-(-len(weight) // group_size), weight.shape[1])
    if largest:
        return empty.scatter_reduce(0, group[:, None].expand_as(value), value, "amax")
    return empty.index_add(0, group, value) / group.bincount()[:, None]


def gradient_norms(x: Tensor, grad_out: Tensor, group_size: int) -> Tensor:
    """[groups, D] of x [B, D] and grad_out [B, L]: the 2-norm of each input's gradients over the labels of a group."""
    square = (grad_out.t() @ x).square()
    group = torch.arange(len(square), device=x.device) // group_size
    return square.new_zeros(-(-len(square) // group_size), x.shape[1]).index_add(0, group, square).sqrt()


def updated(weight: Tensor, grad: Tensor, update: Update) -> tuple[Tensor, Tensor | None]:
    """(weight, momentum buffer) after one update, before any rounding, in the dtype of `grad`."""
    direction = grad + update.weight_decay * weight.to(grad.dtype)
    buffer = None
    if update.momentum_buffer is not None:
        buffer = direction = direction + update.momentum * update.momentum_buffer.to(grad.dtype)
    lost = 0.0 if update.compensation is None else update.compensation.to(grad.dtype)
    return weight.to(grad.dtype) + lost - update.lr * direction, buffer


def topk(x: Tensor, layer: Layer, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
    """(values [B, k] float64, labels [B, k]): best first, equal ones in rising order, what is left out at the end as -1."""
    z = outputs(FORWARD, x, x, layer)[0]
    if exclude is not None:
        z[exclude.rows(), exclude.labels.long()] = -math.inf
    values, labels = z.sort(dim=1, descending=True, stable=True)
    return values[:, :k], labels[:, :k].masked_fill(values[:, :k] == -math.inf, -1)
