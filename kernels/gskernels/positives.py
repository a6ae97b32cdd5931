"""The positive labels of each row as lists in CSR: row b has ``labels[pointers[b]:pointers[b + 1]]``.

What losses and fused steps take as targets, and `topk` as labels to leave out. No dense [B, L] exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class ByGroup(NamedTuple):
    """The same pairs ordered by group of labels: what a kernel that owns a group of labels reads. All int32.

    Group g has the pairs ``pointers[g]`` to ``pointers[g + 1]``: label ``g * G + columns[i]`` is positive in row
    ``rows[i]``. They ascend by row, then by column.
    """

    pointers: Tensor  # [groups + 1]
    rows: Tensor  # [positives]
    columns: Tensor  # [positives], 0 <= column < G


@dataclass(frozen=True)
class Positives:
    """pointers [B + 1] and labels [positives], int32 or int64; labels ascend and are distinct within a row."""

    pointers: Tensor
    labels: Tensor

    @property
    def batch(self) -> int:
        return self.pointers.shape[0] - 1

    def rows(self) -> Tensor:
        """[positives] int64: the row of each. Does not wait for the device."""
        counts = self.pointers.diff()
        row = torch.arange(len(counts), device=self.labels.device)
        return row.repeat_interleave(counts.long(), output_size=len(self.labels))

    def dense(self, labels: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """[B, labels]: 1 at the positives, else 0. For references and tests."""
        targets = torch.zeros(self.batch, labels, dtype=dtype, device=self.labels.device)
        targets[self.rows(), self.labels.long()] = 1
        return targets

    def within(self, start: int, stop: int) -> Positives:
        """Those of labels [start, stop), numbered from `start`. Waits for the device."""
        inside = (self.labels >= start) & (self.labels < stop)
        before = torch.nn.functional.pad(inside.long().cumsum(0), (1, 0))
        return Positives(before[self.pointers.long()], self.labels[inside] - start)

    def by_group(self, group_size: int, groups: int) -> ByGroup:
        """Ordered by group of `group_size` neighbouring labels. Does not wait for the device."""
        labels, batch = self.labels.long(), max(1, self.batch)
        group, column = labels // group_size, labels % group_size
        key = ((group * batch + self.rows()) * group_size + column).sort().values  # one sort: group, row, column
        bounds = torch.arange(groups + 1, device=labels.device) * (batch * group_size)
        pair = key % (batch * group_size)
        pointers = torch.searchsorted(key, bounds, out_int32=True)
        return ByGroup(pointers, (pair // group_size).int(), (pair % group_size).int())


def check_lists(pointers: Tensor, labels: Tensor, outputs: int) -> None:
    """Raises ValueError unless labels ascend and are distinct within a row, each in [0, outputs).

    O(positives), and the host waits for the device.
    """
    if int(pointers[0]) != 0 or int(pointers[-1]) != len(labels):
        ends = f"{int(pointers[0])} to {int(pointers[-1])}"
        raise ValueError(f"pointers must run from 0 to the number of positives, {len(labels)}, got {ends}")
    falls = pointers[1:] < pointers[:-1]
    if bool(falls.any()):
        raise ValueError(f"pointers must not fall, but do after row {int(falls.nonzero()[0])}")
    rows = Positives(pointers, labels).rows()
    outside = (labels < 0) | (labels >= outputs)
    step = labels[1:] - labels[:-1]
    wrong = (rows[1:] == rows[:-1]) & (step <= 0)
    if not bool(outside.any() | wrong.any()):
        return
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise ValueError(f"positive {int(labels[at])} of row {int(rows[at])} is outside 0..{outputs - 1}")
    at = int(wrong.nonzero()[0])
    if int(step[at]) == 0:
        raise ValueError(f"positive {int(labels[at])} appears twice in row {int(rows[at])}")
    pair = f"{int(labels[at + 1])} follows {int(labels[at])}"
    raise ValueError(f"positives must ascend within a row, but {pair} in row {int(rows[at])}")


def check_tensors(pointers: Tensor, labels: Tensor, like: Tensor, name: str) -> None:
    """Raises ValueError for dimensions, dtypes, a device or a number of rows that do not fit `like` [B, *]. Never waits."""
    for what, tensor in (("pointers", pointers), ("positives", labels)):
        if tensor.dim() != 1 or tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{what} must be 1-d int32 or int64, got {list(tensor.shape)} in {tensor.dtype}")
        if tensor.device != like.device:
            raise ValueError(f"{what} must be on the device of {name}, {like.device}, got {tensor.device}")
    if len(pointers) != len(like) + 1:
        raise ValueError(f"pointers must be [{len(like) + 1}] for {len(like)} rows of {name}, got [{len(pointers)}]")
