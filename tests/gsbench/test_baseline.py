"""Promoting a run to a baseline: who, when, why, checksums, and what is unfit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gsbench import baseline
from gsbench.cli.baseline import app
from gsbench.errors import NothingMeasured, UserError
from tests.gsbench import synthetic as s

CLEAN = {"git_commit": "0123456789abcdef", "git_dirty": False}


def a_run(folder: Path, ms: float = 1.0, **manifest: object) -> Path:
    return s.write(folder, [s.timed("a/b", ms)], **{"environment": CLEAN, **manifest})


def signature(folder: Path) -> dict[str, object]:
    text: dict[str, object] = json.loads((folder / "baseline.json").read_text())
    return text


def test_a_promotion_says_who_when_and_why(tmp_path: Path) -> None:
    folder = baseline.promote(a_run(tmp_path / "run"), tmp_path / "to" / "here", " faster, #12 ", "Ada <ada@example.org>")
    found = baseline.verify(folder)
    assert found is not None
    assert (found["who"], found["why"], found["run"]) == ("Ada <ada@example.org>", "faster, #12", "run")
    assert found["commit"] == CLEAN["git_commit"]
    assert found["when"].endswith("Z")
    assert (folder / "records.jsonl").read_bytes() == (tmp_path / "run" / "records.jsonl").read_bytes()
    assert sorted(signature(folder)["sha256"]) == ["manifest.json", "records.jsonl"]  # type: ignore[call-overload]
    assert sorted(file.name for file in folder.parent.iterdir()) == ["here"]


def test_the_older_promotions_stay_as_history(tmp_path: Path) -> None:
    folder = baseline.promote(a_run(tmp_path / "one"), tmp_path / "to", "first")
    baseline.promote(a_run(tmp_path / "two", 2.0), folder, "second")
    promoted = signature(folder)["promoted"]
    assert [entry["why"] for entry in promoted] == ["second", "first"]  # type: ignore[attr-defined]
    assert "2.0" in (folder / "records.jsonl").read_text()
    found = baseline.verify(folder)
    assert found is not None
    assert found["why"] == "second"


def test_a_run_can_be_signed_where_it_lies(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "worker.log").write_text("kept")
    assert baseline.promote(run, run, "as it is") == run
    assert baseline.verify(run) is not None
    assert (run / "worker.log").exists()


@pytest.mark.parametrize(
    ("device", "folder"),
    [("NVIDIA H200", "h200"), ("Intel(R) Xeon(R) Processor @ 2.1GHz", "xeon-r-processor-2.1ghz"), ("", "unknown"),
     ("../../etc", "etc"), ("NVIDIA", "unknown")],
)  # fmt: skip
def test_the_default_folder_is_named_by_device_and_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path / "run", device={"name": device}, suite={"name": "backward"})
    assert baseline.promote(run, None, "x") == Path("results/baselines") / folder / "backward"


@pytest.mark.parametrize(
    ("records", "manifest", "error", "words"),
    [
        ([], {}, NothingMeasured, "no case of it was timed"),
        ([s.failed("a/b", "oom", "")], {}, NothingMeasured, "no case of it was timed"),
        ([s.timed("a/b", 1.0), s.timed("a/b", 2.0)], {}, UserError, "1 cases are recorded twice, the first a/b forward"),
        ([s.timed("a/b", 1.0)], {"environment": {"git_dirty": True}}, UserError, "measured with uncommitted changes"),
    ],
)
def test_runs_that_are_unfit(tmp_path: Path, records: list, manifest: dict, error: type[UserError], words: str) -> None:  # type: ignore[type-arg]
    run = s.write(tmp_path / "run", records, **manifest)
    with pytest.raises(error, match=words):
        baseline.promote(run, tmp_path / "to", "x")
    assert not (tmp_path / "to").exists()


def test_a_run_in_progress_is_unfit(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "samples.jsonl").write_text("")
    with pytest.raises(UserError, match="not finished; continue it with gsbench run --resume"):
        baseline.promote(run, tmp_path / "to", "x")


def test_nothing_that_is_no_run_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="exists and is no run; choose another folder with --to"):
        baseline.promote(a_run(tmp_path / "run"), tmp_path / "to", "x")
    assert (tmp_path / "to" / "thesis.tex").read_text() == "dear"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the baseline here"):
        baseline.promote(a_run(tmp_path / "run"), Path("/proc/no/where"), "x")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", UserError, "not a baseline's signature: JSONDecodeError"),
        ("[]", UserError, "not a baseline's signature: TypeError"),
        ('{"schema": 1}', UserError, "not a baseline's signature: KeyError: 'promoted'"),
        ('{"schema": 1, "promoted": [], "sha256": {}}', UserError, "needs schema, promoted and sha256"),
        ('{"schema": 9, "promoted": [], "sha256": {}}', NothingMeasured, "schema 9 is newer than this gsbench reads"),
    ],
)
def test_signatures_that_cannot_be_read(tmp_path: Path, text: str, error: type[UserError], words: str) -> None:
    folder = baseline.promote(a_run(tmp_path / "run"), tmp_path / "to", "x")
    (folder / "baseline.json").write_text(text)
    with pytest.raises(error, match=words):
        baseline.verify(folder)


def test_the_command_line(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    done = CliRunner().invoke(app, ["promote", str(run), "--to", str(tmp_path / "to"), "--why", "x", "--who", "Ada"])
    assert (done.exit_code, "promoted; commit" in done.output) == (0, True)
    shown = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert "to: as Ada promoted it on" in shown.output
    assert "run: nobody promoted it" in shown.output
    listed = json.loads(CliRunner().invoke(app, ["verify", str(tmp_path), "--json"]).output)
    assert listed[str(run)] is None
    assert CliRunner().invoke(app, ["promote", str(run)]).exit_code == 2  # no reason given
    (tmp_path / "to" / "manifest.json").write_text((run / "manifest.json").read_text() + "\n")
    edited = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert isinstance(edited.exception, UserError)
    empty = CliRunner().invoke(app, ["promote", str(run), "--to", str(tmp_path / "to"), "--why", " "])
    assert isinstance(empty.exception, UserError)
