"""Profiles stored beside a run, as the report shows them. Everything in them is shown as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gsbench.errors import UserError
from gsbench.report.tables import Cell, Table

if TYPE_CHECKING:
    from gsbench.profile import text

FOLDER = "profiles"  # as gsbench.profile.store names it, whose import takes pydantic along


@dataclass(frozen=True)
class Shown:
    title: str
    sentences: list[str]
    tables: list[Table]


def profiles(run: Path) -> list[Shown]:
    """By file name, then modelled and measured bytes of all. A file that cannot be read leaves its reason."""
    if not any((run / FOLDER).glob("*.json")):
        return []
    from gsbench.profile import store, text

    found, read = [], []
    for file in store.files(run):
        try:
            profile = store.read_file(file)
        except UserError as e:
            found.append(Shown(file.name, [str(e)], []))
            continue
        read.append(profile)
        said = [*profile.verdict, *(f"no {part}: {why}" for part, why in profile.missing.items())]
        found.append(Shown(text.heading(profile), said, _tables(text.tables(profile))))
    moved = text.byte_table(read)
    return found + ([Shown(moved.title, [], _tables([moved]))] if moved.rows else [])


def _tables(found: Iterable[text.Table]) -> list[Table]:
    return [Table(t.title, t.header, [[Cell(value) for value in row] for row in t.rows], labels=2) for t in found]
