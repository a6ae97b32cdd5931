"""gsbench profile: why a case takes the time it takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from gsbench.errors import EXIT_NOTHING, NothingMeasured, UserError

if TYPE_CHECKING:
    from gsbench.case import Case
    from gsbench.profile.cases import Where
    from gsbench.profile.model import Profile
    from gskernels.table import Implementation


def profile(
    suite: Annotated[str, typer.Option(help="Time and profile cases of this suite: a name or a .toml file.")] = "",
    run: Annotated[Optional[Path], typer.Option(help="Profile cases that this run holds, instead of a suite's.")] = None,  # noqa: UP045
    only: Annotated[Optional[list[str]], typer.Option(help="Implementations to keep: a name or glob; repeatable.")] = None,  # noqa: UP045
    at: Annotated[str, typer.Option(help="The point: KEY=VALUE,... of axes, pattern, dtype, point; else the suite's.")] = "",
    passes: Annotated[Optional[list[str]], typer.Option("--pass", help="Passes to keep; repeatable.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    arch: Annotated[str, typer.Option(help="Architecture to compile for (default: this GPU's, else sm_90a).")] = "",
    skip: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Parts to leave out: breakdown, counters, bytes, timeline, static; repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the run's folder (default: suite-device-time).")] = "",
    show: Annotated[Optional[Path], typer.Option(help="Only print the profiles beside this run.")] = None,  # noqa: UP045
    as_json: Annotated[bool, typer.Option("--json", help="Print the profiles as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print them as Markdown.")] = False,
) -> None:
    """Explain cases: kernels and gaps, hardware counters, clocks, registers and occupancy; kept in RUN/profiles/.

    Parts that this machine cannot give are left out with a line that says why. Without a GPU, CUDA and Triton kernels
    are compiled and their registers, spills, shared memory and occupancy shown.

    [bold]Example:[/] gsbench profile --suite forward --only group_shared/cuda --at batch=256,group_size=64
    """
    from gsbench.profile import store

    if sum(bool(given) for given in (suite, run, show)) != 1:
        raise UserError("give one of --suite NAME, --run RUN and --show RUN")
    if show is not None:
        from gsbench.store import read_run

        read_run(show)
        profiles = store.read(show)
        if not profiles:
            raise NothingMeasured(f"{show}: no profiles here; make some with: gsbench profile --run {show}")
    else:
        profiles = _measure(suite, run, only or [], at, passes or [], device, arch, skip or [], out, name)
    if as_json:
        print("[" + ",\n".join(store.to_json(p) for p in profiles) + "]")
    elif as_markdown:
        from gsbench.profile.text import markdown

        print(markdown(profiles))
    else:
        _print(profiles)
    if not profiles:
        raise typer.Exit(EXIT_NOTHING)


def _measure(
    suite: str, run: Path | None, only: list[str], at: str, passes: list[str], device: str, arch: str, skip: list[str],
    out: Path, name: str,
) -> list[Profile]:  # fmt: skip
    from gsbench.cli import device as devices
    from gsbench.implementations import all_implementations
    from gsbench.measure import environment
    from gsbench.profile import cases
    from gsbench.profile.collect import Job, collect
    from gsbench.profile.model import PARTS
    from gsbench.profile.occupancy import ARCHITECTURES, architecture_of
    from gsbench.profile.store import FOLDER
    from gsbench.store import read_run

    for part in skip:
        if part not in PARTS:
            raise UserError(f"--skip {part!r}: allowed are {', '.join(PARTS)}")
    if arch and arch not in ARCHITECTURES:
        raise UserError(f"--arch {arch!r}: known are {', '.join(ARCHITECTURES)}")
    where, target, implementations = cases.parse_at(at), devices.resolve(device), all_implementations()
    cases.check_passes(passes)
    compiled: list[Case] = []
    if run is None:
        path, compiled = _timed(suite, target, implementations, only, where, passes, out, name)
        timed = [record for record in read_run(path).records if record.timing is not None]
    else:
        path = run
        timed = cases.of_run(read_run(path), devices.kind(target), implementations, only, where, passes)
    on = read_run(path).manifest.get("device", {})
    job = Job(
        path, target, str(on.get("name", "")), environment.versions(), ["gsbench", *sys.argv[1:]],
        {i.name: i for i in implementations}, arch or architecture_of(str(on.get("capability", ""))), skip,
        lambda words: print(words, file=sys.stderr, flush=True),
    )  # fmt: skip
    profiles = collect(job, timed, compiled)
    print(f"{path / FOLDER}: {len(profiles)} profiles", file=sys.stderr)
    return profiles


def _timed(
    suite: str, target: str, implementations: tuple[Implementation, ...], only: list[str], where: Where, passes: list[str],
    out: Path, name: str,
) -> tuple[Path, list[Case]]:  # fmt: skip
    """A new run of the suite's one point, as `gsbench run` measures it; and the cases that can only be compiled here."""
    from gsbench.cli import device as devices
    from gsbench.cli.progress import Progress
    from gsbench.measure import environment
    from gsbench.measure.session import Session, new_manifest, run_name
    from gsbench.profile import cases
    from gsbench.record import SCHEMA
    from gsbench.store import RunWriter, read_run

    kind = devices.kind(target)
    chosen, resolved, plan, compiled = cases.of_suite(suite, kind, implementations, only, where, passes)
    folder = out / (name or run_name(f"profile-{resolved['name']}", kind))
    fingerprint, command = environment.code_fingerprint(), ["gsbench", *sys.argv[1:]]
    manifest = new_manifest(folder.name, resolved, environment.versions(), fingerprint, command, SCHEMA)
    manifest |= {"target": target, "only": only}
    with RunWriter.create(folder, manifest) as writer, Progress(len(plan.cases)) as view:
        Session(chosen, target, writer, view).run(plan, set())
    for record in read_run(folder).records:
        if record.status not in ("ok", "unsupported"):
            print(f"not profiled, {record.status}: {record.case}: {record.reason}", file=sys.stderr)
    return folder, compiled


def _print(profiles: list[Profile]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from gsbench.profile.text import byte_table, heading, tables

    console = Console() if sys.stdout.isatty() else Console(width=140)

    def draw(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
        console.print(Text(f"\n  {title}"))
        table = RichTable(box=box.SIMPLE_HEAD)
        for number, column in enumerate(header):
            table.add_column(Text(column), justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)

    for profile in profiles:
        console.print(Text(heading(profile), style="bold"))
        for sentence in profile.verdict:
            console.print(Text(f"  {sentence}"))
        for table in tables(profile):
            draw(table.title, table.header, table.rows)
        for part, why in profile.missing.items():
            console.print(Text(f"  no {part}: {why}", style="dim"))
    moved = byte_table(profiles)
    if moved.rows:
        draw(moved.title, moved.header, moved.rows)
