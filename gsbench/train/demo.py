"""gsbench train --demo: what the methods cost and give, on synthetic data, in minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gsbench.train.data import synthetic
from gsbench.train.data.csr import Csr
from gsbench.train.data.dataset import DataSet, open_data_set
from gsbench.train.grid import Grid, grid_of
from gsbench.train.metrics import Metrics

LABELS, DOCUMENTS = 20_000, 30_000


def prepare(out: Path, labels: int = LABELS, documents: int = DOCUMENTS) -> DataSet:
    folder = out / "data"
    if not folder.exists():
        synthetic.prepare(folder, labels, documents=documents)
    return open_data_set(folder)


def grid(data: DataSet, epochs: int = 3) -> Grid:
    """Dense, FLOPs-matched bottleneck, group-shared and head-tail: one seed, the same settings for all."""
    sparse: dict[str, Any] = {"fan_in": 16, "group_size": 16}
    base = {
        "device": "cpu", "data": {"path": str(data.folder.resolve())}, "encoder": {"dim": 128, "dropout": 0.0},
        "training": {"epochs": epochs, "batch": 256},
    }  # fmt: skip
    methods = {
        "dense": {"output": {"method": "dense"}},
        "bottleneck": {"output": {"method": "bottleneck", **sparse}},
        "group_shared": {"output": {"method": "group_shared", **sparse}},
        "head_tail": {"output": {"method": "head_tail", **sparse}},
    }
    return grid_of({"name": "demo", "base": base, "methods": methods}, "the demo")


def popularity(data: DataSet) -> dict[str, float]:
    """Metrics of always naming the labels that are most frequent in training."""
    frequency = data.train.y.column_counts()
    metrics = Metrics(frequency, data.train.rows)
    best = np.argsort(-frequency, kind="stable")[:5]
    y: Csr = data.test.y.take(np.arange(data.test.rows))
    metrics.add(np.tile(best, (data.test.rows, 1)), y)
    return metrics.result()
