"""Labels for documents that come a line at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsbench.errors import UserError
from gsbench.train.data.csr import Csr
from gsbench.train.data.tfidf import TfIdf
from gsbench.train.data.xmc import pairs
from gsbench.train.encoders import BagOfWords, Transformer, csr_inputs
from gsbench.train.evaluate import Trained, autocast


class Predictor:
    """Raises UserError where the model reads text but the data set has no vocabulary, or reads no features."""

    def __init__(self, trained: Trained, *, features: bool = False) -> None:
        self._trained, self._features = trained, features
        self._names = trained.data.label_names()
        encoder = trained.model.encoder
        if features and isinstance(encoder, Transformer):
            raise UserError("--features: this model's encoder is a transformer, which reads text")
        self._tfidf = None if features or isinstance(encoder, Transformer) else TfIdf.load(trained.data.folder)

    def answers(self, lines: Iterable[str], *, k: int, batch: int, source: str) -> Iterator[dict[str, Any]]:
        """{"labels": [...], "scores": [...]} for each line, in batches as they come; names of labels where there are any."""
        numbered, k = enumerate(lines, 1), min(k, self._trained.data.labels)
        while some := list(islice(numbered, batch)):
            inputs = self._inputs(some, source)
            yield from self._rank(inputs, k)

    @torch.no_grad()
    def _rank(self, inputs: dict[str, Tensor], k: int) -> Iterator[dict[str, Any]]:
        model = self._trained.model
        device = next(model.encoder.parameters()).device
        with autocast(device, self._trained.settings.training.precision):
            hidden = model.encoder({name: tensor.to(device) for name, tensor in inputs.items()})
            scores, labels = model.output.top(hidden, k)
        for row, best in zip(scores.tolist(), labels.tolist(), strict=True):
            names = best if self._names is None else [self._names[label] for label in best]
            yield {"labels": names, "scores": [round(score, 4) for score in row]}

    def _inputs(self, some: list[tuple[int, str]], source: str) -> dict[str, Tensor]:
        encoder = self._trained.model.encoder
        if isinstance(encoder, Transformer):
            return encoder.tokenized([line.strip() for _, line in some])
        assert isinstance(encoder, BagOfWords)
        columns, file = self._trained.data.features, Path(source)
        if self._tfidf is None:
            rows: list[Any] = [pairs(file, number, line.strip().encode(), columns, "feature") for number, line in some]
        else:
            rows = [self._tfidf.row(line) for _, line in some]
        pointers = np.cumsum([0, *(len(found) for found, _ in rows)])
        indices = np.concatenate([found for found, _ in rows]).astype(np.int32)
        values = np.concatenate([value for _, value in rows]).astype(np.float32)
        return csr_inputs(Csr(pointers, indices, values, columns))
