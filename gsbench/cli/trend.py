"""gsbench trend: ratios to an anchor over recorded runs, and where they changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def trend(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, folders of runs, or quoted globs.")],
    anchor: Annotated[str, typer.Option("--anchor", help="What every ratio is to.")] = "bottleneck/torch",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("reports/trend"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the series as JSON; write nothing.")] = False,
) -> None:
    """Each case's ratio to its anchor over the runs, oldest first, and the runs at which it changed.

    Example: gsbench trend 'results/**' --anchor bottleneck/torch --out reports/trend
    """
    from gsbench.report import trends
    from gsbench.trend import trend as follow

    found = follow(runs, anchor)
    if as_json:
        typer.echo(trends.to_json(found))
        return
    files = trends.write(found, out)
    for line in (*trends.lines(found), *(f"left out: {words}" for words in found.skipped)):
        typer.echo("".join(c if c.isprintable() else "�" for c in line))
    typer.echo(f"{trends.sentence(found)}; {files[0]}")
