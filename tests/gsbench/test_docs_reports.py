"""The commands of docs/reports.md, run as they stand there, on the committed runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsbench.cli import app

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "reports.md").read_text(), re.DOTALL)


def commands() -> list[str]:
    return [line for block in BLOCKS for line in block.splitlines()]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("results", "docs", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "reports").mkdir()
    for folder in (ROOT / "reports").iterdir():
        (tmp_path / "reports" / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gsbench.report.figures.Plate.draw", lambda plate, styles: (b"png", b"svg"))  # tests of their own
    assert len(commands()) == 6
    for command in commands():
        words, _, file = command.partition(" > ")
        program, *arguments = shlex.split(words)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("gsbench", 0), f"{command}: {result.output}"
        if file:
            Path(file).write_text(result.stdout)
    written = {path.name for folder in (tmp_path, tmp_path / "reports" / "mine") for path in folder.iterdir()}
    assert {"comment.md", "cases.csv", "tables.tex", "index.html", "report.md", "figures"} <= written
    assert len((tmp_path / "comment.md").read_text()) < 65_536
