"""Estimators of the difference between two sides, over many cases at once: pure numpy, natural logarithms.

The unit of evidence is the process: the scatter of medians between processes is larger than within one. What a
process left behind therefore enters whole, as its median, and processes are what is resampled. Resampling the
rounds within a process as well would count their scatter twice, for the medians already carry it (Davison & Hinkley
1997, Bootstrap Methods and their Application, 3.8; Ren et al. 2010, J. Applied Statistics 37, 1487). Simulated, five
processes a side, "95 %" intervals: both levels resampled cover 94.3 % where processes differ and 99.8 % where they do
not; processes alone 94.6 to 95.6 % in either case.

With one process a side nothing can be said about the scatter between processes: `from_intervals` gives the bounds
of that one process, and `Estimates.processes` lets the caller say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Verdict = Literal["slower", "unclear", "same", "faster"]
VERDICTS: tuple[Verdict, ...] = ("slower", "unclear", "same", "faster")  # the worst first
LEVEL = 0.05
ENOUGH_PROCESSES = 5  # a side; a verdict of fewer is provisional

FEWEST_ROUNDS = 5
_MOST_ROUNDS = 200
_Z = 1.959963984540054
_CASES_AT_ONCE = 1000  # 2,000 resamples of these take 16 MB


@dataclass(frozen=True)
class Estimates:
    """One entry a case: log(new / base), its 95 % interval, the degrees of freedom behind it, processes a side."""

    log_ratio: Floats
    low: Floats
    high: Floats
    freedom: Floats  # inf where the interval is not of Student's kind
    processes: int  # on the side that has fewer

    def beyond(self, bound: ArrayLike) -> Floats:
        """p of "the ratio is within -+ bound (logs)", from the tail towards the estimate, doubled.

        Consistent with the interval: p <= 0.05 exactly where it lies wholly beyond the bound.
        """
        towards = np.where(self.log_ratio >= 0, self.log_ratio - self.low, self.high - self.log_ratio)
        distance = np.abs(self.log_ratio) - np.asarray(bound, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations = np.where(distance > 0, distance / towards, 0.0)
        return np.where(distance > 0, 2 * _upper_tail(deviations * _critical(self.freedom), self.freedom), 1.0)


def hierarchical_bootstrap(
    base: ArrayLike, new: ArrayLike, *, paired: bool = False, seed: int = 0, resamples: int = 2000
) -> Estimates:
    """Mean over processes of the log ratio of medians, by resampling processes with replacement.

    base, new: medians in any one unit, [cases, processes], finite and positive; two or more processes a side, as many
    on both if `paired` (process i of new ran next to process i of base). The percentile interval of so few processes is
    too narrow (84 to 88 % of five, simulated): deviations are rescaled by sqrt(n / (n - 1)) and the interval by Student's t
    over the normal quantile (Hesterberg 2015, The American Statistician 69, 371), with Welch's degrees of freedom
    where the sides are not paired. Raises ValueError for other shapes and values.
    """
    b, n = _logs(base), _logs(new)
    if b.shape[0] != n.shape[0]:
        raise ValueError(f"{b.shape[0]} cases against {n.shape[0]}")
    if min(b.shape[1], n.shape[1]) < 2:
        raise ValueError("a side has fewer than two processes: nothing to resample")
    if paired and b.shape != n.shape:
        raise ValueError(f"pairs of {b.shape[1]} and {n.shape[1]} processes")
    sides = [n - b] if paired else [n, b]
    random = np.random.default_rng(seed)
    weights = [random.multinomial(k, [1 / k] * k, size=resamples) / k for k in (side.shape[1] for side in sides)]
    variances = np.stack([side.var(axis=1, ddof=1) / side.shape[1] for side in sides])
    freedom = _welch(variances, np.array([[side.shape[1] - 1.0] for side in sides]))
    low, high = np.empty(len(b)), np.empty(len(b))
    for start in range(0, len(b), _CASES_AT_ONCE):
        rows = slice(start, start + _CASES_AT_ONCE)
        deviations = _resampled(sides[0][rows], weights[0])
        if not paired:
            deviations = deviations - _resampled(sides[1][rows], weights[1])
        low[rows], high[rows] = np.quantile(deviations, [LEVEL / 2, 1 - LEVEL / 2], axis=1)
    centre = n.mean(axis=1) - b.mean(axis=1)
    stretch = _critical(freedom) / _Z
    return Estimates(centre, centre + stretch * low, centre + stretch * high, freedom, min(b.shape[1], n.shape[1]))


def log_ratio_of_turns(base: ArrayLike, new: ArrayLike) -> float | None:
    """log(new / base) of two processes that took turns; base, new: the median of each round, in order. None where they
    share fewer than FEWEST_ROUNDS rounds: then the ratio of their medians says more.

    The Hodges-Lehmann estimate (1963, Annals of Mathematical Statistics 34, 598) over rounds: the median of the means of
    any two of their log ratios. What disturbs a machine for a second or two is in both sides of a round and cancels; and
    where samples fall into several modes it scatters less than a ratio of medians. Measured on two CPU cores, twenty
    rounds: 5.2 % between processes of the same code, where ratios of medians scatter by 7.9 %.
    """
    b, n = (np.asarray(side, dtype=np.float64) for side in (base, new))
    count = min(len(b), len(n))
    if count < FEWEST_ROUNDS:
        return None
    (ratios,) = _logs(n[None, :count]) - _logs(b[None, :count])
    together = -(-count // _MOST_ROUNDS)  # neighbouring rounds, where there are very many
    ratios = np.array([part.mean() for part in np.array_split(ratios, -(-count // together))])
    first, second = np.triu_indices(len(ratios))
    return float(np.median((ratios[first] + ratios[second]) / 2))


def from_intervals(base: ArrayLike, new: ArrayLike) -> Estimates:
    """Of one process a side: both 95 % intervals of the median combined conservatively (the ratio of far ends).

    base, new: [cases, 3]: median, low and high end, finite and positive. Covers the ratio of *these two processes*
    more often than 95 % (about 99.4 %), that of the code less often: there is no scatter between processes in it.
    """
    b, n = _logs(base), _logs(new)
    if b.shape != n.shape or b.shape[1] != 3:
        raise ValueError(f"expected [cases, 3] on both sides, not {b.shape} and {n.shape}")
    return Estimates(n[:, 0] - b[:, 0], n[:, 1] - b[:, 2], n[:, 2] - b[:, 1], np.full(len(b), np.inf), 1)


def noise(medians: ArrayLike) -> Floats:
    """A/A noise of each case in logs: by how much two means of so many processes of one side would differ, 95 %.

    medians: [cases, processes], two processes or more.
    """
    logs = _logs(medians)
    critical = _critical(np.full(len(logs), logs.shape[1] - 1.0))
    return np.asarray(critical * math.sqrt(2 / logs.shape[1]) * logs.std(axis=1, ddof=1))


def detectable(base: ArrayLike, new: ArrayLike, bound: float, *, paired: bool = False, power: float = 0.8) -> Floats:
    """Smallest true slowdown (log) of each case that so many processes would call slower with this probability.

    base, new: as in `hierarchical_bootstrap`; their scatter is what counts, not their difference. By Student's t (Cohen
    1988, Statistical Power Analysis, 2.4), before the control of false discoveries, which asks for a little more.
    """
    from scipy.special import stdtrit

    b, n = _logs(base), _logs(new)
    sides = [n - b] if paired else [n, b]
    variances = np.stack([side.var(axis=1, ddof=1) / side.shape[1] for side in sides])
    freedom = _welch(variances, np.array([[side.shape[1] - 1.0] for side in sides]))
    error = np.sqrt(variances.sum(axis=0))
    return np.asarray(bound + (stdtrit(freedom, 1 - LEVEL / 2) + stdtrit(freedom, power)) * error)


def rate_interval(found: int, total: int) -> tuple[float, float]:
    """95 % interval of a rate (Clopper & Pearson 1934, Biometrika 26, 404): never too short. total: at least one."""
    from scipy.special import betaincinv

    low = 0.0 if found == 0 else float(betaincinv(found, total - found + 1, LEVEL / 2))
    high = 1.0 if found == total else float(betaincinv(found + 1, total - found, 1 - LEVEL / 2))
    return low, high


def false_discovery(p: ArrayLike) -> Floats:
    """Benjamini-Hochberg adjusted p-values (1995, J. Royal Statistical Society B 57, 289).

    As scipy.stats.false_discovery_control, whose import alone would take longer than the comparison.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)[::-1]
    scaled = values[order] * len(values) / np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return adjusted


def verdicts(estimates: Estimates, bound: ArrayLike, adjusted: ArrayLike, same_within: ArrayLike) -> list[Verdict]:
    """Slower, faster: the interval lies wholly beyond -+ bound (logs), and the p-value adjusted over all cases is at
    most 5 %. Same: it lies within -+ same_within (logs), what the user called the same: a case's own noise, which may
    widen `bound`, withholds verdicts and never grants one. Anything else is unclear: never a coin toss."""
    limit = np.broadcast_to(np.asarray(bound, dtype=np.float64), estimates.low.shape)
    real = np.asarray(adjusted, dtype=np.float64) <= LEVEL
    within = np.broadcast_to(np.asarray(same_within, dtype=np.float64), estimates.low.shape)
    conditions = [
        (estimates.low > limit) & real,
        (estimates.high < -limit) & real,
        (estimates.low >= -within) & (estimates.high <= within),
    ]
    names: list[Verdict] = ["slower", "faster", "same"]
    return [names[i] if i < 3 else "unclear" for i in np.select(conditions, [0, 1, 2], default=3)]


def geometric_mean(log_ratio: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float, float]:
    """Ratio over a suite and its interval: the geometric means of the ratios and of the intervals' ends.

    Covers at least 95 % however strongly the errors of the cases are correlated (cases of one process are): the
    deviation of a mean is at most the mean of the deviations. Raises ValueError where there is no case.
    """
    ends = [np.asarray(x, dtype=np.float64) for x in (log_ratio, low, high)]
    if not len(ends[0]):
        raise ValueError("no case to take the mean of")
    centre, least, most = (math.exp(float(x.mean())) for x in ends)
    return centre, least, most


# ---- arithmetic -------------------------------------------------------------------------------------------------


def _logs(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"expected two dimensions, not {x.ndim}")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise ValueError("times must be finite and positive")
    return np.asarray(np.log(x))


def _resampled(side: Floats, weights: Floats) -> Floats:
    """Deviations of resampled means from the mean, [cases, resamples], with the variance of an unbiased estimate."""
    count = side.shape[1]
    centred = (side - side.mean(axis=1, keepdims=True)) * math.sqrt(count / (count - 1))
    return np.asarray(centred @ weights.T)


def _welch(variances: Floats, freedom: Floats) -> Floats:
    """Welch-Satterthwaite degrees of freedom of a sum of variances [sides, cases]; without any scatter, the fewest."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = variances.sum(axis=0) ** 2 / (variances**2 / freedom).sum(axis=0)
    return np.asarray(np.where(np.isfinite(found), found, freedom.min()), dtype=np.float64)


def _critical(freedom: Floats) -> Floats:
    """97.5 % quantile of Student's t; of the normal where the degrees of freedom are infinite."""
    critical = np.full(freedom.shape, _Z)
    finite = np.isfinite(freedom)
    if finite.any():
        from scipy.special import stdtrit

        critical[finite] = stdtrit(freedom[finite], 1 - LEVEL / 2)
    return critical


def _upper_tail(x: Floats, freedom: Floats) -> Floats:
    """P(T > x) of Student's t; of the normal where the degrees of freedom are infinite."""
    tail = np.array([math.erfc(value / math.sqrt(2)) / 2 for value in x])
    finite = np.isfinite(freedom)
    if finite.any():
        from scipy.special import stdtr

        tail[finite] = stdtr(freedom[finite], -x[finite])
    return tail
