"""Reports from recorded runs: one self-contained index.html, report.md, tables, and the figures as PNG and SVG.

Reads records only: no torch, and the same records give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gsbench.errors import UserError
from gsbench.frame import read_runs

if TYPE_CHECKING:
    from gsbench.report.contents import Report
    from gsbench.report.figures import Plate

PAGE, TEXT = "index.html", "report.md"


def render(paths: Path | str | Sequence[Path | str], out: Path, figures: Path | None = None) -> list[Path]:
    """Write the report of the runs at `paths` (run folders or folders of runs) below `out`.

    Returns the files written: index.html, report.md, then, into the folder `figures` if one is given, every figure as PNG
    (300 dpi) and SVG. Raises UserError if a run cannot be read or a folder cannot be written.
    """
    report = read(paths)
    plates = [] if figures is None else plan(report)
    written = write(out, texts(report, plates, folder="" if figures is None else os.path.relpath(figures, out)))
    return written if figures is None else written + draw(report, plates, figures)


def read(paths: Path | str | Sequence[Path | str]) -> Report:
    """What there is to say of the runs. Raises UserError if one cannot be read."""
    from gsbench.report.contents import build

    return build(read_runs(paths))


def plan(report: Report) -> list[Plate]:
    """The figures of a report, not yet drawn."""
    from gsbench.report.figures import plates

    return plates(report.views)


def texts(report: Report, plates: Sequence[Plate] = (), folder: str = "") -> dict[str, bytes]:
    """The page and the Markdown, which show the figures of `folder`, by file name: the same bytes on every machine."""
    from gsbench.report.markdown import markdown
    from gsbench.report.page import html

    return {PAGE: html(report).encode(), TEXT: markdown(report, plates, folder).encode()}


def draw(report: Report, plates: Sequence[Plate], folder: Path) -> list[Path]:
    """Draw the figures into `folder`. PNG and SVG files that an earlier report left there are removed."""
    files: dict[str, bytes] = {}
    for plate in plates:
        files[f"{plate.stem}.png"], files[f"{plate.stem}.svg"] = plate.draw(report.styles)
    for old in folder.glob("*.*"):
        if old.suffix in (".png", ".svg") and old.name not in files:
            old.unlink()
    return write(folder, files)


def write(folder: Path, files: dict[str, bytes]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as e:
        why = e.strerror or str(e)
        raise UserError(f"{folder}: cannot write the report here: {why}; choose another folder with --out") from None
    return [folder / name for name in files]
