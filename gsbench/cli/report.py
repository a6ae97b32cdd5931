"""gsbench report: a page, Markdown, tables and figures from recorded runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of index.html and report.md.")] = Path("reports/latest"),
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Also draw every figure there, as PNG (300 dpi) and SVG.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown for a pull request; write nothing.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print a row a case, as gsbench.load has it; write nothing.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX tables (booktabs); write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the written files as JSON.")] = False,
) -> None:
    """One self-contained page of recorded runs: answers, plots, winner map, roofline, memory, and every case.

    Example: gsbench report results/sweep-h200-20250101 --out reports/sweep --figures reports/sweep/figures
    """
    from gsbench.errors import UserError

    printed = [name for name, wanted in (("markdown", markdown), ("csv", csv), ("latex", latex)) if wanted]
    if len(printed) > 1 or (printed and (figures or as_json)):
        raise UserError(f"--{printed[0]} prints one text: no --figures, --json, --markdown, --csv or --latex beside it")
    if printed:
        _print(runs, printed[0])
        return
    from gsbench.report import render

    files = render(runs, out, figures)
    if as_json:
        typer.echo(json.dumps([str(file) for file in files]))
        return
    drawn = sum(file.suffix == ".png" for file in files)
    typer.echo(f"{files[0]} (Markdown: {files[1]})" + (f", {drawn} figures in {figures}" if figures else ""))


def _print(runs: list[Path], what: str) -> None:
    if what == "csv":
        from gsbench.export.tables import write_csv
        from gsbench.frame import read_runs

        write_csv(read_runs(runs), sys.stdout)
        return
    from gsbench.report import read

    found = read(runs)
    if what == "latex":
        from gsbench.report.latex import latex

        typer.echo(latex(found), nl=False)
        return
    from gsbench.report.markdown import markdown
    from gsbench.report.markup import COMMENT, fit

    typer.echo(fit(markdown(found).splitlines(), COMMENT, "gsbench report"), nl=False)
