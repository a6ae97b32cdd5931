"""Features of labels, one row each, dense or sparse, on a CPU or a GPU: what clustering needs of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class Rows(Protocol):
    """Features of the labels, one row each."""

    @property
    def width(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def take(self, order: Tensor) -> Rows: ...  # [n] rows

    def part(self, start: int, stop: int) -> Rows: ...

    def squares(self) -> Tensor: ...  # [n]: each row times itself

    def within(self, node: Tensor, nodes: int) -> tuple[_Sums, _Dots]: ...  # for rows that belong to nodes [n]


_Sums = Callable[[Tensor], Tensor]  # factor [n] -> [nodes, width]: factor * row, summed by node
_Dots = Callable[[Tensor], Tensor]  # [nodes, width] -> [n]: each row times its node's


class Dense:
    def __init__(self, values: Tensor) -> None:
        self.values = values  # [n, width] fp32

    @property
    def width(self) -> int:
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    def take(self, order: Tensor) -> Dense:
        return Dense(self.values[order])

    def part(self, start: int, stop: int) -> Dense:
        return Dense(self.values[start:stop])

    def squares(self) -> Tensor:
        return self.values.square().sum(1)

    def within(self, node: Tensor, nodes: int) -> tuple[_Sums, _Dots]:
        def sums(factor: Tensor) -> Tensor:
            return self.values.new_zeros(nodes, self.width).index_add_(0, node, self.values * factor[:, None])

        return sums, lambda directions: torch.einsum("nd,nd->n", self.values, directions[node])


class Sparse:
    """CSR [n, width]."""

    def __init__(self, pointers: Tensor, columns: Tensor, values: Tensor, width: int) -> None:
        self.pointers, self.columns, self.values, self._width = pointers, columns, values, width

    @property
    def width(self) -> int:
        return self._width

    @property
    def device(self) -> torch.device:
        return self.values.device

    def take(self, order: Tensor) -> Sparse:
        counts = self.pointers.diff()[order]
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        at = torch.arange(int(pointers[-1]), device=order.device)
        at += (self.pointers[order] - pointers[:-1]).repeat_interleave(counts, output_size=len(at))
        return Sparse(pointers, self.columns[at], self.values[at], self.width)

    def part(self, start: int, stop: int) -> Sparse:
        """Of the columns only those that occur in these rows, renumbered."""
        pointers = self.pointers[start : stop + 1]
        stored = slice(int(pointers[0]), int(pointers[-1]))
        columns = self.columns[stored]
        occurs = torch.zeros(self.width, dtype=torch.int64, device=self.device)
        occurs[columns] = 1
        number = occurs.cumsum(0) - 1
        return Sparse(pointers - pointers[0], number[columns], self.values[stored], max(1, int(occurs.sum())))

    def squares(self) -> Tensor:
        return self.values.new_zeros(len(self.pointers) - 1).scatter_add_(0, self._row(), self.values.square())

    def within(self, node: Tensor, nodes: int) -> tuple[_Sums, _Dots]:
        """As a matrix [n, nodes * width], a row's columns being those of its node. scipy's products are 20 times as
        fast as gathers and scatters on a CPU (8 M numbers, 2 cores)."""
        row = self._row()
        at = node[row] * self.width + self.columns
        if self.values.is_cuda:

            def sums(factor: Tensor) -> Tensor:
                total = self.values.new_zeros(nodes * self.width)
                return total.scatter_add_(0, at, self.values * factor[row]).view(nodes, self.width)

            def dots(directions: Tensor) -> Tensor:
                products = directions.reshape(-1)[at].mul_(self.values)
                return self.values.new_zeros(len(node)).scatter_add_(0, row, products)

            return sums, dots
        from scipy import sparse

        stored = (self.values.numpy(), at.numpy(), self.pointers.numpy())
        matrix = sparse.csr_array(stored, shape=(len(node), nodes * self.width))
        return (
            lambda factor: torch.from_numpy(matrix.T @ factor.numpy()).view(nodes, self.width),
            lambda directions: torch.from_numpy(matrix @ directions.reshape(-1).numpy()),
        )

    def _row(self) -> Tensor:
        return torch.arange(len(self.pointers) - 1, device=self.device).repeat_interleave(
            self.pointers.diff(), output_size=len(self.values)
        )


def as_rows(features: Any, device: torch.device) -> tuple[Rows, int]:
    """Raises ValueError as `semantic_order`."""
    shape = tuple(features.shape)
    if len(shape) != 2 or shape[0] < 1:
        raise ValueError(f"features must be [L, F] with at least one label, got {list(shape)}")
    if hasattr(features, "tocsr"):
        csr = features.tocsr()
        values = torch.as_tensor(np.asarray(csr.data, dtype=np.float32))
        indices = [torch.as_tensor(np.asarray(part, dtype=np.int64)).to(device) for part in (csr.indptr, csr.indices)]
        rows: Rows = Sparse(indices[0], indices[1], values.to(device), shape[1])
    else:
        values = torch.as_tensor(features).to(torch.float32)
        rows = Dense(values.to(device))
    if not bool(values.isfinite().all()):
        raise ValueError("features must be finite, but some are NaN or infinite")
    return rows, shape[0]
