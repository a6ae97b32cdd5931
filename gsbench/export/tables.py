"""A row a case, with the columns of `gsbench.load`: CSV, and Parquet with their types."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from gsbench.frame import COLUMNS, load, rows
from gsbench.store import RunData


def write(run: RunData, file: Path) -> None:
    if file.suffix == ".parquet":
        load(run.path).to_parquet(file, index=False)
        return
    with open(file, "w", newline="", encoding="utf-8") as stream:
        write_csv([run], stream)


def write_csv(runs: Iterable[RunData], stream: TextIO) -> None:
    writer = csv.DictWriter(stream, [column.name for column in COLUMNS])
    writer.writeheader()
    for run in runs:
        writer.writerows(rows(run))
