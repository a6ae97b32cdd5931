"""The winner map: the fastest implementation over two axes, "tie" where its interval overlaps another's.

A cell is the point with these two coordinates and every other one at the default. The page draws a map over any two
axes from `atlas`; the figure (`maps`) takes the two with most measured cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from gsbench.case import AXES
from gsbench.report.ratios import Comparison, timing_of
from gsbench.report.sweeps import AXIS_TITLES, CATEGORIES, coordinate, coordinates, describe, short, varying
from gsbench.report.views import Data, Group, View, rounded

MOST = 8000  # comparisons that a page takes


def lead(c: Comparison) -> float | None:
    """Median of the second over that of the first; None where it stood alone."""
    times = sorted(timing_of(record).median_ms for record in c.timed.values())
    return rounded(times[1] / times[0]) if len(times) > 1 else None


def axes_of(group: Group) -> list[str]:
    return [axis for axis in varying(c.point for c in group.comparisons) if axis != "dtype"]


def start(group: Group) -> tuple[str, str] | None:
    """(columns, rows): the two axes over which most cells were measured; an axis and a bare one if only one varies."""
    axes = axes_of(group)
    if not axes:
        return None
    if len(axes) == 1:
        return axes[0], next(axis for axis in AXES if axis != axes[0])
    return max(combinations(axes, 2), key=lambda pair: len(_cells(group, *pair)))


def _cells(group: Group, columns: str, rows: str) -> dict[tuple[int | str, int | str], Comparison]:
    here = coordinates(group.naming.centre)
    cells = {}
    for c in group.comparisons:
        there = coordinates(c.point)
        if all(there[axis] == here[axis] for axis in there if axis not in (columns, rows)):
            cells[there[columns], there[rows]] = c
    return cells


def atlas(group: Group, most: int) -> Data | None:
    """What the page needs for a map over any two axes, of at most so many comparisons; None where no axis varies."""
    first = start(group)
    if first is None:
        return None
    every = [*AXES, *CATEGORIES]
    comparisons = [
        {
            "at": [coordinate(c.point, axis) for axis in every], "winner": c.winner, "tied": sorted(c.tied), "lead": lead(c),
            "ids": [group.ids[r.key] for r in sorted(c.timed.values(), key=lambda r: timing_of(r).median_ms)[:5]],
        }
        for c in group.comparisons[:most]
    ]  # fmt: skip
    centre = [coordinate(group.naming.centre, axis) for axis in every]
    titles = [AXIS_TITLES[axis] for axis in every]
    axes = axes_of(group) if len(axes_of(group)) > 1 else list(first)
    return {"heading": group.heading, "axes": every, "titles": titles, "choice": axes, "start": list(first),
            "centre": centre, "comparisons": comparisons, "cut": max(0, len(group.comparisons) - most)}  # fmt: skip


def maps(group: Group) -> Iterator[View]:
    first = start(group)
    if first is None:
        return
    columns, rows = first
    found = _cells(group, columns, rows)
    across, down = (sorted({key[i] for key in found}, key=lambda v: (isinstance(v, str), v)) for i in (0, 1))
    cells = [
        {"column": across.index(x), "row": down.index(y), "winner": c.winner, "tied": sorted(c.tied), "lead": lead(c)}
        for (x, y), c in found.items()
    ]
    data = {
        "columns": {"title": AXIS_TITLES[columns], "labels": [short(v) for v in across]},
        "rows": {"title": AXIS_TITLES[rows], "labels": [short(v) for v in down]}, "cells": cells,
    }  # fmt: skip
    others = [axis for axis in AXIS_TITLES if axis not in first]
    caption = f"At {describe(group.naming.centre, others)}. The second's time over the first's; tie: the intervals overlap."
    names = sorted({str(cell["winner"]) for cell in cells})
    yield View("map", "winners", group.heading, f"{group.stem}-winners", "fastest implementation", "", caption, data, names)
