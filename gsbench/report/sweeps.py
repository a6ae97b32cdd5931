"""Cuts through the measured points: which axes vary, the default point, and the points along one axis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsbench.case import AXES, Point
from gsbench.report.ratios import Comparison
from gskernels.shape import Shape

CATEGORIES = ("pattern", "dtype", "head_share")
SYMBOLS = {"batch": "B", "dim": "D", "labels": "L", "fan_in": "K", "group_size": "G"}
AXIS_TITLES = {
    "batch": "batch size B", "dim": "width of the input D", "labels": "labels L", "fan_in": "fan-in K",
    "group_size": "group size G", "pattern": "index pattern", "dtype": "dtype",
    "head_share": "share of the labels in the dense head",
}  # fmt: skip


def coordinate(point: Point, axis: str) -> int | str:
    """A number of an axis, or the word of a category: nothing for a layer without a head."""
    if axis == "head_share":
        return f"head={point.shape.head_share:g}" if point.shape.head_share else ""
    return str(getattr(point, axis)) if axis in CATEGORIES else int(getattr(point.shape, axis))


def coordinates(point: Point) -> dict[str, int | str]:
    return {axis: coordinate(point, axis) for axis in (*AXES, *CATEGORIES)}


def short(value: int | str) -> str:
    """Plain up to 9999, then 131k or 1.05M."""
    if isinstance(value, str) or value < 10_000:
        return str(value)
    return f"{value / 1e6:.3g}M" if value >= 999_500 else f"{value / 1e3:.3g}k"


def varying(points: Iterable[Point]) -> list[str]:
    """Axes with more than one value, in their fixed order."""
    seen = [coordinates(point) for point in points]
    return [axis for axis in (*AXES, *CATEGORIES) if len({c[axis] for c in seen}) > 1]


def declared_default(suite: dict[str, Any]) -> dict[str, int | str]:
    """What the suite of a manifest says of its default point: the first value of each axis, pattern and dtype.

    A suite of named points only has its first one as the default.
    """
    axes = suite.get("axes")
    if not axes:
        axes = {axis: [getattr(shape, axis)] for shape in list(suite_names(suite))[:1] for axis in AXES}
    lists = {"pattern": suite.get("patterns"), "dtype": suite.get("dtypes"), **(axes if isinstance(axes, dict) else {})}
    return {a: values[0] for a, values in lists.items() if a in AXIS_TITLES and isinstance(values, list) and values}


def default_point(points: Sequence[Point], declared: dict[str, int | str]) -> Point:
    """The point that agrees with most declared coordinates, all that were measured.

    Where several do (nothing is declared, or the default was not measured), the centre of a star-shaped sweep:
    the point with most others that differ in one axis only; of a full grid, the nearest to the middle of every axis.
    """
    table = {point: coordinates(point) for point in points}
    ranks = {
        axis: {v: i for i, v in enumerate(sorted({c[axis] for c in table.values()}, key=_number_then_text))}
        for axis in (*AXES, *CATEGORIES)
    }

    def all_but(axis: str, point: Point) -> tuple[object, ...]:
        return axis, *(value for other, value in table[point].items() if other != axis)

    alike = Counter(all_but(axis, point) for point in table for axis in ranks)

    def neighbours(point: Point) -> int:
        return sum(alike[all_but(axis, point)] - 1 for axis in ranks)

    def off_centre(point: Point) -> float:
        return sum(abs(ranks[axis][value] - (len(ranks[axis]) - 1) / 2) for axis, value in table[point].items())

    def agreement(point: Point) -> int:
        return sum(table[point].get(axis) == value for axis, value in declared.items())

    most = max(agreement(point) for point in table)
    nearest = [point for point in table if agreement(point) == most]
    if len(nearest) == 1:
        return nearest[0]
    return min(nearest, key=lambda p: (-neighbours(p), off_centre(p), str(p)))


def _number_then_text(value: int | str) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, value)


def along(comparisons: Iterable[Comparison], axis: str, centre: Point) -> list[Comparison]:
    """The comparisons that differ from the default point in that axis only, ordered along it."""
    here = coordinates(centre)
    line = []
    for c in comparisons:
        there = coordinates(c.point)
        if all(there[other] == here[other] for other in there if other != axis):
            line.append(c)
    return sorted(line, key=lambda c: _number_then_text(coordinate(c.point, axis)))


@dataclass(frozen=True)
class Naming:
    """What a table calls a point: the suite's name for it, or what sets it apart from the default point."""

    centre: Point
    named: dict[Shape, str] = field(default_factory=dict)

    def of(self, point: Point) -> str:
        """In words: "default", "B=1 zipf", or a name of the suite such as "A670K fp16"."""
        here, there = coordinates(self.centre), coordinates(point)
        apart = [axis for axis in here if here[axis] != there[axis]]
        if point.shape not in self.named:
            return describe(point, apart) or "default"
        return " ".join([self.named[point.shape], *(str(there[axis]) for axis in apart if axis in CATEGORIES)])

    @property
    def legend(self) -> str:
        """What the names stand for."""
        words = [f"{name}: {_of_shape(shape)}." for shape, name in self.named.items()]
        if self.centre.shape not in self.named:
            words.insert(0, f"Default: {describe(self.centre, AXIS_TITLES)}.")
        return " ".join(words)


def suite_names(suite: dict[str, Any]) -> dict[Shape, str]:
    """The points that the suite of a manifest gives by name."""
    points = suite.get("points")
    named = {}
    for point in points if isinstance(points, list) else []:
        if isinstance(point, dict) and point.get("name") and all(isinstance(point.get(a), int) for a in AXES):
            head = float(point.get("head_share") or 0)
            named[Shape(**{axis: point[axis] for axis in AXES}, head_share=head)] = str(point["name"])
    return named


def _of_shape(shape: Shape) -> str:
    return " ".join(f"{SYMBOLS[axis]}={getattr(shape, axis):,}" for axis in AXES)


def from_centre(comparisons: Iterable[Comparison], centre: Point) -> list[Comparison]:
    """The default point first, then along each axis in turn, then what differs in several."""
    here = coordinates(centre)

    def distance(c: Comparison) -> tuple[object, ...]:
        there = coordinates(c.point)
        apart = [i for i, axis in enumerate(here) if here[axis] != there[axis]]
        return len(apart), apart, [_number_then_text(value) for value in there.values()]

    return sorted(comparisons, key=distance)


def describe(point: Point, axes: Iterable[str]) -> str:
    """The named coordinates in words: B=256 L=131,072 zipf."""
    words = []
    for axis in axes:
        value = coordinate(point, axis)
        words.append(f"{SYMBOLS[axis]}={value:,}" if isinstance(value, int) else value)
    return " ".join(word for word in words if word)
