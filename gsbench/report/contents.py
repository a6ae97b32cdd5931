"""What a report says, from the records to its parts: the page, Markdown, LaTeX and the figures are written from this."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gsbench.frame import device_name, latest, part
from gsbench.report import embed, memory, roofline, tables, views, winners
from gsbench.report.agreement import agreement
from gsbench.report.answer import Answer, answers
from gsbench.report.palette import Style, palette
from gsbench.report.profiles import Shown, profiles
from gsbench.report.ratios import Comparison, compare
from gsbench.report.sweeps import declared_default, suite_names
from gsbench.report.tables import Table
from gsbench.report.text import ceilings_line, device_line, slugs, software_line
from gsbench.report.views import Group, View
from gsbench.store import RunData, being_written

SECTIONS = {  # of plots: title, and what is said where there is nothing to draw
    "speed": ("Speed", "No two implementations were timed at one point, so there is no speed to compare."),
    "winners": ("Winner map", "No axis varies, so there is no map."),
    "roofline": ("Roofline", "The ceilings of the device were not measured, or no case was timed."),
    "memory": ("Memory", "No record holds modelled memory."),
    "scaling": ("Time and growth with L", "No case was timed."),
    "energy": ("Energy", "Energy is not recorded here: a suite asks for it with energy = true, where NVML is there."),
}


@dataclass(frozen=True)
class Part:
    """What is said of one run."""

    anchor: str
    name: str
    title: str
    facts: list[tuple[str, str]]  # device, software, ceilings
    notices: list[str]  # what a reader must know before the figures
    command: str
    how: str
    profiles: list[Shown]


@dataclass(frozen=True)
class Report:
    title: str
    parts: list[Part]
    answers: list[tuple[str, Answer]]  # device and setting, or "" where there is one only
    groups: list[Group]
    views: list[View]
    atlases: list[dict[str, Any]]
    agreement: list[Table]
    entries: list[embed.Entry]
    samples: embed.Samples
    styles: dict[str, Style]

    def of_section(self, section: str) -> dict[str, list[int]]:
        """Heading -> positions of its views; all under "" where a heading has one or two only."""
        found: dict[str, list[int]] = {}
        for i, view in enumerate(self.views):
            if view.section == section:
                found.setdefault(view.heading if section in ("speed", "scaling") else "", []).append(i)
        return found

    def run_of(self, view: View) -> str:
        return next(group.run for group in self.groups if group.heading == view.heading)

    def warnings(self) -> list[str]:
        """What a reader must know before the figures, each once, with the runs that it is said of if not of all."""
        said: dict[str, list[str]] = {}
        for one in self.parts:
            for notice in one.notices:
                said.setdefault(notice, []).append(one.name)
        return [n if len(of) == len(self.parts) else f"{', '.join(of)}: {n}" for n, of in said.items()]

    def overview(self) -> list[Table]:
        return [table for table in (tables.summary(self.groups), tables.losses(self.groups)) if table.rows]

    def trouble(self) -> list[Table]:
        records = [entry.record for entry in self.entries]
        return [table for table in (tables.flags(records), tables.failures(records)) if table.rows]


def build(runs: Sequence[RunData]) -> Report:
    names = _names(runs)
    several = len(runs) > 1
    entries: list[embed.Entry] = []
    groups: list[Group] = []
    drawn: list[View] = []
    pooled: dict[str, list[Comparison]] = {}
    parts = []
    for run, name, anchor in zip(runs, names, slugs(names), strict=True):
        records = latest(run.records)
        ids = {record.key: len(entries) + i for i, record in enumerate(records)}
        entries += [embed.Entry(number, name, record) for number, record in zip(ids.values(), records, strict=True)]
        comparisons = compare(records)
        pooled.setdefault(device_name(run) or "unknown device", []).extend(comparisons)
        suite = part(run.manifest, "suite")
        of_run = list(views.groups(comparisons, ids, declared_default(suite), suite_names(suite), name if several else ""))
        for group in of_run:
            drawn += [*views.sweeps(group), *winners.maps(group)]
            drawn += [*roofline.roofs(group, run.manifest), *memory.stacks(group)]
        groups += of_run
        parts.append(_part(run, len(records), name, anchor, timed=bool(comparisons)))
    said = [(device, answer) for device, of_device in pooled.items() for answer in answers(of_device)]
    labels = [", ".join([device] * (len(pooled) > 1) + [str(a.setting)] * (len(said) > 1)) for device, a in said]
    return Report(
        title=parts[0].title if len(parts) == 1 else f"{len(parts)} runs on {' and '.join(pooled)}",
        parts=parts,
        answers=[(label, answer) for label, (_, answer) in zip(labels, said, strict=True)],
        groups=groups,
        views=drawn,
        atlases=[atlas for group in groups if (atlas := winners.atlas(group, winners.MOST // len(groups)))],
        agreement=agreement(runs),
        entries=entries,
        samples=embed.read(list(zip(names, runs, strict=True))),
        styles=palette(entry.record.case.implementation for entry in entries),
    )


def _names(runs: Sequence[RunData]) -> list[str]:
    """The names of the runs, each once: where two have one name, with their folders, and if need be a number."""
    count = Counter(run.name for run in runs)
    used: Counter[str] = Counter()
    names = []
    for run in runs:
        folder = "/".join(run.path.absolute().parts[-2:])
        name = run.name if count[run.name] == 1 else f"{run.name} ({folder})"
        used[name] += 1
        names.append(name if used[name] == 1 else f"{name} {used[name]}")
    return names


def _part(run: RunData, cases: int, name: str, anchor: str, timed: bool) -> Part:
    suite = part(run.manifest, "suite")
    command = run.manifest.get("command")
    command = shlex.join(str(word) for word in command) if isinstance(command, list) else str(command or "")
    commit = str(part(run.manifest, "environment").get("git_commit") or "")
    at = f" at commit {commit}" if commit else ""
    return Part(
        anchor=anchor,
        name=name,
        title=str(suite.get("title") or suite.get("name") or name),
        facts=_facts(run, cases),
        notices=_notices(run, timed),
        command=command,
        how=f"The command that made this run, gsbench{at}:" if command else "The run does not record its command.",
        profiles=profiles(run.path),
    )


def _facts(run: RunData, cases: int) -> list[tuple[str, str]]:
    schemas = sorted({record.schema for record in run.records})
    facts = [
        ("Device", device_line(run.manifest)),
        ("Software", software_line(run.manifest)),
        ("Measured ceilings", ceilings_line(run.manifest)),
        ("Recorded", str(run.manifest.get("created_utc") or "")),
        ("Cases", f"{cases}, record schema {' and '.join(map(str, schemas))}" if schemas else "none"),
    ]
    return [(name, value) for name, value in facts if value]


def _notices(run: RunData, timed: bool) -> list[str]:
    notices = []
    if being_written(run.path):
        notices.append(f"This run is being written now: {len(run.records)} records so far.")
    if not run.records:
        notices.append("This run holds no records: nothing was measured.")
    elif not timed:
        notices.append("No case of this run was timed, so it answers nothing; the reasons are below.")
    if run.manifest.get("scaled_for_cpu"):
        notices.append("The suite was scaled down to fit a CPU: these figures say nothing of a GPU.")
    flags = run.manifest.get("validity")
    return notices + ([str(flag) for flag in flags] if isinstance(flags, list) else [])


def dump(value: Any) -> str:
    """JSON that may stand inside a <script>: no tag can end it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
