"""gsbench run: the main job."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from gsbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NOTHING, UserError


def run(
    suite: Annotated[str, typer.Option(help="Name of a suite (gsbench list suites) or path of a .toml file.")] = "",
    set_: Annotated[
        Optional[list[str]], typer.Option("--set", help="Override KEY=V1,V2; repeatable. Such as batch=64,256")  # noqa: UP045
    ] = None,
    only: Annotated[Optional[list[str]], typer.Option(help="Implementations to keep: a name or glob; repeatable.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the run's folder (default: suite-device-time).")] = "",
    resume: Annotated[Optional[Path], typer.Option(help="Continue this run: cases it has are skipped.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option(help="Resume although code or environment changed; recorded.")] = False,
    budget: Annotated[str, typer.Option(help="Stop after this time, such as 90s, 5m, 1h; resume later.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its modelled bytes and FLOPs only.")] = False,
) -> None:
    """Sweep a suite over the implementations of this device and keep a run in results/.

    [bold]Example:[/] gsbench run --suite backward --set batch=64,256 --only 'group_shared/*' --budget 5m
    """
    from gsbench import plan as planning
    from gsbench.cli import device as devices
    from gsbench.cli.live import Live, print_plan
    from gsbench.implementations import all_implementations
    from gsbench.measure import environment
    from gsbench.measure.session import Session, new_manifest, run_name
    from gsbench.record import SCHEMA
    from gsbench.store import RunWriter, read_run
    from gsbench.suite import from_manifest, load_suite

    budget_s = parse_duration(budget) if budget else None
    implementations = all_implementations()
    if resume is not None:
        if suite or set_ or only:
            raise UserError("--resume continues the run's own suite: leave out --suite, --set and --only")
        before = read_run(resume)
        target = before.manifest.get("target", "cpu")
        only = before.manifest.get("only", [])
        chosen = from_manifest(before.manifest["suite"], str(resume))
    else:
        if not suite:
            raise UserError("which suite? --suite NAME (gsbench list suites), or --resume RUN")
        before, target = None, devices.resolve(device)
        chosen, resolved = load_suite(suite, devices.kind(target), set_)
    plan = planning.build(chosen, devices.kind(target), implementations, only or [])
    if dry_run:
        print_plan(plan, planning.costs(plan, implementations), target)
        return

    fingerprint, versions = environment.code_fingerprint(), environment.versions()
    flags: tuple[str, ...] = ()
    if before is not None and resume is not None:
        flags = _check_same(before.manifest, fingerprint, versions, resume, force)
        writer = RunWriter.resume(resume)
        writer.manifest.setdefault("resumed", []).append({"fingerprint": fingerprint, "forced": bool(flags), **versions})
        recorded = {record.key for record in read_run(resume).records}
    else:
        folder = out / (name or run_name(resolved["name"], devices.kind(target)))
        command = ["gsbench", *sys.argv[1:]]
        manifest = new_manifest(folder.name, resolved, versions, fingerprint, command, SCHEMA)
        manifest |= {"target": target, "only": only or []}
        writer, recorded = RunWriter.create(folder, manifest), set()
    with writer, Live(plan, recorded, writer.path, budget_s) as view:
        session = Session(chosen, target, writer, view, budget_s, flags, force)
        session.run(plan, recorded)
    print(view.summary())
    if session.interrupted or session.out_of_budget:
        why = "interrupted" if session.interrupted else f"the budget of {budget} is spent"
        print(f"{why}; continue with: gsbench run --resume {shlex.quote(str(writer.path))}")
    if session.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    statuses = {record.status for record in read_run(writer.path).records}
    if "ok" not in statuses:
        raise typer.Exit(EXIT_NOTHING)
    if "failed_verification" in statuses:
        raise typer.Exit(EXIT_FAILED)


_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """Seconds of "90s", "5m", "1.5h". Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not match or float(match[1]) == 0:
        raise UserError(f"--budget {text!r}: write a time such as 90s, 5m or 1h")
    return float(match[1]) * _UNITS[match[2]]


def _check_same(
    manifest: dict[str, Any], fingerprint: str, versions: dict[str, Any], path: Path, force: bool
) -> tuple[str, ...]:
    """Validity flags of what is added to the run. Raises UserError where code or environment differ without --force."""
    from gsbench.measure import environment

    before = {**manifest["environment"], "code": manifest["code_fingerprint"]}
    now = {**{key: versions[key] for key in environment.KEPT_ON_RESUME}, "code": fingerprint}
    return ("resumed_with_other_code",) if environment.mixes(path, before, now, force) else ()
