"""The report as one self-contained page: its words as HTML, its records once as JSON, which assets/*.js draw."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from gsbench.report import embed, tables
from gsbench.report.contents import SECTIONS, Report, dump
from gsbench.report.palette import PHASE_COLORS, Style

SCRIPTS = ("common.js", "kinds.js", "plots.js", "map.js", "cases.js")
SYMBOLS = {
    "o": "circle", "s": "square", "D": "diamond", "d": "diamond-tall", "X": "x", "v": "triangle-down", "<": "triangle-left",
    ">": "triangle-right", "^": "triangle-up", "h": "hexagon", "p": "pentagon", "P": "cross", "*": "star",
}  # fmt: skip  # matplotlib's markers, as Plotly calls them
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def html(report: Report) -> str:
    """One page without any reference to another file or host; every text from a record is escaped."""
    from jinja2 import Environment, StrictUndefined

    used = {entry.record.case.implementation for entry in report.entries}
    drawn = {number for view in report.views if view.kind != "roof" for number in _numbers(view.data)}
    entries = embed.chosen(report.entries, drawn)
    strips, thinned = embed.strips(entries, report.samples)
    cut = len(report.entries) - len(entries)
    notices = [
        *([f"This page holds {len(entries):,} of {len(report.entries):,} cases, those that are drawn first; gsbench report "
           "--csv writes all."] if cut else []),
        *report.samples.notices, *([thinned] if thinned else []),
    ]  # fmt: skip
    data = {
        "views": [{"kind": v.kind, "names": v.implementations, **v.data} for v in report.views],
        "maps": report.atlases,
        "styles": {name: _style(style) for name, style in report.styles.items() if name in used},
        "phases": PHASE_COLORS,
        "cases": embed.table(entries),
        "samples": strips,
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(_asset("page.html.j2"))
    page = template.render(
        report=report, sections=SECTIONS, exponents=tables.shortened(tables.exponents(report.views)),
        overview=list(map(tables.shortened, report.overview())), trouble=list(map(tables.shortened, report.trouble())),
        common=_common(report),
        families=[tables.shortened(tables.by_family(group)) for group in report.groups], notices=notices, cases=len(entries),
        css=_asset("report.css"), js="\n".join(map(_asset, SCRIPTS)), plotly=_asset("plotly-basic.min.js"), data=dump(data),
    )  # fmt: skip
    return page + "\n"


def _common(report: Report) -> list[tuple[str, str]]:
    """The facts that all runs of a report share."""
    first, *others = report.parts
    return [fact for fact in first.facts if others and all(fact in part.facts for part in others)]


def _asset(name: str) -> str:
    return (files("gsbench.report") / "assets" / name).read_text(encoding="utf-8")


def _numbers(data: dict[str, Any]) -> list[int]:
    """The cases that a view draws."""
    rows = [row["id"] for row in data.get("rows", ()) if isinstance(row, dict) and "id" in row]
    return rows + [point[-1] for series in data.get("series", ()) for point in series["points"]]


def _style(style: Style) -> dict[str, Any]:
    """A style in Plotly's words."""
    dash = DASHES[style.line] if isinstance(style.line, str) else ",".join(f"{3 * part:g}px" for part in style.line[1])
    color = [style.color, style.dark]
    return {"color": color, "symbol": SYMBOLS[style.marker], "dash": dash, "width": style.width, "layer": style.layer}
