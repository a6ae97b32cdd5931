"""A kernel from outside this repository, as docs/gate.md walks through it; and that what is documented exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from gsbench.cli import app
from gsbench.policy import load
from gsbench.store import read_run
from tests.gsbench import outside

DOCUMENTS = ["docs/gate.md", "docs/profiling.md", ".github/workflows/gate-on.yml", "README.md"]


def test_it_is_listed_verified_and_measured_like_the_others(tmp_path: Path) -> None:
    repo = outside.repository(tmp_path / "repo")
    environment = outside.installed(repo, tmp_path / "site")

    def gsbench(*arguments: str) -> str:
        command = [sys.executable, "-m", "gsbench", *arguments]
        return subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=True).stdout

    listed = {row["name"]: row for row in json.loads(gsbench("list", "implementations", "--json"))}
    assert listed["dense/outside"]["passes"] == ["forward"]
    assert "5 of 5 checks passed" in gsbench("verify", "--device", "cpu", "--only", "dense/outside")
    gsbench("run", "--suite", "tiny.toml", "--device", "cpu", "--name", "r")
    records = {r.case.implementation: r for r in read_run(repo / "results" / "r").records}
    assert set(records) == {"dense/outside", "dense/torch"}
    assert records["dense/outside"].verified


def commands(text: str) -> list[list[str]]:
    """The gsbench command lines of a document: verb and options."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"(?:^ {4}|/bin/|do )(gsbench [a-z][^\n;>`]*)", joined, re.M)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_have_these_options(document: str) -> None:
    group = typer.main.get_command(app)
    found = commands((outside.ROOT / document).read_text())
    assert found
    for verb, *rest in found:
        command = group.commands[verb]  # type: ignore[attr-defined]
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, (verb, rest)


def test_the_documented_policy_can_be_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(\[\[tolerance.*?)```", (outside.ROOT / "docs" / "gate.md").read_text(), re.S)
    (tmp_path / "gate.toml").write_text(text)
    policy = load(0.03, tmp_path / "gate.toml", tmp_path / "gate.toml")
    assert (len(policy.tolerances), len(policy.quarantines)) == (1, 1)
    ours = outside.ROOT / ".github" / "gate.toml"
    assert load(0.03, ours, ours).tolerances == ()
    (tmp_path / "uncommented.toml").write_text(re.sub(r"(?m)^# ?(?=\[\[|\w+ = )", "", ours.read_text()))
    assert len(load(0.03, tmp_path / "uncommented.toml", tmp_path / "uncommented.toml").quarantines) == 1


def test_the_documented_kernel_is_the_one_that_is_tested() -> None:
    text = (outside.ROOT / "docs" / "gate.md").read_text()
    source = (outside.ROOT / "tests" / "outside" / "pyproject.toml").read_text()
    assert '[project.entry-points."gsbench.implementations"]\noutside = "outside_kernels:IMPLEMENTATIONS"' in source
    assert '[project.entry-points."gsbench.implementations"]\noutside = "outside_kernels:IMPLEMENTATIONS"' in text
    assert '"dense/outside", "outside_kernels.chunked", "dense"' in text
