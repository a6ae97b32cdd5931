"""The report as Markdown: for a pull request, and beside the page where the figures lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gsbench.report import tables
from gsbench.report.contents import SECTIONS, Part, Report
from gsbench.report.tables import Table

if TYPE_CHECKING:
    from gsbench.report.figures import Plate  # loads matplotlib


def markdown(report: Report, plates: Sequence[Plate] = (), folder: str = "") -> str:
    """Answer, tables and how to reproduce; with the figures where they were drawn into `folder`, relative to the text."""
    lines = [f"# {escaped(report.title)}", ""]
    lines += [f"> {escaped(warning)}\n" for warning in report.warnings()]
    lines += answer_lines(report)
    for table in report.overview():
        lines += _table(table)
    for section, (title, _) in SECTIONS.items():
        drawn = [plate for plate in plates if plate.views[0].section == section]
        lines += [f"## {title}", ""] * bool(drawn)
        for plate in drawn:
            view = plate.views[0]
            picture = f"![{escaped(f'{view.heading}: {view.title}')}]({folder}/{plate.stem}.png)"
            lines += [picture, "", escaped(view.caption), ""]
    for group in report.groups:
        lines += _table(tables.by_family(group))
    lines += _table(tables.exponents(report.views))
    for table in (*report.trouble(), *report.agreement):
        lines += _table(table)
    for part in report.parts:
        lines += _part(part, alone=len(report.parts) == 1)
    return "\n".join(lines).rstrip() + "\n"


def answer_lines(report: Report) -> list[str]:
    """The three sentences, of every device and setting."""
    lines = []
    for label, answer in report.answers:
        lines += [f"**{escaped(label)}**", ""] if label else []
        lines += [" ".join(escaped(sentence) for sentence in answer.sentences), ""]
    return lines


def _part(part: Part, alone: bool) -> list[str]:
    lines = ["## How to reproduce", ""] if alone else [f"## How to reproduce {escaped(part.name)}", ""]
    lines += [f"- {name}: {escaped(value)}" for name, value in part.facts]
    lines += ["", escaped(part.how), ""]
    if part.command:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", part.command)), default=0))
        lines += [f"{fence}sh", part.command, fence, ""]
    return lines


def _table(table: Table) -> list[str]:
    if not table.rows:
        return []
    table = tables.shortened(table)
    rule = ["---" if i < table.labels else "---:" for i in range(len(table.header))]
    body = []
    for row in table.rows:
        texts = [escaped(cell.text) for cell in row]
        body.append([f"**{text}**" if cell.strong and text else text for cell, text in zip(row, texts, strict=True)])
    rows = [[escaped(h) for h in table.header], rule, *body]
    note = [escaped(table.note), ""] if table.note else []
    return [f"### {escaped(table.title)}", "", *(f"| {' | '.join(row)} |" for row in rows), "", *note]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, code or table borders from a record."""
    one_line = " ".join(text.split())
    no_tags = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]~$])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", lambda m: "\\" + m.group(0), no_tags)
