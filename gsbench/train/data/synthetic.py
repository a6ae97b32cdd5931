"""A long-tailed data set of any size: Zipf label frequencies, labels in latent clusters whose words they share.

Label l belongs to cluster ``cluster(l)``; it has words of its own and shares its cluster's. A document draws a first
label by frequency and others from the same cluster, then words of its labels, of their cluster and of the language as
a whole. Which words belong to a label is a hash of its number, so that 10^7 labels need no table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsbench.errors import UserError
from gsbench.train.data.csr import CsrWriter
from gsbench.train.data.dataset import building, write_manifest

CLUSTER = 32  # labels of a latent cluster, on average
OWN_WORDS, CLUSTER_WORDS = 4, 12
_SHIFT = 50.0  # Zipf-Mandelbrot: frequency of rank r is (r + shift)^-exponent, so that no label is in every document
_BLOCK = 1 << 14  # documents drawn at once


def prepare(
    out: Path, labels: int, *, documents: int | None = None, features: int | None = None, exponent: float = 1.0,
    seed: int = 0,
) -> None:  # fmt: skip
    """Write a prepared data set of `labels` labels; by default 2 training documents a label and 1/8 of that to test.

    Raises UserError for sizes that are too small to mean anything.
    """
    documents = 2 * labels if documents is None else documents
    features = max(1000, min(labels, 1 << 20)) if features is None else features
    if labels < 2 * CLUSTER or documents < 16 or features < 200:
        raise UserError(
            f"synthetic data needs at least {2 * CLUSTER} labels, 16 documents and 200 features, "
            f"got {labels}, {documents} and {features}"
        )
    world = _World(labels, features, exponent, seed)
    with building(out) as folder:
        for split, rows, stream in (("train", documents, 1), ("test", max(1, documents // 8), 2)):
            x = CsrWriter(folder / f"{split}_x", features, values=True)
            y = CsrWriter(folder / f"{split}_y", labels, values=False)
            with x, y:
                for block, start in enumerate(range(0, rows, _BLOCK)):
                    draw = np.random.default_rng([seed, stream, block])
                    world.write(draw, min(_BLOCK, rows - start), x, y)
        source = {
            "kind": "synthetic", "labels": labels, "documents": documents, "features": features, "exponent": exponent,
            "seed": seed,
        }  # fmt: skip
        write_manifest(folder, f"synthetic-{labels}", source, features, labels)


class _World:
    def __init__(self, labels: int, features: int, exponent: float, seed: int) -> None:
        self.labels, self.features, self.seed = labels, features, seed
        self.clusters = labels // CLUSTER
        draw = np.random.default_rng([seed, 0])
        mass = np.cumsum((np.arange(labels) + _SHIFT) ** -exponent)
        self._cumulative = mass / mass[-1]
        self._of_rank = draw.permutation(labels)  # so that numbers say nothing of frequency
        common = np.cumsum(1.0 / (np.arange(features) + 20.0))
        self._common = common / common[-1]

    def frequent(self, draw: np.random.Generator, n: int) -> NDArray[np.int64]:
        rank = np.searchsorted(self._cumulative, draw.random(n)).clip(max=self.labels - 1)
        label: NDArray[np.int64] = self._of_rank[rank]
        return label

    def words(self, kind: int, owner: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
        """The which-th word of a label (kind 0) or of a cluster (kind 1)."""
        key = _mixed((owner * 64 + which).astype(np.uint64) * np.uint64(2) + np.uint64(kind + (self.seed % 2**15 << 48)))
        word: NDArray[np.int64] = (key % np.uint64(self.features)).astype(np.int64)
        return word

    def write(self, draw: np.random.Generator, rows: int, x: CsrWriter, y: CsrWriter) -> None:
        first = self.frequent(draw, rows)
        others = draw.integers(0, 4, rows)  # 0 to 3 more labels of the cluster
        row = np.concatenate([np.arange(rows), np.repeat(np.arange(rows), others)])
        # A cluster is a residue class; ranks are permuted, so each has frequent and rare labels.
        members = max(1, self.labels // self.clusters)
        cluster = first % self.clusters
        drawn = np.repeat(cluster, others) + self.clusters * (members * draw.random(others.sum()) ** 2).astype(np.int64)
        label = np.concatenate([first, drawn])
        own = np.repeat(np.arange(len(label)), 3)
        of_labels = self.words(0, label[own], draw.integers(0, OWN_WORDS, len(own)))
        shared = np.repeat(np.arange(rows), 5)
        of_cluster = self.words(1, cluster[shared], draw.integers(0, CLUSTER_WORDS, len(shared)))
        noise = np.repeat(np.arange(rows), 5)
        common = np.searchsorted(self._common, draw.random(len(noise))).clip(max=self.features - 1)
        y.extend(*_rows_of(row, label, rows, self.labels))
        counts, columns = _rows_of(
            np.concatenate([row[own], shared, noise]), np.concatenate([of_labels, of_cluster, common]), rows, self.features
        )
        x.extend(counts, columns, np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts))


def _rows_of(row: NDArray[Any], column: NDArray[Any], rows: int, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(entries of each row, ascending distinct columns)."""
    key = np.unique(row.astype(np.int64) * columns + column)
    return np.bincount(key // columns, minlength=rows), key % columns


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al. 2014): neighbours become unrelated."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    key ^= key >> np.uint64(31)
    return key
