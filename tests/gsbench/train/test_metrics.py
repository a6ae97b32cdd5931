"""Metrics by hand, and against napkinXC where it is installed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from gsbench.train.data.csr import Csr
from gsbench.train.metrics import BUCKETS, PROPENSITIES, Metrics, buckets, inverse_propensity


def csr(rows: list[list[int]], columns: int) -> Csr:
    pointers = np.cumsum([0, *map(len, rows)])
    return Csr(pointers, np.array([label for row in rows for label in row], dtype=np.int32), None, columns)


def test_by_hand() -> None:
    frequency = np.array([100, 10, 10, 1, 1, 1])
    metrics = Metrics(frequency, 1000)
    metrics.add(np.array([[0, 3, 1, 5, 2], [2, 0, 4, 1, 3]]), csr([[1, 3], [2]], 6))
    metrics.add(np.array([[5, 4, 3, 2, 1]]), csr([[]], 6))
    found = metrics.result()
    q = inverse_propensity(frequency, 1000)
    assert found["P@1"] == pytest.approx(100 * (0 + 1 + 0) / 3)
    assert found["P@3"] == pytest.approx(100 * (2 / 3 + 1 / 3) / 3)
    assert found["P@5"] == pytest.approx(100 * (2 / 5 + 1 / 5) / 3)
    assert found["R@1"] == pytest.approx(100 * (0 + 1) / 3)
    assert found["R@3"] == pytest.approx(100 * (1 + 1) / 3)
    dcg, best = 1 / math.log2(3) + 1 / math.log2(4), 1 + 1 / math.log2(3)
    assert found["nDCG@3"] == pytest.approx(100 * (dcg / best + 1) / 3)
    assert found["PSP@1"] == pytest.approx(100 * q[2] / (q[3] + q[2]))
    assert found["PSP@3"] == pytest.approx(100 * (q[3] + q[1] + q[2]) / (q[3] + q[1] + q[2]))
    first = (q[3] / math.log2(3) + q[1] / math.log2(4)) / best
    ideal = (q[3] + q[1] / math.log2(3)) / best
    assert found["PSnDCG@3"] == pytest.approx(100 * (first + q[2]) / (ideal + q[2]))


def test_buckets_share_the_precision() -> None:
    frequency = np.array([5, 9, 1, 1, 3, 2, 1, 1, 1, 1])
    assert buckets(frequency).tolist() == [1, 0, 1, 2, 1, 1, 2, 2, 2, 2]
    metrics = Metrics(frequency, 50, ks=(1, 3))
    metrics.add(np.array([[1, 0, 9], [3, 1, 2]]), csr([[0, 1, 9], [2, 3]], 10))
    found = metrics.result()
    assert found["P@1/head"] == found["P@1/tail"] == 50
    assert found["P@3/head"] == pytest.approx(100 / 6)
    for k in (1, 3):
        assert sum(found[f"P@{k}/{name}"] for name in BUCKETS) == pytest.approx(found[f"P@{k}"])


@pytest.mark.parametrize(("name", "a", "b"), [("wikipedia", 0.5, 0.4), ("amazon", 0.6, 2.6), ("default", 0.55, 1.5)])
def test_propensities_of_the_literature(name: str, a: float, b: float) -> None:
    assert PROPENSITIES[name] == (a, b)
    c = (math.log(90) - 1) * (b + 1) ** a
    assert inverse_propensity(np.array([7]), 90, name)[0] == pytest.approx(1 + c * (7 + b) ** -a)


def test_nothing_predicted_and_nothing_asked() -> None:
    metrics = Metrics(np.array([3, 0, 1]), 9, ks=(1,))
    assert metrics.result()["P@1"] == 0
    metrics.add(np.array([[-1]]), csr([[2]], 3))  # -1 is not the last label
    metrics.add(np.array([[2]]), csr([[]], 3))
    assert set(metrics.result().values()) == {0.0}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("propensity", PROPENSITIES)
def test_against_napkinxc(seed: int, propensity: str) -> None:
    theirs: Any = pytest.importorskip("napkinxc.metrics")
    draw, labels, documents = np.random.default_rng(seed), 40, 300
    train = sparse.csr_matrix((draw.random((500, labels)) < 1 / np.arange(2, labels + 2)).astype(np.float32))
    truth = [sorted(draw.choice(labels, draw.integers(1, 8), replace=False).tolist()) for _ in range(documents)]
    ranking = np.stack([draw.permutation(labels)[:10] for _ in range(documents)])
    frequency = np.asarray((train > 0).sum(0)).ravel()
    metrics = Metrics(frequency, 500, ks=(1, 3, 5, 10), propensity=propensity)
    for start in range(0, documents, 64):
        metrics.add(ranking[start : start + 64], csr(truth[start : start + 64], labels))
    found = metrics.result()
    a, b = PROPENSITIES[propensity]
    q = inverse_propensity(frequency, 500, propensity)
    np.testing.assert_allclose(theirs.Jain_et_al_inverse_propensity(train, A=a, B=b), q, rtol=1e-6)  # it counts in fp32
    expected = {
        "P": theirs.precision_at_k(truth, ranking.tolist(), k=10),
        "R": theirs.recall_at_k(truth, ranking.tolist(), k=10),
        "nDCG": theirs.ndcg_at_k(truth, ranking.tolist(), k=10),
        "PSP": theirs.psprecision_at_k(truth, ranking.tolist(), q, k=10),
        "PSnDCG": theirs.psndcg_at_k(truth, ranking.tolist(), q, k=10),
    }
    for name, values in expected.items():
        for k in (1, 3, 5, 10):
            assert found[f"{name}@{k}"] == pytest.approx(100 * values[k - 1], rel=1e-9), f"{name}@{k}"
