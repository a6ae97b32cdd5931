"""Reports from recorded runs: report.md, one self-contained index.html, and the figures as PNG and SVG.

Reads records only: no torch, and the same records give the same bytes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gsbench.errors import UserError
from gsbench.frame import latest, part, read_runs
from gsbench.store import RunData

if TYPE_CHECKING:
    from gsbench.report.figures import Drawing
    from gsbench.report.page import Image, Section
    from gsbench.report.palette import Style


def render(paths: Path | str | Sequence[Path | str], out: Path) -> list[Path]:
    """Write the report of the runs at `paths` (run folders or folders of runs) below `out`.

    Returns the files written: report.md, index.html, then the figures. Raises UserError if a run cannot be read
    or `out` cannot be written.
    """
    from gsbench.report import page
    from gsbench.report.agreement import agreement
    from gsbench.report.palette import palette

    runs = read_runs(paths)
    anchors = _anchors([run.name for run in runs])
    styles = palette(record.case.implementation for run in runs for record in run.records)
    sections = [_section(run, anchor, styles, alone=len(runs) == 1) for run, anchor in zip(runs, anchors, strict=True)]
    shared = agreement(runs)
    title = sections[0].title if len(runs) == 1 else f"{len(runs)} runs"
    files: dict[str, bytes] = {
        "report.md": page.markdown(title, sections, shared).encode(),
        "index.html": page.html(title, sections, shared).encode(),
    }
    for section in sections:
        for image in section.images:
            files[image.png_file], files[image.svg_file] = image.drawing.png, image.drawing.svg
    return _write(out, files)


def _section(run: RunData, anchor: str, styles: dict[str, Style], alone: bool) -> Section:
    """One run, from its records to what the page says of it."""
    from gsbench.report import tables
    from gsbench.report.answer import answers
    from gsbench.report.figures import draw
    from gsbench.report.page import Section
    from gsbench.report.ratios import by_setting, compare
    from gsbench.report.sweeps import Naming, declared_default, default_point, suite_names

    records = latest(run.records)
    comparisons = compare(records)
    suite = part(run.manifest, "suite")
    declared, known = declared_default(suite), suite_names(suite)
    images = _images(draw(comparisons, styles, declared, known), "" if alone else f"{anchor}-")
    settings = by_setting(comparisons)
    naming = {s: Naming(default_point([c.point for c in g], declared), known) for s, g in settings.items()}
    names = {setting: str(setting) if len(settings) > 1 else "" for setting in settings}
    return Section(
        anchor=anchor,
        name=run.name,
        title=str(suite.get("title") or suite.get("name") or run.name),
        facts=_facts(run),
        notices=_notices(run, timed=bool(comparisons)),
        answers=answers(comparisons),
        summaries=[(names[s], tables.summary(group)) for s, group in settings.items()],
        images=images,
        tables=[
            (names[s], [tables.losses(group, naming[s]), *tables.ratio_tables(group, naming[s])])
            for s, group in settings.items()
        ],
        trouble=[table for table in (tables.flags(records), tables.failures(records)) if table.rows],
        cases=tables.all_cases(records),
        command=_command(run),
        how=_how(run),
        headings=list(dict.fromkeys(image.drawing.heading for image in images)),
    )


def _images(drawings: Iterable[Drawing], prefix: str) -> list[Image]:
    from gsbench.report.page import Image

    drawn = list(drawings)
    stems = _anchors([prefix + drawing.stem for drawing in drawn])
    return [Image(d, f"figures/{stem}.png", f"figures/{stem}.svg") for d, stem in zip(drawn, stems, strict=True)]


def _facts(run: RunData) -> list[tuple[str, str]]:
    from gsbench.report.text import ceilings_line, device_line, software_line

    facts = [
        ("Device", device_line(run.manifest)),
        ("Software", software_line(run.manifest)),
        ("Measured ceilings", ceilings_line(run.manifest)),
        ("Recorded", " ".join(str(run.manifest[key]) for key in ("created_utc",) if run.manifest.get(key))),
    ]
    return [(name, value) for name, value in facts if value]


def _notices(run: RunData, timed: bool) -> list[str]:
    notices = []
    if not run.records:
        notices.append("This run holds no records: nothing was measured.")
    elif not timed:
        notices.append("No case of this run was timed, so it answers nothing; the reasons are below.")
    if run.manifest.get("scaled_for_cpu"):
        notices.append("The suite was scaled down to fit a CPU: these figures say nothing of a GPU.")
    flags = run.manifest.get("validity")
    notices += [str(flag) for flag in flags] if isinstance(flags, list) else []
    return notices


def _command(run: RunData) -> str:
    command = run.manifest.get("command")
    return shlex.join(str(word) for word in command) if isinstance(command, list) else str(command or "")


def _how(run: RunData) -> str:
    commit = str(part(run.manifest, "environment").get("git_commit") or "")
    at = f" at commit {commit}" if commit else ""
    return f"The command that made this run, gsbench{at}:" if _command(run) else "The run does not record its command."


def _anchors(names: Sequence[str]) -> list[str]:
    """Names made safe for files and links, each once: a name from a manifest can hold anything."""
    used: dict[str, int] = {}
    anchors = []
    for name in names:
        slug = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:100] or "run"
        used[slug] = used.get(slug, 0) + 1
        anchors.append(slug if used[slug] == 1 else f"{slug}--{used[slug]}")  # a slug never holds "--"
    return anchors


def _write(out: Path, files: dict[str, bytes]) -> list[Path]:
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        for old in (out / "figures").iterdir():  # of an earlier report with more of them
            if old.suffix in (".png", ".svg") and f"figures/{old.name}" not in files:
                old.unlink()
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as e:
        why = e.strerror or str(e)
        raise UserError(f"{out}: cannot write the report here: {why}; choose another folder with --out") from None
    return [out / name for name in files]
