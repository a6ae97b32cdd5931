"""gsbench advise: what to use at a point, from what was recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from gsbench.errors import EXIT_NOTHING, UserError

if TYPE_CHECKING:
    from gsbench.advise.answer import Answer, Choice

_BASELINES = Path("results/baselines")


def advise(
    runs: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Argument(metavar="[RUN]...", help="Runs, or folders of them (default: results/baselines)."),
    ] = None,
    batch: Annotated[Optional[int], typer.Option(min=1, help="B.")] = None,  # noqa: UP045
    dim: Annotated[Optional[int], typer.Option(min=1, help="D, the encoder's width.")] = None,  # noqa: UP045
    labels: Annotated[Optional[int], typer.Option(min=1, help="L.")] = None,  # noqa: UP045
    fan_in: Annotated[Optional[int], typer.Option(min=1, help="K, where it is settled.")] = None,  # noqa: UP045
    group_size: Annotated[Optional[int], typer.Option(min=1, help="G, where it is settled.")] = None,  # noqa: UP045
    memory: Annotated[str, typer.Option(help="What the layer may take, such as 24GiB (default: the device's memory).")] = "",
    what: Annotated[str, typer.Option("--for", help="train (forward and backward), forward or backward.")] = "train",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "bf16",
    device: Annotated[str, typer.Option(help="Part of the name of the device that the runs were measured on.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say which implementation, K and G to use, what it will take, on what evidence, and the largest L that fits.

    [bold]Example:[/] gsbench advise --batch 256 --dim 768 --labels 670091 --memory 24GiB
    """
    from gsbench.advise.answer import WHAT, answer
    from gsbench.advise.evidence import gather
    from gsbench.advise.memory import parse_bytes
    from gsbench.case import Point
    from gsbench.frame import read_runs
    from gsbench.implementations import all_implementations
    from gskernels.shape import Shape
    from gskernels.table import FLOATS

    if batch is None or dim is None or labels is None:
        missing = [name for name, value in (("--batch", batch), ("--dim", dim), ("--labels", labels)) if value is None]
        raise UserError(f"needs {', '.join(missing)}, such as: gsbench advise --batch 256 --dim 768 --labels 670091")
    for option, value, allowed in (("--for", what, tuple(WHAT)), ("--dtype", dtype, FLOATS)):
        if value not in allowed:
            raise UserError(f"{option} {value!r}: allowed are {', '.join(allowed)}")
    if fan_in is not None and fan_in > dim:
        raise UserError(f"--fan-in {fan_in} exceeds --dim {dim}; a label can read at most all inputs")
    if group_size is not None and group_size > labels:
        raise UserError(f"--group-size {group_size} exceeds --labels {labels}")
    room = parse_bytes(memory) if memory else None
    implementations = all_implementations()
    evidence = gather(read_runs(runs or [_baselines()]), implementations, device)
    point = Point(Shape(batch, dim, labels, fan_in or 1, group_size or 1), "uniform", dtype)
    found = answer(evidence, implementations, point, what, fan_in, group_size, room)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found)
    if not found.choices:
        raise typer.Exit(EXIT_NOTHING)


def _baselines() -> Path:
    """Of the working folder, or of the checkout that this file is part of. Raises UserError where there are none."""
    for folder in (_BASELINES, Path(__file__).parents[2] / _BASELINES):
        if folder.is_dir():
            return folder
    raise UserError(f"no {_BASELINES} here: name the runs to learn from, such as: gsbench advise results/RUN --batch ...")


def _print(found: Answer) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gsbench.advise.answer import errors, gigabytes

    console = Console() if sys.stdout.isatty() else Console(width=150)

    def draw(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[str] = ()) -> None:
        console.print(Text(f"\n{title}"))
        table = Table(box=box.SIMPLE_HEAD)
        for column in header:
            table.add_column(column, justify="left" if column == header[0] or column in words else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)

    def sizes(c: Choice) -> tuple[str, ...]:
        return str(c.fan_in or "-"), str(c.group_size or "-"), f"{c.ms:.3g}", gigabytes(c.memory_bytes)

    console.print(Text(f"{found.point} on {found.device}", style="bold"))
    for sentence in found.sentences:
        console.print(Text(sentence))
    error, evidence = "error: half, 9 of 10", "nearest record (doublings away)"
    if found.choices:
        draw(
            f"Output layer, {found.what}; of each implementation the smallest G within 10 % of its fastest",
            ("implementation", "K", "G", "ms", "memory", "fits", error, evidence),
            [
                (c.implementation, *sizes(c), "yes" if c.fits else "no", errors(c),
                 "; ".join(f"{' '.join((e.near[0].id, *e.near[0].flags))} ({e.distance:.2g})" for e in c.passes.values()))
                for c in found.choices
            ],
            (evidence,),
        )  # fmt: skip
    if len(found.fan_ins) > 1:
        draw("Fastest sparse layer at each fan-in", ("implementation", "K", "G", "ms", "memory", error),
             [(c.implementation, *sizes(c), errors(c)) for c in found.fan_ins])  # fmt: skip
    if found.frontier and found.memory_bytes:
        draw(
            f"Largest L that fits {gigabytes(found.memory_bytes)} (without encoder and optimizer state)",
            ("implementation", "L", "largest L recorded", "smallest L out of memory"),
            [(f.implementation, f"{f.labels:,}", f"{f.recorded:,}", f"{f.oom:,}" if f.oom else "") for f in found.frontier],
        )
    if found.silent:
        console.print(Text(f"No evidence near this point: {', '.join(found.silent)}", style="dim"))
    console.print(Text(f"From {', '.join(found.runs)}", style="dim"))
