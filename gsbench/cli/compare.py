"""gsbench compare: two recorded sides, paired case by case and judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gsbench.cli.gate import parse_tolerance
from gsbench.errors import EXIT_FAILED, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from gsbench.compare import Compared

PIPED_WIDTH = 160  # columns in a file or a pipe
SHOWN = 40  # rows of a table, and lines of a list, without --all
STYLES = {"slower": "bold red", "unclear": "yellow", "same": "", "faster": "green"}


def compare(
    base: Annotated[Path, typer.Argument(help="A run, or a folder of runs: the replicates of this side.")],
    new: Annotated[Path, typer.Argument(help="The same for the other side.")],
    by: Annotated[str, typer.Option("--by", help="Geometric means by implementation, pass, mode, dtype, labels ..."
                                    )] = "implementation",
    tolerance: Annotated[str, typer.Option("--tolerance", help="What counts as the same, such as 3%.")] = "3%",
    paired: Annotated[bool, typer.Option("--paired", help="Run i (by name) of BASE was measured next to run i of NEW."
                                         )] = False,
    every: Annotated[bool, typer.Option("--all", help="Show every case, not only the worst.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown that fits a pull-request comment.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML to this file.")] = None,
) -> None:  # fmt: skip
    """Compare recorded runs: each case's ratio with its 95 % interval, and a verdict, the worst first.

    Exit codes: 0 nothing is slower, 1 a case is slower or no longer timed, 2 bad input, 3 nothing comparable.

    Example: gsbench compare results/before results/after --tolerance 2% --by pass
    """
    if as_json and markdown:
        raise UserError("--json and --markdown: choose one")
    allowed = parse_tolerance(tolerance)

    from gsbench.compare import compare as judge
    from gsbench.report import verdicts

    found = judge(base, new, by, allowed, paired)
    if junit is not None:
        junit.write_text(verdicts.to_junit(found), encoding="utf-8")
    if as_json:
        typer.echo(verdicts.to_json(found))
    elif markdown:
        typer.echo(verdicts.to_markdown(found), nl=False)
    else:
        _print(found, None if every else SHOWN)
    if found.worse:
        raise typer.Exit(EXIT_FAILED)


def _print(found: Compared, most: int | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from gsbench.report import verdicts

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, PIPED_WIDTH))
    _pairs(console, found, most)
    _groups(console, found)
    for title, lines in verdicts.others(found):
        console.print(Text(f"{title}: {len(lines)}", style="bold"))
        for line in lines[:most]:
            console.print(Text(f"  {_visible(line)}"))
        if most is not None and len(lines) > most:
            console.print(Text(f"  {len(lines) - most} more with --all", style="dim"))
    for line in verdicts.caveats(found):
        console.print(Text(line, style="yellow"))
    console.print(Text(verdicts.headline(found), style="bold"))


def _pairs(console: Console, found: Compared, most: int | None) -> None:
    """Texts as they are: a name from a record is never read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gsbench.report import verdicts
    from gsbench.report.text import milliseconds

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("verdict", "case", "base ms", "new ms", "new / base (95 %)", "tolerance", "processes", "flags"):
        words = heading in ("verdict", "case", "flags")
        table.add_column(heading, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    for p in found.pairs[:most]:
        cells = [verdicts.verdict(p), str(p.case), milliseconds(p.base_ms), milliseconds(p.new_ms), verdicts.interval(p),
                 f"{p.tolerance:.1%}", verdicts.processes(p), "; ".join(p.flags)]  # fmt: skip
        table.add_row(*(Text(_visible(cell), style=STYLES[p.verdict] if i == 0 else "") for i, cell in enumerate(cells)))
    console.print(table)
    if most is not None and len(found.pairs) > most:
        console.print(Text(f"{len(found.pairs) - most} more cases with --all", style="dim"))


def _groups(console: Console, found: Compared) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gsbench.report import verdicts

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (found.by, "new / base (95 %)", *found.overall.verdicts):
        table.add_column(heading, justify="left" if heading == found.by else "right", overflow="fold")
    for group in (*found.groups, found.overall):
        cells = [group.name, verdicts.interval(group), *map(str, group.verdicts.values())]
        table.add_row(*(Text(_visible(cell)) for cell in cells), style="bold" if group is found.overall else "")
    console.print(table)


def _visible(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "�" for c in text)
