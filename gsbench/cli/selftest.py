"""gsbench selftest: how often the gate cries wolf here, and what it finds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from gsbench.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError

_QUICK = ["timing.budget_s=0.02", "timing.warmup_s=0", "timing.max_samples=40"]
_AGREE = 6  # cases that independent timers time as well


def selftest(
    suite: Annotated[str, typer.Option(help="Name of a suite or path of a .toml file.")] = "smoke",
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="Override KEY=V1,V2; repeatable.")] = None,  # noqa: UP045
    only: Annotated[Optional[list[str]], typer.Option(help="Implementations to keep: a name or glob; repeatable.")] = None,  # noqa: UP045
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    replicates: Annotated[int, typer.Option(min=2, help="Processes a side.")] = 5,
    experiments: Annotated[int, typer.Option(min=1, help="How often the whole is repeated.")] = 1,
    budget: Annotated[str, typer.Option(help="Begin no experiment that would end after this time, such as 10m.")] = "",
    plant: Annotated[str, typer.Option(help="Slowdowns to plant.")] = "1%,2%,5%",
    out: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("results"),
    name: Annotated[str, typer.Option(help="Name of the self-test's folder (default: selftest-suite-device-time).")] = "",
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("reports/selftest"),
    extend: Annotated[bool, typer.Option(help="As the gate: as many processes again for unclear cases.")] = True,
    analyse_only: Annotated[Optional[Path], typer.Option("--analyse", help="Only report on this folder.")] = None,  # noqa: UP045
    quick: Annotated[bool, typer.Option("--quick", help="Two processes a side and few samples: does it work?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the harness itself: A/A false alarms, planted slowdowns, the smallest effect found, the timers.

    Exit codes: 0 false alarms within the bar (1 % on a GPU, 2 % on a CPU), 1 more, 2 bad input, 3 nothing measured.

    Example: gsbench selftest --suite backward --experiments 2 --report reports/h200/selftest
    """
    from gsbench.cli.run import parse_duration
    from gsbench.report import selftests
    from gsbench.selftest import analyse, shares

    planted, budget_s = shares(plant), parse_duration(budget) if budget else None
    folder = analyse_only
    if folder is None:
        settings = [*(_QUICK if quick else []), *(set_ or [])]
        try:
            processes = 2 if quick else replicates
            folder = _measure(
                suite, settings, only or [], device, processes, experiments, planted, out, name, extend, budget_s
            )
        except KeyboardInterrupt:
            typer.echo("interrupted; nothing can be said of a part", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
    found = analyse(folder)
    files = selftests.write(found, report)
    if as_json:
        typer.echo(selftests.to_json(found))
    else:
        typer.echo(selftests.sentence(found))
        typer.echo(f"{files[0]}: the report; {folder}: the runs")
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


def _measure(
    suite: str, settings: list[str], only: list[str], device: str, replicates: int, experiments: int,
    planted: Sequence[float], out: Path, name: str, extend: bool, budget_s: float | None,
) -> Path:  # fmt: skip
    """Experiments of interleaved processes: side a, and side b with the planted slowdowns beside it."""
    import sys
    import time

    from gsbench import plan as planning
    from gsbench.cli import device as devices
    from gsbench.cli.progress import Progress
    from gsbench.implementations import all_implementations
    from gsbench.measure import environment
    from gsbench.measure.client import WorkerClient, WorkerGone
    from gsbench.measure.interleaved import Interleaved, Side
    from gsbench.measure.interleaved import only as part_of
    from gsbench.measure.session import run_name
    from gsbench.selfruns import INSTRUMENT, write
    from gsbench.selftest import name_of, undecided
    from gsbench.suite import load_suite

    target = devices.resolve(device)
    chosen, resolved = load_suite(suite, devices.kind(target), settings)
    chosen = chosen.model_copy(update={"energy": False})  # a window of a second for each planted case as well
    plan = planning.build(chosen, devices.kind(target), all_implementations(), only)
    folder = out / (name or run_name(f"selftest-{resolved['name']}", devices.kind(target)))
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --name, or report on it with --analyse {folder}")
    versions, fingerprint = environment.versions(), environment.code_fingerprint()
    sides = (
        Side("a", versions, fingerprint, plants={}),
        Side("b", versions, fingerprint, plants={share: name_of(share) for share in planted}),
    )
    began, ceilings = time.monotonic(), dict[str, Any]()
    with Progress(2 * replicates * experiments * len(plan.cases)) as view:
        for experiment in range(1, experiments + 1):
            spent_s = time.monotonic() - began
            if budget_s is not None and experiment > 1 and spent_s * experiment / (experiment - 1) > budget_s:
                typer.echo(f"{experiments - experiment + 1} experiments left out: the budget would not suffice", err=True)
                break
            here = folder / f"{experiment:02}"
            command = ["gsbench", *sys.argv[1:]]
            session = Interleaved(chosen, resolved, target, here, sides, view, command, ceilings)
            for number in session.replicates(plan, range(1, replicates + 1)):
                view.say(f"experiment {experiment} of {experiments}, processes {number} of {replicates}")
            unclear = part_of(plan, undecided(here) if extend else [])
            if unclear.cases:
                view.more(2 * replicates * len(unclear.cases))
                for number in session.replicates(unclear, range(replicates + 1, 2 * replicates + 1)):
                    view.say(f"{len(unclear.cases)} cases unclear: processes {number} of {2 * replicates}")
            ceilings = session.ceilings
        view.say("time some cases by other means")
        worker = WorkerClient(target, folder / "worker.log", chosen.timing.timeout_s).open()
        try:
            cases = [case.to_dict() for case in plan.blocks()[0][:_AGREE]]
            told = list(worker.request(do="instrument", cases=cases))[-1]
        except WorkerGone as e:
            raise UserError(f"the timers could not be tested: {e.reason}; its output is in {folder}/worker.log") from None
        finally:
            worker.close()
    (folder / INSTRUMENT).write_text(json.dumps({k: told[k] for k in ("timers", "agreement")}, indent=1), encoding="utf-8")
    write(folder)
    return folder
