"""HeadTailLinear: what `gskernels.head_tail_linear` computes, as a module that knows the order of the labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gskernels.fused import fused_loss
from gskernels.head_tail import PIECE_BYTES, head_tail_linear
from gskernels.layer import Layer
from gskernels.nn.parameters import Device, dense_layer, fill_uniform
from gskernels.nn.sparse import GroupSharedLinear
from gskernels.optim import Update
from gskernels.positives import Positives, check_lists
from gskernels.ranking import best_of, topk
from gskernels.steps import Targets, Updates
from gskernels.topology import GroupTopology


class HeadTailLinear(nn.Module):
    """D -> L: a dense layer for the `head` most frequent labels, a group-shared one for the others, in one buffer.

    Internally labels have another order: position p, of the head for p < H, else of the tail, whose groups are G
    neighbours, belongs to the caller's label ``label_order[p]``, and label l is at ``label_position[l]``. Both are
    buffers, so a checkpoint carries them. `from_frequencies` makes the order from the training data.

    Submodules `head` (torch.nn.Linear) and `tail` (GroupSharedLinear, for rewiring) hold the parameters, in the internal
    order. Both start on one scale (see `gskernels.nn`), biases at zero.

    Args:
        dim, labels, fan_in, group_size: D, L, K, G.
        head: H, the number of labels of the head, 1 <= H < L.
        label_order: [L] integer, a permutation of the labels, the head's first; by default their own order.
        head_dim, tail_dim: the head reads the first `head_dim` inputs, the tail the last `tail_dim`. All of them by
            default; `head_dim` + `tail_dim` = D makes their features private.
        topology, seed, implementation: of the tail, as for `GroupSharedLinear`.
        piece_bytes: the bound on what is held beside the logits, as in `gskernels.head_tail_linear`.

    Raises:
        ValueError: sizes outside these limits, no permutation, or as for `GroupSharedLinear`.
    """

    label_order: Tensor
    label_position: Tensor

    def __init__(
        self, dim: int, labels: int, head: int, fan_in: int, group_size: int, *, label_order: Tensor | None = None,
        head_dim: int | None = None, tail_dim: int | None = None, bias: bool = True,
        topology: GroupTopology | None = None, seed: int = 0, implementation: str | None = None,
        piece_bytes: int = PIECE_BYTES, device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        head_dim, tail_dim = dim if head_dim is None else head_dim, dim if tail_dim is None else tail_dim
        if not 1 <= head < labels:
            raise ValueError(f"head must lie in 1..labels-1={labels - 1}, got {head}")
        if not (1 <= head_dim <= dim and 1 <= tail_dim <= dim):
            raise ValueError(f"head_dim and tail_dim must lie in 1..dim={dim}, got {head_dim} and {tail_dim}")
        self.dim, self.labels, self.piece_bytes = dim, labels, piece_bytes
        self.head = nn.Linear(head_dim, head, bias, device, dtype)
        self.tail = GroupSharedLinear(tail_dim, labels - head, fan_in, group_size, bias=bias, topology=topology, seed=seed,
                                      implementation=implementation, device=device, dtype=dtype)  # fmt: skip
        order = torch.arange(labels, device="cpu") if label_order is None else label_order.detach()
        _check_permutation(order, labels, "label_order")
        order = order.to(device=self.head.weight.device, dtype=torch.int64, copy=True)
        self.register_buffer("label_order", order)
        self.register_buffer("label_position", order.argsort())
        self.reset_parameters()

    @classmethod
    def from_frequencies(
        cls, frequencies: Tensor, dim: int, fan_in: int, group_size: int, *, head_share: float = 0.1,
        tail_order: Tensor | None = None, **options: Any,
    ) -> HeadTailLinear:  # fmt: skip
        """The layer whose head has the most frequent labels; ties go to the smaller label.

        Args:
            frequencies: [L] occurrences of each label in the TRAINING data. From test data they would be a leak.
            head_share: share of the labels in the head, rounded to a whole number.
            tail_order: [L - H], the other labels in the order in which they form groups, for example those of a
                clustering; by default by falling frequency.
            options: as for the constructor.

        Raises:
            ValueError: frequencies that are negative, NaN or not [L], or a tail_order that does not hold each label
                outside of the head once; and as the constructor.
        """
        if frequencies.dim() != 1 or not bool((frequencies >= 0).all()):
            raise ValueError(f"frequencies must be [L] numbers from 0 on, got {list(frequencies.shape)}")
        labels = len(frequencies)
        head = round(head_share * labels)
        order = frequencies.argsort(descending=True, stable=True)
        if tail_order is not None:
            order = torch.cat([order[:head], tail_order.to(order)])
            _check_permutation(order, labels, f"the {head} labels of the head and tail_order")
        return cls(dim, labels, head, fan_in, group_size, label_order=order, **options)

    def reset_parameters(self) -> None:
        """Draw the weights of head and tail anew and clear the biases; order and topology stay."""
        fill_uniform(self.head.weight, 1 / math.sqrt(self.head.in_features))
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)
        self.tail.reset_parameters()

    def forward(self, x: Tensor, *, internal: bool = False) -> Tensor:
        """x [*, D] in the dtype of the weights -> [*, L], columns in the caller's order of labels.

        `internal`: in the internal order, whose columns are written in one stretch; for a loss, whose positives
        `internal_positives` translates. Memory and errors as in `gskernels.head_tail_linear`.
        """
        if x.dim() < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"x must be [*, {self.dim}] for this layer, got {list(x.shape)}")
        order = None if internal else self.label_order
        return head_tail_linear(x, *self._layers(), order, self.tail.implementation, self.piece_bytes)

    def _layers(self) -> tuple[Layer, Layer]:
        tail = self.tail
        topology = GroupTopology(tail.indices, tail.labels, tail.dim, tail.group_size)
        return Layer(self.head.weight, bias=self.head.bias), Layer(tail.weight, topology, bias=tail.bias)

    def loss(
        self, x: Tensor, targets: Targets, updates: Updates | None = None, *, guard: bool = False, check: bool = True
    ) -> Tensor:
        """The loss over all labels: the head's in chunks, the tail's in one pass; see `gskernels.fused_loss`.

        targets: in the caller's numbering of labels. updates: by the name of the parameter here, such as "tail.weight".
        `guard` looks at head and tail apart. The host waits for the device, to part the lists.
        """
        lists, head = targets.positives, self.head.out_features
        if check:
            check_lists(lists.pointers, lists.labels, self.labels)
        inner = Positives(lists.pointers, self.internal_positives(lists.pointers, lists.labels))
        weight = None if targets.label_weight is None else targets.label_weight[self.label_order]
        inner_targets = Targets(inner, targets.loss, weight)
        mine: dict[str, dict[str, Update]] = {"head": {}, "tail": {}}
        for name, update in (updates or {}).items():
            part, _, parameter = name.partition(".")
            if part not in mine:
                raise ValueError(f"an update of {name!r}, but this layer has head.weight, head.bias, tail.weight, tail.bias")
            mine[part][parameter] = update
        head_layer, tail_layer = self._layers()
        first = fused_loss(x[..., : self.head.in_features], head_layer, inner_targets.rows(0, head), mine["head"],
                           guard=guard, check=False)  # fmt: skip
        second = fused_loss(x[..., self.dim - self.tail.dim :], tail_layer, inner_targets.rows(head, self.labels),
                            mine["tail"], implementation=self.tail.implementation, guard=guard, check=False)  # fmt: skip
        return first + second

    def topk(self, x: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """(values, labels), each [B, k], of the best labels of x [B, D] in the caller's numbering; see `gskernels.topk`.

        Equal logits go by label, except that those of the head, or of the tail, that tie for the last place go by position.
        """
        parts, head = [], self.head.out_features
        inner = None
        if exclude is not None:
            check_lists(exclude.pointers, exclude.labels, self.labels)
            inner = Positives(exclude.pointers, self.internal_positives(exclude.pointers, exclude.labels))
        if not 1 <= k <= self.labels:
            raise ValueError(f"k must lie in 1..{self.labels} for {self.labels} labels, got {k}")
        spans = ((0, head, x[:, : self.head.in_features]), (head, self.labels, x[:, self.dim - self.tail.dim :]))
        for (start, stop, own), layer in zip(spans, self._layers(), strict=True):
            left_out = None if inner is None else inner.within(start, stop)
            implementation = None if start == 0 else self.tail.implementation
            values, at = topk(own.contiguous(), layer, min(k, stop - start), left_out, implementation=implementation)
            parts.append((values, torch.where(at < 0, -1, self.label_order[(at + start).clamp(min=0)])))
        return best_of(torch.cat([values for values, _ in parts], 1), torch.cat([labels for _, labels in parts], 1), k)

    def internal_positives(self, pointers: Tensor, positives: Tensor) -> Tensor:
        """Positives [n] of rows ``pointers`` [B + 1] as int64 positions in the internal order, ascending in each row."""
        counts = (pointers[1:] - pointers[:-1]).long()
        first = torch.arange(len(counts), device=positives.device) * self.labels
        first = first.repeat_interleave(counts, output_size=len(positives))
        return (first + self.label_position[positives.long()]).sort().values - first

    def to_dense(self) -> nn.Linear:
        """A dense layer of the same function, in the caller's order of labels; it holds [L, D]."""
        head, tail = self.head, self.tail
        first, others = self.label_order[: head.out_features], self.label_order[head.out_features :]
        weight = head.weight.detach().new_zeros(self.labels, self.dim)
        weight[first, : head.in_features] = head.weight.detach()
        weight[others, self.dim - tail.dim :] = tail.topology.to_dense(tail.weight.detach())
        if tail.bias is None:
            return dense_layer(weight, None)
        return dense_layer(weight, torch.cat([head.bias, tail.bias]).detach()[self.label_position])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, labels={self.labels}, head={self.head.out_features}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """As every module, but an order of labels that cannot be inverted is refused before it replaces the old one."""
        order: Any = state_dict.get(prefix + "label_order")
        position: Any = state_dict.get(prefix + "label_position")
        both = order is not None and position is not None  # if not, the usual errors say so
        if both and order.shape == position.shape == (self.labels,) and not order.is_meta:
            try:
                _check_permutation(order, self.labels, f"{prefix}label_order")
                if not torch.equal(order.argsort(), position):
                    raise ValueError(f"{prefix}label_position is not the inverse of {prefix}label_order")
            except ValueError as error:
                errors: list[str] = rest[-1]
                errors.append(str(error))
                return
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check_permutation(order: Tensor, labels: int, name: str) -> None:
    """Raises ValueError unless `order` holds each of 0..labels-1 once."""
    if tuple(order.shape) != (labels,) or order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be [{labels}] int32 or int64, got {list(order.shape)} in {order.dtype}")
    if order.is_meta:
        return
    if not torch.equal(order.sort().values, torch.arange(labels, device=order.device, dtype=order.dtype)):
        raise ValueError(f"{name} must hold each label in 0..{labels - 1} once")
