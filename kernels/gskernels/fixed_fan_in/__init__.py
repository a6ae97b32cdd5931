"""Every label has a list of K inputs of its own: the same number of weights as group_shared, without the sharing.

A grouped topology works too (each label then reads its group's list); the comparison uses groups of one. What is
derived from the indices alone is made here, once a topology, and kept with it: outside of what is timed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gskernels.topology import GroupTopology

# Labels whose transposed piece [n, B] of Y or dY exists at once. CPU: 1 MiB at B = 64, the level-2 cache of a core;
# CUDA: 128 MiB at B = 256 in bf16, since small chunks only add launches there.
CHUNK_LABELS = {"cpu": 4096, "cuda": 1 << 18}


def label_inputs(topology: GroupTopology) -> Tensor:
    """[L, K] int32: the inputs of every label (torch gathers take no int16)."""

    def build() -> Tensor:
        per_label = topology.indices.to(torch.int32)
        return per_label.repeat_interleave(topology.group_size, 0)[: topology.labels]

    return topology.memo("label_inputs", build)


@dataclass(frozen=True)
class Pattern:
    """The places of the weights of n labels as the matrix A [n, D] and as A^T [D, n], both CSR, all int32."""

    labels: slice
    rows: Tensor  # [n + 1]: where each label's entries begin
    columns: Tensor  # [n K]: its inputs
    transposed_rows: Tensor  # [D + 1]: where each input's entries begin
    transposed_columns: Tensor  # [n K]: the labels, from 0, that read it
    permutation: Tensor  # [n K]: the values of A^T are those of A at these positions

    def transposed_values(self, values: Tensor) -> Tensor:
        """[n K]: values [n, K] of A in the order of A^T."""
        return values.reshape(-1).index_select(0, self.permutation)


def patterns(topology: GroupTopology) -> list[Pattern]:
    """The patterns of successive CHUNK_LABELS labels: 16 bytes a weight, whatever the batch."""
    step = min(CHUNK_LABELS.get(topology.device.type, CHUNK_LABELS["cpu"]), (2**31 - 1) // topology.fan_in)

    def build() -> list[Pattern]:
        starts = range(0, topology.labels, step)
        return [_pattern(topology, slice(start, min(start + step, topology.labels))) for start in starts]

    return topology.memo("patterns", build)


def _pattern(topology: GroupTopology, labels: slice) -> Pattern:
    columns = label_inputs(topology)[labels].flatten()
    rows = torch.arange(labels.stop - labels.start + 1, dtype=torch.int32, device=columns.device) * topology.fan_in
    ordered, permutation = columns.sort(stable=True)
    inputs = torch.arange(topology.dim + 1, dtype=torch.int32, device=columns.device)
    transposed_rows = torch.searchsorted(ordered, inputs, out_int32=True)
    transposed_columns = torch.div(permutation, topology.fan_in, rounding_mode="floor").int()
    return Pattern(labels, rows, columns, transposed_rows, transposed_columns, permutation.int())
