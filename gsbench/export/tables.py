"""A row a case, with the columns of `gsbench.load`: CSV, and Parquet with their types."""

from __future__ import annotations

import csv
from pathlib import Path

from gsbench.frame import COLUMNS, load, rows
from gsbench.store import RunData


def write(run: RunData, file: Path) -> None:
    if file.suffix == ".parquet":
        load(run.path).to_parquet(file, index=False)
        return
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [column.name for column in COLUMNS])
        writer.writeheader()
        writer.writerows(rows(run))
