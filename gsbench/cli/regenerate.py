"""gsbench regenerate: are the committed reports what the committed records give?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def regenerate(
    root: Annotated[Path, typer.Option("--root", help="Root of a checkout.")] = Path("."),
    write: Annotated[bool, typer.Option("--write", help="Rewrite the files that differ.")] = False,
) -> None:
    """Rebuild every committed report, and the answers in README.md and docs/, from results/baselines/, and compare.

    Texts are compared byte by byte; figures by what they draw and by their checksums, so any matplotlib will do. Exit code 1
    with the list of files if some differ.

    Example: gsbench regenerate --write
    """
    from gsbench.errors import EXIT_FAILED
    from gsbench.report import regenerate

    stale = regenerate.write(root) if write else regenerate.check(root)
    for file in stale:
        typer.echo(f"wrote again {file.file} ({file.why})" if write else str(file))
    if not stale:
        typer.echo("Every committed report is what the records give.")
    elif not write:
        typer.echo(f"{len(stale)} files differ; gsbench regenerate --write makes them again", err=True)
        raise typer.Exit(EXIT_FAILED)
