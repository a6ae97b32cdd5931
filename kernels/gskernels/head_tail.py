"""A dense layer over the first labels and a sparse one over the others, in one buffer: `head_tail_linear`.

Implementations write whole matrices. So both layers go in pieces of labels: a piece of Y is computed on its own and
copied to its columns, wherever these are; a piece of dY is copied from there. What that holds is bounded by
`piece_bytes`, and no second [B, L] exists, whatever the implementation and the order of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gskernels.dispatch import DTYPES, backward_of, choose, implementation_for
from gskernels.layer import Layer
from gskernels.ops import check_operands, layer_of, without_autocast
from gskernels.shape import Shape
from gskernels.table import BACKWARD, FORWARD, GRAD_INPUT, GRAD_WEIGHT
from gskernels.topology import GroupTopology

PIECE_BYTES = 32 << 20  # half of a large card's level-2 cache, and enough work for each launch
SCHEMA = (
    "Tensor x, Tensor head_weight, Tensor tail_weight, Tensor? head_bias, Tensor? tail_bias, Tensor indices, "
    "Tensor? label_order, int tail_dim, int group_size, int piece_bytes, str implementation, "
    "str backward_implementation"
)


class Inputs(NamedTuple):
    """The operands of `forward`, `backward` and both operators, in the order of the operators' schemas."""

    x: Tensor  # [B, D]
    head_weight: Tensor  # [H, Dh]
    tail_weight: Tensor  # [L - H, K]
    head_bias: Tensor | None  # [H]
    tail_bias: Tensor | None  # [L - H]
    indices: Tensor  # [(L - H) / G, K]
    label_order: Tensor | None  # [L]: column of Y of each label of the head, then the tail
    tail_dim: int
    group_size: int
    piece_bytes: int
    implementation: str
    backward_implementation: str

    @property
    def head(self) -> int:
        return self.head_weight.shape[0]

    @property
    def labels(self) -> int:
        return self.head + self.tail_weight.shape[0]

    def features(self) -> tuple[Tensor, Tensor]:
        """What head and tail read: the first Dh and the last Dt inputs."""
        head_dim, tail_start = self.head_weight.shape[1], self.x.shape[1] - self.tail_dim
        return self.x[:, :head_dim].contiguous(), self.x[:, tail_start:].contiguous()

    def step(self, width: int) -> int:
        """Labels of a piece: Y or dY, its sum in fp32 and a gradient of `width` a label within the bound."""
        item = self.x.element_size()
        return max(1, self.piece_bytes // (self.x.shape[0] * (item + 4) + width * item))

    def head_pieces(self) -> Iterator[slice]:
        step = self.step(self.head_weight.shape[1])
        for start in range(0, self.head, step):
            yield slice(start, min(start + step, self.head))

    def tail_pieces(self) -> list[tuple[slice, Layer]]:
        """Whole groups, 2^n of them, so that a few more rows make no other pieces. What is derived from a piece's
        indices is kept with the whole's, for one division into pieces at a time."""
        tail = layer_of(self.tail_weight, self.indices, self.tail_bias, self.tail_dim, self.group_size)
        groups = max(1, self.step(self.tail_weight.shape[1]) // self.group_size)
        groups = 1 << groups.bit_length() - 1
        kept: dict[int, list[tuple[slice, GroupTopology]]] = tail.sparse.memo("head_tail pieces", dict)
        if groups not in kept:
            kept.clear()
            ranges = tail.sparse.chunks(groups * self.group_size)
            kept[groups] = [(slice(*labels), tail.sparse.rows(*labels)) for labels in ranges]
        bias = self.tail_bias
        return [
            (labels, Layer(self.tail_weight[labels], topology, bias=None if bias is None else bias[labels]))
            for labels, topology in kept[groups]
        ]

    def put(self, y: Tensor, first: int, labels: slice, piece: Tensor) -> None:
        """Write the columns of labels [first + start, first + stop)."""
        at = slice(first + labels.start, first + labels.stop)
        if self.label_order is None:
            y[:, at] = piece
        else:
            y.index_copy_(1, self.label_order[at], piece)

    def take(self, grad_out: Tensor, first: int, labels: slice) -> Tensor:
        """The same columns of dY, a view where they are neighbours."""
        at = slice(first + labels.start, first + labels.stop)
        return grad_out[:, at] if self.label_order is None else grad_out.index_select(1, self.label_order[at])


def forward(inputs: Inputs) -> Tensor:
    """[B, L]: the logits, piece by piece."""
    head_x, tail_x = inputs.features()
    y = inputs.x.new_empty(inputs.x.shape[0], inputs.labels)
    for labels in inputs.head_pieces():
        bias = None if inputs.head_bias is None else inputs.head_bias[labels]
        inputs.put(y, 0, labels, F.linear(head_x, inputs.head_weight[labels], bias))
    for labels, layer in inputs.tail_pieces():
        chosen = implementation_for(inputs.implementation, FORWARD, tail_x, layer)
        inputs.put(y, inputs.head, labels, chosen.load().forward(tail_x, layer, **chosen.options))
    return y


def backward(grad_out: Tensor, wanted: list[bool], inputs: Inputs) -> list[Tensor]:
    """dx and the gradients of the weights and biases of head and tail, empty where not wanted. Pieces of dx are
    summed in fp32."""
    gradients = _new_gradients(inputs, wanted, torch.float32)
    _head_backward(grad_out, inputs, wanted, gradients)
    _tail_backward(grad_out, inputs, wanted, gradients)
    return [gradients[0].to(inputs.x.dtype), *gradients[1:]]


@torch.library.custom_op("gskernels::head_tail", mutates_args=(), schema=f"({SCHEMA}) -> Tensor")
def _forward(*operands: Any) -> Tensor:
    inputs = Inputs(*operands)
    with without_autocast(inputs.x):
        return forward(inputs)


@torch.library.custom_op(
    "gskernels::head_tail_backward", mutates_args=(), schema=f"(Tensor grad_out, bool[] wanted, {SCHEMA}) -> Tensor[]"
)
def _backward(grad_out: Tensor, wanted: list[bool], *operands: Any) -> list[Tensor]:
    with without_autocast(grad_out):
        return backward(grad_out, wanted, Inputs(*operands))


def _new_gradients(inputs: Inputs, wanted: list[bool], sums: torch.dtype) -> list[Tensor]:
    x, tail = inputs.x, inputs.labels - inputs.head
    shapes = (x.shape, inputs.head_weight.shape, inputs.tail_weight.shape, (inputs.head,), (tail,))
    new = [x.new_empty(shape if wants else (0,)) for shape, wants in zip(shapes[1:], wanted[1:], strict=True)]
    return [x.new_zeros(x.shape if wanted[0] else (0,), dtype=sums), *new]


def _head_backward(grad_out: Tensor, inputs: Inputs, wanted: list[bool], gradients: list[Tensor]) -> None:
    if not (wanted[0] or wanted[1] or wanted[3]):
        return
    x, weight = inputs.features()[0], inputs.head_weight
    for labels in inputs.head_pieces():
        grad = inputs.take(grad_out, 0, labels)
        if wanted[0]:
            gradients[0][:, : weight.shape[1]] += grad @ weight[labels]
        if wanted[1]:
            torch.mm(grad.t(), x, out=gradients[1][labels])
        if wanted[3]:
            gradients[3][labels] = grad.sum(0, dtype=torch.float32)
        del grad  # before the next one is taken


def _tail_backward(grad_out: Tensor, inputs: Inputs, wanted: list[bool], gradients: list[Tensor]) -> None:
    if not (wanted[0] or wanted[2] or wanted[4]):
        return
    x, start = inputs.features()[1], inputs.x.shape[1] - inputs.tail_dim
    pass_ = BACKWARD if wanted[0] and wanted[2] else GRAD_INPUT if wanted[0] else GRAD_WEIGHT
    name = inputs.implementation if pass_ == GRAD_WEIGHT else inputs.backward_implementation
    for labels, layer in inputs.tail_pieces():
        grad = inputs.take(grad_out, inputs.head, labels).contiguous()
        chosen = implementation_for(name, pass_, x, layer)
        module, options = chosen.load(), chosen.options
        if wanted[0] and wanted[2]:
            dx, gradients[2][labels] = module.backward(grad, x, layer, **options)
            gradients[0][:, start:] += dx
        elif wanted[0]:
            gradients[0][:, start:] += module.grad_input(grad, layer, **options)
        elif wanted[2]:
            gradients[2][labels] = module.grad_weight(grad, x, layer, **options)
        if wanted[4]:
            gradients[4][labels] = grad.sum(0, dtype=torch.float32)
        del grad


@_forward.register_fake
def _(*operands: Any) -> Tensor:
    inputs = Inputs(*operands)
    return inputs.x.new_empty(inputs.x.shape[0], inputs.labels)


@_backward.register_fake
def _(grad_out: Tensor, wanted: list[bool], *operands: Any) -> list[Tensor]:
    inputs = Inputs(*operands)
    return _new_gradients(inputs, wanted, inputs.x.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.numbers = inputs[7:]


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    gradients = _backward(grad_out, wanted, *ctx.saved_tensors, *ctx.numbers)
    asked = [gradient if wants else None for gradient, wants in zip(gradients, wanted, strict=True)]
    return (*asked, *[None] * 7)


_forward.register_autograd(_autograd, setup_context=_setup_context)


def head_tail_linear(
    x: Tensor,
    head: Layer,
    tail: Layer,
    label_order: Tensor | None = None,
    implementation: str | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Tensor:
    """The logits of a dense head and a sparse tail, both written into the one tensor that is returned.

    Differentiable once in `x` and the weights and biases. Works under torch.compile (fullgraph) and autocast, and with
    an empty batch and non-contiguous tensors. Beside the result, forward holds one piece of the logits and what the
    implementation needs for it. Backward holds a piece of dY (in a view of dY where that can be), a piece of the
    weights' gradient and dX in fp32, to which the pieces' dX, each rounded to the dtype of `x`, are added.

    Args:
        x: [*, D] fp32, fp16 or bf16. The head reads the first Dh inputs, the tail the last Dt: all of them, private
            halves, or what else their weights and topology say.
        head: `weight` [H, Dh], `bias` [H] or None.
        tail: `weight` [L - H, K], `topology` (dim Dt), `bias` [L - H] or None.
        label_order: [L] int64, a permutation: the column of each label, the head's first. By default the columns are
            in that order: the head's labels, then the tail's. Its contents are not looked at.
        implementation: of the tail, as for `gskernels.linear`.
        piece_bytes: the bound on the pieces, in bytes; a piece has at least one label (the tail's: one group).

    Returns:
        [*, L], contiguous, in the dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or as in `gskernels.linear` for the tail.
    """
    topology, biases = tail.sparse, [head.bias, tail.bias]
    head_weight, tail_weight = head.weight, tail.weight
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, head_weight, tail_weight = x.to(dtype), head_weight.to(dtype), tail_weight.to(dtype)
        biases = [None if bias is None else bias.to(dtype) for bias in biases]
    widest = max(head_weight.shape[-1], topology.dim)
    if x.dim() < 1 or x.shape[-1] < widest:
        raise ValueError(f"x must be [*, {widest}] or wider for this head and tail, got {list(x.shape)}")
    check_operands(x[..., x.shape[-1] - topology.dim :], tail_weight, topology, biases[1])
    _check_head(x, head_weight, biases[0], label_order, topology.labels)
    if piece_bytes < 1:
        raise ValueError(f"piece_bytes must be at least 1, got {piece_bytes}")
    batch = math.prod(x.shape[:-1])
    shape = Shape(batch, topology.dim, topology.labels, topology.fan_in, topology.group_size)
    chosen = choose(shape, DTYPES[x.dtype], kind, implementation)
    y = torch.ops.gskernels.head_tail(
        x.reshape(batch, x.shape[-1]), head_weight, tail_weight.contiguous(), *biases, topology.indices, label_order,
        topology.dim, topology.group_size, piece_bytes, chosen, backward_of(chosen),
    )  # fmt: skip
    return y.view(*x.shape[:-1], len(head_weight) + topology.labels)  # type: ignore[no-any-return]


def _check_head(x: Tensor, weight: Tensor, bias: Tensor | None, label_order: Tensor | None, tail: int) -> None:
    if weight.dim() != 2 or weight.dtype != x.dtype or weight.device != x.device:
        found = f"{list(weight.shape)} in {weight.dtype} on {weight.device}"
        raise ValueError(f"the head's weight must be [H, Dh] in {x.dtype} on {x.device}, got {found}")
    head = len(weight)
    if bias is not None and (tuple(bias.shape) != (head,) or bias.dtype != x.dtype or bias.device != x.device):
        found = f"{list(bias.shape)} in {bias.dtype} on {bias.device}"
        raise ValueError(f"the head's bias must be [{head}] in {x.dtype} on {x.device}, got {found}")
    if label_order is None:
        return
    if tuple(label_order.shape) != (head + tail,) or label_order.dtype != torch.int64:
        found = f"{list(label_order.shape)} in {label_order.dtype}"
        raise ValueError(f"label_order must be [{head + tail}] in torch.int64, got {found}")
    if label_order.device != x.device:
        raise ValueError(f"label_order must be on the device of x, {x.device}, got {label_order.device}")
