"""The layers as torch modules.

Initialisation, the same for all: every logit is a sum over its inputs whose weights have the variance 1 / (3 n), n
being the number of inputs it really reads, as in torch.nn.Linear. So the logits of dense, per-label, group-shared, head
and tail labels start on one scale, whatever D, K and r are: E[y^2] = E[x^2] / 3. Biases start at zero; for a summed
cross-entropy over many labels, set them to the logit of the share of positives, or the first steps do only that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gskernels import bottleneck
from gskernels.head_tail import PIECE_BYTES, head_tail_linear
from gskernels.layer import Layer
from gskernels.ops import _layer, linear
from gskernels.table import FORWARD, IMPLEMENTATIONS, Shape
from gskernels.topology import GroupTopology

Device = torch.device | str | None


def _uniform(tensor: Tensor, bound: float) -> None:
    with torch.no_grad():
        tensor.uniform_(-bound, bound)


def _bias(wanted: bool, labels: int, device: Device, dtype: torch.dtype | None) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(labels, device=device, dtype=dtype)) if wanted else None


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    labels, dim = weight.shape
    dense = nn.Linear(dim, labels, bias=bias is not None, device="meta")
    dense.weight = nn.Parameter(weight.detach())
    if bias is not None:
        dense.bias = nn.Parameter(bias.detach().clone())
    return dense


class GroupSharedLinear(nn.Module):
    """D -> L, where the `group_size` labels of a group read the same `fan_in` inputs with weights of their own.

    ``y[..., l] = sum over k of weight[l, k] * x[..., indices[l // G, k]] + bias[l]``

    Parameters and buffers: `weight` [L, K], `bias` [L] or None, `indices` [ceil(L/G), K] integer. Weights start
    uniform in +-1/sqrt(K) (see the module).

    Args:
        dim, labels, fan_in, group_size: D, L, K, G.
        topology: the index lists, of these sizes. By default every K-subset is equally likely, drawn with `seed`.
        implementation: a sparse one of `gskernels.IMPLEMENTATIONS` by name; by default as in `gskernels.linear`.

    Raises:
        ValueError: sizes outside 1 <= K <= D and 1 <= G <= L, a topology of other sizes, an unknown implementation.
    """

    weight: nn.Parameter
    indices: Tensor

    def __init__(
        self, dim: int, labels: int, fan_in: int, group_size: int, *, bias: bool = True,
        topology: GroupTopology | None = None, seed: int = 0, implementation: str | None = None, device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sparse = [i.name for i in IMPLEMENTATIONS if i.layout == "sparse" and FORWARD in i.passes]
        if implementation is not None and implementation not in sparse:
            raise ValueError(f"implementation {implementation!r} is no sparse layer with a forward; use {', '.join(sparse)}")
        device = torch.get_default_device() if device is None else torch.device(device)
        self.dim, self.labels, self.fan_in, self.group_size = dim, labels, fan_in, group_size
        self.implementation = implementation
        if topology is None:
            drawn_on = "cpu" if device.type == "meta" else device
            topology = GroupTopology.uniform(labels, dim, fan_in, group_size, seed=seed, device=drawn_on)
        self._check_sizes(topology)
        self.register_buffer("indices", topology.indices.to(device, copy=True))
        self.weight = nn.Parameter(torch.empty(labels, fan_in, device=device, dtype=dtype))
        self.bias = _bias(bias, labels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and clear the bias; the topology stays."""
        _uniform(self.weight, 1 / math.sqrt(self.fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def topology(self) -> GroupTopology:
        """The index lists: a view of `indices`. What is derived from them is kept until `indices` is written to."""
        kept = _layer(self.weight, self.indices, None, self.dim, self.group_size).sparse
        return replace(kept, indices=self.indices)

    def set_topology(self, topology: GroupTopology) -> None:
        """Copy other index lists into `indices`, from any device; weights stay as they are.

        Raises ValueError where labels, dim, fan_in or group_size differ.
        """
        self._check_sizes(topology)
        self.indices.copy_(topology.indices)

    def _check_sizes(self, topology: GroupTopology) -> None:
        for name in ("labels", "dim", "fan_in", "group_size"):
            mine, theirs = getattr(self, name), getattr(topology, name)
            if mine != theirs:
                raise ValueError(f"the layer has {name}={mine}, the topology {name}={theirs}")

    def forward(self, x: Tensor) -> Tensor:
        """x [*, D] in the dtype of the weights -> [*, L]. Errors as in `gskernels.linear`."""
        topology = GroupTopology(self.indices, self.labels, self.dim, self.group_size)
        return linear(x, self.weight, topology, self.bias, self.implementation)

    def to_dense(self) -> nn.Linear:
        """A dense layer of the same function; it holds [L, D]."""
        return _dense(self.topology.to_dense(self.weight), self.bias)

    def extra_repr(self) -> str:
        text = f"dim={self.dim}, labels={self.labels}, fan_in={self.fan_in}, group_size={self.group_size}"
        return f"{text}, bias={self.bias is not None}, implementation={self.implementation or 'default'}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """As every module, but indices that kernels must not follow are refused before they replace the old ones."""
        loaded = state_dict.get(prefix + "indices")
        if loaded is not None and loaded.shape == self.indices.shape and not loaded.is_meta:
            try:
                GroupTopology.of(loaded, labels=self.labels, dim=self.dim, group_size=self.group_size)
            except ValueError as error:
                errors: list[str] = rest[-1]
                errors.append(f"{prefix}indices: {error}")
                return
        super()._load_from_state_dict(state_dict, prefix, *rest)


class FixedFanInLinear(GroupSharedLinear):
    """D -> L, where every label reads `fan_in` inputs of its own: a `GroupSharedLinear` in groups of one.

    Arguments, parameters, initialisation and errors as there; `indices` is [L, K].
    """

    def __init__(
        self, dim: int, labels: int, fan_in: int, *, bias: bool = True, topology: GroupTopology | None = None,
        seed: int = 0, implementation: str | None = None, device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(dim, labels, fan_in, 1, bias=bias, topology=topology, seed=seed,
                         implementation=implementation, device=device, dtype=dtype)  # fmt: skip


class BottleneckLinear(nn.Module):
    """D -> r -> L, both dense: the rival with as many parameters and FLOPs as a sparse layer of fan-in K.

    Parameters: `down` [r, D], `weight` [L, r], `bias` [L] or None. `down` starts uniform in +-sqrt(3/D), which keeps
    the scale of x, and `weight` in +-1/sqrt(r), so that the logits have that of the other layers.

    Args:
        dim, labels: D, L.
        fan_in: K of the layer to match: r (D + L) = K L, to the nearest multiple of 8 (`Shape.bottleneck_rank`).
        rank: r itself; `fan_in` is then ignored.

    Raises:
        ValueError: neither `fan_in` nor `rank`, or sizes below 1.
    """

    def __init__(
        self, dim: int, labels: int, fan_in: int | None = None, *, rank: int | None = None, bias: bool = True,
        device: Device = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if rank is None and fan_in is None:
            raise ValueError("a bottleneck needs fan_in, to match its FLOPs, or rank")
        if rank is None:
            rank = Shape(1, dim, labels, fan_in or 0, 1).bottleneck_rank
        if min(dim, labels, rank) < 1:
            raise ValueError(f"dim, labels and rank must be at least 1, got {dim}, {labels} and {rank}")
        self.dim, self.labels, self.rank = dim, labels, rank
        self.down = nn.Parameter(torch.empty(rank, dim, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(labels, rank, device=device, dtype=dtype))
        self.bias = _bias(bias, labels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both matrices anew and clear the bias."""
        _uniform(self.down, math.sqrt(3 / self.dim))
        _uniform(self.weight, 1 / math.sqrt(self.rank))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [*, D] in the dtype of the weights -> [*, L]."""
        return bottleneck.forward(x, Layer(self.weight, down=self.down, bias=self.bias))

    def to_dense(self) -> nn.Linear:
        """A dense layer of the same function; it holds [L, D]."""
        return _dense(self.weight @ self.down, self.bias)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, labels={self.labels}, rank={self.rank}, bias={self.bias is not None}"


class HeadTailLinear(nn.Module):
    """D -> L: a dense layer for the `head` most frequent labels, a group-shared one for the others, in one buffer.

    Internally labels have another order: position p, of the head for p < H, else of the tail, whose groups are G
    neighbours, belongs to the caller's label ``label_order[p]``, and label l is at ``label_position[l]``. Both are
    buffers, so a checkpoint carries them. `from_frequencies` makes the order from the training data.

    Submodules `head` (torch.nn.Linear) and `tail` (GroupSharedLinear, for rewiring) hold the parameters, in the internal
    order. Both start on one scale (see the module), biases at zero.

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
        _uniform(self.head.weight, 1 / math.sqrt(self.head.in_features))
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
        tail = self.tail
        topology = GroupTopology(tail.indices, tail.labels, tail.dim, tail.group_size)
        head_layer, tail_layer = Layer(self.head.weight, bias=self.head.bias), Layer(tail.weight, topology, bias=tail.bias)
        order = None if internal else self.label_order
        return head_tail_linear(x, head_layer, tail_layer, order, tail.implementation, self.piece_bytes)

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
            return _dense(weight, None)
        return _dense(weight, torch.cat([head.bias, tail.bias]).detach()[self.label_position])

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
