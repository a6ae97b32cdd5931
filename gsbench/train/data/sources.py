"""From whatever a folder holds to a prepared data set: as it is, or read once and kept beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gsbench.errors import UserError
from gsbench.train.data import raw, xmc
from gsbench.train.data.csr import CsrWriter
from gsbench.train.data.dataset import (
    MANIFEST,
    SPLITS,
    DataSet,
    building,
    open_data_set,
    write_features,
    write_labels,
    write_manifest,
    write_texts,
)  # fmt: skip
from gsbench.train.data.tfidf import TfIdf

FORMATS = ("auto", "prepared", "xmc", "pair", "raw")
_SHORT = {"train": "trn", "test": "tst"}
_READERS = 1  # raised when a reader would make something else of the same files
FILTERS = {"train": "filter_labels_train.txt", "test": "filter_labels_test.txt"}


def load(
    folder: Path, format_: str = "auto", *, min_df: int = 2, ngrams: int = 2, content: bool = True
) -> DataSet:
    """The data set of a folder: prepared already, or read now and kept in <folder>/.gsbench/ for the next time.

    - xmc: train.txt and test.txt in the one-file form
    - pair: {trn,tst}_X_Xf.txt and {trn,tst}_X_Y.txt
    - raw: {trn,tst,lbl}.json[.gz]; features are TF-IDF fitted on the training texts (min_df, ngrams; content: not only
      titles)

    filter_labels_{train,test}.txt are used where they are: the pairs are no targets, and evaluation leaves them out.
    What is kept is found again by the names, sizes and times of the files. Raises UserError.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of data")
    if format_ == "auto":
        format_ = _detected(folder)
    if format_ == "prepared":
        return open_data_set(folder)
    settings = {"min_df": min_df, "ngrams": ngrams, "content": content} if format_ == "raw" else {}
    files = _files(folder, format_)
    source = {"kind": format_, **settings, "files": {f.name: [f.stat().st_size, f.stat().st_mtime_ns] for f in files}}
    key = hashlib.blake2b(json.dumps([_READERS, source], sort_keys=True).encode(), digest_size=8).hexdigest()
    kept = folder / ".gsbench" / key
    if not (kept / MANIFEST).exists():
        read: dict[str, Callable[[Path, Path], tuple[int, int]]] = {
            "xmc": _read_xmc, "pair": _read_pair, "raw": lambda f, t: _read_raw(f, t, min_df, ngrams, content),
        }  # fmt: skip
        with building(kept) as target:
            features, labels = read[format_](folder, target)
            write_manifest(target, folder.resolve().name, source, features, labels)
    return open_data_set(kept)


def _detected(folder: Path) -> str:
    marks = {"prepared": MANIFEST, "pair": "trn_X_Xf.txt", "xmc": "train.txt"}
    for format_, name in marks.items():
        if (folder / name).exists():
            return format_
    if raw.find(folder, "trn"):
        return "raw"
    raise UserError(f"{folder}: no data set here; known are {', '.join(marks.values())} and trn.json[.gz]")


def _files(folder: Path, format_: str) -> list[Path]:
    """Every file that is read, in order. Raises UserError where one is missing."""
    if format_ == "xmc":
        needed = [folder / f"{split}.txt" for split in SPLITS]
    elif format_ == "pair":
        needed = [folder / f"{short}_{part}.txt" for short in _SHORT.values() for part in ("X_Xf", "X_Y")]
    elif format_ == "raw":
        needed = [raw.find(folder, name) or folder / f"{name}.json" for name in (*_SHORT.values(), "lbl")]
    else:
        raise UserError(f"data format {format_!r}: allowed are {', '.join(FORMATS)}")
    for file in needed:
        if not file.exists():
            raise UserError(f"{file}: no such file, and the {format_} format needs it")
    return needed + [file for name in FILTERS.values() if (file := folder / name).exists()]


def _same(what: str, first: Path, one: int, second: Path, other: int) -> None:
    if one != other:
        raise UserError(f"{second}:1: {other} {what}, but {first} has {one}")


def _read_xmc(folder: Path, target: Path) -> tuple[int, int]:
    files = [folder / f"{split}.txt" for split in SPLITS]
    train, test = (xmc.read_documents(file, target, split) for file, split in zip(files, SPLITS, strict=True))
    _same("features", files[0], train.features, files[1], test.features)
    _same("labels", files[0], train.labels, files[1], test.labels)
    for split, rows in (("train", train.rows), ("test", test.rows)):
        _apply_filter(folder, target, split, rows, train.labels)
    return train.features, train.labels


def _read_pair(folder: Path, target: Path) -> tuple[int, int]:
    sizes = []
    for split, short in _SHORT.items():
        x_file, y_file = folder / f"{short}_X_Xf.txt", folder / f"{short}_X_Y.txt"
        x = xmc.read_matrix(x_file, target / f"{split}_x", values=True, what="feature")
        y = xmc.read_matrix(y_file, target / f"{split}_y", values=False, what="label")
        _same("rows", x_file, x.rows, y_file, y.rows)
        sizes.append((x.columns, y.columns))
        _apply_filter(folder, target, split, x.rows, y.columns)
    _same("features", folder / "trn_X_Xf.txt", sizes[0][0], folder / "tst_X_Xf.txt", sizes[1][0])
    _same("labels", folder / "trn_X_Y.txt", sizes[0][1], folder / "tst_X_Y.txt", sizes[1][1])
    return sizes[0]


def _read_raw(folder: Path, target: Path, min_df: int, ngrams: int, content: bool) -> tuple[int, int]:
    train_file, test_file, label_file = _files(folder, "raw")[:3]
    titles = list(raw.read_titles(label_file))
    write_labels(target, titles)
    for split, file in (("train", train_file), ("test", test_file)):
        rows = 0
        with CsrWriter(target / f"{split}_y", len(titles), values=False) as writer:

            def texts(file: Path = file, writer: CsrWriter = writer) -> Any:
                for document in raw.read_documents(file, len(titles), content=content):
                    writer.add(np.array(document.labels))
                    yield document.text

            write_texts(target / f"{split}_text", texts())
            rows = writer.rows
        _apply_filter(folder, target, split, rows, len(titles))

    def again(file: Path) -> Any:
        return (document.text for document in raw.read_documents(file, len(titles), content=content))

    vectoriser = TfIdf.fit(again(train_file), min_df=min_df, ngrams=ngrams)
    vectoriser.save(target)
    write_features(target, "train", vectoriser, again(train_file))
    write_features(target, "test", vectoriser, again(test_file))
    return vectoriser.columns, len(titles)


def _apply_filter(folder: Path, target: Path, split: str, rows: int, labels: int) -> None:
    """Take the filter's pairs out of <split>_y, and keep them as <split>_filter for evaluation."""
    file = folder / FILTERS[split]
    if not file.exists():
        return
    pairs = xmc.read_filter(file, rows, labels)
    pointers = np.fromfile(target / f"{split}_y.pointers", np.int64)
    indices = np.fromfile(target / f"{split}_y.indices", np.int32)
    row = np.repeat(np.arange(rows), np.diff(pointers))
    kept = ~np.isin(row * labels + indices, pairs[:, 0] * labels + pairs[:, 1])
    with CsrWriter(target / f"{split}_y", labels, values=False) as writer:
        writer.extend(np.bincount(row[kept], minlength=rows), indices[kept])
    with CsrWriter(target / f"{split}_filter", labels, values=False) as writer:
        writer.extend(np.bincount(pairs[:, 0], minlength=rows), pairs[:, 1])
