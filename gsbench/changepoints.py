"""Where the level of a short series of numbers changes: binary segmentation with a permutation test. Pure numpy.

The split with the largest difference of means, weighed by the lengths of its sides (the CUSUM statistic; Page 1954,
Biometrika 41, 100), is kept if so large a one is rare among shuffles of the same numbers; then either side is split again
(Scott & Knott 1974, Biometrics 30, 507). Shuffling assumes that the numbers are exchangeable where nothing changes, and
nothing about their distribution: one wild run is as wild in every shuffle. Fewer than about ten numbers never give a change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEAST = 3  # numbers between two changes
_SCREEN, _SHUFFLES = 199, 9999  # most series have no change, and a few shuffles tell
_SCREENED = 0.05


def change_points(values: ArrayLike, level: float = 0.01, seed: int = 0) -> list[int]:
    """Positions at which another level begins, in order; each with a p-value of at most `level` (0.0001 at the least).

    values: one series, finite. Raises ValueError for anything else.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not np.isfinite(x).all():
        raise ValueError("expected one series of finite numbers")
    return sorted(_split(x, 0, level, np.random.default_rng(seed)))


def _split(x: Floats, offset: int, level: float, random: np.random.Generator) -> list[int]:
    if len(x) < 2 * LEAST or x.min() == x.max():
        return []
    observed = _cusum(x[None])[0]
    at = int(np.argmax(observed)) + LEAST
    if not _rare(x, observed.max(), level, random):
        return []
    return [*_split(x[:at], offset, level, random), offset + at, *_split(x[at:], offset + at, level, random)]


def _rare(x: Floats, largest: float, level: float, random: np.random.Generator) -> bool:
    for shuffles, limit in ((_SCREEN, max(level, _SCREENED)), (_SHUFFLES, level)):
        shuffled = random.permuted(np.broadcast_to(x, (shuffles, len(x))), axis=1)
        as_large = int((_cusum(shuffled).max(axis=1) >= largest * (1 - 1e-12)).sum())
        if (1 + as_large) / (1 + shuffles) > limit:
            return False
    return True


def _cusum(rows: Floats) -> Floats:
    """|mean of the left - mean of the right| * sqrt(k (n - k) / n) for each split k, of each row."""
    n = rows.shape[1]
    k = np.arange(LEAST, n - LEAST + 1)
    left = np.cumsum(rows, axis=1)[:, k - 1]
    total = rows.sum(axis=1, keepdims=True)
    return np.asarray(np.abs(left / k - (total - left) / (n - k)) * np.sqrt(k * (n - k) / n))
