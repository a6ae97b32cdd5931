"""Raw texts: trn.json, tst.json and lbl.json, a JSON object a line, plain or gzipped (.json.gz).

A document has "title" or "content" (or both) and "target_ind", the numbers of its labels; a label has "title".
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from gsbench.errors import UserError


class Document(NamedTuple):
    text: str
    labels: list[int]  # ascending, distinct


def find(folder: Path, name: str) -> Path | None:
    """<name>.json or <name>.json.gz of a folder."""
    return next((file for suffix in (".json", ".json.gz") if (file := folder / (name + suffix)).exists()), None)


def read_documents(file: Path, labels: int, *, content: bool = True) -> Iterator[Document]:
    """`content`: title and content; else the title alone. Raises UserError that names file and line."""
    for number, entry in _entries(file):
        targets = entry.get("target_ind")
        if not isinstance(targets, list) or not all(type(t) is int for t in targets):
            raise UserError(f"{file}:{number}: 'target_ind' must be a list of label numbers, got {targets!r:.60}")
        found = sorted(set(targets))
        if found and not (found[0] >= 0 and found[-1] < labels):
            raise UserError(f"{file}:{number}: label {found[0] if found[0] < 0 else found[-1]} is outside 0..{labels - 1}")
        yield Document(_text(file, number, entry, ("title", "content") if content else ("title",)), found)


def read_titles(file: Path) -> Iterator[str]:
    """Names of the labels, in order. Raises UserError that names file and line."""
    for number, entry in _entries(file):
        yield _text(file, number, entry, ("title",))


def _entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _entry(file, number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        raise UserError(f"{file}:{number + 1}: the compressed file is cut off or damaged: {e}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{file}:{number + 1}: not UTF-8: {e}") from None


def _entry(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as e:
        raise UserError(f"{file}:{number}: not a JSON object: {e}") from None
    if not isinstance(entry, dict):
        raise UserError(f"{file}:{number}: expected a JSON object, got {line.strip()!r:.60}")
    return entry


def _opened(file: Path) -> IO[str]:
    return gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8")


def _text(file: Path, number: int, entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    parts = [entry[key] for key in keys if key in entry]
    if not parts or not all(isinstance(part, str) for part in parts):
        raise UserError(f"{file}:{number}: needs text under {' or '.join(repr(k) for k in keys)}")
    return " ".join(parts)
