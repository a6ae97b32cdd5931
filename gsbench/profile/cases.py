"""Which cases are profiled: one point of a suite, or what a run holds. Pure; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gsbench.case import AXES, PASSES, SHARE_AXES, Case
from gsbench.errors import NothingMeasured, UserError
from gsbench.frame import latest
from gsbench.plan import Plan, build, select
from gsbench.record import Record
from gsbench.store import RunData
from gsbench.suite import Suite, load_suite, validate
from gskernels.table import Implementation

_WORDS = ("pattern", "dtype", "point")
Where = Mapping[str, int | str]


def parse_at(text: str) -> dict[str, int | str]:
    """{"batch": 256, "pattern": "zipf"} of "batch=256,pattern=zipf". Raises UserError that lists the keys."""
    found: dict[str, int | str] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not value or key not in (*AXES, *_WORDS):
            raise UserError(f"--at {item!r}: write KEY=VALUE with a key of {', '.join((*AXES, *_WORDS))}")
        if key in found:
            raise UserError(f"--at {item!r}: {key} is given twice")
        if key in AXES and not value.replace("_", "").isdigit():
            raise UserError(f"--at {item!r}: {key} takes a whole number")
        found[key] = int(value.replace("_", "")) if key in AXES else value
    return found


def check_passes(passes: Sequence[str]) -> None:
    for pass_ in passes:
        if pass_ not in PASSES:
            raise UserError(f"--pass {pass_!r}: allowed are {', '.join(PASSES)}")


def one_point(suite: Suite, where: Where, passes: Sequence[str], source: str) -> Suite:
    """The suite at one point, cold: its default point (the first value of each axis, or the first named point), or the
    point that `where` names, with what else `where` says. Raises UserError."""
    names = [point.name for point in suite.points]
    wanted = where.get("point")
    if wanted is not None and wanted not in names:
        known = f"its points are {', '.join(names)}" if names else "it has none"
        raise UserError(f"--at point={wanted}: {source} has no such point; {known}")
    if suite.axes is not None and wanted is None:
        start = {axis: getattr(suite.axes, axis)[0] for axis in (*AXES, *SHARE_AXES)}
    else:
        chosen = suite.points[names.index(str(wanted)) if wanted is not None else 0]
        start = {axis: getattr(chosen, axis) for axis in (*AXES, *SHARE_AXES)}
    axes = {axis: [where.get(axis, value)] for axis, value in start.items()}
    data: dict[str, Any] = suite.model_dump(mode="json") | {
        "axes": axes, "points": [], "grid": "star", "modes": ["cold"], "passes": list(passes or suite.passes),
        "patterns": [where.get("pattern", suite.patterns[0])], "dtypes": [where.get("dtype", suite.dtypes[0])],
    }  # fmt: skip
    return validate(data, f"{source} --at")


def of_suite(
    name: str, device: str, implementations: Sequence[Implementation], only: Sequence[str], where: Where,
    passes: Sequence[str],
) -> tuple[Suite, dict[str, Any], Plan, list[Case]]:  # fmt: skip
    """(the suite at one point, what the manifest keeps of it, its plan here, cases that can only be compiled here).

    Without a GPU the last are the cases of implementations that need one, at the suite's point for a GPU; of all of them
    where `where` names a point that the suite has for GPUs alone.
    Raises UserError; NothingMeasured where there is neither a plan nor a case to compile.
    """
    full, resolved = load_suite(name, device)
    for_gpu = load_suite(name, "cuda")[0]
    only_on_gpu = where.get("point") not in {point.name for point in full.points} | {None}
    suite = one_point(for_gpu if only_on_gpu else full, where, passes, name)
    plan, why = (Plan([], []), "") if only_on_gpu else _plan(suite, device, implementations, only)
    compiled: list[Case] = []
    if device == "cpu":
        on_gpu, _ = _plan(one_point(for_gpu, where, passes, name), "cuda", implementations, only)
        runs_here = {case.implementation for case in plan.cases}
        compiled = [case for case in on_gpu.cases if case.implementation not in runs_here]
    if not plan.cases and not compiled:
        raise NothingMeasured(why)
    return suite, resolved | suite.model_dump(mode="json"), plan, compiled


def _plan(suite: Suite, device: str, implementations: Sequence[Implementation], only: Sequence[str]) -> tuple[Plan, str]:
    try:
        return build(suite, device, implementations, only), ""
    except NothingMeasured as e:
        return Plan([], []), str(e)


def of_run(
    run: RunData, device: str, implementations: Sequence[Implementation], only: Sequence[str], where: Where,
    passes: Sequence[str],
) -> list[Record]:  # fmt: skip
    """The run's timed records that match, cold ones. Raises UserError where it was timed on another kind of device or holds
    more than one point of what is asked, NothingMeasured where it holds none."""
    names = {i.name for i in select(implementations, only)} if only else None
    if "point" in where:
        raise UserError("--at point=...: a run's records have no names; give the axes")
    found = [
        record for record in latest(run.records)
        if record.timing is not None and record.case.mode == "cold"
        and (names is None or record.case.implementation in names) and (not passes or record.case.pass_ in passes)
        and all(record.case.to_dict()[key] == value for key, value in where.items())
    ]  # fmt: skip
    if not found:
        raise NothingMeasured(f"{run.path}: no timed cold case matches --only, --at and --pass")
    kinds = {record.case.device for record in found}
    if kinds != {device}:
        raise UserError(f"{run.path}: timed on {', '.join(sorted(kinds))}, and this is {device}: profile on the same device")
    points = sorted({str(record.case.point) for record in found})
    if len(points) > 1:
        raise UserError(f"{run.path}: {len(points)} points match; name one with --at, such as: {points[0]}")
    return found
