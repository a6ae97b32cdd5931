"""GroupSharedLinear and FixedFanInLinear: what `gskernels.linear` computes, as modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gskernels.fused import fused_loss
from gskernels.layer import Layer
from gskernels.nn.parameters import Device, dense_layer, fill_uniform, zero_bias
from gskernels.ops import layer_of, linear
from gskernels.positives import Positives
from gskernels.ranking import topk
from gskernels.steps import Targets, Updates
from gskernels.table import FORWARD, IMPLEMENTATIONS
from gskernels.topology import GroupTopology


class GroupSharedLinear(nn.Module):
    """D -> L, where the `group_size` labels of a group read the same `fan_in` inputs with weights of their own.

    ``y[..., l] = sum over k of weight[l, k] * x[..., indices[l // G, k]] + bias[l]``

    Parameters and buffers: `weight` [L, K], `bias` [L] or None, `indices` [ceil(L/G), K] integer. Weights start
    uniform in +-1/sqrt(K) (see `gskernels.nn`).

    Args:
        dim, labels, fan_in, group_size: D, L, K, G.
        topology: the index lists, of these sizes. By default every K-subset is equally likely, drawn with `seed`, and in the
            order that spreads neighbours over shared memory's banks (`GroupTopology.bank_ordered`).
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
            draw = GroupTopology.uniform if group_size == 1 else GroupTopology.ordered  # kernels gain by the order
            topology = draw(labels, dim, fan_in, group_size, seed=seed, device=drawn_on)
        self._check_sizes(topology)
        self.register_buffer("indices", topology.indices.to(device, copy=True))
        self.weight = nn.Parameter(torch.empty(labels, fan_in, device=device, dtype=dtype))
        self.bias = zero_bias(bias, labels, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and clear the bias; the topology stays."""
        fill_uniform(self.weight, 1 / math.sqrt(self.fan_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def topology(self) -> GroupTopology:
        """The index lists: a view of `indices`. What is derived from them is kept until `indices` is written to."""
        kept = layer_of(self.weight, self.indices, None, self.dim, self.group_size).sparse
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

    def loss(
        self, x: Tensor, targets: Targets, updates: Updates | None = None, *, guard: bool = False, check: bool = True
    ) -> Tensor:
        """The loss over all labels in one pass, without stored logits where the implementation can; see `fused_loss`."""
        layer = Layer(self.weight, GroupTopology(self.indices, self.labels, self.dim, self.group_size), bias=self.bias)
        return fused_loss(x, layer, targets, updates, implementation=self.implementation, guard=guard, check=check)

    def topk(self, x: Tensor, k: int, exclude: Positives | None = None) -> tuple[Tensor, Tensor]:
        """(values, labels), each [B, k], of the best labels of x [B, D]; see `gskernels.topk`."""
        return topk(x, Layer(self.weight, self.topology, bias=self.bias), k, exclude, implementation=self.implementation)

    def to_dense(self) -> nn.Linear:
        """A dense layer of the same function; it holds [L, D]."""
        return dense_layer(self.topology.to_dense(self.weight), self.bias)

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
