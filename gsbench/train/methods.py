"""Every method of the comparison as a model: encoder, output layer, what rewires it, and the optimizers.

Whatever is chosen from data (head, groups, clusters, biases) is chosen here, from the training documents alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsbench.errors import UserError
from gsbench.train import config, encoders
from gsbench.train.data.dataset import DataSet
from gsbench.train.outputs import DTYPES, Auxiliary, ChunkedDense, LinearOutput, Output, new_down, new_layer
from gskernels import Rewirer, Schedule
from gskernels.grouping import grouped, label_features
from gskernels.optim import SGD


@dataclass
class Model:
    """What is trained."""

    encoder: encoders.Encoder
    output: Output
    auxiliary: Auxiliary | None

    def modules(self) -> dict[str, nn.Module]:
        parts = {"encoder": self.encoder, "output": self.output, "auxiliary": self.auxiliary}
        return {name: part for name, part in parts.items() if part is not None}

    def to(self, device: torch.device) -> Model:
        for part in self.modules().values():
            part.to(device)
        return self

    def train(self, on: bool = True) -> Model:
        for part in self.modules().values():
            part.train(on)
        return self

    def output_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.output.parameters())


@dataclass(frozen=True)
class Orders:
    """What grouping found: the labels in the order of the layer, and Spartex's cluster of each label."""

    layer: Tensor | None  # [L]
    cluster: Tensor | None  # [L]


class TrainingLabels:
    """What may be known of the labels: their frequencies [L] and features [L, F] in these rows of the training data."""

    def __init__(self, data: DataSet, rows: NDArray[np.int64]) -> None:
        self._x, self._y = data.train.x, data.train.y.take(rows)
        self._rows = rows
        self.documents, self.labels = len(rows), data.labels
        self.frequency: NDArray[np.int64] = self._y.column_counts()

    def features(self) -> object:
        return label_features(self._x.take(self._rows).scipy(), self._y.scipy())


def find_orders(settings: config.Config, known: TrainingLabels, device: torch.device, cache: Path | None) -> Orders:
    """Group the labels as the configuration says."""
    out, frequency = settings.output, torch.from_numpy(known.frequency)
    features = None
    wants_layer = out.method in config.GROUPED
    if settings.auxiliary is not None or (wants_layer and out.grouping == "semantic"):
        features = known.features()
    layer = cluster = None
    if wants_layer:
        head = head_labels(out, known.labels)
        by_frequency = frequency.argsort(descending=True, stable=True)
        tail = by_frequency[head:].sort().values
        part = None if features is None else features[tail.numpy()]  # type: ignore[index]
        order = grouped(out.grouping, out.group_size, features=part, frequencies=frequency[tail], seed=settings.seed,
                        device=device, cache=cache)  # fmt: skip
        layer = torch.cat([by_frequency[:head], tail[order]])
    if settings.auxiliary is not None:
        size = math.ceil(known.labels / min(settings.auxiliary.clusters, known.labels))
        order = grouped("semantic", size, features=features, seed=settings.seed, device=device, cache=cache)
        cluster = torch.empty(known.labels, dtype=torch.int64)
        cluster[order] = torch.arange(known.labels) // size
    return Orders(layer, cluster)


def head_labels(settings: config.Output, labels: int) -> int:
    """H, at least 1 and at most L - 1; 0 for methods without a head."""
    return min(labels - 1, max(1, round(settings.head_share * labels))) if settings.method == "head_tail" else 0


def build(settings: config.Config, data: DataSet, orders: Orders, updates: int, mean_positives: float) -> Model:
    """A model on the CPU, its initial weights drawn from torch's global generator. Raises UserError.

    updates: of the whole training, for schedules. mean_positives: labels of a training document, for the bias.
    """
    encoder = encoders.build(settings.encoder, data)
    out, dim, views = settings.output, encoder.width, len(settings.encoder.dropouts)
    if out.method in config.GROUPED and out.group_size > data.labels - head_labels(out, data.labels):
        raise UserError(f"output.group_size = {out.group_size} exceeds the labels of the sparse layer of this data set")
    bias = math.log(mean_positives / max(1.0, data.labels - mean_positives)) if out.bias is None else out.bias
    if out.method == "chunked_dense":
        sgd = settings.output_optimizer
        output: Output = ChunkedDense(
            dim, data.labels, out.chunk_labels, DTYPES[out.weights], stochastic=sgd.update == "stochastic",
            weight_decay=sgd.weight_decay, seed=settings.seed,
        )  # fmt: skip
    else:
        try:
            layer = new_layer(out, dim, data.labels, orders.layer, head_labels(out, data.labels), settings.seed, views)
        except ValueError as e:
            raise UserError(f"output: {e}") from None
        down = new_down(out, dim, data.labels)
        output = LinearOutput(layer, data.labels, orders.layer, out.loss, out.fused, down)
    for name, parameter in output.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(parameter, bias)
    auxiliary = None
    if settings.auxiliary is not None and orders.cluster is not None:
        end = max(1, round(settings.auxiliary.until * updates))
        auxiliary = Auxiliary(dim, orders.cluster, settings.auxiliary.weight, end)
    return Model(encoder, output, auxiliary)


def new_optimizer(
    settings: config.Optimizer, parameters: Sequence[Tensor], seed: int, tail: Sequence[Tensor] = ()
) -> torch.optim.Optimizer:
    """Two groups where there is a tail; each has its `scale`, by which `set_rate` multiplies the rate, and its decay."""
    fused = True if all(parameter.is_cuda for parameter in parameters) else None
    late = {id(parameter) for parameter in tail}
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if id(p) not in late], "scale": 1.0}]
    if late:
        decay = settings.weight_decay if settings.tail_weight_decay is None else settings.tail_weight_decay
        groups.append({"params": list(tail), "scale": settings.tail, "weight_decay": decay})
    if settings.name == "sgd":
        if any(parameter.dtype == torch.bfloat16 for parameter in parameters):
            made: torch.optim.Optimizer = SGD(groups, settings.lr, momentum=settings.momentum, seed=seed,
                                              weight_decay=settings.weight_decay, update=settings.update)  # fmt: skip
        else:
            made = torch.optim.SGD(groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=fused)
    else:
        kind = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        made = kind(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
    return made


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def learning_rate(settings: config.Optimizer, update: int, updates: int) -> float:
    """A straight line up over the warm-up, then half a cosine down to zero, or constant."""
    warm = round(settings.warmup * updates)
    if update < warm:
        return settings.lr * (update + 1) / warm
    if settings.decay == "none":
        return settings.lr
    return settings.lr / 2 * (1 + math.cos(math.pi * (update - warm) / max(1, updates - warm)))


def new_rewirer(
    settings: config.Config, output: Output, optimizer: torch.optim.Optimizer | None, updates: int
) -> Rewirer | None:
    rewire = settings.rewire
    if rewire is None or optimizer is None or not isinstance(output, LinearOutput):
        return None
    schedule = Schedule(rewire.interval, rewire.fraction, max(1, round(rewire.until * updates)))
    return Rewirer(output.sparse, optimizer, schedule, score=rewire.score, drop=rewire.drop, grow=rewire.grow,
                   seed=settings.seed)  # fmt: skip


def blank_orders(settings: config.Config, labels: int) -> Orders:
    """Stand-ins of the right sizes, for a model whose orders a checkpoint brings."""
    return Orders(torch.arange(labels) if settings.output.method in config.GROUPED else None, None)

