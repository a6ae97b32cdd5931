"""gsbench gate --against, from the outside: a repository of its own whose kernel is no part of gsbench."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gsbench.store import read_run
from tests.gsbench import outside

KERNEL = Path("src/outside_kernels/chunked.py")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return outside.repository(tmp_path / "repo")


@pytest.fixture
def gate(repo: Path, tmp_path: Path) -> Any:
    """Run the gate there against HEAD~1 or another commit; returns its process."""
    environment = outside.installed(repo, tmp_path / "site")

    def run(reference: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gsbench", "gate", "--against", reference, "--suite", "tiny.toml", "--path", "src",
                   "--device", "cpu", "--replicates", "2", "--name", "g", *more]  # fmt: skip
        return subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, timeout=240)

    return run


def test_a_kernel_that_became_hundreds_of_times_slower_fails(gate: Any, repo: Path) -> None:
    slow = repo / KERNEL
    slow.write_text(slow.read_text().replace("    y = x.new", "    import time\n\n    time.sleep(0.05)\n    y = x.new"))
    now = outside.commit(repo, "a slip")
    done = gate("HEAD~1", "--json", "--tolerance", "90%", "--only", "dense/outside")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [(r["implementation"], r["cause"]) for r in document["regressions"]] == [("dense/outside", "code")]
    assert document["regressions"][0]["ratio"] > 5
    assert "code_fingerprint" in document["regressions"][0]["diagnosis"]
    base, new = (read_run(repo / "results" / "g" / side / "01") for side in ("base", "new"))
    assert (base.manifest["environment"]["git_commit"], new.manifest["environment"]["git_commit"]) == (
        outside.git(repo, "rev-parse", "HEAD~1"), now,
    )  # fmt: skip
    assert base.manifest["ceilings"] == new.manifest["ceilings"]
    assert all(len(record.rounds_ms) >= 5 for record in (*base.records, *new.records))  # what the pairs are judged by
    runs = sorted(folder.name for folder in (repo / "results" / "g" / "new").iterdir())
    assert runs == ["01", "02", "03", "04"]  # slower after two pairs: measured in two more before it failed the gate
    assert all("no_nvml" not in record.validity for record in new.records)
    assert not (repo / "results" / "g" / "reference").exists()
    assert "exists already; choose another --name" in gate("HEAD~1").stderr


def test_a_reference_whose_kernels_fail_says_why_and_leaves_nothing(gate: Any, repo: Path) -> None:
    package = repo / "src" / "outside_kernels" / "__init__.py"
    sound = package.read_text()
    package.write_text("import a_module_that_is_not_there\n" + sound)
    outside.commit(repo, "does not build")
    package.write_text(sound)
    outside.commit(repo, "builds again")
    done = gate("HEAD~1")
    assert done.returncode == 3
    assert "does not build: " in done.stderr
    assert "No module named 'a_module_that_is_not_there'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (repo / "results" / "g").exists()


def test_bad_input_is_one_line_and_an_exit_code(gate: Any, repo: Path) -> None:
    (repo / KERNEL).write_text("# not committed\n")
    done = gate("HEAD")
    assert done.returncode == 2
    assert "uncommitted changes (1 files, the first src/outside_kernels/chunked.py); commit or stash them" in done.stderr
    for more, words in (
        (("--suite", ""), "which suite? --suite NAME"),
        (("--anchor", "dense/torch"), "leave out RUN, --baseline and --anchor"),
        (("--path", "kernels"), "--path kernels: no such folder in"),
    ):
        done = gate("HEAD", *more)
        assert done.returncode == 2
        assert words in done.stderr
    assert "no such commit, branch or tag" in gate("nonesuch").stderr
    assert done.stderr.count("\n") == 1
    assert not (repo / "results").exists()
