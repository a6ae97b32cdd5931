"""One colour, marker and line style an implementation, the same in every plot.

The hue says the family (Okabe-Ito hues, which stay apart for colour-blind readers), the shade, marker and line
style say the backend. Styles follow the position in the implementation table: a new line there needs nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gsbench.report.ratios import SUBJECT, family, in_order
from gskernels.table import IMPLEMENTATIONS

FAMILY_SHADES: dict[str, tuple[str, ...]] = {
    "dense": ("#1a1a1a", "#6b6b6b"),
    "bottleneck": ("#008a63", "#4fc3a1"),
    "masked_dense": ("#c2669a", "#7d3560"),
    "fixed_fan_in": ("#56b4e9", "#0b3c63", "#0072b2", "#9fd8d8", "#2f5fd0", "#3aa6b9"),
    "group_shared": ("#e69f00", "#d55e00", "#8c2d04", "#f4714a", "#b8912e", "#5c3a21"),
}
OTHER_SHADES = ("#7a4fbf", "#9a8500", "#3d7a7a", "#a05050")
FAMILY_MARKERS = {
    "dense": "sD", "bottleneck": "DsX", "masked_dense": "Xdp", "fixed_fan_in": "v<>^hp", "group_shared": "Pod*",
}  # fmt: skip
Dashes = tuple[int, tuple[float, ...]]
LINES: tuple[str | Dashes, ...] = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), ":", (0, (6, 2)))
FAMILY_LINES: dict[str, tuple[str | Dashes, ...]] = {"group_shared": ((0, (3, 1)), "-", "-.", "--")}


@dataclass(frozen=True)
class Style:
    color: str
    marker: str
    line: str | Dashes
    width: float
    layer: int  # drawn above lower ones


def palette(names: Iterable[str]) -> dict[str, Style]:
    """Styles of the names. Those in the implementation table never depend on what else is drawn."""
    known = [implementation.name for implementation in IMPLEMENTATIONS]
    ordered = in_order([*known, *names])
    strange = list(dict.fromkeys(family(name) for name in ordered if family(name) not in FAMILY_SHADES))
    position: dict[str, int] = {}
    styles = {}
    for name in ordered:
        kind = family(name)
        i = position[kind] = position.get(kind, -1) + 1
        shades = FAMILY_SHADES.get(kind) or (OTHER_SHADES[strange.index(kind) % len(OTHER_SHADES)],)
        markers = FAMILY_MARKERS.get(kind, "o^sDvP")
        lines = FAMILY_LINES.get(kind, LINES)
        width, layer = (2.3, 3) if kind == SUBJECT else (1.5, 2)
        color, marker, line = shades[i % len(shades)], markers[i % len(markers)], lines[i % len(lines)]
        styles[name] = Style(color, marker, line, width, layer)
    return styles
