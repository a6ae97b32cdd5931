"""gsbench gate --against: a commit and the work tree, measured in turns in one session, and judged as pairs."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gsbench.errors import EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from gsbench.checkout import Repository
    from gsbench.gate import Gated
    from gsbench.plan import Plan
    from gsbench.policy import Policy
    from gsbench.suite import Suite


@dataclass(frozen=True)
class Request:
    """What to measure: the options of the verb."""

    reference: str
    suite: str
    overrides: list[str]
    only: list[str]
    device: str
    replicates: int
    folders: list[Path]  # of the repository; what both sides import from
    out: Path
    name: str
    allow_dirty: bool


def against(request: Request, policy: Policy) -> Gated:
    """Measure, judge, measure once more what is unclear or slower, judge by all. Raises UserError or NothingMeasured."""
    from gsbench import plan as planning
    from gsbench.checkout import Repository
    from gsbench.cli import device as devices
    from gsbench.implementations import all_implementations
    from gsbench.measure.session import run_name
    from gsbench.suite import load_suite

    if not request.suite:
        raise UserError("--against measures both sides: which suite? --suite NAME (gsbench list suites)")
    target = devices.resolve(request.device)
    repository = Repository.find(Path.cwd(), request.folders)
    commit = repository.commit(request.reference)
    changes = repository.changes()
    if changes and not request.allow_dirty:
        first = f"{len(changes)} files, the first {changes[0]}"
        raise UserError(
            f"--against: the work tree has uncommitted changes ({first}); commit or stash them, or add --allow-dirty "
            "to judge the tree as it is"
        )
    suite, resolved = load_suite(request.suite, devices.kind(target), request.overrides)
    suite = suite.model_copy(update={"energy": False})  # a gate judges times
    plan = planning.build(suite, devices.kind(target), all_implementations(), request.only)
    out = request.out / (request.name or run_name(f"gate-{resolved['name']}", devices.kind(target)))
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --name")
    out.mkdir(parents=True)
    try:
        return _session(request, policy, repository, commit, bool(changes), suite, resolved, plan, target, out)
    finally:
        if not any(out.iterdir()):  # nothing was measured
            out.rmdir()


def _session(
    request: Request, policy: Policy, repository: Repository, commit: str, dirty: bool, suite: Suite,
    resolved: dict[str, Any], plan: Plan, target: str, out: Path,
) -> Gated:  # fmt: skip
    from gsbench.checkout import check_builds
    from gsbench.cli.progress import Progress
    from gsbench.measure import environment
    from gsbench.measure.interleaved import Interleaved, Side, only

    versions = environment.versions()
    with repository.checked_out(commit, out / "reference") as checkout, Progress(
        2 * request.replicates * len(plan.cases)
    ) as view:
        view.say(f"check out {commit[:12]}")
        old, new = repository.library(checkout), repository.library()
        sides = (
            Side("base", {**versions, "git_commit": commit, "git_dirty": False}, environment.code_fingerprint(old), old),
            Side(
                "new", {**versions, "git_commit": repository.commit("HEAD"), "git_dirty": dirty},
                environment.code_fingerprint(new), new,
            ),
        )  # fmt: skip
        session = Interleaved(suite, resolved, target, out, sides, view, ["gsbench", *sys.argv[1:]])
        first = range(1, request.replicates + 1)
        with contextlib.closing(session):
            session.start(first)  # while the reference is tried
            check_builds(old, commit)
            for number in session.replicates(plan, first):
                view.say(f"processes {number} of {request.replicates}")
        found = _judge(out, policy)
        doubtful = only(plan, [pair.case for pair in found.compared.pairs if pair.verdict in ("unclear", "slower")])
        if doubtful.cases:
            view.more(2 * request.replicates * len(doubtful.cases))
            for number in session.replicates(doubtful, range(request.replicates + 1, 2 * request.replicates + 1)):
                view.say(f"{len(doubtful.cases)} cases unclear or slower: processes {number} of {2 * request.replicates}")
            found = _judge(out, policy)
    typer.echo(f"the runs: {out}/base and {out}/new", err=True)
    return found


def _judge(out: Path, policy: Policy) -> Gated:
    from gsbench.compare import compare_runs
    from gsbench.frame import read_runs
    from gsbench.gate import judge

    sides = read_runs(out / "base"), read_runs(out / "new")
    compared = compare_runs(*sides, tolerance=policy.default, paired=True, tolerance_of=policy.tolerance)
    return judge(compared, policy, interleaved=True)


def interruptible(request: Request, policy: Policy) -> Gated:
    """As `against`; Ctrl-C ends the workers, removes the checkout, and exits 130."""
    try:
        return against(request, policy)
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing is judged", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
