"""The report as one self-contained HTML page and as Markdown, from the same sections."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from gsbench.report.answer import Answer
from gsbench.report.figures import Drawing
from gsbench.report.tables import Table


@dataclass(frozen=True)
class Image:
    """A figure in its place: file names relative to the report, PNG bytes for the page."""

    drawing: Drawing
    png_file: str
    svg_file: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.drawing.png).decode()


@dataclass(frozen=True)
class Section:
    """What the report says of one run."""

    anchor: str
    name: str
    title: str
    facts: list[tuple[str, str]]  # device, software, ceilings
    notices: list[str]  # what a reader must know before the figures
    answers: list[Answer]
    summaries: list[tuple[str, Table]]  # setting, table
    images: list[Image]
    tables: list[tuple[str, list[Table]]]  # setting, tables
    trouble: list[Table]  # flags, failures
    cases: Table
    command: str
    how: str = ""
    headings: list[str] = field(default_factory=list)

    def images_of(self, heading: str) -> list[Image]:
        return [image for image in self.images if image.drawing.heading == heading]


def html(title: str, sections: Sequence[Section], agreement: Sequence[Table]) -> str:
    """One page without any reference to another file or host; every text from a record is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(files("gsbench.report").joinpath("template.html.j2").read_text(encoding="utf-8"))
    return template.render(title=title, sections=sections, agreement=agreement) + "\n"


def markdown(title: str, sections: Sequence[Section], agreement: Sequence[Table]) -> str:
    lines = [f"# {escaped(title)}", ""]
    if len(sections) > 1:
        lines += [f"- [{escaped(s.name)}](#{s.anchor})" for s in sections] + [""]
    for section in sections:
        lines += _section(section, alone=len(sections) == 1)
    for table in agreement:
        lines += _table(table, 2)
    return "\n".join(lines).rstrip() + "\n"


def _section(s: Section, alone: bool) -> list[str]:
    lines = [] if alone else [f'<a id="{s.anchor}"></a>', "", f"## {escaped(s.title)} ({escaped(s.name)})", ""]
    lines += [f"> {escaped(notice)}\n" for notice in s.notices]
    for answer in s.answers:
        lines += [f"**{escaped(str(answer.setting))}**", ""] if len(s.answers) > 1 else []
        lines += [" ".join(escaped(sentence) for sentence in answer.sentences), ""]
    lines += [f"- {name}: {escaped(value)}" for name, value in s.facts] + [""]
    for setting, table in s.summaries:
        lines += _table(table, 3, setting)
    for heading in s.headings:
        lines += [f"### {escaped(heading)}", ""]
        for image in s.images_of(heading):
            d = image.drawing
            lines += [f"![{escaped(f'{d.heading}: {d.title}')}]({image.png_file})", ""]
            lines += [f"{escaped(d.caption)} ([SVG]({image.svg_file}))", ""]
    for setting, tables in s.tables:
        for table in tables:
            lines += _table(table, 3, setting)
    for table in s.trouble:
        lines += _table(table, 3)
    lines += _table(s.cases, 3)
    lines += ["### How to reproduce", "", escaped(s.how), ""]
    if s.command:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", s.command)), default=0))
        lines += [f"{fence}sh", s.command, fence, ""]
    return lines


def _table(table: Table, level: int, setting: str = "") -> list[str]:
    if not table.rows:
        return []
    where = f" ({setting})" if setting else ""
    rule = ["---" if i < table.labels else "---:" for i in range(len(table.header))]
    body = []
    for row in table.rows:
        texts = [escaped(cell.text) for cell in row]
        body.append([f"**{text}**" if cell.strong and text else text for cell, text in zip(row, texts, strict=True)])
    rows = [[escaped(h) for h in table.header], rule, *body]
    note = [escaped(table.note), ""] if table.note else []
    heading = "#" * level + f" {escaped(table.title + where)}"
    return [heading, "", *(f"| {' | '.join(row)} |" for row in rows), "", *note]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, code or table borders from a record."""
    one_line = " ".join(text.split())
    no_tags = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]~$])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])", lambda m: "\\" + m.group(0), no_tags)
