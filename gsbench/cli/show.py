"""gsbench show: one run in the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import rich.table

    from gsbench.report.tables import Table


PIPED_WIDTH = 120  # columns in a file or a pipe
FULL_WIDTH = 108  # columns that a comparison with all its figures takes


def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    failures: Annotated[bool, typer.Option("--failures", help="Only what was not timed, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the cases as JSON: the rows of gsbench.load.")] = False,
) -> None:
    """Show a run: its environment, and at each point every implementation with its ratios.

    Example: gsbench show results/sweep-h200-20250101
    """
    from gsbench.frame import latest, read_runs, rows

    data = read_runs([run])
    if as_json:
        cases = [row for one in data for row in rows(one) if not failures or row["status"] != "ok"]
        typer.echo(json.dumps(cases, indent=1))
        return

    from rich.console import Console
    from rich.text import Text

    from gsbench.report import tables
    from gsbench.report.answer import answers
    from gsbench.report.ratios import compare
    from gsbench.report.text import ceilings_line, device_line, software_line

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, PIPED_WIDTH))
    for one in data:
        records = latest(one.records)
        comparisons = compare(records)
        console.print(Text(one.name, style="bold"))
        for line in (device_line(one.manifest), software_line(one.manifest), ceilings_line(one.manifest)):
            if line:
                console.print(Text(line, style="dim"))
        if not failures:
            for comparison in comparisons:
                table = tables.absolute(comparison)
                console.print(_rich(table if console.width >= FULL_WIDTH else _narrowed(table)))
            for answer in answers(comparisons):
                console.print(Text(" ".join((f"[{answer.setting}]", *answer.sentences))))
        timed = sum(record.timing is not None for record in records)
        untimed = tables.failures(records)
        if untimed.rows:
            console.print(_rich(untimed))
        console.print(Text(f"{len(records)} cases: {timed} timed, {len(records) - timed} not"))


def _narrowed(table: Table) -> Table:
    """For a small terminal: without the interval, the flags and what was not timed (which is listed below)."""
    kept = [i for i, heading in enumerate(table.header) if heading not in ("95 % interval", "flags")]
    timed = [row for row in table.rows if row[table.header.index("median ms")].text]
    rows = [[row[i] for i in kept] for row in timed]
    return replace(table, header=tuple(table.header[i] for i in kept), rows=rows)


def _rich(table: Table) -> rich.table.Table:
    """Texts as they are: a name from a record is never read as markup."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(table.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for i, heading in enumerate(table.header):
        words = heading in ("flags", "cases", "reason", "first of them")
        left = i < table.labels or words
        drawn.add_column(Text(heading), justify="left" if left else "right", overflow="fold", no_wrap=not words)
    for row in table.rows:
        drawn.add_row(*(Text(cell.text, style="bold green" if cell.strong else "") for cell in row))
    return drawn
