"""Readers of the XMC repository's text formats. They hold one line at a time and name the line of what is wrong.

    one file     a header "N D L", then a line a document: "label,label feature:value feature:value"
                 (a document without labels starts with the space)
    pair form    <split>_X_Xf.txt and <split>_X_Y.txt, each a header "rows columns", then a line a document: "column:value"
    filter       a line a pair: "document label"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsbench.errors import UserError
from gsbench.train.data.csr import CsrWriter

_PAIRS = re.compile(rb"(?:\d+:[^\s:]+\s*)*")
_LABELS = re.compile(rb"(?:\d+(?:,\d+)*)?")


class Size(NamedTuple):
    rows: int
    columns: int


class Shape(NamedTuple):
    rows: int
    features: int
    labels: int


def read_documents(file: Path, folder: Path, split: str) -> Shape:
    """One file into <split>_x and <split>_y of a folder. Raises UserError that names file and line."""
    with open(file, "rb") as stream:
        rows, features, labels = _header(file, stream.readline(), ("N", "D", "L"))
        x = CsrWriter(folder / f"{split}_x", features, values=True)
        y = CsrWriter(folder / f"{split}_y", labels, values=False)
        with x, y:
            for number, line in _lines(file, stream, rows):
                front, _, rest = line.partition(b" ")
                if b":" in front:
                    raise UserError(f"{file}:{number}: starts with a feature; a document without labels starts with a space")
                y.add(_labels(file, number, front, labels))
                x.add(*pairs(file, number, rest, features, "feature"))
    return Shape(rows, features, labels)


def read_matrix(file: Path, stem: Path, *, values: bool, what: str) -> Size:
    """One file of the pair form. `what` is what a column is, for messages. Raises UserError that names file and line."""
    with open(file, "rb") as stream:
        rows, columns = _header(file, stream.readline(), ("rows", "columns"))
        with CsrWriter(stem, columns, values=values) as writer:
            for number, line in _lines(file, stream, rows):
                writer.add(*pairs(file, number, line, columns, what))
    return Size(rows, columns)


def read_filter(file: Path, rows: int, labels: int) -> NDArray[np.int64]:
    """[pairs, 2]: documents and labels, sorted. Raises UserError that names file and line."""
    pairs = []
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 2 or not all(field.isdigit() for field in fields):
                raise UserError(f"{file}:{number}: expected 'document label', got {_shown(line)}")
            document, label = int(fields[0]), int(fields[1])
            if document >= rows or label >= labels:
                raise UserError(f"{file}:{number}: {document} {label} is outside {rows} documents and {labels} labels")
            pairs.append((document, label))
    return np.unique(np.array(pairs, dtype=np.int64).reshape(-1, 2), axis=0)


def _header(file: Path, line: bytes, names: tuple[str, ...]) -> list[int]:
    fields = line.split()
    if len(fields) != len(names) or not all(field.isdigit() for field in fields):
        raise UserError(f"{file}:1: the header must be '{' '.join(names)}', got {_shown(line)}")
    numbers = [int(field) for field in fields]
    if max(numbers) >= 2**31:
        raise UserError(f"{file}:1: {max(numbers)} is more than 2^31 - 1")
    return numbers


def _lines(file: Path, stream: Any, rows: int) -> Iterator[tuple[int, bytes]]:
    """(line number, line) of the `rows` documents; nothing but blank lines may follow them."""
    number = 1
    for number, line in enumerate(stream, 2):
        if number - 1 > rows:
            if line.strip():
                raise UserError(f"{file}:{number}: more documents than the {rows} of the header")
            continue
        yield number, line.rstrip(b"\r\n")
    if number - 1 < rows:
        raise UserError(f"{file}:{number}: the file ends after {number - 1} of the header's {rows} documents")


def _labels(file: Path, number: int, text: bytes, labels: int) -> NDArray[np.int64]:
    if not _LABELS.fullmatch(text):
        raise UserError(f"{file}:{number}: labels must be numbers with commas between them, got {_shown(text)}")
    found = np.unique(np.array(text.split(b",") if text else [], dtype=np.int64))
    _check_range(file, number, found, labels, "label")
    return found


def pairs(
    file: Path, number: int, text: bytes, columns: int, what: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(ascending columns, values); a column that is given twice has the sum."""
    if not _PAIRS.fullmatch(text.lstrip()):
        bad = next((token for token in text.split() if not _PAIRS.fullmatch(token)), text)
        raise UserError(f"{file}:{number}: expected {what}:value, got {_shown(bad)}")
    tokens = text.replace(b":", b" ").split()
    try:
        found, values = np.array(tokens[::2], dtype=np.int64), np.array(tokens[1::2], dtype=np.float64)
    except (ValueError, OverflowError):
        raise UserError(f"{file}:{number}: a value of {_shown(text)} is not a number") from None
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"{file}:{number}: the value of {what} {found[at]} is {values[at]}; values must be finite")
    _check_range(file, number, found, columns, what)
    if len(found) < 2 or bool((found[1:] > found[:-1]).all()):
        return found, values
    distinct, place = np.unique(found, return_inverse=True)
    summed = np.zeros(len(distinct))
    np.add.at(summed, place, values)
    return distinct, summed


def _check_range(file: Path, number: int, found: NDArray[np.int64], limit: int, what: str) -> None:
    if len(found) and int(found.max()) >= limit:
        raise UserError(f"{file}:{number}: {what} {int(found.max())} is outside 0..{limit - 1}, as the header says")


def _shown(text: bytes) -> str:
    return repr(text[:60].decode(errors="replace").strip()) + ("..." if len(text) > 60 else "")
