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
PHASE_COLORS = {  # of memory, on light and on dark paper
    "weights": ("#0072b2", "#4aa8de"), "indices": ("#56b4e9", "#8fd0f4"), "optimizer state": ("#cc79a7", "#dd9cc0"),
    "logits": ("#e69f00", "#e69f00"), "gradients": ("#d55e00", "#e8843a"), "input": ("#9aa3ae", "#9aa3ae"),
    "temporaries": ("#009e73", "#35c39a"),
}  # fmt: skip
DARK_PAPER = "#1b1e23"
READABLE = 4.5  # contrast of a line or a marker with the paper
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
    dark: str  # the same hue, light enough for dark paper
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
        styles[name] = Style(color, lightened(color), marker, line, width, layer)
    return styles


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2), from 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lightened(color: str) -> str:
    """The colour mixed with white until it can be read on dark paper."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    for share in range(0, 101, 5):
        mixed = "#" + "".join(f"{round(p + (255 - p) * share / 100):02x}" for p in parts)
        if contrast(mixed, DARK_PAPER) >= READABLE:
            return mixed
    raise AssertionError("white can be read on dark paper")
