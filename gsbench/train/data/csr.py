"""CSR matrices that stay on disk: written row by row, read through memory maps.

    <stem>.pointers   [rows + 1] int64
    <stem>.indices    [stored] int32, ascending in each row
    <stem>.values     [stored] fp32; absent where every value is 1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gsbench.errors import UserError


@dataclass(frozen=True)
class Csr:
    """A matrix [rows, columns]. Arrays may be memory maps: index them, do not copy them whole."""

    pointers: NDArray[np.int64]  # [rows + 1]
    indices: NDArray[np.int32]  # [stored]
    values: NDArray[np.float32] | None  # [stored]; None: all ones
    columns: int

    @property
    def rows(self) -> int:
        return len(self.pointers) - 1

    @property
    def stored(self) -> int:
        return len(self.indices)

    def take(self, rows: NDArray[np.int64]) -> Csr:
        """These rows, in this order, copied to memory."""
        starts, counts = self.pointers[rows], self.pointers[rows + 1] - self.pointers[rows]
        pointers = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        at = np.arange(pointers[-1]) + np.repeat(starts - pointers[:-1], counts)
        values = None if self.values is None else np.asarray(self.values[at])
        return Csr(pointers, np.asarray(self.indices[at]), values, self.columns)

    def column_counts(self) -> NDArray[np.int64]:
        """[columns]: rows that store each column."""
        total = np.zeros(self.columns, np.int64)
        for start in range(0, self.stored, 1 << 24):
            total += np.bincount(self.indices[start : start + (1 << 24)], minlength=self.columns)
        return total

    def scipy(self) -> Any:
        """As scipy.sparse.csr_matrix, without copying the indices and values."""
        from scipy import sparse

        values = np.ones(self.stored, np.float32) if self.values is None else self.values
        return sparse.csr_matrix((values, self.indices, self.pointers), shape=(self.rows, self.columns), copy=False)

    @classmethod
    def of(cls, matrix: Any) -> Csr:
        """From a scipy sparse matrix; columns ascend in each row, duplicates are summed."""
        csr = matrix.tocsr().copy()
        csr.sum_duplicates()
        values = csr.data.astype(np.float32)
        return cls(csr.indptr.astype(np.int64), csr.indices.astype(np.int32), values, csr.shape[1])

    def save(self, stem: Path) -> None:
        with CsrWriter(stem, self.columns, values=self.values is not None) as writer:
            for start in range(0, self.rows, 1 << 16):
                part = slice(*self.pointers[[start, min(start + (1 << 16), self.rows)]])
                counts = np.diff(self.pointers[start : start + (1 << 16) + 1])
                writer.extend(counts, self.indices[part], None if self.values is None else self.values[part])


class CsrWriter:
    """Appends rows to the files of one matrix; holds nothing but the current rows."""

    def __init__(self, stem: Path, columns: int, *, values: bool) -> None:
        self.columns, self.rows, self.stored = columns, 0, 0
        self._pointers = open(_file(stem, ".pointers"), "wb")  # noqa: SIM115 - closed in close()
        self._indices = open(_file(stem, ".indices"), "wb")  # noqa: SIM115
        self._values: IO[bytes] | None = open(_file(stem, ".values"), "wb") if values else None  # noqa: SIM115
        self._pointers.write(np.zeros(1, np.int64).tobytes())

    def add(self, indices: NDArray[Any], values: NDArray[Any] | None = None) -> None:
        """One row."""
        self.extend(np.array([len(indices)]), indices, values)

    def extend(self, counts: NDArray[Any], indices: NDArray[Any], values: NDArray[Any] | None = None) -> None:
        """Rows of `counts` entries each."""
        self._pointers.write((self.stored + np.cumsum(counts, dtype=np.int64)).tobytes())
        self._indices.write(np.ascontiguousarray(indices, np.int32).tobytes())
        if self._values is not None and values is not None:
            self._values.write(np.ascontiguousarray(values, np.float32).tobytes())
        self.rows += len(counts)
        self.stored += len(indices)

    def close(self) -> None:
        for stream in (self._pointers, self._indices, self._values):
            if stream is not None:
                stream.close()

    def __enter__(self) -> CsrWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_csr(stem: Path, rows: int, columns: int, stored: int, *, values: bool) -> Csr:
    """The matrix written at `stem`. Raises UserError where a file is missing or its length is not what it should be."""
    wanted = ((".pointers", np.int64, rows + 1), (".indices", np.int32, stored), (".values", np.float32, stored))
    arrays: list[Any] = []
    for suffix, dtype, length in wanted if values else wanted[:2]:
        file = _file(stem, suffix)
        if not file.exists() or file.stat().st_size != length * np.dtype(dtype).itemsize:
            found = f"{file.stat().st_size} bytes" if file.exists() else "nothing"
            expected = length * np.dtype(dtype).itemsize
            raise UserError(f"{file}: expected {expected} bytes, found {found}; prepare the data set again")
        arrays.append(np.memmap(file, dtype, "r") if length else np.empty(0, dtype))
    return Csr(arrays[0], arrays[1], arrays[2] if values else None, columns)


def _file(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)
