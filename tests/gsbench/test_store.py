"""Runs on disk: nothing is lost by a cut line, a full disk, a second writer or a kill."""

from __future__ import annotations

import errno
import json

import pytest

from gsbench import store
from gsbench.case import Case, Point
from gsbench.errors import UserError
from gsbench.record import SCHEMA, Record
from gsbench.stats import summarise
from gsbench.store import RunWriter, find_runs, read_run, read_samples
from gskernels.shape import Shape

MANIFEST = {"schema": SCHEMA, "run": "r", "suite": {}, "environment": {}}


def a_record(batch: int = 8) -> Record:
    case = Case("dense/torch", "forward", Point(Shape(batch, 64, 256, 8, 4), "uniform", "fp32"), "cold", "cpu")
    return Record(case, "ok", verified=True, timing=summarise([1.0, 2.0, 3.0], "perf_counter", False))


SAMPLES = [(0, 1.0), (0, 2.0), (1, 3.0)]


def test_a_run_reads_back_as_written(tmp_path):
    with RunWriter.create(tmp_path / "r", MANIFEST) as writer:
        writer.add(a_record(), SAMPLES)
        assert read_run(tmp_path / "r").records == [a_record()]  # readable while it is being written
        writer.add(a_record(2), SAMPLES[:1])
    back = read_run(tmp_path / "r")
    assert back.records == [a_record(), a_record(2)]
    assert back.name == "r"
    samples = read_samples(tmp_path / "r")
    assert samples[samples.key == a_record().key].ms.tolist() == [1.0, 2.0, 3.0]
    assert samples[samples.key == a_record().key].block_round.tolist() == [0, 0, 1]
    assert samples[samples.key == a_record(2).key].ms.tolist() == [1.0]
    assert sorted(f.name for f in (tmp_path / "r").iterdir()) == ["manifest.json", "records.jsonl", "samples.parquet"]


def test_a_half_written_line_is_skipped_when_read_and_cut_when_resumed(tmp_path):
    with RunWriter.create(tmp_path / "r", MANIFEST) as writer:
        writer.add(a_record(), SAMPLES)
        writer.add(a_record(2), SAMPLES)
    file = tmp_path / "r" / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    assert read_run(tmp_path / "r").records == [a_record()]
    with RunWriter.resume(tmp_path / "r") as writer:
        writer.add(a_record(2), SAMPLES)
    assert read_run(tmp_path / "r").records == [a_record(), a_record(2)]
    assert file.read_bytes().count(b"\n") == 2


def test_a_fault_in_the_middle_names_file_and_line(tmp_path):
    with RunWriter.create(tmp_path / "r", MANIFEST) as writer:
        writer.add(a_record(), SAMPLES)
    file = tmp_path / "r" / "records.jsonl"
    file.write_bytes(b'{"not": "a record"}\n' + file.read_bytes())
    with pytest.raises(UserError, match=r"records\.jsonl:1: not a record"):
        read_run(tmp_path / "r")


def test_two_writers_are_refused(tmp_path):
    with (
        RunWriter.create(tmp_path / "r", MANIFEST),
        pytest.raises(UserError, match="another gsbench is writing this run"),
    ):
        RunWriter.resume(tmp_path / "r")
    RunWriter.resume(tmp_path / "r").close()  # free again


def test_a_full_disk_loses_nothing_and_says_how_to_go_on(tmp_path, monkeypatch):
    with RunWriter.create(tmp_path / "r", MANIFEST) as writer:
        writer.add(a_record(), SAMPLES)

        def full(stream, data):
            stream.write(data[:10])
            stream.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(store, "_write_durably", full)
            with pytest.raises(UserError, match=r"the disk is full; .*gsbench run --resume"):
                writer.add(a_record(2), SAMPLES)
        assert read_run(tmp_path / "r").records == [a_record()]
        writer.add(a_record(2), SAMPLES)
    assert read_run(tmp_path / "r").records == [a_record(), a_record(2)]
    assert len(read_samples(tmp_path / "r")) == 6


def test_samples_of_a_killed_run_are_folded_at_resume_without_orphans(tmp_path):
    writer = RunWriter.create(tmp_path / "r", MANIFEST)
    writer.add(a_record(), SAMPLES)
    orphan = {"key": a_record(2).key, "block_round": [0], "ms": [9.0]}  # killed before its record was written
    with open(tmp_path / "r" / "samples.jsonl", "a") as stream:
        stream.write(json.dumps(orphan) + "\n" + '{"key": "cut')
    writer._lock.close()  # as a kill does
    with RunWriter.resume(tmp_path / "r") as again:
        again.add(a_record(2), [(0, 5.0)])
    samples = read_samples(tmp_path / "r")
    assert sorted(samples.ms) == [1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize("place", ["/proc/nowhere", "{tmp}/file/below"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write results here: .*; choose another folder with --out"):
        RunWriter.create(store.Path(place.format(tmp=tmp_path)), MANIFEST)


def test_an_existing_run_is_not_overwritten(tmp_path):
    RunWriter.create(tmp_path / "r", MANIFEST).close()
    with pytest.raises(UserError, match="exists already; resume it with --resume"):
        RunWriter.create(tmp_path / "r", MANIFEST)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "no schema version"), ('{"schema": 99}', "schema 99 is newer than this gsbench reads")],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=rf"manifest\.json: .*{message}"):
        read_run(tmp_path)


def test_finding_runs(tmp_path):
    for name in ("b", "a/c"):
        RunWriter.create(tmp_path / name, MANIFEST).close()
    assert find_runs(tmp_path) == [tmp_path / "a" / "c", tmp_path / "b"]
    assert find_runs(tmp_path / "b") == [tmp_path / "b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run here"):
        find_runs(tmp_path / "empty")
    with pytest.raises(UserError, match="no such file or folder"):
        find_runs(tmp_path / "missing")


def test_a_timing_without_verification_cannot_be_recorded():
    timing = summarise([1.0], "perf_counter", False)
    with pytest.raises(ValueError, match="a timing of unverified outputs"):
        Record(a_record().case, "ok", timing=timing)
    with pytest.raises(ValueError, match="'ok' without a timing"):
        Record(a_record().case, "ok", verified=True)
    with pytest.raises(ValueError, match="'oom' with a timing"):
        Record(a_record().case, "oom", verified=True, timing=timing)
    with pytest.raises(ValueError, match="status 'fine' is not one of"):
        Record(a_record().case, "fine")


def test_a_newer_record_says_so():
    with pytest.raises(ValueError, match=f"schema {SCHEMA + 1} is newer"):
        Record.from_dict(a_record().to_dict() | {"schema": SCHEMA + 1})
