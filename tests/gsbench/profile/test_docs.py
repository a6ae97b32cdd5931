"""The commands of docs/profiling.md, run as they stand there; where a run is named, on a committed one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsbench.cli import app

ROOT = Path(__file__).parents[3]
COMMANDS = re.findall(r"^ {4}gsbench (.*?)(?: {2,}#.*)?$", (ROOT / "docs" / "profiling.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings", reason="needs cuda-core and cuda-bindings (Linux)")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "baselines").symlink_to(ROOT / "results" / "baselines")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a device lock of our own
    written = "profile" in command and "--show" not in command and "--run" not in command
    for run, stand_in in (("results/RUN", "results/baselines/h200/forward"), ("results/mine", "results/baselines/h200")):
        command = command.replace(run, stand_in)
    if "--run" in command:
        pytest.skip("profiles the recorded cases again, on the device that they were recorded on")
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 0, result.output
    assert "group_shared/cuda" in result.output
    if written:
        assert list(tmp_path.glob("results/*/profiles/*.json"))


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 5
