"""A commit of the user's repository, checked out beside the work tree. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gsbench.errors import NothingMeasured, UserError

_GIT_TIMEOUT_S = 300
_IMPORT_TIMEOUT_S = 300
# What a worker does before its first case. Where gskernels is shadowed, it must be the checked-out one.
_STARTS = """
import gsbench.measure.block, gskernels
from gsbench.implementations import all_implementations
all_implementations()
print(gskernels.__file__)
"""


@dataclass(frozen=True)
class Repository:
    """The repository that `at` lies in, and what is compared of it: `folders`, relative to its root."""

    root: Path
    folders: tuple[Path, ...]

    @classmethod
    def find(cls, at: Path, folders: Sequence[Path]) -> Repository:
        """Raises UserError outside of a repository, and for a folder that it does not have."""
        done = _git(at, "rev-parse", "--show-toplevel")
        if done.returncode:
            raise UserError(f"--against: {at.resolve()} is in no git repository, so no reference can be checked out")
        root = Path(done.stdout.strip())
        for folder in folders:
            if folder.is_absolute() or not (root / folder).is_dir():
                raise UserError(f"--path {folder}: no such folder in {root}; name what is imported from, such as src")
        return cls(root, tuple(folders))

    def commit(self, reference: str) -> str:
        """The full name of a commit. Raises UserError."""
        done = _git(self.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{reference}^{{commit}}")
        if done.returncode:
            raise UserError(f"--against {reference}: no such commit, branch or tag in {self.root}")
        return done.stdout.strip()

    def changes(self) -> list[str]:
        """Files below the compared folders that are not as committed, new ones included."""
        done = _git(self.root, "status", "--porcelain", "-z", "--no-renames", "--", *map(str, self.folders))
        if done.returncode:
            raise UserError(f"--against: git status failed in {self.root}: {_last_line(done.stderr)}")
        return sorted(entry[3:] for entry in done.stdout.split("\0") if entry)

    def library(self, root: Path | None = None) -> tuple[Path, ...]:
        """The compared folders, of the work tree or of a checkout at `root`."""
        return tuple((root or self.root) / folder for folder in self.folders)

    @contextlib.contextmanager
    def checked_out(self, commit: str, folder: Path) -> Iterator[Path]:
        """The commit in `folder` for as long as the context lasts. Raises UserError where git cannot."""
        folder = folder.resolve()
        done = _git(self.root, "worktree", "add", "--detach", "--force", str(folder), commit)
        if done.returncode:
            raise UserError(f"--against: {commit[:12]} cannot be checked out into {folder}: {_last_line(done.stderr)}")
        try:
            missing = [str(f) for f in self.folders if not (folder / f).is_dir()]
            if missing:
                raise NothingMeasured(f"--against: {commit[:12]} has no folder {missing[0]}: nothing to compare with")
            yield folder
        finally:
            _git(self.root, "worktree", "remove", "--force", "--force", str(folder))


def check_builds(library: Sequence[Path], commit: str) -> None:
    """Import what a worker imports, from the checked-out folders first. Raises NothingMeasured with the last line of the
    error, before anything is measured."""
    ours = Path(__file__).parent.parent
    paths = [*library, ours, ours / "kernels"]
    inherited = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *inherited])}
    what = f"--against: the reference {commit[:12]} does not build"
    remedy = "choose another commit, or compare recorded runs (gsbench gate RUN --baseline BASE)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _STARTS], capture_output=True, text=True, env=environment, timeout=_IMPORT_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NothingMeasured(f"{what}: its import takes more than {_IMPORT_TIMEOUT_S} s; {remedy}") from None
    if done.returncode:
        raise NothingMeasured(f"{what}: {_last_line(done.stderr)}; {remedy}")
    found = Path(done.stdout.strip().splitlines()[-1])
    shadowing = [folder for folder in library if (folder / "gskernels").is_dir()]
    if shadowing and shadowing[0].resolve() not in found.resolve().parents:
        raise NothingMeasured(f"{what}: gskernels is imported from {found.parent}, not from the checkout; {remedy}")


def _git(at: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    of_a_hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    environment = {k: v for k, v in os.environ.items() if k not in of_a_hook}
    try:
        return subprocess.run(
            ["git", "-C", str(at), *arguments], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False,
            env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        raise UserError(f"--against needs git: {e}") from None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:300]
