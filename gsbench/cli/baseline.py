"""gsbench baseline: runs that others are compared with, and who signed them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(help="Promote runs to baselines, and check them.", no_args_is_help=True)


@app.command()
def promote(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    why: Annotated[str, typer.Option("--why", help="Why this run is the new baseline; kept with it.")],
    to: Annotated[Optional[Path], typer.Option("--to", help="Folder (default: results/baselines/<gpu>/<suite>).")] = None,  # noqa: UP045
    who: Annotated[str, typer.Option("--who", help="Who promotes it (default: as git signs here).")] = "",
) -> None:
    """Copy a run to the baselines and sign it: who, when, why, and checksums that the gate verifies.

    Example: gsbench baseline promote results/backward-cuda-20250101T000000Z --why "Triton 3.3: 4 % faster, see #12"
    """
    from gsbench import baseline

    folder = baseline.promote(run, to, why, who or None)
    typer.echo(f"{folder}: promoted; commit {folder / baseline.SIGNATURE} with it")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A baseline, or a folder that holds baselines.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check the files of promoted baselines against their checksums; exit 2 where one was changed by hand.

    Example: gsbench baseline verify results/baselines
    """
    from gsbench import baseline
    from gsbench.store import find_runs

    found = {str(run): baseline.verify(run) for run in find_runs(folder)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for run, signature in found.items():
        words = "nobody promoted it" if signature is None else "as {who} promoted it on {when}: {why}".format(**signature)
        typer.echo(f"{run}: {words}")
