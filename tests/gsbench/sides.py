"""Two sides of made-up runs, and what is judged of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gsbench.compare import Compared, Pair, compare
from gsbench.record import Record
from tests.gsbench import synthetic as s


def two(tmp_path: Path, base: Sequence[Record], new: Sequence[Record], **manifest: Any) -> tuple[Path, Path]:
    """A run a side; `manifest` changes the new one's."""
    return s.write(tmp_path / "base", base), s.write(tmp_path / "new", new, **manifest)


def judged(tmp_path: Path, base: Sequence[Record], new: Sequence[Record], **options: Any) -> Compared:
    return compare(*two(tmp_path, base, new), **options)


def only(found: Compared) -> Pair:
    (pair,) = found.pairs
    return pair


def replicates(folder: Path, times: Sequence[Sequence[float]], **changes: Any) -> Path:
    """A run for each row of times; a case (one more batch row each) for each column."""
    for i, row in enumerate(times):
        records = [s.timed("group_shared/triton", ms, s.point(batch=b + 1), **changes) for b, ms in enumerate(row)]
        s.write(folder / f"run-{i:02}", records)
    return folder


def scattered(seed: int, shift: float, processes: int, cases: int = 1) -> list[list[float]]:
    random = np.random.default_rng(seed)
    table: list[list[float]] = np.exp(random.normal(shift, 0.004, (processes, cases))).tolist()
    return table
