"""Estimators on raw samples: distribution-free, nothing discarded."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gsbench.record import Timing

_Z95 = 1.959963984540054


def median_interval(samples: ArrayLike) -> tuple[float, float]:
    """95 % confidence interval of the median from order statistics.

    The ranks are the normal approximation of the binomial(n, 1/2) quantiles, rounded outwards (Conover 1999,
    3.2); below 6 samples the interval is the range, whose coverage is less than 95 %.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    low = max(0, math.floor((n - _Z95 * math.sqrt(n)) / 2) - 1)
    high = min(n - 1, math.ceil((n + _Z95 * math.sqrt(n)) / 2))
    return float(ordered[low]), float(ordered[high])


def half_width(samples: ArrayLike) -> float:
    """Half of the interval's width over the median (0.005 = 0.5 %)."""
    low, high = median_interval(samples)
    median = float(np.median(np.asarray(samples, dtype=np.float64)))
    return (high - low) / 2 / median if median > 0 else math.inf


def bimodal(samples: ArrayLike) -> bool:
    """Two clearly separate modes: Sarle's coefficient above 5/9 *and* a gap that splits off >= 10 % on either side.

    The gap must exceed both 2 % of the median and eight times the median spacing of the two halves' neighbours, so
    that one long tail does not count as a second mode.
    """
    x: NDArray[np.float64] = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(x)
    if n < 20 or x[0] == x[-1]:
        return False
    centred = x - x.mean()
    deviation = math.sqrt(float((centred**2).mean()))
    skew = float((centred**3).mean()) / deviation**3
    kurtosis = float((centred**4).mean()) / deviation**4
    if (skew**2 + 1) / kurtosis <= 5 / 9:
        return False
    gaps = np.diff(x)
    lowest, highest = n // 10, n - n // 10 - 1
    widest = lowest + int(np.argmax(gaps[lowest:highest]))
    return bool(gaps[widest] > max(0.02 * float(np.median(x)), 8 * float(np.median(gaps))))


def summarise(samples: ArrayLike, method: str, capped: bool) -> Timing:
    """The summary that a record carries. samples: milliseconds, at least one, finite and positive."""
    x: NDArray[np.float64] = np.asarray(samples, dtype=np.float64)
    if not len(x) or not np.isfinite(x).all() or (x < 0).any():
        raise ValueError("samples must be finite, not negative, and at least one")
    low, high = median_interval(x)
    p5, p20, p80, p95 = (float(q) for q in np.percentile(x, [5, 20, 80, 95]))
    return Timing(
        method, float(np.median(x)), low, high, p5, p20, p80, p95, float(x.min()), len(x), bimodal(x), capped,
    )  # fmt: skip
