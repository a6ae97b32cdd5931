"""From a batch of documents to the inputs of the output layer, [B, D]."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gsbench.errors import UserError
from gsbench.train import config
from gsbench.train.data.csr import Csr
from gsbench.train.data.dataset import DataSet, Split


@dataclass(frozen=True)
class Batch:
    """Documents on their way through the model."""

    inputs: dict[str, Tensor]  # what the encoder takes
    pointers: Tensor  # [B + 1] int64
    positives: Tensor  # [positives] int64, ascending in each row

    @property
    def rows(self) -> int:
        return len(self.pointers) - 1

    def to(self, device: torch.device) -> Batch:
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(moved, self.pointers.to(device), self.positives.to(device))


class BagOfWords(nn.Module):
    """TF-IDF rows times an embedding, ReLU, dropout, then residual blocks: D -> D -> D with a layer norm before. In training
    a share of the features is left out, and the others grow by as much. Two dropouts make two views, side by side.

    Parameters: `embedding` [F, D], drawn from N(0, std^2); `bias` [D], zero.
    """

    def __init__(self, features: int, settings: config.Encoder) -> None:
        super().__init__()
        dim, self.dropouts, self.feature_dropout = settings.dim, settings.dropouts, settings.feature_dropout
        self.width = dim * len(self.dropouts)
        self.embedding = nn.EmbeddingBag(features, dim, mode="sum", include_last_offset=True)
        nn.init.normal_(self.embedding.weight, std=settings.std)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            for _ in range(settings.blocks)
        )

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """columns [n] and values [n] of rows pointers [B + 1] -> [B, width]."""
        values = F.dropout(inputs["values"], self.feature_dropout, self.training)
        summed = self.embedding(inputs["columns"], inputs["pointers"], per_sample_weights=values)
        x = F.relu(summed + self.bias)
        return side_by_side([self._view(x, dropout) for dropout in self.dropouts])

    def _view(self, x: Tensor, dropout: float) -> Tensor:
        x = F.dropout(x, dropout, self.training)
        for block in self.blocks:
            x = x + F.dropout(block(x), dropout, self.training)
        return x

    def batch_inputs(self, split: Split, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        return csr_inputs(split.x.take(rows))


class Transformer(nn.Module):
    """Any encoder of the transformers library, pooled to one vector a document. Reads the texts of the data set."""

    def __init__(self, settings: config.Encoder) -> None:
        super().__init__()
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            needed = "needs the transformers library: pip install 'gsbench[hf]'"
            raise UserError(f"encoder.kind = 'transformer' {needed}") from None
        try:
            self.model = AutoModel.from_pretrained(settings.model)
            self.tokenizer = AutoTokenizer.from_pretrained(settings.model)
        except (OSError, ValueError) as e:
            raise UserError(f"encoder.model = {settings.model!r}: {str(e).splitlines()[0]}") from None
        dim, self.pool = int(self.model.config.hidden_size), settings.pool
        self.max_tokens, self.dropouts = settings.max_tokens, settings.dropouts
        self.width = dim * len(self.dropouts)
        if dim != settings.dim:
            raise UserError(f"encoder.dim = {settings.dim}, but {settings.model} has a hidden size of {dim}")

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Tokens [B, T] -> [B, width]."""
        hidden = self.model(**inputs).last_hidden_state
        if self.pool == "first":
            pooled = hidden[:, 0]
        else:
            mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return side_by_side([F.dropout(pooled, dropout, self.training) for dropout in self.dropouts])

    def batch_inputs(self, split: Split, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        if split.texts is None:
            raise UserError("encoder.kind = 'transformer' needs texts, and this data set has features only")
        return self.tokenized([split.texts[int(row)] for row in rows])

    def tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        encoded: Any = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return dict(encoded)


Encoder = BagOfWords | Transformer  # `width`: of its output, D for each view


def side_by_side(views: list[Tensor]) -> Tensor:
    return views[0] if len(views) == 1 else torch.cat(views, 1)


def build(settings: config.Encoder, data: DataSet) -> Encoder:
    """Raises UserError where a transformer cannot be loaded, or the data set has no texts for it."""
    if settings.kind == "bag_of_words":
        return BagOfWords(data.features, settings)
    if data.train.texts is None:
        raise UserError(f"{data.folder}: has features only, and encoder.kind = 'transformer' needs texts")
    return Transformer(settings)


def csr_inputs(x: Csr) -> dict[str, Tensor]:
    values = np.ones(x.stored, np.float32) if x.values is None else x.values
    return {
        "columns": torch.from_numpy(x.indices.astype(np.int64)),
        "pointers": torch.from_numpy(x.pointers),
        "values": torch.from_numpy(values),
    }


def take(encoder: Encoder, split: Split, rows: NDArray[np.int64]) -> Batch:
    """The documents of these rows as a batch on the CPU."""
    y = split.y.take(rows)
    positives = torch.from_numpy(y.indices.astype(np.int64))
    return Batch(encoder.batch_inputs(split, rows), torch.from_numpy(y.pointers), positives)


def shuffled(rows: NDArray[np.int64], batch: int, seed: int, epoch: int, skip: int = 0) -> Iterator[NDArray[np.int64]]:
    """Batches of an epoch from the `skip`-th on, in an order of seed and epoch alone: a resumed run goes on in it."""
    order = rows[np.random.default_rng([seed, epoch]).permutation(len(rows))]
    for start in range(skip * batch, len(order), batch):
        yield order[start : start + batch]
