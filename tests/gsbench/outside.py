"""The package under tests/outside in a git repository of its own, installed as an editable install would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
SUITE = """
title = "tiny"
passes = ["forward"]
implementations = ["dense/outside", "dense/torch"]
dtypes = ["fp32"]
[axes]
batch = [4]
dim = [32]
labels = [512]
fan_in = [8]
group_size = [8]
[timing]
budget_s = 0.02
warmup_s = 0.0
min_samples = 5
"""


def git(at: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(at), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(at: Path, message: str) -> str:
    git(at, "add", "--all")
    git(at, "commit", "--quiet", "--message", message)
    return git(at, "rev-parse", "HEAD")


def repository(at: Path) -> Path:
    """A repository with the package and a suite, of one commit."""
    shutil.copytree(ROOT / "tests" / "outside", at, ignore=shutil.ignore_patterns("__pycache__"))
    (at / "tiny.toml").write_text(SUITE)
    (at / ".gitignore").write_text("results/\n__pycache__/\n")
    git(at, "init", "--quiet", "--initial-branch=main")
    commit(at, "first")
    return at


def installed(at: Path, site: Path) -> dict[str, str]:
    """The environment that has the package: entry points from its pyproject.toml, sources from its work tree."""
    project = tomllib.loads((at / "pyproject.toml").read_text())["project"]
    info = site / "outside_kernels-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (names,) = project["entry-points"].values()
    listed = "\n".join(f"{name} = {value}" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[{next(iter(project['entry-points']))}]\n{listed}\n")
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    path = os.pathsep.join([str(site), str(at / "src"), str(ROOT), str(ROOT / "kernels"), *inherited])
    quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # threads that wait for each other take seconds
    return {**os.environ, **quiet, "PYTHONPATH": path, "TMPDIR": str(site)}  # TMPDIR: a device lock of our own
