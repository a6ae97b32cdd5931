"""What a fixed order of sums costs: every implementation beside its variant NAME_deterministic."""

from __future__ import annotations

from collections.abc import Sequence

from gsbench.case import AXES
from gsbench.report.ratios import Comparison, Ratio, by_pass, geometric_mean, in_order, quotient
from gsbench.report.sweeps import default_point, describe
from gsbench.report.text import interval, times

ORDERED = "_deterministic"


def prices_of_order(group: Sequence[Comparison]) -> list[str]:
    """A sentence for each such pair and pass of one setting: the ratio at the default point, and over all points."""
    names = in_order(name for c in group for name in c.timed if name + ORDERED in c.timed)
    return [_price(name, pass_, of_pass) for pass_, of_pass in by_pass(group).items() for name in names
            if any(name in c.timed and name + ORDERED in c.timed for c in of_pass)]  # fmt: skip


def _price(name: str, pass_: str, group: Sequence[Comparison]) -> str:
    ratios: dict[object, Ratio] = {
        c.point: quotient(c.timed[name + ORDERED], c.timed[name])
        for c in group
        if name in c.timed and name + ORDERED in c.timed
    }
    center = default_point([c.point for c in group], {})
    if center not in ratios:
        center = next(c.point for c in group if c.point in ratios)
    values = [ratio.value for ratio in ratios.values()]
    mean, ends = times(geometric_mean(values)), f"from {times(min(values))} to {times(max(values))}"
    all_points = f" (geometric mean of {len(values)} {mean}, {ends})" if len(values) > 1 else ""
    return (
        f"A fixed order of sums in {pass_} takes {interval(ratios[center])} the time of {name} "
        f"at {describe(center, AXES)}{all_points}."
    )
