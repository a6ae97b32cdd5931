"""gsbench report: HTML, Markdown and figures from recorded runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("reports/latest"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the written files as JSON.")] = False,
) -> None:
    """Draw recorded runs: one self-contained HTML page, Markdown, and each figure as PNG and SVG.

    Example: gsbench report results/sweep-h200-20250101 --out reports/sweep
    """
    from gsbench.report import render

    files = render(runs, out)
    if as_json:
        typer.echo(json.dumps([str(file) for file in files]))
        return
    figures = sum(file.suffix == ".png" for file in files)
    typer.echo(f"{out / 'index.html'}: {len(files)} files, {figures} figures (Markdown: {out / 'report.md'})")
