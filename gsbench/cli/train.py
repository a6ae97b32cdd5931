"""gsbench train: one run, a table of runs, or the demonstration."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from gsbench.errors import EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from gsbench.train.comparison import Row
    from gsbench.train.grid import Grid


def train(
    config: Annotated[str, typer.Argument(help="A .toml file or a shipped name; with --grid a table of them.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="CONFIG is a grid: [base], [methods.NAME], seeds.")] = False,
    resume: Annotated[Optional[Path], typer.Option(help="Go on with this run from its newest checkpoint.")] = None,  # noqa: UP045
    demo: Annotated[bool, typer.Option("--demo", help="20,000 synthetic labels, four methods, minutes on a CPU.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, help="With --grid: runs at a time, each in a process, over all GPUs.")] = 1,
) -> None:
    """Train an encoder with any of the output layers, and measure it on the test documents.

    [bold]Example:[/] gsbench data wordnet && gsbench train wordnet && gsbench evaluate runs/wordnet
    """
    if [bool(config), resume is not None, demo].count(True) != 1 or (grid and not config):
        raise UserError("one of: CONFIG, --grid CONFIG, --resume RUN, --demo")
    try:
        if demo:
            _demo(out)
        elif resume is not None:
            from gsbench.train import loop, runs

            if runs.result_of(resume) is not None:
                raise UserError(f"{resume}: is trained to its end; its result is {resume / runs.RESULT}")
            loop.train(runs.settings_of(resume), resume, resume=True)
        elif grid:
            from gsbench.train.config import find
            from gsbench.train.grid import load_grid

            table = load_grid(find(config))
            _compare(table, out / table.name, jobs)
        else:
            _one(config, out)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _one(name: str, out: Path) -> None:
    from gsbench.train import config, loop, runs

    settings = config.load_config(config.find(name))
    run = runs.create(out / settings.name, settings)
    try:
        loop.train(settings, run)
    except KeyboardInterrupt:
        print(f"interrupted; go on with: gsbench train --resume {shlex.quote(str(run))}")
        raise
    print(f"run: {run}")


def _compare(table: Grid, out: Path, jobs: int = 1) -> list[Row]:
    from gsbench.train.comparison import write
    from gsbench.train.grid import run_grid

    found = run_grid(table, out, jobs)
    if found.rows:
        _print(found.rows)
    print("written: " + ", ".join(str(file) for file in write(found, out)))
    return found.rows


def _demo(out: Path) -> None:
    from gsbench.train import demo

    began = time.monotonic()
    folder = out / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    data = demo.prepare(folder)
    popular = demo.popularity(data)
    print(f"{data.labels:,} labels, {data.train.rows:,} training documents; always naming the most frequent label: "
          f"P@1 {popular['P@1']:.2f}")  # fmt: skip
    rows = _compare(demo.grid(data), folder)
    worst = min(row.metrics["P@1"][0] for row in rows)
    print(f"the lowest P@1 is {worst / max(popular['P@1'], 1e-9):.0f} times popularity's; {time.monotonic() - began:.0f} s")
    print("synthetic labels lie in clusters, which favours few dimensions; `gsbench data wordnet` has real text")


def _print(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gsbench.train.comparison import HEADER, cells

    table = Table(box=box.SIMPLE_HEAD)
    for column in HEADER:
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
