"""The choice, and the words for it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gsbench.advise.evidence import NEAR, Estimate, Evidence, grouped
from gsbench.advise.memory import largest_labels, needed
from gsbench.case import Point
from gskernels.table import BACKWARD, FORWARD, Implementation

DEFAULT_FAN_IN = 64  # the suites' default point
CLOSE = 1.10  # a smaller group whose time is within this of the fastest is preferred: its list serves fewer labels
WHAT = {"train": (FORWARD, BACKWARD), "forward": (FORWARD,), "backward": (BACKWARD,)}


@dataclass(frozen=True)
class Choice:
    """One implementation at one K and G (None where it has none). ms: all passes. error, distance: the largest of theirs."""

    implementation: str
    layout: str
    fan_in: int | None
    group_size: int | None
    ms: float
    error_half: float | None
    error_most: float | None
    distance: float
    memory_bytes: int
    fits: bool
    passes: dict[str, Estimate]


@dataclass(frozen=True)
class Frontier:
    """The largest L that fits. recorded: the largest L that ran; oom: the smallest that ran out of memory."""

    implementation: str
    labels: int
    recorded: int
    oom: int | None


@dataclass(frozen=True)
class Answer:
    point: str
    device: str
    runs: tuple[str, ...]
    memory_bytes: int | None
    what: str
    sentences: tuple[str, ...]
    choices: tuple[Choice, ...]  # the best G of each implementation at the K in question, the fastest first
    fan_ins: tuple[Choice, ...]  # the best choice of a sparse layer at each K
    frontier: tuple[Frontier, ...]
    silent: tuple[str, ...]  # implementations without evidence near

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def answer(
    evidence: Evidence, implementations: Sequence[Implementation], point: Point, what: str, fan_in: int | None,
    group_size: int | None, memory_bytes: int | None,
) -> Answer:  # fmt: skip
    """point's own fan-in and group size count only where they are given."""
    memory = memory_bytes or evidence.memory_bytes
    passes = WHAT[what]
    k = fan_in or min(DEFAULT_FAN_IN, point.shape.dim)
    sizes = _recorded(evidence, "group_size") if group_size is None else [group_size]
    able = [i for i in implementations if set(passes) <= set(i.passes)]
    choices, silent = [], []
    for one in able:
        found = _best(evidence, one, passes, point, k, sizes, memory)
        if found is None:
            silent.append(one.name)
        else:
            choices.append(found)
    choices.sort(key=lambda c: (not c.fits, c.ms))
    others = sorted({*_recorded(evidence, "fan_in"), k}) if fan_in is None else [k]
    sparse = [i for i in able if i.layout == "sparse"]
    at_each_k = [
        _fastest(evidence, sparse, passes, point, each, sizes, memory) for each in others if each <= point.shape.dim
    ]
    frontier = () if memory is None else tuple(_frontier(evidence, able, choices, point, passes, memory))
    return Answer(
        f"B={point.shape.batch} D={point.shape.dim} L={point.shape.labels:,} {point.pattern} {point.dtype}", evidence.device,
        tuple(evidence.runs), memory, what, tuple(_sentences(choices, k, fan_in is None, what, memory)), tuple(choices),
        tuple(c for c in at_each_k if c is not None), frontier, tuple(silent),
    )  # fmt: skip


def _choice(
    evidence: Evidence, one: Implementation, passes: Sequence[str], point: Point, memory: int | None
) -> Choice | None:
    """None where a pass has no evidence near."""
    found: dict[str, Estimate] = {}
    for pass_ in passes:
        estimate = evidence.estimate(one, pass_, point)
        if estimate is None:
            return None
        found[pass_] = estimate
    held = needed(evidence, one, passes, point)
    halves, mosts = [e.error_half for e in found.values()], [e.error_most for e in found.values()]
    return Choice(
        one.name, one.layout, None if one.layout == "dense" else point.shape.fan_in,
        point.shape.group_size if grouped(one) else None, sum(e.ms for e in found.values()),
        None if None in halves else max(h for h in halves if h is not None),
        None if None in mosts else max(m for m in mosts if m is not None),
        max(e.distance for e in found.values()), held, memory is None or held <= memory, found,
    )  # fmt: skip


def _best(
    evidence: Evidence, one: Implementation, passes: Sequence[str], point: Point, fan_in: int, sizes: Sequence[int],
    memory: int | None,
) -> Choice | None:  # fmt: skip
    """Over the group sizes: the smallest whose time is close to the fastest's."""
    found = []
    for size in sizes if grouped(one) else sizes[:1]:
        if size <= point.shape.labels:
            where = replace(point, shape=replace(point.shape, fan_in=fan_in, group_size=size))
            choice = _choice(evidence, one, passes, where, memory)
            found += [choice] if choice is not None else []
    found = [c for c in found if c.fits] or found
    fastest = min((c.ms for c in found), default=0.0)
    return next((c for c in sorted(found, key=lambda c: c.group_size or 0) if c.ms <= CLOSE * fastest), None)


def _fastest(
    evidence: Evidence, implementations: Sequence[Implementation], passes: Sequence[str], point: Point, fan_in: int,
    sizes: Sequence[int], memory: int | None,
) -> Choice | None:  # fmt: skip
    found = [_best(evidence, one, passes, point, fan_in, sizes, memory) for one in implementations]
    return min((c for c in found if c is not None), key=lambda c: (not c.fits, c.ms), default=None)


def _recorded(evidence: Evidence, axis: str) -> list[int]:
    """The values of an axis that timed records have."""
    return sorted({getattr(one.case.point.shape, axis) for members in evidence.seen.values() for one in members}) or [32]


def _frontier(
    evidence: Evidence, able: Sequence[Implementation], choices: Sequence[Choice], point: Point, passes: Sequence[str],
    memory: int,
) -> list[Frontier]:  # fmt: skip
    named = {i.name: i for i in able}
    found = []
    for choice in choices:
        one = named[choice.implementation]
        k, g = choice.fan_in or 1, choice.group_size or 1
        where = replace(point, shape=replace(point.shape, fan_in=k, group_size=g))
        ran = [s.case.point.shape.labels for p in passes for s in evidence.seen.get((one.name, p), ())]
        failed = [r.case for r in evidence.failed if r.case.implementation == one.name and r.case.pass_ in passes]
        out = [case.point.shape.labels for case in failed]
        labels = largest_labels(evidence, one, passes, where, memory)
        found.append(Frontier(one.name, labels, max(ran), min(out, default=None)))
    return sorted(found, key=lambda f: -f.labels)


# ---- words ------------------------------------------------------------------------------------------------------


def _sentences(choices: Sequence[Choice], k: int, assumed: bool, what: str, memory: int | None) -> list[str]:
    """Which sparse layer, what it takes, and what the dense ones would take."""
    fitting = [c for c in choices if c.fits]
    if not choices:
        return [f"No evidence near this point: no implementation was recorded within {NEAR:g} doublings of it. Measure it: "
                "gsbench run --suite backward --set batch=... --set labels=..."]  # fmt: skip
    if not fitting:
        least = min(choices, key=lambda c: c.memory_bytes)
        needs = f"{least.implementation} needs the least, {gigabytes(least.memory_bytes)}"
        return [f"Nothing fits {gigabytes(memory or 0)}: {needs}."]
    best = next((c for c in fitting if c.layout == "sparse"), None)
    says = []
    if best is None:
        says.append(
            f"No sparse layer has evidence near this point; the fastest of the others is {fitting[0].implementation}."
        )
        best = fitting[0]
    sizes = {"K": best.fan_in, "G": best.group_size}
    kind = "".join(f" {letter}={size}" for letter, size in sizes.items() if size is not None)
    unit = "a step's output layer (forward and backward)" if what == "train" else what
    parts = " + ".join(f"{p} {e.ms:.3g}" for p, e in best.passes.items())
    detail = f" ({parts})" if len(best.passes) > 1 else ""
    says.append(f"Use {best.implementation}{kind}: {best.ms:.3g} ms{detail} for {unit}, {error_words(best)}, "
                f"and {gigabytes(best.memory_bytes)}.")  # fmt: skip
    if assumed:
        says.append(
            f"K={k} is the suites' default: times say nothing of accuracy; take the K that your validation asks for."
        )
    for layout, name in (("bottleneck", "The FLOPs-matched bottleneck"), ("dense", "The dense layer")):
        other = next((c for c in choices if c.layout == layout and c is not best), None)
        if other is not None:
            ratio = other.ms / best.ms
            short = "" if other.fits else f", and does not fit: {gigabytes(other.memory_bytes)}"
            says.append(f"{name} ({other.implementation}) takes {other.ms:.3g} ms, {ratio:.2f} x as long{short}.")
    return says


def error_words(choice: Choice) -> str:
    if choice.distance == 0.0:
        return "recorded at this very point"
    if choice.error_half is None or choice.error_most is None:
        return "with too few records to say how sure that is"
    return f"within {choice.error_half:.0%} as a rule and {choice.error_most:.0%} in nine of ten cases"


def errors(choice: Choice) -> str:
    """The same in figures, for a table."""
    if choice.distance == 0.0:
        return "recorded"
    if choice.error_half is None or choice.error_most is None:
        return "unknown"
    return f"{choice.error_half:.0%}, {choice.error_most:.0%}"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
