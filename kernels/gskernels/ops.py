"""The sparse layer as torch operators with autograd: `linear`, on ``torch.ops.gskernels``.

One operator a pass (forward, grad_input, grad_weight, backward), so that only the wanted gradients are computed. An
operator sees tensors and numbers; what an implementation derives from the indices (`GroupTopology.memo`) is kept
beside the index tensor, for as long as that lives and is not written to.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gskernels.dispatch import DETERMINISTIC as DETERMINISTIC
from gskernels.dispatch import DTYPES as DTYPES
from gskernels.dispatch import PREFERENCE as PREFERENCE
from gskernels.dispatch import backward_of, choose, implementation_for
from gskernels.dispatch import explain as explain
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT
from gskernels.topology import GroupTopology

_memos: WeakIdKeyDictionary = WeakIdKeyDictionary()  # index tensor -> (its version, what was derived from it)


def layer_of(weight: Tensor, indices: Tensor, bias: Tensor | None, dim: int, group_size: int) -> Layer:
    """A layer from what an operator is given; what derives from the indices is made once an index tensor."""
    version = None if indices.is_inference() else indices._version
    kept: tuple[int | None, dict[str, Any]] | None = _memos.get(indices)
    if kept is None or kept[0] != version:
        kept = _memos[indices] = (version, {})
    # An alias: a memo that held its own key would keep it alive for ever.
    topology = GroupTopology(indices.detach(), weight.shape[0], dim, group_size, kept[1])
    return Layer(weight, topology, bias=bias)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Implementations choose their dtypes themselves."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


@torch.library.custom_op(
    "gskernels::forward",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor indices, Tensor? bias, int dim, int group_size, "
    "str implementation, str backward_implementation) -> Tensor",
)
def _forward(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, dim: int, group_size: int, implementation: str,
    backward_implementation: str,
) -> Tensor:  # fmt: skip
    layer = layer_of(weight, indices, bias, dim, group_size)
    chosen = implementation_for(implementation, FORWARD, x, layer)
    with without_autocast(x):
        y: Tensor = chosen.load().forward(x, layer, **chosen.options)
    return y


@torch.library.custom_op(
    "gskernels::grad_input",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor weight, Tensor indices, int dim, int group_size, "
    "str implementation) -> Tensor",
)
def _grad_input(
    grad_out: Tensor, weight: Tensor, indices: Tensor, dim: int, group_size: int, implementation: str
) -> Tensor:
    layer = layer_of(weight, indices, None, dim, group_size)
    chosen = implementation_for(implementation, GRAD_INPUT, grad_out, layer)
    with without_autocast(grad_out):
        dx: Tensor = chosen.load().grad_input(grad_out, layer, **chosen.options)
    return dx


@torch.library.custom_op(
    "gskernels::grad_weight",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor x, Tensor weight, Tensor indices, int group_size, "
    "str implementation) -> Tensor",
)
def _grad_weight(
    grad_out: Tensor, x: Tensor, weight: Tensor, indices: Tensor, group_size: int, implementation: str
) -> Tensor:
    layer = layer_of(weight, indices, None, x.shape[1], group_size)
    chosen = implementation_for(implementation, GRAD_WEIGHT, x, layer)
    with without_autocast(x):
        dw: Tensor = chosen.load().grad_weight(grad_out, x, layer, **chosen.options)
    return dw


@torch.library.custom_op(
    "gskernels::backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor x, Tensor weight, Tensor indices, int group_size, "
    "str implementation) -> (Tensor, Tensor)",
)
def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, indices: Tensor, group_size: int, implementation: str
) -> tuple[Tensor, Tensor]:
    layer = layer_of(weight, indices, None, x.shape[1], group_size)
    chosen = implementation_for(implementation, BACKWARD, x, layer)
    with without_autocast(x):
        dx, dw = chosen.load().backward(grad_out, x, layer, **chosen.options)
    return dx, dw


@_forward.register_fake
def _(x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, dim: int, group_size: int,
      implementation: str, backward_implementation: str) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], weight.shape[0])


@_grad_input.register_fake
def _(grad_out: Tensor, weight: Tensor, indices: Tensor, dim: int, group_size: int, implementation: str) -> Tensor:
    return grad_out.new_empty(grad_out.shape[0], dim)


@_grad_weight.register_fake
def _(grad_out: Tensor, x: Tensor, weight: Tensor, indices: Tensor, group_size: int, implementation: str) -> Tensor:
    return weight.new_empty(weight.shape)


@_backward.register_fake
def _(grad_out: Tensor, x: Tensor, weight: Tensor, indices: Tensor, group_size: int,
      implementation: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, indices, _, ctx.dim, ctx.group_size, ctx.implementation, ctx.backward_implementation = inputs
    wants_x, wants_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    ctx.save_for_backward(x if wants_weight else None, weight if wants_x or wants_weight else None, indices)


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, indices = ctx.saved_tensors
    wants_x, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
    dx = dw = db = None
    grad_out = grad_out.contiguous()
    if wants_x and wants_weight:
        dx, dw = _backward(grad_out, x, weight, indices, ctx.group_size, ctx.backward_implementation)
    elif wants_x:
        dx = _grad_input(grad_out, weight, indices, ctx.dim, ctx.group_size, ctx.backward_implementation)
    elif wants_weight:
        dw = _grad_weight(grad_out, x, weight, indices, ctx.group_size, ctx.implementation)
    if wants_bias:
        db = grad_out.sum(0, dtype=torch.float32).to(grad_out.dtype)
    return dx, dw, None, db, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def linear(
    x: Tensor,
    weight: Tensor,
    topology: GroupTopology,
    bias: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """A linear layer whose label l reads the K inputs ``topology.indices[l // G]`` alone.

    ``y[..., l] = sum over k of weight[l, k] * x[..., topology.indices[l // G, k]] + bias[l]``

    Differentiable once in `x`, `weight` and `bias`, of which only the wanted gradients are computed. Sums are taken in
    fp32. Works under torch.compile (fullgraph), in CUDA graphs, on any stream, with an empty batch and with
    non-contiguous tensors. Under autocast it casts as torch.nn.functional.linear does.

    Args:
        x: [*, D] fp32, fp16 or bf16.
        weight: [L, K], the dtype and device of `x`; column k belongs to ``topology.indices[:, k]``.
        topology: the index lists (L, D, K, G), on the same device.
        bias: [L], the dtype and device of `x`.
        implementation: a sparse one of `gskernels.IMPLEMENTATIONS` by name, such as "group_shared/torch". By default
            the one expected to be the fastest, a pass at a time: `explain` says which, and why. Under
            ``torch.use_deterministic_algorithms(True)`` its gradients are summed in a fixed order.

    Returns:
        [*, L], contiguous, in the dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, an unknown implementation, or one that cannot run such a
            layer; the message says which and what is allowed.
    """
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    check_operands(x, weight, topology, bias)
    batch = math.prod(x.shape[:-1])
    shape = Shape(batch, topology.dim, topology.labels, topology.fan_in, topology.group_size)
    chosen = choose(shape, DTYPES[x.dtype], kind, implementation)
    y = torch.ops.gskernels.forward(
        x.reshape(batch, topology.dim).contiguous(), weight.contiguous(), topology.indices, bias,
        topology.dim, topology.group_size, chosen, backward_of(chosen),
    )  # fmt: skip
    return y.view(*x.shape[:-1], topology.labels)  # type: ignore[no-any-return]


def check_operands(x: Tensor, weight: Tensor, topology: GroupTopology, bias: Tensor | None) -> None:
    """Raises ValueError where shapes, dtypes or devices do not fit; see `linear`."""
    labels, dim, fan_in = topology.labels, topology.dim, topology.fan_in
    if x.dim() < 1 or x.shape[-1] != dim:
        raise ValueError(f"x must be [*, {dim}] for this topology, got {list(x.shape)}")
    if tuple(weight.shape) != (labels, fan_in):
        raise ValueError(f"weight must be [{labels}, {fan_in}] for this topology, got {list(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (labels,):
        raise ValueError(f"bias must be [{labels}] for this topology, got {list(bias.shape)}")
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise ValueError(f"{name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
    for name, tensor in (("weight", weight), ("topology", topology.indices), ("bias", bias)):
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")
