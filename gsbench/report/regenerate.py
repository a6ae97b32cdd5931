"""Every committed report again, from the records: are the committed files what the records give?

`reports/X` is the report of `results/baselines/X`, with its figures as PNG in `reports/X/figures`, and
`reports/X/selftest.md` that of the self-test in `results/baselines/X/selftest/runs.json`, where there is one. In README.md
and docs/*.md, the text between `<!-- gsbench answer results/baselines/X -->` and `<!-- end -->` is the answer of that
report; after `<!-- gsbench bytes results/baselines/X -->`, or `counters`, it is what its profiles say of these, after
`selftest` the self-test in a sentence; after `<!-- gsbench training FOLDER -->` the comparison that `gsbench train --grid`
wrote into that folder.

What is compared: pages, Markdown and answers byte by byte, for they are the same on every machine. The bytes of a figure
depend on the versions of matplotlib, FreeType and Pillow, so figures are not drawn for the comparison: `figures/drawn.json`
holds for each the fingerprint of what it draws and of the code that draws it, which must be that of the records, and the
checksum of the PNG, which must be that of the file. So no figure is stale, or edited by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsbench import report, selfruns
from gsbench.errors import UserError
from gsbench.profile import store, text
from gsbench.report import selftests
from gsbench.report.contents import Report
from gsbench.report.figures import Plate
from gsbench.report.markdown import answer_lines
from gsbench.report.markup import plain
from gsbench.report.palette import Style
from gsbench.selftest import SelfTest, analyse
from gsbench.train import comparison

RESULTS, REPORTS, FIGURES, DRAWN = Path("results/baselines"), Path("reports"), "figures", "drawn.json"
_MARK = re.compile(r"(<!-- gsbench (answer|bytes|counters|selftest|training) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\((reports/[^)\s]+)\)")
Digest = dict[str, str]  # "drawn": fingerprint, "png": checksum of the file


@dataclass(frozen=True)
class Stale:
    """A committed file that is not what the records give, and how."""

    file: Path
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"


@dataclass(frozen=True)
class SelfTestPlate:
    """The figure of a self-test, as `figures.Plate` is one of views."""

    found: SelfTest
    stem: str = selftests.STEM

    def draw(self, styles: dict[str, Style]) -> tuple[bytes, bytes]:
        return selftests.draw(self.found), b""

    def fingerprint(self, styles: dict[str, Style]) -> str:
        return selftests.fingerprint(self.found)


@dataclass(frozen=True)
class Committed:
    """A report as the records give it. `folder`: of the committed files, relative to the root."""

    folder: Path
    report: Report
    views: list[Plate]
    selftest: SelfTest | None

    @property
    def figures(self) -> Path:
        return self.folder / FIGURES

    @property
    def plates(self) -> list[Plate | SelfTestPlate]:
        return [*self.views, *([SelfTestPlate(self.selftest)] if self.selftest else [])]


def committed(root: Path) -> list[Committed]:
    """Raises UserError where `root` has no committed runs or one cannot be read."""
    folders = sorted(folder for folder in (root / RESULTS).glob("*") if folder.is_dir())
    if not folders:
        raise UserError(f"{root / RESULTS}: no recorded runs here; --root names the root of a checkout")
    found = []
    for folder in folders:
        said, tested = report.read(folder), folder / selftests.STEM
        itself = analyse(tested) if (tested / selfruns.FILE).exists() else None
        found.append(Committed(REPORTS / folder.name, said, report.plan(said), itself))
    return found


def check(root: Path) -> list[Stale]:
    """The committed files that differ from what the records give."""
    return _stale(root, committed(root))


def _stale(root: Path, reports: list[Committed]) -> list[Stale]:
    stale = []
    for file, content in _texts(root, reports).items():
        have = (root / file).read_bytes() if (root / file).exists() else None
        if have != content:
            stale.append(Stale(file, "missing" if have is None else "differs from what the records give"))
    for one in reports:
        stale += _stale_figures(root, one)
        stale += [Stale(file, "belongs to no report") for file in _strangers(root, one)]
    return stale + _missing_pictures(root)


def write(root: Path) -> list[Stale]:
    """Rewrite what differs; a figure is drawn only where it is stale. Returns what was."""
    reports = committed(root)
    stale = _stale(root, reports)
    for file, content in _texts(root, reports).items():
        report.write((root / file).parent, {file.name: content})
    for one in reports:
        _redraw(root, one)
    return stale


def _texts(root: Path, reports: list[Committed]) -> dict[Path, bytes]:
    """Every file that is compared byte by byte, as it should be."""
    found: dict[Path, bytes] = {}
    for one in reports:
        found |= {one.folder / name: page for name, page in report.texts(one.report, one.views, FIGURES).items()}
        if one.selftest:
            page = selftests.to_markdown(one.selftest, f"{FIGURES}/{selftests.STEM}.png")
            found[one.folder / f"{selftests.STEM}.md"] = page.encode()
    said = {(RESULTS / one.folder.name).as_posix(): one for one in reports}
    for file in _prose(root):
        prose = file.read_text(encoding="utf-8")
        for _, what, results, _ in _MARK.findall(prose):
            if what != "training" and results not in said:
                raise UserError(f"{file}: gsbench {what} {results}: not one of {', '.join(said)}")
        new = _MARK.sub(lambda match: f"{match[1]}\n{_said(root, match[2], match[3], said)}\n{match[4]}", prose)
        found[file.relative_to(root)] = new.encode()
    return found


def _said(root: Path, what: str, results: str, said: dict[str, Committed]) -> str:
    """What stands between a mark and its end."""
    if what == "training":
        return comparison.markdown(comparison.read(root / results / comparison.FILE))
    return _lines(root, what, said[results])


def _lines(root: Path, what: str, one: Committed) -> str:
    """Of the records of a folder."""
    if what == "answer":
        return "\n".join(answer_lines(one.report))
    if what == "selftest":
        if one.selftest is None:
            raise UserError(f"gsbench selftest {RESULTS / one.folder.name}: no {selftests.STEM}/{selfruns.FILE} there")
        return f"{plain(selftests.sentence(one.selftest))}.\n"
    runs = [run for run in sorted((root / RESULTS / one.folder.name).iterdir()) if run.is_dir()]
    profiles = [profile for run in runs for profile in store.read(run)]
    return "\n".join(text.markdown_lines((text.byte_table if what == "bytes" else text.counter_table)(profiles)))


def _prose(root: Path) -> list[Path]:
    return [file for file in (root / "README.md", *sorted((root / "docs").glob("*.md"))) if file.exists()]


def _missing_pictures(root: Path) -> list[Stale]:
    """Pictures of a report that README.md or a page of docs/ shows, and no report has."""
    return [
        Stale(file.relative_to(root), f"shows {picture}, which no report has")
        for file in _prose(root) for picture in _PICTURE.findall(file.read_text(encoding="utf-8").replace("](../", "]("))
        if not (root / picture).exists()
    ]  # fmt: skip


def _known(root: Path, one: Committed) -> dict[str, Digest]:
    file = root / one.figures / DRAWN
    try:
        known: Any = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:  # then every figure is stale
        return {}
    return known if isinstance(known, dict) else {}


def _stale_figures(root: Path, one: Committed) -> list[Stale]:
    known, stale = _known(root, one), []
    for plate in one.plates:
        file, digest = one.figures / f"{plate.stem}.png", known.get(plate.stem, {})
        if not (root / file).exists():
            stale.append(Stale(file, "missing"))
        elif digest.get("drawn") != plate.fingerprint(one.report.styles):
            stale.append(Stale(file, "draws other numbers than the records give, or was drawn by other code"))
        elif digest.get("png") != _checksum((root / file).read_bytes()):
            stale.append(Stale(file, "is not the file that gsbench wrote"))
    return stale


def _strangers(root: Path, one: Committed) -> list[Path]:
    expected = {f"{plate.stem}.png" for plate in one.plates} | {DRAWN}
    there = (root / one.figures).glob("*") if (root / one.figures).exists() else ()
    return sorted(file.relative_to(root) for file in there if file.name not in expected)


def _redraw(root: Path, one: Committed) -> None:
    stale = {item.file for item in _stale_figures(root, one)}
    for file in _strangers(root, one):
        (root / file).unlink()
    known = _known(root, one)
    digests: dict[str, Digest] = {}
    for plate in one.plates:
        file = one.figures / f"{plate.stem}.png"
        if file in stale:
            png, _ = plate.draw(one.report.styles)
            report.write(root / one.figures, {file.name: png})
            digests[plate.stem] = {"drawn": plate.fingerprint(one.report.styles), "png": _checksum(png)}
        else:
            digests[plate.stem] = known[plate.stem]
    report.write(root / one.figures, {DRAWN: (json.dumps(digests, indent=1) + "\n").encode()})


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
