"""References that are checked out, and those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsbench.checkout import Repository, check_builds
from gsbench.errors import NothingMeasured, UserError
from tests.gsbench import outside

SRC = [Path("src")]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.find(outside.repository(tmp_path / "repo"), SRC)


def test_a_commit_stands_beside_the_work_tree_and_goes_again(repository: Repository, tmp_path: Path) -> None:
    first = repository.commit("HEAD")
    file = repository.root / "src" / "outside_kernels" / "chunked.py"
    file.write_text("changed\n")
    outside.commit(repository.root, "second")
    with repository.checked_out(first, tmp_path / "here") as checkout:
        (library,) = repository.library(checkout)
        assert "def forward" in (library / "outside_kernels" / "chunked.py").read_text()
        assert file.read_text() == "changed\n"
    assert not (tmp_path / "here").exists()
    assert len(outside.git(repository.root, "worktree", "list").splitlines()) == 1


def test_the_checkout_goes_though_measuring_failed(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), repository.checked_out("HEAD", tmp_path / "here"):
        raise KeyboardInterrupt
    assert not (tmp_path / "here").exists()
    assert len(outside.git(repository.root, "worktree", "list").splitlines()) == 1


def test_changes_are_those_of_the_compared_folders(repository: Repository) -> None:
    assert repository.changes() == []
    (repository.root / "README").write_text("not compared\n")
    assert repository.changes() == []
    (repository.root / "src" / "new file.py").write_text("")
    (repository.root / "src" / "outside_kernels" / "chunked.py").unlink()
    assert repository.changes() == ["src/new file.py", "src/outside_kernels/chunked.py"]


def test_what_is_no_repository_commit_or_folder(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is in no git repository"):
        Repository.find(tmp_path, SRC)
    for folder in ("nowhere", "/tmp", "tiny.toml"):
        with pytest.raises(UserError, match=f"--path {folder}: no such folder"):
            Repository.find(repository.root, [Path(folder)])
    for reference in ("nonesuch", "--all", ""):
        with pytest.raises(UserError, match="no such commit, branch or tag"):
            repository.commit(reference)


def test_a_commit_without_the_folder(repository: Repository, tmp_path: Path) -> None:
    before = repository.commit("HEAD")
    outside.git(repository.root, "mv", "src", "lib")
    outside.commit(repository.root, "moved")
    moved = Repository.find(repository.root, [Path("lib")])
    with (
        pytest.raises(NothingMeasured, match=f"{before[:12]} has no folder lib"),
        moved.checked_out(before, tmp_path / "here"),
    ):
        pytest.fail("there is nothing to compare with")
    assert not (tmp_path / "here").exists()


def test_a_folder_that_cannot_be_written(repository: Repository) -> None:
    with (
        pytest.raises(UserError, match="cannot be checked out into /proc/no/where"),
        repository.checked_out(repository.commit("HEAD"), Path("/proc/no/where")),
    ):
        pytest.fail("nothing can be written there")


def test_a_reference_that_does_not_build(tmp_path: Path) -> None:
    (tmp_path / "gskernels").mkdir()
    (tmp_path / "gskernels" / "__init__.py").write_text("raise RuntimeError('needs a compiler')\n")
    with pytest.raises(NothingMeasured, match="the reference 0123456789ab does not build: RuntimeError: needs") as e:
        check_builds([tmp_path], "0123456789abcdef")
    assert "compare recorded runs" in str(e.value)
    assert "\n" not in str(e.value)
