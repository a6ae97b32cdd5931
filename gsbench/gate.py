"""The regression gate: a run against a baseline, each regression with its cause, and an exit code. Imports no torch.

    0  nothing regressed
    1  a case is slower, or no longer timed, and no quarantine excuses it
    3  not comparable, or nothing decided: another machine, cases missing, all unclear, or a control that failed

Bad input is a UserError (2). A control is a case whose binary is unchanged: where it moved, the machine moved, and
no verdict of that run is believed (3, even where others are slower).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gsbench import baseline
from gsbench.anchor import Anchored, anchored
from gsbench.case import Case
from gsbench.compare import GROUPINGS, Compared, NotComparable, Pair, compare_runs
from gsbench.diagnosis import Diagnosis, diagnose, of_broken
from gsbench.differences import Difference, joined
from gsbench.errors import EXIT_FAILED, EXIT_NOTHING, EXIT_OK, NothingMeasured
from gsbench.frame import part, read_runs
from gsbench.policy import Policy, Quarantine
from gsbench.store import RunData

_FIXED = (("device", "name"), ("device", "threads"))  # no anchor makes up for another card
_VERSIONS = (("environment", "driver"), ("environment", "cuda"), ("environment", "torch"), ("environment", "triton"))


@dataclass(frozen=True)
class Finding:
    """A case that got worse: slower, or no longer timed (`pair` is None, `status` says how)."""

    case: Case
    pair: Pair | None
    status: str
    diagnosis: Diagnosis
    quarantine: Quarantine | None  # the entry that matches the case, expired or not


@dataclass(frozen=True)
class Gated:
    """The outcome. `refused` says in lines why it is 3; `warnings` what a reader should know besides."""

    compared: Compared
    regressions: tuple[Finding, ...]
    suspects: tuple[Finding, ...]  # slower by the measurement's fault, as far as the records tell
    quarantined: tuple[Finding, ...]
    refused: tuple[str, ...]
    warnings: tuple[str, ...]
    signatures: tuple[dict[str, Any], ...]  # of the promoted baselines: who, when, why
    anchor: str
    invalid: bool  # a control failed
    exit_code: int


def gate(
    run: Path | Sequence[Path], base: Path | Sequence[Path], policy: Policy, *, anchor: str = "", partial: bool = False,
    paired: bool = False, by: str = "implementation", today: date | None = None,
) -> Gated:  # fmt: skip
    """Judge recorded runs against a stored baseline. run, base: a run, a folder of replicate runs, or a list of either.

    partial: the run may lack cases of the baseline. Raises UserError for bad input (a baseline edited by hand is one)
    and NothingMeasured, with the field and what to do, where the sides cannot be compared.
    """
    before, after = read_runs(base), read_runs(run)
    signatures = [baseline.verify(one.path) for one in before]
    _same_machine(before, after, bool(anchor))
    _same_kind(before, after)
    warnings = [
        f"{one.path}: nobody promoted this baseline, so its files carry no checksum (gsbench baseline promote)"
        for one, signature in zip(before, signatures, strict=True)
        if signature is None
    ]
    warnings += [
        f"{one.path}: {len(twice)} cases are recorded twice, the first {twice[0]}; the later record counts"
        for one in (*before, *after)
        if (twice := baseline.twice(one))
    ]
    divided = anchored(before, after, anchor) if anchor else None
    if divided is not None:
        warnings.append(_drift(divided, anchor))
    sides = (divided.base, divided.new) if divided is not None else (before, after)
    compared = compare_runs(*sides, by=by, tolerance=policy.default, paired=paired, tolerance_of=policy.tolerance)
    lost = divided.lost if divided is not None else ()
    signed = tuple(s for s in signatures if s is not None)
    return judge(
        compared, policy, anchor=anchor, lost=lost, partial=partial, warnings=warnings, signatures=signed, today=today
    )


def judge(
    compared: Compared, policy: Policy, *, anchor: str = "", lost: Sequence[Case] = (), partial: bool = False,
    interleaved: bool = False, warnings: Iterable[str] = (), signatures: tuple[dict[str, Any], ...] = (),
    today: date | None = None,
) -> Gated:  # fmt: skip
    """What follows from a comparison.

    interleaved: both sides took turns in one session, and what was unclear was measured again; it is then a warning.
    """
    day = date.today() if today is None else today
    worse = [_slower(pair, compared, policy, interleaved) for pair in compared.pairs if pair.verdict == "slower"]
    worse += [_broken(gone, compared, policy) for gone in compared.not_comparable if gone.broken]
    excused = [f for f in worse if f.quarantine is not None and day <= f.quarantine.until]
    accused = [f for f in worse if f not in excused]
    suspects = [f for f in accused if f.diagnosis.measurement]
    regressions = [f for f in accused if not f.diagnosis.measurement]
    controls = [
        p for p in compared.pairs if p.control_failed and diagnose(p, compared.environment, interleaved).cause == "noise"
    ]
    gated = [p for p in compared.pairs if not _excuses(policy.quarantine(p.case), day)]
    refused = _refused(compared, controls, suspects, lost, partial)
    if not interleaved and all(p.verdict == "unclear" for p in gated):
        refused.append("every case is unclear or quarantined; take five replicates or more a side")
    said = [*warnings, *_expired(compared, policy, day), *policy.idle(_cases(compared))]
    if unclear := [p for p in gated if p.verdict == "unclear"]:
        said.append(f"{len(unclear)} of {len(gated)} cases are unclear: neither passed nor failed; take more replicates")
    code = EXIT_NOTHING if controls else EXIT_FAILED if regressions else EXIT_NOTHING if refused else EXIT_OK
    return Gated(
        compared, tuple(regressions), tuple(suspects), tuple(excused), tuple(refused), tuple(said), signatures, anchor,
        bool(controls), code,
    )  # fmt: skip


# ---- what may be compared ---------------------------------------------------------------------------------------


def _same_machine(before: Sequence[RunData], after: Sequence[RunData], anchored: bool) -> None:
    """Raises NothingMeasured that names every field in which the machines differ."""
    for fields, mend in (
        (_FIXED, "measure the baseline again on this device, or choose one of it (results/baselines/<gpu>)"),
        (() if anchored else _VERSIONS, "judge ratios to an unchanged implementation with --anchor bottleneck/torch, "
         "or measure here and promote a new baseline"),
    ):  # fmt: skip
        differences = [d for table, key in fields if (d := _differs(table, key, before, after)) is not None]
        if differences:
            words = "; ".join(map(str, differences))
            raise NothingMeasured(f"the baseline ({before[0].path}) is not comparable: {words}; {mend}")


def _differs(table: str, key: str, before: Sequence[RunData], after: Sequence[RunData]) -> Difference | None:
    sides = [{str(part(run.manifest, table).get(key, "unknown")) for run in side} for side in (before, after)]
    if sides[0] == sides[1] and len(sides[0]) == 1:
        return None
    return Difference(key if table == "environment" else f"{table} {key}", joined(sides[0]), joined(sides[1]))


def _same_kind(before: Sequence[RunData], after: Sequence[RunData]) -> None:
    """Raises NothingMeasured where the sides share no case because of one field: dtype, mode, pass ..."""
    cases = [{record.case for run in side for record in run.records} for side in (before, after)]
    if not cases[0] or not cases[1]:
        empty = before if not cases[0] else after
        raise NothingMeasured(f"{empty[0].path}: no case is recorded; measure the suite first (gsbench run)")
    if cases[0] & cases[1]:
        return
    fields: dict[str, Callable[[Case], str]] = {name: GROUPINGS[name] for name in ("dtype", "mode", "pass", "pattern")}
    for name, value in fields.items():
        old, now = ({value(case) for case in side} for side in cases)
        if not old & now:
            words = f"{name} {joined(old)} → {joined(now)}"
            raise NothingMeasured(
                f"the baseline ({before[0].path}) is not comparable: {words}; run the baseline's suite, or choose another"
            )


def _drift(divided: Anchored, anchor: str) -> str:
    spread = f"{divided.least:.3f} to {divided.most:.3f} over {divided.cases} cases"
    return f"the anchor {anchor} itself moved to {divided.drift:.3f} of its base ({spread}): divided out of every ratio"


def _refused(
    compared: Compared, controls: Sequence[Pair], suspects: Sequence[Finding], lost: Sequence[Case], partial: bool
) -> list[str]:
    """Why this comparison is no pass, in lines: each names what and how to mend it."""
    lines = []
    if controls:
        worst = controls[0]
        lines.append(
            f"invalid: {len(controls)} cases moved although their binary is unchanged, the first {worst.case} "
            f"({worst.ratio:.3f}); the machine drifted: measure again, or use --against"
        )
    others = [f for f in suspects if f.case not in {p.case for p in controls}]
    if others:
        lines.append(f"{len(others)} cases are slower by the measurement's fault, the first {others[0].case}: measure again")
    if compared.missing and not partial:
        lines.append(
            f"{len(compared.missing)} cases of the baseline are not in the run, the first {compared.missing[0]}; run the "
            "same suite, or add --partial"
        )
    if lost:
        lines.append(f"{len(lost)} cases have no anchor timed beside them, the first {lost[0]}; measure it at every point")
    lines += _undivided(compared.not_comparable)
    return lines


def _undivided(refused: Sequence[NotComparable]) -> list[str]:
    """Cases timed in the base whose new timing must not be compared; one that works again is no reason."""
    serious = [r for r in refused if not r.broken and r.difference.field != "status"]
    return [f"{r.case}: not comparable: {r.difference}; measure it again the same way" for r in serious[:5]] + (
        [f"{len(serious) - 5} more cases are not comparable"] if len(serious) > 5 else []
    )


# ---- what got worse ---------------------------------------------------------------------------------------------


def _slower(pair: Pair, compared: Compared, policy: Policy, interleaved: bool) -> Finding:
    found = diagnose(pair, compared.environment, interleaved)
    return Finding(pair.case, pair, "slower", found, policy.quarantine(pair.case))


def _broken(gone: NotComparable, compared: Compared, policy: Policy) -> Finding:
    words = f"no longer timed: {gone.difference}"
    return Finding(gone.case, None, words, of_broken(compared.environment), policy.quarantine(gone.case))


def _excuses(quarantine: Quarantine | None, day: date) -> bool:
    return quarantine is not None and day <= quarantine.until


def _expired(compared: Compared, policy: Policy, day: date) -> list[str]:
    """One line for each entry that ran out and still matches a case."""
    matched = {id(q): q for case in _cases(compared) if (q := policy.quarantine(case)) is not None and day > q.until}
    return [
        f"a quarantine ran out on {q.until} and excuses nothing any more: {q.implementation} ({q.why}); "
        "mend the case, or give it a new date"
        for q in matched.values()
    ]


def _cases(compared: Compared) -> list[Case]:
    return [p.case for p in compared.pairs] + [r.case for r in compared.not_comparable] + list(compared.missing)
