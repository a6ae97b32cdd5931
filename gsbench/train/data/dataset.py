"""A prepared data set: a folder that opens at once, whatever its size, and is complete or not there.

    dataset.json                     schema, name, source, counts
    {train,test}_x.*, {train,test}_y.*   features and labels (`csr`)
    test_filter.*                    pairs that evaluation leaves out, where the source has such a list
    {train,test}_text.{bytes,offsets}    the texts, where the source has them
    labels.txt, vocabulary.json      names of the labels, terms of the features, where there are any
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsbench.errors import UserError
from gsbench.train.data.csr import Csr, CsrWriter, open_csr
from gsbench.train.data.tfidf import TfIdf

SCHEMA = 1  # 1: first
MANIFEST, LABELS = "dataset.json", "labels.txt"
SPLITS = ("train", "test")


class Texts:
    """Texts on disk, by row."""

    def __init__(self, stem: Path) -> None:
        self._offsets = np.fromfile(stem.with_name(stem.name + ".offsets"), np.int64)
        file = stem.with_name(stem.name + ".bytes")
        self._bytes: Any = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        start, stop = self._offsets[row], self._offsets[row + 1]
        return bytes(self._bytes[start:stop]).decode()


@dataclass(frozen=True)
class Split:
    """Documents: features x [N, F], labels y [N, L] without values, and what else the source gave."""

    x: Csr
    y: Csr
    texts: Texts | None = None
    filtered: Csr | None = None  # [N, L]: pairs that are neither asked for nor counted in evaluation

    @property
    def rows(self) -> int:
        return self.x.rows


@dataclass(frozen=True)
class DataSet:
    """What a run trains on. Everything fitted or chosen looks at `train` alone."""

    folder: Path
    name: str
    train: Split
    test: Split
    fingerprint: str  # of the label set and the features: what a checkpoint must match

    @property
    def labels(self) -> int:
        return self.train.y.columns

    @property
    def features(self) -> int:
        return self.train.x.columns

    def label_names(self) -> list[str] | None:
        file = self.folder / LABELS
        return file.read_text().split("\n")[: self.labels] if file.exists() else None


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `out` only where the block ends without an error. Raises UserError if `out` exists."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another folder, or remove it first")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.new")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_texts(stem: Path, texts: Iterable[str]) -> None:
    end, offsets = 0, [0]
    with open(stem.with_name(stem.name + ".bytes"), "wb") as stream:
        for text in texts:
            end += stream.write(text.encode())
            offsets.append(end)
    np.array(offsets, np.int64).tofile(stem.with_name(stem.name + ".offsets"))


def write_features(folder: Path, split: str, vectoriser: TfIdf, texts: Iterable[str]) -> None:
    """Rows of TF-IDF of the texts as <split>_x."""
    with CsrWriter(folder / f"{split}_x", vectoriser.columns, values=True) as writer:
        for text in texts:
            writer.add(*vectoriser.row(text))


def write_labels(folder: Path, names: Iterable[str]) -> None:
    (folder / LABELS).write_text("".join(name.replace("\n", " ") + "\n" for name in names))


def write_manifest(folder: Path, name: str, source: dict[str, Any], features: int, labels: int) -> None:
    """dataset.json for the matrices that are in the folder. Call it last."""
    files = {stem: _counts(folder / stem) for stem in _stems(folder)}
    digest = hashlib.blake2b(f"{name} {features} {labels} {json.dumps(source, sort_keys=True)}".encode(), digest_size=12)
    for part in ("labels.txt", "vocabulary.json", "train_y.pointers", "train_y.indices"):
        if (folder / part).exists():
            with open(folder / part, "rb") as stream:
                while block := stream.read(1 << 24):
                    digest.update(block)
    manifest = {
        "schema": SCHEMA, "name": name, "source": source, "features": features, "labels": labels, "files": files,
        "fingerprint": digest.hexdigest(),
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def open_data_set(folder: Path) -> DataSet:
    """Raises UserError that names the file for anything but a whole prepared folder of this schema."""
    file = folder / MANIFEST
    try:
        data = json.loads(file.read_text())
        schema = data["schema"]
    except FileNotFoundError:
        raise UserError(f"{folder}: not a prepared data set (no {MANIFEST})") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: not a data set's manifest: {e}") from None
    if schema > SCHEMA:
        raise UserError(f"{file}: schema {schema} is newer than this gsbench reads ({SCHEMA}); upgrade gsbench")
    try:
        train, test = (_open_split(folder, name, data) for name in SPLITS)
        return DataSet(folder, data["name"], train, test, data["fingerprint"])
    except KeyError as e:
        raise UserError(f"{file}: lacks {e}; prepare the data set again") from None


def _open_split(folder: Path, name: str, data: dict[str, Any]) -> Split:
    def matrix(stem: str, columns: int, values: bool) -> Csr:
        counts = data["files"][stem]
        return open_csr(folder / stem, counts["rows"], columns, counts["stored"], values=values)

    x, y = matrix(f"{name}_x", data["features"], True), matrix(f"{name}_y", data["labels"], False)
    if x.rows != y.rows:
        raise UserError(f"{folder}: {name}_x has {x.rows} rows, {name}_y has {y.rows}; prepare the data set again")
    stem = folder / f"{name}_text"
    texts = Texts(stem) if stem.with_name(stem.name + ".offsets").exists() else None
    filtered = matrix(f"{name}_filter", data["labels"], False) if f"{name}_filter" in data["files"] else None
    return Split(x, y, texts, filtered)


def _stems(folder: Path) -> list[str]:
    return sorted(file.name.removesuffix(".pointers") for file in folder.glob("*.pointers"))


def _counts(stem: Path) -> dict[str, int]:
    pointers, indices = (stem.with_name(stem.name + suffix).stat().st_size for suffix in (".pointers", ".indices"))
    return {"rows": pointers // 8 - 1, "stored": indices // 4}


def statistics(data: DataSet) -> dict[str, Any]:
    """What `gsbench data stats` prints. Frequencies are those of the training data."""
    frequency = data.train.y.column_counts()
    seen = frequency[frequency > 0]
    lengths: dict[str, NDArray[np.int64]] = {name: np.diff(getattr(data, name).y.pointers) for name in SPLITS}
    return {
        "name": data.name, "train_documents": data.train.rows, "test_documents": data.test.rows,
        "features": data.features, "labels": data.labels, "labels_without_training_documents": int((frequency == 0).sum()),
        "labels_a_document": round(float(np.concatenate(list(lengths.values())).mean()), 2),
        "features_a_document": round(data.train.x.stored / max(1, data.train.rows), 1),
        "median_documents_a_label": float(np.median(seen)) if len(seen) else 0.0,
        "share_of_labels_with_at_most_5": round(float((frequency <= 5).mean()), 3),
        "most_frequent_label": int(frequency.max(initial=0)),
        "documents_without_labels": {name: int((n == 0).sum()) for name, n in lengths.items()},
        "documents_without_features": {
            name: int((np.diff(getattr(data, name).x.pointers) == 0).sum()) for name in SPLITS
        },
        "texts": data.train.texts is not None, "fingerprint": data.fingerprint,
    }  # fmt: skip
