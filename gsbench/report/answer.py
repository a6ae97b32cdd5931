"""The answer in sentences, each figure computed from the comparisons of one setting of one run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gsbench.case import AXES
from gsbench.report.price import prices_of_order
from gsbench.report.ratios import (
    ANCHOR,
    RIVAL,
    SUBJECT,
    Comparison,
    Ratio,
    Setting,
    by_setting,
    geometric_mean,
    in_order,
)
from gsbench.report.sweeps import describe
from gsbench.report.text import times
from gskernels.table import RULE_PASSES

Against = Callable[[Comparison], Ratio | None]


@dataclass(frozen=True)
class Answer:
    """setting: how it was timed. sentences: who wins where; by how much; where group_shared loses; then, a pair of
    implementations each, what a fixed order of sums costs."""

    setting: Setting
    sentences: tuple[str, ...]


def subject_speedup(c: Comparison) -> Ratio | None:
    """The best fixed_fan_in time over the best group_shared time: above 1, sharing wins."""
    return c.speedup(c.subject) if c.subject else None


def subject_to_anchor(c: Comparison) -> Ratio | None:
    """The best group_shared time over that of bottleneck/torch: above 1, sharing loses."""
    return c.to_anchor(c.subject) if c.subject else None


def lost_to_rival(c: Comparison) -> bool:
    """Slower than the best fixed_fan_in, the whole interval."""
    ratio = subject_speedup(c)
    return ratio is not None and ratio.high < 1


def lost_to_anchor(c: Comparison) -> bool:
    ratio = subject_to_anchor(c)
    return ratio is not None and ratio.low > 1


def undecided(ratio: Ratio) -> bool:
    """The interval holds 1: neither side is faster beyond its noise."""
    return ratio.low <= 1 <= ratio.high


def answers(comparisons: Sequence[Comparison]) -> list[Answer]:
    """One answer a setting, cold first; none where nothing was timed. It is about layers: which rule of rewiring is fastest
    is said where nothing else was timed."""
    layers = [c for c in comparisons if c.pass_ not in RULE_PASSES]
    if not layers:
        return [Answer(setting, (_who_wins(group),)) for setting, group in by_setting(comparisons).items()]
    return [
        Answer(setting, (_who_wins(group), _by_how_much(group), _where_it_loses(group), *prices_of_order(group)))
        for setting, group in by_setting(layers).items()
    ]


def place(c: Comparison) -> str:
    """A comparison in words: forward at B=1 D=768 L=131,072 K=32 G=64 uniform bf16."""
    return f"{c.pass_} at {describe(c.point, AXES)} {c.point.pattern} {c.point.dtype}"


def _who_wins(group: Sequence[Comparison]) -> str:
    contests = [c for c in group if len(c.timed) > 1]
    alone = len(group) - len(contests)
    rest = f" ({alone} more had one implementation only)" if alone else ""
    if not contests:
        return f"No two implementations were timed at one point, so no winner can be named{rest}."
    wins = Counter(c.winner for c in contests if not c.tied)
    per_pass = {name: Counter(c.pass_ for c in contests if not c.tied and c.winner == name) for name in wins}
    totals = Counter(c.pass_ for c in contests)
    parts = []
    for name in sorted(in_order(wins), key=lambda name: -wins[name]):
        where = ", ".join(f"{p} {per_pass[name][p]}" for p in totals if per_pass[name][p])
        parts.append(f"{name} in {wins[name]}" + (f" ({where})" if len(totals) > 1 else ""))
    ties = len(contests) - sum(wins.values())
    tied = [f"{ties} {'is' if ties == 1 else 'are'} too close to call"] if ties else []
    passes = f"{len(totals)} {'pass' if len(totals) == 1 else 'passes'}"
    points = len({c.point for c in contests})
    of = f"Of {len(contests)} comparison{'s' * (len(contests) > 1)} ({passes}, {points} point{'s' * (points > 1)}), "
    verdict = f"the fastest is {_listed(parts)}" if parts else "none has a clear winner"
    return of + "; ".join([verdict, *tied]) + rest + "."


def _by_how_much(group: Sequence[Comparison]) -> str:
    if not any(c.subject for c in group):
        return f"No {SUBJECT} implementation was timed, so there is nothing to say of its speed."
    speedup = _spread(group, subject_speedup)
    ratio = _spread(group, subject_to_anchor)
    rival = f"{speedup} as fast as the best {RIVAL}" if speedup else f"not set against {RIVAL} ({_why(group, RIVAL)})"
    anchor = f"takes {ratio} the time of {ANCHOR}" if ratio else f"has no ratio to {ANCHOR} ({_why(group, ANCHOR)})"
    return f"The best {SUBJECT} implementation is {rival}, and {anchor}."


def _where_it_loses(group: Sequence[Comparison]) -> str:
    parts = [
        part
        for part in (
            _losses(group, subject_speedup, lost_to_rival, f"the best {RIVAL}", lambda r: r.value,
                    lambda r: f"{times(r.value)} as fast"),
            _losses(group, subject_to_anchor, lost_to_anchor, ANCHOR, lambda r: -r.value,
                    lambda r: f"{times(r.value)} its time"),
        )
        if part
    ]  # fmt: skip
    if not parts:
        return f"Where {SUBJECT} loses cannot be said: no comparison has it beside {RIVAL} or {ANCHOR}."
    return f"{SUBJECT} loses {' and '.join(parts)}."


def _losses(
    group: Sequence[Comparison], against: Against, lost: Callable[[Comparison], bool], name: str,
    order: Callable[[Ratio], float], in_words: Callable[[Ratio], str],
) -> str:  # fmt: skip
    contests = [(c, r) for c in group if (r := against(c)) is not None]
    if not contests:
        return ""
    losses = sorted(((c, r) for c, r in contests if lost(c)), key=lambda item: order(item[1]))
    unsure = sum(undecided(r) for _, r in contests)
    words = [f"worst: {place(c)}, {in_words(r)}" for c, r in losses[:1]] + [f"{unsure} undecided"] * (unsure > 0)
    note = f" ({'; '.join(words)})" if words else ""
    return f"to {name} in {len(losses) or 'none'} of {len(contests)}{note}"


def _spread(group: Sequence[Comparison], against: Against) -> str:
    """Geometric mean and range in words, and how many intervals hold 1; empty without values."""
    ratios = [r for c in group if (r := against(c)) is not None]
    if not ratios:
        return ""
    values, unsure = [r.value for r in ratios], sum(map(undecided, ratios))
    words = [f"geometric mean of {len(values)}, from {times(min(values))} to {times(max(values))}"] * (len(values) > 1)
    words += [f"{unsure} undecided"] * (unsure > 0)
    return times(geometric_mean(values)) + (f" ({'; '.join(words)})" if words else "")


def _why(group: Sequence[Comparison], reference: str) -> str:
    """Why no comparison has both: the commonest reason."""
    lacking = Counter(c.why_untimed(reference) for c in group if c.subject)
    return lacking.most_common(1)[0][0]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
