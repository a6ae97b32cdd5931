"""gsbench export and import: recorded runs in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[str, typer.Option("--to", help="pytest-benchmark, csv, parquet or github-action-benchmark.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
) -> None:
    """Write a run in the format of another tool.

    Example: gsbench export results/RUN --to pytest-benchmark --out 0001_run.json
    """
    from gsbench.export import export as write
    from gsbench.store import read_run

    write(read_run(run), to, out)
    typer.echo(f"{out}: {to}")


def import_(
    file: Annotated[Path, typer.Argument(help="JSON of pytest-benchmark (--benchmark-json, or its storage).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")],
) -> None:
    """Make a run of a pytest-benchmark file, for compare, gate, report and trend.

    Benchmarks count that name a case: those of gpu_benchmark.case, and of gsbench export.

    Example: gsbench import .benchmarks/Linux-CPython-3.12-64bit/0001_run.json --out results/0001
    """
    from gsbench.export.pytest_benchmark import read

    cases, others = read(file, out)
    typer.echo(f"{out}: {cases} cases" + (f"; {others} benchmarks name no case and are left out" if others else ""))
