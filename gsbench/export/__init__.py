"""Recorded runs in the formats of other tools. An exporter is one small file that only reads records.

Each has `write(run, file)`, which raises NothingMeasured where the run has nothing that the format could hold.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from gsbench.errors import UserError
from gsbench.store import RunData

FORMATS = {  # name -> (module, suffix of its files)
    "pytest-benchmark": ("gsbench.export.pytest_benchmark", ".json"),
    "csv": ("gsbench.export.tables", ".csv"),
    "parquet": ("gsbench.export.tables", ".parquet"),
    "github-action-benchmark": ("gsbench.export.github_action", ".json"),
}


def export(run: RunData, to: str, file: Path) -> None:
    """Write the run to `file`. Raises UserError for an unknown format or a file that cannot be written."""
    if to not in FORMATS:
        raise UserError(f"--to {to}: not one of {', '.join(FORMATS)}")
    module, suffix = FORMATS[to]
    if file.suffix != suffix:
        raise UserError(f"--out {file}: {to} writes {suffix} files")
    try:
        importlib.import_module(module).write(run, file)
    except OSError as e:
        raise UserError(f"--out {file}: cannot be written: {e.strerror or e}") from None
