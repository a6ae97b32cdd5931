"""gsbench tune: choose tile shapes, stages and warps on this GPU, and between CUDA and Triton."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Optional

import typer

from gsbench.errors import EXIT_INTERRUPTED, EXIT_NOTHING, NothingMeasured, UserError

if TYPE_CHECKING:
    from gsbench.case import Case, Point
    from gsbench.measure.tuning import Found


def tune(
    suite: Annotated[str, typer.Option(help="Name of a suite or path of a .toml file: tune at its points.")] = "",
    at: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A point, such as 'batch=64,group_size=16' (the rest as at the default point); repeatable."),
    ] = None,
    only: Annotated[Optional[list[str]], typer.Option(help="Implementations to tune: a name or glob; repeatable.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cuda or cuda:N.")] = "auto",
    out: Annotated[Optional[Path], typer.Option(help="Add to this table instead of the user's cache.")] = None,  # noqa: UP045
    dispatch_only: Annotated[bool, typer.Option("--dispatch-only", help="Only group_shared/cuda against Triton.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be measured only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON a choice.")] = False,
) -> None:
    """Measure the candidates of every kernel at a suite's points, cold caches, and keep the fastest.

    Then group_shared/cuda runs against group_shared/triton, and the default of each pass is the faster one. Choices go to
    the user's cache (gsbench doctor says where), or with --out to a table such as kernels/gskernels/tuned/nvidia_h200.json.

    [bold]Example:[/] gsbench tune --suite backward --only 'group_shared/*'
    """
    from gsbench import tuning
    from gsbench.cli import device as devices
    from gsbench.implementations import all_implementations
    from gsbench.suite import load_suite

    if bool(suite) == bool(at):
        raise UserError("at which points? --suite NAME (gsbench list suites), or --at 'batch=64,group_size=16'; not both")
    implementations = all_implementations()
    wanted = tuning.suite_at(at) if at else load_suite(suite, "cuda")[0]
    points = tuning.points_of(wanted, implementations, only or [])
    if dry_run:
        _print_plan(points, as_json)
        return
    if out is not None:
        _check_table(out)
    target = devices.resolve(device)
    if devices.kind(target) != "cuda":
        raise NothingMeasured("no GPU here: kernels are tuned by timing them on one (--dry-run shows what would be timed)")
    import torch

    from gsbench.measure import tuning as measuring

    found: list[Found] = []
    interrupted = False
    lock = _take(target)
    try:
        each = measuring.measure(points, implementations, torch.device(target), candidates=not dispatch_only)
        for number, here in enumerate(each, 1):
            kept = _keep(here, out)
            found += here
            if as_json:
                for one in here:
                    print(json.dumps(_document(one)), flush=True)
            else:
                print(f"{number} of {len(points)} points: {kept} choices", flush=True)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        lock.close()
    if not as_json:
        _print_found(found)
        print(f"kept in {out or _cache()}")
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    lost = [one for one in found if isinstance(one, measuring.Skipped) and one.fatal]
    if lost:
        raise UserError(f"the GPU failed at {lost[0].what}: {lost[0].reason}; what was found before is kept")
    if all(isinstance(one, measuring.Skipped) for one in found):
        raise typer.Exit(EXIT_NOTHING)


def _take(target: str) -> IO[str]:
    """The lock on the device. Raises UserError where the device is not there, or is being measured."""
    import torch

    from gsbench.measure.environment import probe_device
    from gsbench.measure.worker import take_device

    try:
        info = probe_device(target)
        torch.cuda.set_device(torch.device(target))
    except (AssertionError, RuntimeError) as e:
        raise UserError(f"device {target}: {str(e).splitlines()[0]}") from None
    lock = take_device(info.get("uuid") or target)
    if lock is None:
        raise UserError(f"{info['name']} is being measured by another gsbench; wait for it to end")
    return lock


def _cache() -> Path:
    from gskernels import choices

    return choices.cache_path()


def _check_table(path: Path) -> None:
    """Raises UserError for a file that is no table, before anything is measured and lost."""
    from gskernels import choices

    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: give a file in a folder that exists")
    if path.exists() and not choices.parse(path.read_text(errors="replace")):
        raise UserError(f"--out {path}: exists and is no table of choices of version {choices.VERSION}")


def _keep(found: list[Found], out: Path | None) -> int:
    """Write what was found at a point; how many choices that are. Raises UserError where it cannot be written."""
    from gsbench.measure.tuning import Skipped
    from gskernels import choices

    new = {one.key: one.config for one in found if not isinstance(one, Skipped)}
    if not new:
        return 0
    try:
        if out is None:
            choices.write(choices.cache_path(), new)
        else:
            choices.write(out, {key.split("|", 1)[1]: config for key, config in new.items()}, stale=True)
    except OSError as e:
        raise UserError(f"{out or choices.cache_path()}: cannot be written: {e.strerror}") from None
    return len(new)


# ---- output -----------------------------------------------------------------------------------------------------


def _document(one: Found) -> dict[str, Any]:
    from gsbench import tuning
    from gsbench.measure.tuning import Duel, Skipped

    if isinstance(one, Skipped):
        return {"skipped": one.what, "reason": one.reason}
    if isinstance(one, Duel):
        return {"key": one.key, "point": str(one.point), "config": one.config, "ratio": one.ratio, "winner": one.winner}
    return {
        "key": one.key, "config": one.config, "candidates": list(one.candidates), **tuning.trial_row(one),
        "milliseconds": [None if ms == float("inf") else ms for ms in one.milliseconds],
    }  # fmt: skip


def _print_plan(points: dict[Point, list[Case]], as_json: bool) -> None:
    if as_json:
        for cases in points.values():
            for case in cases:
                print(json.dumps(case.to_dict()))
        return
    table, console = _table("What would be tuned", "point", "pass", "implementations")
    for point, cases in points.items():
        for pass_ in dict.fromkeys(case.pass_ for case in cases):
            table.add_row(str(point), pass_, ", ".join(c.implementation for c in cases if c.pass_ == pass_))
    console.print(table)


def _print_found(found: list[Found]) -> None:
    from gsbench import tuning
    from gsbench.measure.tuning import Duel, Skipped

    table, console = _table("Candidates", "kernel", "shape class", "ran", "won", *tuning.FIGURES)
    for one in found:
        if not isinstance(one, (Duel, Skipped)):
            table.add_row(*tuning.trial_cells(one))
    if table.row_count:
        console.print(table)
    table, console = _table("Defaults of layers with groups", "pass", "point", "cuda ms", "triton ms", "ratio", "default")
    for one in found:
        if isinstance(one, Duel):
            figures = (f"{one.cuda_ms:.4f}", f"{one.triton_ms:.4f}", f"{one.ratio:.2f}")
            table.add_row(one.pass_, str(one.point), *figures, one.winner)
    if table.row_count:
        console.print(table)
    for one in found:
        if isinstance(one, Skipped):
            console.print(f"not measured: {one.what}: {one.reason}", markup=False, highlight=False)


def _table(title: str, *columns: str) -> tuple[Any, Any]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table, console if console.is_terminal else Console(width=160)
