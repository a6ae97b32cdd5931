"""Rankings of documents, their metrics, and a trained model from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gsbench.train import checkpoint, config, encoders, methods
from gsbench.train.data.csr import Csr
from gsbench.train.data.dataset import DataSet, Split
from gsbench.train.data.sources import load
from gsbench.train.metrics import KS, Metrics
from gskernels.positives import Positives


class Ranking(NamedTuple):
    rows: NDArray[np.int64]  # [B] of the split
    scores: NDArray[np.float32]  # [B, k], best first
    labels: NDArray[np.int64]  # [B, k]; -1 where there is none


@torch.no_grad()
def rank(
    model: methods.Model, split: Split, rows: NDArray[np.int64], k: int, *, batch: int, precision: str = "fp32"
) -> Iterator[Ranking]:
    """The k best labels of these documents, batch by batch. Pairs that the split filters do not come up."""
    device = next(model.encoder.parameters()).device
    model.train(False)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        exclude = None if split.filtered is None else positives_of(split.filtered.take(some), device)
        with autocast(device, precision):
            hidden = model.encoder(encoders.take(model.encoder, split, some).to(device).inputs)
            top = model.output.top(hidden, min(k, model.output.labels), exclude)
        scores, labels = (part.cpu().numpy() for part in top)
        short = k - labels.shape[1]
        if short > 0:
            scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
            labels = np.pad(labels, ((0, 0), (0, short)), constant_values=-1)
        yield Ranking(some, scores, labels)


def positives_of(lists: Csr, device: torch.device) -> Positives:
    labels = torch.from_numpy(lists.indices.astype(np.int64))
    return Positives(torch.from_numpy(lists.pointers).to(device), labels.to(device))


def evaluate(
    model: methods.Model, data: DataSet, split: Split, rows: NDArray[np.int64], *, batch: int, precision: str = "fp32",
    propensity: str = "default", ks: tuple[int, ...] = KS,
) -> dict[str, float]:  # fmt: skip
    """Metrics on these documents, in percent; frequencies and propensities are those of all training documents, held-out
    ones included, as is usual."""
    metrics = Metrics(data.train.y.column_counts(), data.train.rows, ks=ks, propensity=propensity)
    for ranking in rank(model, split, rows, max(ks), batch=batch, precision=precision):
        metrics.add(ranking.labels, split.y.take(ranking.rows))
    return metrics.result()


def autocast(device: torch.device, precision: str) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def open_data(settings: config.Data) -> DataSet:
    path, content = Path(settings.path), settings.content
    return load(path, settings.format, min_df=settings.min_df, ngrams=settings.ngrams, content=content)


def halves(data: DataSet, settings: config.Data) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rows to train on, rows held out to choose by) of the training documents: the same for every seed and method."""
    held = min(settings.validation_limit, round(settings.validation * data.train.rows))
    order = np.random.default_rng(0).permutation(data.train.rows)
    return np.sort(order[held:]), np.sort(order[:held])


class Trained(NamedTuple):
    model: methods.Model
    settings: config.Config
    data: DataSet
    state: dict[str, Any]


def open_trained(path: Path, data_path: Path | None = None, device: torch.device | None = None) -> Trained:
    """The model of a checkpoint (or of a run's best one) with its data set, ready to rank.

    Raises UserError for a checkpoint that is damaged, of a newer version, or of another label set than the data.
    """
    file = checkpoint.find(path)
    state = checkpoint.load(file)
    settings = config.validate(state["config"], str(file))
    where = settings.data if data_path is None else settings.data.model_copy(update={"path": str(data_path)})
    data = open_data(where)
    checkpoint.check_data(file, state, data.fingerprint, data.labels, data.folder)
    bare = settings.model_copy(update={"auxiliary": None})
    model = methods.build(bare, data, methods.blank_orders(bare, data.labels), 1, 1.0)
    for name, part in model.modules().items():
        checkpoint.restore(file, part, state["model"][name], name)
    return Trained(model.to(device or torch.device("cpu")).train(False), settings, data, state)

