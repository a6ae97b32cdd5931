"""P@k, nDCG@k, R@k, PSP@k and PSnDCG@k, summed batch by batch, with the shares of head, torso and tail labels in P@k.

Definitions as in the XMC repository and napkinXC (Bhatia et al. 2016; Jain et al. 2016), t the labels of a document, r the
ranking, q the inverse propensities; every mean runs over all documents, those without labels counting zero:

    P@k      1/k   sum of [r_i in t], i <= k
    R@k      1/|t| sum of [r_i in t]
    nDCG@k   sum of [r_i in t] / log2(i + 1),   over that of the best ranking
    PSP@k    sum over documents of sum q_{r_i} [r_i in t],   over the same of the best ranking by q
    PSnDCG@k as PSP@k with each term / log2(i + 1) and each document / sum of 1 / log2(i + 1), i <= min(k, |t|)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsbench.train.data.csr import Csr

KS = (1, 3, 5)
PROPENSITIES = {"wikipedia": (0.5, 0.4), "amazon": (0.6, 2.6), "default": (0.55, 1.5)}  # Jain et al. 2016: (A, B)
BUCKETS = {"head": 0.1, "torso": 0.5, "tail": 1.0}  # up to this share of the labels, by falling training frequency


def inverse_propensity(frequency: NDArray[Any], documents: int, propensity: str = "default") -> NDArray[np.float64]:
    """[L]: 1 + C (N_l + B)^-A with C = (ln N - 1)(B + 1)^A, from counts [L] in N TRAINING documents."""
    a, b = PROPENSITIES[propensity]
    c = (math.log(documents) - 1) * (b + 1) ** a
    inverse: NDArray[np.float64] = 1 + c * np.power(frequency.astype(np.float64) + b, -a)
    return inverse


def buckets(frequency: NDArray[Any]) -> NDArray[np.int8]:
    """[L]: 0 for the head, 1 for the torso, 2 for the tail; ties go to the smaller label."""
    order = np.argsort(-frequency, kind="stable")
    ends = [round(share * len(frequency)) for share in BUCKETS.values()]
    bucket = np.empty(len(frequency), np.int8)
    bucket[order] = np.searchsorted(ends, np.arange(len(frequency)), side="right")
    return bucket


class Metrics:
    """Sums over documents; `result` may be asked at any time.

    Args:
        frequency: [L], occurrences of the labels in the TRAINING data, of which there are `documents`.
        ks: the k, ascending.
        propensity: one of `PROPENSITIES`.
    """

    def __init__(
        self, frequency: NDArray[Any], documents: int, *, ks: tuple[int, ...] = KS, propensity: str = "default"
    ) -> None:
        self.ks, self.documents = ks, 0
        self._q, self._bucket = inverse_propensity(frequency, documents, propensity), buckets(frequency)
        depth = max(ks)
        self._discount = 1 / np.log2(np.arange(depth) + 2)
        self._best_dcg = np.concatenate([np.ones(1), np.cumsum(self._discount)])  # of 0 labels: 1, to divide by
        self._sums = {name: np.zeros(depth) for name in ("p", "r", "ndcg", "psp", "psp_best", "psndcg", "psndcg_best")}
        self._hits = np.zeros((len(BUCKETS), depth))

    def add(self, ranking: NDArray[Any], targets: Csr) -> None:
        """A batch: ranking [B, >= max(ks)] labels, best first (-1: none); targets [B, L]."""
        depth, rows = max(self.ks), len(ranking)
        ranking = np.asarray(ranking[:, :depth], dtype=np.int64)
        counts = np.diff(targets.pointers)
        row = np.repeat(np.arange(rows), counts)
        labels = np.asarray(targets.indices, dtype=np.int64)
        hit = np.isin(np.arange(rows)[:, None] * targets.columns + ranking, row * targets.columns + labels)
        hit &= ranking >= 0
        gain = hit * self._q[ranking]
        best = np.zeros((rows, depth))  # the labels' q, in falling order
        order = np.lexsort((-self._q[labels], row))
        place = np.arange(len(row)) - np.repeat(np.asarray(targets.pointers[:-1]), counts)
        shown = place < depth
        best[row[shown], place[shown]] = self._q[labels[order]][shown]

        at = np.arange(1, depth + 1)
        norm = self._best_dcg[np.minimum(at[None], counts[:, None])]
        add = {
            "p": hit.cumsum(1) / at,
            "r": hit.cumsum(1) / np.maximum(counts, 1)[:, None],
            "ndcg": (hit * self._discount).cumsum(1) / norm,
            "psp": gain.cumsum(1),
            "psp_best": best.cumsum(1),
            "psndcg": (gain * self._discount).cumsum(1) / norm,
            "psndcg_best": (best * self._discount).cumsum(1) / norm,
        }
        for name, values in add.items():
            self._sums[name] += values.sum(0)
        for i in range(len(BUCKETS)):
            self._hits[i] += (hit & (self._bucket[ranking] == i)).sum(0).cumsum() / at
        self.documents += rows

    def result(self) -> dict[str, float]:
        """P@1, nDCG@1, ... in percent, and P@k/head + P@k/torso + P@k/tail = P@k."""
        n, s = max(1, self.documents), self._sums
        psp = s["psp"] / np.where(s["psp_best"] > 0, s["psp_best"], 1)
        psndcg = s["psndcg"] / np.where(s["psndcg_best"] > 0, s["psndcg_best"], 1)
        series = {"P": s["p"] / n, "nDCG": s["ndcg"] / n, "R": s["r"] / n, "PSP": psp, "PSnDCG": psndcg}
        found = {f"{name}@{k}": 100 * float(values[k - 1]) for name, values in series.items() for k in self.ks}
        for i, bucket in enumerate(BUCKETS):
            found |= {f"P@{k}/{bucket}": 100 * float(self._hits[i, k - 1]) / n for k in self.ks}
        return found
