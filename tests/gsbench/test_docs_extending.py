"""docs/extending.md as a reader would try it: its suite, its implementation, its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from gsbench.cli import app
from gskernels.layer import Layer
from gskernels.shape import Shape
from gskernels.table import Implementation

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (suite,) = blocks("toml")
    Path("mine.toml").write_text(suite)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, *arguments = shlex.split(command)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("gsbench", 0), f"{command}: {result.output}"
    assert {path.name for path in Path("results").iterdir()} == {"mine"}
    assert "mine.toml" in Path("results/mine/manifest.json").read_text()
    # report.md names an implementation where it is decidedly first, and has a figure of each family whoever is.
    assert "group_shared/torch" in Path("reports/own/index.html").read_text()
    (row,) = [line for line in Path("reports/own/report.md").read_text().splitlines() if line.startswith("| G=64 |")]
    assert re.search(r"\d", row.split("|")[2]), row  # the best group_shared, ms


def test_the_smallest_implementation_is_one() -> None:
    source, line = blocks("python")
    module = ModuleType("example")
    exec(compile(source, "docs/extending.md", "exec"), module.__dict__)
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    torch.testing.assert_close(module.forward(x, Layer(weight)), x @ weight.T)
    entry = eval(line.rstrip().rstrip(","), {"Implementation": Implementation})
    assert entry.unsupported(Shape(3, 8, 5, 2, 1), "forward", "fp32", "cpu") is None
    assert entry.unsupported(Shape(3, 8, 5, 2, 1), "backward", "fp32", "cpu")
